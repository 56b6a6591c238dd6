//! Meters: what is counted, and how much of it may pass.
//!
//! A meter hangs on an organisation, a target, a credential of either kind or a proxy and counts
//! the requests that go through it: those that match `when`, per `key`, against any of `limits`.
//! All limits of a meter share one key, one state and one block; what is free is the smallest of
//! them. [`Meter`] is the model as the API takes it, with every problem at once; [`MeterSpec`] is
//! what nodes keep of it.

mod error;
mod key;
mod limit;
pub mod share;
mod spec;
#[cfg(test)]
mod tests;
mod validate;
pub mod value;
mod when;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use error::MeterError;
pub use key::{CountBy, KeySource};
pub use limit::{Algorithm, LIMIT_MAX, Limit, MeterAlgorithm, OnLost, Window};
pub use share::Share;
pub use spec::{Estimate, Hold, MeterSpec, NAME_CHARS_MAX, StoreLoss};
pub use value::ResponseValue;
pub use when::{Applies, When, WhenSet};

/// Most limits of one meter: one per [`Window`], and one of calls in flight.
pub const LIMITS_PER_METER_MAX: usize = 6;
/// Most calls in flight that a limit can name.
pub const CONCURRENCY_MAX: u64 = 1_000_000;
/// Most meters on one object.
pub const METERS_PER_SCOPE_MAX: usize = 8;
/// Most meters that can apply to one request, over all that it goes through.
pub const METERS_PER_REQUEST_MAX: usize = 8;
/// Longest `notes`, in characters.
pub const NOTES_CHARS_MAX: usize = 4_096;

/// A meter as it is stored.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Meter {
    /// `mtr_…`; given by the control plane, so empty in a meter that is not yet stored.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub id: String,
    /// Begins its names in `RateLimit` headers: up to 64 of letters, digits, `-`, `_` and `.`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// What it counts. Default `request_count`.
    #[serde(default)]
    pub kind: MeterKind,
    /// Which numbers of answers are counted; with `kind: response_value` only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<ResponseValue>,
    /// At most so many per window, one element per window; none: it only observes.
    #[serde(default)]
    pub limits: Vec<MeterLimit>,
    /// The requests that it counts; absent: all that go through what it hangs on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub when: Option<When>,
    /// What it counts by; absent: all requests together.
    #[serde(default)]
    pub key: CountBy,
    /// What refused callers are answered.
    #[serde(default)]
    pub at_limit: AtLimit,
    /// What it does when neither a token nor the store is there. Default `local_share` when all
    /// windows are under an hour, else `fail_closed`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_store_loss: Option<StoreLoss>,
    /// The regions that have its limits together, each a share of them; a region that is not listed
    /// has none. Absent: each region gives the limits by itself.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shared_by: Vec<String>,
    /// Raise it to forget what was used until now, pauses too: each number has a count of its own.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub resets: u32,
    /// What it learns from the target's answers. Default: `retry_after` on a target or target
    /// credential, nothing elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub learn: Option<Learn>,
    /// For those who keep the meters; never leaves the control API.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub notes: Option<String>,
}

/// What a meter counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum MeterKind {
    /// Requests that are sent to the target, one each.
    #[default]
    RequestCount,
    /// Numbers in answers, such as the tokens of a language model or money; see `value`.
    ResponseValue,
}

/// At most so many per window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MeterLimit {
    /// How many; 1 to 1,000,000,000,000.
    pub limit: u64,
    /// Per which time; not for `concurrency`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<Window>,
    /// How the window moves. Default: `sliding_window` for second, minute and hour,
    /// `fixed_window` (the calendar in UTC) for day and month. `token_bucket` for all but month.
    /// `concurrency` counts calls in flight instead, from their sending to the last byte of their
    /// answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub algorithm: Option<MeterAlgorithm>,
    /// How many may pass at once; only with `token_bucket`. Default: `limit`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst: Option<u64>,
    /// What becomes of calls in flight while their node reaches neither etcd nor another node; only
    /// with `concurrency`. Default: `keep`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_lost: Option<OnLost>,
}

/// What happens to a request for which nothing is left.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AtLimit {
    /// What a refused caller is answered. Default `rate_limited`.
    #[serde(default)]
    pub answer: LimitAnswer,
    /// Callers wait for their turn before they are refused; absent: they are refused at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hold: Option<Holding>,
}

/// How callers wait for what a limit gives later.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Holding {
    /// Longest wait, in milliseconds; 1 to 300,000. Who could not be served within it is refused
    /// at once.
    pub max_wait_ms: u64,
    /// Most callers that wait on one node; 1 to 4,000. Default 100.
    #[serde(default = "max_waiting_default")]
    pub max_waiting: u32,
    /// Header with a digit, 0 to 9: higher ones go first. A request without one has the `priority`
    /// of its caller's credential, by default 0. Within one, the first come is the first served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority_header: Option<String>,
}

fn is_zero(n: &u32) -> bool {
    *n == 0
}

fn max_waiting_default() -> u32 {
    100
}

/// See [`AtLimit::answer`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum LimitAnswer {
    /// 429 `rate-limited`: clients try again.
    #[default]
    RateLimited,
    /// 402 `budget-exhausted`: clients give up.
    BudgetExhausted,
}

/// What a meter learns from the target's answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Learn {
    /// From which answers.
    pub from: LearnFrom,
    /// Longest pause, in milliseconds; 1 to 3,600,000. Default 60,000.
    #[serde(default = "pause_max_default")]
    pub pause_max_ms: u64,
}

/// See [`Learn::from`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum LearnFrom {
    /// Nothing.
    Off,
    /// `Retry-After` of 429 and 503 pauses the key of that request, on all nodes.
    RetryAfter,
    /// The same, of 403 as well, and `x-ratelimit-remaining: 0` until `x-ratelimit-reset`; where
    /// `x-ratelimit-resource` names which limit that is, only for what is counted there.
    Github,
    /// The same with `retry-after-ms`, and what is left of requests or tokens by
    /// `x-ratelimit-remaining-…` until `x-ratelimit-reset-…`.
    Openai,
    /// The same, of 529 as well, by `anthropic-ratelimit-…`.
    Anthropic,
    /// The same, and what is left by `x-shopify-shop-api-call-limit`.
    Shopify,
    /// The same, and what is left by `RateLimit` of the IETF's drafts.
    Ietf,
}

fn pause_max_default() -> u64 {
    60_000
}

impl Meter {
    /// What it learns from; none: nothing. `of_target`: it hangs on a target or target credential.
    pub fn learning(&self, of_target: bool) -> Option<Learn> {
        match self.learn {
            None => of_target.then(|| Learn {
                from: LearnFrom::RetryAfter,
                pause_max_ms: pause_max_default(),
            }),
            Some(learn) => (learn.from != LearnFrom::Off).then_some(learn),
        }
    }
}

impl Meter {
    /// What nodes keep of it, as of the version that last changed it.
    ///
    /// # Errors
    /// The first thing that is wrong; [`Meter::validate`] tells all.
    pub fn spec(&self, version: u64) -> Result<MeterSpec, MeterError> {
        let limits: Result<Vec<Limit>, MeterError> = self
            .limits
            .iter()
            .filter_map(|limit| limit.compile().transpose())
            .collect();
        let spec = MeterSpec::new(&self.name, version, limits?)?.answering(self.at_limit.answer);
        let spec = spec.holding(self.at_limit.hold.as_ref().map(|hold| Hold {
            max_wait_ms: hold.max_wait_ms,
            max_waiting: hold.max_waiting,
        }));
        let value = self
            .value
            .as_ref()
            .filter(|_| self.kind == MeterKind::ResponseValue);
        let spec = spec.estimating(value.map(|value| match value.estimate {
            Some(units) => Estimate::Given(units),
            None => Estimate::Learned,
        }));
        Ok(match self.on_store_loss {
            Some(behaviour) => spec.on_store_loss(behaviour),
            None => spec,
        })
    }
}

impl Meter {
    /// What its counts are kept under: its id, and how often it was reset.
    pub fn count_name(&self) -> String {
        match self.resets {
            0 => self.id.clone(),
            n => format!("{}/{n}", self.id),
        }
    }

    /// Whether calls in flight are ended whose place cannot be renewed.
    pub fn cancels_lost(&self) -> bool {
        let mut limits = self.limits.iter();
        limits.any(|limit| limit.on_lost == Some(OnLost::Cancel))
    }

    /// Calls in flight that it lets be, at most.
    pub fn concurrency(&self) -> Option<u64> {
        let mut slots = self
            .limits
            .iter()
            .filter_map(|limit| limit.concurrency().ok()?);
        slots.next()
    }
}

impl MeterLimit {
    /// The limit in the form that nodes use; none for `concurrency`.
    ///
    /// # Errors
    /// As [`Limit::with_algorithm`] and [`Limit::with_burst`], or [`MeterError::OnLost`].
    pub fn compile(&self) -> Result<Option<Limit>, MeterError> {
        if self.on_lost.is_some() && self.algorithm != Some(MeterAlgorithm::Concurrency) {
            return Err(MeterError::OnLost);
        }
        let algorithm = match self.algorithm {
            Some(MeterAlgorithm::Concurrency) => return self.concurrency().map(|_| None),
            Some(MeterAlgorithm::SlidingWindow) => Some(Algorithm::SlidingWindow),
            Some(MeterAlgorithm::FixedWindow) => Some(Algorithm::FixedWindow),
            Some(MeterAlgorithm::TokenBucket) => Some(Algorithm::TokenBucket),
            None => None,
        };
        let window = self.window.ok_or(MeterError::NoWindow)?;
        let algorithm = algorithm.unwrap_or(window.default_algorithm());
        let limit = Limit::with_algorithm(self.limit, window, algorithm)?;
        match self.burst {
            Some(burst) => limit.with_burst(burst).map(Some),
            None => Ok(Some(limit)),
        }
    }

    /// Calls in flight, at most; none for another algorithm.
    ///
    /// # Errors
    /// [`MeterError::SlotRange`], or [`MeterError::SlotWindow`] when it names a window or burst.
    pub fn concurrency(&self) -> Result<Option<u64>, MeterError> {
        if self.algorithm != Some(MeterAlgorithm::Concurrency) {
            return Ok(None);
        }
        if self.window.is_some() || self.burst.is_some() {
            return Err(MeterError::SlotWindow);
        }
        if self.limit == 0 || self.limit > CONCURRENCY_MAX {
            return Err(MeterError::SlotRange(self.limit));
        }
        Ok(Some(self.limit))
    }
}
