//! What a meter of kind `response_value` counts: numbers in answers, such as the tokens of a
//! language model or money.
//!
//! All arithmetic is on integers. A number is read to the millionth, weighed in millionths, and
//! the sum is rounded up to whole units, which are what the meter's limits count. Before a request
//! is sent an estimate is set aside; with the answer's end the difference is charged or given back.

pub mod decimal;
mod events;
mod reading;
#[cfg(test)]
mod tests;
mod usage_option;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use reading::{Framing, Reading, ValueSet};
pub use usage_option::{Injected, inject};

use super::LIMIT_MAX;
use crate::checks;
use crate::json_path::JsonPath;
use crate::problem::Problem;

/// Most numbers of one answer, and of one request.
pub const PARTS_MAX: usize = 8;
/// Most that one of a number can count, in millionths.
pub const WEIGHT_MAX: u64 = 1_000_000_000_000;

/// What is counted of an answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ResponseValue {
    /// The tokens that an answer of a language model says it has used, all together, wherever its
    /// API says it, in JSON and in streams. Instead of `values`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<ValueTemplate>,
    /// Numbers of the answer; each is weighed and all are added up. At most 8.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<ValuePart>,
    /// Which event of a stream counts, for each number by itself. Default `last`.
    #[serde(default)]
    pub take: Take,
    /// What is set aside for a request before it is sent, in whole units: 1 to 1,000,000,000,000.
    /// Absent: nine tenths of the last hundred answers were no larger (p90); for the first, a
    /// twentieth of the smallest limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub estimate: Option<u64>,
    /// Numbers of the request's JSON body, such as `$.max_tokens`: no less than the largest of
    /// them is set aside. The body is read into memory for it. Templates have their own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reserve: Vec<ReservePart>,
    /// Whether a target that tells of usage only when asked is asked. Default `leave`.
    #[serde(default)]
    pub request_usage: RequestUsage,
}

/// A number of an answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ValuePart {
    /// JSONPath (RFC 9535) into a JSON answer, or into the data of each event of a stream. Where it
    /// finds several numbers they are added up; strings and everything else are no numbers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// A header of the answer that holds a number. Instead of `path`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header: Option<String>,
    /// How many millionths of a unit one of it counts: 1 to 1,000,000,000,000. Default 1,000,000,
    /// which is one.
    #[serde(default = "one")]
    pub weight_millionths: u64,
}

/// A number of a request's JSON body.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReservePart {
    /// JSONPath (RFC 9535).
    pub path: String,
    /// As of a value.
    #[serde(default = "one")]
    pub weight_millionths: u64,
}

/// See [`ResponseValue::template`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ValueTemplate {
    /// Chat completions: `usage.total_tokens`; at least `max_completion_tokens` or `max_tokens` is
    /// set aside.
    OpenaiChat,
    /// Responses: `usage.total_tokens` of the answer or of `response.completed`; at least
    /// `max_output_tokens` is set aside.
    OpenaiResponses,
    /// Messages: input, cache and output tokens of the answer, or of `message_start` and
    /// `message_delta`; at least `max_tokens` is set aside.
    Anthropic,
    /// `usageMetadata.totalTokenCount`; at least `generationConfig.maxOutputTokens` is set aside.
    Gemini,
}

/// See [`ResponseValue::take`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Take {
    /// The last event that has it.
    #[default]
    Last,
    /// The largest.
    Max,
    /// All of them.
    Sum,
}

/// See [`ResponseValue::request_usage`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RequestUsage {
    /// The request goes as it came.
    #[default]
    Leave,
    /// With `openai_chat`: a request for a stream without `stream_options.include_usage` gets it,
    /// and the event that it brings is taken out of the answer.
    Inject,
}

fn one() -> u64 {
    1_000_000
}

impl ResponseValue {
    /// Everything that is wrong with it; pointers begin at the value.
    pub fn validate(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        let mut problem = |pointer: String, code: &'static str, detail: String| {
            problems.push(Problem::new(pointer, code, detail));
        };
        match (self.template.is_some(), self.values.is_empty()) {
            (false, true) => problem(
                "/values".into(),
                "required",
                "is missing: which number of the answer? Or name a `template`".into(),
            ),
            (true, false) => problem(
                "/values".into(),
                "not-applicable",
                "`template` says what is counted; remove one of both".into(),
            ),
            _ => {}
        }
        for (field, count) in [
            ("values", self.values.len()),
            ("reserve", self.reserve.len()),
        ] {
            if count > PARTS_MAX {
                let detail = format!("has {count} elements; at most {PARTS_MAX} are allowed");
                problem(format!("/{field}"), "too-many", detail);
            }
        }
        for (at, part) in self.values.iter().enumerate() {
            part.check(&format!("/values/{at}"), &mut problem);
        }
        for (at, part) in self.reserve.iter().enumerate() {
            let pointer = format!("/reserve/{at}");
            check_path(&part.path, &pointer, &mut problem);
            check_weight(part.weight_millionths, &pointer, &mut problem);
        }
        let injects = self.request_usage == RequestUsage::Inject;
        if injects && self.template != Some(ValueTemplate::OpenaiChat) {
            let detail = "`inject` is for `template: openai_chat` only; other APIs tell unasked";
            problem("/request_usage".into(), "not-applicable", detail.into());
        }
        checks::range(self.estimate, 1..=LIMIT_MAX, "/estimate", &mut problems);
        problems
    }
}

type Report<'p> = dyn FnMut(String, &'static str, String) + 'p;

impl ValuePart {
    fn check(&self, pointer: &str, problem: &mut Report<'_>) {
        match (&self.path, &self.header) {
            (Some(path), None) => check_path(path, pointer, problem),
            (None, Some(name)) if checks::is_token(name) && name.len() <= 256 => {}
            (None, Some(name)) => {
                let detail = format!("`{}` is not a header name", checks::printable(name));
                problem(format!("{pointer}/header"), "header-name", detail);
            }
            (None, None) => {
                let detail = "is missing: a `path` into the body or a `header`?";
                problem(format!("{pointer}/path"), "required", detail.into());
            }
            (Some(_), Some(_)) => {
                let detail = "is one number in two places; remove `path` or `header`";
                problem(format!("{pointer}/header"), "not-applicable", detail.into());
            }
        }
        check_weight(self.weight_millionths, pointer, problem);
    }
}

fn check_path(path: &str, pointer: &str, problem: &mut Report<'_>) {
    if let Err(error) = JsonPath::parse(path) {
        problem(format!("{pointer}/path"), error.code, error.to_string());
    }
}

fn check_weight(weight: u64, pointer: &str, problem: &mut Report<'_>) {
    if weight == 0 || weight > WEIGHT_MAX {
        let detail = format!("{weight} is not between 1 and {WEIGHT_MAX} millionths");
        problem(format!("{pointer}/weight_millionths"), "range", detail);
    }
}
