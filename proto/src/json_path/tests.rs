//! What paths select, with `serde_json_path` as the second opinion, and the caps.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

/// The example of RFC 9535 §1.5.
const STORE: &str = r#"{ "store": {
    "book": [
      { "category": "reference", "author": "Nigel Rees",
        "title": "Sayings of the Century", "price": 8.95 },
      { "category": "fiction", "author": "Evelyn Waugh",
        "title": "Sword of Honour", "price": 12.99 },
      { "category": "fiction", "author": "Herman Melville",
        "title": "Moby Dick", "isbn": "0-553-21311-3", "price": 8.99 },
      { "category": "fiction", "author": "J. R. R. Tolkien",
        "title": "The Lord of the Rings", "isbn": "0-395-19395-8", "price": 22.99 }
    ],
    "bicycle": { "color": "red", "price": 399 }
} }"#;

/// The JSON pointers of what a path selects, in document order.
fn pointers(document: &JsonText<'_>, path: &JsonPath) -> Result<Vec<String>, SelectError> {
    let mut all = Vec::new();
    let mut open = vec![(NodeId::ROOT, String::new())];
    while let Some((id, pointer)) = open.pop() {
        for (index, child) in document.children(id).enumerate() {
            let step = match document.kind(id) {
                crate::json_text::Kind::Array => index.to_string(),
                _ => document.name(child).replace('~', "~0").replace('/', "~1"),
            };
            open.push((child, format!("{pointer}/{step}")));
        }
        all.push((id, pointer));
    }
    let selected = path.select(document, &mut Work::for_one_body())?;
    let find = |id: NodeId| {
        all.iter()
            .find(|(other, _)| *other == id)
            .unwrap()
            .1
            .clone()
    };
    Ok(selected.into_iter().map(find).collect())
}

fn select(text: &str, path: &str) -> Vec<String> {
    let document = JsonText::parse(text.as_bytes()).unwrap();
    let parsed = JsonPath::parse(path).unwrap_or_else(|fault| panic!("{path}: {fault}"));
    pointers(&document, &parsed).unwrap()
}

/// The same by serde_json_path, in the order of its result, made a set by the caller.
fn oracle(text: &str, path: &str) -> BTreeSet<String> {
    let value: serde_json::Value = serde_json::from_str(text).unwrap();
    let path = serde_json_path::JsonPath::parse(path).unwrap();
    path.query_located(&value)
        .locations()
        .map(|location| location.to_json_pointer())
        .collect()
}

/// One row: a path, what it selects, and serde_json_path's consent.
fn check(text: &str, path: &str, expected: &[&str]) {
    let found = select(text, path);
    assert_eq!(found, expected, "{path}");
    let found: BTreeSet<String> = found.into_iter().collect();
    assert_eq!(found, oracle(text, path), "serde_json_path on {path}");
}

#[test]
fn the_examples_of_rfc_9535_section_1_5() {
    let book = |rest: &'static str| (0..4).map(move |n| format!("/store/book/{n}{rest}"));
    let authors: Vec<String> = book("/author").collect();
    let authors: Vec<&str> = authors.iter().map(String::as_str).collect();
    check(STORE, "$.store.book[*].author", &authors);
    check(STORE, "$..author", &authors);
    check(STORE, "$.store.*", &["/store/book", "/store/bicycle"]);
    let prices: Vec<String> = book("/price")
        .chain(["/store/bicycle/price".into()])
        .collect();
    let prices: Vec<&str> = prices.iter().map(String::as_str).collect();
    check(STORE, "$.store..price", &prices);
    check(STORE, "$..book[2]", &["/store/book/2"]);
    check(STORE, "$..book[2].author", &["/store/book/2/author"]);
    check(STORE, "$..book[2].publisher", &[]);
    check(STORE, "$..book[-1]", &["/store/book/3"]);
    check(STORE, "$..book[0,1]", &["/store/book/0", "/store/book/1"]);
    check(STORE, "$..book[:2]", &["/store/book/0", "/store/book/1"]);
    check(
        STORE,
        "$..book[?@.isbn]",
        &["/store/book/2", "/store/book/3"],
    );
    check(
        STORE,
        "$..book[?@.price<10]",
        &["/store/book/0", "/store/book/2"],
    );
    assert_eq!(select(STORE, "$..*").len(), 27);
}

#[test]
fn names_indexes_and_slices() {
    let names = r#"{"o":{"j j":{"k.k":3}},"'":{"@":2},"\u263a":1,"a~/":[0]}"#;
    check(names, "$.o['j j']", &["/o/j j"]);
    check(names, "$.o['j j']['k.k']", &["/o/j j/k.k"]);
    check(names, r#"$.o["j j"]["k.k"]"#, &["/o/j j/k.k"]);
    check(names, r#"$["'"]["@"]"#, &["/'/@"]);
    check(names, r"$['\'']['@']", &["/'/@"]);
    check(names, "$.☺", &["/☺"]);
    check(names, r"$['\u263A']", &["/☺"]);
    check(names, "$['a~/'][0]", &["/a~0~1/0"]);
    check(names, "$ .o\n[ 'j j' , 'x' ]", &["/o/j j"]);
    check(names, "$", &[""]);
    check(names, "$[0]", &[]);
    let list = r#"["a","b","c","d","e","f","g"]"#;
    check(list, "$[1]", &["/1"]);
    check(list, "$[-2]", &["/5"]);
    check(list, "$[7]", &[]);
    check(list, "$[-8]", &[]);
    check(list, "$.a", &[]);
    check(list, "$[1:3]", &["/1", "/2"]);
    check(list, "$[5:]", &["/5", "/6"]);
    check(list, "$[1:5:2]", &["/1", "/3"]);
    check(list, "$[5:1:-2]", &["/3", "/5"]);
    check(list, "$[::-1]", &["/0", "/1", "/2", "/3", "/4", "/5", "/6"]);
    check(list, "$[::-3]", &["/0", "/3", "/6"]);
    check(list, "$[-3:]", &["/4", "/5", "/6"]);
    check(list, "$[:-5]", &["/0", "/1"]);
    check(list, "$[1:5:0]", &[]);
    check(list, "$[10:0:-1]", &["/1", "/2", "/3", "/4", "/5", "/6"]);
    check(list, "$[0, 0:2 , -1]", &["/0", "/1", "/6"]);
    check(list, "$[ 1 : 5 : 2 ]", &["/1", "/3"]);
    check("[]", "$[0:9:3]", &[]);
    check("[]", "$[::-1]", &[]);
    check("1", "$.*", &[]);
    check("1", "$..*", &[]);
}

#[test]
fn filter_expressions_of_rfc_9535_section_2_3_5() {
    let text = r#"{"a":[3,5,1,2,4,6,{"b":"j"},{"b":"k"},{"b":{}},{"b":"kilo"}],
        "o":{"p":1,"q":2,"r":3,"s":5,"t":{"u":6}},"e":"f"}"#;
    check(text, "$.a[?@.b == 'kilo']", &["/a/9"]);
    check(text, "$.a[?(@.b == 'kilo')]", &["/a/9"]);
    check(text, "$.a[?@>3.5]", &["/a/1", "/a/4", "/a/5"]);
    check(text, "$.a[?@.b]", &["/a/6", "/a/7", "/a/8", "/a/9"]);
    check(text, "$[?@.*]", &["/a", "/o"]);
    check(text, "$[?@[?@.b]]", &["/a"]);
    check(text, "$.o[?@<3, ?@<3]", &["/o/p", "/o/q"]);
    check(text, r#"$.a[?@<2 || @.b == "k"]"#, &["/a/2", "/a/7"]);
    check(text, r#"$.a[?match(@.b, "[jk]")]"#, &["/a/6", "/a/7"]);
    check(
        text,
        r#"$.a[?search(@.b, "[jk]")]"#,
        &["/a/6", "/a/7", "/a/9"],
    );
    check(text, "$.o[?@>1 && @<4]", &["/o/q", "/o/r"]);
    check(text, "$.o[?@.u || @.x]", &["/o/t"]);
    check(
        text,
        "$.a[?@.b == $.x]",
        &["/a/0", "/a/1", "/a/2", "/a/3", "/a/4", "/a/5"],
    );
    assert_eq!(select(text, "$.a[?@ == @]").len(), 10);
    check(
        text,
        "$.a[?!@.b]",
        &["/a/0", "/a/1", "/a/2", "/a/3", "/a/4", "/a/5"],
    );
    check(
        text,
        "$.a[?!(@.b == 'j' || @ < 6)]",
        &["/a/5", "/a/7", "/a/8", "/a/9"],
    );
    check(text, "$.a[?length(@.b) > 1]", &["/a/9"]);
    check(text, "$.a[?length(@.b) == 0]", &["/a/8"]);
    check(text, "$[?count(@.*) == 5]", &["/o"]);
    check(text, "$[?value(@.*) == 6]", &[]);
    check(text, "$.o[?value(@.*) == 6]", &["/o/t"]);
    check(text, "$.o[?@ == $.a[2]]", &["/o/p"]);
    check(text, "$[?@ == 'f']", &["/e"]);
    check(text, "$[?'f' == @]", &["/e"]);
}

/// RFC 9535 §2.3.5.3.1, the table of comparisons.
#[test]
fn comparisons_follow_the_rfc() {
    let text = r#"{"obj":{"x":"y"},"arr":[2,3],"yes":true,"nil":null,"one":1.0,"big":1e400}"#;
    for (test, holds) in [
        ("$.absent1 == $.absent2", true),
        ("$.absent1 <= $.absent2", true),
        ("$.absent == 'g'", false),
        ("$.absent1 != $.absent2", false),
        ("$.absent != 'g'", true),
        ("1 <= 2", true),
        ("1 > 2", false),
        ("13 == '13'", false),
        ("'a' <= 'b'", true),
        ("'a' > 'b'", false),
        ("$.obj == $.arr", false),
        ("$.obj != $.arr", true),
        ("$.obj == $.obj", true),
        ("$.obj != $.obj", false),
        ("$.arr == $.arr", true),
        ("$.obj == 17", false),
        ("$.obj != 17", true),
        ("$.obj <= $.arr", false),
        ("$.obj < $.arr", false),
        ("$.obj <= $.obj", true),
        ("$.arr <= $.arr", true),
        ("1 <= $.arr", false),
        ("1 >= $.arr", false),
        ("true <= true", true),
        ("true > true", false),
        ("$.nil == null", true),
        ("$.nil <= null", true),
        ("$.nil == false", false),
        ("$.one == 1", true),
        ("$.one == 1e0", true),
        ("$.one == -1", false),
        ("-0 == 0", true),
        ("-0.0 == 0", true),
        ("1.5E+1 == 15", true),
        ("9007199254740993 == 9007199254740992", false),
        ("$.big > 1e300", true),
        ("'\\u0041' == 'A'", true),
        ("$.yes == true", true),
    ] {
        let selected = select(text, &format!("$[?{test}]"));
        assert_eq!(selected.len(), if holds { 6 } else { 0 }, "{test}");
    }
}

#[test]
fn equality_goes_down_into_arrays_and_objects() {
    let text = r#"[[{"a":1,"b":[2,{"c":null}]},{"b":[2,{"\u0063":null}],"a":1.0}],
        [{"a":1},{"a":1,"b":2}],[{"a":1,"b":2},{"a":1}],[[1,2],[2,1]],[[],{}],[[],[]]]"#;
    // Not by serde_json_path, for which 1 and 1.0 are equal alone but not inside a container.
    assert_eq!(select(text, "$[?@[0] == @[1]]"), ["/0", "/5"]);
}

fn check_refused(path: &str, code: &str, offset: usize) {
    match JsonPath::parse(path) {
        Ok(_) => panic!("{path} was accepted"),
        Err(fault) => assert_eq!(
            (fault.code, fault.offset),
            (code, offset),
            "{path}: {fault}"
        ),
    }
}

#[test]
fn what_rfc_9535_does_not_allow_is_refused_where_it_stands() {
    for (path, offset) in [
        ("", 0),
        (" $", 0),
        ("a", 0),
        ("@.a", 0),
        ("$ ", 1),
        ("$.", 2),
        ("$..", 3),
        ("$.1", 2),
        ("$. a", 2),
        ("$.a b", 3),
        ("$a", 1),
        ("$[", 2),
        ("$[]", 2),
        ("$[a]", 2),
        ("$['a'", 5),
        ("$['a", 4),
        ("$[0 1]", 4),
        ("$[01]", 2),
        ("$[-0]", 2),
        ("$[-]", 2),
        ("$[1.0]", 3),
        ("$[9007199254740992]", 2),
        ("$[1:2:3:4]", 7),
        ("$[::01]", 4),
        ("$['a',]", 6),
        ("$[\"\\'\"]", 4),
        ("$['\\x']", 4),
        ("$['\\ud800']", 4),
        ("$['\u{1}']", 3),
        ("$.*a", 3),
        ("$[?]", 3),
        ("$[?@.a=1]", 6),
        ("$[?@.a==]", 8),
        ("$[?1]", 3),
        ("$[?true]", 3),
        ("$[?@.* == 1]", 3),
        ("$[?@.a == @[0,1]]", 10),
        ("$[?(@.a]", 7),
        ("$[?!1]", 4),
        ("$[?@.a == 01]", 10),
        ("$[?@.a == 1.]", 10),
        ("$[?@.a == .1]", 10),
        ("$[?@.a == 1e]", 10),
        ("$[?@.a && ]", 10),
        ("$[?@.a == {}]", 10),
        ("$[?foo(@)]", 3),
        ("$[?count(1) > 1]", 9),
        ("$[?length(@.*) > 1]", 10),
        ("$[?length(@) ]", 3),
        ("$[?count (@.*)]", 8),
        ("$[?match(@.a)]", 12),
        ("$[?match(@.a,'a') == true]", 3),
        ("$[?!@.a == 1]", 8),
        ("$[?@.a == 'x' == 'y']", 14),
    ] {
        check_refused(path, "path-invalid", offset);
        assert!(
            serde_json_path::JsonPath::parse(path).is_err(),
            "serde_json_path takes {path}"
        );
    }
}

#[test]
fn caps_are_checked_at_save() {
    check_refused("$..a..b", "path-too-complex", 4);
    check_refused("$..[?@..x]", "path-too-complex", 6);
    check_refused("$[?count($..x) > 1]", "path-too-complex", 10);
    check_refused(
        &format!("$.{}", "a".repeat(PATH_BYTES_MAX)),
        "path-too-complex",
        0,
    );
    check_refused(
        &".a".repeat(SEGMENTS_MAX + 1).replacen('.', "$.", 1),
        "path-too-complex",
        65,
    );
    let selectors = vec!["0"; SELECTORS_MAX + 1].join(",");
    check_refused(&format!("$[{selectors}]"), "path-too-complex", 66);
    let operands = vec!["@"; SELECTORS_MAX + 1].join("&&");
    check_refused(&format!("$[?{operands}]"), "path-too-complex", 99);
    let nested = |depth: usize| format!("${}{}", "[?@".repeat(depth), "]".repeat(depth));
    assert!(JsonPath::parse(&nested(NESTING_MAX)).is_ok());
    check_refused(
        &nested(NESTING_MAX + 1),
        "path-too-complex",
        1 + 3 * NESTING_MAX + 2,
    );
    check_refused(&nested(250), "path-too-complex", 1 + 3 * NESTING_MAX + 2);
    check_refused(
        &format!("$[?{}", "(".repeat(500)),
        "path-too-complex",
        3 + NESTING_MAX,
    );
    check_refused(
        &format!("$[?{}", "!(".repeat(400)),
        "path-too-complex",
        3 + 2 * 8,
    );
    check_refused(
        &format!("$[?{}", "length(".repeat(100)),
        "path-too-complex",
        3 + 7 * 8,
    );
    check_refused("$[?match(@.a, @.b)]", "path-pattern-invalid", 14);
    check_refused("$[?match(@.a, '(')]", "path-pattern-invalid", 17);
    check_refused("$[?match(@.a, 'a)|(b')]", "path-pattern-invalid", 21);
    check_refused("$[?search(@, '(a{999}){999}')]", "path-pattern-invalid", 28);
    assert!(JsonPath::parse("$..a[*].b").is_ok());
}

fn select_error(text: &str, path: &str) -> Option<SelectError> {
    let document = JsonText::parse(text.as_bytes()).unwrap();
    JsonPath::parse(path)
        .unwrap()
        .select(&document, &mut Work::for_one_body())
        .err()
}

#[test]
fn caps_hold_at_run_time() {
    let list = |count: usize| format!("[{}0]", "0,".repeat(count - 1));
    assert_eq!(select_error(&list(RESULTS_MAX), "$[*]"), None);
    assert_eq!(
        select_error(&list(RESULTS_MAX + 1), "$[*]"),
        Some(SelectError::TooManyResults)
    );
    assert_eq!(select_error(&list(99_999), "$..x"), None);
    assert_eq!(
        select_error(&list(100_001), "$..x"),
        Some(SelectError::TooManyVisits)
    );
    assert_eq!(
        select_error(&list(100_001), "$[?@.x]"),
        Some(SelectError::TooManyVisits)
    );
    // Reached values are what counts, not what lies beside them.
    assert_eq!(select_error(&list(500_000), "$[499999]"), None);
    // A pair of everything with everything, under both caps of one path alone.
    let quadratic = Some(SelectError::TooManySteps);
    assert_eq!(
        select_error(&list(50_000), "$[?@ == $[-1] && @ == 1]"),
        quadratic
    );
    assert_eq!(
        select_error(&list(400), "$[?count($[*]) == 0]"),
        Some(SelectError::TooManyVisits)
    );
    let long = format!("[{}\"{}\"]", "0,".repeat(9_000), "é".repeat(200_000));
    assert_eq!(select_error(&long, "$[?$[-1] == 'x']"), quadratic);
    assert_eq!(select_error(&long, "$[?search($[-1], 'x')]"), quadratic);
}

#[test]
fn work_is_shared_by_the_paths_over_one_body() {
    let text = format!("[{}0]", "0,".repeat(400_000));
    let document = JsonText::parse(text.as_bytes()).unwrap();
    let path = JsonPath::parse("$[-1]").unwrap();
    let mut work = Work::for_one_body();
    let results: Vec<bool> = (0..8)
        .map(|_| path.select(&document, &mut work).is_ok())
        .collect();
    assert_eq!(results, [true, true, true, true, true, true, false, false]);
}

fn json() -> impl Strategy<Value = serde_json::Value> {
    let scalar = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        (-3i64..4).prop_map(Into::into),
        prop::sample::select(vec!["a", "b", "é"]).prop_map(Into::into),
    ];
    scalar.prop_recursive(4, 40, 5, |inner| {
        let name = prop::sample::select(vec!["a", "b", "c d", "é"]).prop_map(String::from);
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Into::into),
            prop::collection::vec((name, inner), 0..4)
                .prop_map(|members| serde_json::Value::Object(members.into_iter().collect())),
        ]
    })
}

fn path() -> impl Strategy<Value = String> {
    let test = prop::sample::select(vec![
        "?@.a",
        "?@.a==1",
        "?@>0",
        "?!@.b",
        "?@[0] && @[1]",
        "?@.a==@.b",
        "?@==$.a",
        "?length(@)>1",
        "?count(@.*)==2",
        "?match(@,'a|b')",
        "?@!=null||@.a",
        "?value(@.*)==true",
    ]);
    let number =
        || prop::option::of(-4i64..5).prop_map(|n| n.map_or(String::new(), |n| n.to_string()));
    let selector = prop_oneof![
        prop::sample::select(vec!["'a'", "'b'", "\"c d\"", "'é'", "*"]).prop_map(String::from),
        (-4i64..5).prop_map(|index| index.to_string()),
        (number(), number(), number()).prop_map(|(a, b, c)| format!("{a}:{b}:{c}")),
        test.prop_map(String::from),
    ];
    let brackets =
        prop::collection::vec(selector, 1..3).prop_map(|all| format!("[{}]", all.join(",")));
    let segment = prop_oneof![
        prop::sample::select(vec![".a", ".b", ".*", ".é"]).prop_map(String::from),
        brackets.clone(),
    ];
    let segments = prop::collection::vec(segment, 0..3).prop_map(|all| all.concat());
    (segments.clone(), prop::option::of(brackets), segments).prop_map(|(before, descent, after)| {
        let descent = descent.map_or(String::new(), |brackets| format!("..{brackets}"));
        format!("${before}{descent}{after}")
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn selects_the_same_set_as_serde_json_path(value in json(), path in path()) {
        let text = value.to_string();
        let found: Vec<String> = select(&text, &path);
        let set: BTreeSet<String> = found.iter().cloned().collect();
        prop_assert_eq!(set.len(), found.len(), "each value once");
        prop_assert_eq!(set, oracle(&text, &path), "{} on {}", path, text);
    }

    #[test]
    fn any_text_is_parsed_or_refused(text in "[$@.\\[\\]()?!&|=<>*:,'\"0-9a-z \\\\-]{0,60}") {
        let _ = JsonPath::parse(&text);
        let _ = JsonPath::parse(&format!("$[?{text}]"));
    }

    #[test]
    fn any_unicode_is_parsed_or_refused(text in "\\PC{0,40}") {
        let _ = JsonPath::parse(&format!("$.{text}"));
    }
}
