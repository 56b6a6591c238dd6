//! Home moves between regions that are far from each other: planned while all of them write, and
//! unplanned while the old home goes on alone.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::between_regions::{RATE, echo};
use super::wide::{self, Called, Place, Wide};
use crate::harness::wait_for;

/// Writes that are waited for before something happens, and after it.
const SOME: u64 = 10;

/// What became of writes that one region was sent, one after the other.
#[derive(Default)]
struct Writes {
    made: AtomicU64,
    /// Longest time between two that were acknowledged, in nanoseconds.
    pause: AtomicU64,
}

impl Writes {
    /// Renames a target until told to stop. Nothing but a move of home may refuse that.
    fn until(&self, done: &AtomicBool, (place, target): (&Place, &str)) {
        let mut last = Instant::now();
        while !done.load(Ordering::Relaxed) {
            let made = self.made.load(Ordering::Relaxed);
            let name = json!({"name": format!("{}-{made}", place.name)});
            let answer = place.call("PATCH", target, &name);
            match answer.status() {
                200 => {
                    let pause = u64::try_from(last.elapsed().as_nanos()).expect("a short test");
                    self.pause.fetch_max(pause, Ordering::Relaxed);
                    self.made.fetch_add(1, Ordering::Relaxed);
                    last = Instant::now();
                }
                503 => assert_eq!(answer.json()["code"], "home-moved", "{}", answer.text()),
                _ => panic!("{}: {}", place.name, answer.text()),
            }
        }
    }
}

/// Ends the writers however a test ends: a scope waits for them.
struct Ending<'d>(&'d AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn aside(place: &Place) -> Vec<Value> {
    let listed = place.operator("/regions/aside");
    listed["items"].as_array().expect("a list").clone()
}

#[test]
fn home_is_handed_over_while_all_regions_write_and_serve() {
    wide::run(&[], |wide| {
        let upstream = echo(wide);
        let called = wide.proxy(&upstream.url(), json!({}));
        let loads = wide.loads(&called, RATE);
        let path = format!("/targets/{}", called.target);
        let all: Vec<Writes> = wide.regions.iter().map(|_| Writes::default()).collect();
        let done = AtomicBool::new(false);
        let eu = &wide.regions[1];
        thread::scope(|scope| {
            let _ending = Ending(&done);
            for (writes, place) in all.iter().zip(&wide.regions) {
                let (done, path) = (&done, path.as_str());
                scope.spawn(move || writes.until(done, (place, path)));
            }
            let more = || {
                let made = |writes: &Writes| writes.made.load(Ordering::Relaxed);
                let before: Vec<u64> = all.iter().map(made).collect();
                wait_for("writes in every region", || {
                    let mut all = all.iter().zip(&before);
                    all.all(|(writes, before)| made(writes) >= before + SOME)
                        .then_some(())
                });
            };
            more();
            for writes in &all {
                writes.pause.store(0, Ordering::Relaxed);
            }
            let said = eu.promote(&[]);
            assert!(said.contains("handed over to eu"), "{said}");
            for place in &wide.regions {
                wait_for("the new home", || (place.home()? == "eu").then_some(()));
            }
            more();
        });
        for (writes, place) in all.iter().zip(&wide.regions) {
            let pause = Duration::from_nanos(writes.pause.load(Ordering::Relaxed));
            let name = &place.name;
            let what = format!("home is handed over, longest time without a write through {name}");
            wide::figure(&what, pause);
        }
        wide.wait_equal();
        for (load, place) in loads.iter().zip(&wide.regions) {
            load.after(u64::from(RATE)).is_answered(&place.name);
            are_aside(place, &[]);
        }
        let made: u64 = all
            .iter()
            .map(|writes| writes.made.load(Ordering::Relaxed))
            .sum();
        let versions = wide.is_whole() as u64;
        assert!(
            versions > made.min(999),
            "{versions} versions of {made} writes"
        );
    });
}

/// Points the proxy's target at another path, through a region.
fn point(place: &Place, called: &Called, url: &str) {
    let path = format!("/targets/{}", called.target);
    let answer = place.call("PATCH", &path, &json!({"base_url": url}));
    assert_eq!(answer.status(), 200, "{}: {}", place.name, answer.text());
}

/// Waits until every node of these regions sends requests there.
fn wait_path(wide: &Wide, called: &Called, of: &[usize], path: &str) {
    for node in of.iter().flat_map(|at| &wide.regions[*at].nodes) {
        wait_for(&format!("{path} on {node}"), || {
            let answer = called.request("GET", "").send(node);
            assert_eq!(answer.status(), 200, "{node}: {}", answer.text());
            (answer.json()["target"] == path).then_some(())
        });
    }
}

/// Waits until a region lists versions that are set aside, one for each of these objects.
fn are_aside(place: &Place, changed: &[String]) {
    let listed = wait_for("what was set aside", || {
        let listed = aside(place);
        (listed.len() >= changed.len()).then_some(listed)
    });
    let of = |version: &Value| version["changed"][0].as_str().map(str::to_owned);
    let of: BTreeSet<String> = listed.iter().filter_map(of).collect();
    let expected: BTreeSet<String> = changed.iter().cloned().collect();
    assert_eq!(of, expected, "{}", place.name);
    assert_eq!(listed.len(), changed.len(), "{listed:?}");
}

#[test]
fn what_two_homes_made_ends_as_one_branch_everywhere() {
    wide::run(&[], |wide| {
        let upstream = echo(wide);
        let called = wide.proxy(&format!("{}/before", upstream.url()), json!({}));
        let loads = wide.loads(&called, RATE);
        let [us, eu, ap] = &wide.regions[..] else {
            panic!("three regions");
        };
        let create = |place: &Place, name: &str| {
            let answer = place.create_target(name);
            assert_eq!(answer.status(), 201, "{}: {}", place.name, answer.text());
            answer.json()["id"].as_str().expect("an id").to_owned()
        };
        wide.wait_equal();
        for other in [eu, ap] {
            us.lose(other);
            other.lose(us);
        }
        // Home goes on alone, before another region is home and after that.
        let mut alone = vec![called.target.clone()];
        point(us, &called, &format!("{}/of-us", upstream.url()));
        alone.push(create(us, "us-0"));
        let said = eu.promote(&[]);
        assert!(
            said.contains("home is eu") && said.contains("not asked: us"),
            "{said}"
        );
        wait_for("the new home in ap", || (ap.home()? == "eu").then_some(()));
        alone.push(create(us, "us-1"));
        point(ap, &called, &format!("{}/of-eu", upstream.url()));
        let in_force = BTreeSet::from(["eu-0", "ap-0", "eu-1"].map(str::to_owned));
        create(eu, "eu-0");
        create(ap, "ap-0");
        create(eu, "eu-1");
        wait_path(wide, &called, &[0], "/of-us");
        wait_path(wide, &called, &[1, 2], "/of-eu");

        for other in [eu, ap] {
            us.find(other);
            other.find(us);
        }
        wait_path(wide, &called, &[0, 1, 2], "/of-eu");
        wide.wait_equal();
        wide.has_targets(&in_force);
        for place in &wide.regions {
            wait_for("the new home", || (place.home()? == "eu").then_some(()));
            let names = place.targets();
            let lost: Vec<_> = names
                .iter()
                .filter(|name| name.starts_with("us-"))
                .collect();
            assert!(lost.is_empty(), "{}: {lost:?} are in force", place.name);
        }
        are_aside(us, &alone);
        for place in [eu, ap] {
            are_aside(place, &[]);
        }
        // Writes go on from every region, on the one branch.
        for place in &wide.regions {
            create(place, &format!("{}-later", place.name));
        }
        wide.wait_equal();
        for (load, place) in loads.iter().zip(&wide.regions) {
            load.after(u64::from(RATE)).is_answered(&place.name);
        }
        eprintln!("{} versions", wide.is_whole());
    });
}
