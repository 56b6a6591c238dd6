//! Rows of the two readings, and properties over arbitrary bytes and spellings.

use std::borrow::Cow;

use proptest::prelude::*;

use super::PathRefusal::{
    ControlByte, DotSegment, DoubleEncoding as Double, InvalidByte, InvalidEscape, NotAbsolute,
    OverlongUtf8, SlashInParameters,
};
use super::*;

const OPAQUE: PathOptions = PathOptions {
    double_encoding: DoubleEncoding::Refuse,
    encoded_slash: EncodedSlash::Opaque,
};
const PASS: PathOptions = PathOptions {
    double_encoding: DoubleEncoding::Pass,
    encoded_slash: EncodedSlash::Decode,
};

#[track_caller]
fn canonical(raw: &str, options: PathOptions, expected: &str) {
    let reading = PathReading::parse(raw.as_bytes(), options).unwrap();
    assert_eq!(
        reading.canonical(),
        expected,
        "canonical reading of {raw:?}"
    );
    assert_eq!(reading.raw(), raw, "the bytes sent are the caller's");
}

#[track_caller]
fn refused(raw: impl AsRef<[u8]>, options: PathOptions, reason: PathRefusal, offset: usize) {
    let raw = raw.as_ref();
    let result = PathReading::parse(raw, options);
    assert_eq!(
        result,
        Err(PathRefused { reason, offset }),
        "{:?}",
        String::from_utf8_lossy(raw)
    );
}

#[test]
fn canonical_is_what_a_lenient_upstream_routes() {
    let strict = PathOptions::default();
    for (raw, expected) in [
        ("", "/"),
        ("/", "/"),
        ("/admin", "/admin"),
        ("/ADMIN", "/ADMIN"),
        ("/admin/", "/admin/"),
        // One percent sign (CVE-2019-9901).
        ("/%61dmin", "/admin"),
        ("/%61%64%6d%69%6E", "/admin"),
        ("//admin", "/admin"),
        ("///admin///x", "/admin/x"),
        ("/admin%2fx", "/admin/x"),
        ("/admin%2Fx", "/admin/x"),
        ("/%2Fadmin", "/admin"),
        ("/%2f%2fadmin", "/admin"),
        (r"/\admin", "/admin"),
        (r"/x\admin", "/x/admin"),
        ("/x%5Cadmin", "/x/admin"),
        ("/%5c%5cadmin", "/admin"),
        // Path parameters (istio#27409).
        ("/admin;a=1", "/admin"),
        ("/admin;a=1;b=2/users;c", "/admin/users"),
        ("/;x/admin", "/admin"),
        ("/admin%3Ba=1", "/admin"),
        // Names that only look like dot segments.
        ("/.well-known", "/.well-known"),
        ("/...", "/..."),
        ("/a..", "/a.."),
        ("/..a", "/..a"),
        ("/a/.b/c.", "/a/.b/c."),
        ("/%2ehidden", "/.hidden"),
        ("/a;..", "/a"),
        ("/;..", "/"),
        // Ordinary escapes.
        ("/a%20b", "/a b"),
        ("/100%25", "/100%"),
        ("/100%25zz", "/100%zz"),
        ("/%C3%A9", "/é"),
        ("/%E9", "/\u{fffd}"),
        ("/%ff%fe", "/\u{fffd}\u{fffd}"),
        ("/a%3Fb%23c", "/a?b#c"),
        ("/{id}|x\"^", "/{id}|x\"^"),
    ] {
        canonical(raw, strict, expected);
    }
}

#[test]
fn what_follows_a_semicolon_is_judged_as_well() {
    let readings = |raw: &'static str| {
        let reading = PathReading::parse(raw.as_bytes(), PathOptions::default()).unwrap();
        let readings: Vec<String> = reading.readings().map(str::to_owned).collect();
        let only = reading.only().map(|only| vec![only.to_owned()]);
        assert_eq!(only, (readings.len() == 1).then(|| readings.clone()));
        readings
    };
    assert_eq!(readings("/run/a"), ["/run/a"]);
    assert_eq!(readings("/run/%61"), ["/run/%61", "/run/a"]);
    assert_eq!(readings("/run/a;b"), ["/run/a;b", "/run/a"]);
    let escaped = ["/run/a;%73ecret", "/run/a", "/run/a;secret"];
    assert_eq!(readings("/run/a;%73ecret"), escaped);
    let strict = PathOptions::default();
    refused("/a;b=%2Fadmin", strict, SlashInParameters, 5);
    refused("/admin;%5cx", strict, SlashInParameters, 7);
    refused(r"/admin;\x", strict, SlashInParameters, 7);
    let of_data = "/data%3Aimage%2Fpng%3Bbase64%2Cx%2Fy";
    let decoded = "/data:image/png;base64,x/y";
    assert_eq!(readings(of_data), [of_data, "/data:image/png/y", decoded]);
    canonical("/admin;%2Fx", OPAQUE, "/admin");
}

#[test]
fn an_opaque_slash_stays_encoded_in_one_spelling() {
    for (raw, expected) in [
        ("/projects/group%2Fproject", "/projects/group%2Fproject"),
        ("/projects/group%2fproject", "/projects/group%2Fproject"),
        ("/a%5cb", "/a%5Cb"),
        (r"/a\b", "/a/b"),
        ("/a;x%2Fy/b", "/a/b"),
        ("/%2F%2Fa", "/%2F%2Fa"),
    ] {
        canonical(raw, OPAQUE, expected);
    }
}

#[test]
fn a_double_escape_that_passes_is_decoded_once() {
    canonical("/%2561dmin", PASS, "/%61dmin");
    canonical("/a%252Fb", PASS, "/a%2Fb");
}

#[test]
fn what_has_no_two_readings_is_refused() {
    let strict = PathOptions::default();
    for (raw, reason, offset) in [
        // Dot segments, in plain or any encoded form (CVE-2021-29492).
        ("/.", DotSegment, 1),
        ("/..", DotSegment, 1),
        ("/./a", DotSegment, 1),
        ("/a/../b", DotSegment, 3),
        ("/a/..", DotSegment, 3),
        ("/.%2e", DotSegment, 1),
        ("/%2e.", DotSegment, 1),
        ("/%2e%2e", DotSegment, 1),
        ("/%2E%2e/x", DotSegment, 1),
        ("/%2e/x", DotSegment, 1),
        ("/x/..;/admin", DotSegment, 3),
        ("/x/..;a=1/admin", DotSegment, 3),
        ("/x/..%3Ba/admin", DotSegment, 3),
        ("/x/.;/admin", DotSegment, 3),
        (r"/x/..\admin", DotSegment, 3),
        (r"/x\..\admin", DotSegment, 3),
        ("/x%2F..%2Fadmin", DotSegment, 5),
        ("/x%2f%2e%2e%2fadmin", DotSegment, 5),
        ("/x%5C..%5Cadmin", DotSegment, 5),
        ("/x%5c%2e%2e", DotSegment, 5),
        ("/x;/..", DotSegment, 4),
        // Escapes.
        ("/%", InvalidEscape, 1),
        ("/%2", InvalidEscape, 1),
        ("/a%zz", InvalidEscape, 2),
        ("/%u002e", InvalidEscape, 1),
        ("/%+1", InvalidEscape, 1),
        ("/%2561dmin", Double, 1),
        ("/%252e%252e/x", Double, 1),
        ("/%25%36%31", Double, 1),
        ("/a%2500", Double, 2),
        ("/%00", ControlByte, 1),
        ("/a%0d%0aHost:x", ControlByte, 2),
        ("/%09", ControlByte, 1),
        ("/%7F", ControlByte, 1),
        ("/%c0%ae%c0%ae/x", OverlongUtf8, 1),
        ("/a%C0%AFb", OverlongUtf8, 2),
        ("/%e0%80%af", OverlongUtf8, 1),
        ("/%f0%80%80%af", OverlongUtf8, 1),
        // Bytes.
        ("/a b", InvalidByte, 2),
        ("/a\tb", InvalidByte, 2),
        ("/a\r\nb", InvalidByte, 2),
        ("/a\0", InvalidByte, 2),
        ("/a\x7f", InvalidByte, 2),
        ("/é", InvalidByte, 1),
        ("/a#b", InvalidByte, 2),
        ("/a?b", InvalidByte, 2),
        ("/<x>", InvalidByte, 1),
        ("admin", NotAbsolute, 0),
        ("..", NotAbsolute, 0),
        ("%2Fadmin", NotAbsolute, 0),
        (";a/admin", NotAbsolute, 0),
    ] {
        refused(raw, strict, reason, offset);
    }
    refused(b"/\xff", strict, InvalidByte, 1);
}

#[test]
fn options_open_no_way_to_climb() {
    refused("/x%2F..%2Fadmin", OPAQUE, DotSegment, 5);
    refused("/x%5c%2e%2e", OPAQUE, DotSegment, 5);
    refused("/%252e%252e/x", PASS, DotSegment, 1);
    refused("/x%252f..%252fadmin", PASS, DotSegment, 7);
    refused("/.%252e", PASS, DotSegment, 1);
    refused("/a%2500", PASS, ControlByte, 2);
    refused("/..", PASS, DotSegment, 1);
}

#[test]
fn a_plain_path_is_its_own_canonical_reading() {
    let reading = PathReading::parse(b"/v1/chat/completions", PathOptions::default()).unwrap();
    assert!(matches!(reading.canonical, Cow::Borrowed(_)));
    assert_eq!(reading.judged(), ("/v1/chat/completions", None));
}

#[test]
fn joined_paths_have_one_slash_at_the_seam_and_keep_the_callers_bytes() {
    for (base, caller, expected) in [
        ("", "", "/"),
        ("/", "", "/"),
        ("/v1", "", "/v1"),
        ("/v1/", "", "/v1/"),
        ("", "/x", "/x"),
        ("/", "/x", "/x"),
        ("/v1", "/x", "/v1/x"),
        ("/v1/", "/x", "/v1/x"),
        ("/v1", "/", "/v1/"),
        ("/v1/", "/", "/v1/"),
        ("/v1", "//x", "/v1//x"),
        ("/v1", "/a%2Fb;c=1/%7e", "/v1/a%2Fb;c=1/%7e"),
        ("v1", "/x", "/v1/x"),
    ] {
        let reading = PathReading::parse(caller.as_bytes(), PathOptions::default()).unwrap();
        let joined = String::from_utf8(reading.join(base)).unwrap();
        assert_eq!(joined, expected, "{caller:?} below {base:?}");
    }
}

/// Encodes every byte that is not unreserved, but keeps slashes.
fn encode(text: &str) -> String {
    let encode_byte = |byte: u8| match byte {
        b'/' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        _ if byte.is_ascii_alphanumeric() => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(encode_byte).collect()
}

fn options() -> impl Strategy<Value = PathOptions> {
    (any::<bool>(), any::<bool>()).prop_map(|(pass, opaque)| PathOptions {
        double_encoding: if pass {
            DoubleEncoding::Pass
        } else {
            DoubleEncoding::Refuse
        },
        encoded_slash: if opaque {
            EncodedSlash::Opaque
        } else {
            EncodedSlash::Decode
        },
    })
}

/// Paths made of the pieces that matter.
fn tricky_path() -> impl Strategy<Value = String> {
    let pieces = vec![
        "/", "\\", "%2f", "%5C", ".", "%2e", ";", "%3b", "a", "admin", "%61", "%25", "61",
        "%C3%A9", "%ff", "%20", "=1", "//",
    ];
    proptest::collection::vec(proptest::sample::select(pieces), 0..12)
        .prop_map(|pieces| format!("/{}", pieces.concat()))
}

proptest! {
    #[test]
    fn no_bytes_panic(raw in proptest::collection::vec(any::<u8>(), 0..64), options in options()) {
        let _ = PathReading::parse(&raw, options);
    }

    #[test]
    fn canonicalisation_is_idempotent(raw in tricky_path()) {
        let strict = PathOptions::default();
        if let Ok(reading) = PathReading::parse(raw.as_bytes(), strict) {
            let again = encode(reading.canonical());
            let again = PathReading::parse(again.as_bytes(), strict).unwrap();
            prop_assert_eq!(again.canonical(), reading.canonical());
        }
    }

    #[test]
    fn what_is_accepted_can_be_sent_and_never_climbs(raw in tricky_path(), options in options()) {
        if let Ok(reading) = PathReading::parse(raw.as_bytes(), options) {
            let joined = reading.join("/base");
            let sent = http::uri::PathAndQuery::try_from(joined.as_slice()).unwrap();
            prop_assert_eq!(sent.path().as_bytes(), joined.as_slice());
            // The URL standard resolves dot segments in plain and encoded form.
            let resolved = url::Url::parse("http://h").unwrap().join(sent.as_str());
            if let Ok(resolved) = resolved {
                prop_assert!(resolved.path().starts_with("/base"), "{}", resolved);
            }
            for segment in reading.canonical().split('/') {
                prop_assert!(segment != "." && segment != "..");
            }
        }
    }
}
