//! Deadlines of every request of a connection. No test asserts how long something took; each
//! waits for what must come.

use std::time::Duration;

use super::client::Client;
use super::{Gateway, ListenerSettings, SHORT, settings, until};

fn check_408(client: &mut Client) {
    let answer = client.answer();
    assert_eq!(
        (answer.status, answer.header("connection")),
        (408, Some("close"))
    );
    client.expect_end();
}

#[test]
fn a_slow_head_is_answered_408() {
    let gateway = Gateway::start(ListenerSettings {
        head_timeout: SHORT,
        ..settings()
    });
    for part in [
        "G",
        "\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\n\r",
    ] {
        let mut client = Client::connect(&gateway);
        client.send(part.as_bytes());
        check_408(&mut client);
        // Also on every later request of a connection.
        let mut client = Client::connect(&gateway);
        assert_eq!(client.get("/a").status, 200);
        assert_eq!(client.get("/b").status, 200);
        client.send(part.as_bytes());
        check_408(&mut client);
        // Also behind one that is pipelined.
        let mut client = Client::connect(&gateway);
        client.send(format!("GET /a HTTP/1.1\r\nHost: a\r\n\r\n{part}").as_bytes());
        assert_eq!(client.answer().status, 200);
        check_408(&mut client);
    }
}

#[test]
fn a_trickled_head_is_answered_408() {
    let gateway = Gateway::start(ListenerSettings {
        head_timeout: SHORT,
        ..settings()
    });
    let mut client = Client::connect(&gateway);
    assert_eq!(client.get("/a").status, 200);
    let mut writer = client.second();
    let trickle = std::thread::spawn(move || {
        let mut bytes = b"GET / HTTP/1.1\r\nx: "
            .iter()
            .chain(std::iter::repeat(&b'y'));
        loop {
            let byte = *bytes.next().unwrap();
            if std::io::Write::write_all(&mut writer, &[byte]).is_err() {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    });
    let answer = client.answer();
    assert_eq!(answer.status, 408);
    drop(client);
    trickle.join().unwrap();
}

#[test]
fn a_connection_without_a_request_closes_silently() {
    let settings = ListenerSettings {
        head_timeout: SHORT,
        keep_alive: SHORT,
        ..settings()
    };
    let gateway = Gateway::start(settings);
    Client::connect(&gateway).expect_end();
    let mut client = Client::connect(&gateway);
    assert_eq!(client.get("/a").status, 200);
    client.expect_end();
    until("all are closed", || gateway.handle.connections_open() == 0);
}

#[test]
fn a_stalled_body_ends_in_the_handler() {
    let gateway = Gateway::start(ListenerSettings {
        body_read_timeout: SHORT,
        ..settings()
    });
    for (fields, body) in [
        ("Content-Length: 10", "ab"),
        ("Content-Length: 10", ""),
        ("Transfer-Encoding: chunked", ""),
        ("Transfer-Encoding: chunked", "3\r\nab"),
        ("Transfer-Encoding: chunked", "3;x"),
        ("Transfer-Encoding: chunked", "3\r\nabc\r\n0\r\n"),
        ("Transfer-Encoding: chunked", "0\r\nx: y\r\n\r"),
    ] {
        let mut client = Client::connect(&gateway);
        assert_eq!(client.get("/first").status, 200);
        client.send(format!("POST /s HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n{body}").as_bytes());
        check_408(&mut client);
        assert_eq!(gateway.seen.take(), ["GET /first", "POST /s"]);
    }
}

#[test]
fn a_slow_handler_has_no_deadline_of_the_listener() {
    let settings = ListenerSettings {
        head_timeout: SHORT,
        body_read_timeout: SHORT,
        keep_alive: SHORT,
        ..settings()
    };
    let gateway = Gateway::start(settings);
    let mut slow = Client::connect(&gateway);
    slow.send(b"POST /hang HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc");
    gateway.seen.wait_hanging(1);
    // All deadlines pass on another connection, one after the other.
    for _ in 0..3 {
        Client::connect(&gateway).expect_end();
    }
    gateway.seen.wait_hanging(1);
    drop(slow);
    gateway.seen.wait_hanging(0);
}

#[test]
fn a_client_that_reads_nothing_is_given_up() {
    let gateway = Gateway::start(ListenerSettings {
        write_timeout: SHORT,
        ..settings()
    });
    let mut client = Client::connect(&gateway);
    client.send(b"GET /download?1000000000 HTTP/1.1\r\nHost: a\r\n\r\n");
    gateway.seen.wait(1);
    until("the connection is given up", || {
        gateway.handle.connections_open() == 0
    });
}

#[test]
fn a_body_that_nobody_waits_for_is_not_read_for_ever() {
    let gateway = Gateway::plain();
    let mut client = Client::connect(&gateway);
    client.send(b"POST /early HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n");
    assert_eq!(client.answer().status, 413);
    let mut writer = client.second();
    let endless = std::thread::spawn(move || {
        while std::io::Write::write_all(&mut writer, b"a\r\n1\r\n").is_ok() {
            std::thread::sleep(Duration::from_millis(5));
        }
    });
    until("the connection is given up", || {
        gateway.handle.connections_open() == 0
    });
    endless.join().unwrap();
}
