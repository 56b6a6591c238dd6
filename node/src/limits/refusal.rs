//! What a caller is told: how much is left, when to come back, in which headers.
//!
//! `RateLimit` and `RateLimit-Policy` are structured field lists (RFC 9651) as in
//! draft-ietf-httpapi-ratelimit-headers-11: one item per limit, named after its meter and window.

use std::fmt::Write as _;
use std::time::Duration;

use proto::meter::{LimitAnswer, Window};

use super::meter::Meter;

/// Why nothing is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The limit is used up.
    Empty,
    /// Its target asked to wait.
    Paused,
    /// Too many requests wait for this meter already.
    Crowded,
    /// The store cannot be reached, and the meter gives nothing without it.
    StoreLost,
}

/// Who gives the tokens now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// The store, as it should be.
    #[default]
    Store,
    /// The node's own share, without the store.
    LocalShare,
    /// Nobody: the store is gone.
    Lost,
    /// Nobody, and everything passes.
    Open,
}

impl Mode {
    /// The word for headers, metrics and the node list.
    pub fn name(self) -> &'static str {
        match self {
            Self::Store => "store",
            Self::LocalShare => "local_share",
            Self::Lost => "store_lost",
            Self::Open => "fail_open",
        }
    }
}

/// One limit at an instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LimitStatus {
    /// Its window.
    pub window: Window,
    /// Tokens per window.
    pub limit: u64,
    /// Tokens that this process could still give; other nodes' open blocks count as used.
    pub remaining: u64,
    /// Until all of the limit is there again or, with nothing remaining, the next token.
    pub reset: Duration,
}

/// One meter at an instant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeterStatus {
    /// Id of the meter, or of the proxy whose `limits` they are.
    pub id: String,
    /// Prefix of the policy names; may be empty.
    pub name: String,
    /// Who gives the tokens.
    pub mode: Mode,
    /// Its limits.
    pub limits: Vec<LimitStatus>,
}

/// A refused draw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Why.
    pub cause: Cause,
    /// What its meter has refused callers told.
    pub answer: LimitAnswer,
    /// The limit that refuses. Something remains of it only where a meter of values has less than
    /// is set aside.
    pub limit: Option<LimitStatus>,
    /// What is set aside for the request; 1 where it spends one token.
    pub set_aside: u64,
    /// When the token comes that this caller would get, the k-th for the k-th refused since the
    /// last refill; never zero.
    pub retry_after: Duration,
    /// When that limit has its next token.
    pub reset: Duration,
    /// All limits of the meter.
    pub status: MeterStatus,
}

impl Refusal {
    /// With what is left of the limit of a meter of values, where that is less than the request
    /// sets aside: it is not used up.
    pub(super) fn short(mut self, meter: &Meter, amount: u64, now_ns: u64) -> Self {
        if let (Cause::Empty, Some(limit)) = (self.cause, &mut self.limit) {
            let (left, set_aside) = meter.left(limit.window, amount, now_ns);
            // Others may have given something back since; this request was refused before.
            limit.remaining = left.min(set_aside.saturating_sub(1));
            self.set_aside = set_aside;
        }
        self
    }
}

/// What a caller is told to wait, in `Retry-After` (RFC 9110 section 10.2.3) and in bodies: whole
/// seconds, rounded up, at least 1.
pub fn retry_after(wait: Duration) -> u64 {
    seconds(wait).max(1)
}

/// Value of `RateLimit`: `"minute";r=0;t=12`. Empty without limits.
pub fn rate_limit(meters: &[MeterStatus]) -> String {
    list(meters, |text, limit| {
        write!(text, ";r={};t={}", limit.remaining, seconds(limit.reset))
    })
}

/// Value of `RateLimit-Policy`: `"minute";q=60;w=60`. Empty without limits.
///
/// A month counts 31 days here: the field has no calendar.
pub fn rate_limit_policy(meters: &[MeterStatus]) -> String {
    list(meters, |text, limit| {
        write!(
            text,
            ";q={};w={}",
            limit.limit,
            limit.window.width_ns() / 1_000_000_000
        )
    })
}

fn list(
    meters: &[MeterStatus],
    parameters: impl Fn(&mut String, &LimitStatus) -> std::fmt::Result,
) -> String {
    let mut text = String::new();
    for meter in meters {
        for limit in &meter.limits {
            let comma = if text.is_empty() { "" } else { ", " };
            let dash = if meter.name.is_empty() { "" } else { "-" };
            let named = write!(text, "{comma}\"{}{dash}{}\"", meter.name, limit.window);
            if named.and_then(|()| parameters(&mut text, limit)).is_err() {
                return String::new();
            }
        }
    }
    text
}

/// Whole seconds, rounded up.
fn seconds(wait: Duration) -> u64 {
    wait.as_secs()
        .saturating_add(u64::from(wait.subsec_nanos() > 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(name: &str, limits: &[(Window, u64, u64, u64)]) -> MeterStatus {
        let limits = limits
            .iter()
            .map(|(window, limit, remaining, reset_ms)| LimitStatus {
                window: *window,
                limit: *limit,
                remaining: *remaining,
                reset: Duration::from_millis(*reset_ms),
            })
            .collect();
        MeterStatus {
            id: "mtr_1".to_owned(),
            name: name.to_owned(),
            mode: Mode::Store,
            limits,
        }
    }

    #[test]
    fn headers_are_structured_fields_with_whole_seconds() {
        let minute = status("", &[(Window::Minute, 60, 0, 11_001)]);
        assert_eq!(
            rate_limit(std::slice::from_ref(&minute)),
            r#""minute";r=0;t=12"#
        );
        assert_eq!(rate_limit_policy(&[minute]), r#""minute";q=60;w=60"#);
        let two = status(
            "orders",
            &[(Window::Second, 5, 4, 0), (Window::Month, 9, 1, 1_000)],
        );
        assert_eq!(
            rate_limit(std::slice::from_ref(&two)),
            r#""orders-second";r=4;t=0, "orders-month";r=1;t=1"#
        );
        assert_eq!(
            rate_limit_policy(&[two]),
            r#""orders-second";q=5;w=1, "orders-month";q=9;w=2678400"#
        );
        assert_eq!(rate_limit(&[]), "");
    }

    proptest::proptest! {
        /// Both fields are a List of Items of RFC 9651, each a String with Integers of at most 15
        /// digits, of one name in both.
        #[test]
        fn whatever_they_say_both_fields_can_be_parsed(
            name in "[A-Za-z0-9._-]{0,64}",
            limits in proptest::collection::vec(
                (0..5_usize, 0..=proto::meter::LIMIT_MAX, proptest::num::u64::ANY), 1..4,
            ),
        ) {
            let windows = [
                Window::Second, Window::Minute, Window::Hour, Window::Day, Window::Month,
            ];
            let limits = limits.into_iter().map(|(window, limit, reset_ns)| LimitStatus {
                window: windows[window],
                limit,
                remaining: limit,
                reset: Duration::from_nanos(reset_ns),
            });
            let status = MeterStatus { limits: limits.collect(), ..status(&name, &[]) };
            let status = [status];
            let integer = |text: &str, key: &str| {
                let digits = text.strip_prefix(key).expect("the key");
                assert!(digits.len() <= 15 && digits.bytes().all(|b| b.is_ascii_digit()), "{text}");
            };
            let names = |field: &str, keys: [&str; 2]| -> Vec<String> {
                let items = field.split(", ").map(|item| {
                    let mut parts = item.split(';');
                    let name = parts.next().expect("a name");
                    let inner = name.strip_prefix('"').and_then(|name| name.strip_suffix('"'));
                    let inner = inner.expect("a string");
                    assert!(!inner.is_empty() && !inner.contains(['"', '\\']), "{inner}");
                    for key in keys {
                        integer(parts.next().expect("a parameter"), key);
                    }
                    assert!(parts.next().is_none(), "{item}");
                    inner.to_owned()
                });
                items.collect()
            };
            let told = names(&rate_limit(&status), ["r=", "t="]);
            assert_eq!(told, names(&rate_limit_policy(&status), ["q=", "w="]));
            assert_eq!(told.len(), status[0].limits.len());
        }
    }

    #[test]
    fn retry_after_is_never_zero() {
        let check = |ms: u64, s: u64| {
            assert_eq!(retry_after(Duration::from_millis(ms)), s, "{ms} ms");
        };
        check(0, 1);
        check(1, 1);
        check(1_000, 1);
        check(1_001, 2);
        check(59_999, 60);
    }
}
