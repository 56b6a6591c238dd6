//! Measures how fast a change of the configuration is in effect on a cluster of real processes.
//!
//!   cargo bench --bench cluster -- [CHANGES [OBJECTS]]
//!
//! Three members of etcd (data on tmpfs), two control planes and three nodes: 200 changes, each a
//! new target and the proxy that names it in one version, until every node answers with it; the
//! same until 100 followers in this process have it. 20 publishers of 20 objects of one
//! organisation at once, half of them through each control plane. Then an organisation of 100,000
//! objects: how long it takes to publish, how soon a fresh node serves it and in how much memory,
//! and one change in it. Every answer in between must be of the version before or after: never half
//! of one.
//!
//! At the end each goal stands beside what was measured; where one is missed the exit code is 1.

#![allow(clippy::print_stdout, reason = "a benchmark prints what it measured")]

#[path = "../harness/mod.rs"]
mod harness;

use std::io::{BufRead, BufReader};
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use control::publish::{Author, Publish, Publisher, PublisherOptions};
use proto::credential::{Credential, SecretInput};
use proto::id::{CredentialId, OrgId, ProxyId, RuleId, TargetId};
use proto::object::{Body, ObjectId, StoredCredential};
use proto::org::Role;
use proto::policy::Policy;
use proto::seal::Keyring;
use proto::store::etcd::{Etcd, EtcdOptions};
use proto::store::follow::Follower;
use proto::tree::Operation;
use proto::version::Epoch;
use serde_json::{Value, json};

use harness::http::{Connection, Request};
use harness::upstream::{Upstream, json_answer};
use harness::wait_for;

/// Followers in this process.
const WATCHERS: usize = 100;
const NODES: usize = 3;
/// Publishers at once, and objects that each creates.
const PUBLISHERS: usize = 20;
/// Starts of a fresh node that are measured, of which the slowest counts.
const STARTS: usize = 3;
/// For so long the machine has next to nothing to do before one.
const QUIET: Duration = Duration::from_millis(500);
/// `history.sweep_s` of the cluster: by then the control planes have begun to archive what was
/// published, which keeps this machine busy for seconds.
const SWEEP: Duration = Duration::from_secs(60);

fn main() {
    let numbers: Vec<usize> = std::env::args()
        .skip(1)
        .filter_map(|a| a.parse().ok())
        .collect();
    let changes = numbers.first().copied().unwrap_or(200);
    let objects = numbers.get(1).copied().unwrap_or(100_000);
    let cluster = Cluster::start();
    let mut proxy = Proxied::new(&cluster);
    let mut goals = Goals::default();
    println!("{changes} changes of a small organisation, three nodes:");
    let times = proxy.changes(&cluster, changes, None);
    goals.hold(
        "a change in effect on three nodes, p99 ms",
        times.effective,
        200.0,
    );
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let watchers = watch(&cluster, &runtime);
    println!("the same, until {WATCHERS} followers in one process have it:");
    let times = proxy.changes(&cluster, changes, Some(&watchers));
    goals.hold(
        "a change with 100 followers, p99 ms",
        times.effective,
        200.0,
    );
    runtime.shutdown_background();
    println!("{PUBLISHERS} publishers of {PUBLISHERS} objects, through two control planes:");
    let took = publishers(&cluster);
    goals.hold("a publish among others, p99 ms", took, 2_000.0);
    generated(&cluster, objects, &mut proxy, &mut goals);
    drop(cluster);
    if !goals.are_reached() {
        std::process::exit(1);
    }
}

/// What was measured, and what it may be at most.
#[derive(Default)]
struct Goals(Vec<(&'static str, f64, f64)>);

impl Goals {
    fn hold(&mut self, what: &'static str, measured: f64, at_most: f64) {
        self.0.push((what, measured, at_most));
    }

    /// Prints them all; whether none is missed.
    fn are_reached(&self) -> bool {
        for (what, measured, at_most) in &self.0 {
            let word = if measured <= at_most {
                "reached"
            } else {
                "MISSED"
            };
            println!("{what:48} {measured:9.1}  <= {at_most:6.0}  {word}");
        }
        self.0
            .iter()
            .all(|(_, measured, at_most)| measured <= at_most)
    }
}

/// 99th percentiles of how long changes took, in milliseconds.
struct Took {
    /// From the request to the last who has it.
    effective: f64,
    /// The same from the answer.
    after: f64,
}

/// The cluster that `deploy/local-cluster` starts.
struct Cluster {
    script: Child,
    dir: tempfile::TempDir,
    ready: Value,
}

impl Cluster {
    fn start() -> Self {
        let dir = tempfile::tempdir_in("/dev/shm").expect("a tmpfs");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/local-cluster");
        let mut script = Command::new(script)
            .args(["--balancer", "none", "--output", "json", "--dir"])
            .arg(dir.path())
            .env("REQUESTROCKET_BIN", env!("CARGO_BIN_EXE_requestrocket"))
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 runs the script");
        let ready = first_line(&mut script);
        Self { script, dir, ready }
    }

    fn text(&self, key: &str) -> String {
        self.ready[key].as_str().expect("a text").to_owned()
    }

    fn list(&self, key: &str) -> Vec<String> {
        let all = self.ready[key].as_array().expect("a list").iter();
        all.map(|one| one.as_str().expect("a text").to_owned())
            .collect()
    }

    fn call(&self, method: &str, path: &str, body: &Value) -> Value {
        self.call_at(&self.text("control"), method, path, body)
    }

    fn call_at(&self, control: &str, method: &str, path: &str, body: &Value) -> Value {
        let token = format!("Bearer {}", self.text("admin_token"));
        let request = Request::new(method, &format!("/api/v1/orgs/default{path}"))
            .field("authorization", &token)
            .json(&body.to_string());
        let answer = request.send(control);
        assert!(answer.status() < 300, "{path}: {}", answer.text());
        answer.json()
    }

    fn store(&self) -> Arc<Etcd> {
        Etcd::open(EtcdOptions::new(self.list("etcd"))).expect("options that can work")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        end(&mut self.script);
    }
}

/// Asks a process to end, and waits until it has.
fn end(process: &mut Child) {
    let stop = format!("kill -TERM {}", process.id());
    let _ = Command::new("sh").args(["-c", &stop]).status();
    let _ = process.wait();
}

fn first_line(process: &mut Child) -> Value {
    let mut line = String::new();
    let stdout = process.stdout.take().expect("its output");
    BufReader::new(stdout).read_line(&mut line).expect("a line");
    serde_json::from_str(&line).expect("one line of JSON")
}

/// A proxy whose target is another one after each change; the path says which.
struct Proxied {
    path: String,
    key: String,
    id: String,
    target: String,
    at: u64,
    upstream: Upstream,
}

impl Proxied {
    fn new(cluster: &Cluster) -> Self {
        let upstream = Upstream::raw_at(Ipv4Addr::LOCALHOST, |connection, _| {
            while let Some(request) = connection.read() {
                connection.send(json_answer("200 OK", &format!("{:?}", request.target())));
            }
        });
        let target = cluster.call("POST", "/targets", &target(&upstream, 0));
        let caller = json!({"kind": "proxy", "auth_type": "api_key"});
        let caller = cluster.call("POST", "/credentials", &caller);
        let fields = json!({"target_id": target["id"], "proxy_credential_ids": [caller["id"]]});
        let made = cluster.call("POST", "/proxies", &fields);
        let text = |value: &Value| value.as_str().expect("a text").to_owned();
        let url = text(&made["url"]);
        let path = url.splitn(4, '/').last().expect("a path").to_owned();
        Self {
            path: format!("/{path}"),
            key: text(&caller["secret"]["key"]),
            id: text(&made["id"]),
            target: text(&target["id"]),
            at: 0,
            upstream,
        }
    }

    /// One version: a new target, the proxy with it, and the old target gone. Gives the version.
    fn change(&mut self, cluster: &Cluster) -> u64 {
        self.at += 1;
        let create =
            json!({"create": "targets", "as": "t", "object": target(&self.upstream, self.at)});
        let update = json!({"update": self.id, "patch": {"target_id": "@t"}});
        let delete = json!({"delete": self.target});
        let body = json!({"operations": [create, update, delete]});
        let done = cluster.call("POST", "/changes", &body);
        let made = done["changes"].as_array().expect("changes");
        let is_new = |change: &&Value| {
            let id = change["id"].as_str().unwrap_or_default();
            id.starts_with("tgt_") && id != self.target
        };
        let made = made.iter().find(is_new).expect("a new target");
        self.target = made["id"].as_str().expect("an id").to_owned();
        done["to"].as_u64().expect("a version")
    }

    /// What a node answers now: the number of the change.
    fn ask(&self, connection: &mut Connection, node: &str) -> Option<u64> {
        let request =
            Request::new("GET", &self.path).field("authorization", &format!("Bearer {}", self.key));
        connection.send(request.bytes(node));
        let answer = connection.read_to("GET").expect("an answer");
        match answer.status() {
            200 => {
                let path = answer.json().as_str().unwrap_or_default().to_owned();
                let number = path.trim_start_matches("/v").trim_end_matches('/');
                Some(number.parse().expect("the number of a change"))
            }
            // Before the proxy was there; who asks sees to it that it was not.
            401 => None,
            _ => panic!("half of a version: {}", answer.text()),
        }
    }

    /// Makes changes, one after the other, and prints how long they took.
    fn changes(&mut self, cluster: &Cluster, count: usize, watchers: Option<&Watchers>) -> Took {
        let seen: Vec<AtomicU64> = (0..NODES).map(|_| AtomicU64::new(0)).collect();
        let (stop, from) = (AtomicBool::new(false), self.at);
        let nodes = cluster.list("nodes");
        let (mut answered, mut effective) = (Vec::new(), Vec::new());
        let asker = Self {
            path: self.path.clone(),
            key: self.key.clone(),
            id: String::new(),
            target: String::new(),
            at: 0,
            upstream: Upstream::json("{}"),
        };
        thread::scope(|scope| {
            // Also when something here panics: who asks would go on for ever.
            let _stops = Stops(&stop);
            for (node, seen) in nodes.iter().zip(&seen) {
                let (asker, stop) = (&asker, &stop);
                scope.spawn(move || {
                    let mut connection = Connection::open(node);
                    while !stop.load(Ordering::Relaxed) {
                        match asker.ask(&mut connection, node) {
                            Some(number) => {
                                seen.fetch_max(number + 1, Ordering::Relaxed);
                            }
                            None => assert_eq!(seen.load(Ordering::Relaxed), 0, "gone again"),
                        }
                        thread::sleep(Duration::from_millis(1));
                    }
                });
            }
            let all = |at: u64| seen.iter().all(|seen| seen.load(Ordering::Relaxed) > at);
            wait_for("the proxy on every node", || all(from).then_some(()));
            for _ in 0..count {
                let begun = Instant::now();
                let version = self.change(cluster);
                answered.push(begun.elapsed());
                let there = || match watchers {
                    Some(watchers) => watchers.have(version),
                    None => all(self.at),
                };
                while !there() {
                    assert!(begun.elapsed() < Duration::from_secs(60), "never in effect");
                    thread::sleep(Duration::from_micros(200));
                }
                effective.push(begun.elapsed());
            }
        });
        let after = effective.iter().zip(&answered);
        let after = after.map(|(whole, answer)| whole.saturating_sub(*answer));
        let after = after.collect();
        print("  answered", answered);
        Took {
            effective: print("  in effect, since the request was sent", effective),
            after: print("  in effect, since the answer", after),
        }
    }
}

/// Stops who asks when it goes.
struct Stops<'a>(&'a AtomicBool);

impl Drop for Stops<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn target(upstream: &Upstream, at: u64) -> Value {
    json!({
        "base_url": format!("{}/v{at}", upstream.url()), "allow_http": true,
        "allow_networks": ["127.0.0.0/8"],
    })
}

/// Publishers at once, each of objects of its own, one after the other. Gives the 99th percentile
/// of how long a publish took, in milliseconds.
fn publishers(cluster: &Cluster) -> f64 {
    let controls = cluster.list("controls");
    let took = thread::scope(|scope| {
        let publisher = |n: usize| {
            let control = &controls[n % controls.len()];
            let publish = move |at: usize| {
                let target = json!({"base_url": "https://h.example", "name": format!("p{n}-{at}")});
                let begun = Instant::now();
                cluster.call_at(control, "POST", "/targets", &target);
                begun.elapsed()
            };
            scope.spawn(move || (0..PUBLISHERS).map(publish).collect::<Vec<_>>())
        };
        let running: Vec<_> = (0..PUBLISHERS).map(publisher).collect();
        let took = running
            .into_iter()
            .flat_map(|one| one.join().expect("a thread"));
        took.collect()
    });
    print("  published", took)
}

/// Prints percentiles, and gives the 99th in milliseconds.
fn print(what: &str, mut times: Vec<Duration>) -> f64 {
    times.sort();
    let part = |share: usize| times[(times.len() - 1) * share / 100].as_secs_f64() * 1e3;
    println!(
        "{what}: p50 {:.1} ms, p99 {:.1} ms, most {:.1} ms",
        part(50),
        part(99),
        part(100)
    );
    part(99)
}

/// The newest version that each follower has of the organisation `default`.
struct Watchers(Vec<Arc<AtomicU64>>);

impl Watchers {
    fn have(&self, version: u64) -> bool {
        self.0
            .iter()
            .all(|seen| seen.load(Ordering::Relaxed) >= version)
    }
}

/// Followers of the store, each with a channel of its own, as many nodes would be.
fn watch(cluster: &Cluster, runtime: &tokio::runtime::Runtime) -> Watchers {
    let mut all = Vec::new();
    for _ in 0..WATCHERS {
        let seen = Arc::new(AtomicU64::new(0));
        all.push(seen.clone());
        let (follower, mut worlds) = Follower::new(cluster.store(), "local");
        runtime.spawn(follower.run());
        runtime.spawn(async move {
            while worlds.changed().await.is_ok() {
                let world = worlds.borrow_and_update().clone();
                let n = world.org("default").map_or(0, |org| org.config.head.n);
                seen.store(n, Ordering::Relaxed);
            }
        });
    }
    let watchers = Watchers(all);
    wait_for("all followers", || watchers.have(1).then_some(()));
    watchers
}

/// An organisation with this many objects, nearly all of them in one version.
fn generated(cluster: &Cluster, count: usize, proxy: &mut Proxied, goals: &mut Goals) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let ring = std::fs::read(cluster.dir.path().join("keyring.json"));
    let ring = Keyring::parse(&ring.expect("the key ring")).expect("a key ring");
    let publisher = Publisher::new(PublisherOptions {
        store: cluster.store(),
        public: ring.public().expect("a key"),
        digest_key: ring.digest_key.clone(),
        policy: Policy::default(),
        epoch: Epoch {
            counter: 1,
            region: "local".into(),
        },
        clock: Arc::new(jiff::Timestamp::now),
    });
    let org = runtime.block_on(default_org(cluster));
    // The proxy, its parts and what was published at once are there already, and a change adds one
    // for a moment.
    let there = PUBLISHERS * PUBLISHERS + 10;
    let operations = operations(&publisher, count.saturating_sub(there));
    let (made, begun) = (operations.len(), Instant::now());
    let author = Author {
        name: "bench".into(),
        role: Role::Owner,
        source: None,
    };
    let deadline = tokio::time::Instant::now() + Duration::from_secs(300);
    let publish = Publish {
        org,
        operations,
        author,
        deadline,
        idempotency: None,
    };
    let published = runtime
        .block_on(publisher.publish(publish))
        .expect("it is published");
    println!(
        "{made} objects: published in {:.2} s",
        begun.elapsed().as_secs_f64()
    );
    let names = published.config.objects.len();
    drop((publisher, published, runtime));
    // Who takes it in at the same time would be measured too.
    println!("  one change more, which finds all of them at it:");
    proxy.changes(cluster, 1, None);

    // Nodes give leaves to those whose certificate names them.
    let issued = Command::new(env!("CARGO_BIN_EXE_requestrocket"))
        .args(["link", "issue", "fresh", "--dir"])
        .arg(cluster.dir.path().join("link"))
        .stdout(Stdio::null())
        .status();
    assert!(issued.expect("the binary starts").success());
    thread::sleep(SWEEP);
    let took = (0..STARTS).map(|_| fresh_node(cluster, proxy, names));
    let most = took.max().unwrap_or_default();
    goals.hold(
        "a fresh node serves the large organisation, ms",
        most.as_secs_f64() * 1e3,
        3_000.0,
    );
    println!("  one change in it, three nodes:");
    let times = proxy.changes(cluster, 50, None);
    goals.hold(
        "a change in it applied, since its answer, p99 ms",
        times.after,
        50.0,
    );
}

/// Starts a node with nothing on disk once the others have done what the version before made them
/// do; gives how long it took until it served.
fn fresh_node(cluster: &Cluster, proxy: &Proxied, objects: usize) -> Duration {
    let config = std::fs::read_to_string(cluster.dir.path().join("node-1.toml")).expect("a file");
    let dir = tempfile::tempdir().expect("a folder");
    let fresh = dir.path().join("fresh.toml");
    let data = format!("data_dir = {:?}", dir.path().join("data"));
    let lines = config.lines().map(|line| match line.split(" = ").next() {
        Some("listen") => "listen = \"127.0.0.1:0\"".to_owned(),
        Some("data_dir") => data.clone(),
        _ => line
            .replace("node-1\"", "fresh\"")
            .replace("link/node-1", "link/fresh"),
    });
    let config: Vec<String> = lines.collect();
    std::fs::write(&fresh, config.join("\n")).expect("a file");
    wait_for("a quiet machine", || (busy(QUIET) < 0.2).then_some(()));
    let begun = Instant::now();
    let mut node = Command::new(env!("CARGO_BIN_EXE_requestrocket"))
        .args(["node", "--output", "json", "--config"])
        .arg(&fresh)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("the binary starts");
    let ready = first_line(&mut node);
    let url = ready["gateway"].as_str().expect("a URL").to_owned();
    let served = proxy.ask(&mut Connection::open(&url), &url);
    let took = begun.elapsed();
    assert_eq!(served, Some(proxy.at));
    println!(
        "  {objects} objects served by a fresh node after {:.2} s, in {} MiB",
        took.as_secs_f64(),
        resident_mib(node.id())
    );
    end(&mut node);
    took
}

/// How many cores are busy, on average over a while.
fn busy(over: Duration) -> f64 {
    let ticks = || {
        let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
        let cores = stat.lines().next().unwrap_or_default().split_whitespace();
        let ticks: Vec<f64> = cores.skip(1).filter_map(|n| n.parse().ok()).collect();
        // All but idle, iowait, and what guests had already counted.
        ticks.iter().take(8).sum::<f64>() - ticks.iter().skip(3).take(2).sum::<f64>()
    };
    let before = ticks();
    thread::sleep(over);
    // proc(5): in hundredths of a second.
    (ticks() - before) / 100.0 / over.as_secs_f64()
}

async fn default_org(cluster: &Cluster) -> OrgId {
    let (mut follower, worlds) = Follower::new(cluster.store(), "local");
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    follower.catch_up(deadline).await.expect("the store");
    let world = worlds.borrow().clone();
    world.org("default").expect("the organisation").config.org
}

/// Of five objects each: a target, a credential of either kind, a proxy with a limit, a rule.
fn operations(publisher: &Publisher, count: usize) -> Vec<Operation> {
    let mut operations = Vec::with_capacity(count);
    for at in 0..count / 5 {
        let (target, proxy) = (
            ObjectId::Target(TargetId::new()),
            ObjectId::Proxy(ProxyId::new()),
        );
        let ids = [CredentialId::new(), CredentialId::new()];
        let host = format!("host-{at}.example");
        let fields =
            json!({"name": format!("target {at}"), "base_url": format!("https://{host}/v1")});
        operations.push(create(target, Body::Target(parsed(fields))));
        for (id, kind) in ids.iter().zip(["proxy", "target"]) {
            let mut fields =
                json!({"name": format!("{kind} {at}"), "kind": kind, "auth_type": "bearer"});
            if kind == "target" {
                fields["hosts"] = json!([host]);
            }
            let credential: Credential = parsed(fields);
            let mut secret = SecretInput::default();
            secret.token = Some(format!("secret-of-{kind}-{at}-0123456789abcdef"));
            let secret = Some(publisher.prepare(&credential, secret));
            let (previous, state) = (vec![], None);
            let body = Body::Credential(StoredCredential {
                credential,
                secret: state,
                previous,
            });
            operations.push(Operation::Create {
                id: ObjectId::Credential(*id),
                body,
                secret,
            });
        }
        let fields = json!({
            "name": format!("proxy {at}"), "target_id": target.to_string(),
            "proxy_credential_ids": [ids[0]], "target_credential_id": ids[1],
            "limits": {"per_minute": 600},
        });
        operations.push(create(proxy, Body::Proxy(parsed(fields))));
        let mut spec = json!({"effect": "deny", "methods": ["DELETE"]});
        // The patterns of one organisation have a bound.
        if at % 4 == 0 {
            spec["path"] = json!({"pattern": "^/admin"});
        }
        let fields = json!({"parent": proxy.to_string(), "spec": spec});
        operations.push(create(
            ObjectId::Rule(RuleId::new()),
            Body::Rule(parsed(fields)),
        ));
    }
    operations
}

fn create(id: ObjectId, body: Body) -> Operation {
    Operation::Create {
        id,
        body,
        secret: None,
    }
}

fn parsed<T: serde::de::DeserializeOwned>(fields: Value) -> T {
    serde_json::from_value(fields).expect("fields of an object")
}

fn resident_mib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or_default() / 1024
}
