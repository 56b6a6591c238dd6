//! What filters let through, and what they refuse.

use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::json_path::SelectError;
use crate::json_text::JsonError;

fn filter(id: &str, op: Op, paths: &[&str]) -> Filter {
    Filter {
        id: id.into(),
        op,
        paths: paths.iter().map(ToString::to_string).collect(),
        direction: Direction::Response,
        notes: String::new(),
        error_retain: None,
        mask: None,
        detect: Vec::new(),
        patterns: Vec::new(),
    }
}

fn retain(paths: &[&str]) -> Filter {
    filter("flt_r", Op::Retain, paths)
}

fn destroy(paths: &[&str]) -> Filter {
    filter("flt_d", Op::Destroy, paths)
}

fn mask(paths: &[&str]) -> Filter {
    filter("flt_m", Op::Mask, paths)
}

fn text(with: &str) -> Mask {
    Mask {
        text: Some(with.into()),
        ..Mask::default()
    }
}

fn last(count: u8) -> Mask {
    Mask {
        last: Some(count),
        ..Mask::default()
    }
}

fn hash() -> Mask {
    Mask {
        hash: true,
        ..Mask::default()
    }
}

fn masked(paths: &[&str], with: Mask) -> Filter {
    Filter {
        mask: Some(with),
        ..mask(paths)
    }
}

/// A `redact` of the whole body.
fn redact(detect: &[&str]) -> Filter {
    let detect = detect.iter().map(|name| serde_json::json!(name));
    Filter {
        detect: detect
            .map(|name| serde_json::from_value(name).unwrap())
            .collect(),
        ..filter("flt_x", Op::Redact, &[])
    }
}

fn own(name: &str, pattern: &str) -> OwnPattern {
    OwnPattern {
        name: name.into(),
        pattern: pattern.into(),
        flags: String::new(),
    }
}

/// A `redact` of the whole body for one own pattern.
fn redact_own(name: &str, pattern: &str) -> Filter {
    Filter {
        patterns: vec![own(name, pattern)],
        ..redact(&[])
    }
}

fn key() -> MaskKey {
    MaskKey::from_bytes([7; 32])
}

/// The response filters of four scopes.
fn set(scopes: [&[Filter]; 4]) -> FilterSet {
    let compiled = scopes.map(|filters| {
        let all = filters.iter();
        all.map(|filter| Arc::new(CompiledFilter::new(filter, &key()).unwrap()))
            .filter(|filter| filter.direction == Direction::Response)
            .collect::<Vec<_>>()
    });
    FilterSet::new(std::array::from_fn(|at| compiled[at].as_slice()))
}

/// One row: the filters of one scope, a body, and what may go on.
fn check(filters: &[Filter], body: &str, expected: &str) {
    let applied = set([&[], filters, &[], &[]])
        .apply(body.as_bytes())
        .unwrap();
    assert_eq!(
        String::from_utf8(applied.body).unwrap(),
        expected,
        "{filters:?} on {body}"
    );
    assert_eq!(
        applied.changed.is_empty(),
        body == expected,
        "{filters:?} on {body}"
    );
}

#[test]
fn retain_keeps_the_paths_and_what_holds_them() {
    let body = r#"{"id":7,"name":"n","card":{"no":"4111","exp":"01/30"},"tags":["a","b"]}"#;
    check(&[retain(&["$.id"])], body, r#"{"id":7}"#);
    check(
        &[retain(&["$.card"])],
        body,
        r#"{"card":{"no":"4111","exp":"01/30"}}"#,
    );
    check(
        &[retain(&["$.card.exp", "$.tags[1]"])],
        body,
        r#"{"card":{"exp":"01/30"},"tags":["b"]}"#,
    );
    check(
        &[retain(&["$.id"]), retain(&["$.name"])],
        body,
        r#"{"id":7,"name":"n"}"#,
    );
    check(
        &[retain(&["$.tags", "$.tags[0]"])],
        body,
        r#"{"tags":["a","b"]}"#,
    );
    check(&[retain(&["$"])], body, body);
    check(&[retain(&["$.nothing"])], body, "{}");
    check(&[retain(&["$.nothing"])], r#"[{"a":1}]"#, "[]");
    check(&[retain(&["$.nothing"])], r#""secret""#, "null");
    check(&[retain(&["$.nothing"])], "null", "null");
    check(
        &[retain(&["$[*].id"])],
        r#"[{"id":1,"x":2},{"y":3},4]"#,
        r#"[{"id":1}]"#,
    );
    check(
        &[retain(&["$.data[*].id", "$.next"])],
        r#"{"data":[],"next":null,"x":1}"#,
        r#"{"next":null}"#,
    );
}

#[test]
fn destroy_removes_the_paths_and_nothing_else() {
    let body = r#"{"id":7,"users":[{"mail":"a@x","age":1},{"mail":"b@x","age":2},{"age":3}]}"#;
    check(
        &[destroy(&["$..mail"])],
        body,
        r#"{"id":7,"users":[{"age":1},{"age":2},{"age":3}]}"#,
    );
    check(
        &[destroy(&["$.users[?@.age < 3]"])],
        body,
        r#"{"id":7,"users":[{"age":3}]}"#,
    );
    check(&[destroy(&["$.users[*]", "$.id"])], body, r#"{"users":[]}"#);
    check(&[destroy(&["$.*"])], body, "{}");
    check(&[destroy(&["$.other"])], body, body);
    check(&[destroy(&["$.a"])], "\"text\"", "\"text\"");
    check(&[destroy(&["$[0]", "$[0]"])], "[1,2,3]", "[2,3]");
    check(&[destroy(&["$[0]"]), destroy(&["$[1]"])], "[1,2,3]", "[3]");
}

#[test]
fn mask_puts_a_string_in_the_place_of_a_value() {
    let body = r#"{ "id": 7, "no":"4111-1111", "n":1.50, "on":true, "x":null, "in":{"a":[1,2]} }"#;
    check(
        &[mask(&["$.no", "$.n", "$.on", "$.x", "$.in"])],
        body,
        r#"{ "id": 7, "no":"***", "n":"***", "on":"***", "x":null, "in":"***" }"#,
    );
    check(
        &[masked(&["$.in.a[0]"], text("\"hid\\den\"\n"))],
        body,
        &body.replace("[1,2]", r#"["\"hid\\den\"\n",2]"#),
    );
    check(
        &[masked(&["$.no"], text(""))],
        body,
        &body.replace("4111-1111", ""),
    );
    check(&[mask(&["$"])], " [1] ", " \"***\" ");
    check(&[mask(&["$.nothing"])], body, body);
    // Key order and number text stay.
    check(
        &[mask(&["$.z"])],
        r#"{"y":1e400,"z":1,"x":12345678901234567890,"w":-0,"v":"\u0041"}"#,
        r#"{"y":1e400,"z":"***","x":12345678901234567890,"w":-0,"v":"\u0041"}"#,
    );
}

#[test]
fn mask_keeps_the_last_characters_of_what_is_long_enough() {
    for (count, value, expected) in [
        (4, r#""4111111111111111""#, r#""***1111""#),
        (4, r#""12345678""#, r#""***5678""#),
        (4, r#""1234567""#, r#""***""#),
        (4, r#""""#, r#""***""#),
        (2, r#""\u00e9\u00e8\u00ea\ud83d\ude00""#, "\"***ê😀\""),
        (4, "12345678901234567890", r#""***7890""#),
        (4, "1e400", r#""***""#),
        (1, "true", r#""***e""#),
        (4, r#"["12345678"]"#, r#""***""#),
    ] {
        check(&[masked(&["$"], last(count))], value, expected);
    }
}

#[test]
fn a_hash_is_the_same_for_equal_texts_and_for_one_key_only() {
    let hashes = |filters: FilterSet, body: &str| {
        let output = filters.apply(body.as_bytes()).unwrap().body;
        let values: Vec<String> = serde_json::from_slice(&output).unwrap();
        values
    };
    let filter = masked(&["$[*]"], hash());
    let filters = || set([std::slice::from_ref(&filter), &[], &[], &[]]);
    let values = hashes(filters(), r#"["a@b","a\u0040b","A@b",7,"7",{"a":1,"b":2}]"#);
    assert_eq!(values[0], values[1], "by text, not by how it is written");
    assert_ne!(values[0], values[2]);
    assert_eq!(values[3], values[4]);
    for value in &values {
        let digits = value.strip_prefix("hash:").unwrap();
        assert!(digits.len() == 32 && digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
    }
    let other = CompiledFilter::new(&filter, &MaskKey::from_bytes([8; 32])).unwrap();
    let other = FilterSet::new([&[Arc::new(other)], &[], &[], &[]]);
    assert_ne!(hashes(other, r#"["a@b"]"#)[0], values[0]);
    // What an earlier filter removed is in no hash.
    let after = [destroy(&["$[*].b"]), filter.clone()];
    let after = set([&after, &[], &[], &[]]);
    let without = hashes(filters(), r#"[{"a":1}]"#);
    assert_eq!(hashes(after, r#"[{"a":1,"b":2}]"#), without);
}

#[test]
fn of_two_masks_the_one_that_says_less_counts() {
    let (ends, hidden) = (last(2), text("-"));
    let both = [
        masked(&["$.a"], ends.clone()),
        masked(&["$.*"], hidden.clone()),
    ];
    check(&both, r#"{"a":"12345","b":1}"#, r#"{"a":"-","b":"-"}"#);
    let both = [masked(&["$.a"], ends), masked(&["$.a.b"], hidden)];
    check(&both, r#"{"a":{"b":"12345"}}"#, r#"{"a":"***"}"#);
    // A later scope sees the string that stands there now.
    let applied = set([
        &[masked(&["$.a"], text("12345678"))],
        &[masked(&["$.a"], last(3))],
        &[destroy(&["$[?@ == '***678']"])],
        &[],
    ]);
    assert_eq!(
        applied.apply(br#"{"a":{"b":1},"c":2}"#).unwrap().body,
        br#"{"c":2}"#
    );
}

#[test]
fn redact_looks_into_strings_numbers_and_names() {
    let all = redact(&["email", "card"]);
    check(
        std::slice::from_ref(&all),
        r#"{"to":"Ann <ann@example.com>, b\u0040b.example","n":1.0,"card":4111111111111111}"#,
        r#"{"to":"Ann <[email]>, [email]","n":1.0,"card":"[card]"}"#,
    );
    check(
        std::slice::from_ref(&all),
        r#"{"ann@example.com":{"age":1},"x":[],"bob@example.com":2,"[email] 2":3}"#,
        r#"{"[email]":{"age":1},"x":[],"[email] 3":2,"[email] 2":3}"#,
    );
    check(
        &[all],
        "[0.4111111111111111,4111111111111112,4111111111111111.5]",
        "[0.4111111111111111,4111111111111112,4111111111111111.5]",
    );
    let some = Filter {
        paths: vec!["$.notes".into(), "$.notes.a".into(), "$..to".into()],
        ..redact(&["email"])
    };
    check(
        &[some],
        r#"{"notes":{"a":"x@y.example"},"from":"x@y.example","a":{"to":["x@y.example"]}}"#,
        r#"{"notes":{"a":"[email]"},"from":"x@y.example","a":{"to":["[email]"]}}"#,
    );
    // Strings that hold nothing keep their bytes, escapes and all.
    check(
        &[redact(&["email"])],
        r#"["\u0041\/\ud83d","a@b.example\u00e9\/"]"#,
        "[\"\\u0041\\/\\ud83d\",\"[email]/\"]",
    );
}

#[test]
fn own_patterns_and_detectors_find_together() {
    let filter = Filter {
        patterns: vec![own("staff", r"\bEMP-\d{6}\b"), own("pin", "^[0-9]{4}$")],
        ..redact(&["email"])
    };
    let body = r#"{"a":"EMP-123456 and emp-123456@x.example","pin":1234,"year":"2024!"}"#;
    check(
        std::slice::from_ref(&filter),
        body,
        r#"{"a":"[staff] and [email]","pin":"[pin]","year":"2024!"}"#,
    );
    let applied = set([&[filter], &[], &[], &[]])
        .apply(body.as_bytes())
        .unwrap();
    let counts: Vec<(&str, u32)> = Redactions::names().zip(applied.redacted.counts()).collect();
    assert!(
        counts.contains(&("email", 1)) && counts.contains(&("own_pattern", 2)),
        "{counts:?}"
    );
    // What overlaps goes as one.
    let two = [redact_own("one", "abc"), redact_own("two", "bcd")];
    check(&two, r#""xabcdx""#, r#""x[one]x""#);
}

#[test]
fn searches_of_own_patterns_are_bounded_together() {
    let greedy = set([&[redact_own("all", ".*[^A-Z]|[A-Z]")], &[], &[], &[]]);
    assert!(
        greedy
            .apply(format!("\"{}\"", "A".repeat(1_000)).as_bytes())
            .is_ok()
    );
    let long = format!("\"{}\"", "A".repeat(100_000));
    let error = greedy.apply(long.as_bytes()).unwrap_err();
    assert_eq!(error, SelectError::TooManySteps.into());
}

#[test]
fn in_one_scope_mask_and_redact_come_last() {
    let body = r#"{"a":"x@y.example","b":"x@y.example","c":"x@y.example","d":1}"#;
    let all = [
        redact(&["email"]),
        masked(&["$.b", "$.d"], last(7)),
        destroy(&["$.d"]),
        retain(&["$.a", "$.b", "$.d"]),
    ];
    check(&all, body, r#"{"a":"[email]","b":"***"}"#);
}

#[test]
fn in_one_scope_retain_comes_before_destroy() {
    let body = r#"{"a":{"x":1,"y":2},"b":3}"#;
    let both = [destroy(&["$.a.x"]), retain(&["$.a"])];
    check(&both, body, r#"{"a":{"y":2}}"#);
    check(&[retain(&["$.a"]), destroy(&["$.a"])], body, "{}");
    // Indexes count what the retain has left.
    check(
        &[retain(&["$[1]", "$[2]"]), destroy(&["$[0]"])],
        "[1,2,3]",
        "[3]",
    );
}

#[test]
fn scopes_apply_in_order_and_nothing_comes_back() {
    let body = br#"{"a":1,"b":2,"c":3,"d":4}"#;
    let applied = set([
        &[filter("flt_1", Op::Destroy, &["$.a"])],
        &[filter("flt_2", Op::Retain, &["$.a", "$.b", "$.c"])],
        &[filter("flt_3", Op::Destroy, &["$.z"])],
        &[filter("flt_4", Op::Retain, &["$.a", "$.c"])],
    ])
    .apply(body)
    .unwrap();
    assert_eq!(applied.body, br#"{"c":3}"#);
    let changed: Vec<&str> = applied.changed.iter().map(AsRef::as_ref).collect();
    assert_eq!(
        changed,
        ["flt_1", "flt_2", "flt_4"],
        "flt_3 found nothing to remove"
    );

    // What the target credential's filter removed cannot hold up what a later one selects by it.
    let applied = set([
        &[destroy(&["$.users[0]"])],
        &[],
        &[],
        &[destroy(&["$.users[0]"])],
    ]);
    assert_eq!(
        applied.apply(br#"{"users":[1,2,3]}"#).unwrap().body,
        br#"{"users":[3]}"#
    );

    // A root that a retain has emptied stays empty for the scopes after it.
    let nulled = set([
        &[retain(&["$.x"])],
        &[retain(&["$"])],
        &[destroy(&["$..*"])],
        &[],
    ]);
    assert_eq!(nulled.apply(b" \"secret\"\n").unwrap().body, b" null\n");
}

#[test]
fn number_text_strings_and_order_stay_as_they_came() {
    let kept = r#""z":1.0,"y":1e400,"x":-0,"w":12345678901234567890,"v":"\u0041\/\ud83d""#;
    check(
        &[destroy(&["$.secret"])],
        &format!("{{{kept},\"secret\":1}}"),
        &format!("{{{kept}}}"),
    );
    check(
        &[retain(&["$.b", "$.a"])],
        "{\n  \"b\" : 1.50,\n  \"c\" : 2,\n  \"a\" : 3\n}\n",
        "{\n  \"b\" : 1.50,\n  \"a\" : 3\n}\n",
    );
    check(
        &[destroy(&["$.secret"])],
        r#"{"s\u0065cret":1,"b":2}"#,
        r#"{"b":2}"#,
    );
}

fn check_unreadable(body: &[u8], expected: impl Into<FilterError>) {
    let error = set([&[destroy(&["$..x"])], &[], &[], &[]])
        .apply(body)
        .unwrap_err();
    assert_eq!(error, expected.into());
    assert_eq!(error.code(), "filter-not-json");
}

#[test]
fn a_body_that_cannot_be_read_exactly_one_way_does_not_pass() {
    check_unreadable(
        b"",
        JsonError::NotJson {
            offset: 0,
            reason: "a value is missing",
        },
    );
    check_unreadable(
        b"<html>",
        JsonError::NotJson {
            offset: 0,
            reason: "no value begins like this",
        },
    );
    check_unreadable(
        b"{} trailing",
        JsonError::NotJson {
            offset: 3,
            reason: "something follows the value",
        },
    );
    check_unreadable(
        br#"{"a":{"x":1,"x":2}}"#,
        JsonError::DuplicateKey { offset: 5 },
    );
    check_unreadable(&b"[".repeat(100_000), JsonError::TooDeep { offset: 64 });
    let wide = format!("[{}0]", "0,".repeat(200_000));
    check_unreadable(wide.as_bytes(), SelectError::TooManyVisits);
}

#[test]
fn without_filters_bodies_pass_unread() {
    let none = FilterSet::default();
    assert!(none.is_empty());
    assert_eq!(none.apply(b"<html>").unwrap().body, b"<html>");
    assert_eq!(none.apply_error(b"<html>", "text/html"), ErrorBody::Pass);
    let requests = Filter {
        direction: Direction::Request,
        ..destroy(&["$.a"])
    };
    assert!(set([std::slice::from_ref(&requests), &[], &[], &[]]).is_empty());
}

/// One row: what goes on of an error body; none where it is blanked.
fn check_error(filters: &[Filter], content_type: &str, body: &str, expected: Option<&str>) {
    let found = set([&[], &[], filters, &[]]).apply_error(body.as_bytes(), content_type);
    let found = match found {
        ErrorBody::Pass => Some(body.to_owned()),
        ErrorBody::Filtered(applied) => Some(String::from_utf8(applied.body).unwrap()),
        ErrorBody::Blank => None,
    };
    assert_eq!(
        found.as_deref(),
        expected,
        "{filters:?} on {content_type} {body}"
    );
}

#[test]
fn error_bodies_show_no_more_than_filtered_ones() {
    let body = r#"{"error":"exists","existing":{"email":"e","ssn":"1"}}"#;
    let with_error = |paths: &[&str]| Filter {
        error_retain: Some(vec!["$.error".into()]),
        ..retain(paths)
    };
    let json = "application/json";
    check_error(&[retain(&["$.id"])], json, body, None);
    check_error(
        &[with_error(&["$.id"])],
        json,
        body,
        Some(r#"{"error":"exists"}"#),
    );
    check_error(&[with_error(&["$.id"]), retain(&["$.x"])], json, body, None);
    check_error(
        &[destroy(&["$..ssn"])],
        "application/problem+json",
        body,
        Some(r#"{"error":"exists","existing":{"email":"e"}}"#),
    );
    check_error(&[destroy(&["$..ssn"])], "text/html", "<p>1</p>", None);
    check_error(&[destroy(&["$..ssn"])], "text/plain", body, None);
    check_error(&[destroy(&["$..ssn"])], json, "<p>1</p>", None);
    check_error(&[destroy(&["$..ssn"])], json, r#"{"a":1,"a":2}"#, None);
    check_error(
        &[destroy(&["$..ssn"])],
        "text/event-stream",
        "data: 1\n\n",
        None,
    );
    check_error(&[retain(&["$.id"])], "", "", Some(""));
    for hides in [mask(&["$..ssn"]), redact(&["email"])] {
        let hides = std::slice::from_ref(&hides);
        check_error(hides, "text/html", "<p>a@b.example</p>", None);
        check_error(hides, json, r#"{"a":"a@b.example""#, None);
        check_error(hides, json, r#"{"a":1,"a":2}"#, None);
    }
    let body = r#"{"error":"a@b.example exists","ssn":"1"}"#;
    check_error(
        &[mask(&["$..ssn"]), redact(&["email"])],
        json,
        body,
        Some(r#"{"error":"[email] exists","ssn":"***"}"#),
    );
    check_error(
        &[redact(&["email"]), retain(&["$.error"])],
        json,
        body,
        None,
    );
}

fn check_problems(filter: &Filter, expected: &[(&str, &str)]) {
    let problems = filter.validate();
    let found: Vec<(&str, &str)> = problems
        .iter()
        .map(|problem| (problem.pointer.as_str(), problem.code))
        .collect();
    assert_eq!(found, expected);
}

#[test]
fn every_problem_is_reported_at_once_where_it_stands() {
    check_problems(&retain(&["$.a", "$..b[*]"]), &[]);
    check_problems(&retain(&[]), &[("/paths", "paths-empty")]);
    check_problems(
        &destroy(&["$.a", "a", "$", "$..a..b", "$[?match(@, '(')]"]),
        &[
            ("/paths/1", "path-invalid"),
            ("/paths/2", "destroys-root"),
            ("/paths/3", "path-too-complex"),
            ("/paths/4", "path-pattern-invalid"),
        ],
    );
    check_problems(
        &retain(&vec!["$.a"; PATHS_MAX + 1]),
        &[("/paths", "too-many-paths")],
    );
    check_problems(
        &Filter {
            direction: Direction::Request,
            notes: "n".repeat(NOTES_BYTES_MAX + 1),
            error_retain: Some(vec!["$.ok".into(), "$.".into()]),
            ..destroy(&["x"])
        },
        &[
            ("/paths/0", "path-invalid"),
            ("/notes", "notes-too-long"),
            ("/error_retain/1", "path-invalid"),
            ("/error_retain", "error-retain-needs-retain"),
            ("/error_retain", "error-retain-needs-response"),
        ],
    );
    let detail = &destroy(&["$.a b"]).validate()[0].detail;
    assert_eq!(detail, "` ` cannot stand here (at byte 3 of the path)");
}

#[test]
fn masks_and_redacts_are_checked() {
    let masks = |with| masked(&["$.a"], with);
    check_problems(&masks(hash()), &[]);
    check_problems(&masks(text(&"t".repeat(256))), &[]);
    check_problems(
        &masks(text(&"t".repeat(257))),
        &[("/mask/text", "mask-text-too-long")],
    );
    for count in [0, 33, 255] {
        check_problems(&masks(last(count)), &[("/mask/last", "mask-last-range")]);
    }
    let both = Mask {
        hash: true,
        ..last(2)
    };
    check_problems(&masks(both), &[("/mask", "mask-not-one")]);
    check_problems(&masks(Mask::default()), &[]);
    check_problems(&mask(&[]), &[("/paths", "paths-empty")]);
    check_problems(
        &mask(&["$", "$..a..b"]),
        &[("/paths/1", "path-too-complex")],
    );
    check_problems(&redact(&["email", "email"]), &[]);
    check_problems(&redact(&[]), &[("/detect", "detect-empty")]);
    let misplaced = Filter {
        mask: Some(hash()),
        patterns: vec![own("a", "a")],
        detect: vec![Detector::Email],
        error_retain: Some(vec!["$.a".into()]),
        ..destroy(&["$.a"])
    };
    check_problems(
        &misplaced,
        &[
            ("/mask", "mask-needs-mask"),
            ("/detect", "detect-needs-redact"),
            ("/patterns", "patterns-need-redact"),
            ("/error_retain", "error-retain-needs-retain"),
        ],
    );
    let patterns = [
        own("a", "a"),
        own("a", "b"),
        own("email", "b"),
        own("Name", "b"),
        own("", "b"),
        own(&"n".repeat(33), "b"),
        own("b", "("),
        own("c", "a*"),
        own("d", r"(?<!a)b"),
        own("e", r"(a)\1"),
        own("f", r"\w{1000}{1000}"),
        own("g", &"x".repeat(1_025)),
        OwnPattern {
            flags: "gi".into(),
            ..own("h", "b")
        },
    ];
    let filter = Filter {
        patterns: patterns.to_vec(),
        ..redact(&[])
    };
    check_problems(
        &filter,
        &[
            ("/patterns/1/name", "pattern-name-invalid"),
            ("/patterns/2/name", "pattern-name-invalid"),
            ("/patterns/3/name", "pattern-name-invalid"),
            ("/patterns/4/name", "pattern-name-invalid"),
            ("/patterns/5/name", "pattern-name-invalid"),
            ("/patterns/6/pattern", "pattern-invalid"),
            ("/patterns/7/pattern", "pattern-matches-empty"),
            ("/patterns/8/pattern", "pattern-look-around"),
            ("/patterns/9/pattern", "pattern-backreference"),
            ("/patterns/10/pattern", "pattern-too-large"),
            ("/patterns/11/pattern", "pattern-too-long"),
            ("/patterns/12/flags", "flag-unknown"),
        ],
    );
    let many = Filter {
        patterns: vec![own("a", "a"); 17],
        ..redact(&[])
    };
    check_problems(&many, &[("/patterns", "too-many-patterns")]);
    assert!(redact_own("a", r"\w{9}").compiled_bytes_max() > 100_000);
    assert_eq!(redact(&["card"]).compiled_bytes_max(), 0);
}

#[test]
fn the_fingerprint_follows_what_the_filters_do() {
    let of = |filters: &[Filter]| set([filters, &[], &[], &[]]).fingerprint().to_owned();
    let first = of(&[retain(&["$.a", "$.b"])]);
    assert_eq!(first.len(), 16);
    assert_eq!(
        first,
        of(&[Filter {
            id: "flt_other".into(),
            ..retain(&["$.a", "$.b"])
        }])
    );
    assert_ne!(first, of(&[destroy(&["$.a", "$.b"])]));
    assert_ne!(first, of(&[retain(&["$.a"]), retain(&["$.b"])]));
    assert_ne!(
        first,
        set([&[], &[retain(&["$.a", "$.b"])], &[], &[]]).fingerprint()
    );
}

#[test]
fn the_json_form_is_strict_and_names_what_there_is() {
    let read = |text: &str| serde_json::from_str::<Filter>(text).map_err(|e| e.to_string());
    assert_eq!(
        read(r#"{"op":"destroy","paths":["$.a"]}"#),
        Ok(Filter {
            id: String::new(),
            ..destroy(&["$.a"])
        })
    );
    let full = concat!(
        r#"{"id":"flt_1","op":"retain","paths":["$.a"],"direction":"response","#,
        r#""notes":"why","error_retain":["$.error"]}"#
    );
    assert_eq!(serde_json::to_string(&read(full).unwrap()).unwrap(), full);
    let hides = r#"{"id":"","op":"redact","paths":[],"direction":"request","detect":["card"],"#
        .to_owned()
        + r#""patterns":[{"name":"n","pattern":"p","flags":"i"}]}"#;
    assert_eq!(
        serde_json::to_string(&read(&hides).unwrap()).unwrap(),
        hides
    );
    let last = r#"{"id":"","op":"mask","paths":["$.a"],"direction":"response","mask":{"last":4}}"#;
    assert_eq!(serde_json::to_string(&read(last).unwrap()).unwrap(), last);
    for (text, message) in [
        (
            r#"{"op":"hide","paths":[]}"#,
            "unknown variant `hide`, expected one of `retain`, `destroy`, `mask`, `redact`",
        ),
        (
            r#"{"op":"retain","path":[]}"#,
            "unknown field `path`, expected one of `id`, `op`",
        ),
        (
            r#"{"op":"redact","detect":["ssn"]}"#,
            "unknown variant `ssn`, expected one of `token`, `email`, `iban`, `card`",
        ),
        (
            r#"{"op":"mask","paths":[],"mask":"stars"}"#,
            "expected struct Mask",
        ),
        (
            r#"{"op":"mask","paths":[],"mask":{"last":256}}"#,
            "expected u8",
        ),
        (
            r#"{"op":"redact","patterns":[{"name":"a","regex":"b"}]}"#,
            "unknown field `regex`",
        ),
        (r#"{"paths":[]}"#, "missing field `op`"),
        (
            r#"{"op":"retain","paths":[],"direction":"both"}"#,
            "expected `response` or `request`",
        ),
    ] {
        let error = read(text).unwrap_err();
        assert!(error.contains(message), "{text}: {error}");
    }
}

#[test]
fn media_types_say_how_a_body_is_read() {
    for (content_type, kind) in [
        ("application/json", Kind::Json),
        ("Application/JSON ; charset=UTF-8", Kind::Json),
        ("application/json;charset=\"utf-8\"", Kind::Json),
        ("application/hal+json", Kind::Json),
        ("application/vnd.github.v3+json; x=1", Kind::Json),
        ("text/json", Kind::Json),
        ("application/json; charset=utf-16", Kind::Other),
        ("application/json; charset=utf-7", Kind::Other),
        ("text/event-stream", Kind::EventStream),
        ("text/event-stream; charset=utf-8", Kind::EventStream),
        ("application/x-ndjson", Kind::Ndjson),
        ("application/jsonl", Kind::Ndjson),
        ("application/stream+json", Kind::Ndjson),
        ("application/json-seq", Kind::Other),
        ("application/vnd.amazon.eventstream", Kind::Other),
        ("multipart/mixed", Kind::Other),
        ("text/html", Kind::Other),
        ("", Kind::Other),
        ("json", Kind::Other),
        ("+json", Kind::Other),
        ("/+json", Kind::Other),
        ("application/json, text/html", Kind::Other),
        ("text/html, a/b+json", Kind::Other),
    ] {
        assert_eq!(applies_to(content_type), kind, "{content_type}");
    }
}

fn json() -> impl Strategy<Value = String> {
    let scalar = prop::sample::select(vec![
        "null",
        "true",
        "1.0",
        "-0",
        "1e400",
        "12345678901234567890",
        "\"\\u0041\"",
        "\"é\"",
    ])
    .prop_map(String::from);
    scalar.prop_recursive(5, 60, 5, |inner| {
        let space = prop::sample::select(vec!["", " ", "\n  "]);
        prop_oneof![
            (space.clone(), prop::collection::vec(inner.clone(), 0..5))
                .prop_map(|(s, all)| format!("[{s}{}{s}]", all.join(&format!("{s},{s}")))),
            (space, prop::collection::vec(inner, 0..4)).prop_map(|(s, all)| {
                let names = ["\"a\"", "\"\\u0062\"", "\"c\"", "\"d\""];
                let members: Vec<String> = names
                    .iter()
                    .zip(all)
                    .map(|(name, v)| format!("{name}{s}:{v}{s}"))
                    .collect();
                format!("{{{s}{}}}", members.join(","))
            }),
        ]
    })
}

/// Filters that only leave things out.
fn filters() -> impl Strategy<Value = Vec<Filter>> {
    filters_of(vec![Op::Retain, Op::Destroy])
}

fn any_filters() -> impl Strategy<Value = Vec<Filter>> {
    filters_of(vec![Op::Retain, Op::Destroy, Op::Mask, Op::Redact])
}

fn filters_of(ops: Vec<Op>) -> impl Strategy<Value = Vec<Filter>> {
    let path = prop::sample::select(vec![
        "$.a",
        "$.b",
        "$..c",
        "$[0]",
        "$[-1]",
        "$[*].a",
        "$..[0]",
        "$.a[1:]",
        "$[?@.a]",
        "$.*.*",
        "$..[?@ == 1]",
        "$.d",
        "$..a[*]",
    ]);
    let with = prop::sample::select(vec![text("a\"b"), text("1"), last(1), last(3), hash()]);
    let pattern = prop::sample::select(vec!["[ac]", "b", "1|A", "é", ":"]);
    let details = (with, pattern, any::<bool>());
    let one = (
        prop::sample::select(ops),
        prop::collection::vec(path, 1..4),
        details,
    )
        .prop_map(|(op, paths, (with, pattern, everywhere))| {
            let mut filter = filter(&format!("{op:?}"), op, &paths);
            match op {
                Op::Mask => filter.mask = Some(with),
                Op::Redact => {
                    filter.patterns = vec![own(
                        &pattern.replace(|c: char| !c.is_ascii_lowercase(), "x"),
                        pattern,
                    )];
                    if everywhere {
                        filter.paths.clear();
                    }
                }
                Op::Retain | Op::Destroy => {}
            }
            filter
        });
    prop::collection::vec(one, 0..3)
}

/// The scalars of a document with their exact text, in order.
fn scalars(text: &str) -> Vec<String> {
    let document = crate::json_text::JsonText::parse(text.as_bytes()).unwrap();
    document
        .subtree(crate::json_text::NodeId::ROOT)
        .filter(|id| !document.kind(*id).is_container())
        .map(|id| document.raw(id).to_owned())
        .collect()
}

/// Whether `part` can be had from `whole` by leaving things out.
fn is_subsequence(part: &[String], whole: &[String]) -> bool {
    let mut rest = whole.iter();
    part.iter().all(|one| rest.any(|other| other == one))
}

proptest! {
    #[test]
    fn output_reads_again_and_adds_nothing(body in json(), a in filters(), b in filters()) {
        let applied = set([&a, &[], &b, &[]]).apply(body.as_bytes()).unwrap();
        let output = String::from_utf8(applied.body).unwrap();
        let kept = scalars(&output);
        let nulled = kept == ["null"];
        prop_assert!(nulled || is_subsequence(&kept, &scalars(&body)), "{} from {}", output, body);
        prop_assert_eq!(applied.changed.is_empty(), output == body);
    }

    /// One pass over one table is the same as parsing again after every scope.
    #[test]
    fn scopes_compose(body in json(), a in any_filters(), b in any_filters()) {
        let together = set([&a, &[], &[], &b]).apply(body.as_bytes()).unwrap().body;
        let first = set([&a, &[], &[], &[]]).apply(body.as_bytes()).unwrap().body;
        let then = set([&b, &[], &[], &[]]).apply(&first).unwrap().body;
        prop_assert_eq!(String::from_utf8(together), String::from_utf8(then));
    }

    /// In a scope, the order of the filters does not matter.
    #[test]
    fn order_within_a_scope_does_not_matter(body in json(), filters in any_filters()) {
        let mut turned = filters.clone();
        turned.reverse();
        let one = set([&filters, &[], &[], &[]]).apply(body.as_bytes()).unwrap().body;
        let other = set([&turned, &[], &[], &[]]).apply(body.as_bytes()).unwrap().body;
        prop_assert_eq!(String::from_utf8(one), String::from_utf8(other));
    }

    #[test]
    fn random_bytes_never_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..100),
        filters in filters(),
    ) {
        let set = set([&filters, &[], &[], &[]]);
        let _ = set.apply(&bytes);
        let _ = set.apply_error(&bytes, "application/json");
    }
}
