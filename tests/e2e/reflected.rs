//! Targets that quote what they were sent: the injected secret does not reach the caller, and
//! everything else does as it came.

use std::io::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::json;

use crate::harness::gateway::{Gateway, Proxy, TARGET_SECRET};
use crate::harness::http::Connection;
use crate::harness::upstream::{After, Gate, Upstream};

fn answer(status: &str, fields: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-length: {}\r\n{fields}\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

fn zipped(text: &str) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(text.as_bytes()).expect("memory");
    encoder.finish().expect("memory")
}

#[test]
fn an_echoed_secret_is_overwritten_and_the_rest_passes_as_it_came() {
    let gateway = Gateway::start();
    let pair = STANDARD.encode(format!("user:{TARGET_SECRET}"));
    let text = format!("bad token {TARGET_SECRET}!");
    let json_text = json!({"error": text, "basic": pair}).to_string();
    let percent = TARGET_SECRET.replace('-', "%2d");
    let gzip = "content-encoding: gzip\r\n";
    let echo = format!("x-token: Bearer {TARGET_SECRET}\r\nx-request-id: {TARGET_SECRET}\r\n");
    let away = format!("location: https://{TARGET_SECRET}.example/{TARGET_SECRET}\r\n");
    let digest = "content-digest: sha-256=:x:\r\netag: \"e\"\r\n";
    let plain = "nothing of it here".to_owned();
    let rows: [(&str, &str, Vec<u8>, u64, &str); 9] = [
        ("200 OK", digest, text.clone().into_bytes(), 1, "searched"),
        (
            "401 Unauthorized",
            "",
            json_text.into_bytes(),
            2,
            "searched",
        ),
        ("302 Found", &away, text.clone().into_bytes(), 3, "searched"),
        (
            "403 Forbidden",
            &echo,
            plain.clone().into_bytes(),
            2,
            "searched",
        ),
        (
            "200 OK",
            "",
            format!("?k={TARGET_SECRET}").into_bytes(),
            1,
            "searched",
        ),
        // Untouched.
        ("404 Not Found", gzip, zipped(&text), 0, "skipped"),
        (
            "404 Not Found",
            digest,
            plain.clone().into_bytes(),
            0,
            "searched",
        ),
        (
            "200 OK",
            "content-encoding: identity\r\n",
            plain.into_bytes(),
            0,
            "searched",
        ),
        // An escape that no serialiser needs: a net has its meshes.
        ("200 OK", "", percent.into_bytes(), 0, "searched"),
    ];
    for (status, fields, body, found, state) in rows {
        let bytes = answer(status, fields, &body);
        let upstream = Upstream::fixed(bytes);
        let proxy = gateway.proxy(&upstream.url());
        let got = proxy.get("/");
        assert_eq!(got.status().to_string(), status[..3], "{}", got.text());
        let record = gateway.record(got.field("requestrocket-request-id").expect("an id"));
        assert_eq!(record["scrubbed"], found, "{status} {fields}");
        assert_eq!(record["scrub"], state, "{status} {fields}");
        assert!(!record.to_string().contains(TARGET_SECRET), "{record}");
        assert_eq!(got.body.len(), body.len());
        if found == 0 {
            assert_eq!(got.body, body, "{status}: as it came");
            assert_eq!(
                got.field("etag"),
                fields.contains("etag").then_some("\"e\"")
            );
        } else {
            let whole = format!("{:?} {}", got.fields, got.text());
            assert!(!whole.contains(TARGET_SECRET), "{whole}");
            assert!(!whole.contains(&pair), "{whole}");
            assert!(whole.contains(&"*".repeat(TARGET_SECRET.len())), "{whole}");
            assert_eq!(got.field("content-digest"), None, "of other bytes");
        }
    }
    let log = gateway.log();
    assert!(log.contains("secret-reflected"), "the operator is told");
    assert!(!log.contains(TARGET_SECRET));
    let counted = gateway.metric("requestrocket_secrets_reflected_total");
    assert!(counted >= 5.0, "{counted}");
}

/// What the chunks that came so far hold.
fn text(chunks: &[u8]) -> String {
    let chunks = String::from_utf8_lossy(chunks);
    chunks.split("\r\n").skip(1).step_by(2).collect()
}

#[test]
fn a_stream_is_searched_over_its_pieces_and_does_not_wait_for_its_end() {
    let gateway = Gateway::start();
    let gate = Gate::default();
    let held = gate.clone();
    let (first, second) = TARGET_SECRET.split_at(6);
    let upstream = Upstream::start(move |_, connection| {
        connection.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n");
        let chunk = |text: &str| format!("{:x}\r\n{text}\r\n", text.len());
        connection.send(chunk(&format!("data: one {first}")));
        held.pass();
        connection.send(chunk(&format!("{second} two ")));
        connection.send(chunk(&format!("{TARGET_SECRET} three {first}")));
        connection.send("0\r\n\r\n");
        After::Keep
    });
    let proxy = gateway.proxy(&upstream.url());
    let mut connection = Connection::open(&gateway.url);
    connection.send(proxy.request("GET", "/").bytes(&gateway.url));
    let head = connection.head().expect("a head");
    assert_eq!(head.status(), 200);
    // What cannot be the secret's beginning is there before the target goes on.
    let mut body = Vec::new();
    while !text(&body).ends_with("data: one ") {
        body.extend(connection.some().expect("the first piece"));
    }
    gate.open();
    while !body.ends_with(b"0\r\n\r\n") {
        body.extend(connection.some().expect("the rest"));
    }
    let stars = "*".repeat(TARGET_SECRET.len());
    let expected = format!("data: one {stars} two {stars} three {first}");
    assert_eq!(text(&body), expected);
}

/// With `scrub: decode` a body in a coding is searched, piece by piece, and comes without it.
#[test]
fn coded_answers_are_decoded_to_be_searched_where_the_proxy_says_so() {
    let gateway = Gateway::start();
    let text = format!("bad token {TARGET_SECRET}!").repeat(3);
    let gzip = "content-encoding: gzip\r\netag: \"e\"\r\naccept-ranges: bytes\r\n\
                content-digest: sha-256=:x:\r\nx-goog-hash: crc32c=x\r\n\
                x-amz-checksum-crc32: x\r\n";
    let coded = zipped(&text);
    let decoding = json!({"scrub": "decode"});
    let asking = |proxy: &Proxy, fields: &[(&str, &str)]| {
        let mut request = proxy.request("GET", "/");
        for (name, value) in fields {
            request = request.field(name, value);
        }
        let got = proxy.send(&request);
        let record = gateway.record(got.field("requestrocket-request-id").expect("an id"));
        (got, record)
    };
    let upstream = Upstream::fixed(answer("200 OK", gzip, &coded));
    let proxy = gateway.proxy_with(&upstream.url(), json!({}), decoding.clone());
    let (got, record) = asking(&proxy, &[("accept-encoding", "deflate, gzip, x-own")]);
    let stars = "*".repeat(TARGET_SECRET.len());
    assert_eq!(got.text(), text.replace(TARGET_SECRET, &stars));
    assert_eq!(
        (&record["scrub"], &record["scrubbed"]),
        (&json!("searched"), &json!(3))
    );
    assert_eq!(record["upstream_response_bytes"], coded.len());
    assert_eq!(record["response_bytes"], text.len());
    for gone in [
        "content-encoding",
        "content-digest",
        "accept-ranges",
        "x-goog-hash",
        "x-amz-checksum-crc32",
    ] {
        assert_eq!(got.field(gone), None);
    }
    assert_eq!(
        got.field("etag"),
        Some("\"e\""),
        "conditions of later requests hold"
    );
    let asked = || upstream.last().field("accept-encoding").map(str::to_owned);
    assert_eq!(asked().as_deref(), Some("gzip, br, zstd"));
    // A part of a coded body is none of a body: the whole is asked for.
    asking(
        &proxy,
        &[("accept-encoding", "gzip"), ("range", "bytes=0-1")],
    );
    assert_eq!(asked().as_deref(), Some("gzip, br, zstd"));
    assert_eq!(upstream.last().field("range"), None);
    // Nothing is added for who takes no coding, or where nothing is injected.
    asking(&proxy, &[("accept-encoding", "identity")]);
    assert_eq!(asked().as_deref(), Some("identity"));
    asking(&proxy, &[]);
    assert_eq!(asked(), None);
    let without = json!({"scrub": "decode", "target_credential_id": null});
    let without = gateway.proxy_with(&upstream.url(), json!({}), without);
    let (got, _) = asking(&without, &[("accept-encoding", "deflate, x-own")]);
    assert_eq!(asked().as_deref(), Some("deflate, x-own"));
    assert_eq!(got.body, coded, "as it came");

    // What cannot be decoded passes, and its record says so.
    for fields in [
        "content-encoding: x-own\r\n",
        "content-encoding: gzip, gzip\r\n",
    ] {
        let upstream = Upstream::fixed(answer("200 OK", fields, &coded));
        let proxy = gateway.proxy_with(&upstream.url(), json!({}), decoding.clone());
        let (got, record) = asking(&proxy, &[]);
        assert_eq!((&got.body, &record["scrub"]), (&coded, &json!("skipped")));
    }
    let part = answer("206 Partial Content", gzip, &coded[..20]);
    let upstream = Upstream::fixed(part);
    let proxy = gateway.proxy_with(&upstream.url(), json!({}), decoding.clone());
    let (got, record) = asking(&proxy, &[("range", "bytes=0-19")]);
    assert_eq!(
        (&*got.body, &record["scrub"]),
        (&coded[..20], &json!("skipped"))
    );

    // A body that is not what its head says breaks off.
    let upstream = Upstream::fixed(answer("200 OK", gzip, &coded[..coded.len() - 9]));
    let proxy = gateway.proxy_with(&upstream.url(), json!({}), decoding);
    let mut connection = Connection::open(&gateway.url);
    connection.send(proxy.request("GET", "/").bytes(&gateway.url));
    let head = connection.head().expect("a head");
    assert_eq!(head.field("content-length"), None);
    let mut body = Vec::new();
    while let Some(some) = connection.some() {
        body.extend(some);
    }
    assert!(!body.ends_with(b"0\r\n\r\n"), "{body:?}");
}

/// Who leaves before all is decoded has left, though the target has sent everything.
#[test]
fn a_caller_that_leaves_a_decoded_answer_has_left() {
    let gateway = Gateway::start();
    let coded = zipped(&"x".repeat(64 * 1024 * 1024));
    let gzip = "content-encoding: gzip\r\n";
    let upstream = Upstream::fixed(answer("200 OK", gzip, &coded));
    let decoding = json!({"scrub": "decode"});
    let proxy = gateway.proxy_with(&upstream.url(), json!({}), decoding);
    let mut connection = Connection::open(&gateway.url);
    connection.send(proxy.request("GET", "/").bytes(&gateway.url));
    let head = connection.head().expect("a head");
    let id = head.field("requestrocket-request-id").expect("an id");
    drop(connection);
    let record = gateway.record(id);
    assert_eq!(record["client_aborted"], true, "{record}");
    assert_eq!(record["code"], "client-aborted");
}

/// Each piece of a coded stream goes on when it is there.
#[test]
fn a_coded_stream_does_not_wait_for_its_end() {
    let gateway = Gateway::start();
    let gate = Gate::default();
    let held = gate.clone();
    let upstream = Upstream::start(move |_, connection| {
        connection.send(
            "HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-type: text/event-stream\r\n\
             transfer-encoding: chunked\r\n\r\n",
        );
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        for part in ["data: one\n\n", "data: two\n\n"] {
            encoder.write_all(part.as_bytes()).expect("memory");
            encoder.flush().expect("memory");
            let coded = std::mem::take(encoder.get_mut());
            connection.send(format!("{:x}\r\n", coded.len()));
            connection.send(&coded);
            connection.send("\r\n");
            held.pass();
        }
        let rest = encoder.finish().expect("memory");
        connection.send(format!("{:x}\r\n", rest.len()));
        connection.send(&rest);
        connection.send("\r\n0\r\n\r\n");
        After::Keep
    });
    let decoding = json!({"scrub": "decode"});
    let proxy = gateway.proxy_with(&upstream.url(), json!({}), decoding);
    let mut connection = Connection::open(&gateway.url);
    connection.send(proxy.request("GET", "/").bytes(&gateway.url));
    let head = connection.head().expect("a head");
    assert_eq!(head.field("content-encoding"), None);
    let mut body = Vec::new();
    while !text(&body).contains("data: one\n\n") {
        body.extend(connection.some().expect("the first event"));
    }
    gate.open();
    while !body.ends_with(b"0\r\n\r\n") {
        body.extend(connection.some().expect("the rest"));
    }
    assert_eq!(text(&body), "data: one\n\ndata: two\n\n");
}

#[test]
fn what_filters_let_through_is_searched_too() {
    let gateway = Gateway::start();
    let body = json!({"keep": TARGET_SECRET, "drop": 1}).to_string();
    let events = format!("data: {body}\n\n");
    for (kind, body) in [("application/json", body), ("text/event-stream", events)] {
        let fields = format!("content-type: {kind}\r\ncontent-encoding: gzip\r\n");
        let plain = format!("content-type: {kind}\r\n");
        let bytes = match kind {
            "application/json" => answer("200 OK", &fields, &zipped(&body)),
            _ => answer("200 OK", &plain, body.as_bytes()),
        };
        let upstream = Upstream::fixed(bytes);
        let proxy = gateway.proxy(&upstream.url());
        gateway.create(
            &format!("/proxies/{}/filters", proxy.id),
            json!({"op": "destroy", "paths": ["$.drop"]}),
        );
        let got = proxy.get("/");
        let expected = json!({"keep": "*".repeat(TARGET_SECRET.len())}).to_string();
        assert!(got.text().contains(&expected), "{kind}: {}", got.text());
        let record = gateway.record(got.field("requestrocket-request-id").expect("an id"));
        assert_eq!(
            (&record["scrubbed"], &record["scrub"]),
            (&json!(1), &json!("searched"))
        );
    }
}

#[test]
fn a_secret_too_short_to_be_searched_is_said_when_it_is_saved() {
    let gateway = Gateway::start();
    let credential = |token: &str| {
        json!({
            "kind": "target", "auth_type": "bearer", "secret": {"token": token},
            "hosts": ["https://api.example.com"],
        })
    };
    let short = gateway.create("/credentials", credential("short-token"));
    assert_eq!(
        short["warnings"][0]["code"], "secret-not-searched",
        "{short}"
    );
    assert_eq!(short["warnings"][0]["pointer"], "/secret/token");
    let path = format!("/credentials/{}", short["id"].as_str().expect("an id"));
    let longer = json!({"secret": {"token": "longer-token"}});
    let longer = gateway.patch(&path, longer);
    assert_eq!(longer.get("warnings"), None, "{longer}");
    let again = gateway.patch(&path, json!({"secret": {"token": "tiny"}}));
    assert_eq!(
        again["warnings"][0]["code"], "secret-not-searched",
        "{again}"
    );
}

#[test]
fn no_more_than_a_few_bytes_of_a_secret_are_read_in_parts() {
    let gateway = Gateway::start();
    let said = format!("you sent Bearer {TARGET_SECRET}, it seems");
    let length = said.len();
    let upstream = Upstream::start(move |request, connection| {
        let range = request.field("range").and_then(|range| {
            let (from, to) = range.strip_prefix("bytes=")?.split_once('-')?;
            let from: usize = from.parse().ok()?;
            let to: usize = to.parse().ok()?;
            Some((from, to.min(said.len() - 1)))
        });
        connection.send(match range {
            Some((from, to)) => {
                let range = format!("content-range: bytes {from}-{to}/{}\r\n", said.len());
                answer("206 Partial Content", &range, &said.as_bytes()[from..=to])
            }
            None => answer("200 OK", "", said.as_bytes()),
        });
        After::Keep
    });
    let proxy = gateway.proxy(&upstream.url());
    for bytes in [5, 9, 17] {
        let (mut read, mut scrubbed) = (String::new(), 0);
        for from in (0..length).step_by(bytes) {
            let range = format!("bytes={from}-{}", from + bytes - 1);
            let part = proxy.send(&proxy.request("GET", "/").field("range", &range));
            assert_eq!(part.status(), 206);
            read.push_str(&part.text());
            let id = part.field("requestrocket-request-id").expect("an id");
            scrubbed += gateway.record(id)["scrubbed"].as_u64().unwrap_or_default();
        }
        assert_eq!(read.len(), length);
        assert!(read.starts_with("you sent Bearer ") && read.ends_with(" it seems"));
        let middle = &TARGET_SECRET[3..TARGET_SECRET.len() - 3];
        assert!(!read.contains(middle) && scrubbed > 0, "{bytes}: {read}");
    }
    // Parts of which the edges are not seen are not asked for.
    let several = |proxy: &Proxy| {
        let request = proxy.request("GET", "/");
        proxy.send(&request.field("range", "bytes=0-19,20-30"))
    };
    let whole = several(&proxy);
    assert_eq!(whole.status(), 200);
    assert!(!whole.text().contains(TARGET_SECRET), "{}", whole.text());
    assert_eq!(upstream.last().field("range"), None);
    // Where no secret is sent they are.
    let nothing = gateway.create(
        "/credentials",
        json!({"kind": "target", "auth_type": "none"}),
    );
    let fields = json!({"target_credential_id": nothing["id"]});
    let proxy = gateway.proxy_with(&upstream.url(), json!({}), fields);
    several(&proxy);
    assert_eq!(upstream.last().field("range"), Some("bytes=0-19,20-30"));
}

#[test]
fn the_ends_of_a_body_that_a_part_holds_are_no_edges() {
    let gateway = Gateway::start();
    let (begin, end) = TARGET_SECRET.split_at(TARGET_SECRET.len() / 2);
    let said = format!("{end} and {begin}");
    let last = said.len() - 1;
    for (first, length, is_begin, is_end) in [
        (0, last + 1, true, true),
        (0, last + 2, true, false),
        (1, last + 2, false, true),
    ] {
        let range = format!("content-range: bytes {first}-{}/{length}\r\n", first + last);
        let part = answer("206 Partial Content", &range, said.as_bytes());
        let upstream = Upstream::fixed(part);
        let text = gateway.proxy(&upstream.url()).get("/").text();
        assert_eq!(text.starts_with(end), is_begin, "{text}");
        assert_eq!(text.ends_with(begin), is_end, "{text}");
    }
}

#[test]
fn a_redirect_of_a_target_whose_secret_stands_in_the_path_leads_back_through_the_proxy() {
    let gateway = Gateway::start();
    let upstream = Upstream::start(|request, connection| {
        let target = request.target();
        let fields = match target.split_once("/moved") {
            Some((before, rest)) => format!("location: {before}{rest}\r\n"),
            None => String::new(),
        };
        connection.send(answer("301 Moved Permanently", &fields, target.as_bytes()));
        After::Keep
    });
    for key in ["123456:AAH-plain-secret-xyz", "123456:AAH/foo+bar==xyz"] {
        let credential = gateway.create(
            "/credentials",
            json!({
                "kind": "target", "auth_type": "api_key", "hosts": [upstream.url()],
                "settings": {"path": "/bot{secret}"}, "secret": {"key": key},
            }),
        );
        let fields = json!({"target_credential_id": credential["id"]});
        let proxy = gateway.proxy_with(&upstream.url(), json!({}), fields);
        let moved = proxy.get("/moved/getMe?a=1");
        let location = moved.field("location").expect("a reference").to_owned();
        assert_eq!(location, format!("{}/getMe?a=1", proxy.path), "{key}");
        assert!(!moved.text().contains("AAH"), "{}", moved.text());
        let sent = upstream.last().target().to_owned();
        proxy.get("/getMe?a=1");
        assert_eq!(upstream.last().target(), sent.replace("/moved", ""));
    }
}
