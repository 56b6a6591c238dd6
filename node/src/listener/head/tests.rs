//! Rows: a head, and what it is taken for.

use super::*;
use crate::listener::target::TARGET_BYTES_MAX;

const NONE: Result<Head, Refusal> = Ok(Head {
    body: Body::None,
    closes: false,
});
const LAST: Result<Head, Refusal> = Ok(Head {
    body: Body::None,
    closes: true,
});
const CHUNKED: Result<Head, Refusal> = Ok(Head {
    body: Body::Chunked,
    closes: false,
});
const TUNNEL: Result<Head, Refusal> = Ok(Head {
    body: Body::Tunnel,
    closes: true,
});

const fn length(length: u64) -> Result<Head, Refusal> {
    Ok(Head {
        body: Body::Length(length),
        closes: false,
    })
}

fn read(head: &[u8]) -> Result<Head, Refusal> {
    read_head(&mut head.to_vec(), 96)
}

/// A whole head, without its empty line.
fn check(head: &str, expected: Result<Head, Refusal>) {
    assert_eq!(
        read(format!("{head}\r\n\r\n").as_bytes()),
        expected,
        "{head:?}"
    );
}

/// Fields of a GET that has a Host.
fn get(fields: &str, expected: Result<Head, Refusal>) {
    check(&format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}"), expected);
}

/// Fields of a POST that has a Host.
fn post(fields: &str, expected: Result<Head, Refusal>) {
    check(&format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}"), expected);
}

#[test]
fn request_lines() {
    for (line, expected) in [
        ("GET / HTTP/1.1", NONE),
        ("DELETE /a/b?c=d&e HTTP/1.1", NONE),
        ("PROPFIND / HTTP/1.1", NONE),
        ("VERSION-CONTROL / HTTP/1.1", NONE),
        ("LIST /v1/secret HTTP/1.1", NONE),
        ("OPTIONS /a HTTP/1.1", NONE),
        ("GET //evil/x HTTP/1.1", NONE),
        ("GET /%2F/../%2e%2e/%00%zz/a;b=c\\d|{}[]^\" HTTP/1.1", NONE),
        ("GET /?{}[]|\\^`&&=&?/ HTTP/1.1", NONE),
        ("GET / HTTP/1.0", LAST),
        ("", Err(Refusal::RequestLine)),
        ("GET", Err(Refusal::RequestLine)),
        ("GET /", Err(Refusal::RequestLine)),
        ("GET  HTTP/1.1", Err(Refusal::RequestLine)),
        ("GET HTTP/1.1", Err(Refusal::RequestLine)),
        (" GET / HTTP/1.1", Err(Refusal::RequestLine)),
        ("GET\t/ HTTP/1.1", Err(Refusal::RequestLine)),
        ("GET / HTTP/1.1 ", Err(Refusal::RequestLine)),
        ("GET / http/1.1", Err(Refusal::RequestLine)),
        ("GET / HTTP/1.10", Err(Refusal::RequestLine)),
        ("GET / HTTP/01.1", Err(Refusal::RequestLine)),
        ("GET / HTTP/0.9", Err(Refusal::Version)),
        ("GET / HTTP/1.2", Err(Refusal::Version)),
        ("PRI * HTTP/2.0", Err(Refusal::Version)),
        ("GET  / HTTP/1.1", Err(Refusal::TargetForm)),
        ("GET /  HTTP/1.1", Err(Refusal::TargetByte)),
        ("GET /a b HTTP/1.1", Err(Refusal::TargetByte)),
        ("GET /a\tb HTTP/1.1", Err(Refusal::TargetByte)),
        ("GET /a\0b HTTP/1.1", Err(Refusal::TargetByte)),
        ("GET /\u{e9} HTTP/1.1", Err(Refusal::TargetByte)),
        ("GET /a#b HTTP/1.1", Err(Refusal::TargetByte)),
        ("GET /a?b#c HTTP/1.1", Err(Refusal::TargetByte)),
        ("GET /<a> HTTP/1.1", Err(Refusal::TargetByte)),
        ("GET /?\"a\" HTTP/1.1", Err(Refusal::TargetByte)),
        ("GET http://a/ HTTP/1.1", NONE),
        ("GET HTTPS://A/b?c=d HTTP/1.1", NONE),
        ("GET http://a HTTP/1.1", NONE),
        ("GET http://a/b HTTP/1.0", LAST),
        ("GET http://b/ HTTP/1.1", Err(Refusal::AbsoluteForm)),
        ("GET http://a.b/ HTTP/1.1", Err(Refusal::AbsoluteForm)),
        ("GET http://a:80/ HTTP/1.1", Err(Refusal::AbsoluteForm)),
        ("GET http://u@a/ HTTP/1.1", Err(Refusal::AbsoluteForm)),
        ("GET http:///b HTTP/1.1", Err(Refusal::AbsoluteForm)),
        ("GET ://a/ HTTP/1.1", Err(Refusal::AbsoluteForm)),
        ("GET ws://a/ HTTP/1.1", Err(Refusal::AbsoluteForm)),
        ("GET http://a?b HTTP/1.1", Err(Refusal::TargetForm)),
        ("GET http://a/b#c HTTP/1.1", Err(Refusal::TargetByte)),
        ("GET http://a/b c HTTP/1.1", Err(Refusal::TargetByte)),
        (
            "GET ftp://user:pass@a/ HTTP/1.1",
            Err(Refusal::AbsoluteForm),
        ),
        ("GET evil:80 HTTP/1.1", Err(Refusal::TargetForm)),
        ("GET abc HTTP/1.1", Err(Refusal::TargetForm)),
        ("OPTIONS * HTTP/1.1", Err(Refusal::TargetForm)),
        ("GET ?a HTTP/1.1", Err(Refusal::TargetForm)),
        ("TRACE / HTTP/1.1", Err(Refusal::Trace)),
        ("CONNECT a:443 HTTP/1.1", Err(Refusal::Connect)),
        ("get / HTTP/1.1", Err(Refusal::Method)),
        ("BREW / HTTP/1.1", Err(Refusal::Method)),
    ] {
        check(&format!("{line}\r\nHost: a"), expected);
    }
    assert_eq!(
        read(b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n"),
        Err(Refusal::TargetByte)
    );
    let long = "a".repeat(TARGET_BYTES_MAX);
    check(
        &format!("GET /{long} HTTP/1.1\r\nHost: a"),
        Err(Refusal::TargetTooLong),
    );
    check(&format!("GET /{} HTTP/1.1\r\nHost: a", &long[1..]), NONE);
}

#[test]
fn a_url_and_its_host_are_one_name() {
    for (target, host, same) in [
        ("http://a.example:8080/x", "Host:a.example:8080 \t", true),
        ("http://[::1]:1/x", "host: [::1]:1", true),
        ("http://a.example/x", "Host: A.Example", true),
        ("http://a.example/x", "Host: a.example.", false),
        ("http://a.example/x", "Host: b.example", false),
    ] {
        let expected = if same {
            NONE
        } else {
            Err(Refusal::AbsoluteForm)
        };
        check(
            &format!("GET {target} HTTP/1.1\r\nx: y\r\n{host}"),
            expected,
        );
    }
    check("GET http://a/ HTTP/1.1\r\nx: y", Err(Refusal::AbsoluteForm));
    check("GET http://a/ HTTP/1.0\r\nx: y", Err(Refusal::AbsoluteForm));
}

#[test]
fn fields() {
    for (fields, expected) in [
        ("a: b", NONE),
        ("a:b", NONE),
        ("a:", NONE),
        ("a: \t b \t ", NONE),
        ("a_b.c!#$%&'*+^`|~: d", NONE),
        ("a: \u{e9}", NONE),
        (": b", Err(Refusal::FieldName)),
        ("a", Err(Refusal::FieldName)),
        ("a\0: b", Err(Refusal::FieldName)),
        ("\"a\": b", Err(Refusal::FieldName)),
        ("a(: b", Err(Refusal::FieldName)),
        ("\u{e9}: b", Err(Refusal::FieldName)),
        ("a : b", Err(Refusal::SpaceBeforeColon)),
        ("a\t: b", Err(Refusal::SpaceBeforeColon)),
        ("a b: c", Err(Refusal::SpaceBeforeColon)),
        ("a: b\r\n c", Err(Refusal::ObsFold)),
        ("a: b\r\n\tc: d", Err(Refusal::ObsFold)),
        ("a: \0", Err(Refusal::FieldValue)),
        ("a: b\x01c", Err(Refusal::FieldValue)),
        ("a: b\x7f", Err(Refusal::FieldValue)),
        ("a: b\x0bc", Err(Refusal::FieldValue)),
        ("a: b\rc", Err(Refusal::BareCr)),
        ("a: b\rContent-Length: 3", Err(Refusal::BareCr)),
        ("a: b\r\r", Err(Refusal::BareCr)),
    ] {
        get(fields, expected);
    }
    check("GET / HTTP/1.1\r\n Host: a", Err(Refusal::ObsFold));
    check("GET /\r HTTP/1.1\r\nHost: a", Err(Refusal::BareCr));
    get("a: b\r\n".repeat(95).trim_end(), NONE);
    get(
        "a: b\r\n".repeat(96).trim_end(),
        Err(Refusal::TooManyHeaders),
    );
}

#[test]
fn hosts() {
    for (head, expected) in [
        ("GET / HTTP/1.1", Err(Refusal::HostMissing)),
        (
            "GET / HTTP/1.1\r\nHost: a\r\nHost: a",
            Err(Refusal::HostTwice),
        ),
        (
            "GET / HTTP/1.1\r\nHost: a\r\nhOST: b",
            Err(Refusal::HostTwice),
        ),
        ("GET / HTTP/1.1\r\nHost:", Err(Refusal::HostInvalid)),
        ("GET / HTTP/1.1\r\nHost: a b/c@d", Err(Refusal::HostInvalid)),
        ("GET / HTTP/1.1\r\nHost: a,b", Err(Refusal::HostInvalid)),
        (
            "GET / HTTP/1.1\r\nHost: \u{e9}",
            Err(Refusal::FieldNotAscii),
        ),
        ("GET / HTTP/1.1\r\nhost:\t[::1]:80 ", NONE),
        ("GET / HTTP/1.0\r\nHost: a", LAST),
        (
            "GET / HTTP/1.0\r\nHost: a\r\nHost: a",
            Err(Refusal::HostTwice),
        ),
        ("GET / HTTP/1.0\r\nHost: a,b", Err(Refusal::HostInvalid)),
    ] {
        check(head, expected);
    }
}

#[test]
fn lengths_and_encodings() {
    for (fields, expected) in [
        ("a: b", NONE),
        ("Content-Length: 0", NONE),
        ("Content-Length: 3", length(3)),
        ("CONTENT-LENGTH:\t003 ", length(3)),
        ("Content-Length: 18446744073709551615", length(u64::MAX)),
        (
            "Content-Length: 18446744073709551616",
            Err(Refusal::LengthInvalid),
        ),
        ("Content-Length:", Err(Refusal::LengthInvalid)),
        ("Content-Length: 2, 2", Err(Refusal::LengthInvalid)),
        ("Content-Length: +2", Err(Refusal::LengthInvalid)),
        ("Content-Length: -1", Err(Refusal::LengthInvalid)),
        ("Content-Length: 0x2", Err(Refusal::LengthInvalid)),
        ("Content-Length: 2 2", Err(Refusal::LengthInvalid)),
        ("Content-Length: \u{b2}", Err(Refusal::FieldNotAscii)),
        ("Content-Length: \x0b2", Err(Refusal::FieldValue)),
        (
            "Content-Length: 2\r\nContent-Length: 2",
            Err(Refusal::LengthTwice),
        ),
        (
            "Content-Length: 2\r\nContent-Length: 3",
            Err(Refusal::LengthTwice),
        ),
        (
            "Content-Length: 0\r\ncontent-length: 0",
            Err(Refusal::LengthTwice),
        ),
        ("Transfer-Encoding: chunked", CHUNKED),
        ("transfer-encoding:\tChunKed\t", CHUNKED),
        ("Transfer-Encoding:", Err(Refusal::EncodingUnknown)),
        (
            "Transfer-Encoding: chunked, chunked",
            Err(Refusal::EncodingUnknown),
        ),
        (
            "Transfer-Encoding: gzip, chunked",
            Err(Refusal::EncodingUnknown),
        ),
        ("Transfer-Encoding: identity", Err(Refusal::EncodingUnknown)),
        ("Transfer-Encoding: xchunked", Err(Refusal::EncodingUnknown)),
        (
            "Transfer-Encoding: chunked;q=1",
            Err(Refusal::EncodingUnknown),
        ),
        (
            "Transfer-Encoding: \"chunked\"",
            Err(Refusal::EncodingUnknown),
        ),
        (
            "Transfer-Encoding: chunked\u{a0}",
            Err(Refusal::FieldNotAscii),
        ),
        (
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            Err(Refusal::EncodingTwice),
        ),
        (
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
            Err(Refusal::EncodingTwice),
        ),
        (
            "Transfer-Encoding: chunked\r\nContent-Length: 3",
            Err(Refusal::LengthAndEncoding),
        ),
        (
            "Content-Length: 0\r\nTransfer-Encoding: chunked",
            Err(Refusal::LengthAndEncoding),
        ),
        ("Transfer_Encoding: chunked", NONE),
    ] {
        post(fields, expected);
        get(fields, expected);
    }
    check("POST / HTTP/1.0", Err(Refusal::LengthMissing));
    check(
        "POST / HTTP/1.0\r\nContent-Length: 2",
        Ok(Head {
            body: Body::Length(2),
            closes: true,
        }),
    );
    check(
        "GET / HTTP/1.0\r\nTransfer-Encoding: chunked",
        Err(Refusal::EncodingVersion),
    );
}

#[test]
fn connections() {
    for (fields, expected) in [
        ("Connection: close", LAST),
        ("Connection: x, CLOSE ,y", LAST),
        ("Connection: keep-alive", NONE),
        ("Connection: keep-alive\r\nConnection: close", LAST),
        ("Connection: close, keep-alive", LAST),
        ("Connection: closed", NONE),
        ("Connection:", NONE),
        ("Connection: close\u{e9}", Err(Refusal::FieldNotAscii)),
    ] {
        get(fields, expected);
    }
    check("GET / HTTP/1.0\r\nConnection: keep-alive", NONE);
    check("GET / HTTP/1.0\r\nConnection: keep-alive, close", LAST);
}

#[test]
fn upgrades() {
    const REFUSED: Result<Head, Refusal> = Err(Refusal::Upgrade);
    for (fields, expected) in [
        ("Upgrade: websocket\r\nConnection: Upgrade", TUNNEL),
        (
            "Connection: keep-alive, upgrade\r\nUpgrade: WebSocket",
            TUNNEL,
        ),
        ("Upgrade: websocket", REFUSED),
        ("Upgrade: websocket\r\nConnection: keep-alive", REFUSED),
        ("Upgrade: websocket\r\nConnection: upgrade, close", REFUSED),
        (
            "Upgrade: websocket\r\nConnection: upgrade\r\nContent-Length: 3",
            REFUSED,
        ),
        (
            "Upgrade: websocket\r\nConnection: upgrade\r\nContent-Length: 0",
            REFUSED,
        ),
        (
            "Upgrade: websocket\r\nConnection: upgrade\r\nTransfer-Encoding: chunked",
            REFUSED,
        ),
        (
            "Upgrade: websocket\r\nUpgrade: websocket\r\nConnection: upgrade",
            REFUSED,
        ),
        (
            "Upgrade: h2c\r\nUpgrade: websocket\r\nConnection: upgrade",
            REFUSED,
        ),
        ("Upgrade: h2c, websocket\r\nConnection: upgrade", REFUSED),
        ("Upgrade: websocket/13\r\nConnection: upgrade", REFUSED),
        (
            "Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AA",
            NONE,
        ),
        ("Upgrade: TLS/1.0\r\nConnection: Upgrade", NONE),
        ("Upgrade: websockets\r\nConnection: Upgrade", NONE),
        ("Upgrade:\r\nConnection: Upgrade", NONE),
        ("Connection: Upgrade", NONE),
        (
            "Upgrade: h2c\r\nConnection: Upgrade\r\nContent-Length: 3",
            length(3),
        ),
    ] {
        get(fields, expected);
    }
    post("Upgrade: websocket\r\nConnection: upgrade", REFUSED);
    post("Upgrade: websocket\r\nContent-Length: 3", REFUSED);
    check(
        "GET / HTTP/1.0\r\nUpgrade: websocket\r\nConnection: upgrade, keep-alive",
        REFUSED,
    );
}

#[test]
fn an_ignored_upgrade_is_hidden_from_actix() {
    for (before, after) in [
        (
            "Connection: Upgrade, HTTP2-Settings",
            "Connection:        , HTTP2-Settings",
        ),
        ("Connection: a,\tupgrade\t,b", "Connection: a,\t       \t,b"),
        (
            "Connection:upgrade\r\nConnection: UPGRADE",
            "Connection:       \r\nConnection:        ",
        ),
        (
            "Connection: upgraded, x-upgrade",
            "Connection: upgraded, x-upgrade",
        ),
    ] {
        let whole = |fields: &str| {
            format!("GET / HTTP/1.1\r\nHost: a\r\nUpgrade: h2c\r\n{fields}\r\n\r\n").into_bytes()
        };
        let mut head = whole(before);
        assert_eq!(read_head(&mut head, 96), NONE, "{before:?}");
        assert_eq!(head, whole(after), "{before:?}");
    }
    let mut head =
        b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n".to_vec();
    let before = head.clone();
    assert_eq!(read_head(&mut head, 96), TUNNEL);
    assert_eq!(head, before);
}

#[test]
fn expectations() {
    for (fields, expected) in [
        ("Expect: 100-continue\r\nContent-Length: 3", length(3)),
        ("Expect: 100-Continue", NONE),
        ("Expect: 200-ok", Err(Refusal::Expectation)),
        ("Expect: 100-continue, x=y", Err(Refusal::Expectation)),
        ("Expect:", Err(Refusal::Expectation)),
    ] {
        post(fields, expected);
    }
    check("GET / HTTP/1.0\r\nExpect: x", LAST);
}

#[test]
fn a_cut_head_is_never_a_panic() {
    let head = b"POST /a?b HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nContent-Length: 3\r\n\r\n";
    for start in 0..head.len() {
        for end in start..=head.len() {
            let _ = read(&head[start..end]);
        }
    }
}
