//! Limits that two regions have together.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use serde_json::{Value, json};

use crate::cluster::{wait_known, wait_status};
use crate::harness::gateway::{Gateway, Proxy};
use crate::harness::upstream::Upstream;
use crate::harness::wait_for;
use crate::pinned::Pair;
use crate::regions::Two;

/// How many of so many requests to a node pass.
fn granted(node: &Gateway, proxy: &Proxy, requests: usize) -> usize {
    let statuses = (0..requests).map(|_| proxy.request("GET", "/").send(&node.url).status());
    let passed = |status: u16| {
        assert!([200, 429].contains(&status), "{status}");
        status == 200
    };
    statuses.filter(|status| passed(*status)).count()
}

/// A proxy in both regions with a meter, which is known there.
fn metered(pair: &Pair, upstream: &Upstream, meter: Value) -> (Proxy, Value) {
    let proxy = pair.us.proxy(&upstream.url());
    let meter = pair
        .us
        .create(&format!("/proxies/{}/meters", proxy.id), meter);
    pair.two.wait_equal();
    wait_known(&pair.us, &pair.nodes);
    (proxy, meter)
}

fn path_of(proxy: &Proxy, meter: &Value) -> String {
    let id = meter["id"].as_str().expect("an id");
    format!("/proxies/{}/meters/{id}", proxy.id)
}

#[test]
fn two_regions_together_give_no_more_than_the_limit() {
    let pair = Pair::new();
    let upstream = Upstream::json("{}");
    let meter = json!({"name": "both", "limits": [{"limit": 11, "window": "day"}],
                       "shared_by": ["us", "eu"]});
    let (proxy, meter) = metered(&pair, &upstream, meter);
    for node in &pair.nodes {
        granted(node, &proxy, 10);
    }
    // Each gives its half, rounded down, whoever comes.
    let before = upstream.seen().len();
    assert_eq!(before, 10);
    for (control, node) in [(&pair.us, &pair.nodes[0]), (&pair.eu, &pair.nodes[1])] {
        assert_eq!(granted(node, &proxy, 3), 0);
        let item = wait_for("usage", || {
            let found = control.get("/meters/usage");
            let item = found["items"][0].clone();
            (item["limits"][0]["used"] == 5).then_some(item)
        });
        assert_eq!(
            (&item["meter_id"], &item["limits"][0]["limit"]),
            (&meter["id"], &json!(5)),
            "{item}"
        );
        assert_eq!(
            item["share"],
            json!({"regions": ["us", "eu"], "millionths": 500_000,
                   "whole": [{"window": "day", "limit": 11}], "leaving": [],
                   "moves_in_s": null, "stays_for": "fixed_window"})
        );
    }

    // Without the list each gives all of it by itself.
    let path = path_of(&proxy, &meter);
    pair.us.patch(&path, json!({"shared_by": []}));
    for node in &pair.nodes {
        wait_status(node, &proxy, "GET", 200);
    }
    for node in &pair.nodes {
        granted(node, &proxy, 12);
    }
    assert_eq!(upstream.seen().len(), 22);
}

#[test]
fn a_region_that_is_not_listed_has_nothing_to_give() {
    let pair = Pair::new();
    let upstream = Upstream::json("{}");
    let limits = json!([{"limit": 4, "window": "hour"}, {"limit": 2, "algorithm": "concurrency"}]);
    let meter = json!({"limits": limits, "shared_by": ["us"]});
    let (proxy, meter) = metered(&pair, &upstream, meter);
    let refused = wait_for("a refusal", || {
        let answer = proxy.request("GET", "/").send(&pair.nodes[1].url);
        (answer.status() == 429).then_some(answer)
    });
    assert!(refused.field("retry-after").is_some(), "{}", refused.text());
    let before = upstream.seen().len();
    assert_eq!(granted(&pair.nodes[1], &proxy, 3), 0);
    wait_for("the limit in us", || {
        let answer = proxy.request("GET", "/").send(&pair.nodes[0].url);
        (answer.status() == 429).then_some(())
    });
    let limits = wait_for("usage", || {
        let shown = pair.us.get("/meters/usage");
        let limits = shown["items"][0]["limits"].clone();
        limits.is_array().then_some(limits)
    });
    assert_eq!(limits[0]["limit"], 4, "{limits}");
    assert!(upstream.seen().len() >= before + 4);

    // Regions that do not exist, or that a pinned proxy is not served in, have no share.
    let path = path_of(&proxy, &meter);
    for (listed, code) in [
        (json!(["us", "mars"]), "unknown-region"),
        (json!(["us", "us"]), "duplicate"),
        (json!(["us", "eu", "Eu"]), "region"),
    ] {
        let change = json!({"shared_by": listed});
        let answer = pair.us.api("PATCH", &path, Some(&change));
        assert_eq!(answer.status(), 422, "{listed} {}", answer.text());
        assert_eq!(answer.json()["errors"][0]["code"], code, "{listed}");
    }
    let pinned = json!({"regions": ["us"], "limits": {"per_minute": 1, "shared_by": ["us", "eu"]}});
    let pinned = pair
        .us
        .api("PATCH", &format!("/proxies/{}", proxy.id), Some(&pinned));
    let codes: Vec<Value> = pinned.json()["errors"]
        .as_array()
        .expect("problems")
        .iter()
        .map(|problem| json!([problem["pointer"], problem["code"]]))
        .collect();
    assert_eq!(
        codes,
        [
            json!(["/limits/per_minute", "share-empty"]),
            json!(["/limits/shared_by/1", "share-region"]),
        ],
        "{}",
        pinned.text()
    );
}

/// What a region says of its share, of the only meter.
fn share_in(control: &Gateway) -> Value {
    control.get("/meters/usage")["items"][0]["share"].clone()
}

#[test]
fn what_was_given_away_is_told_until_it_has_come() {
    let pair = Pair::new();
    let upstream = Upstream::json("{}");
    // A part of it takes an hour to another region.
    let meter = json!({"limits": [{"limit": 40, "window": "hour"}], "shared_by": ["us", "eu"]});
    let (proxy, _) = metered(&pair, &upstream, meter);
    assert_eq!(granted(&pair.nodes[0], &proxy, 1), 1);
    let shown = wait_for("usage in us", || {
        let share = share_in(&pair.us);
        share["leaving"].is_array().then_some(share)
    });
    assert_eq!(
        (&shown["millionths"], &shown["leaving"]),
        (&json!(500_000), &json!([]))
    );
    assert!(shown["moves_in_s"].as_u64() > Some(3_600), "{shown}");
    // eu asks for more than it has; us gives, and says so before it has come.
    let shown = wait_for("what is on its way", || {
        granted(&pair.nodes[1], &proxy, 1);
        let share = share_in(&pair.us);
        (share["leaving"][0]["to"] == "eu").then_some(share)
    });
    let of_eu = wait_for("usage in eu", || share_in(&pair.eu)["millionths"].as_u64());
    let leaving = shown["leaving"].as_array().into_iter().flatten();
    let leaving: u64 = leaving.filter_map(|to| to["millionths"].as_u64()).sum();
    let of_us = shown["millionths"].as_u64().expect("a share");
    assert_eq!((of_eu, of_us + leaving), (500_000, 500_000), "{shown}");
    let told = pair.us.command(&["meters"]);
    let told = String::from_utf8_lossy(&told.stdout).into_owned();
    assert!(told.contains("percent on the way to eu"), "{told}");
}

#[test]
fn a_changed_list_counts_in_each_region_from_when_it_is_there() {
    let pair = Pair::new();
    let upstream = Upstream::json("{}");
    let meter = json!({"limits": [{"limit": 10, "window": "hour"}], "shared_by": ["us", "eu"]});
    let (proxy, meter) = metered(&pair, &upstream, meter);
    for way in [&pair.two.way, &pair.two.back] {
        way.cut();
    }
    pair.us
        .patch(&path_of(&proxy, &meter), json!({"shared_by": ["us"]}));
    wait_known(&pair.us, &pair.nodes[..1]);
    // us has all of it by the new list, eu its half by the old one.
    let before = upstream.seen().len();
    for node in &pair.nodes {
        granted(node, &proxy, 12);
    }
    assert_eq!(upstream.seen().len() - before, 10 + 5);
    for (control, regions, millionths) in [
        (&pair.us, json!(["us"]), 1_000_000),
        (&pair.eu, json!(["us", "eu"]), 500_000),
    ] {
        wait_for("a share by the list that is there", || {
            let share = share_in(control);
            let is_so = share["regions"] == regions && share["millionths"] == millionths;
            is_so.then_some(())
        });
    }
    for way in [&pair.two.way, &pair.two.back] {
        way.heal();
    }
    wait_for("no share of eu", || {
        let share = share_in(&pair.eu);
        (share["regions"] == json!(["us"]) && share["millionths"] == 0).then_some(())
    });
    assert_eq!(granted(&pair.nodes[1], &proxy, 3), 0);
}

/// Sends to a node from several connections until it is told to stop.
fn busy(node: &Gateway, proxy: &Proxy, stop: &Arc<AtomicBool>) -> Vec<JoinHandle<()>> {
    let sender = || {
        let (url, stop) = (node.url.clone(), Arc::clone(stop));
        let request = proxy
            .request("GET", "/")
            .field("requestrocket-fault", "sent-at");
        std::thread::spawn(move || {
            while !stop.load(Ordering::SeqCst) {
                let answer = request.send(&url);
                let status = answer.status();
                assert!([200, 429].contains(&status), "{}", answer.text());
            }
        })
    };
    (0..4).map(|_| sender()).collect()
}

/// Waits until a region has so much of the limit, by its usage.
fn wait_share(control: &Gateway, millionths: u64) {
    wait_for("a share", || {
        let found = control.get("/meters/usage");
        let share = found["items"][0]["share"]["millionths"].as_u64();
        share.filter(|share| *share >= millionths).map(|_| ())
    });
}

/// schedules.md, part one, 14: shares move from us to eu and the limit is not overstepped in any
/// second of it.
#[test]
fn shares_go_where_callers_are_and_the_sum_stays_within_the_limit() {
    let two = Two::new();
    let (us, eu) = two.controls();
    let node = |region| {
        let mut start = two.node_start(region);
        start.config += "[gateway]\nfault_injection = true\n";
        Gateway::with(start)
    };
    let nodes = [node(&two.us), node(&two.eu)];
    let upstream = Upstream::json("{}");
    let proxy = us.proxy(&upstream.url());
    let meter = json!({"limits": [{"limit": 200, "window": "second"}],
                       "shared_by": ["us", "eu"]});
    us.create(&format!("/proxies/{}/meters", proxy.id), meter);
    two.wait_equal();
    wait_known(&us, &nodes);
    let before = upstream.seen().len();
    // First all callers are in us, then all in eu.
    for (control, node) in [(&us, &nodes[0]), (&eu, &nodes[1])] {
        let stop = Arc::new(AtomicBool::new(false));
        let senders = busy(node, &proxy, &stop);
        wait_share(control, 900_000);
        let moved = upstream.seen().len();
        wait_for("some seconds of it", || {
            (upstream.seen().len() > moved + 400).then_some(())
        });
        stop.store(true, Ordering::SeqCst);
        for sender in senders {
            sender.join().expect("every answer is 200 or 429");
        }
    }
    let sent = upstream.seen().split_off(before);
    let sent = sent.iter().map(|request| {
        let sent = request.field("requestrocket-sent-at").expect("an instant");
        sent.parse::<u64>().expect("nanoseconds")
    });
    let mut sent: Vec<u64> = sent.collect();
    sent.sort_unstable();
    let mut fullest = 0;
    let mut from = 0;
    for (to, at) in sent.iter().enumerate() {
        while sent[from] + 1_000_000_000 <= *at {
            from += 1;
        }
        fullest = fullest.max(to + 1 - from);
    }
    assert!(fullest <= 200, "{fullest} in one second");
    assert!(fullest > 100, "no more than an even share: {fullest}");
    // Neither region gives all away.
    assert_eq!(granted(&nodes[0], &proxy, 1), 1);
}
