//! Meters as they are submitted: every fault at once, each at its place.

use serde_json::{Value, json};

use super::{Applies, Meter, StoreLoss, Window};
use crate::path::{PathOptions, PathReading};
use crate::rule::{BodyFacts, Facts};

fn meter(document: Value) -> Meter {
    serde_json::from_value(document).expect("the shape of a meter")
}

#[track_caller]
fn check(document: Value, expected: &[(&str, &str)]) {
    let problems = meter(document.clone()).validate();
    let found: Vec<_> = problems
        .iter()
        .map(|p| (p.pointer.as_str(), p.code))
        .collect();
    assert_eq!(found, expected, "{document} {problems:?}");
    let whole = meter(document).spec(1);
    assert_eq!(
        whole.is_err(),
        expected
            .iter()
            .any(|(pointer, _)| pointer.starts_with("/limits") || *pointer == "/name")
            && !expected.iter().any(|(_, code)| *code == "never-reached"),
        "{whole:?}"
    );
}

#[test]
fn a_meter_is_valid_or_told_everything_that_is_wrong() {
    let minute = json!({"limit": 5, "window": "minute"});
    check(json!({}), &[]);
    check(json!({"limits": [minute]}), &[]);
    check(
        json!({"name": "orders", "limits": [minute, {"limit": 50, "window": "day",
               "algorithm": "fixed_window"}], "key": {"by": "header", "name": "X-Customer"},
               "when": {"methods": ["POST"], "body": [{"json_path": "$.model", "value": "^o3"}]},
               "at_limit": {"answer": "budget_exhausted"}, "on_store_loss": "fail_closed"}),
        &[],
    );
    check(
        json!({"name": "a b", "limits": [{"limit": 0, "window": "minute"},
               {"limit": 9_007_199_254_740_993_u64, "window": "day"},
               {"limit": 1, "window": "minute", "algorithm": "fixed_window"}],
               "when": {"path": {"pattern": "("}}, "key": {"by": "header"}}),
        &[
            ("/name", "meter-name"),
            ("/limits/0/limit", "range"),
            ("/limits/1/limit", "range"),
            ("/limits/2/algorithm", "algorithm-window"),
            ("/limits/2/window", "duplicate"),
            ("/when/path/pattern", "pattern-invalid"),
            ("/key/name", "required"),
        ],
    );
}

#[test]
fn meters_that_contradict_themselves_are_told_why() {
    check(
        json!({"limits": [{"limit": 100, "window": "minute"}, {"limit": 50, "window": "day"}]}),
        &[("/limits/0/limit", "never-reached")],
    );
    check(
        json!({"limits": [{"limit": 50, "window": "minute"}, {"limit": 50, "window": "day"}]}),
        &[],
    );
    check(
        json!({"limits": [{"limit": 5, "window": "minute", "burst": 9},
               {"limit": 5, "window": "second", "algorithm": "token_bucket", "burst": 0},
               {"limit": 1, "window": "day"}]}),
        &[
            ("/limits/0/burst", "not-applicable"),
            ("/limits/1/burst", "range"),
        ],
    );
    check(
        json!({"key": {"by": "caller", "name": "x"}, "on_store_loss": "local_share",
               "at_limit": {"answer": "budget_exhausted"}}),
        &[
            ("/key/name", "not-applicable"),
            ("/on_store_loss", "not-applicable"),
            ("/at_limit", "not-applicable"),
        ],
    );
    check(
        json!({"key": {"by": "header", "name": "a b"}}),
        &[("/key/name", "header-name")],
    );
}

#[test]
fn pauses_are_learned_on_the_side_of_the_target_unless_said_otherwise() {
    let pause = |document: Value, of_target| {
        let learn = meter(document).learning(of_target);
        learn.map(|learn| learn.pause_max_ms)
    };
    assert_eq!(pause(json!({}), true), Some(60_000));
    assert_eq!(pause(json!({}), false), None);
    let off = json!({"learn": {"from": "off"}});
    assert_eq!(pause(off, true), None);
    let own = json!({"learn": {"from": "retry_after", "pause_max_ms": 5}});
    assert_eq!(pause(own, false), Some(5));
    check(
        json!({"learn": {"from": "retry_after", "pause_max_ms": 0}}),
        &[("/learn/pause_max_ms", "range")],
    );
    let unknown = json!({"learn": {"from": "moon"}});
    assert!(serde_json::from_value::<Meter>(unknown).is_err());
}

#[test]
fn callers_are_held_within_bounds() {
    let held = |hold: Value| {
        let limits = json!([{"limit": 5, "window": "second"}]);
        json!({"limits": limits, "at_limit": {"hold": hold}})
    };
    check(held(json!({"max_wait_ms": 2_000})), &[]);
    check(
        held(json!({"max_wait_ms": 0, "max_waiting": 5_000, "priority_header": "a b"})),
        &[
            ("/at_limit/hold/max_wait_ms", "range"),
            ("/at_limit/hold/max_waiting", "range"),
            ("/at_limit/hold/priority_header", "header-name"),
        ],
    );
    let spec = meter(held(json!({"max_wait_ms": 7})))
        .spec(1)
        .expect("valid");
    let hold = spec.hold().expect("given");
    assert_eq!((hold.max_wait_ms, hold.max_waiting), (7, 100));
    check(
        json!({"limits": [{"limit": 5, "algorithm": "concurrency"}],
               "at_limit": {"hold": {"max_wait_ms": 1}}}),
        &[("/at_limit/hold", "not-applicable")],
    );
}

#[test]
fn calls_in_flight_have_no_window() {
    let slots = |n: u64| json!({"limit": n, "algorithm": "concurrency"});
    check(
        json!({"limits": [slots(20), {"limit": 5, "window": "second"}]}),
        &[],
    );
    check(
        json!({"limits": [slots(0)]}),
        &[("/limits/0/limit", "range")],
    );
    check(
        json!({"limits": [slots(1_000_001)]}),
        &[("/limits/0/limit", "range")],
    );
    check(
        json!({"limits": [{"limit": 5, "window": "second", "algorithm": "concurrency"}]}),
        &[("/limits/0/window", "not-applicable")],
    );
    check(
        json!({"limits": [{"limit": 5}]}),
        &[("/limits/0/window", "required")],
    );
    let two = meter(json!({"limits": [slots(1), slots(2)]})).validate();
    assert_eq!(two.first().map(|problem| problem.code), Some("duplicate"));
    let both = meter(json!({"limits": [slots(20), {"limit": 5, "window": "second"}]}));
    assert_eq!(both.concurrency(), Some(20));
    assert_eq!(both.spec(1).expect("valid").limits().len(), 1);
}

#[test]
fn what_is_no_meter_does_not_parse() {
    for document in [
        json!({"limits": [{"limit": -1, "window": "minute"}]}),
        json!({"limits": [{"limit": 1.5, "window": "minute"}]}),
        json!({"limits": [{"limit": 5, "window": "fortnight"}]}),
        json!({"limits": [{"limit": 5, "window": "day", "burst_of": 1}]}),
        json!({"key": {"by": "moon"}}),
        json!({"kind": "sum"}),
    ] {
        assert!(
            serde_json::from_value::<Meter>(document.clone()).is_err(),
            "{document}"
        );
    }
}

#[test]
fn the_form_of_nodes_has_the_defaults() {
    let spec = |document: Value| meter(document).spec(7).expect("valid");
    let day = spec(json!({"limits": [{"limit": 5, "window": "day"}]}));
    assert_eq!(
        (day.version(), day.store_loss()),
        (7, StoreLoss::FailClosed)
    );
    assert_eq!(day.slowest(), Some(Window::Day));
    let asked = spec(json!({"limits": [{"limit": 5, "window": "day"}],
                            "on_store_loss": "local_share"}));
    assert_eq!(asked.store_loss(), StoreLoss::LocalShare);
}

#[test]
fn a_request_is_counted_if_any_reading_of_it_is() {
    let when = meter(json!({"when": {"path": {"pattern": "^/search$"}}}))
        .when
        .expect("given");
    let set = when.compile().expect("valid");
    let headers = http::HeaderMap::new();
    for (path, expected) in [
        ("/search", Applies::Yes),
        ("/%73earch", Applies::Yes),
        ("/other", Applies::No),
    ] {
        let path = PathReading::parse(path.as_bytes(), PathOptions::default()).expect("a path");
        let source = std::net::IpAddr::from([127, 0, 0, 1]);
        let facts = Facts::new(b"GET", &path, b"", &headers, source);
        assert_eq!(set.applies(&facts), expected, "{path:?}");
    }
}

#[test]
fn a_body_that_cannot_be_read_is_counted() {
    let when = json!({"when": {"body": [{"json_path": "$.model", "value": "^big$"}]}});
    let set = meter(when).when.expect("given").compile().expect("valid");
    let (headers, source) = (
        http::HeaderMap::new(),
        std::net::IpAddr::from([127, 0, 0, 1]),
    );
    let path = PathReading::parse(b"/", PathOptions::default()).expect("a path");
    let facts = || Facts::new(b"POST", &path, b"", &headers, source);
    assert_eq!(set.applies(&facts()), Applies::NeedsBody);
    let unreadable = BodyFacts::Unreadable(crate::body_view::Unreadable::TooLarge);
    assert_eq!(set.applies(&facts().with_body(unreadable)), Applies::Yes);
}

#[test]
fn calls_that_are_lost_can_be_cancelled_and_then_nothing_passes_without_etcd() {
    let problems = |fields: Value| {
        let meter: Meter = serde_json::from_value(fields).unwrap();
        let problems = meter.validate().into_iter();
        problems.map(|p| (p.pointer, p.code)).collect::<Vec<_>>()
    };
    let slots = |on_lost: &str| json!({"limit": 5, "algorithm": "concurrency", "on_lost": on_lost});
    for on_lost in ["keep", "cancel"] {
        assert_eq!(problems(json!({"limits": [slots(on_lost)]})), []);
        let both = json!({"limits": [slots(on_lost)], "on_store_loss": "fail_open"});
        let contradicts = ("/on_store_loss".to_owned(), "contradicts");
        let expected = Vec::from_iter((on_lost == "cancel").then_some(contradicts));
        assert_eq!(problems(both), expected, "{on_lost}");
    }
    let closed = json!({"limits": [slots("cancel")], "on_store_loss": "fail_closed"});
    assert_eq!(problems(closed), []);
    let windowed = json!({"limits": [{"limit": 5, "window": "minute", "on_lost": "cancel"}]});
    let expected = ("/limits/0/on_lost".to_owned(), "not-applicable");
    assert_eq!(problems(windowed), [expected]);
}
