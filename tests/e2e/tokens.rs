//! Linked nodes: one limit over three of them, and configuration that they give each other. Real
//! processes and a real etcd. Every request is judged by when its answer came.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::cluster::Cluster;
use crate::harness::address;
use crate::harness::gateway::{Gateway, Proxy, Start};
use crate::harness::metrics;
use crate::harness::upstream::Upstream;
use crate::harness::wait_for;

/// By how much an answer may come early or late against its send.
const JITTER: Duration = Duration::from_millis(100);

/// A node and its operator's listener.
pub struct Node {
    /// The node.
    pub gateway: Gateway,
    admin: String,
}

impl Node {
    /// Starts it, with links to the others.
    pub fn start(cluster: &Cluster, name: &str) -> Self {
        Self::of(cluster.node_start(name, name))
    }

    /// The same of a node that is started so.
    pub fn of(mut start: Start) -> Self {
        let admin = address::reserved().to_string();
        start.config.push_str(&format!(
            "[admin]\nlisten = {admin:?}\n[peers]\nlisten = \"127.0.0.1:0\"\n"
        ));
        let gateway = Gateway::with(start);
        let admin = format!("http://{admin}");
        Self { gateway, admin }
    }

    /// One of its metrics.
    pub fn metric(&self, name: &str) -> u64 {
        let value = metrics::at(&self.admin, name);
        value.unwrap_or_else(|| panic!("no {name}")) as u64
    }
}

/// Three nodes, each linked with the two others.
pub fn linked(cluster: &Cluster) -> Vec<Node> {
    let nodes: Vec<Node> = ["gw-1", "gw-2", "gw-3"]
        .map(|name| Node::start(cluster, name))
        .into();
    for node in &nodes {
        wait_for("the links", || {
            (node.metric("requestrocket_peers_linked") == 2).then_some(())
        });
    }
    nodes
}

fn sum(nodes: &[Node], name: &str) -> u64 {
    nodes.iter().map(|node| node.metric(name)).sum()
}

/// Waits until all nodes serve the newest configuration, without a request that could cost a token.
pub fn current(control: &Gateway) {
    wait_for("current nodes", || {
        let listed = control.operator("/nodes").json();
        let nodes = listed["items"].as_array().expect("a list").clone();
        let current = nodes.iter().filter(|node| node["current"] == true).count();
        (current == 3).then_some(())
    });
}

/// What callers got: when each request was granted, and how often each status came.
#[derive(Default)]
struct Outcome {
    granted: Mutex<Vec<Instant>>,
    statuses: Mutex<BTreeMap<u16, usize>>,
}

impl Outcome {
    fn call(&self, node: &str, proxy: &Proxy) {
        let status = proxy.request("GET", "/").send(node).status();
        if status == 200 {
            let now = Instant::now();
            self.granted.lock().expect("no panic").push(now);
        }
        *self
            .statuses
            .lock()
            .expect("no panic")
            .entry(status)
            .or_default() += 1;
    }

    fn granted(&self) -> usize {
        self.granted.lock().expect("no panic").len()
    }

    /// Checks the bound in every interval of a minute, and that callers got tokens or refusals.
    fn judge(&self, limit: usize) {
        let mut granted = self.granted.lock().expect("no panic").clone();
        granted.sort();
        for (at, first) in granted.iter().enumerate() {
            let window = Duration::from_secs(60) - JITTER;
            let within = granted
                .iter()
                .skip(at)
                .take_while(|g| **g - *first < window);
            let within = within.count();
            assert!(within <= limit, "{within} of {limit} within a minute");
        }
        let statuses = self.statuses.lock().expect("no panic");
        let odd: Vec<_> = statuses
            .keys()
            .filter(|s| ![200, 429].contains(*s))
            .collect();
        assert!(odd.is_empty(), "{statuses:?}");
    }
}

fn limited(control: &Gateway, upstream: &Upstream, per_minute: u64) -> Proxy {
    let limits = json!({"limits": {"per_minute": per_minute}});
    control.proxy_with(&upstream.url(), json!({}), limits)
}

#[test]
fn linked_nodes_use_a_limit_up_and_never_more_with_few_writes() {
    const LIMIT: usize = 400;
    let cluster = Cluster::new();
    let control = Gateway::with(cluster.control_start());
    let nodes = linked(&cluster);
    let upstream = Upstream::json("{}");
    let (proxy, slow) = (
        limited(&control, &upstream, LIMIT as u64),
        limited(&control, &upstream, 5),
    );
    current(&control);
    let listed = control.operator("/nodes").json();
    assert!(listed["items"][0]["peers"].is_string(), "{listed}");
    let (outcome, begun) = (Outcome::default(), Instant::now());
    let asked = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        // Uneven: of seven callers four are on one node and one on another.
        for node in [0, 0, 0, 0, 1, 1, 2] {
            let (node, proxy) = (&nodes[node].gateway.url, &proxy);
            let (outcome, asked) = (&outcome, &asked);
            scope.spawn(move || {
                while asked.fetch_add(1, Ordering::Relaxed) < LIMIT * 3 / 2 {
                    outcome.call(node, proxy);
                }
            });
        }
    });
    outcome.judge(LIMIT);
    let granted = outcome.granted();
    assert!(granted * 100 >= LIMIT * 95, "{granted} of {LIMIT} used");
    // The begun second, and the one that a write may be early by.
    let seconds = begun.elapsed().as_secs() + 2;
    let writes = sum(&nodes, "requestrocket_limit_key_writes_total");
    assert!(writes <= 30 * seconds, "{writes} writes in {seconds} s");
    let lent = sum(&nodes, "requestrocket_limit_peer_grants_total");
    assert!(lent >= 2, "{lent} parts were lent");
    // A node that finds no core for 50 ms is passed over for a moment, no more.
    let of_each = |name: &str| {
        nodes
            .iter()
            .map(|node| node.metric(name))
            .collect::<Vec<_>>()
    };
    let written = of_each("requestrocket_limit_key_writes_total");
    let silent = of_each("requestrocket_limit_peer_silences_total");
    let most = written.iter().max().copied().unwrap_or_default();
    eprintln!("{granted} granted, writes {written:?}, silences {silent:?}, lent {lent}");
    assert!(
        most * 10 >= writes * 6,
        "writes {written:?}, silences {silent:?}"
    );

    let outcome = Outcome::default();
    for at in 0..30 {
        outcome.call(&nodes[at % 3].gateway.url, &slow);
    }
    outcome.judge(5);
    assert_eq!(outcome.granted(), 5, "a burst of the whole limit passes");
}

#[test]
fn another_version_of_the_configuration_forgets_nothing_that_was_spent() {
    let cluster = Cluster::new();
    let control = Gateway::with(cluster.control_start());
    let nodes = linked(&cluster);
    let upstream = Upstream::json("{}");
    let proxy = limited(&control, &upstream, 5);
    current(&control);
    let outcome = Outcome::default();
    for node in &nodes {
        outcome.call(&node.gateway.url, &proxy);
    }
    assert_eq!(outcome.granted(), 3);
    let rule = json!({"effect": "deny", "methods": ["DELETE"]});
    control.create(&format!("/proxies/{}/rules", proxy.id), rule);
    current(&control);
    for at in 0..30 {
        outcome.call(&nodes[at % 3].gateway.url, &proxy);
    }
    outcome.judge(5);
    assert_eq!(outcome.granted(), 5);
}

#[test]
fn when_the_owner_is_killed_under_load_the_others_go_on_within_the_limit() {
    const LIMIT: usize = 600;
    let cluster = Cluster::new();
    let control = Gateway::with(cluster.control_start());
    let mut nodes = linked(&cluster);
    let upstream = Upstream::json("{}");
    let proxy = limited(&control, &upstream, LIMIT as u64);
    current(&control);
    let (before, after) = (Outcome::default(), Outcome::default());
    // So that there is an owner.
    for node in &nodes {
        before.call(&node.gateway.url, &proxy);
    }
    let writes = |node: &Node| node.metric("requestrocket_limit_key_writes_total");
    let owner = (0..3).max_by_key(|at| writes(&nodes[*at])).expect("three");
    let owner = nodes.remove(owner);
    let (stop, killed) = (AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|scope| {
        for node in [0, 0, 0, 1] {
            let (node, proxy) = (&nodes[node].gateway.url, &proxy);
            let (before, after) = (&before, &after);
            let (stop, killed) = (&stop, &killed);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    match killed.load(Ordering::Relaxed) {
                        false => before.call(node, proxy),
                        true => after.call(node, proxy),
                    }
                }
            });
        }
        wait_for("load", || (before.granted() >= LIMIT / 4).then_some(()));
        owner.gateway.kill();
        killed.store(true, Ordering::Relaxed);
        // What the owner and those who borrowed from it held is lost: a twentieth each, at most
        // three blocks of it.
        wait_for("the rest of the limit", || {
            (before.granted() + after.granted() >= LIMIT - 3 * LIMIT / 20).then_some(())
        });
        // And a while at the limit.
        let refused = || after.statuses.lock().expect("no panic").get(&429).copied();
        wait_for("refusals", || (refused() >= Some(50)).then_some(()));
        stop.store(true, Ordering::Relaxed);
    });
    let all = Outcome::default();
    for outcome in [before, after] {
        let granted = outcome.granted.into_inner().expect("no panic");
        all.granted.lock().expect("no panic").extend(granted);
        for (status, count) in outcome.statuses.into_inner().expect("no panic") {
            *all.statuses
                .lock()
                .expect("no panic")
                .entry(status)
                .or_default() += count;
        }
    }
    all.judge(LIMIT);
}

#[test]
fn a_node_that_was_away_gets_a_large_change_from_its_peers() {
    let cluster = Cluster::new();
    let control = Gateway::with(cluster.control_start());
    let nodes = linked(&cluster);
    let upstream = Upstream::json("{}");
    let proxy = control.proxy(&upstream.url());
    current(&control);
    let late = &nodes[2];
    late.gateway.signal("STOP");
    // More than is told in one piece, so that leaves have to be read.
    let target = |at: usize| {
        let url = format!("https://{at}.{}.example", "a".repeat(60));
        json!({"create": "targets", "object": {"base_url": url}})
    };
    let mut operations: Vec<_> = (0..100).map(target).collect();
    operations.push(json!({"update": proxy.id, "patch": {"active": false}}));
    let changed = control.api("POST", "/changes", Some(&json!({"operations": operations})));
    assert_eq!(changed.status(), 200, "{}", changed.text());
    let serves = |node: &Node| {
        wait_for("the change", || {
            let answer = proxy.request("GET", "/").send(&node.gateway.url);
            (answer.status() == 403).then_some(())
        });
    };
    nodes[..2].iter().for_each(serves);
    late.gateway.signal("CONT");
    serves(late);
    let given = late.metric("requestrocket_peer_leaves_total");
    assert!(given >= 2, "{given} leaves from peers");
}
