//! What reads as JSON, and what an edit leaves of it.

use proptest::prelude::*;
use serde::de::IgnoredAny;

use super::*;

fn check_read(text: impl AsRef<[u8]>, expected: Result<(), JsonError>) {
    let text = text.as_ref();
    let read = JsonText::parse(text).map(|_| ());
    assert_eq!(read, expected, "{}", String::from_utf8_lossy(text));
}

fn not_json(offset: usize, reason: &'static str) -> Result<(), JsonError> {
    Err(JsonError::NotJson { offset, reason })
}

#[test]
fn json_is_what_every_parser_reads_the_same_way() {
    for text in [
        "{}",
        "[]",
        " [ ] ",
        "null",
        "true",
        "false",
        "0",
        "-0",
        "1.0",
        "1e400",
        "-1.5E-7",
        "12345678901234567890",
        r#""""#,
        r#""\u0041\n\/\\\"""#,
        r#""\ud83d\ude00""#,
        r#"{"a":[{"b":null},[],{}],"c":1}"#,
        "\t\r\n 1 \t\r\n",
        r#"{"":0}"#,
        "\"\u{feff}é\u{7f}\"",
        r#"{"a":1,"A":1,"\u00e1":1}"#,
        r#""\ud800 a lone surrogate in a value""#,
    ] {
        check_read(text, Ok(()));
    }
    check_read("", not_json(0, "a value is missing"));
    check_read("  ", not_json(2, "a value is missing"));
    check_read("\u{feff}{}", not_json(0, "no value begins like this"));
    check_read([b'"', 0xff, b'"'], not_json(1, "invalid UTF-8"));
    check_read([b'"', 0xed, 0xa0, 0x80, b'"'], not_json(1, "invalid UTF-8"));
    check_read("NaN", not_json(0, "no value begins like this"));
    check_read("nul", not_json(0, "no value begins like this"));
    check_read("truex", not_json(4, "something follows the value"));
    check_read("-Infinity", not_json(1, "a digit expected"));
    check_read("01", not_json(1, "something follows the value"));
    check_read("+1", not_json(0, "no value begins like this"));
    check_read(".5", not_json(0, "no value begins like this"));
    check_read("1.", not_json(2, "a digit expected"));
    check_read("1e+", not_json(3, "a digit expected"));
    check_read("{} {}", not_json(3, "something follows the value"));
    check_read("[1,]", not_json(3, "no value begins like this"));
    check_read("[1 2]", not_json(3, "`,` or `]` expected"));
    check_read("[1}", not_json(2, "`,` or `]` expected"));
    check_read("[", not_json(1, "a value is missing"));
    check_read(r#"{"a"}"#, not_json(4, "`:` expected"));
    check_read(r#"{"a":1,}"#, not_json(7, "a member's name expected"));
    check_read("{a:1}", not_json(1, "a member's name expected"));
    check_read(r#"{"a":1]"#, not_json(6, "`,` or `}` expected"));
    check_read("'a'", not_json(0, "no value begins like this"));
    check_read("\"a", not_json(2, "a string is not closed"));
    check_read("\"a\nb\"", not_json(2, "a control character in a string"));
    check_read(r#""\x41""#, not_json(1, "no such escape"));
    check_read(r#""\u00g0""#, not_json(1, "no such escape"));
    check_read(r#""\"#, not_json(1, "no such escape"));
    check_read("[1] // x", not_json(4, "something follows the value"));
}

#[test]
fn two_members_of_one_name_are_refused_at_any_level() {
    check_read(
        r#"{"a":1,"a":1}"#,
        Err(JsonError::DuplicateKey { offset: 0 }),
    );
    check_read(
        r#"[{"b":{"a":1,"\u0061":2}}]"#,
        Err(JsonError::DuplicateKey { offset: 6 }),
    );
    check_read(r#"{"a":{"a":1},"b":{"a":1}}"#, Ok(()));
    check_read(r#"{"\ud800":1}"#, not_json(1, "lone surrogate in a name"));
    let many: Vec<String> = (0..50).map(|n| format!("\"k{n}\":{n}")).collect();
    check_read(format!("{{{}}}", many.join(",")), Ok(()));
    check_read(
        format!("{{{},\"k7\":0}}", many.join(",")),
        Err(JsonError::DuplicateKey { offset: 0 }),
    );
}

#[test]
fn depth_and_values_are_capped() {
    let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    check_read(nested(DEPTH_MAX), Ok(()));
    check_read(
        nested(DEPTH_MAX + 1),
        Err(JsonError::TooDeep { offset: DEPTH_MAX }),
    );
    check_read(
        "[".repeat(1_000_000),
        Err(JsonError::TooDeep { offset: DEPTH_MAX }),
    );
    check_read(
        "{\"a\":".repeat(1_000),
        Err(JsonError::TooDeep {
            offset: 5 * DEPTH_MAX,
        }),
    );
    let wide = |count: usize| format!("[{}0]", "0,".repeat(count - 1));
    check_read(wide(NODES_MAX - 1), Ok(()));
    check_read(wide(NODES_MAX), Err(JsonError::TooManyNodes));
}

/// Finds a value by a JSON pointer whose names need no escapes.
fn at(document: &JsonText<'_>, pointer: &str) -> NodeId {
    pointer.split('/').skip(1).fold(NodeId::ROOT, |id, step| {
        let mut children = document.children(id).enumerate();
        let found = children.find(|(index, child)| match document.kind(id) {
            Kind::Array => index.to_string() == step,
            _ => document.is_named(*child, step),
        });
        found.unwrap_or_else(|| panic!("no {pointer}")).1
    })
}

fn check_edit(text: &str, edit: fn(&mut JsonText<'_>, &[NodeId]), at_: &[&str], expected: &str) {
    let mut document = JsonText::parse(text.as_bytes()).unwrap();
    let ids: Vec<NodeId> = at_.iter().map(|pointer| at(&document, pointer)).collect();
    edit(&mut document, &ids);
    assert_eq!(document.render(), expected, "{text} {at_:?}");
}

fn check_remove(text: &str, removed: &[&str], expected: &str) {
    let remove = |document: &mut JsonText<'_>, ids: &[NodeId]| {
        for id in ids {
            document.remove(*id);
        }
    };
    check_edit(text, remove, removed, expected);
}

fn check_retain(text: &str, kept: &[&str], expected: &str) {
    let retain = |document: &mut JsonText<'_>, ids: &[NodeId]| {
        document.retain(ids);
    };
    check_edit(text, retain, kept, expected);
}

#[test]
fn what_is_not_removed_keeps_its_bytes() {
    let text = r#"{"z":1.0,"a":1e400,"m":-0,"k":12345678901234567890,"s":"\u0041\/"}"#;
    check_remove(text, &[], text);
    check_remove(
        text,
        &["/a", "/s"],
        r#"{"z":1.0,"m":-0,"k":12345678901234567890}"#,
    );
    check_remove("[1,2,3]", &["/0"], "[2,3]");
    check_remove("[1,2,3]", &["/1"], "[1,3]");
    check_remove("[1,2,3]", &["/2"], "[1,2]");
    check_remove("[1,2,3]", &["/0", "/1", "/2"], "[]");
    check_remove("[1,2,3,4,5]", &["/0", "/2", "/3"], "[2,5]");
    check_remove(r#"{"a":{"b":{"c":1}}}"#, &["/a/b/c"], r#"{"a":{"b":{}}}"#);
    check_remove(
        r#"{"a":{"b":1,"c":2},"d":3}"#,
        &["/a/b", "/d"],
        r#"{"a":{"c":2}}"#,
    );
    check_remove(r#"{"a":{"b":1},"d":3}"#, &["/a/b", "/a"], r#"{"d":3}"#);
    check_remove("[1]", &[""], "[1]");
}

#[test]
fn whitespace_stays_around_what_stays() {
    let text = "\n{\n  \"a\": 1,\n  \"b\": 2,\n  \"c\": 3\n}\n";
    check_remove(text, &["/a"], "\n{\n  \"b\": 2,\n  \"c\": 3\n}\n");
    check_remove(text, &["/b"], "\n{\n  \"a\": 1,\n  \"c\": 3\n}\n");
    check_remove(text, &["/c"], "\n{\n  \"a\": 1,\n  \"b\": 2\n}\n");
    check_remove(text, &["/a", "/b", "/c"], "\n{}\n");
    check_remove("[ 1 , 2 , 3 ]", &["/0"], "[ 2 , 3 ]");
    check_remove("[ 1 , 2 , 3 ]", &["/1"], "[ 1, 3 ]");
    check_remove("[ 1 , 2 , 3 ]", &["/2"], "[ 1 , 2 ]");
}

#[test]
fn retain_keeps_subtrees_and_the_containers_around_them() {
    let text = r#"{"a":{"b":1,"c":[2,{"d":3,"e":4}]},"f":5}"#;
    check_retain(text, &["/f"], r#"{"f":5}"#);
    check_retain(text, &["/a/c/1/e"], r#"{"a":{"c":[{"e":4}]}}"#);
    check_retain(text, &["/a/b", "/f"], r#"{"a":{"b":1},"f":5}"#);
    check_retain(
        text,
        &["/a/c", "/a/c/1/d"],
        r#"{"a":{"c":[2,{"d":3,"e":4}]}}"#,
    );
    check_retain(
        text,
        &["/a/c/1/d", "/a/c"],
        r#"{"a":{"c":[2,{"d":3,"e":4}]}}"#,
    );
    check_retain(text, &[""], text);
    check_retain(text, &[], "{}");
    check_retain(" [1, 2] ", &[], " [] ");
    check_retain(" \"secret\" ", &[], " null ");
    check_retain("7", &[""], "7");
}

#[test]
fn what_is_removed_is_not_seen_by_a_second_edit() {
    let mut document = JsonText::parse(br#"[1,[2,3],{"a":4}]"#).unwrap();
    document.remove(at(&document, "/0"));
    document.remove(at(&document, "/0/1"));
    assert_eq!(document.children(NodeId::ROOT).count(), 2);
    assert_eq!(document.subtree(NodeId::ROOT).count(), 5);
    document.retain(&[at(&document, "/0")]);
    assert_eq!(document.render(), "[[2]]");
    assert!(
        !document.retain(&[at(&document, "/0")]),
        "nothing more to remove"
    );
}

#[test]
fn names_and_strings_are_compared_without_their_escapes() {
    let document = JsonText::parse(br#"{"\u00e9\ud83d\ude00":"a\tb\ud800"}"#).unwrap();
    let member = document.children(NodeId::ROOT).next().unwrap();
    assert!(document.is_named(member, "é😀"));
    assert!(!document.is_named(member, "é"));
    assert!(!document.is_named(member, ""));
    assert_eq!(document.name(member), "é😀");
    assert_eq!(document.string(member), "a\tb\u{fffd}");
}

/// Text that is almost JSON often enough to reach every branch.
fn json_like() -> impl Strategy<Value = String> {
    let token = prop::sample::select(vec![
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        "\"a\"",
        "\"b\"",
        "\"\\u0061\"",
        "\"\\ud800\"",
        "1",
        "-0",
        "1.5e3",
        "01",
        "null",
        "true",
        "\"",
        "\\",
        " ",
        "\n",
        "é",
        "\u{0}",
        "{\"a\":",
        "[1,",
    ]);
    prop::collection::vec(token, 0..24).prop_map(|tokens| tokens.concat())
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = JsonText::parse(&bytes);
    }

    #[test]
    fn serde_json_agrees_on_what_is_json(text in json_like()) {
        let theirs = serde_json::from_str::<IgnoredAny>(&text).is_ok();
        match JsonText::parse(text.as_bytes()) {
            Ok(document) => {
                prop_assert!(theirs, "{}", text);
                prop_assert_eq!(document.render(), text);
            }
            Err(JsonError::NotJson { reason: "lone surrogate in a name", .. }) => {}
            Err(JsonError::NotJson { .. }) => prop_assert!(!theirs, "{}", text),
            Err(JsonError::DuplicateKey { .. }) => {}
            Err(other) => prop_assert!(false, "{}: {}", other, text),
        }
    }

    /// Whatever is cut out, what is left reads again, to the same values.
    #[test]
    fn any_cut_leaves_json(text in json_like(), marks in prop::collection::vec(any::<bool>(), 24)) {
        let Ok(mut document) = JsonText::parse(text.as_bytes()) else { return Ok(()) };
        let all: Vec<NodeId> = document.subtree(NodeId::ROOT).collect();
        for (id, mark) in all.iter().zip(&marks) {
            if *mark {
                document.remove(*id);
            }
        }
        let rendered = document.render();
        let again = JsonText::parse(rendered.as_bytes()).unwrap();
        let scalars = |document: &JsonText<'_>| -> Vec<String> {
            document
                .subtree(NodeId::ROOT)
                .filter(|id| !document.kind(*id).is_container())
                .map(|id| document.raw(id).to_owned())
                .collect()
        };
        prop_assert_eq!(scalars(&document), scalars(&again));
    }
}
