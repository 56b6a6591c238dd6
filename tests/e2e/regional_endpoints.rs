//! A target with an endpoint in each of two regions, called in both: one of them fails and comes
//! back while callers go on.

use std::sync::atomic::Ordering;

use serde_json::json;

use crate::endpoints::{Load, breakable, is_from, made};
use crate::harness::wait_for;
use crate::pinned::Pair;

/// Answers that are looked at when the endpoint has come back, and at the end.
const LOOKED_AT: usize = 100;

/// How long what comes back takes until it has all requests again, in milliseconds.
const SLOW_START_MS: u64 = 20_000;

#[test]
fn a_regions_endpoint_fails_under_load_and_no_call_does_and_it_comes_back_slowly() {
    let pair = Pair::new();
    let (of_us, _) = breakable("us");
    let (of_eu, down) = breakable("eu");
    let endpoints = [
        json!({"base_url": of_us.url(), "region": "us"}),
        json!({"base_url": of_eu.url(), "region": "eu"}),
    ];
    let breaker = json!({"consecutive_failures": 3, "open_ms": 100, "open_max_ms": 200});
    let more = json!({"breaker": breaker, "slow_start_ms": SLOW_START_MS});
    let made = made(&pair.us, &endpoints, more);
    for (node, own) in pair.nodes.iter().zip(["us", "eu"]) {
        wait_for("the proxy", || {
            let answer = made.request("GET", "/").send(&node.url);
            (answer.status() == 200).then(|| assert!(answer.text().contains(own)))
        });
    }
    let calls = [("GET", ""), ("PUT", "{\"a\":1}"), ("DELETE", "")];
    let [in_us, in_eu] = [0, 1].map(|at| Load::of(&pair.nodes[at], &made, &calls));
    in_us.wait("answers in us of its own", 200, is_from("us"));
    in_eu.wait("answers in eu of its own", 200, is_from("eu"));
    down.store(true, Ordering::SeqCst);
    in_eu.wait("answers in eu of the other one", 500, is_from("us"));
    down.store(false, Ordering::SeqCst);
    in_eu.wait("answers in eu of its own again", 200, is_from("eu"));
    in_us.wait("answers in us of its own", 200, is_from("us"));

    let (in_us, in_eu) = (in_us.end(), in_eu.end());
    for (status, text) in in_us.iter().chain(&in_eu) {
        assert_eq!(*status, 200, "{text}");
    }
    let away = in_us.iter().filter(|answer| !is_from("us")(answer)).count();
    assert_eq!(away, 0, "in us nothing changed");
    // Whoever was under way when it failed is answered last by it.
    let moved = in_eu.iter().position(is_from("us")).expect("it has moved");
    let gone = moved + LOOKED_AT;
    let back = in_eu[gone..].iter().position(is_from("eu"));
    let back = gone + back.expect("it has come back");
    let own = |from: usize| {
        let looked_at = in_eu[from..].iter().take(LOOKED_AT);
        looked_at.filter(|answer| is_from("eu")(answer)).count()
    };
    let (first, last) = (own(back), own(in_eu.len() - LOOKED_AT));
    assert!(first < LOOKED_AT / 2, "{first} of the first {LOOKED_AT}");
    assert!(first < last, "{first}, and at the end {last}");
}
