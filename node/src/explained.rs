//! The header `requestrocket-explain`: what each stage did with a request, in one line, for callers
//! whose credential may see it (`explain` of a proxy credential). Pure.
//!
//! A Dictionary of RFC 9651: a member for each stage that the request passed, in order, with what
//! it decided as parameters. Made from the request's record, which holds no secret by construction
//! and names rules, filters and credentials by their ids alone: a rule's `notes`, patterns and
//! values are in none.

use std::fmt::{Display, Write};

use http::{HeaderName, HeaderValue};
use proto::outcome::Code;
use proto::record::{Denial, MeterSpend, Record, ScrubState, Stage};

/// Its name.
pub const EXPLAIN: HeaderName = HeaderName::from_static("requestrocket-explain");
/// Most ids of one kind that are listed; `…` follows where there are more.
const IDS_MAX: usize = 8;

/// What became of a request, as far as its record is made when the answer begins, with what it has
/// spent until then. Of one that another region served: what its gateway told (`there`), and the
/// way.
pub fn header(
    record: &Record,
    spent: &[MeterSpend],
    code: Code,
    there: Option<&HeaderValue>,
) -> Option<HeaderValue> {
    if let Some(there) = there {
        return beyond(record, there);
    }
    let mut line = String::with_capacity(384);
    let _ = write!(line, "code={code}, version={}", record.config_version);
    for time in &record.stages {
        let _ = write!(line, ", {};us={}", time.stage.name(), time.us);
        decision(&mut line, record, time.stage);
        if time.stage == Stage::Limit {
            let spent = spent.iter();
            let spent = spent.map(|spend| format!("{}:{}", spend.meter, spend.tokens));
            list(&mut line, "spent", spent);
        }
    }
    HeaderValue::from_str(&line).ok()
}

fn beyond(record: &Record, there: &HeaderValue) -> Option<HeaderValue> {
    let mut line = there.to_str().ok()?.to_owned();
    let forward = record
        .stages
        .iter()
        .find(|time| time.stage == Stage::Forward);
    let us = forward.map_or(0, |time| time.us);
    let _ = write!(line, ", passed-on;us={us}");
    list(&mut line, "from", std::iter::once(&record.region));
    list(&mut line, "to", record.forwarded_to.iter());
    HeaderValue::from_str(&line).ok()
}

fn decision(line: &mut String, record: &Record, stage: Stage) {
    match stage {
        Stage::Authenticate => token(line, "credential", record.proxy_credential_id),
        Stage::Authorize => {
            let denials = record.denials.iter().flat_map(denial);
            list(line, "denied", denials);
            list(line, "shadow", record.shadow_rule_ids.iter());
        }
        Stage::Limit => {
            list(line, "refused", record.limited_by.iter());
            list(line, "by", record.refused_by.iter());
        }
        Stage::Inject => token(line, "credential", record.target_credential_id),
        Stage::Forward => {
            let _ = write!(line, ";attempts={}", record.attempts);
            token(line, "status", record.upstream_status);
            list(line, "region", record.forwarded_to.iter());
        }
        Stage::Filter => {
            list(line, "changed", record.filter_ids.iter());
            let state = match record.scrub {
                ScrubState::None => None,
                ScrubState::Searched => Some("searched"),
                ScrubState::Skipped => Some("skipped"),
            };
            token(line, "scrub", state);
            token(
                line,
                "scrubbed",
                Some(record.scrubbed).filter(|times| *times > 0),
            );
        }
        Stage::Receive | Stage::Prepare | Stage::Record | Stage::Respond => {}
    }
}

/// The scope that denied, with each of its rules, or with its default.
fn denial(denial: &Denial) -> impl Iterator<Item = String> {
    let scope = denial.scope.as_str();
    let default = denial.default.then(|| format!("{scope}:default"));
    let rules = denial.rule_ids.iter();
    let rules = rules.map(move |rule| format!("{scope}:{rule}"));
    default.into_iter().chain(rules)
}

/// A parameter whose value is a number or a token: ids begin with letters.
fn token(line: &mut String, name: &str, value: Option<impl Display>) {
    if let Some(value) = value {
        let _ = write!(line, ";{name}={value}");
    }
}

/// A parameter whose value is a text of words; none where there are none.
fn list(line: &mut String, name: &str, values: impl Iterator<Item = impl Display>) {
    let words: Vec<String> = values
        .take(IDS_MAX + 1)
        .map(|value| value.to_string())
        .collect();
    let more = if words.len() > IDS_MAX { " ..." } else { "" };
    let shown = words.get(..IDS_MAX).unwrap_or(&words).join(" ");
    if !shown.is_empty() {
        let _ = write!(line, ";{name}=\"{shown}{more}\"");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::id::{FilterId, RuleId};

    fn record(json: serde_json::Value) -> Record {
        let mut whole = serde_json::json!({
            "request_id": "req_00000000000000000000000001",
            "org_id": "org_00000000000000000000000002",
            "proxy_id": "prx_00000000000000000000000003", "config_version": 42, "node": "n",
            "region": "local", "method": "GET", "path": "/secret-path", "query": [], "code": "",
            "started_at_us": 1, "total_us": 0, "stages": [], "request_bytes": 0,
            "response_bytes": 0, "upstream_request_bytes": 0, "upstream_response_bytes": 0,
            "attempts": 0, "denials": [], "shadow_rule_ids": [], "filter_ids": [],
            "upstream_ids": [], "client_aborted": false, "scrubbed": 0
        });
        for (name, value) in json.as_object().unwrap() {
            whole[name] = value.clone();
        }
        serde_json::from_value(whole).unwrap()
    }

    fn line(record: &Record, code: Code) -> String {
        header(record, &[], code, None)
            .unwrap()
            .to_str()
            .unwrap()
            .to_owned()
    }

    #[test]
    fn each_stage_says_what_it_decided() {
        let denied = record(serde_json::json!({
            "stages": [{"stage": "receive", "us": 1}, {"stage": "authorize", "us": 7}],
            "denials": [
                {"scope": "target", "scope_id": "t", "default": true, "rule_ids": []},
                {"scope": "proxy", "scope_id": "p", "default": false,
                 "rule_ids": [RuleId::from_bits(7), RuleId::from_bits(8)]},
            ],
        }));
        assert_eq!(
            line(&denied, Code::AccessDenied),
            format!(
                "code=proxy-access-denied, version=42, receive;us=1, \
                 authorize;us=7;denied=\"target:default proxy:{} proxy:{}\"",
                RuleId::from_bits(7),
                RuleId::from_bits(8)
            )
        );
        let answered = record(serde_json::json!({
            "stages": [{"stage": "limit", "us": 2}, {"stage": "forward", "us": 900},
                       {"stage": "filter", "us": 3}],
            "attempts": 2, "upstream_status": 503, "scrub": "searched", "scrubbed": 1,
            "limited_by": ["minute"],
            "refused_by": [{"meter": "mtr_1", "window": "minute", "cause": "empty"}],
            "filter_ids": (0..10).map(|_| FilterId::from_bits(1)).collect::<Vec<_>>(),
        }));
        let one = FilterId::from_bits(1).to_string();
        assert_eq!(
            line(&answered, Code::AccessGranted),
            format!(
                "code=proxy-access-granted, version=42, limit;us=2;refused=\"minute\"\
                 ;by=\"mtr_1:minute:empty\", \
                 forward;us=900;attempts=2;status=503, \
                 filter;us=3;changed=\"{} ...\";scrub=searched;scrubbed=1",
                [one.as_str(); 8].join(" ")
            )
        );
        let passed_on = record(serde_json::json!({
            "stages": [{"stage": "forward", "us": 900}], "region": "us", "forwarded_to": "eu",
            "attempts": 1,
        }));
        assert_eq!(
            line(&passed_on, Code::RegionUnavailable),
            "code=region-unavailable, version=42, forward;us=900;attempts=1;region=\"eu\""
        );
        let there = HeaderValue::from_static("code=proxy-access-granted, version=41");
        assert_eq!(
            header(&passed_on, &[], Code::AccessGranted, Some(&there)).unwrap(),
            "code=proxy-access-granted, version=41, passed-on;us=900;from=\"us\";to=\"eu\""
        );
        let counted = record(serde_json::json!({"stages": [{"stage": "limit", "us": 2}]}));
        let spent = [("mtr_1", 1), ("mtr_2", 300)].map(|(meter, tokens)| MeterSpend {
            meter: meter.into(),
            tokens,
        });
        assert_eq!(
            header(&counted, &spent, Code::AccessGranted, None).unwrap(),
            "code=proxy-access-granted, version=42, limit;us=2;spent=\"mtr_1:1 mtr_2:300\""
        );
    }
}
