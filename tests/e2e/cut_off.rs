//! A region that follows and is cut off: again and again for a moment, for longer than home keeps
//! versions, and while a write waits for it.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use proto::id::OrgId;
use serde_json::json;

use crate::cluster::wait_status;
use crate::harness::gateway::Gateway;
use crate::harness::http::Message;
use crate::harness::stores::{LIVE, part};
use crate::harness::upstream::Upstream;
use crate::harness::wait_for;
use crate::region_moves::{regions, said};
use crate::regions::{Cut, Region, Two};

/// Times that the ways are cut.
const CYCLES: usize = 20;
/// Changes made in each of these cycles, and how many of them at least while the ways are cut.
const PER_CYCLE: usize = 10;
const MADE: u64 = 3;

/// Ends the threads of a test, also where it fails.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// The number of the newest version that a control plane has seen.
fn newest(control: &Gateway) -> u64 {
    let listed = control.get("/versions?limit=1");
    listed["items"][0]["n"].as_u64().expect("a number")
}

/// The number in the name of an object, which rises with every change.
fn number(control: &Gateway, path: &str) -> Option<usize> {
    let named = control.get(path)["name"].as_str()?.to_owned();
    named.strip_prefix("name-")?.parse().ok()
}

/// schedules.md, part one, 3: a link that comes and goes is as one that stays.
#[test]
fn a_follower_whose_link_flaps_has_every_version_once_and_in_order() {
    let two = Two::new();
    // So many that none is dropped before they are compared.
    let (us, eu) = two.controls_and("[history]\nstore_versions = 100000\n");
    let node = two.node(&two.eu);
    let upstream = Upstream::json("{}");
    let proxy = us.proxy(&upstream.url());
    wait_status(&node, &proxy, "GET", 200);
    let path = format!("/proxies/{}", proxy.id);
    us.patch(&path, json!({"name": "name-0"}));
    two.wait_equal();
    let first = newest(&us);
    let (made, allowed) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _ends = Ends(&done);
        scope.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                let at = made.load(Ordering::SeqCst) + 1;
                if at > allowed.load(Ordering::SeqCst) {
                    std::thread::sleep(Duration::from_millis(1));
                    continue;
                }
                us.patch(&path, json!({"name": format!("name-{at}")}));
                made.store(at, Ordering::SeqCst);
            }
        });
        // What eu shows only ever goes on, and its node serves all the time.
        scope.spawn(|| {
            let mut before = 0;
            while !done.load(Ordering::SeqCst) {
                let shown = number(&eu, &path).expect("a name with a number");
                assert!(shown >= before, "{shown} after {before}");
                before = shown;
                let status = proxy.request("GET", "/").send(&node.url).status();
                assert_eq!(status, 200, "eu serves");
            }
        });
        for cycle in 0..CYCLES {
            let ways: &[&Cut] = match cycle % 3 {
                0 => &[&two.way],
                1 => &[&two.back],
                _ => &[&two.way, &two.back],
            };
            ways.iter().for_each(|way| way.cut());
            let cut = newest(&us);
            allowed.fetch_add(PER_CYCLE, Ordering::SeqCst);
            wait_for("versions while it is cut", || {
                (newest(&us) >= cut + MADE).then_some(())
            });
            ways.iter().for_each(|way| way.heal());
            let healed = newest(&us);
            wait_for("them in eu", || (newest(&eu) >= healed).then_some(()));
        }
        wait_for("every change", || {
            let (made, allowed) = (made.load(Ordering::SeqCst), allowed.load(Ordering::SeqCst));
            (made == allowed).then_some(())
        });
    });
    // Each number once, each version that of us, and its content.
    two.wait_equal();
    let made = made.into_inner();
    wait_for("the last change in eu", || {
        (number(&eu, &path) == Some(made)).then_some(())
    });
    assert_eq!(made, CYCLES * PER_CYCLE);
    assert_eq!(newest(&us) - first, made as u64, "a version each");
}

/// The versions that a region's store has of an organisation.
fn kept(region: &Region, org: OrgId) -> BTreeSet<u64> {
    let dump = region.dump();
    let named = dump
        .keys()
        .filter_map(|key| proto::keys::parse_version(key));
    named.filter(|(of, _)| *of == org).map(|(_, n)| n).collect()
}

fn wait_same_heads(two: &Two) {
    wait_for("equal heads", || {
        let (us, eu) = (two.us.dump(), two.eu.dump());
        (part(&us, &LIVE) == part(&eu, &LIVE)).then_some(())
    });
}

#[test]
fn a_follower_that_lacks_more_than_home_keeps_goes_on_from_the_newest() {
    let two = Two::new();
    let (us, eu) = two.controls_and("[history]\nstore_versions = 3\nsweep_s = 1\n");
    let node = two.node(&two.eu);
    let upstream = Upstream::json("{}");
    let proxy = us.proxy(&upstream.url());
    wait_status(&node, &proxy, "GET", 200);
    wait_same_heads(&two);
    let org: OrgId = us.operator("/orgs/default").json()["id"]
        .as_str()
        .and_then(|id| id.parse().ok())
        .expect("an id");
    let last = newest(&eu);
    for way in [&two.way, &two.back] {
        way.cut();
    }
    let path = format!("/proxies/{}", proxy.id);
    us.patch(
        &format!("/credentials/{}", proxy.target_credential),
        json!({"secret": {"token": "the-second-secret"}}),
    );
    for at in 0..10 {
        us.patch(&path, json!({"name": format!("name-{at}")}));
    }
    let there = newest(&us);
    wait_for("what eu lacks is dropped at home", || {
        let first = kept(&two.us, org).first().copied();
        (first > Some(last + 1)).then_some(())
    });
    assert_eq!((newest(&eu), number(&eu, &path)), (last, None));
    wait_status(&node, &proxy, "GET", 200);
    for way in [&two.way, &two.back] {
        way.heal();
    }
    wait_same_heads(&two);
    wait_for("the newest, as eu shows it", || {
        (newest(&eu) == there && number(&eu, &path) == Some(9)).then_some(())
    });
    // It has the newest alone of those that it lacked, and the secret that came with one of them.
    let lacked = kept(&two.eu, org).into_iter().filter(|n| *n > last);
    assert_eq!(lacked.collect::<Vec<_>>(), [there]);
    wait_for("the second secret", || {
        proxy.request("GET", "/").send(&node.url);
        let sent = upstream.last();
        (sent.field("authorization") == Some("Bearer the-second-secret")).then_some(())
    });
    let row = wait_for("that it is current", || {
        let listed = eu.operator("/replication?org=default&region=eu");
        let row = listed.json()["items"][0].clone();
        (row["state"] == "current").then_some(row)
    });
    assert_eq!(row["lag_versions"], 0, "{row}");
    // From then on it takes each again.
    us.patch(&path, json!({"name": "name-10"}));
    wait_for("the next one", || {
        (number(&eu, &path) == Some(10)).then_some(())
    });
    assert!(kept(&two.eu, org).contains(&(there + 1)));
    wait_same_heads(&two);
}

/// A write that waits for another region.
fn durable(control: &Gateway, path: &str, name: &str) -> Message {
    let path = format!("{path}?durability=1");
    control.api("PATCH", &path, Some(&json!({"name": name})))
}

/// The regions that an answer names; it must be one of success.
fn replicated_to(answer: &Message) -> Option<&str> {
    assert_eq!(answer.status(), 200, "{}", answer.text());
    answer.field("requestrocket-replicated-to")
}

#[test]
fn a_durable_write_says_who_has_it_whatever_becomes_of_the_follower() {
    let two = Two::new();
    let (us, eu) = two.controls();
    let made = us.create("/targets", json!({"base_url": "https://api.example.com"}));
    let path = format!("/targets/{}", made["id"].as_str().expect("an id"));
    two.wait_equal();
    let faulty = us.api(
        "PATCH",
        &format!("{path}?durability=2"),
        Some(&json!({"name": "x"})),
    );
    assert_eq!(faulty.status(), 400, "{}", faulty.text());
    assert!(
        faulty.text().contains("must be 0 or 1"),
        "{}",
        faulty.text()
    );
    let there = durable(&us, &path, "there");
    assert_eq!(replicated_to(&there), Some("eu"));
    // Home tells it to who asked in the region that follows, too.
    wait_for("the target in eu", || {
        (eu.api("GET", &path, None).status() == 200).then_some(())
    });
    assert_eq!(
        replicated_to(&durable(&eu, &path, "asked in eu")),
        Some("eu")
    );

    // It is slow: whoever waits gets the answer when it goes on.
    eu.signal("STOP");
    std::thread::scope(|scope| {
        let writing = scope.spawn(|| durable(&us, &path, "slow"));
        wait_for("the version at home", || {
            (us.get(&path)["name"] == "slow").then_some(())
        });
        eu.signal("CONT");
        let answer = writing.join().expect("an answer");
        assert_eq!(replicated_to(&answer), Some("eu"));
    });

    // It is cut off, and then gone: the version stands, and nobody is named.
    for way in [&two.way, &two.back] {
        way.cut();
    }
    assert_eq!(replicated_to(&durable(&us, &path, "cut off")), Some(""));
    assert_eq!(us.get(&path)["name"], "cut off");

    // A home that was made so by force: what us told before is not of its history.
    let local = "eu-operator-token-of-at-least-32-characters";
    let forced = regions(&eu, local, &["promote", "eu", "--force"]);
    assert!(forced.status.success(), "{}", said(&forced));
    wait_for("eu as home", || {
        let answer = eu.api("PATCH", &path, Some(&json!({"name": "of eu"})));
        (answer.status() == 200).then_some(())
    });
    assert_eq!(replicated_to(&durable(&eu, &path, "of eu alone")), Some(""));
    for way in [&two.way, &two.back] {
        way.heal();
    }
    two.wait_equal();
    wait_for("what eu made, in us", || {
        (us.get(&path)["name"] == "of eu alone").then_some(())
    });
    assert_eq!(replicated_to(&durable(&eu, &path, "of both")), Some("us"));
    assert_eq!(
        replicated_to(&durable(&us, &path, "asked in us")),
        Some("us")
    );

    let token = us.token.clone();
    let folder = us.kill();
    assert_eq!(replicated_to(&durable(&eu, &path, "alone")), Some(""));
    let mut us = Gateway::inside(folder, &two.us_start());
    us.token = token;
    two.wait_equal();
}

#[test]
fn a_durable_write_where_there_is_one_region_is_refused_before_it_is_made() {
    let alone = Gateway::start();
    let made = alone.create("/targets", json!({"base_url": "https://api.example.com"}));
    let path = format!("/targets/{}", made["id"].as_str().expect("an id"));
    let refused = durable(&alone, &path, "renamed");
    assert_eq!(refused.status(), 400, "{}", refused.text());
    let said = refused.text();
    assert!(said.contains("1 needs another region"), "{said}");
    assert_ne!(alone.get(&path)["name"], "renamed");
    // Zero asks for nothing, and nothing is told.
    let path = format!("{path}?durability=0");
    let plain = alone.api("PATCH", &path, Some(&json!({"name": "renamed"})));
    assert_eq!(replicated_to(&plain), None);
}
