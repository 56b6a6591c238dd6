//! A meter as nodes use it: its limits in one form, and what it does when the store is gone.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{LIMIT_MAX, Limit, LimitAnswer, MeterError, Share, Window, share};

/// Longest name of a meter, in characters.
pub const NAME_CHARS_MAX: usize = 64;

/// Whether a text may be part of the name of a `RateLimit` policy.
pub fn is_name(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    text.len() <= NAME_CHARS_MAX && text.bytes().all(plain)
}

/// What a meter does when neither a token nor the store is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum StoreLoss {
    /// Admit ⌊(limit − used as last seen) / nodes last known⌋ per window, nothing without a fresh
    /// view. With one node the limit holds, except for what a crash during the loss forgets.
    LocalShare,
    /// Admit nothing.
    FailClosed,
    /// Admit everything, uncounted: the limit does not hold meanwhile.
    FailOpen,
}

/// One meter as nodes use it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeterSpec {
    name: String,
    version: u64,
    limits: Vec<Limit>,
    on_store_loss: StoreLoss,
    answer: LimitAnswer,
    hold: Option<Hold>,
    estimate: Option<Estimate>,
    share: Option<Share>,
}

/// What a request spends before its answer says what it has cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Estimate {
    /// So many units.
    Given(u64),
    /// As the answers before it.
    Learned,
}

/// How callers wait for their turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hold {
    /// Longest wait, in milliseconds.
    pub max_wait_ms: u64,
    /// Most who wait on one node.
    pub max_waiting: u32,
}

impl MeterSpec {
    /// A meter of request counts with the default behaviour at a loss of the store: `local_share`
    /// when every window is under an hour, else `fail_closed`.
    ///
    /// `name` prefixes the policy names in headers and may be empty; `version` is the number of
    /// the configuration that holds the limits: a higher one replaces a lower one. No limits:
    /// observe only.
    ///
    /// # Errors
    /// [`MeterError::SameWindow`] when two limits have one window, [`MeterError::Name`] for a name
    /// that a header cannot hold.
    pub fn new(name: &str, version: u64, limits: Vec<Limit>) -> Result<Self, MeterError> {
        if !is_name(name) {
            return Err(MeterError::Name(
                name.chars().take(NAME_CHARS_MAX).collect(),
            ));
        }
        for (at, limit) in limits.iter().enumerate() {
            if limits
                .iter()
                .take(at)
                .any(|other| other.window() == limit.window())
            {
                return Err(MeterError::SameWindow(limit.window()));
            }
        }
        let fast = limits.iter().all(|limit| limit.window() < Window::Hour);
        let on_store_loss = if fast {
            StoreLoss::LocalShare
        } else {
            StoreLoss::FailClosed
        };
        let name = name.to_owned();
        Ok(Self {
            name,
            version,
            limits,
            on_store_loss,
            answer: LimitAnswer::default(),
            hold: None,
            estimate: None,
            share: None,
        })
    }

    /// The same meter with a chosen behaviour at a loss of the store.
    #[must_use]
    pub fn on_store_loss(mut self, behaviour: StoreLoss) -> Self {
        self.on_store_loss = behaviour;
        self
    }

    /// The same meter with another answer to refused callers.
    #[must_use]
    pub fn answering(mut self, answer: LimitAnswer) -> Self {
        self.answer = answer;
        self
    }

    /// The same meter with callers that wait, or do not.
    #[must_use]
    pub fn holding(mut self, hold: Option<Hold>) -> Self {
        self.hold = hold;
        self
    }

    /// The same meter, which counts values of answers, or does not.
    #[must_use]
    pub fn estimating(mut self, estimate: Option<Estimate>) -> Self {
        self.estimate = estimate;
        self
    }

    /// The same meter with a part of each of its limits, or more than it, rounded up and never less
    /// than one.
    #[must_use]
    pub fn scaled(&self, parts: u64, of: u64) -> Self {
        let scaled = |n: u64| {
            if n == 0 {
                // What a region has no share of.
                return 0;
            }
            let scaled = (u128::from(n) * u128::from(parts)).div_ceil(u128::from(of.max(1)));
            u64::try_from(scaled)
                .unwrap_or(LIMIT_MAX)
                .clamp(1, LIMIT_MAX)
        };
        let limits = self.limits.iter().map(|limit| limit.scaled(scaled));
        Self {
            limits: limits.collect(),
            ..self.clone()
        }
    }

    /// The same meter, of whose limits this region has a share that can move.
    #[must_use]
    pub fn sharing(mut self, share: Option<Share>) -> Self {
        self.share = share;
        self
    }

    /// What this region had of its limits at the start, where shares of them can move.
    pub fn share(&self) -> Option<Share> {
        self.share
    }

    /// The same meter with what a region has of each of its limits, rounded down: nothing passes
    /// where that is nothing.
    #[must_use]
    pub fn shared(&self, millionths: u64) -> Self {
        let limits = self.limits.iter();
        Self {
            limits: limits
                .map(|limit| limit.scaled(|n| share::part(n, millionths)))
                .collect(),
            ..self.clone()
        }
    }

    /// How much a request spends before its answer is known; none: each counts one.
    pub fn estimate(&self) -> Option<Estimate> {
        self.estimate
    }

    /// How callers wait for their turn; none: they are refused.
    pub fn hold(&self) -> Option<Hold> {
        self.hold
    }

    /// What refused callers are answered.
    pub fn answer(&self) -> LimitAnswer {
        self.answer
    }

    /// Prefix of its policy names; may be empty.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Number of the configuration that holds its limits.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Its limits, at most one per window.
    pub fn limits(&self) -> &[Limit] {
        &self.limits
    }

    /// What it does when the store is gone.
    pub fn store_loss(&self) -> StoreLoss {
        self.on_store_loss
    }

    /// Its slowest window; `None` when it only observes.
    pub fn slowest(&self) -> Option<Window> {
        self.limits.iter().map(|limit| limit.window()).max()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meter::Limit;

    fn spec(windows: &[Window]) -> Result<MeterSpec, MeterError> {
        let limits = windows
            .iter()
            .map(|window| Limit::new(10, *window).unwrap())
            .collect();
        MeterSpec::new("orders", 1, limits)
    }

    #[test]
    fn a_meter_has_one_limit_per_window_and_a_behaviour_without_store() {
        use Window::{Day, Hour, Minute, Second};
        let loss = |windows: &[Window]| spec(windows).unwrap().store_loss();
        assert_eq!(loss(&[Second, Minute]), StoreLoss::LocalShare);
        assert_eq!(loss(&[Hour]), StoreLoss::FailClosed);
        assert_eq!(loss(&[Minute, Day]), StoreLoss::FailClosed);
        assert_eq!(spec(&[Minute, Day, Second]).unwrap().slowest(), Some(Day));
        assert_eq!(spec(&[]).unwrap().slowest(), None);
        assert_eq!(
            spec(&[Minute, Second, Minute]),
            Err(MeterError::SameWindow(Minute))
        );
        let half = spec(&[Minute, Day]).unwrap().scaled(1, 3);
        let limits: Vec<u64> = half.limits().iter().map(|limit| limit.limit()).collect();
        assert_eq!(limits, [4, 4]);
        assert!(matches!(
            MeterSpec::new("a b", 1, vec![]),
            Err(MeterError::Name(_))
        ));
        assert!(matches!(
            MeterSpec::new("a\"", 1, vec![]),
            Err(MeterError::Name(_))
        ));
    }
}
