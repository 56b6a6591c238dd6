//! Many requests on a connection, large bodies, expectations, tunnels, places, stopping.

use std::io::{Read, Write};

use std::time::Duration;

use super::client::Client;
use super::{Gateway, ListenerSettings, pattern, settings, until};

#[test]
fn a_hundred_requests_on_one_connection() {
    let gateway = Gateway::plain();
    let mut client = Client::connect(&gateway);
    for at in 0..100 {
        let target = format!("/{at}");
        let answer = client.get(&target);
        assert_eq!(answer.text(), format!("GET {target} 0 pattern"));
        assert_eq!(answer.header("connection"), None);
    }
}

#[test]
fn pipelined_requests_are_answered_in_order_one_at_a_time() {
    let gateway = Gateway::plain();
    let mut client = Client::connect(&gateway);
    let mut bytes = Vec::new();
    for at in 0..200 {
        // Bodies in between, and handlers that answer at once between those that do not.
        let request = match at % 3 {
            0 => format!("GET /{at} HTTP/1.1\r\nHost: a\r\n\r\n"),
            1 => format!("POST /{at} HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nab"),
            _ => format!("GET /now?{at} HTTP/1.1\r\nHost: a\r\n\r\n"),
        };
        bytes.extend(request.into_bytes());
    }
    client.send(&bytes);
    for at in 0..200 {
        let text = match at % 3 {
            0 => format!("GET /{at} 0 pattern"),
            1 => format!("POST /{at} 2 other"),
            _ => format!("/now?{at}"),
        };
        assert_eq!(client.answer().text(), text);
    }
    assert_eq!(client.get("/open").status, 200);
    // One that hangs holds back those behind it.
    gateway.seen.take();
    client.send(b"GET /hang HTTP/1.1\r\nHost: a\r\n\r\nGET /x HTTP/1.1\r\nHost: a\r\n\r\n");
    gateway.seen.wait_hanging(1);
    assert_eq!(gateway.seen.take(), ["GET /hang"]);
}

#[test]
fn pipelined_requests_beyond_what_is_held_are_answered_too() {
    let gateway = Gateway::plain();
    let mut client = Client::connect(&gateway);
    let mut writer = client.second();
    let request = b"GET /now HTTP/1.1\r\nHost: a\r\n\r\n";
    let count = 20_000;
    let sender = std::thread::spawn(move || {
        for _ in 0..count / 100 {
            writer.write_all(&request.repeat(100)).unwrap();
        }
    });
    for _ in 0..count {
        assert_eq!(client.answer().text(), "/now");
    }
    sender.join().unwrap();
}

#[test]
fn large_bodies_pass_intact() {
    const LENGTH: usize = 20_000_003;
    let gateway = Gateway::plain();
    let body: Vec<u8> = (0..LENGTH).map(pattern).collect();
    let mut client = Client::connect(&gateway);
    client
        .send(format!("PUT /a HTTP/1.1\r\nHost: a\r\nContent-Length: {LENGTH}\r\n\r\n").as_bytes());
    client.send(&body);
    assert_eq!(client.answer().text(), format!("PUT /a {LENGTH} pattern"));
    client.send(b"PUT /b HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
    for (at, chunk) in body.chunks(70_001).enumerate() {
        let extension = if at % 50 == 0 { ";x=y" } else { "" };
        client.send(format!("{:X}{extension}\r\n", chunk.len()).as_bytes());
        client.send(chunk);
        client.send(b"\r\n");
    }
    client.send(b"0\r\nx-sum: 1\r\n\r\n");
    assert_eq!(client.answer().text(), format!("PUT /b {LENGTH} pattern"));
    let answer = client.get(&format!("/download?{LENGTH}"));
    assert!(answer.body == body, "the download differs");
    assert_eq!(client.get("/open").status, 200);
}

#[test]
fn a_client_that_knows_no_chunks_gets_none() {
    let gateway = Gateway::plain();
    let mut client = Client::connect(&gateway);
    let get = |target: &str| {
        format!("GET {target} HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n")
    };
    client.send(get("/now").as_bytes());
    let answer = client.answer();
    assert_eq!(answer.text(), "/now");
    assert_eq!(answer.header("connection"), Some("keep-alive"));
    client.send(get("/download?30011").as_bytes());
    let answer = client.head_answer();
    assert_eq!(answer.header("transfer-encoding"), None, "{}", answer.head);
    assert_ne!(answer.header("connection"), Some("keep-alive"));
    let body: Vec<u8> = (0..30_011).map(pattern).collect();
    assert!(client.exactly(30_011) == body, "the download differs");
    client.expect_end();
}

#[test]
fn an_expectation_is_met_before_the_handler_runs() {
    let gateway = Gateway::plain();
    let mut client = Client::connect(&gateway);
    client
        .send(b"POST /e HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n");
    assert_eq!(client.answer().status, 100);
    client.send(b"abc");
    assert_eq!(client.answer().text(), "POST /e 3 other");
    assert_eq!(client.get("/open").status, 200);
}

#[test]
fn a_head_request_is_answered_without_a_body() {
    let gateway = Gateway::plain();
    let mut client = Client::connect(&gateway);
    client.send(b"HEAD /h HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.head_answer().status, 200);
    assert_eq!(client.get("/open").status, 200);
}

#[test]
fn a_tunnel_carries_any_bytes() {
    let gateway = Gateway::plain();
    let mut client = Client::connect(&gateway);
    client.send(
        b"GET /tunnel HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
    );
    let answer = client.try_answer(false).unwrap();
    assert_eq!(
        (answer.status, answer.header("connection")),
        (101, Some("upgrade"))
    );
    for bytes in [
        &b"\0\n\n"[..],
        b"GET /x HTTP/1.1\nHost: a\r\n\r\n",
        &[7; 100_000],
    ] {
        client.send(bytes);
        assert_eq!(client.exactly(bytes.len()), bytes);
    }
    assert_eq!(gateway.seen.take(), ["GET /tunnel"]);
    // Refused by the handler, the bytes behind the head are not a request.
    let mut client = Client::connect(&gateway);
    client.send(
        b"GET /early HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n\
          GET /x HTTP/1.1\r\nHost: a\r\n\r\n",
    );
    let answer = client.answer();
    assert_eq!(
        (answer.status, answer.header("connection")),
        (413, Some("close"))
    );
    client.expect_end();
    assert_eq!(gateway.seen.take(), ["GET /early"]);
}

#[test]
fn a_handler_knows_its_peer() {
    let gateway = Gateway::plain();
    let mut client = Client::connect(&gateway);
    let addr = client.local_addr().to_string();
    assert_eq!(client.get("/peer").text(), addr);
}

#[test]
fn connections_have_places() {
    for (settings, detail) in [
        (
            ListenerSettings {
                connections_max: 2,
                ..settings()
            },
            "this node has as many",
        ),
        (
            ListenerSettings {
                connections_per_ip_max: Some(2),
                ..settings()
            },
            "your address has as many",
        ),
    ] {
        let gateway = Gateway::start(settings);
        let mut first = Client::connect(&gateway);
        let mut second = Client::connect(&gateway);
        assert_eq!(first.get("/a").status, 200);
        assert_eq!(second.get("/b").status, 200);
        let mut third = Client::connect(&gateway);
        third.try_send(b"GET /c HTTP/1.1\r\nHost: a\r\n\r\n");
        let answer = third.answer();
        assert_eq!(
            (answer.status, answer.header("connection")),
            (503, Some("close"))
        );
        assert!(answer.text().contains(detail), "{answer:?}");
        third.expect_end();
        assert_eq!(gateway.handle.connections_refused(), 1);
        assert_eq!(gateway.seen.take(), ["GET /a", "GET /b"]);
        drop(first);
        until("a place is free", || gateway.handle.connections_open() == 1);
        assert_eq!(Client::connect(&gateway).get("/d").status, 200);
        assert_eq!(second.get("/e").status, 200);
    }
}

#[test]
fn draining_lets_requests_end_and_closes_the_idle() {
    // One worker: the end of the idle connection tells that it is told, and not another one only.
    let mut gateway = Gateway::start(ListenerSettings {
        workers: 1,
        ..settings()
    });
    // Connections are told one after the other: one idle before the busy one, one behind it.
    let mut before = Client::connect(&gateway);
    assert_eq!(before.get("/a").status, 200);
    let mut busy = Client::connect(&gateway);
    busy.send(b"POST /b HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n");
    gateway.seen.wait(2);
    let mut idle = Client::connect(&gateway);
    assert_eq!(idle.get("/a").status, 200);
    let reader = std::thread::spawn(move || {
        // The idle end shows that draining has begun.
        before.expect_end();
        idle.expect_end();
        busy.send(b"abc");
        let answer = busy.answer();
        assert_eq!(answer.text(), "POST /b 3 other");
        assert_eq!(answer.header("connection"), Some("close"));
        busy.expect_end();
    });
    gateway.stop(true);
    reader.join().unwrap();
}

#[test]
fn draining_answers_the_first_request_of_a_connection_that_was_just_made() {
    let mut gateway = Gateway::plain();
    let fresh: Vec<Client> = (0..8).map(|_| Client::connect(&gateway)).collect();
    until("all are accepted", || {
        gateway.handle.connections_open() == 8
    });
    let caller = std::thread::spawn(move || {
        for mut client in fresh {
            client.send(b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n");
            assert_eq!(client.answer().status, 200);
        }
    });
    gateway.stop(true);
    caller.join().unwrap();
}

#[test]
fn draining_answers_what_comes_on_an_idle_connection_and_closes_it_then() {
    let mut gateway = Gateway::start(ListenerSettings {
        drain_idle: Duration::from_secs(60),
        ..settings()
    });
    let mut idle: Vec<Client> = (0..4).map(|_| Client::connect(&gateway)).collect();
    for client in &mut idle {
        assert_eq!(client.get("/a").header("connection"), None);
    }
    let handle = gateway.handle.clone();
    let caller = std::thread::spawn(move || {
        until("the drain has begun", || handle.is_leaving());
        for mut client in idle {
            let answer = client.get("/a");
            assert_eq!(
                (answer.status, answer.header("connection")),
                (200, Some("close"))
            );
            client.expect_end();
        }
    });
    // Ends well before the idle ones would be closed: none is left.
    gateway.stop(true);
    caller.join().unwrap();
}

#[test]
fn draining_refuses_a_connection_or_answers_on_it() {
    let mut gateway = Gateway::plain();
    let (addr, handle) = (gateway.addr, gateway.handle.clone());
    let callers: Vec<_> = (0..4)
        .map(|_| {
            let handle = handle.clone();
            std::thread::spawn(move || {
                let mut answered = 0;
                // Each with a connection of its own, until none is taken.
                while let Ok(io) = std::net::TcpStream::connect(addr) {
                    let mut client = Client::on(io);
                    client.send(b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n");
                    assert_eq!(client.answer().status, 200);
                    answered += 1;
                }
                assert!(handle.is_leaving());
                answered
            })
        })
        .collect();
    gateway.seen.wait(100);
    gateway.stop(true);
    for caller in callers {
        assert!(caller.join().unwrap() > 0);
    }
}

#[test]
fn draining_does_not_wait_for_connections_that_never_ask() {
    let mut gateway = Gateway::plain();
    let mut mute = Client::connect(&gateway);
    until("it is accepted", || gateway.handle.connections_open() == 1);
    gateway.stop(true);
    mute.expect_end();
}

#[test]
fn settings_have_bounds() {
    for settings in [
        ListenerSettings {
            workers: 0,
            ..settings()
        },
        ListenerSettings {
            workers: 513,
            ..settings()
        },
        ListenerSettings {
            head_bytes_max: 1_023,
            ..settings()
        },
        ListenerSettings {
            head_bytes_max: 65_536,
            ..settings()
        },
        ListenerSettings {
            headers_max: 0,
            ..settings()
        },
        ListenerSettings {
            headers_max: 97,
            ..settings()
        },
        ListenerSettings {
            connections_max: 0,
            ..settings()
        },
        ListenerSettings {
            connections_per_ip_max: Some(0),
            ..settings()
        },
        ListenerSettings {
            keep_alive: std::time::Duration::ZERO,
            ..settings()
        },
    ] {
        let error = settings.check().unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
        assert!(error.to_string().starts_with("listener."), "{error}");
    }
    ListenerSettings::default().check().unwrap();
}

#[test]
fn a_second_thread_reads_while_we_write() {
    // A handler that answers while the request still comes: the answer says that it is the last.
    let gateway = Gateway::plain();
    let mut client = Client::connect(&gateway);
    client.send(b"POST /download?100000 HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nabc");
    let answer = client.answer();
    assert_eq!(answer.header("connection"), Some("close"));
    assert_eq!(answer.body.len(), 100_000);
    client.send(b"defghi");
    let mut rest = Vec::new();
    client.half_close();
    client.second().read_to_end(&mut rest).unwrap();
    assert_eq!(rest, b"");
}
