//! The cluster of the tests: three members of etcd, two control planes, three nodes and the
//! callers, each on a host of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::asked::Asked;
use super::load::Load;
use super::network::{Host, Network};
use crate::harness::etcd::EtcdServer;
use crate::harness::gateway::{Gateway, Proxy, Start, binary};
use crate::harness::http::{Message, Request};
use crate::harness::metrics;
use crate::harness::stores;
use crate::harness::upstream::{Upstream, json_answer};
use crate::harness::wait_for;

const HOSTS: [&str; 9] = [
    "etcd-1",
    "etcd-2",
    "etcd-3",
    "control-1",
    "control-2",
    "node-1",
    "node-2",
    "node-3",
    "callers",
];
const MEMBERS: usize = 3;
const CONTROLS: usize = 2;
const NODES: usize = 3;
const CALLERS: usize = HOSTS.len() - 1;

/// Both control planes are given it.
const TOKEN: &str = "chaos-admin-token-0123456789abcdefghijkl";

/// Where versions are answered and presented.
const VERSION: &str = "requestrocket-version";

/// Requests a second, over all nodes.
pub const RATE: u32 = 500;
/// Requests of one second.
pub const SECOND: u64 = RATE as u64;
/// Twice what [`RATE`] needs, and half as much again.
const LIMIT_PER_MINUTE: u32 = RATE * 60 * 3;

/// A running cluster.
pub struct Cluster<'n> {
    /// By their number from 0.
    pub nodes: Vec<Process>,
    /// By their number from 0.
    pub controls: Vec<Process>,
    etcd: Vec<EtcdServer>,
    upstream: Upstream,
    files: TempDir,
    network: &'n Network,
    /// The version of the last change, as it was answered.
    written: Mutex<Option<String>>,
}

/// One process of ours and its host.
pub struct Process {
    /// Where it runs.
    pub host: Host,
    start: Start,
    running: Option<Gateway>,
}

/// Whether the nodes of a cluster have links between them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Links {
    /// Each takes its tokens from etcd itself.
    None,
    /// Tokens have owners among them, and they tell each other of revoked keys.
    Peers,
}

/// Lets a process inject faults, as tests ask for them.
const FAULTS: &str = "REQUESTROCKET_GATEWAY__FAULT_INJECTION";

impl Start {
    /// The wall clock of this process is ahead by so many milliseconds, as limits see it.
    fn is_ahead(&mut self, ahead_ms: i64) {
        let ahead = "REQUESTROCKET_GATEWAY__FAULT_CLOCK_AHEAD_MS";
        self.environment.push((ahead.into(), ahead_ms.to_string()));
    }
}

/// Runs a test on a fresh cluster without links, on the callers' host. One at a time.
pub fn run(test: impl FnOnce(&mut Cluster<'_>, &Proxy) + Send) {
    run_with(Links::None, test);
}

/// Runs a test on a fresh cluster, on the callers' host. One at a time.
pub fn run_with(links: Links, test: impl FnOnce(&mut Cluster<'_>, &Proxy) + Send) {
    run_on(Members::default(), links, test);
}

/// The same with nodes whose clocks are ahead by so many milliseconds, as limits see them; those of
/// the control planes as the one in the middle.
pub fn run_at(ahead_ms: [i64; NODES], test: impl FnOnce(&mut Cluster<'_>, &Proxy) + Send) {
    run_clocked(Members::default(), Links::Peers, ahead_ms, test);
}

/// What the members of etcd are given.
#[derive(Clone, Copy, Debug, Default)]
pub struct Members {
    /// Further arguments.
    pub flags: &'static [&'static str],
    /// A disk of its own for the data of each, so large; the machine's when absent.
    pub disk_mib: Option<usize>,
}

/// The same on members of etcd like these.
pub fn run_on(members: Members, links: Links, test: impl FnOnce(&mut Cluster<'_>, &Proxy) + Send) {
    run_clocked(members, links, [0; NODES], test);
}

fn run_clocked(
    members: Members,
    links: Links,
    ahead_ms: [i64; NODES],
    test: impl FnOnce(&mut Cluster<'_>, &Proxy) + Send,
) {
    let Some(_one) = alone() else {
        return;
    };
    let network = Network::new(&HOSTS);
    network.host(CALLERS).inside(|| {
        let mut cluster = Cluster::start(&network, members, links, ahead_ms);
        let proxy = cluster.proxy();
        test(&mut cluster, &proxy);
    });
}

/// Waits until no other of these tests runs; nothing where they are left out.
pub fn alone() -> Option<MutexGuard<'static, ()>> {
    static ONE: Mutex<()> = Mutex::new(());
    if std::env::var("REQUESTROCKET_CHAOS").is_ok_and(|value| value == "skip") {
        eprintln!("LEFT OUT: REQUESTROCKET_CHAOS=skip. Nothing was tested.");
        return None;
    }
    Some(ONE.lock().unwrap_or_else(PoisonError::into_inner))
}

/// How long something stays away, unless all outages are told to last otherwise.
pub fn outage(seconds: u64) -> Duration {
    let given = std::env::var("REQUESTROCKET_CHAOS_OUTAGE_S");
    let seconds = given.map_or(seconds, |text| text.parse().expect("a number of seconds"));
    Duration::from_secs(seconds)
}

impl<'n> Cluster<'n> {
    fn start(network: &'n Network, members: Members, links: Links, ahead_ms: [i64; NODES]) -> Self {
        let addresses: Vec<_> = (0..MEMBERS).map(|at| network.host(at).address).collect();
        let mut etcd = EtcdServer::on_hosts(&addresses, members.flags);
        if let Some(mib) = members.disk_mib {
            etcd.iter_mut().for_each(|member| member.mount_disk(mib));
        }
        // Whoever asks gets the same answer; nothing is kept of the requests.
        let answer = json_answer("200 OK", "{}");
        let upstream = Upstream::raw_at(network.host(CALLERS).address, move |connection, _| {
            while connection.read().is_some() {
                connection.send(&answer);
            }
        });
        let mut cluster = Self {
            nodes: Vec::new(),
            controls: Vec::new(),
            etcd,
            upstream,
            files: tempfile::tempdir().expect("a folder"),
            network,
            written: Mutex::new(None),
        };
        for at in 0..MEMBERS {
            cluster.etcd(at, EtcdServer::spawn);
        }
        for at in 0..MEMBERS {
            cluster.etcd(at, EtcdServer::wait);
        }
        let made = binary()
            .args(["keyring", "new", "--nodes"])
            .arg(cluster.files.path().join("nodes.json"))
            .arg("--control")
            .arg(cluster.files.path().join("control.json"))
            .status();
        assert!(made.expect("the binary runs").success());
        link(&["authority", "--dir"], cluster.files.path());
        for at in 0..CONTROLS {
            let host = cluster.network.host(MEMBERS + at);
            let mut start = cluster.control_start(at, &host);
            // Their clocks show what that of the node in the middle does.
            start.is_ahead(ahead_ms[NODES / 2]);
            cluster.controls.push(Process::start(host, start));
        }
        for (at, ahead_ms) in ahead_ms.into_iter().enumerate() {
            let host = cluster.network.host(MEMBERS + CONTROLS + at);
            let mut start = cluster.node_start(at, &host, links);
            start.is_ahead(ahead_ms);
            cluster.nodes.push(Process::start(host, start));
        }
        cluster
    }

    /// The settings of all. Each begins at another member of etcd.
    fn config(&self, name: &str, number: usize) -> String {
        link(&["issue", name, "--dir"], self.files.path());
        let file = |name: &str| self.files.path().join(name);
        let mut endpoints: Vec<_> = self.etcd.iter().map(EtcdServer::endpoint).collect();
        endpoints.rotate_left(number);
        format!(
            "[store]\nkind = \"etcd\"\nendpoints = {endpoints:?}\n\
             [policy]\nallow_http = true\n\
             [[dial_guard.permit]]\nnetwork = \"10.0.0.0/8\"\n\
             ports = [\"1-65535\"]\norgs = [\"*\"]\n\
             [keys]\nring_file = {:?}\npublic_file = {:?}\n\
             [limits]\nnodes = {NODES}\n\
             [link]\ncert_file = {:?}\nkey_file = {:?}\nca_file = {:?}\n",
            file("nodes.json"),
            file("control.json"),
            file(&format!("{name}.pem")),
            file(&format!("{name}-key.pem")),
            file("ca.pem"),
        )
    }

    fn control_start(&self, at: usize, host: &Host) -> Start {
        let first = self.network.host(MEMBERS + CONTROLS).address;
        let config = format!(
            "{}listen = \"{}:8082\"\n[control]\ninsecure = true\n\
             [gateway]\npublic_url = \"http://{first}:8080\"\n",
            self.config(&host.address.to_string(), at),
            host.address,
        );
        let address = format!("{}:8081", host.address);
        Start {
            mode: "control",
            config,
            environment: vec![
                ("REQUESTROCKET_CONTROL__LISTEN".into(), address),
                ("REQUESTROCKET_ADMIN_TOKEN".into(), TOKEN.into()),
                (FAULTS.into(), "true".into()),
            ],
        }
    }

    fn node_start(&self, at: usize, host: &Host, between: Links) -> Start {
        let name = HOSTS[MEMBERS + CONTROLS + at];
        let controls = self.controls.iter();
        let links: Vec<_> = controls
            .map(|c| format!("{}:8082", c.host.address))
            .collect();
        let config = format!(
            "node_name = {name:?}\n{}endpoints = {links:?}\n[admin]\nlisten = \"{}:8083\"\n{}",
            self.config(name, at),
            host.address,
            match between {
                Links::None => String::new(),
                Links::Peers => format!("[peers]\nlisten = \"{}:8084\"\n", host.address),
            },
        );
        let address = format!("{}:8080", host.address);
        Start {
            mode: "node",
            config,
            environment: vec![
                ("REQUESTROCKET_GATEWAY__LISTEN".into(), address),
                // So that a request can be asked to tell its target when it was sent.
                (FAULTS.into(), "true".into()),
            ],
        }
    }

    /// A proxy with a limit, which all nodes serve.
    fn proxy(&self) -> Proxy {
        self.proxy_with(json!({"limits": {"per_minute": LIMIT_PER_MINUTE}}))
    }

    /// A proxy with these fields, which all nodes serve.
    pub fn proxy_with(&self, fields: Value) -> Proxy {
        self.proxy_to(&self.upstream.url(), fields)
    }

    /// A proxy for another target, which all nodes serve.
    pub fn proxy_to(&self, base_url: &str, fields: Value) -> Proxy {
        let target = json!({"allow_networks": ["10.0.0.0/8"]});
        let control = self.controls[0].gateway();
        let proxy = control.proxy_with(base_url, target, fields);
        for node in &self.nodes {
            wait_for("the proxy on every node", || {
                let answer = proxy.request("GET", "/").send(&node.gateway().url);
                (answer.status() == 200).then_some(())
            });
        }
        proxy
    }

    /// A steady load on the proxy, over all nodes.
    pub fn load(&self, proxy: &Proxy) -> Load {
        self.load_on(0..NODES, proxy, RATE)
    }

    /// A steady load on the proxy, over these nodes.
    pub fn load_on(&self, nodes: Range<usize>, proxy: &Proxy, per_second: u32) -> Load {
        let nodes = self.nodes[nodes].iter();
        let urls = nodes.map(|node| node.gateway().url.clone()).collect();
        Load::start(urls, proxy.request("GET", "/"), per_second)
    }

    /// Does something with a member of etcd, on its host.
    pub fn etcd<T: Send>(&mut self, at: usize, run: impl FnOnce(&mut EtcdServer) -> T + Send) -> T {
        let (host, server) = (self.network.host(at), &mut self.etcd[at]);
        host.inside(|| run(server))
    }

    /// Where the callers are, and the targets of a test.
    pub fn callers(&self) -> Host {
        self.network.host(CALLERS)
    }

    /// How often each key with this prefix was written since it was made.
    pub fn key_writes(&self, prefix: &str) -> BTreeMap<String, u64> {
        stores::writes(&self.etcd[0].endpoint(), prefix)
    }

    /// The hosts of the members of etcd.
    pub fn members(&self) -> Vec<Host> {
        (0..MEMBERS).map(|at| self.network.host(at)).collect()
    }

    /// The member that leads.
    pub fn leader(&mut self) -> usize {
        let leads = |server: &mut EtcdServer| {
            let metrics = Request::new("GET", "/metrics").send(&server.metrics());
            metrics.text().contains("\netcd_server_is_leader 1")
        };
        wait_for("a leader", || (0..MEMBERS).find(|at| self.etcd(*at, leads)))
    }

    /// Counts what the members of etcd are asked from here on.
    pub fn asked(&self) -> Asked {
        Asked::start(self.members())
    }

    /// Changes a proxy's name through a control plane until that succeeds.
    pub fn rename(&self, control: usize, proxy: &Proxy, name: &str) {
        let path = format!("/proxies/{}", proxy.id);
        wait_for(&format!("the change to {name}"), || {
            let answer = self.controls[control].call("PATCH", &path, &json!({"name": name}));
            if answer.status() != 200 {
                // Each try reads etcd, and what etcd is asked is counted.
                std::thread::sleep(Duration::from_millis(250));
                return None;
            }
            let written = answer.field(VERSION).map(str::to_owned);
            *self.written.lock().expect("no panic") = written;
            Some(())
        });
    }

    /// Waits until a control plane sees the last change: after a break its watch may lag.
    fn sees_the_change(&self, control: usize) {
        let written = self.written.lock().expect("no panic").clone();
        let Some(version) = written else { return };
        let read = Request::new("GET", "/api/v1/orgs/default/versions?limit=1")
            .field("authorization", &format!("Bearer {TOKEN}"))
            .field(VERSION, &version);
        let address = &self.controls[control].gateway().control;
        wait_for("the last change", || {
            (read.send(address).status() == 200).then_some(())
        });
    }

    /// Waits until every node serves the newest version of everything, by hash, as control sees it;
    /// gives how long that took. A node that was restarted without the store is listed twice until
    /// its lease ends.
    pub fn agrees(&self, control: usize) -> Duration {
        let begun = Instant::now();
        self.sees_the_change(control);
        wait_for("one configuration on all nodes", || {
            // Each look reads etcd twice, and what etcd is asked is counted.
            std::thread::sleep(Duration::from_millis(250));
            let listed = self.controls[control].gateway().operator("/nodes");
            if listed.status() != 200 {
                return None;
            }
            let items = listed.json()["items"].as_array().expect("a list").clone();
            let current = items.iter().filter(|node| node["current"] == true);
            let names: BTreeSet<_> = current.map(|node| node["name"].to_string()).collect();
            (names.len() == NODES).then_some(())
        });
        begun.elapsed()
    }

    /// The version that the organisation is at.
    pub fn version(&self, control: usize) -> u64 {
        self.sees_the_change(control);
        let versions = self.controls[control].read("/versions?limit=1");
        versions["items"][0]["n"].as_u64().expect("a number")
    }
}

impl Process {
    fn start(host: Host, start: Start) -> Self {
        let running = Some(begin(&host, None, &start));
        Self {
            host,
            start,
            running,
        }
    }

    /// The running process.
    pub fn gateway(&self) -> &Gateway {
        self.running.as_ref().expect("it runs")
    }

    /// Kills it as a power cut does; its folder is what [`Process::resume`] goes on with.
    pub fn kill(&mut self) -> Arc<TempDir> {
        self.running.take().expect("it runs").kill()
    }

    /// Asks it to end, as a service manager does.
    pub fn stop(&mut self) -> Arc<TempDir> {
        let (status, folder) = self.running.take().expect("it runs").stop();
        assert_eq!(status.code(), Some(0), "it ends in order");
        folder
    }

    /// Starts it again.
    pub fn resume(&mut self, folder: Arc<TempDir>) {
        self.running = Some(begin(&self.host, Some(folder), &self.start));
    }

    /// Creates a target through a control plane. The same name is never created twice.
    pub fn create(&self, name: &str) -> Message {
        let path = "/api/v1/orgs/default/targets";
        let body = json!({"name": name, "base_url": "https://api.example.com"});
        Request::new("POST", path)
            .field("authorization", &format!("Bearer {TOKEN}"))
            .field("idempotency-key", name)
            .json(&body.to_string())
            .send(&self.gateway().control)
    }

    /// The names of all targets, as a control plane sees them.
    pub fn targets(&self) -> Vec<String> {
        let listed = self.read("/targets?limit=500");
        let items = listed["items"].as_array().expect("a list");
        let name = |target: &Value| target["name"].as_str().unwrap_or_default().to_owned();
        items.iter().map(name).collect()
    }

    /// Reads through a control plane, again while etcd elects: members that find each other again
    /// may need a new leader.
    pub fn read(&self, path: &str) -> Value {
        let answer = wait_for(path, || {
            let answer = self.gateway().api("GET", path, None);
            (answer.status() != 503).then_some(answer)
        });
        assert_eq!(answer.status(), 200, "{path}: {}", answer.text());
        answer.json()
    }

    /// Calls the REST API of a control plane.
    pub fn call(&self, method: &str, path: &str, body: &Value) -> Message {
        self.gateway().api(method, path, Some(body))
    }

    /// What a readiness probe of a node is told.
    pub fn readiness(&self) -> String {
        let probe = format!("{}:8083", self.host.address);
        let answer = Request::new("GET", "/readyz").send(&probe);
        assert_eq!(answer.status(), 200, "{}", answer.text());
        answer.json()["status"].as_str().expect("a word").to_owned()
    }

    /// A metric without labels.
    pub fn metric(&self, name: &str) -> Option<f64> {
        metrics::at(&format!("{}:8083", self.host.address), name)
    }

    /// Waits until a metric without labels has this value.
    pub fn wait_metric(&self, name: &str, value: u64) {
        wait_for(&format!("{name} {value}"), || {
            (self.metric(name) == Some(value as f64)).then_some(())
        });
    }

    /// Waits until a readiness probe is told this.
    pub fn wait_readiness(&self, word: &str) {
        wait_for(&format!("`{word}` of a node"), || {
            (self.readiness() == word).then_some(())
        });
    }
}

fn begin(host: &Host, folder: Option<Arc<TempDir>>, start: &Start) -> Gateway {
    let folder = folder.unwrap_or_else(|| Arc::new(tempfile::tempdir().expect("a folder")));
    let mut gateway = host.inside(|| Gateway::inside(folder, start));
    gateway.token = TOKEN.into();
    gateway
}

/// Makes certificates.
fn link(arguments: &[&str], dir: &Path) {
    let made = binary().arg("link").args(arguments).arg(dir).status();
    assert!(made.expect("the binary runs").success());
}
