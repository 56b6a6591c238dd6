//! Rows: bytes in; statuses out, whether the connection ends, and which requests ran.

use super::client::Client;
use super::{Gateway, settings};

/// A whole request with a body that the test app answers 200.
const NEXT: &str = "GET /next HTTP/1.1\r\nHost: a\r\n\r\n";

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Then {
    Open,
    Closed,
}
use Then::{Closed, Open};

struct Row<'a> {
    bytes: &'a [u8],
    statuses: &'a [u16],
    then: Then,
    ran: &'a [&'a str],
}

fn check(gateway: &Gateway, row: &Row<'_>) {
    let name = String::from_utf8_lossy(row.bytes)
        .chars()
        .take(200)
        .collect::<String>();
    gateway.seen.take();
    let mut client = Client::connect(gateway);
    client.try_send(row.bytes);
    for (at, status) in row.statuses.iter().enumerate() {
        let answer = client
            .try_answer(true)
            .unwrap_or_else(|| panic!("{name:?}: no answer {at}"));
        assert_eq!(answer.status, *status, "{name:?}: answer {at}: {answer:?}");
        let last = at + 1 == row.statuses.len();
        if last && row.then == Closed && row.ran.is_empty() {
            assert_eq!(answer.header("connection"), Some("close"), "{name:?}");
            assert_eq!(
                answer.header("content-type"),
                Some("application/problem+json"),
                "{name:?}"
            );
        }
    }
    match row.then {
        Closed => client.expect_end(),
        Open => assert_eq!(client.get("/open").status, 200, "{name:?}: not open"),
    }
    let mut ran = row.ran.to_vec();
    ran.extend((row.then == Open).then_some("GET /open"));
    assert_eq!(gateway.seen.take(), ran, "{name:?}");
}

/// Refused before any handler, with the next request behind it.
fn refused(gateway: &Gateway, bytes: &[u8], status: u16) {
    let bytes = [bytes, NEXT.as_bytes()].concat();
    check(
        gateway,
        &Row {
            bytes: &bytes,
            statuses: &[status],
            then: Closed,
            ran: &[],
        },
    );
    // The same behind a good request: that one is answered, then this one refused.
    let second = [NEXT.as_bytes(), &bytes].concat();
    let row = Row {
        bytes: &second,
        statuses: &[200, status],
        then: Closed,
        ran: &["GET /next"],
    };
    check(gateway, &row);
}

fn get_refused(gateway: &Gateway, fields: &str, status: u16) {
    let bytes = format!("GET /bad HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n");
    refused(gateway, bytes.as_bytes(), status);
}

fn post_refused(gateway: &Gateway, fields: &str, status: u16) {
    let bytes = format!("POST /bad HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\nabc");
    refused(gateway, bytes.as_bytes(), status);
}

fn ran(gateway: &Gateway, bytes: &str, requests: &[&str], then: Then) {
    let statuses = vec![200; requests.len()];
    let row = Row {
        bytes: bytes.as_bytes(),
        statuses: &statuses,
        then,
        ran: requests,
    };
    check(gateway, &row);
}

#[test]
fn framing_that_could_be_read_twice_is_refused() {
    let gateway = Gateway::plain();
    for fields in [
        "Content-Length: 3\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 3",
        "Content-Length: 3\r\nContent-Length: 3",
        "Content-Length: 3\r\nContent-Length: 4",
        "Content-Length: 3, 3",
        "Content-Length: +3",
        "Content-Length: -1",
        "Content-Length: 0x3",
        "Content-Length:",
        "Content-Length: 18446744073709551616",
        "Content-Length: \x0b3",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked, chunked",
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding: identity",
        "Transfer-Encoding: gzip, chunked",
        "Transfer-Encoding: chunked;q=1",
        "Content-Length: 3\r\n x: folded",
        "Content-Length : 3",
        ": 3",
        "x: \0",
        "x: a\rb",
        "x: \x01",
        "x: \x7f",
        "x\0: a",
        // 1: with actix-web alone, everything that follows would be the body.
        "Content-Length: 3\r\nUpgrade: websocket",
        "Upgrade: websocket\r\nConnection: upgrade",
        "Transfer-Encoding: chunked\r\nUpgrade: websocket\r\nConnection: upgrade",
    ] {
        post_refused(&gateway, fields, 400);
    }
    refused(
        &gateway,
        b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
        400,
    );
    refused(&gateway, b"POST / HTTP/1.0\r\n\r\n", 400);
}

#[test]
fn heads_that_are_not_http_1_are_refused() {
    let gateway = Gateway::plain();
    for (bytes, status) in [
        ("GET / HTTP/1.1\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        // 5
        ("GET / HTTP/1.1\r\nHost:\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a b/c@d\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a,b\r\n\r\n", 400),
        ("GET  / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET /\0 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET /\u{e9} HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET /#a HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET /\r\n\r\n", 400),
        ("GET / HTTP/1.2\r\nHost: a\r\n\r\n", 505),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        ("\x16\x03\x01", 400),
        // 4
        ("GET http://evil/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET ftp://user:pass@a/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET evil:80 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET abc HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET * HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        // 6
        ("TRACE / HTTP/1.1\r\nHost: a\r\n\r\n", 405),
        ("CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n", 405),
        ("get / HTTP/1.1\r\nHost: a\r\n\r\n", 501),
        ("BREW / HTTP/1.1\r\nHost: a\r\n\r\n", 501),
        // 7
        ("GET / HTTP/1.1\nHost: a\n\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\r\n\n", 400),
        ("\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        // 9
        (
            "POST / HTTP/1.1\r\nHost: a\r\nExpect: x\r\nContent-Length: 3\r\n\r\n",
            417,
        ),
    ] {
        refused(&gateway, bytes.as_bytes(), status);
    }
    get_refused(&gateway, "Upgrade: websocket", 400);
    get_refused(
        &gateway,
        "Upgrade: h2c, websocket\r\nConnection: upgrade",
        400,
    );
    get_refused(&gateway, &"x: y\r\n".repeat(97), 431);
    get_refused(&gateway, &format!("x: {}", "y".repeat(70_000)), 431);
    // The answer is read although the client is still sending.
    get_refused(&gateway, &format!("x: {}", "y".repeat(2_000_000)), 431);
}

#[test]
fn good_requests_run_and_keep_the_connection() {
    let gateway = Gateway::plain();
    for (bytes, request) in [
        (NEXT, "GET /next"),
        ("\r\nGET /lead HTTP/1.1\r\nHost: a\r\n\r\n", "GET /lead"),
        ("GET /a HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", "GET /a"),
        ("PROPFIND /dav HTTP/1.1\r\nhost: a\r\n\r\n", "PROPFIND /dav"),
        (
            "POST /l HTTP/1.1\r\nHost: a\r\nContent-Length: 003\r\n\r\nabc",
            "POST /l",
        ),
        (
            "POST /z HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
            "POST /z",
        ),
        (
            "GET /b HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc",
            "GET /b",
        ),
        (
            "POST /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n\
             3;x=\"y\"\r\nabc\r\n0\r\nx: y\r\n\r\n",
            "POST /c",
        ),
        // 10: bytes of the target as they came.
        (
            "GET /%2F%2e%2e/..//./%00%0d%0a%zz\\;x?&&=&%41 HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /%2F%2e%2e/..//./%00%0d%0a%zz\\;x?&&=&%41",
        ),
        ("GET //evil/x HTTP/1.1\r\nHost: a\r\n\r\n", "GET //evil/x"),
        (
            "GET /{\"a\":[1]}|^ HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /{\"a\":[1]}|^",
        ),
        // 12, 13: for the hygiene behind us.
        (
            "GET /n HTTP/1.1\r\nHost: a\r\nConnection: x\r\nx: y\r\n\r\n",
            "GET /n",
        ),
        (
            "GET /u HTTP/1.1\r\nHost: a\r\nTransfer_Encoding: chunked\r\n\r\n",
            "GET /u",
        ),
        // 4: a URL of the host that `Host` names.
        (
            "GET http://A/url?q HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /url?q",
        ),
        // An upgrade that we ignore neither closes nor answers `connection: upgrade`.
        (
            "GET /h2c HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\n\
             Upgrade: h2c\r\nHTTP2-Settings: AA\r\n\r\n",
            "GET /h2c",
        ),
        (
            "POST /h2c HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\
             Content-Length: 3\r\n\r\nabc",
            "POST /h2c",
        ),
        (
            "GET /10 HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
            "GET /10",
        ),
    ] {
        ran(&gateway, bytes, &[request], Open);
    }
}

#[test]
fn nothing_runs_behind_a_request_that_closes() {
    let gateway = Gateway::plain();
    for head in [
        "GET /last HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        "GET /last HTTP/1.1\r\nHost: a\r\nConnection: x, CLOSE\r\n\r\n",
        "GET /last HTTP/1.0\r\n\r\n",
        "GET /last HTTP/1.0\r\nHost: a\r\n\r\n",
    ] {
        ran(&gateway, head, &["GET /last"], Closed);
        ran(&gateway, &format!("{head}{NEXT}"), &["GET /last"], Closed);
        // Nor is it refused: the answer was the last.
        ran(&gateway, &format!("{head}\0\0\0"), &["GET /last"], Closed);
        ran(
            &gateway,
            &format!("{NEXT}{head}{NEXT}"),
            &["GET /next", "GET /last"],
            Closed,
        );
    }
    // The handler may close as well.
    let bytes = format!("GET /close HTTP/1.1\r\nHost: a\r\n\r\n{NEXT}");
    ran(&gateway, &bytes, &["GET /close"], Closed);
}

#[test]
fn nothing_runs_behind_a_body_that_was_not_read() {
    let gateway = Gateway::plain();
    for (fields, body) in [
        ("Content-Length: 9", "abc"),
        ("Transfer-Encoding: chunked", "1\r\n"),
    ] {
        let bytes = format!("POST /early HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n{body}");
        gateway.seen.take();
        let mut client = Client::connect(&gateway);
        client.send(bytes.as_bytes());
        let answer = client.answer();
        assert_eq!(
            (answer.status, answer.header("connection")),
            (413, Some("close"))
        );
        // Would be the rest of the body, and a request behind it.
        client.try_send(format!("a\r\n0\r\n\r\n{NEXT}").as_bytes());
        client.half_close();
        client.expect_end();
        assert_eq!(gateway.seen.take(), ["POST /early"]);
    }
}

#[test]
fn bodies_that_are_not_chunked_properly_end_in_the_handler() {
    let gateway = Gateway::plain();
    for (body, status) in [
        // 8
        ("0x2\r\nab\r\n0\r\n\r\n", 400),
        ("+2\r\nab\r\n0\r\n\r\n", 400),
        ("-2\r\nab\r\n0\r\n\r\n", 400),
        ("zz\r\n", 400),
        ("2 \r\nab\r\n0\r\n\r\n", 400),
        ("fffffffffffffffff\r\n", 400),
        ("2\nab\r\n0\r\n\r\n", 400),
        ("2\r\nab\n0\r\n\r\n", 400),
        ("2\r\nabc\r\n0\r\n\r\n", 400),
        ("2;a\nab\r\n0\r\n\r\n", 400),
        // 3
        ("0\r\n\n", 400),
        ("0\r\nno colon\r\n\r\n", 400),
    ] {
        bad_body(&gateway, body, status);
    }
    bad_body(&gateway, &format!("2;{}", "x".repeat(20_000)), 413);
    bad_body(&gateway, &format!("0\r\nx: {}", "y".repeat(20_000)), 431);
    bad_body(&gateway, &format!("2;{}", "x".repeat(1_000_000)), 413);
    bad_body(
        &gateway,
        &format!("0\r\n{}", "x: y\r\n".repeat(200_000)),
        431,
    );
}

fn bad_body(gateway: &Gateway, body: &str, status: u16) {
    let head = "POST /bad HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    let bytes = format!("{head}{body}{NEXT}");
    let row = Row {
        bytes: bytes.as_bytes(),
        statuses: &[status],
        then: Closed,
        ran: &["POST /bad"],
    };
    check(gateway, &row);
    // And when the fault comes while the handler waits for it.
    gateway.seen.take();
    let mut client = Client::connect(gateway);
    client.send(format!("{head}3\r\nabc\r\n").as_bytes());
    gateway.seen.wait(1);
    client.try_send(format!("{body}{NEXT}").as_bytes());
    let answer = client.answer();
    assert_eq!(
        (answer.status, answer.header("connection")),
        (status, Some("close")),
        "{body:.50}"
    );
    client.expect_end();
    assert_eq!(gateway.seen.take(), ["POST /bad"]);
}

#[test]
fn requests_arrive_whole_byte_by_byte() {
    let gateway = Gateway::plain();
    let stream = "POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc\
                  POST /b HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n\
                  3;x=y\r\nabc\r\n0\r\nx: y\r\n\r\n\
                  GET /c HTTP/1.1\r\nHost: a\r\n\r\n";
    let mut client = Client::connect(&gateway);
    for byte in stream.as_bytes() {
        client.send(&[*byte]);
    }
    for text in ["POST /a 3 other", "POST /b 3 other", "GET /c 0 pattern"] {
        assert_eq!(client.answer().text(), text);
    }
    assert_eq!(gateway.seen.take(), ["POST /a", "POST /b", "GET /c"]);
}

#[test]
fn a_refusal_says_why() {
    let gateway = Gateway::start(settings());
    let mut client = Client::connect(&gateway);
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n");
    let answer = client.answer();
    let document: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(document["code"], "malformed-request");
    assert_eq!(document["status"], 400);
    assert_eq!(document["detail"], "there is more than one Host header");
    assert_eq!(
        answer.header("requestrocket-proxy-code"),
        Some("malformed-request")
    );
    let id = answer.header("requestrocket-request-id").unwrap();
    assert_eq!(document["request_id"], id);
}
