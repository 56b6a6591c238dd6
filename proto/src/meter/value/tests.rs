//! Values of answers as vendors send them, in JSON, streams and headers.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use serde_json::{Value, json};

use super::decimal::VALUE_MAX;
use super::{Reading, ResponseValue, inject};

fn value(document: Value) -> ResponseValue {
    serde_json::from_value(document).unwrap()
}

/// What an answer counts: its content type, coding and body, in pieces of seven bytes.
fn total(wanted: Value, headers: &[(&str, &str)], body: &[u8]) -> Option<u64> {
    read(wanted, headers, body, false).0
}

fn read(
    wanted: Value,
    headers: &[(&str, &str)],
    body: &[u8],
    injected: bool,
) -> (Option<u64>, Vec<u8>) {
    let wanted = value(wanted);
    assert_eq!(wanted.validate(), []);
    let set = Arc::new(wanted.compile().unwrap());
    let mut map = HeaderMap::new();
    for (name, text) in headers {
        let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
        map.insert(name, HeaderValue::from_str(text).unwrap());
    }
    let coding = map
        .get("content-encoding")
        .map_or("", |v| v.to_str().unwrap());
    let mut reading = Reading::new(set, &map, coding, 1 << 25, injected);
    let mut out = Vec::new();
    for piece in body.chunks(7.max(body.len() / 1_000)) {
        out.extend_from_slice(&reading.piece(Bytes::copy_from_slice(piece)));
    }
    out.extend_from_slice(&reading.finish());
    (reading.total(), out)
}

const JSON: (&str, &str) = ("content-type", "application/json");
const EVENTS: (&str, &str) = ("content-type", "text/event-stream; charset=utf-8");

#[test]
fn a_path_finds_numbers_and_nothing_else() {
    let wanted = || json!({"values": [{"path": "$..n"}]});
    let million = format!("[{}]", vec![r#"{"n":1}"#; 400_000].join(","));
    for (body, expected) in [
        (r#"{"n": 7}"#, Some(7)),
        (r#"{"n": 7.2}"#, Some(8)),
        (r#"[{"n": 7}, {"n": 8}, {"n": "9"}]"#, Some(15)),
        (r#"{"n": 0}"#, Some(0)),
        (r#"{"n": -5}"#, Some(0)),
        (r#"{"n": 1e308}"#, Some(VALUE_MAX)),
        (r#"[{"n": 1e308}, {"n": 1e308}]"#, Some(VALUE_MAX)),
        (r#"{"n": "7"}"#, None),
        (r#"{"n": null}"#, None),
        (r#"{"n": true}"#, None),
        (r#"{"m": 7}"#, None),
        (r#"{"n": NaN}"#, None),
        (r#"{"n": 7"#, None),
        ("", None),
        (million.as_str(), None),
    ] {
        let head: String = body.chars().take(40).collect();
        assert_eq!(
            total(wanted(), &[JSON], body.as_bytes()),
            expected,
            "{head}"
        );
        let other = ("content-type", "text/html");
        assert_eq!(total(wanted(), &[other], body.as_bytes()), None, "{head}");
    }
}

#[test]
fn a_coded_answer_is_read_and_a_coded_stream_is_not() {
    use std::io::Write as _;
    let gzip = |body: &str| {
        let mut coder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        coder.write_all(body.as_bytes()).unwrap();
        coder.finish().unwrap()
    };
    let coding = ("content-encoding", "gzip");
    let wanted = || json!({"values": [{"path": "$.n"}]});
    let whole = gzip(r#"{"n": 7}"#);
    assert_eq!(total(wanted(), &[JSON, coding], &whole), Some(7));
    let stream = gzip("data: {\"n\": 7}\n\n");
    assert_eq!(total(wanted(), &[EVENTS, coding], &stream), None);
}

#[test]
fn headers_hold_numbers_too_and_parts_add_up_by_their_weight() {
    let wanted = json!({"values": [
        {"header": "x-cost", "weight_millionths": 1_000_000_000_000u64},
        {"path": "$.usage.in", "weight_millionths": 2_500_000},
        {"path": "$.usage.out", "weight_millionths": 10_000_000},
    ]});
    let body = br#"{"usage": {"in": 1000, "out": 200}}"#;
    let cost = |text| ("x-cost", text);
    let total = |headers: &[(&str, &str)]| total(wanted.clone(), headers, body);
    assert_eq!(total(&[JSON, cost("0.0125")]), Some(12_500 + 2_500 + 2_000));
    assert_eq!(total(&[JSON, cost(" 1 ")]), Some(1_004_500));
    assert_eq!(total(&[JSON, cost("NaN")]), Some(4_500));
    assert_eq!(total(&[cost("0.0125")]), Some(12_500));
    assert_eq!(total(&[]), None);
}

#[test]
fn of_a_stream_the_last_the_largest_or_all_count() {
    let body = b"data: {\"n\": 5}\n\ndata: {\"n\": 9}\n\n: beat\n\ndata: {\"n\": 2}\n\n\
                 data: {\"m\": 1}\n\ndata: [DONE]\n\n";
    for (take, expected) in [("last", 2), ("max", 9), ("sum", 16)] {
        let wanted = json!({"values": [{"path": "$.n"}], "take": take});
        assert_eq!(total(wanted, &[EVENTS], body), Some(expected), "{take}");
    }
}

#[test]
fn templates_know_where_models_tell_of_their_tokens() {
    let chat = r#"data: {"choices":[{"delta":{"content":"a"}}],"usage":null}

data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7}}

data: [DONE]

"#;
    let responses = r#"event: response.created
data: {"type":"response.created","response":{"usage":null}}

event: response.completed
data: {"type":"response.completed","response":{"usage":{"input_tokens":3,"total_tokens":9}}}

"#;
    let messages = r#"event: message_start
data: {"message":{"usage":{"input_tokens":20,"cache_read_input_tokens":5,"output_tokens":1}}}

event: ping
data: {"type": "ping"}

event: message_delta
data: {"type":"message_delta","delta":{},"usage":{"output_tokens":30}}

"#;
    let gemini = r#"data: {"usageMetadata":{"totalTokenCount":3}}

data: {"usageMetadata":{"totalTokenCount":12}}

"#;
    for (template, kind, body, expected) in [
        ("openai_chat", EVENTS, chat, 7),
        ("openai_chat", JSON, r#"{"usage":{"total_tokens":11}}"#, 11),
        ("openai_responses", EVENTS, responses, 9),
        (
            "openai_responses",
            JSON,
            r#"{"usage":{"total_tokens":8}}"#,
            8,
        ),
        ("anthropic", EVENTS, messages, 55),
        (
            "anthropic",
            JSON,
            r#"{"usage":{"input_tokens":2,"output_tokens":3}}"#,
            5,
        ),
        ("gemini", EVENTS, gemini, 12),
        (
            "gemini",
            JSON,
            r#"{"usageMetadata":{"totalTokenCount":4}}"#,
            4,
        ),
    ] {
        let wanted = json!({"template": template});
        assert_eq!(
            total(wanted, &[kind], body.as_bytes()),
            Some(expected),
            "{template}"
        );
    }
}

#[test]
fn a_stream_that_is_cut_has_said_what_it_has_said() {
    let wanted = value(json!({"template": "anthropic"})).compile().unwrap();
    let mut headers = HeaderMap::new();
    headers.insert(
        "content-type",
        HeaderValue::from_static("text/event-stream"),
    );
    let mut reading = Reading::new(Arc::new(wanted), &headers, "", 1_000, false);
    assert_eq!(reading.total(), None);
    let start = b"data: {\"message\":{\"usage\":{\"input_tokens\":20,\"output_tokens\":1}}}\n\nda";
    reading.piece(Bytes::from_static(start));
    assert_eq!(reading.total(), Some(21));
}

#[test]
fn the_request_bounds_what_is_set_aside() {
    let reserve = |wanted: Value, body: &str| {
        let set = value(wanted).compile().unwrap();
        set.reserve(body.as_bytes())
    };
    let chat = || json!({"template": "openai_chat"});
    assert_eq!(reserve(chat(), r#"{"max_tokens": 50}"#), 50);
    assert_eq!(
        reserve(chat(), r#"{"max_tokens": 50, "max_completion_tokens": 70}"#),
        70
    );
    assert_eq!(reserve(chat(), r#"{"max_tokens": "many"}"#), 0);
    assert_eq!(reserve(chat(), r#"{"max_tokens": -1}"#), 0);
    assert_eq!(reserve(chat(), r#"{"max_tokens": 1e308}"#), VALUE_MAX);
    assert_eq!(reserve(chat(), "no json"), 0);
    let gemini = r#"{"generationConfig": {"maxOutputTokens": 9}}"#;
    assert_eq!(reserve(json!({"template": "gemini"}), gemini), 9);
    let own = json!({"values": [{"header": "x-cost"}],
                     "reserve": [{"path": "$.n", "weight_millionths": 2_000_000}]});
    assert_eq!(reserve(own, r#"{"n": 4}"#), 8);
}

#[test]
fn usage_is_asked_for_where_the_caller_did_not_say() {
    for (body, expected) in [
        (
            r#" {"model": "m", "stream": true}"#,
            Some(r#" {"stream_options":{"include_usage":true},"model": "m", "stream": true}"#),
        ),
        (
            r#"{"a": {}, "stream_options": { }, "stream": true}"#,
            Some(r#"{"a": {}, "stream_options": {"include_usage":true }, "stream": true}"#),
        ),
        (
            r#"{"stream_options": {"x": 1}, "stream": true}"#,
            Some(r#"{"stream_options": {"include_usage":true,"x": 1}, "stream": true}"#),
        ),
        (
            r#"{"stream_options": null, "stream": true}"#,
            Some(r#"{"stream_options": {"include_usage":true}, "stream": true}"#),
        ),
        (
            r#"{"stream_options": {"include_usage": false}, "stream": true}"#,
            None,
        ),
        (r#"{"stream_options": 7, "stream": true}"#, None),
        (r#"{"stream": false}"#, None),
        (r#"{"stream": "true"}"#, None),
        (r#"{"n": 1}"#, None),
        ("[true]", None),
        ("no json", None),
        ("", None),
    ] {
        let injected = inject(body.as_bytes()).map(|body| String::from_utf8(body).unwrap());
        assert_eq!(injected.as_deref(), expected, "{body}");
    }
}

#[test]
fn the_event_that_was_asked_for_is_taken_out_of_the_stream() {
    let delta = "data: {\"choices\":[{\"delta\":{}}],\"usage\":null}\n\n";
    let usage = "data: {\"choices\":[],\"usage\":{\"total_tokens\":7}}\n\n";
    let stream = [delta, usage, "data: [DONE]\n\n"].concat();
    let wanted = || json!({"template": "openai_chat", "request_usage": "inject"});
    let (seen, out) = read(wanted(), &[EVENTS], stream.as_bytes(), true);
    assert_eq!(seen, Some(7));
    assert_eq!(
        String::from_utf8(out).unwrap(),
        [delta, "data: [DONE]\n\n"].concat()
    );
    let (seen, out) = read(wanted(), &[EVENTS], stream.as_bytes(), false);
    assert_eq!(
        (seen, out),
        (Some(7), stream.into_bytes()),
        "the caller asked for it"
    );
}

#[test]
fn what_cannot_be_is_told_at_its_place() {
    let check = |document: Value, expected: &[(&str, &str)]| {
        let problems = value(document).validate();
        let found: Vec<_> = problems
            .iter()
            .map(|p| (p.pointer.as_str(), p.code))
            .collect();
        assert_eq!(found, expected);
    };
    check(json!({}), &[("/values", "required")]);
    check(
        json!({"template": "gemini", "values": [{"path": "$"}], "request_usage": "inject"}),
        &[
            ("/values", "not-applicable"),
            ("/request_usage", "not-applicable"),
        ],
    );
    check(
        json!({"estimate": 0, "values": [
            {}, {"path": "usage"}, {"header": "a b"}, {"path": "$", "header": "x"},
            {"path": "$..a..b"}, {"path": "$", "weight_millionths": 0},
        ], "reserve": [{"path": "n"}, {"path": "$", "weight_millionths": 1_000_000_000_001u64}]}),
        &[
            ("/values/0/path", "required"),
            ("/values/1/path", "path-invalid"),
            ("/values/2/header", "header-name"),
            ("/values/3/header", "not-applicable"),
            ("/values/4/path", "path-too-complex"),
            ("/values/5/weight_millionths", "range"),
            ("/reserve/0/path", "path-invalid"),
            ("/reserve/1/weight_millionths", "range"),
            ("/estimate", "range"),
        ],
    );
    check(
        json!({"values": vec![json!({"path": "$"}); 9]}),
        &[("/values", "too-many")],
    );
    check(
        json!({"template": "openai_chat", "estimate": u64::MAX}),
        &[("/estimate", "range")],
    );
}
