//! Clients that go away: the handler's future, or the answer's body, is dropped.

use super::client::Client;
use super::{Gateway, until};

const HANG: &[u8] = b"GET /hang HTTP/1.1\r\nHost: a\r\n\r\n";

/// A handler is dropped when `leave` happens to the client.
fn check(request: &[u8], leave: impl FnOnce(Client)) {
    let gateway = Gateway::plain();
    let mut client = Client::connect(&gateway);
    assert_eq!(client.get("/a").status, 200);
    client.send(request);
    gateway.seen.wait_hanging(1);
    leave(client);
    gateway.seen.wait_hanging(0);
    until("the connection is gone", || {
        gateway.handle.connections_open() == 0
    });
}

#[test]
fn a_handler_that_waits_is_dropped() {
    check(HANG, drop);
}

#[test]
fn a_client_that_only_stops_sending_is_gone_too() {
    check(HANG, |mut client| {
        client.half_close();
        client.expect_end();
    });
}

#[test]
fn a_reset_drops_the_handler() {
    check(HANG, |client| {
        let socket = socket2::Socket::from(client.second());
        // With a linger time of zero a close is a reset.
        socket.set_linger(Some(std::time::Duration::ZERO)).unwrap();
        drop(client);
        drop(socket);
    });
}

#[test]
fn pipelined_requests_behind_it_hide_nothing() {
    check(
        &[HANG, b"GET /b HTTP/1.1\r\nHost: a\r\n\r\n", b"GET /c HT"].concat(),
        drop,
    );
}

#[test]
fn a_body_that_is_read_or_not_hides_nothing() {
    check(
        b"POST /hang HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc",
        drop,
    );
    check(
        b"POST /hang HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nabc",
        drop,
    );
    let large = "a".repeat(60_000);
    let request = format!("POST /hang HTTP/1.1\r\nHost: a\r\nContent-Length: 60000\r\n\r\n{large}");
    check(request.as_bytes(), drop);
}

#[test]
fn the_body_of_an_answer_is_dropped() {
    let gateway = Gateway::plain();
    let mut client = Client::connect(&gateway);
    client.send(b"GET /hang-body HTTP/1.1\r\nHost: a\r\n\r\n");
    gateway.seen.wait_hanging(1);
    drop(client);
    gateway.seen.wait_hanging(0);
}

#[test]
fn a_handler_that_answers_at_once_still_does() {
    let gateway = Gateway::plain();
    let mut client = Client::connect(&gateway);
    client.send(b"GET /now HTTP/1.1\r\nHost: a\r\n\r\n");
    client.half_close();
    assert_eq!(client.answer().text(), "/now");
    client.expect_end();
}

#[test]
fn a_client_that_leaves_between_requests_is_no_error() {
    let gateway = Gateway::plain();
    for part in ["", "GET / HT", "\r\n"] {
        let mut client = Client::connect(&gateway);
        assert_eq!(client.get("/a").status, 200);
        client.send(part.as_bytes());
        client.half_close();
        client.expect_end();
    }
    until("all are gone", || gateway.handle.connections_open() == 0);
}
