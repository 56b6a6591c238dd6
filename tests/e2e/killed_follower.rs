//! A control plane of a region that follows is killed at each write by which it takes a version
//! over, before its etcd has it and after: the version is there whole or not at all, its region
//! serves all the while, and the next start goes on without a gap.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use proto::id::OrgId;
use proto::keys;
use proto::store::load;
use serde_json::json;

use crate::cluster::wait_status;
use crate::harness::etcd_relay::{EtcdRelay, Moment};
use crate::harness::gateway::{Gateway, Proxy, Start};
use crate::harness::signals;
use crate::harness::stores::{LIVE, part};
use crate::harness::upstream::Upstream;
use crate::harness::wait_for;
use crate::killed_publisher::{LARGE, SMALL, made, marked, operations, swept, token};
use crate::raw_store::RawStore;
use crate::regions::Two;

/// Looks at what is written in eu, between which nothing was, before a version is taken to be done.
const QUIET: usize = 100;

/// More writes than a version takes.
const ENDLESS: u64 = 1_000_000;

struct Scene {
    two: Two,
    raw: RawStore,
    org: OrgId,
    us: Gateway,
    /// It reaches its etcd by the relay.
    eu: Option<Gateway>,
    eu_start: Start,
    relay: EtcdRelay,
    node: Gateway,
    upstream: Upstream,
    proxy: Proxy,
    credentials: Vec<String>,
    replaced: usize,
    publish: u64,
}

impl Scene {
    fn new() -> Self {
        let two = Two::new();
        let relay = EtcdRelay::to(two.eu.etcd());
        let mut eu_start = swept(two.eu_start(), 600);
        let (own, way) = (two.eu.etcd().endpoint(), relay.endpoint());
        eu_start.config = eu_start.config.replace(&own, &way);
        let us = Gateway::with(swept(two.us_start(), 600));
        let mut eu = Gateway::with(eu_start.clone());
        eu.token.clone_from(&us.token);
        let node = two.node(&two.eu);
        let upstream = Upstream::json("{}");
        let proxy = us.proxy(&upstream.url());
        let credentials = made(&us);
        wait_status(&node, &proxy, "GET", 200);
        let path = "/api/v1/orgs/default";
        let org = us.control_call("GET", path, Some(&us.token), None).json();
        let org = org["id"].as_str().expect("an id");
        Self {
            raw: RawStore::new(two.eu.etcd()),
            org: org.parse().expect("an id"),
            two,
            us,
            eu: Some(eu),
            eu_start,
            relay,
            node,
            upstream,
            proxy,
            credentials,
            replaced: LARGE,
            publish: 0,
        }
    }

    /// Makes the next version at home, and gives its number.
    fn publish(&mut self) -> u64 {
        self.publish += 1;
        let replaced = &self.credentials[..self.replaced];
        let operations = operations(&self.proxy, replaced, self.publish);
        let body = json!({"operations": operations});
        let answer = self.us.api("POST", "/changes", Some(&body));
        assert_eq!(answer.status(), 200, "{}", answer.text());
        self.newest(&self.us)
    }

    fn eu(&self) -> &Gateway {
        self.eu.as_ref().expect("it runs")
    }

    fn newest(&self, control: &Gateway) -> u64 {
        let listed = control.get("/versions?limit=1");
        listed["items"][0]["n"].as_u64().expect("a number")
    }

    /// Waits until eu has the newest version and writes no more of it, or until `ends`; whether it
    /// was that.
    fn wait_done(&self, step: &str, ends: &AtomicBool) -> bool {
        let (mut quiet, mut before) = (0, None);
        wait_for(step, || {
            if ends.load(Ordering::SeqCst) {
                return Some(true);
            }
            let left = self.relay.left();
            quiet = if left == before { quiet + 1 } else { 0 };
            before = left;
            let is_equal = || part(&self.two.us.dump(), &LIVE) == part(&self.two.eu.dump(), &LIVE);
            let is_over = || is_equal() && self.raw.find(&keys::retiring(self.org)).is_none();
            (quiet >= QUIET && is_over()).then_some(false)
        })
    }

    /// How many writes a version is taken over with.
    fn writes(&mut self) -> u64 {
        let org = self.org.to_string();
        let never = (ENDLESS, Moment::Before);
        self.relay.at_write(never, &org, || ());
        self.publish();
        self.wait_done("no death", &AtomicBool::new(false));
        let writes = ENDLESS - self.relay.left().expect("so many never come");
        self.stands("no death");
        writes
    }

    /// Has eu's control plane killed at the `nth` write of a version; whether it came to that.
    fn killed_at(&mut self, nth: u64, moment: Moment) -> bool {
        let step = format!("{moment:?} write {nth} of {} secrets", self.replaced);
        let (id, died) = (self.eu().id(), Arc::new(AtomicBool::new(false)));
        let (dies, org) = (Arc::clone(&died), self.org.to_string());
        self.relay.at_write((nth, moment), &org, move || {
            signals::send("KILL", id);
            dies.store(true, Ordering::SeqCst);
        });
        let n = self.publish();
        if !self.wait_done(&step, &died) && !self.relay.has_sprung() {
            self.stands(&step);
            return false;
        }
        let (_, folder) = self.eu.take().expect("it ran").ended();
        self.is_whole(n, &step);
        let mut next = Gateway::inside(folder, &self.eu_start);
        next.token.clone_from(&self.us.token);
        self.eu = Some(next);
        self.stands(&step);
        true
    }

    /// That what a dead control plane has left in eu is version `n`, or the one before it, whole,
    /// and that eu serves the one or the other.
    fn is_whole(&self, n: u64, step: &str) {
        let (store, org) = (self.raw.store(), self.org);
        let read = async {
            let found = load::head(store, org).await.expect("etcd answers");
            let head = found.expect("a head").0;
            load::version(store, org, head, None).await
        };
        let loaded = self
            .raw
            .wait(read)
            .unwrap_or_else(|error| panic!("{step}: {error}"));
        assert!(loaded.faults.is_empty(), "{step}: {:?}", loaded.faults);
        let config = loaded.config;
        let stands = config.head.n == n;
        assert!(
            stands || config.head.n + 1 == n,
            "{step}: {}",
            config.head.n
        );
        let publish = if stands {
            self.publish
        } else {
            self.publish - 1
        };
        let sealed = self.raw.list(&keys::secrets(org));
        for (id, stored) in config.objects.credentials() {
            let Some(seal_id) = stored.seal_id() else {
                continue;
            };
            let key = keys::secret(org, id, seal_id, "eu");
            let is_there = sealed.iter().any(|(known, _)| *known == key);
            assert!(is_there, "{step}: no {key}");
        }
        if publish > 0 {
            assert!(marked(&config, publish) >= self.replaced, "{step}");
        }
        self.serves(publish, step);
    }

    /// That eu has the newest version, each once and in order, and serves it.
    fn stands(&self, step: &str) {
        self.two.wait_equal();
        wait_for(&format!("what eu shows after {step}"), || {
            (self.newest(self.eu()) == self.newest(&self.us)).then_some(())
        });
        self.serves(self.publish, step);
    }

    /// Waits until eu's node sends the secret of a publish.
    fn serves(&self, publish: u64, step: &str) {
        let expected = format!("Bearer {}", token(publish));
        wait_for(&format!("{expected} after {step}"), || {
            let answer = self.proxy.request("GET", "/").send(&self.node.url);
            assert_eq!(answer.status(), 200, "{step}: {}", answer.text());
            let seen = self.upstream.last();
            (publish == 0 || seen.field("authorization") == Some(&expected)).then_some(())
        });
    }
}

#[test]
fn a_follower_killed_at_any_write_has_each_version_whole_and_once() {
    let mut scene = Scene::new();
    // What is stored before a write is what is stored after the one before it.
    let both = &[Moment::Before, Moment::After][..];
    for (replaced, least, moments) in [(LARGE, 3, &both[..1]), (SMALL, 1, both)] {
        scene.replaced = replaced;
        let writes = scene.writes();
        assert!(writes >= least, "{writes} writes of {replaced} secrets");
        for moment in moments.iter().copied() {
            let killed = (1..=writes).filter(|nth| scene.killed_at(*nth, moment));
            let killed = killed.count() as u64;
            eprintln!("{replaced} secrets: killed {moment:?} {killed} of {writes} writes");
            // Not each version takes as many.
            assert!(killed >= least, "{killed} of {writes} writes");
        }
    }
}
