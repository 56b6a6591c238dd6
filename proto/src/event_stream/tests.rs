//! What becomes of a stream, however it is cut.

use proptest::prelude::*;

use super::*;
use crate::filter::{CompiledFilter, Filter, MaskKey};

const EVENT_BYTES_MAX: usize = 200;

fn set() -> Arc<FilterSet> {
    set_of(serde_json::json!({"id": "flt_1", "op": "destroy", "paths": ["$..ssn"]}))
}

fn set_of(filter: serde_json::Value) -> Arc<FilterSet> {
    let filter: Filter = serde_json::from_value(filter).unwrap();
    let filter = CompiledFilter::new(&filter, &MaskKey::from_bytes([7; 32])).unwrap();
    Arc::new(FilterSet::new([&[Arc::new(filter)], &[], &[], &[]]))
}

/// A whole stream through the filter, cut at every `step` bytes.
fn run(framing: Framing, input: &[u8], step: usize) -> (String, Option<StreamEnd>) {
    let mut filter = EventFilter::new(set(), framing, EVENT_BYTES_MAX);
    let mut out = Vec::new();
    for piece in input.chunks(step.max(1)) {
        filter.push(piece, &mut out);
    }
    filter.finish(&mut out);
    (String::from_utf8_lossy(&out).into_owned(), filter.ended())
}

/// One row: a stream that passes to its end, in one piece and byte by byte.
fn check(framing: Framing, input: &str, expected: &str) {
    for step in [usize::MAX, 1, 2, 7] {
        let found = run(framing, input.as_bytes(), step);
        assert_eq!(
            found,
            (expected.to_owned(), None),
            "{input:?} in pieces of {step}"
        );
    }
}

/// One row: a stream that is ended early.
fn check_ended(framing: Framing, input: impl AsRef<[u8]>, before: &str, code: &str) {
    let input = input.as_ref();
    for step in [usize::MAX, 1, 2, 7] {
        let (out, ended) = run(framing, input, step);
        assert_eq!(
            ended.map(|end| end.code()),
            Some(code),
            "{input:?} in pieces of {step}"
        );
        let last = out
            .strip_prefix(before)
            .unwrap_or_else(|| panic!("{out:?} begins otherwise"));
        let json = match framing {
            Framing::EventStream => last.strip_prefix("event: error\ndata: ").unwrap(),
            Framing::Ndjson => last,
        };
        let json: serde_json::Value = serde_json::from_str(json.trim_end()).unwrap();
        assert_eq!(json["code"], code);
        assert!(json["detail"].is_string());
        assert!(!out.contains("SECRET"), "{out}");
    }
}

#[test]
fn events_are_filtered_one_by_one() {
    use Framing::EventStream as Sse;
    check(Sse, "data: {\"a\":1,\"ssn\":2}\n\n", "data: {\"a\":1}\n\n");
    check(
        Sse,
        "event: add\nid: 7\ndata: {\"ssn\":2}\nretry: 10\n\ndata: 1.0\n\n",
        "event: add\nid: 7\ndata: {}\nretry: 10\n\ndata: 1.0\n\n",
    );
    check(
        Sse,
        "data: {\"a\":\ndata: 1,\ndata:  \"ssn\":2,\ndata: \"b\":3}\n\n",
        "data: {\"a\":\ndata: 1,\ndata: \"b\":3}\n\n",
    );
    check(Sse, "data:{\"a\":1}\n\n", "data: {\"a\":1}\n\n");
    check(
        Sse,
        "data: 1\r\n\r\ndata: 2\r\rdata: 3\n\n",
        "data: 1\n\ndata: 2\n\ndata: 3\n\n",
    );
    check(Sse, "data: [\r\ndata: 1]\r\n\r\n", "data: [\ndata: 1]\n\n");
    check(Sse, "\u{feff}data: 1\n\n", "data: 1\n\n");
    check(Sse, "", "");
    check(Sse, "\n\n", "\n\n");
}

#[test]
fn masks_and_marks_are_put_into_each_event() {
    let set = set_of(serde_json::json!({"id": "flt_1", "op": "redact", "detect": ["email"]}));
    for framing in [Framing::EventStream, Framing::Ndjson] {
        let mut filter = EventFilter::new(set.clone(), framing, EVENT_BYTES_MAX);
        let mut out = Vec::new();
        let (input, expected) = match framing {
            Framing::EventStream => (
                "data: {\"d\":\"to a@b.example\"}\n\ndata: [DONE]\n\n",
                "data: {\"d\":\"to [email]\"}\n\ndata: [DONE]\n\n",
            ),
            Framing::Ndjson => (
                "{\"d\":\"a@b.example c@d.example\"}\n{\"e\":1.0}\n",
                "{\"d\":\"[email] [email]\"}\n{\"e\":1.0}\n",
            ),
        };
        for byte in input.bytes() {
            filter.push(&[byte], &mut out);
        }
        filter.finish(&mut out);
        assert_eq!(String::from_utf8(out).unwrap(), expected);
        assert_eq!(filter.changed().collect::<Vec<_>>(), ["flt_1"]);
        let counts: u32 = filter.redacted().counts().sum();
        assert_eq!(counts, if framing == Framing::Ndjson { 2 } else { 1 });
    }
    let mask = set_of(serde_json::json!({"id": "flt_1", "op": "mask", "paths": ["$.d"]}));
    let mut filter = EventFilter::new(mask, Framing::EventStream, EVENT_BYTES_MAX);
    let mut out = Vec::new();
    filter.push(
        b"data: {\"d\":7,\"n\":1.0}\n\ndata: {\"d\":SECRET}\n\n",
        &mut out,
    );
    let out = String::from_utf8(out).unwrap();
    assert!(
        out.starts_with("data: {\"d\":\"***\",\"n\":1.0}\n\nevent: error\n"),
        "{out}"
    );
    assert!(!out.contains("SECRET"));
}

#[test]
fn what_carries_no_document_passes() {
    use Framing::EventStream as Sse;
    check(Sse, ": keep-alive\n\n", ": keep-alive\n\n");
    check(
        Sse,
        ":\ndata: 1\n: between\nid: 2\n\n",
        ":\n: between\ndata: 1\nid: 2\n\n",
    );
    check(Sse, "event: ping\n\n", "event: ping\n\n");
    check(Sse, "data\n\n", "data:\n\n");
    check(Sse, "data:\n\ndata: \n\n", "data:\n\ndata:\n\n");
    check(
        Sse,
        "data: 1\n\ndata: [DONE]\n\n",
        "data: 1\n\ndata: [DONE]\n\n",
    );
    check(
        Sse,
        "event: ping\ndata: now\n\n",
        "event: ping\ndata: now\n\n",
    );
    check(
        Sse,
        "event: ping\ndata: {\"ssn\":1}\n\n",
        "event: ping\ndata: {}\n\n",
    );
    check(Sse, "id: 1\nretry: 5\n\n", "id: 1\nretry: 5\n\n");
}

#[test]
fn fields_that_clients_ignore_are_dropped() {
    use Framing::EventStream as Sse;
    check(
        Sse,
        "x: SECRET\ndata: 1\nData: SECRET\n data: SECRET\n\n",
        "data: 1\n\n",
    );
}

#[test]
fn a_comment_does_not_wait_for_its_event() {
    let mut filter = EventFilter::new(set(), Framing::EventStream, EVENT_BYTES_MAX);
    let mut out = Vec::new();
    filter.push(b"data: {\"a\":\n: beat\r", &mut out);
    assert_eq!(out, b": beat\n");
    filter.push(b"\ndata: 1}\n\nda", &mut out);
    assert_eq!(out, b": beat\ndata: {\"a\":\ndata: 1}\n\n");
    assert_eq!(filter.changed().count(), 0);
    filter.push(b"ta: {\"ssn\":1}\n\n", &mut out);
    assert_eq!(filter.changed().collect::<Vec<_>>(), ["flt_1"]);
}

#[test]
fn an_event_that_is_not_json_ends_the_stream_with_an_error_event() {
    use Framing::EventStream as Sse;
    let code = "filter-not-json";
    check_ended(
        Sse,
        "data: 1\n\ndata: SECRET\n\ndata: 2\n\n",
        "data: 1\n\n",
        code,
    );
    check_ended(Sse, "data: {\"a\":\"SECRET\",\"a\":1}\n\n", "", code);
    check_ended(Sse, "data: [DONE] SECRET\n\n", "", code);
    check_ended(Sse, "data:  [DONE]\n\n", "", code);
    check_ended(Sse, "event: ping\ndata: {\"SECRET\n\n", "", code);
    check_ended(Sse, "event: ping\nevent: other\ndata: SECRET\n\n", "", code);
    let long = format!("event: ping\ndata: SECRET{}\n\n", "x".repeat(130));
    check_ended(Sse, long, "", code);
    check_ended(Sse, b"data: \"\xff\"\n\n", "", code);
    let (out, _) = run(Sse, b"data: {\n\n", usize::MAX);
    assert_eq!(
        out,
        "event: error\ndata: {\"code\":\"filter-not-json\",\"detail\":\"not JSON at byte 1: a \
         member's name expected\"}\n\n"
    );
}

#[test]
fn an_event_above_the_cap_ends_the_stream() {
    use Framing::EventStream as Sse;
    let code = "response-too-large";
    let fits = format!("data: \"{}\"\n\n", "a".repeat(EVENT_BYTES_MAX - 8));
    check(Sse, &fits, &fits);
    check_ended(
        Sse,
        format!("data: \"{}\"\n\n", "a".repeat(EVENT_BYTES_MAX - 7)),
        "",
        code,
    );
    check_ended(
        Sse,
        format!("{fits}data: {}", "SECRET".repeat(100)),
        &fits,
        code,
    );
    check_ended(Sse, "data: 1\n".repeat(100), "", code);
    check_ended(Sse, "ignored: 1\n".repeat(100), "", code);
    check_ended(Sse, format!(":{}", "x".repeat(EVENT_BYTES_MAX)), "", code);
    // Comments are not kept, so they do not add up.
    check(Sse, &": beat\n".repeat(100), &": beat\n".repeat(100));
    check_ended(
        Framing::Ndjson,
        format!("1\n\"{}", "SECRET".repeat(100)),
        "1\n",
        code,
    );
}

#[test]
fn a_stream_that_breaks_off_leaves_nothing_unfiltered() {
    use Framing::EventStream as Sse;
    check(
        Sse,
        "data: 1\n\ndata: {\"ssn\":1,\"b\":2}\n",
        "data: 1\n\ndata: {\"b\":2}\n\n",
    );
    check(Sse, "data: [DONE]", "data: [DONE]\n\n");
    check(Sse, "data: 1\n\ndata: {\"a\":\"SECR", "data: 1\n\n");
    check(
        Sse,
        "data: 1\n\nid: 1\ndata: {\"a\":\"SECR\n",
        "data: 1\n\n",
    );
    check(Framing::Ndjson, "1\n{\"ssn\":1}", "1\n{}");
    check_ended(
        Framing::Ndjson,
        "1\n{\"a\":\"SECRET",
        "1\n",
        "filter-not-json",
    );
}

#[test]
fn ndjson_is_filtered_line_by_line() {
    use Framing::Ndjson;
    check(
        Ndjson,
        "{\"a\":1,\"ssn\":2}\n{\"ssn\":3}\n",
        "{\"a\":1}\n{}\n",
    );
    check(
        Ndjson,
        "{\"ssn\":3,\"b\":1e400}\r\n\r\n\n1\n",
        "{\"b\":1e400}\r\n\r\n\n1\n",
    );
    check(Ndjson, "1\n[DONE]\n", "1\n[DONE]\n");
    check_ended(Ndjson, "1\nSECRET\n2\n", "1\n", "filter-not-json");
    check_ended(Ndjson, "{\"a\":\n1}\n", "", "filter-not-json");
    check_ended(Ndjson, "1\n: SECRET\n", "1\n", "filter-not-json");
}

#[test]
fn nothing_is_taken_after_the_end() {
    let mut filter = EventFilter::new(set(), Framing::EventStream, EVENT_BYTES_MAX);
    let mut out = Vec::new();
    filter.push(b"data: x\n\n", &mut out);
    let length = out.len();
    filter.push(b"data: 1\n\n", &mut out);
    filter.finish(&mut out);
    assert_eq!(out.len(), length);
}

fn stream() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop::sample::select(vec![
        "data: ",
        "data:",
        "event: ping",
        "id: 1",
        ": c",
        "{\"a\":1,\"ssn\":2}",
        "{\"ssn\":",
        "1}",
        "[DONE]",
        "x",
        "\n",
        "\n\n",
        "\r\n",
        "\r",
        "\r\n\r\n",
        "\u{feff}",
        "é",
        " ",
        "data: {\"ssn\":1}\n\n",
        "data: 1\r\n\r\n",
        "retry",
        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    ]);
    prop::collection::vec(piece, 0..30).prop_map(|all| all.concat().into_bytes())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn cuts_make_no_difference(
        input in stream(),
        cuts in prop::collection::vec(0usize..40, 0..12),
        sse in any::<bool>(),
    ) {
        let framing = if sse { Framing::EventStream } else { Framing::Ndjson };
        let whole = run(framing, &input, usize::MAX);
        let mut filter = EventFilter::new(set(), framing, EVENT_BYTES_MAX);
        let (mut out, mut rest) = (Vec::new(), input.as_slice());
        for cut in cuts {
            let (piece, after) = rest.split_at(cut.min(rest.len()));
            filter.push(piece, &mut out);
            rest = after;
        }
        filter.push(rest, &mut out);
        filter.finish(&mut out);
        prop_assert_eq!((String::from_utf8_lossy(&out).into_owned(), filter.ended()), whole);
    }

    #[test]
    fn random_bytes_never_panic(
        input in prop::collection::vec(any::<u8>(), 0..300),
        step in 1usize..50,
    ) {
        run(Framing::EventStream, &input, step);
        run(Framing::Ndjson, &input, step);
    }
}
