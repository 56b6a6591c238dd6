//! Rows of what a body view reads, what it refuses and what JSONPath may cost.

use std::io::Write;

use proptest::prelude::*;

use super::Unreadable::{
    BrokenCoding, BrokenMultipart, ByteOrderMark, DuplicateKey, NotJson, NotUtf8, RatioExceeded,
    TooDeep, TooLarge, TooManyCodings, TooManyNodes, TooManyResults, UnknownCharset, UnknownCoding,
    UnsupportedType,
};
use super::*;

const JSON: &str = "application/json";
const FORM: &str = "application/x-www-form-urlencoded";
const MULTIPART: &str = "multipart/form-data; boundary=XX";

fn read(kind: &str, coding: &str, body: &[u8]) -> Result<BodyView, Unreadable> {
    let limits = BodyLimits::new(64 * 1024);
    BodyView::read(
        Some(kind.as_bytes()),
        Some(coding.as_bytes()),
        body,
        &limits,
    )
}

/// The readings of a body as JSON text.
fn readings(kind: &str, coding: &str, body: &[u8]) -> Result<Vec<String>, Unreadable> {
    let view = read(kind, coding, body)?;
    Ok(view
        .documents()
        .iter()
        .map(|document| document.tree().to_string())
        .collect())
}

#[track_caller]
fn views(kind: &str, body: &str, expected: &[&str]) {
    let readings = readings(kind, "", body.as_bytes());
    let expected: Vec<_> = expected.iter().map(ToString::to_string).collect();
    assert_eq!(readings, Ok(expected), "{kind}: {body}");
}

#[track_caller]
fn unreadable(kind: &str, body: impl AsRef<[u8]>, reason: Unreadable) {
    let body = body.as_ref();
    let text = String::from_utf8_lossy(body);
    assert_eq!(readings(kind, "", body), Err(reason), "{kind}: {text}");
}

#[test]
fn json_is_read_whatever_the_type_says() {
    for kind in [
        JSON,
        "text/plain",
        "",
        "application/octet-stream",
        "application/vnd.x+json",
    ] {
        views(kind, r#"{"model":"o3-pro"}"#, &[r#"{"model":"o3-pro"}"#]);
    }
    views(
        "Application/JSON ; Charset=\"UTF-8\";",
        " [1, null]\r\n",
        &["[1,null]"],
    );
    views(JSON, "\"x\"", &["\"x\""]);
    views(JSON, "true", &["true"]);
    views(JSON, "-1", &["-1"]);
    views(JSON, "", &[]);
}

#[test]
fn json_that_parsers_disagree_about_is_unreadable() {
    unreadable(
        JSON,
        r#"{"model":"gpt-4o-mini","model":"o3-pro"}"#,
        DuplicateKey,
    );
    unreadable(
        "text/plain",
        r#"{"model":"a","mod\u0065l":"b"}"#,
        DuplicateKey,
    );
    unreadable(FORM, r#"{"a":1,"a":2}"#, DuplicateKey);
    unreadable(JSON, r#"{"x":[{"y":{"k":1,"k":1}}]}"#, DuplicateKey);
    unreadable(JSON, "{\"a\":NaN}", NotJson);
    unreadable("text/plain", "{\"a\":Infinity}", NotJson);
    unreadable(FORM, "{\"a\":NaN}", NotJson);
    unreadable(JSON, "NaN", NotJson);
    unreadable(JSON, "{\"a\":1e999}", NotJson);
    unreadable(JSON, "{\"a\":01}", NotJson);
    unreadable(JSON, "{'a':1}", NotJson);
    unreadable(JSON, "{\"a\":1,}", NotJson);
    unreadable(JSON, "{\"a\":1} {\"a\":2}", NotJson);
    unreadable(JSON, "{\"a\":1}//", NotJson);
    unreadable(JSON, "{\"a\":\"\\ud800\"}", NotJson);
    unreadable(JSON, "{\"a\":\"\n\"}", NotJson);
    unreadable(JSON, "{\"a\":", NotJson);
    unreadable(JSON, "   ", NotJson);
    unreadable(JSON, "a=1", NotJson);
    unreadable(JSON, b"{\"a\":\"\xff\"}", NotUtf8);
    unreadable(JSON, b"\xef\xbb\xbf{\"a\":1}", ByteOrderMark);
    unreadable(JSON, b"\xff\xfe{\0}\0", ByteOrderMark);
    unreadable(JSON, b"{\0\"\0a\0\"\0:\x001\0}\0", NotUtf8);
    unreadable(JSON, b"\0{\0\"\0a\0\"\0:\x001\0}", NotUtf8);
    unreadable("application/json; charset=utf-16", "{}", UnknownCharset);
    unreadable(
        "application/json; charset=utf-8; charset=utf-7",
        "{}",
        UnknownCharset,
    );
    unreadable("text/plain", "hello", UnsupportedType);
    unreadable("", "a=1", UnsupportedType);
    unreadable("application/octet-stream", b"\x00\x01", UnsupportedType);
}

#[test]
fn depth_values_and_size_are_bounded() {
    let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
    assert!(read(JSON, "", nested(64).as_bytes()).is_ok());
    unreadable(JSON, nested(65), TooDeep);
    unreadable(JSON, nested(10_000), TooDeep);
    unreadable(JSON, "[".repeat(30_000), TooDeep);
    unreadable(JSON, "{\"a\":".repeat(65), TooDeep);
    unreadable(JSON, vec![b' '; 64 * 1024 + 1], TooLarge);
    let limits = BodyLimits {
        nodes_max: 4,
        ..BodyLimits::new(1024)
    };
    let count = |kind: &str, body: &[u8]| {
        BodyView::read(Some(kind.as_bytes()), None, body, &limits).map(|_| ())
    };
    assert_eq!(count(JSON, b"[1,2,3]"), Ok(()));
    assert_eq!(count(JSON, b"[1,2,3,4]"), Err(TooManyNodes));
    assert_eq!(count(FORM, b"a&b&c&d"), Ok(()));
    assert_eq!(count(FORM, b"a&b&c&d&e"), Err(TooManyNodes));
}

#[test]
fn forms_are_flat_objects() {
    views(
        FORM,
        "amount=100&currency=eur",
        &[r#"{"amount":"100","currency":"eur"}"#],
    );
    views(
        FORM,
        "a=1&b=2&a=3&%61=4",
        &[r#"{"a":["1","3","4"],"b":"2"}"#],
    );
    views(FORM, "metadata[k]=a+b%21", &[r#"{"metadata[k]":"a b!"}"#]);
    views(FORM, "token", &[r#"{"token":""}"#]);
    views(FORM, "1=2", &[r#"{"1":"2"}"#]);
    views(
        "application/x-www-form-urlencoded; charset=UTF-8",
        "a=1",
        &[r#"{"a":"1"}"#],
    );
    unreadable(FORM, "a=%ff", NotUtf8);
    unreadable(FORM, b"a=\xff", NotUtf8);
    unreadable(FORM, b"\xef\xbb\xbfa=1", ByteOrderMark);
    // UTF-16 and UTF-32, which some JSON parsers tell by their NULs.
    unreadable(FORM, b"\0{\0\"\0a\0\"\0:\x001\0}", NotUtf8);
    unreadable(FORM, b"\0\0\0{\0\0\0}", NotUtf8);
    unreadable(FORM, b" \0 \0{\0}", NotUtf8);
    unreadable(FORM, b"\x0b{\"a\":1}", NotUtf8);
}

#[test]
fn json_under_the_type_of_a_form_has_both_readings() {
    views(FORM, r#"{"a":1}"#, &[r#"{"a":1}"#, r#"{"{\"a\":1}":""}"#]);
    let smuggled = r#"{"x":"&amount=999&y="}"#;
    let view = read(FORM, "", smuggled.as_bytes()).unwrap();
    let path = JsonPath::parse("$.amount").unwrap();
    let found: Vec<_> = view
        .documents()
        .iter()
        .map(|reading| reading.find(&path).unwrap())
        .collect();
    assert_eq!(found, [vec![], vec![Some("999".into())]]);
}

#[test]
fn text_fields_of_multipart_are_a_flat_object() {
    let part = |head: &str, body: &str| format!("--XX\r\n{head}\r\n\r\n{body}\r\n");
    let named = |name: &str| format!("Content-Disposition: form-data; name=\"{name}\"");
    let one = part(&named("a"), "1");
    views(MULTIPART, &format!("{one}--XX--\r\n"), &[r#"{"a":"1"}"#]);
    views(MULTIPART, &format!("{one}--XX--"), &[r#"{"a":"1"}"#]);
    views(
        MULTIPART,
        &format!("{one}{one}--XX--"),
        &[r#"{"a":["1","1"]}"#],
    );
    views(
        "multipart/form-data; boundary=\"XX\"",
        &format!("{one}--XX--"),
        &[r#"{"a":"1"}"#],
    );
    let file = part(
        "Content-Disposition: form-data; name=\"f\"; filename=\"x.bin\"\r\n\
         Content-Type: text/plain; charset=latin1",
        "\u{1}",
    );
    views(MULTIPART, &format!("{file}{one}--XX--"), &[r#"{"a":"1"}"#]);
    views(MULTIPART, "--XX--", &["{}"]);
    let typed = part(
        &format!("{}\r\nContent-Type: text/plain; charset=UTF-8", named("a")),
        "",
    );
    views(MULTIPART, &format!("{typed}--XX--"), &[r#"{"a":""}"#]);

    for broken in [
        "x".to_owned(),
        format!("preamble\r\n{one}--XX--"),
        one.clone(),
        format!("{one}--XX"),
        format!("{one}--XX--\r\nepilogue"),
        format!("{one}--XX--{one}"),
        format!("{one}--XX \r\n"),
        format!("{}--XX--", one.replace("\r\n", "\n")),
        format!("{}--XX--", one.replace("--XX", "--XXY")),
        format!("{}--XX--", part("X: y", "1")),
        format!("{}--XX--", part("Content-Disposition: form-data", "1")),
        format!(
            "{}--XX--",
            part(&format!("{}\r\n{}", named("a"), named("b")), "1")
        ),
        format!(
            "{}--XX--",
            part(&format!("{}; name=\"b\"", named("a")), "1")
        ),
        format!("{}--XX--", part(&named("a\\\"; filename=\\\"x"), "1")),
        format!("{}--XX--", part(&named("a%22"), "1")),
        format!(
            "{}--XX--",
            part(&format!("{}; name*=utf-8''b", named("a")), "1")
        ),
        format!("{}--XX--", part(&format!("X: y\n{}", named("a")), "1")),
        format!("{}--XX--", part(&format!("{}\r\n folded", named("a")), "1")),
        format!(
            "{}--XX--",
            part(
                &format!("{}\r\nContent-Transfer-Encoding: base64", named("a")),
                "MQ=="
            )
        ),
    ] {
        unreadable(MULTIPART, &broken, BrokenMultipart);
    }
    unreadable("multipart/form-data", "--XX--", BrokenMultipart);
    unreadable(
        "multipart/form-data; boundary=a; boundary=b",
        "--a--",
        UnknownCharset,
    );
    unreadable(
        MULTIPART,
        format!("{}--XX--", typed.replace("UTF-8", "utf-7")),
        UnknownCharset,
    );
    let latin = b"--XX\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\n\xe9\r\n--XX--";
    unreadable(MULTIPART, latin, NotUtf8);
}

type Coder = fn(&[u8]) -> Vec<u8>;

fn gzip(body: &[u8]) -> Vec<u8> {
    let mut writer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    writer.write_all(body).unwrap();
    writer.finish().unwrap()
}

fn zlib(body: &[u8]) -> Vec<u8> {
    let mut writer = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
    writer.write_all(body).unwrap();
    writer.finish().unwrap()
}

fn raw_deflate(body: &[u8]) -> Vec<u8> {
    let level = flate2::Compression::default();
    let mut writer = flate2::write::DeflateEncoder::new(Vec::new(), level);
    writer.write_all(body).unwrap();
    writer.finish().unwrap()
}

fn brotli(body: &[u8]) -> Vec<u8> {
    let mut coded = Vec::new();
    let mut writer = brotli::CompressorWriter::new(&mut coded, 4096, 5, 20);
    writer.write_all(body).unwrap();
    drop(writer);
    coded
}

fn zstd(body: &[u8]) -> Vec<u8> {
    zstd::stream::encode_all(body, 3).unwrap()
}

#[test]
fn content_codings_are_decoded_one_member_at_a_time() {
    let json = br#"{"model":"o3-pro","text":"aaaa bbbb cccc"}"#;
    let text = String::from_utf8_lossy(json).into_owned();
    let coders: [(&str, Coder); 5] = [
        ("gzip", gzip),
        ("X-Gzip", gzip),
        ("deflate", zlib),
        ("br", brotli),
        ("zstd", zstd),
    ];
    for (coding, code) in coders {
        let coded = code(json);
        assert_eq!(
            readings(JSON, coding, &coded),
            Ok(vec![text.clone()]),
            "{coding}"
        );
        assert_eq!(
            readings(JSON, coding, &code(b"")),
            Ok(vec![]),
            "{coding} of nothing"
        );
        let longer = [coded.as_slice(), b"x"].concat();
        assert_eq!(
            readings(JSON, coding, &longer),
            Err(BrokenCoding),
            "{coding} and a byte"
        );
        let twice = [coded.as_slice(), coded.as_slice()].concat();
        assert_eq!(
            readings(JSON, coding, &twice),
            Err(BrokenCoding),
            "{coding} members"
        );
        for length in 1..coded.len() {
            let cut = &coded[..length];
            assert_eq!(
                readings(JSON, coding, cut),
                Err(BrokenCoding),
                "{coding} cut at {length}"
            );
        }
        assert_eq!(
            readings(JSON, coding, json),
            Err(BrokenCoding),
            "{coding} that is not"
        );
    }
    assert_eq!(
        readings(JSON, "gzip, br", &brotli(&gzip(json))),
        Ok(vec![text.clone()])
    );
    assert_eq!(
        readings(JSON, "identity, gzip", &gzip(json)),
        Ok(vec![text.clone()])
    );
    assert_eq!(readings(JSON, "identity", json), Ok(vec![text]));
    assert_eq!(
        readings(JSON, "gzip,gzip,gzip", &gzip(json)),
        Err(TooManyCodings)
    );
    assert_eq!(readings(JSON, "compress", json), Err(UnknownCoding));
    assert_eq!(readings(JSON, "gzip;q=1", &gzip(json)), Err(UnknownCoding));
    assert_eq!(
        readings(JSON, "deflate", &raw_deflate(json)),
        Err(BrokenCoding)
    );
    assert_eq!(readings(JSON, "", &gzip(json)), Err(NotUtf8));
    // The same for whoever needs only the bytes.
    assert_eq!(decode(&gzip(json), "gzip", 100).as_deref(), Ok(&json[..]));
    assert_eq!(decode(&gzip(json), "gzip", 10), Err(TooLarge));
    assert_eq!(decode(&gzip(json), "x", 100), Err(UnknownCoding));
}

#[test]
fn bombs_are_cut_at_the_ratio_and_at_the_size() {
    let blank = |length: usize| vec![b' '; length];
    for (coding, code) in [("gzip", gzip as Coder), ("br", brotli), ("zstd", zstd)] {
        assert_eq!(
            readings(JSON, coding, &code(&blank(60_000))),
            Err(RatioExceeded),
            "{coding}"
        );
        let large = code(&blank(50_000_000));
        let reason = if large.len() * 100 > 64 * 1024 {
            TooLarge
        } else {
            RatioExceeded
        };
        assert_eq!(readings(JSON, coding, &large), Err(reason), "{coding}");
    }
    let twice = gzip(&gzip(&blank(60_000)));
    assert_eq!(readings(JSON, "gzip, gzip", &twice), Err(RatioExceeded));
}

#[track_caller]
fn finds(body: &str, path: &str, expected: &[Option<&str>]) {
    let view = read(JSON, "", body.as_bytes()).unwrap();
    let path = JsonPath::parse(path).unwrap();
    let found = view.documents()[0].find(&path).unwrap();
    let found: Vec<_> = found.iter().map(|text| text.as_deref()).collect();
    assert_eq!(found, expected, "{path:?} in {body}");
}

#[test]
fn scalars_are_found_as_they_were_written() {
    finds(r#"{"a":"x"}"#, "$.a", &[Some("x")]);
    finds(r#"{"a":"\u0078\n"}"#, "$.a", &[Some("x\n")]);
    finds(
        r#"{"a":null,"b":true,"c":false}"#,
        "$.*",
        &[Some("null"), Some("true"), Some("false")],
    );
    finds(r#"{"a":1}"#, "$.a", &[Some("1")]);
    finds(
        r#"{"s":"1e2 -3","a":[1.50, 1e2, -0.0, 1E+2, 0.1, 12345678901234567890123, 7]}"#,
        "$.a[*]",
        &[
            "1.50",
            "1e2",
            "-0.0",
            "1E+2",
            "0.1",
            "12345678901234567890123",
            "7",
        ]
        .map(Some),
    );
    finds(
        r#"{"\"1e5":1e5,"b":"\\","c":2.0}"#,
        "$.*",
        &[Some("1e5"), Some("\\"), Some("2.0")],
    );
    finds(r#"[1e2, 100]"#, "$[?@ == 100]", &[Some("1e2"), Some("100")]);
    finds(
        r#"{"a":["x",1,[2],{}]}"#,
        "$.a",
        &[Some("x"), Some("1"), None, None],
    );
    finds(r#"{"a":[],"b":{}}"#, "$.*", &[None, None]);
    finds(r#"{"a":1}"#, "$.b", &[]);
    finds(
        r#"{"m":[{"role":"user"},{"role":"system"}]}"#,
        "$..role",
        &[Some("user"), Some("system")],
    );
    finds(
        r#"{"i":[{"p":5,"n":"a"},{"p":9,"n":"b"}]}"#,
        "$.i[?@.p > 6].n",
        &[Some("b")],
    );
}

#[test]
fn results_are_bounded() {
    let limits = BodyLimits::new(1 << 20);
    let body = format!("[{}1]", "1,".repeat(10_000));
    let view = BodyView::read(Some(JSON.as_bytes()), None, body.as_bytes(), &limits).unwrap();
    for path in ["$", "$[*]", "$..*"] {
        let found = view.documents()[0].find(&JsonPath::parse(path).unwrap());
        assert_eq!(found, Err(TooManyResults), "{path}");
    }
}

#[test]
fn a_json_path_has_a_bounded_cost() {
    use super::JsonPathProblem as Problem;
    for path in [
        "$",
        "$.a.b",
        "$['a..b?[(']",
        "$..model",
        "$.items[?@.price > 10 && @.kind == 'x'].id",
        "$.items[?@.id == $.primary]",
        "$[?count(@.*) > 2]",
        "$[?length(@.name) > 2]",
        "$[0,1,-1]",
        "$[1:3]",
    ] {
        assert!(
            JsonPath::parse(path).is_ok(),
            "{path}: {:?}",
            JsonPath::parse(path)
        );
    }
    let refused = |path: &str, expected: Problem| {
        assert_eq!(JsonPath::parse(path).err(), Some(expected), "{path}");
    };
    refused("$..a..b", Problem::SecondDescent);
    refused("$[?@..x]", Problem::DescentInFilter);
    refused("$..[?(@..x)]", Problem::DescentInFilter);
    refused("$[?@[?@.a]]", Problem::NestedFilter);
    refused(&format!("$[?{}", "@[?".repeat(100)), Problem::NestedFilter);
    refused("$[?count($[*]) > 1]", Problem::WideRootInFilter);
    refused("$[?count($['a','b']) > 1]", Problem::WideRootInFilter);
    refused("$[?match(@.a, 'x')]", Problem::PatternFunction);
    refused("$[?search(@.a, @.b)]", Problem::PatternFunction);
    refused("$[?search (@.a, @.b)]", Problem::PatternFunction);
    refused(
        &format!("${}", "[*,*]".repeat(5)),
        Problem::TooManySelectors,
    );
    refused(&format!("$[?{}@.a", "(".repeat(5)), Problem::TooDeep);
    refused(
        &format!("$[?@.a{}]", " && @.a".repeat(40)),
        Problem::TooManyOperators,
    );
    refused(&format!("$.{}", "a".repeat(600)), Problem::TooLong(602));
    for path in [
        "",
        "a",
        "$.",
        "$[",
        "$[?]",
        "$.a b",
        "$[?@.a ==]",
        "$]",
        "$)",
        "$[?foo(@)]",
    ] {
        let problem = JsonPath::parse(path).err();
        assert!(
            matches!(problem, Some(Problem::Invalid(_))),
            "{path}: {problem:?}"
        );
    }
}

#[test]
fn a_refused_path_is_told_with_the_place() {
    for (path, told) in [
        (
            "$.a[?",
            "not a valid JSONPath (RFC 9535): a query, a literal or a function expected \
             (after `$.a[?`)",
        ),
        (
            "a.b",
            "not a valid JSONPath (RFC 9535): a path begins with `$`",
        ),
        (
            "$.a..b..c",
            "a JSONPath may hold one `..`; nested descents have no bounded cost (after `$.a..b`)",
        ),
        (
            "$[?match(@.a, 'x')]",
            "match() and search() are not supported; use `value` for a pattern (after `$[?match`)",
        ),
        (
            "$.ä b",
            "not a valid JSONPath (RFC 9535): ` ` cannot stand here (after `$.ä`)",
        ),
    ] {
        assert_eq!(JsonPath::parse_told(path).unwrap_err(), told);
    }
    assert!(JsonPath::parse_told("$.a[*].b").is_ok());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn no_body_panics(
        body in proptest::collection::vec(any::<u8>(), 0..80),
        kind in proptest::sample::select(vec![JSON, FORM, MULTIPART, "", "a/b; c=\"", ";;="]),
        coding in proptest::sample::select(vec!["", "gzip", "br", "zstd", "deflate", ",", "x"]),
    ) {
        let _ = read(kind, coding, &body);
    }

    #[test]
    fn no_multipart_panics(
        body in "(--XX|\r\n|--|: ?|[aX=;\"]|Content-Disposition: form-data){0,20}",
    ) {
        let _ = read(MULTIPART, "", body.as_bytes());
    }

    #[test]
    fn no_path_panics(path in r#"(\$|\.|\[|\]|\?|\(|\)|@|\*|'|"|,|a|1|:|==|&&|count){0,24}"#) {
        if let Ok(path) = JsonPath::parse(&path) {
            let document = serde_json::json!({"a": [1, {"a": "b"}], "b": null});
            let _ = path.query(&document);
        }
    }

    #[test]
    fn every_number_keeps_its_text(numbers in proptest::collection::vec(
        "-?(0|[1-9][0-9]{0,24})(\\.[0-9]{1,8})?([eE][+-]?[0-9]{1,2})?", 1..8))
    {
        let body = format!("[\"1e1\",{}]", numbers.join(","));
        let view = read(JSON, "", body.as_bytes()).unwrap();
        let found = view.documents()[0].find(&JsonPath::parse("$[1:]").unwrap()).unwrap();
        let found: Vec<_> = found.into_iter().map(|text| text.unwrap().into_owned()).collect();
        prop_assert_eq!(found, numbers);
    }
}
