//! A limit that three regions have together, with slow lines between them: never more is sent than
//! it allows, and most of it is used wherever the callers are.
//!
//! Judged by when requests arrive, each at an upstream in the region that serves it.

use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::limits::per_second;
use super::load::Load;
use super::wide::{self, Called, Wide};
use crate::harness::upstream::{Upstream, json_answer};
use crate::harness::wait_for;

/// What all regions together ask for, of the limit.
const DEMAND: f64 = 1.5;
/// How much of it is asked for in each region, from when to when.
const PHASES: [[f64; 3]; 3] = [[0.9, 0.05, 0.05], [0.05, 0.9, 0.05], [0.1, 0.45, 0.45]];
/// From so long after demand stands still the limit is used: ten windows.
const SETTLED: Duration = Duration::from_secs(10);
/// How long the use is looked at.
const USED_FOR: Duration = Duration::from_secs(8);
/// How often at most, until it is as it should be: a machine may be busy with other things in one
/// of them.
const STRETCHES: u32 = 5;
/// By how much a request may arrive late after it was sent.
const ON_THE_WAY: Duration = Duration::from_millis(100);

/// When requests arrived, whichever upstream they came to.
#[derive(Default)]
struct Arrivals(Mutex<Vec<Instant>>);

impl Arrivals {
    fn note(&self) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.push(Instant::now());
    }

    fn since(&self, begun: Instant) -> Vec<Instant> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut since: Vec<Instant> = all.iter().filter(|at| **at >= begun).copied().collect();
        since.sort_unstable();
        since
    }
}

fn counting(address: Ipv4Addr, arrivals: &Arc<Arrivals>) -> Upstream {
    let (arrivals, answer) = (Arc::clone(arrivals), json_answer("200 OK", "{}"));
    Upstream::raw_at(address, move |connection, _| {
        while connection.read().is_some() {
            arrivals.note();
            connection.send(&answer);
        }
    })
}

/// A proxy with the limit, whose target is asked in the region of the caller; every node knows it.
fn limited(wide: &Wide, upstreams: &[Upstream], limit: usize) -> Called {
    let called = wide.proxy(&upstreams[0].url(), json!({}));
    let names = wide.regions.iter().map(|place| place.name.as_str());
    let endpoints: Vec<Value> = names
        .clone()
        .zip(upstreams)
        .map(|(region, upstream)| json!({"region": region, "base_url": upstream.url()}))
        .collect();
    let path = format!("/targets/{}", called.target);
    let body = json!({ "endpoints": endpoints });
    let answer = wide.home().call("PATCH", &path, &body);
    assert_eq!(answer.status(), 200, "{}", answer.text());
    let meter = json!({
        "name": "together", "limits": [{"limit": limit, "window": "second"}],
        "shared_by": names.collect::<Vec<_>>(), "on_store_loss": "fail_closed",
    });
    wide.home()
        .create(&format!("/proxies/{}/meters", called.id), &meter);
    for node in wide.regions.iter().flat_map(|place| &place.nodes) {
        wait_for("the meter on every node", || {
            let answer = called.request("GET", "/").send(node);
            let limited = answer.field("ratelimit-policy").is_some();
            (answer.status() == 429 || limited).then_some(())
        });
    }
    called
}

#[test]
fn a_limit_of_three_regions_is_used_where_its_callers_are_and_never_exceeded() {
    wide::run(&[], |wide| {
        let limit = per_second();
        let arrivals: Arc<Arrivals> = Arc::default();
        let places = wide.regions.iter();
        let upstreams: Vec<Upstream> = places
            .map(|place| counting(place.host, &arrivals))
            .collect();
        let called = limited(wide, &upstreams, limit);
        let begun = Instant::now();
        let all = f64::from(u32::try_from(limit).expect("a rate")) * DEMAND;
        for phase in PHASES {
            let load = |(place, part): (&wide::Place, f64)| {
                #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
                let rate = (all * part) as u32;
                Load::start(place.nodes.clone(), called.request("GET", "/"), rate)
            };
            let _loads: Vec<Load> = wide.regions.iter().zip(phase).map(load).collect();
            thread::sleep(SETTLED);
            let could = limit * usize::try_from(USED_FOR.as_secs()).expect("few");
            let mut used = (0..STRETCHES).map(|_| {
                let from = Instant::now();
                thread::sleep(USED_FOR);
                let used = arrivals.since(from).len();
                eprintln!("demand {phase:?}: {used} of {could} used");
                used
            });
            // Nine tenths are what it is for; less tells of a fault where a machine is only busy.
            let is_used = used.any(|used| used * 100 >= could * 85);
            assert!(is_used, "{phase:?}: less than 85 % of {could}, each time");
        }
        let all = arrivals.since(begun);
        let fullest = all
            .windows(limit + 1)
            .map(|within| within[limit] - within[0]);
        let fullest = fullest.min().expect("more than the limit in all");
        eprintln!("{} in all; {} within {fullest:?}", all.len(), limit + 1);
        assert!(
            fullest >= Duration::from_secs(1) - ON_THE_WAY,
            "{fullest:?}"
        );
    });
}
