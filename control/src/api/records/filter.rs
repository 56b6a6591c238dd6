//! The query parameters by which records are chosen, for all calls that read them.

use std::sync::OnceLock;

use jiff::{SignedDuration, Timestamp};
use proto::id::ProxyId;
use proto::outcome::Code;

use crate::api::call::OrgCall;
use crate::api::error::Refusal;
use crate::api::proxies;
use crate::api::shape;
use crate::records::RecordFilter;
use crate::records::field::FIELDS;
use crate::route::Parameter;

const FIRST: [Parameter; 6] = [
    ("proxy", "Id, alias or name of the proxy that was called"),
    ("credential", "Id of a credential on either side"),
    ("status", "A status such as `429`, or a class such as `4xx`"),
    ("code", "The outcome, such as `proxy-access-granted`"),
    (
        "from",
        "Started at or after this instant (RFC 3339), or so long ago, as in `15m`, `24h`, `7d`",
    ),
    (
        "to",
        "Started before this instant (RFC 3339), or so long ago",
    ),
];

/// Every parameter by which records are chosen.
pub fn parameters() -> &'static [Parameter] {
    static ALL: OnceLock<Vec<Parameter>> = OnceLock::new();
    ALL.get_or_init(|| {
        let fields = FIELDS.iter().map(|field| (field.name, field.meaning));
        FIRST.into_iter().chain(fields).collect()
    })
}

/// Reads them.
///
/// # Errors
/// 400: a value is not of its form, or names a proxy that is not there.
pub fn filter(call: &OrgCall) -> Result<RecordFilter, Refusal> {
    call.of_operators()?;
    let query = &call.request.query;
    let (from, to) = (instant(call, "from")?, instant(call, "to")?);
    if from.zip(to).is_some_and(|(from, to)| from > to) {
        return Err(Refusal::parameter("from", "must be before `to`"));
    }
    let mut conditions = Vec::new();
    for field in FIELDS {
        if let Some(text) = query.get(field.name) {
            let condition = field.condition(text);
            conditions.push(condition.ok_or_else(|| {
                Refusal::parameter(field.name, format!("must be {}", field.expected))
            })?);
        }
    }
    Ok(RecordFilter {
        proxy: query
            .get("proxy")
            .map(|name| proxy(call, name))
            .transpose()?,
        credential: query.parsed("credential", "the id of a credential, `crd_…`")?,
        status: query.parsed("status", "a status such as 429, or a class such as 4xx")?,
        code: query.get("code").map(code).transpose()?,
        conditions,
        from_us: from.map(Timestamp::as_microsecond),
        to_us: to.map(Timestamp::as_microsecond),
        after: None,
    })
}

/// The proxy with this id, which may be gone, or with this alias or name.
fn proxy(call: &OrgCall, name: &str) -> Result<ProxyId, Refusal> {
    if let Ok(id) = name.parse() {
        return Ok(id);
    }
    let config = call.config()?;
    let named = proxies::named(&config.objects, name);
    named.map_err(|unnamed| Refusal::parameter("proxy", unnamed))
}

/// A code that requests end with.
///
/// # Errors
/// 400: there is none of this name, so that no record could fit.
fn code(name: &str) -> Result<String, Refusal> {
    let known = || Code::ALL.iter().map(|code| code.as_str());
    if known().any(|code| code == name) {
        return Ok(name.to_owned());
    }
    let detail = match shape::nearest(name, known()) {
        Some(near) => format!("is no code of a request's end; did you mean `{near}`?"),
        None => format!(
            "is no code of a request's end; known are {}",
            known().collect::<Vec<_>>().join(", ")
        ),
    };
    Err(Refusal::parameter("code", detail))
}

/// An instant, or a time before now.
///
/// # Errors
/// 400: it is neither.
pub fn instant(call: &OrgCall, name: &str) -> Result<Option<Timestamp>, Refusal> {
    let Some(text) = call.request.query.get(name) else {
        return Ok(None);
    };
    let found = text.parse().ok().or_else(|| ago(text, Timestamp::now()));
    found.map(Some).ok_or_else(|| {
        let detail = "must be an instant such as 2026-11-25T10:00:00Z, or a time such as 15m, 24h \
                      or 7d before now";
        Refusal::parameter(name, detail)
    })
}

/// `15m` before `now`.
fn ago(text: &str, now: Timestamp) -> Option<Timestamp> {
    let seconds = seconds(text)?;
    now.checked_sub(SignedDuration::from_secs(seconds)).ok()
}

/// A length of time such as `90s`, `15m`, `24h` or `7d`, in seconds.
pub fn seconds(text: &str) -> Option<i64> {
    let unit = text.chars().next_back()?;
    let width = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3_600,
        'd' => 86_400,
        _ => return None,
    };
    let number: i64 = text.strip_suffix(unit)?.parse().ok().filter(|n| *n >= 0)?;
    number.checked_mul(width)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_time() {
        for (text, expected) in [
            ("90s", Some(90)),
            ("15m", Some(900)),
            ("24h", Some(86_400)),
            ("7d", Some(604_800)),
            ("m", None),
            ("-1m", None),
            ("1w", None),
            ("", None),
            ("9223372036854775807d", None),
            ("1µ", None),
        ] {
            assert_eq!(seconds(text), expected, "{text}");
        }
        let now: Timestamp = "2026-11-25T10:00:00Z".parse().unwrap();
        assert_eq!(ago("15m", now), "2026-11-25T09:45:00Z".parse().ok());
        assert_eq!(ago("9223372036854775807s", now), None);
    }

    #[test]
    fn parameters_have_names_of_their_own() {
        let mut names: Vec<&str> = parameters().iter().map(|(name, _)| *name).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
