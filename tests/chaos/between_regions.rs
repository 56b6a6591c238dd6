//! Changes and calls between regions that are far from each other.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use super::cluster::outage;
use super::wide::{self, Called, Place, Wide};
use crate::harness::http::{Connection, Message};
use crate::harness::upstream::{Upstream, json_answer};
use crate::harness::wait_for;

/// Changes whose way is measured.
const MEASURED: u64 = 100;
/// Changes that are made one after another; `REQUESTROCKET_CHAOS_CHANGES` says how many.
fn in_a_row() -> u64 {
    let given = std::env::var("REQUESTROCKET_CHAOS_CHANGES");
    given.map_or(300, |text| text.parse().expect("a number of changes"))
}

/// Changes that are made while links are cut: fewer than home keeps for regions that lack them.
const MADE_DURING: u32 = 15;
/// Requests a second to the nodes of each region.
pub const RATE: u32 = 50;

/// Answers with the target of the request.
pub fn echo(wide: &Wide) -> Upstream {
    Upstream::raw_at(wide.home().host, |connection, _| {
        while let Some(request) = connection.read() {
            let body = json!({"target": request.target()});
            connection.send(json_answer("200 OK", &body.to_string()));
        }
    })
}

/// A node as it is asked over and over which change is in effect.
struct Watched {
    node: String,
    newest: AtomicU64,
    /// By change: nanoseconds after the start at which it, or a later one, was first seen.
    seen: Vec<AtomicU64>,
}

impl Watched {
    fn look(&self, called: &Called, begun: Instant, ends: &AtomicBool) {
        let mut connection = Connection::open(&self.node);
        while !ends.load(Ordering::Relaxed) {
            connection.send(called.request("GET", "").bytes(&self.node));
            let answer = connection.read().expect("an answer");
            assert_eq!(answer.status(), 200, "{}: {}", self.node, answer.text());
            let target = answer.json()["target"].as_str().expect("a text").to_owned();
            let number = target.strip_prefix("/v").and_then(|text| text.parse().ok());
            let number: u64 = number.unwrap_or_else(|| panic!("{target}"));
            let before = self.newest.load(Ordering::Relaxed);
            assert!(number >= before, "{}: {number} after {before}", self.node);
            let now = u64::try_from(begun.elapsed().as_nanos()).expect("a short test");
            for place in before..number {
                let at = usize::try_from(place).expect("few changes");
                self.seen[at].store(now, Ordering::Relaxed);
            }
            self.newest.store(number, Ordering::Release);
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Points the proxy's target at another path.
fn change(wide: &Wide, called: &Called, upstream: &Upstream, number: u64) {
    let path = format!("/targets/{}", called.target);
    let body = json!({"base_url": format!("{}/v{number}", upstream.url())});
    let answer = wide.home().call("PATCH", &path, &body);
    assert_eq!(answer.status(), 200, "{}", answer.text());
}

#[test]
fn what_home_changes_is_in_effect_everywhere_and_arrives_whole() {
    wide::run(&[], |wide| {
        let upstream = echo(wide);
        let called = wide.proxy(&format!("{}/v0", upstream.url()), json!({}));
        let nodes = wide.regions.iter().flat_map(|region| &region.nodes);
        let all = MEASURED + in_a_row();
        let count = usize::try_from(all).expect("few");
        let watched: Vec<Watched> = nodes
            .map(|node| Watched {
                node: node.clone(),
                newest: AtomicU64::new(0),
                seen: (0..count).map(|_| AtomicU64::new(0)).collect(),
            })
            .collect();
        let (begun, ends) = (Instant::now(), AtomicBool::new(false));
        let everywhere = |number: u64| {
            wait_for("the change on every node", || {
                let mut all = watched.iter();
                let has = |node: &Watched| node.newest.load(Ordering::Acquire) >= number;
                all.all(has).then_some(())
            });
        };
        thread::scope(|scope| {
            let looking: Vec<_> = watched
                .iter()
                .map(|node| scope.spawn(|| node.look(&called, begun, &ends)))
                .collect();
            let mut made = Vec::new();
            for number in 1..=MEASURED {
                made.push(begun.elapsed());
                change(wide, &called, &upstream, number);
                everywhere(number);
            }
            let per_region = wide.regions[0].nodes.len();
            for (region, nodes) in wide.regions.iter().zip(watched.chunks(per_region)) {
                tell(&region.name, &made, nodes);
            }
            let row = Instant::now();
            for number in MEASURED + 1..=all {
                change(wide, &called, &upstream, number);
            }
            let written = row.elapsed();
            everywhere(all);
            eprintln!(
                "{} changes written in {written:?}, in effect everywhere after {:?}",
                in_a_row(),
                row.elapsed()
            );
            ends.store(true, Ordering::Relaxed);
            for each in looking {
                each.join().expect("no node went back or failed");
            }
        });
        wide.wait_equal();
        let versions = wide.is_whole();
        // Older ones have left the archive.
        assert!(versions as u64 >= all.min(1_000), "{versions}");
    });
}

/// Prints how long after it was sent home each change was in effect on all nodes of a region.
fn tell(region: &str, made: &[Duration], nodes: &[Watched]) {
    let mut took: Vec<Duration> = made
        .iter()
        .enumerate()
        .map(|(at, made)| {
            let seen = nodes
                .iter()
                .map(|node| node.seen[at].load(Ordering::Relaxed));
            Duration::from_nanos(seen.max().unwrap_or_default()).saturating_sub(*made)
        })
        .collect();
    took.sort();
    let p = |of: usize| took[(took.len() * of / 100).min(took.len() - 1)];
    eprintln!("in effect in {region}: p50 {:?}, most {:?}", p(50), p(100));
    wide::figure(&format!("a change is in effect in {region}, p99"), p(99));
}

/// Who does not hear whom, for a while.
type Silence = (&'static str, Vec<(usize, usize)>);

#[test]
fn cut_links_lose_double_and_reorder_nothing_and_all_regions_serve() {
    wide::run(&[], |wide| {
        let upstream = echo(wide);
        let called = wide.proxy(&upstream.url(), json!({}));
        let loads = wide.loads(&called, RATE);
        let mut made = BTreeSet::new();
        let mut create = |place: &Place| {
            let name = format!("made-{}", made.len());
            let answer = place.create_target(&name);
            assert_eq!(answer.status(), 201, "{}: {}", place.name, answer.text());
            made.insert(name);
        };
        let (us, eu, ap) = (0, 1, 2);
        let patterns: [Silence; 5] = [
            ("eu does not hear us", vec![(us, eu)]),
            ("us does not hear eu", vec![(eu, us)]),
            ("us and eu do not hear each other", vec![(us, eu), (eu, us)]),
            (
                "home is alone",
                vec![(us, eu), (eu, us), (us, ap), (ap, us)],
            ),
            ("ap is alone", vec![(us, ap), (ap, us), (eu, ap), (ap, eu)]),
        ];
        let set = |silent: &[(usize, usize)], cut: bool| {
            for (from, to) in silent {
                let (from, to) = (&wide.regions[*from], &wide.regions[*to]);
                match cut {
                    true => from.lose(to),
                    false => from.find(to),
                }
            }
        };
        let clean = |when: &str| {
            for (load, place) in loads.iter().zip(&wide.regions) {
                load.after(u64::from(RATE))
                    .is_answered(&format!("{when}, in {}", place.name));
            }
        };
        clean("before anything");
        for (when, silent) in &patterns {
            set(silent, true);
            for _ in 0..MADE_DURING {
                create(wide.home());
                thread::sleep(outage(10) / MADE_DURING);
            }
            clean(when);
            set(silent, false);
            let healed = Instant::now();
            wide.wait_equal();
            eprintln!("{when}: equal {:?} after the end", healed.elapsed());
            create(&wide.regions[eu]);
        }
        for _ in 0..5 {
            set(&patterns[3].1, true);
            create(wide.home());
            thread::sleep(Duration::from_millis(700));
            set(&patterns[3].1, false);
            create(wide.home());
            thread::sleep(Duration::from_millis(700));
        }
        wide.wait_equal();
        clean("flapping");
        drop(loads);
        wide.has_targets(&made);
        eprintln!("{} changes, {} versions", made.len(), wide.is_whole());
    });
}

/// The region that a request was passed on to.
fn served_by(wide: &Wide, answer: &Message) -> String {
    let id = answer.field("requestrocket-request-id").expect("an id");
    let to = wide.home().record(id)["forwarded_to"].clone();
    to.as_str().expect("a region").to_owned()
}

#[test]
fn a_pinned_proxy_is_served_by_the_nearest_region_and_a_gone_one_is_noticed() {
    wide::run(&[("ap", 60)], |wide| {
        let upstream = echo(wide);
        let fields = json!({"regions": ["ap", "eu"], "cross_region": "forward"});
        let called = wide.proxy(&upstream.url(), fields);
        let [us, eu, ap] = &wide.regions[..] else {
            panic!("three regions");
        };
        let get = || called.request("GET", "/").send(&us.nodes[0]);
        let took = |what: &str| {
            let begun = Instant::now();
            let answer = get();
            let took = begun.elapsed();
            eprintln!("{what}: {} after {took:?}", answer.status());
            (answer, took)
        };
        let timed = |what: &str| took(what).0;
        wait_for("the nearest region", || {
            (served_by(wide, &get()) == "eu").then_some(())
        });
        for _ in 0..5 {
            assert_eq!(timed("eu is there").status(), 200);
        }
        // Without a word, as when a cable breaks.
        us.lose(eu);
        eu.lose(us);
        // The dial to `ap` may lose a packet too, and then takes longer than it is given.
        wait_for("the next nearest region", || {
            let answer = timed("eu is gone");
            let is_served = answer.status() == 200;
            match is_served {
                true => assert_eq!(served_by(wide, &answer), "ap"),
                false => assert_eq!(answer.outcome(), (503, "region-unavailable")),
            }
            is_served.then_some(())
        });

        us.lose(ap);
        ap.lose(us);
        let (first, late) = took("both are gone, the first call");
        wide::figure("both regions are gone, the first call is told", late);
        assert_eq!(
            first.outcome(),
            (503, "region-unavailable"),
            "{}",
            first.text()
        );
        let (next, late) = took("both are gone, the next call");
        wide::figure("both regions are gone, the next call is told", late);
        assert_eq!(
            next.outcome(),
            (503, "region-unavailable"),
            "{}",
            next.text()
        );
        // Not, or perhaps, if it went out on a connection that seemed to be there.
        let detail = next.json()["detail"].to_string();
        assert!(detail.contains("carried out"), "{detail}");

        for other in [eu, ap] {
            us.find(other);
            other.find(us);
        }
        wait_for("both again", || (get().status() == 200).then_some(()));
        wait_for("the nearest region", || {
            (served_by(wide, &get()) == "eu").then_some(())
        });
    });
}
