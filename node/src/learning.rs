//! Pure: what an answer says of the limits of its target, in the words of its vendor.
//!
//! A vendor's fields are read as that vendor writes them and no other: `x-ratelimit-reset` is a
//! time since 1970 at one, seconds at another, `6m0s` at a third. What cannot be read says nothing.

use std::time::Duration;

use http::{HeaderMap, StatusCode};
use jiff::Timestamp;
use proto::meter::LearnFrom;

use crate::upstream::retry::retry_after;

/// A number of seconds above this is a time since 1970.
const EPOCH_S: u64 = 1_000_000_000;

/// Where a target names the limit that it counts a request at.
pub const BUCKET: &str = "x-ratelimit-resource";

/// What an answer says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lesson {
    /// Nothing is to be sent for so long.
    pub pause: Option<Duration>,
    /// What may still be sent.
    pub left: Option<Left>,
}

/// What a target says is left of one of its limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Left {
    /// So many more may pass.
    pub remaining: u64,
    /// Until all of it is back.
    pub reset: Duration,
}

/// How a vendor tells.
struct Vendor {
    /// Statuses that ask to wait.
    busy: &'static [u16],
    /// (what is left, when it is back), one pair for each of its limits of requests.
    requests: &'static [(&'static str, &'static str)],
    /// The same for its limits of tokens.
    tokens: &'static [(&'static str, &'static str)],
}

const PLAIN: Vendor = Vendor {
    busy: &[429, 503],
    requests: &[],
    tokens: &[],
};

fn vendor(from: LearnFrom) -> Option<Vendor> {
    Some(match from {
        LearnFrom::Off => return None,
        LearnFrom::RetryAfter => PLAIN,
        LearnFrom::Github => Vendor {
            busy: &[403, 429, 503],
            requests: &[("x-ratelimit-remaining", "x-ratelimit-reset")],
            ..PLAIN
        },
        LearnFrom::Openai => Vendor {
            requests: &[(
                "x-ratelimit-remaining-requests",
                "x-ratelimit-reset-requests",
            )],
            tokens: &[("x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens")],
            ..PLAIN
        },
        LearnFrom::Anthropic => Vendor {
            busy: &[429, 503, 529],
            requests: &[(
                "anthropic-ratelimit-requests-remaining",
                "anthropic-ratelimit-requests-reset",
            )],
            tokens: &[(
                "anthropic-ratelimit-tokens-remaining",
                "anthropic-ratelimit-tokens-reset",
            )],
        },
        LearnFrom::Shopify | LearnFrom::Ietf => PLAIN,
    })
}

/// What an answer says to a meter that learns so. `of_values`: it counts tokens, not requests. No
/// pause is longer than `most`.
pub fn lesson(
    from: LearnFrom,
    of_values: bool,
    status: StatusCode,
    headers: &HeaderMap,
    now: Timestamp,
    most: Duration,
) -> Lesson {
    let Some(vendor) = vendor(from) else {
        return Lesson::default();
    };
    let field = |name: &str| headers.get(name)?.to_str().ok();
    let pair = |(remaining, reset): &(&str, &str)| {
        Some(Left {
            remaining: field(remaining)?.trim().parse().ok()?,
            reset: until(field(reset)?, now)?,
        })
    };
    let requests = vendor.requests.iter().filter_map(pair);
    let tokens = vendor.tokens.iter().filter_map(pair);
    let told: Vec<Left> = match from {
        LearnFrom::Shopify => shopify(headers).into_iter().collect(),
        LearnFrom::Ietf => ietf(headers, now),
        _ => requests.clone().chain(tokens.clone()).collect(),
    };
    let own: Vec<Left> = match from {
        LearnFrom::Shopify | LearnFrom::Ietf if of_values => Vec::new(),
        LearnFrom::Shopify | LearnFrom::Ietf => told.clone(),
        _ if of_values => tokens.collect(),
        _ => requests.collect(),
    };
    let busy = vendor.busy.contains(&status.as_u16());
    let asked = asked_for(from, headers, now);
    let used_up = told.iter().filter(|left| left.remaining == 0);
    let used_up = used_up.map(|left| left.reset).max();
    // The word that is meant for waiting goes before the account of what is left.
    let pause = asked.or(used_up.filter(|_| from != LearnFrom::RetryAfter));
    Lesson {
        pause: pause
            .filter(|wait| busy && !wait.is_zero())
            .map(|wait| wait.min(most)),
        left: own
            .into_iter()
            .min_by_key(|left| left.remaining)
            .filter(|_| !busy),
    }
}

/// `Retry-After`, or what vendors send beside it.
fn asked_for(from: LearnFrom, headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let field = |name: &str| headers.get(name);
    let millis = match from {
        LearnFrom::Openai | LearnFrom::Anthropic => field("retry-after-ms"),
        _ => None,
    };
    let millis = millis.and_then(|value| value.to_str().ok()?.trim().parse().ok());
    if let Some(millis) = millis {
        return Some(Duration::from_millis(millis));
    }
    let value = field("retry-after")?;
    match from {
        // `2.0`.
        LearnFrom::Shopify => until(value.to_str().ok()?, now),
        _ => retry_after(value.as_bytes(), now, Duration::MAX),
    }
}

/// `X-Shopify-Shop-Api-Call-Limit: 39/40`: a bucket that gives back two calls a second.
fn shopify(headers: &HeaderMap) -> Option<Left> {
    let value = headers
        .get("x-shopify-shop-api-call-limit")?
        .to_str()
        .ok()?;
    let (used, limit) = value.trim().split_once('/')?;
    let (used, limit): (u64, u64) = (used.parse().ok()?, limit.parse().ok()?);
    Some(Left {
        remaining: limit.checked_sub(used)?,
        reset: Duration::from_millis(used.min(1_000_000) * 500),
    })
}

/// `RateLimit` (draft-ietf-httpapi-ratelimit-headers: -11 `"name";r=0;t=30`, -07
/// `limit=…, remaining=0, reset=30`), or the three fields of before.
fn ietf(headers: &HeaderMap, now: Timestamp) -> Vec<Left> {
    let field = |name: &str| headers.get(name)?.to_str().ok();
    let left = |remaining: &str, reset: &str| {
        Some(Left {
            remaining: remaining.trim().parse().ok()?,
            reset: until(reset, now)?,
        })
    };
    let Some(value) = field("ratelimit") else {
        let (remaining, reset) = (field("ratelimit-remaining"), field("ratelimit-reset"));
        return remaining
            .zip(reset)
            .and_then(|(r, t)| left(r, t))
            .into_iter()
            .collect();
    };
    let parameter = |text: &str, names: [&str; 2]| {
        let mut parts = text
            .split([';', ','])
            .filter_map(|part| part.split_once('='));
        let found = parts.find(|(name, _)| names.contains(&name.trim()));
        found.map(|(_, value)| value.trim().to_owned())
    };
    let one = |text: &str| {
        let remaining = parameter(text, ["r", "remaining"])?;
        left(&remaining, &parameter(text, ["t", "reset"])?)
    };
    match value.contains("remaining=") {
        true => one(value).into_iter().collect(),
        false => value.split(',').filter_map(one).collect(),
    }
}

/// How long until an instant: seconds with or without a fraction, seconds since 1970 when there
/// are more than 10^9, a duration of Go (`6m0s`, `20ms`), or RFC 3339. A time in the past is zero.
fn until(text: &str, now: Timestamp) -> Option<Duration> {
    let text = text.trim();
    if let Some(duration) = seconds(text) {
        return Some(match duration.as_secs() > EPOCH_S {
            true => {
                let past = Duration::try_from(now.duration_since(Timestamp::UNIX_EPOCH)).ok()?;
                duration.saturating_sub(past)
            }
            false => duration,
        });
    }
    if let Ok(instant) = text.parse::<Timestamp>() {
        let wait = instant.duration_since(now);
        return Some(Duration::try_from(wait).unwrap_or(Duration::ZERO));
    }
    go_duration(text)
}

/// Up to fifteen digits, with a fraction that is rounded up to a millisecond.
fn seconds(text: &str) -> Option<Duration> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |text: &str| {
        !text.is_empty() && text.len() <= 15 && text.bytes().all(|byte| byte.is_ascii_digit())
    };
    if !digits(whole) || !digits(fraction) {
        return None;
    }
    let scale = 10_u64.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let millis = u128::from(fraction.parse::<u64>().ok()?) * 1_000;
    let millis = u64::try_from(millis.div_ceil(u128::from(scale))).ok()?;
    let whole = Duration::from_secs(whole.parse().ok()?);
    Some(whole + Duration::from_millis(millis))
}

fn go_duration(text: &str) -> Option<Duration> {
    let (mut rest, mut total) = (text, Duration::ZERO);
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, behind) = rest.split_at(end);
        let units = [("ms", 1), ("h", 3_600_000), ("m", 60_000), ("s", 1_000)];
        let (unit, ms) = units
            .into_iter()
            .find(|(unit, _)| behind.starts_with(unit))?;
        // In thousandths of the unit.
        let thousandths = u64::try_from(seconds(number)?.as_millis()).ok()?;
        let millis = u128::from(thousandths) * ms;
        let millis = u64::try_from(millis.div_ceil(1_000)).ok()?;
        total = total.checked_add(Duration::from_millis(millis))?;
        rest = behind.get(unit.len()..)?;
    }
    Some(total)
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    const NOW_S: i64 = 1_789_456_000;
    const MOST: Duration = Duration::from_secs(600);

    fn told(from: LearnFrom, of_values: bool, status: u16, fields: &[(&str, &str)]) -> Lesson {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            headers.append(name, HeaderValue::from_str(value).unwrap());
        }
        let status = StatusCode::from_u16(status).unwrap();
        let now = Timestamp::from_second(NOW_S).unwrap();
        lesson(from, of_values, status, &headers, now, MOST)
    }

    fn pause(from: LearnFrom, status: u16, fields: &[(&str, &str)]) -> Option<u64> {
        let wait = told(from, false, status, fields).pause?;
        Some(u64::try_from(wait.as_millis()).unwrap())
    }

    #[test]
    fn times_are_read_in_every_form_that_vendors_write() {
        let now = Timestamp::from_second(NOW_S).unwrap();
        for (text, millis) in [
            ("0", Some(0)),
            ("30", Some(30_000)),
            ("2.0", Some(2_000)),
            ("0.0001", Some(1)),
            ("1789456621", Some(621_000)),
            ("1789450000", Some(0)),
            ("6m0s", Some(360_000)),
            ("1h2m3.5s", Some(3_723_500)),
            ("20ms", Some(20)),
            ("2026-09-15T07:07:40Z", Some(60_000)),
            ("2020-01-01T00:00:00Z", Some(0)),
            ("", None),
            ("s", None),
            ("5x", None),
            ("-3", None),
            ("NaN", None),
            ("1e9", None),
            (".5", None),
            ("99999999999999999999", None),
            ("99999999999999h", None),
        ] {
            let wait = until(text, now).map(|wait| wait.as_millis());
            assert_eq!(wait, millis, "{text:?}");
        }
    }

    #[test]
    fn a_pause_needs_the_status_and_the_word_of_the_vendor() {
        use LearnFrom::{Anthropic, Github, Ietf, Off, Openai, RetryAfter, Shopify};
        let after = ("retry-after", "3");
        for from in [RetryAfter, Github, Openai, Anthropic, Shopify, Ietf] {
            assert_eq!(pause(from, 429, &[after]), Some(3_000), "{from:?}");
            assert_eq!(pause(from, 503, &[after]), Some(3_000), "{from:?}");
            assert_eq!(pause(from, 200, &[after]), None, "{from:?}");
            assert_eq!(pause(from, 429, &[]), None, "{from:?}");
            let long = ("retry-after", "561635");
            assert_eq!(pause(from, 429, &[long]), Some(600_000), "{from:?}");
        }
        assert_eq!(pause(Off, 429, &[after]), None);
        let used_up = [
            ("x-ratelimit-remaining", "0"),
            ("x-ratelimit-reset", "1789456060"),
        ];
        assert_eq!(pause(Github, 403, &used_up), Some(60_000));
        assert_eq!(
            pause(RetryAfter, 429, &used_up),
            None,
            "no word of a vendor"
        );
        let some_left = [
            ("x-ratelimit-remaining", "2860"),
            ("x-ratelimit-reset", "1789456060"),
        ];
        assert_eq!(
            pause(Github, 403, &some_left),
            None,
            "forbidden is not busy"
        );
        let openai = [
            ("x-ratelimit-remaining-requests", "9"),
            ("x-ratelimit-reset-requests", "8.64s"),
            ("x-ratelimit-remaining-tokens", "0"),
            ("x-ratelimit-reset-tokens", "6m0s"),
        ];
        assert_eq!(pause(Openai, 429, &openai), Some(360_000));
        let millis = [("retry-after-ms", "1250"), ("retry-after", "2")];
        assert_eq!(pause(Openai, 429, &millis), Some(1_250));
        assert_eq!(pause(Anthropic, 529, &[after]), Some(3_000));
        assert_eq!(pause(Shopify, 429, &[("retry-after", "2.0")]), Some(2_000));
        assert_eq!(
            pause(Ietf, 429, &[("ratelimit", "\"a\";r=5;t=9, \"b\";r=0;t=7")]),
            Some(7_000)
        );
        let older = [("ratelimit", "limit=10, remaining=0, reset=4")];
        assert_eq!(pause(Ietf, 429, &older), Some(4_000));
        let oldest = [("ratelimit-remaining", "0"), ("ratelimit-reset", "5")];
        assert_eq!(pause(Ietf, 429, &oldest), Some(5_000));
    }

    #[test]
    fn what_is_left_is_that_of_what_the_meter_counts() {
        let openai = [
            ("x-ratelimit-remaining-requests", "9"),
            ("x-ratelimit-reset-requests", "8s"),
            ("x-ratelimit-remaining-tokens", "700"),
            ("x-ratelimit-reset-tokens", "6s"),
        ];
        let left = |of_values| {
            told(LearnFrom::Openai, of_values, 200, &openai)
                .left
                .unwrap()
        };
        assert_eq!((left(false).remaining, left(false).reset.as_secs()), (9, 8));
        assert_eq!((left(true).remaining, left(true).reset.as_secs()), (700, 6));
        assert_eq!(told(LearnFrom::Openai, false, 429, &openai).left, None);
        let shop = [("x-shopify-shop-api-call-limit", "38/40")];
        let left = told(LearnFrom::Shopify, false, 200, &shop).left.unwrap();
        assert_eq!((left.remaining, left.reset.as_secs()), (2, 19));
        for nonsense in ["40", "a/b", "41/40", "-1/40", ""] {
            let shop = [("x-shopify-shop-api-call-limit", nonsense)];
            assert_eq!(
                told(LearnFrom::Shopify, false, 200, &shop).left,
                None,
                "{nonsense}"
            );
        }
    }
}
