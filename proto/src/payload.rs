//! What a proxy lets records keep of bodies: the first bytes of each, after filters, with known
//! secrets overwritten.
//!
//! Part of a [`crate::record::Record`]: plain structs without serde attributes that change the
//! shape.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::problem::Problem;

/// Most bytes of a body that a record may hold.
pub const PAYLOAD_BYTES_MAX: u32 = 65_536;
/// As many where a policy does not say.
const PAYLOAD_BYTES_DEFAULT: u32 = 4_096;

/// Which bodies records keep, and how much of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PayloadPolicy {
    /// Bodies of requests, as they go to the target. Default true.
    #[serde(default = "yes")]
    pub requests: bool,
    /// Bodies of answers, as they go to the caller. Default true.
    #[serde(default = "yes")]
    pub responses: bool,
    /// First bytes of each that are kept, at most 65536. Default 4096.
    #[serde(default = "bytes_default")]
    pub bytes_max: u32,
}

fn yes() -> bool {
    true
}

fn bytes_default() -> u32 {
    PAYLOAD_BYTES_DEFAULT
}

impl PayloadPolicy {
    /// What is wrong with it.
    pub fn problems(&self, path: &str, problems: &mut Vec<Problem>) {
        if !(1..=PAYLOAD_BYTES_MAX).contains(&self.bytes_max) {
            let why = format!("must be 1 to {PAYLOAD_BYTES_MAX}");
            problems.push(Problem::new(
                format!("{path}/bytes_max"),
                "out-of-range",
                why,
            ));
        }
        if !self.requests && !self.responses {
            let why = "keeps nothing; leave it out, or keep `requests` or `responses`";
            problems.push(Problem::new(path, "empty", why));
        }
    }

    /// Whether it keeps all that another one would.
    pub fn covers(&self, other: &Self) -> bool {
        (self.requests || !other.requests)
            && (self.responses || !other.responses)
            && self.bytes_max >= other.bytes_max
    }
}

/// Bodies of one request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Payload {
    /// What went to the target.
    pub request: Option<Captured>,
    /// What went to the caller.
    pub response: Option<Captured>,
}

/// The beginning of one body.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Captured {
    /// Its `Content-Type`.
    pub content_type: Option<String>,
    /// Its first bytes: text, or base64 of them. Secrets that the gateway knows are `*`.
    pub content: String,
    /// Whether `content` is base64, because the bytes are no text.
    pub base64: bool,
    /// Whether more followed.
    pub truncated: bool,
    /// Why nothing is kept: `content-coding`, which was not whole and so could not be decoded, or
    /// `memory`, of which too much was in use.
    pub withheld: Option<String>,
}

impl Payload {
    /// Leaves out what was captured, and says why.
    pub fn withhold(&mut self, why: &str) {
        for captured in [&mut self.request, &mut self.response]
            .into_iter()
            .flatten()
        {
            *captured = Captured {
                content_type: captured.content_type.take(),
                withheld: Some(why.to_owned()),
                ..Captured::default()
            };
        }
    }

    /// About how many bytes it takes.
    pub fn weight(&self) -> usize {
        let both = [&self.request, &self.response];
        both.into_iter()
            .flatten()
            .map(|captured| captured.content.len() + 64)
            .sum()
    }
}

/// A [`Payload`] as blocks hold it, its texts borrowed.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct StoredPayload<'a> {
    #[serde(borrow)]
    request: Option<StoredCaptured<'a>>,
    response: Option<StoredCaptured<'a>>,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct StoredCaptured<'a> {
    content_type: Option<&'a str>,
    content: &'a str,
    base64: bool,
    truncated: bool,
    withheld: Option<&'a str>,
}

impl<'a> StoredPayload<'a> {
    /// What a block holds of `payload`.
    pub fn of(payload: &'a Payload) -> Self {
        let stored = |captured: &'a Captured| StoredCaptured {
            content_type: captured.content_type.as_deref(),
            content: &captured.content,
            base64: captured.base64,
            truncated: captured.truncated,
            withheld: captured.withheld.as_deref(),
        };
        Self {
            request: payload.request.as_ref().map(stored),
            response: payload.response.as_ref().map(stored),
        }
    }

    /// The payload itself.
    pub fn to_payload(&self) -> Payload {
        let whole = |captured: StoredCaptured<'_>| Captured {
            content_type: captured.content_type.map(str::to_owned),
            content: captured.content.to_owned(),
            base64: captured.base64,
            truncated: captured.truncated,
            withheld: captured.withheld.map(str::to_owned),
        };
        Payload {
            request: self.request.map(whole),
            response: self.response.map(whole),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_keeps_something_and_not_too_much() {
        let check = |text: &str, expected: &[&str]| {
            let policy: PayloadPolicy = serde_json::from_str(text).unwrap();
            let mut problems = Vec::new();
            policy.problems("/record/payload", &mut problems);
            let paths: Vec<&str> = problems
                .iter()
                .map(|problem| problem.pointer.as_str())
                .collect();
            assert_eq!(paths, expected, "{text}");
        };
        check("{}", &[]);
        check(r#"{"bytes_max": 65536, "requests": false}"#, &[]);
        check(r#"{"bytes_max": 65537}"#, &["/record/payload/bytes_max"]);
        check(r#"{"bytes_max": 0}"#, &["/record/payload/bytes_max"]);
        check(
            r#"{"requests": false, "responses": false}"#,
            &["/record/payload"],
        );
    }
}
