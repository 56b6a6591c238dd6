//! A request as spans: its stages one after another, the attempts within `forward`, and what each
//! stage decided. Made from the record alone, so it is there for every request that is recorded,
//! whatever traces were sampled. Pure.

use jiff::Timestamp;
use proto::record::{Attempt, PresentedKey, Record, RefusalCause, SpanEvent, SpanEventKind, Stage};
use serde_json::{Value, json};

/// The trace of a record.
pub fn trace(record: &Record) -> Value {
    let mut spans = Vec::new();
    let mut at_us = 0u64;
    let ended_by = record.ended_by();
    for time in &record.stages {
        let outcome = match ended_by == Some(time.stage) {
            true => "end",
            false => "pass",
        };
        let mut span = span(
            (time.stage.name(), "stage"),
            (at_us, time.us.into()),
            outcome,
            &decision(record, time.stage),
        );
        add_events(record, time.stage, &mut span);
        spans.push(span);
        if time.stage == Stage::Forward {
            spans.extend(record.sends.iter().enumerate().map(attempt));
        }
        at_us += u64::from(time.us);
    }
    // The record is made before the answer goes: what is left of the whole is sending it.
    if !record
        .stages
        .iter()
        .any(|time| time.stage == Stage::Respond)
    {
        let outcome = match ended_by == Some(Stage::Respond) {
            true => "end",
            false => "pass",
        };
        let mut span = span(
            ("respond", "stage"),
            (at_us, record.total_us.saturating_sub(at_us)),
            outcome,
            &decision(record, Stage::Respond),
        );
        add_events(record, Stage::Respond, &mut span);
        spans.push(span);
    }
    json!({
        "request_id": record.request_id,
        "trace_id": record.trace_id,
        "proxy_id": record.proxy_id,
        "started_at": Timestamp::from_microsecond(record.started_at_us).ok(),
        "duration_us": record.total_us,
        "method": record.method,
        "path": record.path,
        "status": record.status,
        "code": record.code,
        "node": record.node,
        "region": record.region,
        "config_version": record.config_version,
        "spans": spans,
        "events_dropped": record.events_dropped,
    })
}

/// Adds what happened in a stage, where something did.
fn add_events(record: &Record, stage: Stage, span: &mut Value) {
    let events = record.events.iter().filter(|event| event.stage == stage);
    let events: Vec<Value> = events
        .map(|event| {
            json!({"kind": event.kind, "at_us": event.at_us, "subject": event.subject,
                   "count": event.count, "text": happened(event)})
        })
        .collect();
    if !events.is_empty() {
        span["events"] = events.into();
    }
}

/// What happened, in words.
fn happened(event: &SpanEvent) -> String {
    let subject = event.subject.as_deref().unwrap_or("unknown");
    let count = event.count.unwrap_or(1);
    match event.kind {
        SpanEventKind::Retry => match &event.subject {
            Some(endpoint) => format!("retry {count}, at {endpoint}"),
            None => format!("retry {count}"),
        },
        SpanEventKind::HoldBegan => format!("waits for {subject}"),
        SpanEventKind::HoldEnded => format!("waits for {subject} no more"),
        SpanEventKind::BreakerOpened => format!("the breaker of {subject} opened"),
        SpanEventKind::CredentialHostMismatch => {
            format!("{subject} is not bound to the target's host")
        }
        SpanEventKind::SecretReflected => {
            format!("the answer held the secret of {subject}, overwritten {count} times")
        }
        SpanEventKind::FilterChanged => format!("changed by {subject}"),
        SpanEventKind::MeterLocalShare => format!("{subject} went by this node's own share"),
        SpanEventKind::MeterFailOpen => format!("{subject} did not count it"),
    }
}

fn span(
    (name, kind): (&str, &str),
    (start_us, duration_us): (u64, u64),
    outcome: &str,
    decision: &str,
) -> Value {
    json!({"name": name, "kind": kind, "start_us": start_us, "duration_us": duration_us,
           "outcome": outcome, "decision": decision})
}

fn attempt((at, attempt): (usize, &Attempt)) -> Value {
    let how = match (attempt.status, attempt.failure) {
        (Some(status), _) => format!("answered {status}"),
        (None, Some(failure)) => failure.as_str().to_owned(),
        (None, None) => "no answer".into(),
    };
    let connection = match (attempt.reused, attempt.connect_us) {
        (true, _) => "on a kept connection".to_owned(),
        (false, us) => format!("connected in {us} µs"),
    };
    let times = (
        attempt.started_us.into(),
        u64::from(attempt.connect_us) + u64::from(attempt.wait_us),
    );
    let outcome = if attempt.status.is_some() {
        "pass"
    } else {
        "end"
    };
    let name = format!("attempt {}", at + 1);
    span(
        (&name, "attempt"),
        times,
        outcome,
        &format!("{how}, {connection}"),
    )
}

/// The key that the caller presented, as a further part of a sentence.
fn key(record: &Record) -> String {
    match &record.presented {
        None => String::new(),
        Some(PresentedKey { place, hint: None }) => format!(", key in {place}"),
        Some(PresentedKey {
            place,
            hint: Some(hint),
        }) => format!(", key …{hint} in {place}"),
    }
}

/// What a stage decided, in words.
fn decision(record: &Record, stage: Stage) -> String {
    let id = |id: Option<proto::id::CredentialId>| id.map(|id| id.to_string());
    match stage {
        Stage::Receive => format!(
            "proxy {}, version {}",
            record.proxy_id, record.config_version
        ),
        Stage::Authenticate => match (record.auth_failure, id(record.proxy_credential_id)) {
            (Some(failure), _) => format!("refused: {}{}", failure.as_str(), key(record)),
            (None, Some(credential)) => format!("caller {credential}{}", key(record)),
            (None, None) => record_code(record, "no credential asked for"),
        },
        Stage::Authorize => authorized(record),
        Stage::Limit if is_refused_later(record) => "within the limits".to_owned(),
        Stage::Limit => limited(record),
        Stage::Prepare => record_code_at(record, Stage::Prepare, ""),
        Stage::Inject => match id(record.target_credential_id) {
            Some(credential) => format!("credential {credential}"),
            None => record_code_at(record, Stage::Inject, "no credential"),
        },
        Stage::Forward => {
            let attempts = match record.attempts {
                1 => "1 attempt".to_owned(),
                n => format!("{n} attempts"),
            };
            let how = match record.upstream_status {
                Some(status) => format!("the target answered {status}, {attempts}"),
                None => format!("{}, {attempts}", record.code),
            };
            match is_refused_later(record) {
                true => format!("{how}; {}", limited(record)),
                false => how,
            }
        }
        Stage::Filter => match record.filter_ids.as_slice() {
            [] => record_code_at(record, Stage::Filter, "unchanged"),
            filters => format!("changed by {}", joined(filters)),
        },
        Stage::Record => String::new(),
        Stage::Respond => {
            let left = match (record.broke_off(), record.client_aborted) {
                (true, _) if record.code == "gateway-stopped" => ", the gateway ended".to_owned(),
                (true, _) => format!(", the answer broke off: {}", record.code),
                (false, true) => ", the caller left".to_owned(),
                (false, false) => String::new(),
            };
            format!("{} bytes{left}", record.response_bytes)
        }
    }
}

/// Whether a meter refused when the request was to be sent: for the first time, where it had waited
/// for its body, or again.
fn is_refused_later(record: &Record) -> bool {
    !record.refused_by.is_empty() && record.ended_by() == Some(Stage::Forward)
}

fn limited(record: &Record) -> String {
    if record.refused_by.is_empty() {
        // Records of early releases name windows alone.
        return match record.limited_by.as_slice() {
            [] => record_code_at(record, Stage::Limit, "within the limits"),
            windows => format!("the limit per {} is used up", windows.join(" and per ")),
        };
    }
    let refusals = record.refused_by.iter().map(|refusal| {
        let meter = &refusal.meter;
        match (refusal.cause, &refusal.window) {
            (RefusalCause::Empty, Some(window)) => {
                format!("too little is left of the limit per {window} of {meter}")
            }
            (RefusalCause::Empty, None) => format!("too little is left of {meter}"),
            (RefusalCause::Paused, _) => {
                format!("{meter} is paused: the target asked to wait")
            }
            (RefusalCause::Crowded, _) => format!("too many requests wait for {meter}"),
            (RefusalCause::StoreLost, _) => format!("the state of {meter} cannot be reached"),
            (RefusalCause::InFlight, _) => format!("all calls in flight of {meter} are in use"),
        }
    });
    refusals.collect::<Vec<_>>().join("; ")
}

fn authorized(record: &Record) -> String {
    let denials = record.denials.iter().map(|denial| {
        let why = match denial.default {
            true => "by default".to_owned(),
            false => format!("by {}", joined(&denial.rule_ids)),
        };
        format!("denied by {} {why}", denial.scope_id)
    });
    let mut parts: Vec<String> = denials.collect();
    if parts.is_empty() {
        parts.push("allowed".into());
    }
    if !record.shadow_rule_ids.is_empty() {
        parts.push(format!(
            "in shadow denied by {}",
            joined(&record.shadow_rule_ids)
        ));
    }
    parts.join("; ")
}

fn joined(ids: &[impl ToString]) -> String {
    ids.iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(", ")
}

/// The code where this stage ended the request, else a word for its passing.
fn record_code_at(record: &Record, stage: Stage, passed: &str) -> String {
    match record.ended_by() == Some(stage) {
        true => record.code.to_string(),
        false => passed.to_owned(),
    }
}

fn record_code(record: &Record, passed: &str) -> String {
    record_code_at(record, Stage::Authenticate, passed)
}

/// The schema of a trace.
pub fn schema() -> Value {
    let text = |description: &str| json!({"type": "string", "description": description});
    let us = |description: &str| json!({"type": "integer", "description": description});
    json!({
        "type": "object",
        "required": ["request_id", "spans"],
        "properties": {
            "request_id": text("The request's id"),
            "trace_id": {"type": ["string", "null"], "description": "The W3C trace id"},
            "proxy_id": text("The proxy that was called"),
            "started_at": {"type": "string", "format": "date-time"},
            "duration_us": us("The whole request, in microseconds"),
            "method": text("Its method"),
            "path": text("Its path behind the proxy"),
            "status": {"type": ["integer", "null"], "description": "What the caller got"},
            "code": text("The outcome"),
            "node": text("The node that served it"),
            "region": text("The region of that node"),
            "config_version": us("The configuration version that decided"),
            "spans": {"type": "array", "items": {
                "type": "object",
                "properties": {
                    "name": text("The stage, or `attempt` with its number"),
                    "kind": {"type": "string", "enum": ["stage", "attempt"],
                             "description": "Attempts lie within `forward`"},
                    "start_us": us("Microseconds after the request's start"),
                    "duration_us": us("In microseconds; those of all stages sum to the request"),
                    "outcome": {"type": "string", "enum": ["pass", "end"],
                                "description": "`end` where the request ended early, or an \
                                                attempt got no answer"},
                    "decision": text("What was decided, in words"),
                    "events": {
                        "type": "array",
                        "description": "What happened inside it; absent where nothing did",
                        "items": {
                            "type": "object",
                            "properties": {
                                "kind": text("What it was, as in a record's `events`"),
                                "at_us": us("Microseconds after the request's start"),
                                "subject": {"type": ["string", "null"],
                                            "description": "What it happened to"},
                                "count": {"type": ["integer", "null"],
                                          "description": "How often, or which one of several"},
                                "text": text("The same in words")
                            }
                        }
                    }
                }
            }},
            "events_dropped": us("How much more happened than the record has room for")
        }
    })
}

/// The schema of the same as a file for trace viewers.
pub fn file_schema() -> Value {
    json!({
        "type": "object",
        "description": "With `format=otlp`: an `ExportTraceServiceRequest` of OTLP, in JSON",
        "required": ["resourceSpans"],
        "properties": {"resourceSpans": {"type": "array", "items": {"type": "object"}}}
    })
}

#[cfg(test)]
mod tests {
    use proto::record::StageTime;

    use super::*;

    fn record(further: Value) -> Record {
        let mut fields = json!({
            "request_id": proto::id::RequestId::from_bits(1),
            "org_id": proto::id::OrgId::from_bits(1), "proxy_id": proto::id::ProxyId::from_bits(1),
            "config_version": 7, "node": "n", "region": "local", "method": "GET", "path": "/x",
            "query": [], "status": 200, "upstream_status": 200, "code": "proxy-access-granted",
            "started_at_us": 1_000_000, "total_us": 1_000,
            "stages": [{"stage": "receive", "us": 10}, {"stage": "authenticate", "us": 20},
                       {"stage": "forward", "us": 700}],
            "request_bytes": 0, "response_bytes": 5, "upstream_request_bytes": 0,
            "upstream_response_bytes": 5, "attempts": 2, "denials": [], "shadow_rule_ids": [],
            "filter_ids": [], "upstream_ids": [], "client_aborted": false, "scrubbed": 0,
            "sends": [
                {"started_us": 30, "connect_us": 0, "wait_us": 100, "reused": true,
                 "failure": "reset"},
                {"started_us": 130, "connect_us": 50, "wait_us": 550, "reused": false,
                 "status": 200},
            ],
        });
        for (name, value) in further.as_object().cloned().unwrap_or_default() {
            fields[name] = value;
        }
        serde_json::from_value(fields).unwrap()
    }

    fn rows(trace: &Value) -> Vec<(String, u64, u64, String, String)> {
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let number = |value: &Value| value.as_u64().unwrap();
        let spans = trace["spans"].as_array().unwrap().iter();
        spans
            .map(|s| {
                let times = (number(&s["start_us"]), number(&s["duration_us"]));
                (
                    text(&s["name"]),
                    times.0,
                    times.1,
                    text(&s["outcome"]),
                    text(&s["decision"]),
                )
            })
            .collect()
    }

    #[test]
    fn spans_nest_and_sum_to_the_request() {
        let trace = trace(&record(json!({})));
        let rows = rows(&trace);
        let names: Vec<&str> = rows.iter().map(|row| row.0.as_str()).collect();
        assert_eq!(
            names,
            [
                "receive",
                "authenticate",
                "forward",
                "attempt 1",
                "attempt 2",
                "respond"
            ]
        );
        let stages = trace["spans"].as_array().unwrap().iter();
        let sum: u64 = stages
            .filter(|span| span["kind"] == "stage")
            .map(|span| span["duration_us"].as_u64().unwrap())
            .sum();
        assert_eq!(sum, 1_000);
        for attempt in &rows[3..5] {
            let (forward, end) = (&rows[2], rows[2].1 + rows[2].2);
            assert!(
                attempt.1 >= forward.1 && attempt.1 + attempt.2 <= end,
                "{attempt:?}"
            );
        }
        assert_eq!(rows[3].4, "reset, on a kept connection");
        assert_eq!(rows[4].4, "answered 200, connected in 50 µs");
    }

    #[test]
    fn what_happened_stands_at_its_stage() {
        let event = |stage: &str, kind: SpanEventKind, count: Value| {
            let mut event = json!({"stage": stage, "at_us": 40, "kind": kind, "subject": "s"});
            event["count"] = count;
            event
        };
        let events: Vec<Value> = SpanEventKind::ALL
            .into_iter()
            .map(|kind| event("forward", kind, json!(2)))
            .chain([event("respond", SpanEventKind::FilterChanged, json!(null))])
            .collect();
        let trace = trace(&record(json!({"events": events, "events_dropped": 3})));
        let spans = trace["spans"].as_array().unwrap();
        let with: Vec<_> = spans
            .iter()
            .filter_map(|span| Some((span["name"].as_str()?, span["events"].as_array()?.len())))
            .collect();
        assert_eq!(
            with,
            [("forward", SpanEventKind::ALL.len()), ("respond", 1)]
        );
        let forward = spans.iter().find(|span| span["name"] == "forward").unwrap();
        let texts = forward["events"].as_array().unwrap().iter();
        let mut texts: Vec<_> = texts.map(|event| event["text"].as_str().unwrap()).collect();
        assert_eq!(texts[0], "retry 2, at s");
        let named = texts
            .iter()
            .filter(|text| text.contains("retry") || text.contains('s'));
        assert_eq!(named.count(), texts.len());
        texts.dedup();
        assert_eq!(
            texts.len(),
            SpanEventKind::ALL.len(),
            "each in its own words"
        );
        assert_eq!(trace["events_dropped"], 3);
    }

    #[test]
    fn the_stage_that_ended_it_says_why() {
        let limited = record(json!({
            "code": "rate-limited", "status": 429, "upstream_status": null, "attempts": 0,
            "sends": [], "limited_by": ["minute", "day"],
            "stages": [{"stage": "receive", "us": 1}, {"stage": "limit", "us": 2}],
        }));
        let trace = trace(&limited);
        let rows = rows(&trace);
        assert_eq!(rows[1].3, "end");
        assert_eq!(rows[1].4, "the limit per minute and per day is used up");
        assert_eq!(rows[0].3, "pass");
    }

    #[test]
    fn the_meter_that_refused_is_named_with_the_cause() {
        for (window, cause, words) in [
            (
                json!("day"),
                "empty",
                "too little is left of the limit per day of mtr_1",
            ),
            (
                json!(null),
                "paused",
                "mtr_1 is paused: the target asked to wait",
            ),
            (json!(null), "crowded", "too many requests wait for mtr_1"),
            (
                json!(null),
                "store-lost",
                "the state of mtr_1 cannot be reached",
            ),
            (
                json!("concurrency"),
                "in-flight",
                "all calls in flight of mtr_1 are in use",
            ),
        ] {
            let refused = record(json!({
                "code": "rate-limited", "status": 429, "upstream_status": null, "attempts": 0,
                "sends": [], "limited_by": ["hour"],
                "refused_by": [{"meter": "mtr_1", "window": window, "cause": cause}],
                "stages": [{"stage": "receive", "us": 1}, {"stage": "limit", "us": 2}],
            }));
            assert_eq!(rows(&trace(&refused))[1].4, words);
            let mut later = refused;
            let stage = Stage::Forward;
            later.stages.push(StageTime { stage, us: 3 });
            let rows = rows(&trace(&later));
            assert_eq!(rows[1].4, "within the limits");
            assert_eq!(rows[2].4, format!("rate-limited, 0 attempts; {words}"));
        }
    }

    #[test]
    fn an_answer_that_broke_off_ended_in_sending_it() {
        let stages = json!([{"stage": "receive", "us": 1}, {"stage": "forward", "us": 2},
                            {"stage": "filter", "us": 3}]);
        let stopped = |status: Value, upstream: Value| {
            let further = json!({"code": "gateway-stopped", "status": status,
                                 "upstream_status": upstream, "stages": stages, "sends": []});
            let rows = rows(&trace(&record(further)));
            let ended = rows.into_iter().filter(|row| row.3 == "end");
            ended.map(|row| (row.0, row.4)).collect::<Vec<_>>()
        };
        let words = "5 bytes, the gateway ended";
        for status in [200, 503] {
            let ended = stopped(json!(status), json!(status));
            assert_eq!(ended, [("respond".into(), words.into())]);
        }
        let cut = record(json!({"code": "upstream-unreachable", "stages": stages}));
        let ended = rows(&trace(&cut))
            .into_iter()
            .filter(|row| row.3 == "end" && row.0 != "attempt 1");
        let words = "5 bytes, the answer broke off: upstream-unreachable";
        assert_eq!(
            ended.map(|row| (row.0, row.4)).collect::<Vec<_>>(),
            [("respond".into(), words.into())]
        );
        // Without an answer of the target it is the last stage that was reached.
        for status in [json!(503), Value::Null] {
            let last = ("filter".into(), "gateway-stopped".into());
            assert_eq!(stopped(status, Value::Null), [last]);
        }
    }
}
