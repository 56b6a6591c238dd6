//! More at once than there is room for: some are told so, none is lost, and the gateway goes on.

use std::collections::BTreeMap;

use crate::harness::gateway::Gateway;
use crate::harness::http::{Connection, Request};
use crate::harness::raise_descriptors;
use crate::harness::upstream::{After, Gate, Upstream, json_answer};

#[test]
fn a_thousand_at_once_against_mailboxes_of_sixteen() {
    raise_descriptors();
    let gateway = Gateway::configured("[gateway]\nworkers = 1\nmailbox_capacity = 16");
    let (path, key) = gateway.demo();
    let bytes = Request::new("GET", &path)
        .field("authorization", &format!("Bearer {key}"))
        .bytes(&gateway.url);
    let mut callers: Vec<_> = (0..1_000).map(|_| Connection::open(&gateway.url)).collect();
    for caller in &mut callers {
        caller.send(&bytes);
    }
    let mut outcomes = BTreeMap::new();
    for caller in &mut callers {
        let answer = caller.read().expect("every request is answered");
        let (status, code) = answer.outcome();
        *outcomes.entry((status, code.to_owned())).or_insert(0) += 1;
    }
    let of = |status, code: &str| outcomes.get(&(status, code.to_owned())).copied();
    let granted = of(200, "proxy-access-granted").unwrap_or(0);
    let refused = of(503, "overloaded").unwrap_or(0);
    assert_eq!(granted + refused, 1_000, "{outcomes:?}");
    // A worker takes each through the stages before it looks at the next, so few or none are
    // refused; what is refused beyond a bound is the next test's business.
    assert!(granted > 0, "{outcomes:?}");
    // The same connections go on, whatever they were told.
    for caller in &mut callers[..20] {
        caller.send(&bytes);
        assert_eq!(caller.read().expect("an answer").status(), 200);
    }
}

#[test]
fn beyond_the_requests_in_flight_is_503_until_there_is_room() {
    let gateway = Gateway::configured("[gateway]\nrequests_in_flight_max = 8");
    let gate = Gate::default();
    let shared = gate.clone();
    let upstream = Upstream::start(move |_, connection| {
        shared.pass();
        connection.send(json_answer("200 OK", "{}"));
        After::Keep
    });
    let proxy = gateway.proxy(&upstream.url());
    let bytes = proxy.request("GET", "/").bytes(&gateway.url);
    let mut inside: Vec<_> = (0..8).map(|_| Connection::open(&gateway.url)).collect();
    for caller in &mut inside {
        caller.send(&bytes);
    }
    upstream.wait_seen(8);
    for _ in 0..20 {
        let refused = proxy.get("/");
        assert_eq!(refused.outcome(), (503, "overloaded"));
        assert!(refused.field("retry-after").is_some());
        assert_eq!(refused.json()["code"], "overloaded");
    }
    gate.open();
    for caller in &mut inside {
        assert_eq!(caller.read().expect("an answer").status(), 200);
    }
    assert_eq!(proxy.get("/").status(), 200);
    assert_eq!(upstream.seen().len(), 9, "what was refused was never sent");
    let refused = gateway.metric(r#"requestrocket_requests_total{code="overloaded"}"#);
    assert_eq!(refused, 20.0);
}
