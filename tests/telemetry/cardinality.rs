//! Callers that send something else each time (methods, paths, names and values of headers, names
//! of proxies) make no series and take no memory for them.
//!
//! Of each kind there are [`DISTINCT`], or as many as `REQUESTROCKET_CARDINALITY` says: a million
//! take some minutes, and show most about memory.

use std::sync::atomic::{AtomicU32, Ordering};

use crate::harness::gateway::{Gateway, Proxy};
use crate::harness::http::{Connection, Request};
use crate::harness::upstream::{Upstream, json_answer};

/// How many of each kind, unless it is said.
const DISTINCT: u32 = 10_000;
/// Callers at a time.
const CALLERS: u32 = 16;
/// Of so many requests with a known method one names no proxy, and one has no valid key.
const EACH: u32 = 10;
/// Series that may come after the first tenth: those of what happens seldom.
const SERIES_MORE_MAX: usize = 200;
/// KiB that the process may grow by after the first tenth. A million of anything that is kept, of
/// each kind, are some hundred MiB.
const GROWN_KIB_MAX: u64 = 64 * 1024;

/// The `n`th request with this method, of which nothing is as in any other but the proxy and its
/// key.
fn request(proxy: &Proxy, method: &str, n: u32) -> Request {
    let path = match n % EACH {
        1 => format!("/api/prx_{n:026}/of/{n}"),
        _ => format!("{}/path-{n}?query-{n}={n}", proxy.path),
    };
    let key = match n % EACH {
        2 => format!("wrong-{n}"),
        _ => proxy.key.clone(),
    };
    let [_, a, b, c] = n.to_be_bytes();
    Request::new(method, &path)
        .field("authorization", &format!("Bearer {key}"))
        .field("user-agent", &format!("agent-{n}"))
        .field(&format!("x-name-{n}"), &format!("value-{n}"))
        .field("x-forwarded-for", &format!("10.{a}.{b}.{c}"))
}

/// A connection of a caller, made anew where the gateway closes it.
struct Caller<'g> {
    gateway: &'g Gateway,
    connection: Connection,
}

impl<'g> Caller<'g> {
    fn new(gateway: &'g Gateway) -> Self {
        let connection = Connection::open(&gateway.url);
        Self {
            gateway,
            connection,
        }
    }

    /// Sends a request, which is answered with one of these statuses.
    fn call(&mut self, request: &Request, expected: &[u16]) {
        self.connection.send(request.bytes(&self.gateway.url));
        let answer = self.connection.read().expect("an answer");
        let status = answer.status();
        assert!(expected.contains(&status), "{request:?}: {answer:?}");
        if answer.field("connection") == Some("close") {
            self.connection = Connection::open(&self.gateway.url);
        }
    }
}

/// Sends the requests with the numbers from `from` to `to`: each with a method that nobody knows,
/// which is refused, and with one that goes on.
fn send(gateway: &Gateway, proxy: &Proxy, from: u32, to: u32) {
    let next = AtomicU32::new(from);
    let calls = || {
        let mut caller = Caller::new(gateway);
        loop {
            let n = next.fetch_add(1, Ordering::Relaxed);
            if n >= to {
                return;
            }
            caller.call(&request(proxy, &format!("METHOD{n}"), n), &[501]);
            let expected = match n % EACH {
                1 => &[404, 401][..],
                2 => &[401],
                _ => &[200],
            };
            caller.call(&request(proxy, "GET", n), expected);
        }
    };
    std::thread::scope(|scope| {
        (0..CALLERS).for_each(|_| drop(scope.spawn(calls)));
    });
}

/// How many series `/metrics` has, its bytes, and KiB that the process has in memory.
fn size(gateway: &Gateway) -> (usize, usize, u64) {
    let answer = gateway.control_call("GET", "/metrics", Some(&gateway.token), None);
    let text = answer.text();
    let series = text.lines().filter(|line| !line.starts_with('#')).count();
    (series, text.len(), gateway.resident_kib())
}

#[test]
fn whatever_callers_send_metrics_keep_their_size() {
    let given = std::env::var("REQUESTROCKET_CARDINALITY");
    let distinct = given.map_or(DISTINCT, |text| text.parse().expect("a number"));
    let gateway = Gateway::start();
    let answer = json_answer("200 OK", "{}");
    let upstream = Upstream::raw(move |connection, _| {
        while connection.read().is_some() {
            connection.send(&answer);
        }
    });
    let proxy = gateway.proxy(&upstream.url());
    let begun = size(&gateway);
    send(&gateway, &proxy, 0, distinct / 10);
    let before = size(&gateway);
    send(&gateway, &proxy, distinct / 10, distinct);
    let after = size(&gateway);
    eprintln!(
        "series, bytes of /metrics, KiB of memory: {begun:?} at first, {before:?} after {} of each \
         kind, {after:?} after {distinct}",
        distinct / 10
    );
    assert!(
        after.0 <= before.0 + SERIES_MORE_MAX,
        "{before:?} {after:?}"
    );
    assert!(after.1 < before.1 * 2, "{before:?} {after:?}");
    assert!(after.2 <= before.2 + GROWN_KIB_MAX, "{before:?} {after:?}");
}
