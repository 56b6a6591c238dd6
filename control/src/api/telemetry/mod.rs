//! Aggregates of requests: counts, rates, quantiles and bytes, by group and span of time.

mod regions;

use std::collections::BTreeMap;

use jiff::Timestamp;
use proto::object::{Body, ObjectId};
use proto::org::Role;
use serde_json::{Value, json};

use crate::api::answer::Answer;
use crate::api::call::OrgCall;
use crate::api::error::Refusal;
use crate::api::records::{blocking, filter};
use crate::records::RecordFilter;
use crate::records::aggregate::{Aggregates, Group, Order, Question};
use crate::records::tally::{Dimension, HOUR_S, MINUTE_S, MINUTES_KEPT_S, Tally};
use crate::regions::ask::{self, REGIONS};
use crate::regions::missing;
use crate::route::{Gives, Need, Parameter, Route, Verb};

/// Groups in an answer when `limit` is not given.
const LIMIT_DEFAULT: usize = 10;
/// Most groups in an answer.
const LIMIT_MAX: usize = 1_000;
/// Most spans of time in an answer.
const BUCKETS_MAX: i64 = 2_000;
/// What is looked at when `from` is not given: the last hour.
const SPAN_DEFAULT_S: i64 = 3_600;

const OWN: [Parameter; 5] = [
    REGIONS,
    (
        "by",
        "Group by `proxy`, `proxy_credential`, `target_credential`, `status`, `code`, `node`, \
         `version`, `method`, `path`, `source`, `user_agent`, `upstream_status` or `auth_failure`",
    ),
    (
        "bucket",
        "Length of a span of time, such as `1m`, `1h` or `1d`; one span when absent",
    ),
    (
        "order",
        "The largest groups come first, by `count` (default), `errors`, `error_rate`, `refused`, \
         `p99`, `response_bytes` or `request_bytes`",
    ),
    (
        "groups",
        "Most groups, 10 when absent; all others are counted together in `rest`",
    ),
];

fn parameters() -> &'static [Parameter] {
    static ALL: std::sync::OnceLock<Vec<Parameter>> = std::sync::OnceLock::new();
    ALL.get_or_init(|| OWN.iter().chain(filter::parameters()).copied().collect())
}

/// Rows of the routing table.
pub fn routes() -> Vec<Route> {
    vec![
        Route::org(
            Verb::Get,
            "/orgs/{org}/telemetry",
            (
                "get_telemetry",
                "Count requests, errors, durations and bytes, by group and span of time",
            ),
            Need::Role(Role::Viewer),
            telemetry,
        )
        .gives(Gives::One("Telemetry"))
        .parameters(parameters()),
    ]
}

async fn telemetry(call: OrgCall) -> Result<Answer, Refusal> {
    let question = question(&call, Timestamp::now())?;
    if let Some(wanted) = ask::wanted(&call)? {
        return regions::together(&call, &wanted, &question).await;
    }
    let asked = question.clone();
    let found = blocking(&call, move |records| records.aggregate(&asked)).await?;
    Ok(Answer::json(match regions::asks(&call) {
        true => regions::tell(&call, &question, found).await?,
        false => show(&call, &question, &found, &BTreeMap::new()),
    }))
}

fn second(us: i64) -> i64 {
    us.div_euclid(1_000_000)
}

fn question(call: &OrgCall, now: Timestamp) -> Result<Question, Refusal> {
    let query = &call.request.query;
    let filter = filter::filter(call)?;
    let bucket_s = query
        .get("bucket")
        .map(|text| {
            filter::seconds(text)
                .filter(|width_s| *width_s >= 1)
                .ok_or_else(|| {
                    Refusal::parameter("bucket", "must be a length of time such as 1m, 1h or 1d")
                })
        })
        .transpose()?;
    // Whole minutes, or hours where spans are hours or minutes are not kept any more: so much is
    // answered from kept tallies.
    let (now_s, is_own) = (second(now.as_microsecond()), !regions::asks(call));
    let step_at = |at_s: i64| match bucket_s {
        Some(width_s) if width_s % HOUR_S == 0 => HOUR_S,
        Some(width_s) if width_s % MINUTE_S != 0 => 1,
        // What another region asks is whole already.
        None if is_own && at_s < now_s - MINUTES_KEPT_S + HOUR_S => HOUR_S,
        _ => MINUTE_S,
    };
    let to_s = filter.to_us.map_or(now_s, second) + 1;
    let to_s = up(to_s, step_at(to_s));
    let from_s = match filter.from_us.map(second) {
        Some(from_s) => from_s.div_euclid(step_at(from_s)) * step_at(from_s),
        None => to_s - up(SPAN_DEFAULT_S, step_at(to_s)),
    };
    if bucket_s.is_some_and(|width_s| (to_s - from_s) / width_s > BUCKETS_MAX) {
        let detail =
            format!("makes more than {BUCKETS_MAX} spans of this time; choose a longer one");
        return Err(Refusal::parameter("bucket", detail));
    }
    Ok(Question {
        org: call.org_id(),
        by: named(call, "by", &Dimension::NAMES)?.unwrap_or(Dimension::All),
        from_s,
        to_s,
        bucket_s,
        filter: RecordFilter {
            from_us: None,
            to_us: None,
            ..filter
        },
        order: named(call, "order", &Order::NAMES)?.unwrap_or_default(),
        limit: query.parsed("groups", "a number from 1 to 1000")?.map_or(
            Ok(LIMIT_DEFAULT),
            |limit: usize| {
                (1..=LIMIT_MAX)
                    .contains(&limit)
                    .then_some(limit)
                    .ok_or_else(|| Refusal::parameter("groups", "must be a number from 1 to 1000"))
            },
        )?,
    })
}

/// The next multiple of `step`.
fn up(n: i64, step: i64) -> i64 {
    n.div_euclid(step) * step + if n.rem_euclid(step) == 0 { 0 } else { step }
}

fn named<T: Copy>(
    call: &OrgCall,
    parameter: &'static str,
    names: &[(&'static str, T)],
) -> Result<Option<T>, Refusal> {
    let Some(text) = call.request.query.get(parameter) else {
        return Ok(None);
    };
    let known = names.iter().find(|(name, _)| *name == text);
    known.map(|(_, value)| Some(*value)).ok_or_else(|| {
        let names: Vec<&str> = names.iter().map(|(name, _)| *name).collect();
        Refusal::parameter(parameter, format!("must be one of {}", names.join(", ")))
    })
}

/// What objects are called that this region does not know, by their ids.
type Names = BTreeMap<String, String>;

fn show(call: &OrgCall, question: &Question, found: &Aggregates, others: &Names) -> Value {
    let group = |group: &Group| {
        let mut shown = tally(call, &group.total);
        shown["value"] = match group.value.is_empty() {
            true => Value::Null,
            false => json!(group.value),
        };
        let name = name(call, question.by, &group.value);
        shown["name"] = json!(name.or_else(|| others.get(&group.value).cloned()));
        if question.bucket_s.is_some() {
            let buckets = group.buckets.iter().map(|(start_s, total)| {
                let mut shown = tally(call, total);
                shown["start"] = json!(at(*start_s));
                shown
            });
            shown["buckets"] = buckets.collect();
        }
        shown
    };
    let by = Dimension::NAMES.iter().find(|(_, by)| *by == question.by);
    json!({
        "from": at(question.from_s),
        "to": at(question.to_s),
        "complete_from": at(found.complete_from_s),
        "bucket_s": question.bucket_s,
        "by": by.map(|(name, _)| *name),
        "groups": found.groups.iter().map(group).collect::<Vec<_>>(),
        "rest": found.rest.as_ref().map(group),
    })
}

fn at(second: i64) -> Option<Timestamp> {
    Timestamp::from_second(second).ok()
}

fn tally(call: &OrgCall, tally: &Tally) -> Value {
    let ms = |us: u64| us as f64 / 1_000.0;
    let quantile = |share| tally.durations.quantile(share).map(ms);
    let count = tally.count.max(1) as f64;
    json!({
        "count": tally.count,
        "errors": tally.errors,
        "error_rate": tally.errors as f64 / count,
        "refused": tally.refused,
        "aborted": tally.aborted,
        "attempts": tally.attempts,
        "request_bytes": tally.request_bytes,
        "response_bytes": tally.response_bytes,
        "meters": tally.meters.iter().map(|(meter, tokens)| json!({
            "meter": meter, "name": meter_name(call, meter), "tokens": tokens,
        })).collect::<Vec<_>>(),
        "duration_ms": {
            "mean": ms(tally.total_us) / count,
            "p50": quantile(0.5), "p90": quantile(0.9), "p99": quantile(0.99),
        },
    })
}

/// What a meter is called; the limits that a proxy carries itself have its name.
fn meter_name(call: &OrgCall, id: &str) -> Option<String> {
    let of_proxy = || id.parse().map(ObjectId::Proxy);
    let id = id.parse().map(ObjectId::Meter).or_else(|_| of_proxy());
    let config = call.config().ok()?;
    let name = match &config.object(id.ok()?)?.body {
        Body::Meter(meter) => meter.spec.name.clone(),
        Body::Proxy(proxy) => proxy.alias.clone().unwrap_or_else(|| proxy.name.clone()),
        _ => return None,
    };
    (!name.is_empty()).then_some(name)
}

/// What the object is called that a group's value is the id of.
fn name(call: &OrgCall, by: Dimension, value: &str) -> Option<String> {
    let id = match by {
        Dimension::Proxy => ObjectId::Proxy(value.parse().ok()?),
        Dimension::ProxyCredential | Dimension::TargetCredential => {
            ObjectId::Credential(value.parse().ok()?)
        }
        _ => return None,
    };
    let config = call.config().ok()?;
    let name = match &config.object(id)?.body {
        Body::Proxy(proxy) => proxy.alias.clone().unwrap_or_else(|| proxy.name.clone()),
        Body::Credential(stored) => stored.credential.name.clone(),
        _ => return None,
    };
    (!name.is_empty()).then_some(name)
}

/// The schema of the answer.
pub fn schema() -> Value {
    let group = |further: Value| {
        let number = |description: &str| json!({"type": "integer", "description": description});
        let ms = || json!({"type": ["number", "null"]});
        let mut properties = json!({
            "count": number("Requests"),
            "errors": number(
                "Of them, those that ended with a 5xx, or with an answer that broke off"
            ),
            "error_rate": {"type": "number", "description": "Their share, 0 to 1"},
            "refused": number("Of them, those that rules, limits or authentication refused"),
            "aborted": number("Of them, those whose caller left early"),
            "attempts": number("How often targets were asked"),
            "request_bytes": number("Body bytes received from callers"),
            "response_bytes": number("Body bytes sent to callers"),
            "meters": {
                "type": "array",
                "description": "Tokens that they have spent, by meter",
                "items": {"type": "object", "properties": {
                    "meter": {"type": "string", "description": "Id of the meter, or of the \
                        proxy that carries the limits itself"},
                    "name": {"type": ["string", "null"]},
                    "tokens": number("Over all attempts")
                }}
            },
            "duration_ms": {
                "type": "object",
                "description": "In milliseconds; quantiles are within 2 %",
                "properties": {"mean": ms(), "p50": ms(), "p90": ms(), "p99": ms()}
            }
        });
        for (name, schema) in further.as_object().into_iter().flatten() {
            properties[name] = schema.clone();
        }
        json!({"type": "object", "properties": properties})
    };
    let time = json!({"type": "string", "format": "date-time"});
    let groups = group(json!({
        "value": {"type": ["string", "null"], "description": "What its requests share"},
        "name": {"type": ["string", "null"], "description": "What the object of this id is called"},
        "buckets": {"type": "array", "items": group(json!({"start": time}))}
    }));
    let mut rest = groups.clone();
    rest["type"] = json!(["object", "null"]);
    rest["description"] = json!("All requests of no group that is shown");
    let mut schema = json!({
        "type": "object",
        "properties": {
            "from": time, "to": time,
            "complete_from": {"type": "string", "format": "date-time",
                "description": "From here on all is counted that is still kept; later than `from` \
                                where there was more to read than one call may, or where what is \
                                told by the minute does not go back so far"},
            "bucket_s": {"type": ["integer", "null"], "description": "Length of a span"},
            "by": {"type": ["string", "null"]},
            "groups": {"type": "array", "items": groups},
            "rest": rest,
            "approximate": {"type": "boolean", "description": "With `regions`: whether a region \
                has more groups than it was asked for, so that some of a group shown may be in \
                `rest`, and a group that belongs among the largest too"}
        }
    });
    for (name, property) in missing::properties() {
        schema["properties"][name] = property;
    }
    schema
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_whole() {
        for (n, step, expected) in [(0, 60, 0), (1, 60, 60), (60, 60, 60), (61, 60, 120)] {
            assert_eq!(up(n, step), expected, "{n} {step}");
        }
    }
}
