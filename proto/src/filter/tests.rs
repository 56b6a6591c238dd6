//! What filters let through, and what they refuse.

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
    }
}

fn retain(paths: &[&str]) -> Filter {
    filter("flt_r", Op::Retain, paths)
}

fn destroy(paths: &[&str]) -> Filter {
    filter("flt_d", Op::Destroy, paths)
}

fn set(scopes: [&[Filter]; 4]) -> FilterSet {
    FilterSet::compile(scopes, Direction::Response).unwrap()
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
    let compiled = FilterSet::compile([&[requests], &[], &[], &[]], Direction::Request).unwrap();
    assert_eq!(compiled.apply(br#"{"a":1}"#).unwrap().body, b"{}");
}

fn check_error(filters: &[Filter], content_type: &str, body: &str, expected: ErrorBody) {
    let found = set([&[], &[], filters, &[]]).apply_error(body.as_bytes(), content_type);
    assert_eq!(found, expected, "{filters:?} on {content_type} {body}");
}

#[test]
fn error_bodies_show_no_more_than_filtered_ones() {
    let body = r#"{"error":"exists","existing":{"email":"e","ssn":"1"}}"#;
    let filtered = |text: &str| ErrorBody::Filtered(text.as_bytes().to_vec());
    let with_error = |paths: &[&str]| Filter {
        error_retain: Some(vec!["$.error".into()]),
        ..retain(paths)
    };
    let json = "application/json";
    check_error(&[retain(&["$.id"])], json, body, ErrorBody::Blank);
    check_error(
        &[with_error(&["$.id"])],
        json,
        body,
        filtered(r#"{"error":"exists"}"#),
    );
    check_error(
        &[with_error(&["$.id"]), retain(&["$.x"])],
        json,
        body,
        ErrorBody::Blank,
    );
    check_error(
        &[destroy(&["$..ssn"])],
        "application/problem+json",
        body,
        filtered(r#"{"error":"exists","existing":{"email":"e"}}"#),
    );
    check_error(
        &[destroy(&["$..ssn"])],
        "text/html",
        "<p>1</p>",
        ErrorBody::Blank,
    );
    check_error(
        &[destroy(&["$..ssn"])],
        "text/plain",
        body,
        ErrorBody::Blank,
    );
    check_error(&[destroy(&["$..ssn"])], json, "<p>1</p>", ErrorBody::Blank);
    check_error(
        &[destroy(&["$..ssn"])],
        json,
        r#"{"a":1,"a":2}"#,
        ErrorBody::Blank,
    );
    check_error(
        &[destroy(&["$..ssn"])],
        "text/event-stream",
        "data: 1\n\n",
        ErrorBody::Blank,
    );
    check_error(&[retain(&["$.id"])], "", "", ErrorBody::Pass);
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
fn compile_reports_the_problems_of_all_scopes() {
    let bad = [retain(&["$.a"]), destroy(&["x", "y"])];
    let many = vec![retain(&["$.a"]); FILTERS_PER_SCOPE_MAX + 1];
    let problems =
        FilterSet::compile([&bad, &[], &many, &bad[1..]], Direction::Response).unwrap_err();
    let found: Vec<&str> = problems
        .iter()
        .map(|problem| problem.pointer.as_str())
        .collect();
    assert_eq!(
        found,
        [
            "/target_credential/1/paths/0",
            "/target_credential/1/paths/1",
            "/proxy_credential",
            "/proxy/0/paths/0",
            "/proxy/0/paths/1",
        ]
    );
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
    for (text, message) in [
        (
            r#"{"op":"mask","paths":[]}"#,
            "unknown variant `mask`, expected `retain` or `destroy`",
        ),
        (
            r#"{"op":"retain","path":[]}"#,
            "unknown field `path`, expected one of `id`, `op`",
        ),
        (r#"{"op":"retain"}"#, "missing field `paths`"),
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

fn filters() -> impl Strategy<Value = Vec<Filter>> {
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
    let op = prop::sample::select(vec![Op::Retain, Op::Destroy]);
    let one = (op, prop::collection::vec(path, 1..4))
        .prop_map(|(op, paths)| filter(&format!("{op:?}"), op, &paths));
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
    fn scopes_compose(body in json(), a in filters(), b in filters()) {
        let together = set([&a, &[], &[], &b]).apply(body.as_bytes()).unwrap().body;
        let first = set([&a, &[], &[], &[]]).apply(body.as_bytes()).unwrap().body;
        let then = set([&b, &[], &[], &[]]).apply(&first).unwrap().body;
        prop_assert_eq!(String::from_utf8(together), String::from_utf8(then));
    }

    /// In a scope, the order of the filters does not matter.
    #[test]
    fn order_within_a_scope_does_not_matter(body in json(), filters in filters()) {
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
