//! What the broker last published of a meter: the ground of refusals and headers.

use std::sync::Arc;
use std::time::Duration;

use proto::meter::{MeterSpec, Window};

use super::block::Opener;
use super::clock::Moment;
use super::refusal::{Cause, LimitStatus, Mode};
use super::state::State;

/// Shortest `retry_after`: never 0, as a caller would take it for "at once".
const RETRY_MIN: Duration = Duration::from_millis(1);

/// `retry_after` where only the return of the store can help.
const RETRY_LOST: Duration = Duration::from_secs(1);

/// From this part of a limit on callers are warned.
const NEAR_PERCENT: u128 = 80;

/// Whether a worker that finds no token asks or refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Ask the broker and wait for it.
    Ask,
    /// Let it pass without a token, before this instant on the own clock; then ask.
    Pass {
        /// Until when.
        until_ns: u64,
    },
    /// Nothing before this instant on the own clock.
    Refuse {
        /// From here on ask again.
        until_ns: u64,
        /// Why.
        cause: Cause,
    },
}

/// A settled state, as the broker saw it at an instant.
#[derive(Clone, Debug)]
pub struct View {
    /// The limits in force.
    pub spec: Arc<MeterSpec>,
    /// The state with all spends folded in.
    pub state: State,
    /// When.
    pub at: Moment,
    /// What to do without a token.
    pub verdict: Verdict,
    /// Who gives the tokens.
    pub mode: Mode,
    /// When the store last answered for this key; 0 for never.
    pub answered_ns: u64,
    /// Tokens that are on their way to this node, or may be.
    pub coming: u64,
}

impl View {
    /// Before the first answer.
    pub fn unknown(spec: Arc<MeterSpec>) -> Self {
        let at = Moment::default();
        let state = State::empty(&spec, 0, 0);
        Self {
            spec,
            state,
            at,
            verdict: Verdict::Ask,
            mode: Mode::Store,
            answered_ns: 0,
            coming: 0,
        }
    }

    /// The same with the limits of another configuration: whether there is something is open.
    pub fn renewed(&self, spec: &Arc<MeterSpec>) -> Self {
        Self {
            spec: Arc::clone(spec),
            verdict: Verdict::Ask,
            ..self.clone()
        }
    }

    /// Whether requests pass without a token.
    pub fn is_open(&self, now_ns: u64) -> bool {
        matches!(self.verdict, Verdict::Pass { until_ns } if now_ns < until_ns)
    }

    /// Time until the `k`-th token comes, and the limit that it waits for.
    pub fn retry_after(&self, cause: Cause, k: u64, now_ns: u64) -> (Duration, Option<Window>) {
        let (in_ns, window) = self.state.free_in(k, self.at.unix_ns);
        let wait = Duration::from_nanos(in_ns.saturating_sub(self.passed_ns(now_ns)));
        let until = match self.verdict {
            Verdict::Refuse { until_ns, .. } => {
                Duration::from_nanos(until_ns.saturating_sub(now_ns))
            }
            Verdict::Ask | Verdict::Pass { .. } => Duration::ZERO,
        };
        let least = if matches!(cause, Cause::Empty | Cause::Paused) {
            RETRY_MIN
        } else {
            RETRY_LOST
        };
        (wait.max(until).max(least), window)
    }

    /// What the store may give now, if nobody else has taken it since.
    pub fn free(&self, now_ns: u64) -> u64 {
        let passed_ns = self.passed_ns(now_ns);
        let unix_ns = self.at.unix_ns.saturating_add(passed_ns);
        let unix_s = i64::try_from(unix_ns / 1_000_000_000).unwrap_or(i64::MAX);
        let mut state = self.state.clone();
        state.pass(passed_ns, unix_s, Opener::NOBODY);
        state.free()
    }

    /// Place of the limit of which most is used, when that is four fifths or more of it.
    pub fn near(&self) -> Option<usize> {
        let open = self.state.open_left();
        let share = |usage: &super::state::Usage| {
            let used = u128::from(usage.used().saturating_add(open));
            used * 100 / u128::from(usage.limit.max(1))
        };
        let shares = self.state.limits.iter().map(share).enumerate();
        shares
            .filter(|(_, share)| *share >= NEAR_PERCENT)
            .max_by_key(|(_, share)| *share)
            .map(|(at, _)| at)
    }

    /// Each limit, with `in_hand` tokens of open blocks still to be had.
    pub fn limits(&self, in_hand: u64, now_ns: u64) -> Vec<LimitStatus> {
        let open = self.state.open_left().saturating_sub(in_hand);
        let passed_ns = self.passed_ns(now_ns);
        let status = |usage: &super::state::Usage| {
            let alone = State {
                limits: vec![usage.clone()],
                ..self.state.clone()
            };
            let remaining = usage
                .limit
                .saturating_sub(usage.used().saturating_add(open));
            // While something remains: until all of it is back; else until the next one.
            let wanted = if remaining > 0 { usage.limit } else { 1 };
            let (in_ns, _) = alone.free_in(wanted, self.at.unix_ns);
            LimitStatus {
                window: usage.window,
                limit: usage.per_window(),
                remaining,
                reset: Duration::from_nanos(in_ns.saturating_sub(passed_ns)),
            }
        };
        self.state.limits.iter().map(status).collect()
    }

    fn passed_ns(&self, now_ns: u64) -> u64 {
        now_ns.saturating_sub(self.at.boot_ns)
    }
}
