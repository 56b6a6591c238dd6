//! A cluster of real processes: etcd, a control plane, two nodes.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::address;
use crate::harness::etcd::EtcdServer;
use crate::harness::gateway::{Gateway, Proxy, Start, TARGET_SECRET, binary};
use crate::harness::http::Request;
use crate::harness::upstream::Upstream;
use crate::harness::wait_for;
use crate::harness::{metrics, signals};
use crate::versions::run;

/// What the processes of a cluster share.
pub struct Cluster {
    pub etcd: Vec<EtcdServer>,
    files: TempDir,
    /// Where control takes records.
    pub link: String,
}

impl Cluster {
    /// One etcd.
    pub fn new() -> Self {
        Self::of(vec![EtcdServer::start()])
    }

    /// With these members of an etcd.
    pub fn of(etcd: Vec<EtcdServer>) -> Self {
        let files = tempfile::tempdir().expect("a folder");
        let made = binary()
            .args(["keyring", "new", "--nodes"])
            .arg(files.path().join("nodes.json"))
            .arg("--control")
            .arg(files.path().join("control.json"))
            .status();
        assert!(made.expect("the binary runs").success());
        link(&["authority", "--dir"], files.path());
        let link = address::reserved().to_string();
        Self { etcd, files, link }
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    /// The settings of all, with a certificate for `name`.
    fn config(&self, name: &str) -> String {
        let (cert, key_file) = (
            self.file(&format!("{name}.pem")),
            self.file(&format!("{name}-key.pem")),
        );
        if !cert.exists() {
            link(&["issue", name, "--dir"], self.files.path());
        }
        format!(
            "[store]\nkind = \"etcd\"\nendpoints = {:?}\n\
             [policy]\nallow_http = true\n\
             [[dial_guard.permit]]\nnetwork = \"127.0.0.0/8\"\n\
             ports = [\"1-65535\"]\norgs = [\"*\"]\n\
             [link]\ncert_file = {cert:?}\nkey_file = {key_file:?}\nca_file = {:?}\n",
            self.etcd
                .iter()
                .map(EtcdServer::endpoint)
                .collect::<Vec<_>>(),
            self.file("ca.pem"),
        )
    }

    /// How a control plane of it is started.
    pub fn control_start(&self) -> Start {
        self.control_start_at(&self.link)
    }

    /// How another one is started, which takes records elsewhere.
    pub fn further_control_start(&self) -> Start {
        self.control_start_at(&address::reserved().to_string())
    }

    /// How a control plane is started that takes records there.
    pub fn control_start_at(&self, link: &str) -> Start {
        let config = format!(
            "{}listen = {link:?}\n[keys]\npublic_file = {:?}\n\
             [gateway]\npublic_url = \"http://gw.example\"\n",
            self.config("127.0.0.1"),
            self.file("control.json"),
        );
        Start {
            mode: "control",
            config,
            ..Start::default()
        }
    }

    /// A control plane that begins where an earlier one has made the operator's token; its folder
    /// may be another one.
    pub fn control_again(&self, folder: impl Into<Arc<TempDir>>, token: &str) -> Gateway {
        let mut control = Gateway::inside(folder, &self.control_start());
        control.token = token.to_owned();
        control
    }

    /// A node with a listener for its operator: how it is started again, and where that is.
    pub fn watched_node(&self, name: &str) -> (Gateway, Start, String) {
        let (start, admin) = self.watched_start(name);
        (Gateway::with(start.clone()), start, admin)
    }

    /// How a node with a listener for its operator is started, and where that is.
    pub fn watched_start(&self, name: &str) -> (Start, String) {
        let mut start = self.node_start(name, name);
        let admin = address::reserved().to_string();
        let setting = format!("[admin]\nlisten = {admin:?}\n");
        start.config.push_str(&setting);
        (start, format!("http://{admin}"))
    }

    pub fn node(&self, name: &str, certified: &str) -> Gateway {
        Gateway::with(self.node_start(name, certified))
    }

    /// How a node of it is started, with the certificate of `certified`.
    pub fn node_start(&self, name: &str, certified: &str) -> Start {
        let config = format!(
            "node_name = {name:?}\n{}endpoints = [{:?}]\n\
             [keys]\nring_file = {:?}\n[limits]\nnodes = 2\n",
            self.config(certified),
            self.link,
            self.file("nodes.json"),
        );
        Start {
            mode: "node",
            config,
            ..Start::default()
        }
    }
}

/// Makes certificates.
fn link(arguments: &[&str], dir: &Path) {
    let made = binary().arg("link").args(arguments).arg(dir).status();
    assert!(made.expect("the binary runs").success());
}

/// Waits until a node answers a request of a proxy so.
pub fn wait_status(node: &Gateway, proxy: &Proxy, method: &str, status: u16) {
    wait_for(&format!("{status} on {}", node.url), || {
        let answer = proxy.request(method, "/").send(&node.url);
        (answer.status() == status).then_some(())
    });
}

/// Waits until nodes have all that was made so far. Who had a proxy and not yet its meter would
/// send a call that counts nowhere; who serves what is made now has both.
pub fn wait_known<'n>(control: &Gateway, nodes: impl IntoIterator<Item = &'n Gateway>) {
    let later = Upstream::json("{}");
    let proxy = control.proxy(&later.url());
    for node in nodes {
        wait_status(node, &proxy, "GET", 200);
    }
}

/// What a node cannot serve, as a control plane lists it; `None` when the node is not listed.
fn faults(control: &Gateway, node: &str) -> Option<Vec<Value>> {
    let nodes = control.operator("/nodes").json();
    let node = nodes["items"]
        .as_array()?
        .iter()
        .find(|found| found["name"] == node);
    node?["faults"].as_array().cloned()
}

/// Waits until a node is listed with so many faults or more of a code; gives all that it has.
pub fn wait_faults(control: &Gateway, node: &str, code: &str, count: usize) -> Vec<Value> {
    wait_for(&format!("{code} of {node}"), || {
        let faults = faults(control, node)?;
        let found = faults.iter().filter(|fault| fault["code"] == code).count();
        (found >= count).then_some(faults)
    })
}

/// Waits until a node is listed without a fault.
pub fn wait_sound(control: &Gateway, node: &str) {
    wait_for(&format!("{node} without a fault"), || {
        faults(control, node)?.is_empty().then_some(())
    });
}

/// Runs `requestrocket recover`; gives whether it succeeded, and what it said.
pub fn recover(control: &Gateway, arguments: &[&str]) -> (bool, String) {
    run(control, &[&["recover"], arguments].concat())
}

/// They are no targets, whatever `dial_guard.permit` says: a node learns where the REST API is.
#[test]
fn a_node_dials_no_listener_of_a_control_plane() {
    let cluster = Cluster::new();
    let control = Gateway::with(cluster.control_start());
    let node = cluster.node("gw-1", "gw-1");
    let upstream = Upstream::json("{}");
    wait_status(&node, &control.proxy(&upstream.url()), "GET", 200);
    // A connection that was made before it is known stays, so each try has one of its own.
    let mut bits = 8..=24;
    wait_for("the guard knows the REST API", || {
        let networks = format!("127.0.0.0/{}", bits.next().expect("a look in time"));
        let target = json!({"allow_networks": [networks]});
        let rest = control.proxy_with(&control.control, target, json!({}));
        wait_known(&control, [&node]);
        let answer = rest.request("GET", "/api/v1/nodes").send(&node.url);
        (answer.outcome() == (502, "upstream-blocked")).then_some(())
    });
}

#[test]
fn two_nodes_serve_one_configuration_and_one_limit() {
    let cluster = Cluster::new();
    let control = Gateway::with(cluster.control_start());
    let nodes = [cluster.node("gw-1", "gw-1"), cluster.node("gw-2", "gw-2")];
    let upstream = Upstream::json("{}");
    let proxy = control.proxy(&upstream.url());
    for node in &nodes {
        wait_status(node, &proxy, "GET", 200);
        let answer = proxy.request("GET", "/").send(&node.url);
        let id = answer.field("requestrocket-request-id").expect("an id");
        let record = control.record(id);
        assert_eq!(record["proxy_id"], proxy.id.as_str());
        assert!(["gw-1", "gw-2"].contains(&record["node"].as_str().expect("a name")));
    }
    let injected = format!("Bearer {TARGET_SECRET}");
    assert_eq!(
        upstream.last().field("authorization"),
        Some(injected.as_str())
    );
    let rule = json!({"effect": "deny", "methods": ["DELETE"]});
    control.create(&format!("/proxies/{}/rules", proxy.id), rule);
    for node in &nodes {
        wait_status(node, &proxy, "DELETE", 400);
    }
    let limited = control.proxy_with(
        &upstream.url(),
        json!({}),
        json!({"limits": {"per_minute": 10}}),
    );
    let before = upstream.seen().len();
    for node in &nodes {
        // 401 until the node has the proxy; then the first answer spends a token.
        wait_for("the proxy", || {
            let status = limited.request("GET", "/").send(&node.url).status();
            (status != 401).then_some(())
        });
    }
    for at in 0..40 {
        limited.request("GET", "/").send(&nodes[at % 2].url);
    }
    let granted = upstream.seen().len() - before;
    assert!((5..=10).contains(&granted), "{granted} of 10");
    let names = || -> Vec<String> {
        let listed = control.control_call("GET", "/api/v1/nodes", Some(&control.token), None);
        let items = listed.json()["items"].as_array().expect("a list").clone();
        let name = |node: &serde_json::Value| node["name"].as_str().expect("a name").to_owned();
        items.iter().map(name).collect()
    };
    wait_for("both nodes on the list", || {
        (names() == ["gw-1", "gw-2"]).then_some(())
    });
    let shown = control.command(&["nodes"]);
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(
        shown.starts_with("gw-1") && shown.contains("at revision"),
        "{shown}"
    );
    let [first, second] = nodes;
    assert_eq!(first.stop().0.code(), Some(0));
    assert_eq!(names(), ["gw-2"], "it took its entry away");
    assert_eq!(second.stop().0.code(), Some(0));
    assert_eq!(control.stop().0.code(), Some(0));
}

/// Control opens no secret and dials no target: a node does, whichever takes the request first.
#[test]
fn a_test_request_of_control_is_sent_once_by_one_of_the_nodes() {
    let cluster = Cluster::new();
    let control = Gateway::with(cluster.control_start());
    let upstream = Upstream::json("{}");
    let proxy = control.proxy(&upstream.url());
    let path = format!("/proxies/{}/test", proxy.id);
    let nodes = [cluster.node("gw-1", "gw-1"), cluster.node("gw-2", "gw-2")];
    for count in 1..=5 {
        let answer = control.api("POST", &path, Some(&json!({})));
        assert_eq!(answer.status(), 200, "{}", answer.text());
        let outcome = answer.json();
        assert_eq!(outcome["code"], "proxy-access-granted", "{outcome}");
        assert!(["gw-1", "gw-2"].contains(&outcome["node"].as_str().expect("a name")));
        assert_eq!(upstream.seen().len(), count, "once");
        let record = control.record(outcome["request_id"].as_str().expect("an id"));
        assert_eq!(record["node"], outcome["node"]);
    }
    for node in nodes {
        assert_eq!(node.stop().0.code(), Some(0));
    }
    let answer = control.api("POST", &path, Some(&json!({})));
    assert_eq!(answer.status(), 504, "{}", answer.text());
    assert_eq!(answer.json()["code"], "no-node");
    assert_eq!(upstream.seen().len(), 5);
}

#[test]
fn nodes_go_on_without_control_and_without_etcd() {
    let mut cluster = Cluster::new();
    let control = Gateway::with(cluster.control_start());
    let node = cluster.node("gw-1", "gw-1");
    let upstream = Upstream::json("{}");
    let proxy = control.proxy(&upstream.url());
    wait_status(&node, &proxy, "GET", 200);

    let folder = control.kill();
    let alone = proxy.request("GET", "/alone").send(&node.url);
    assert_eq!(alone.status(), 200);
    let control = Gateway::inside(folder, &cluster.control_start());
    let id = alone.field("requestrocket-request-id").expect("an id");
    assert_eq!(
        control.record(id)["path"],
        "/alone",
        "it waited for control"
    );

    wait_for(
        "the node as current, although control has listed again",
        || {
            let listed = control.operator("/nodes").json();
            (listed["items"][0]["current"] == true).then_some(())
        },
    );
    let ready = |word: &str| {
        wait_for(&format!("`{word}` of control"), || {
            let answer = Request::new("GET", "/readyz").send(&control.control);
            (answer.status() == 200 && answer.json()["status"] == word).then_some(())
        });
    };
    ready("ok");
    cluster.etcd[0].kill();
    ready("degraded");
    assert_eq!(proxy.request("GET", "/").send(&node.url).status(), 200);
    let write = json!({"name": "renamed"});
    let path = format!("/proxies/{}", proxy.id);
    let refused = control.api("PATCH", &path, Some(&write));
    assert_eq!(refused.status(), 503, "{}", refused.text());
    assert_eq!(refused.json()["code"], "store-unavailable");
    cluster.etcd[0].restart();
    let renamed = wait_for("the store", || {
        let answer = control.api("PATCH", &path, Some(&write));
        (answer.status() == 200).then(|| answer.json())
    });
    assert_eq!(renamed["name"], "renamed");
    ready("ok");
    let metrics = control.operator("/metrics").text();
    assert!(
        metrics.contains("requestrocket_control_nodes_connected 1"),
        "{metrics}"
    );
    assert!(
        metrics.contains("requestrocket_store_reachable 1"),
        "{metrics}"
    );
    control.patch(&path, json!({"active": false}));
    wait_status(&node, &proxy, "GET", 403);
}

#[test]
fn records_wait_on_disk_for_a_control_plane_also_over_the_nodes_end() {
    let cluster = Cluster::new();
    let control = Gateway::with(cluster.control_start());
    let (node, start, admin) = cluster.watched_node("gw-1");
    let upstream = Upstream::json("{}");
    let proxy = control.proxy(&upstream.url());
    wait_status(&node, &proxy, "GET", 200);
    // What was called so far is not among those that wait.
    let first = proxy.request("GET", "/first").send(&node.url);
    control.record(first.field("requestrocket-request-id").expect("an id"));
    let folder = control.kill();
    let mut made = Vec::new();
    let mut call = |node: &Gateway, count: usize| {
        for _ in 0..count {
            let answer = proxy.request("GET", "/spooled").send(&node.url);
            assert_eq!(answer.status(), 200);
            made.push(
                answer
                    .field("requestrocket-request-id")
                    .expect("an id")
                    .to_owned(),
            );
        }
    };
    let spooled = |count: f64| {
        wait_for("records on disk", || {
            let found = metrics::at(&admin, "requestrocket_records_spooled");
            found.filter(|found| *found >= count)
        })
    };
    call(&node, 20);
    spooled(20.0);
    // Asked to end, with records that are in memory only.
    call(&node, 5);
    let (status, inside) = node.stop();
    assert_eq!(status.code(), Some(0));
    let node = Gateway::inside(inside, &start);
    call(&node, 20);
    spooled(45.0);
    let node = Gateway::inside(node.kill(), &start);
    let control = Gateway::inside(folder, &cluster.control_start());
    for id in &made {
        assert_eq!(control.record(id)["path"], "/spooled");
    }
    assert_eq!(proxy.request("GET", "/").send(&node.url).status(), 200);
    wait_for("an empty spool", || {
        let files = std::fs::read_dir(node.data_dir().join("spool")).expect("the folder");
        (files.count() == 0).then_some(())
    });
}

#[test]
fn a_node_starts_without_etcd_from_what_it_kept() {
    let mut cluster = Cluster::new();
    let control = Gateway::with(cluster.control_start());
    let node = cluster.node("gw-1", "gw-1");
    let upstream = Upstream::json("{}");
    let proxy = control.proxy(&upstream.url());
    let rule = json!({"effect": "deny", "methods": ["DELETE"]});
    control.create(&format!("/proxies/{}/rules", proxy.id), rule);
    wait_status(&node, &proxy, "DELETE", 400);
    let start = cluster.node_start("gw-1", "gw-1");
    let (status, folder) = node.stop();
    assert_eq!(status.code(), Some(0));
    cluster.etcd[0].kill();
    let node = Gateway::inside(folder, &start);
    let denied = proxy.request("DELETE", "/").send(&node.url);
    assert_eq!(denied.outcome(), (400, "proxy-access-denied"));
    let answer = proxy.request("GET", "/").send(&node.url);
    assert_eq!(answer.status(), 200, "{}", node.log());
    let injected = format!("Bearer {TARGET_SECRET}");
    assert_eq!(
        upstream.last().field("authorization"),
        Some(injected.as_str())
    );
    assert!(
        node.log()
            .contains("serving the configuration kept on disk")
    );
    let kept = std::fs::read(node.data_dir().join("kept.bin")).expect("a copy");
    let shown = String::from_utf8_lossy(&kept);
    assert!(!shown.contains(&proxy.id) && !shown.contains(TARGET_SECRET));
    cluster.etcd[0].restart();
    wait_for("the store", || {
        let path = format!("/proxies/{}", proxy.id);
        let answer = control.api("PATCH", &path, Some(&json!({"active": false})));
        (answer.status() == 200).then_some(())
    });
    wait_status(&node, &proxy, "GET", 403);
}

#[test]
fn a_node_that_starts_from_an_earlier_copy_refuses_a_key_that_was_rotated_since() {
    let mut cluster = Cluster::new();
    let control = Gateway::with(cluster.control_start());
    let node = cluster.node("gw-1", "gw-1");
    let upstream = Upstream::json("{}");
    let (proxy, other) = (
        control.proxy(&upstream.url()),
        control.proxy(&upstream.url()),
    );
    wait_status(&node, &other, "GET", 200);
    // What a node that ends keeps is all that it had.
    let start = cluster.node_start("gw-1", "gw-1");
    let (_, folder) = node.stop();
    let copy = folder.path().join("data/kept.bin");
    let earlier = std::fs::read(&copy).expect("a copy");
    let node = Gateway::inside(folder, &start);
    assert_eq!(proxy.request("GET", "/").send(&node.url).status(), 200);

    let rotate = format!("/credentials/{}/rotate", proxy.proxy_credential);
    let rotated = control.api("POST", &rotate, Some(&json!({})));
    assert_eq!(rotated.status(), 200, "{}", rotated.text());
    wait_status(&node, &proxy, "GET", 401);
    let (_, folder) = node.stop();
    assert_ne!(std::fs::read(&copy).expect("a copy"), earlier);
    std::fs::write(&copy, &earlier).expect("the earlier copy is put back");
    cluster.etcd[0].kill();
    let node = Gateway::inside(folder, &start);
    // The copy has the old key; the facts beside it say that it is over.
    wait_status(&node, &other, "GET", 200);
    assert_eq!(proxy.request("GET", "/").send(&node.url).status(), 401);
}

#[test]
fn no_request_fails_while_one_etcd_member_after_another_dies() {
    let mut cluster = Cluster::of(EtcdServer::start_cluster(3));
    let control = Gateway::with(cluster.control_start());
    let nodes = [cluster.node("gw-1", "gw-1"), cluster.node("gw-2", "gw-2")];
    let upstream = Upstream::json("{}");
    let limits = json!({"limits": {"per_minute": 1_000_000}});
    let proxy = control.proxy_with(&upstream.url(), json!({}), limits);
    for node in &nodes {
        wait_status(node, &proxy, "GET", 200);
    }
    let stop = std::sync::atomic::AtomicBool::new(false);
    let (proxy, stop) = (&proxy, &stop);
    std::thread::scope(|scope| {
        let load = |node: &'_ Gateway| {
            let (url, mut outcomes) = (node.url.clone(), std::collections::BTreeMap::new());
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let answer = proxy.request("GET", "/").send(&url);
                let outcome = match answer.status() {
                    200 => "granted".to_owned(),
                    _ => answer.text(),
                };
                *outcomes.entry(outcome).or_insert(0) += 1;
            }
            outcomes
        };
        let running = [&nodes[0], &nodes[1]].map(|node| scope.spawn(move || load(node)));
        for at in 0..3 {
            cluster.etcd[at].kill();
            // A quorum is left: the change gets through, and to the nodes.
            let name = format!("without-{at}");
            wait_for("a change without one member", || {
                let path = format!("/proxies/{}", proxy.id);
                let answer = control.api("PATCH", &path, Some(&json!({"name": name})));
                (answer.status() == 200).then_some(())
            });
            cluster.etcd[at].restart();
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        for load in running {
            let outcomes = load.join().expect("a thread");
            let kinds: Vec<_> = outcomes.keys().collect();
            assert_eq!(kinds, ["granted"], "{outcomes:?}");
        }
    });
}

/// A running script; told to stop, with all that it started, when dropped.
struct Script(std::process::Child);

impl Script {
    fn stop(mut self) -> Option<i32> {
        self.end()
    }

    fn end(&mut self) -> Option<i32> {
        if let Ok(Some(status)) = self.0.try_wait() {
            return status.code();
        }
        signals::send("TERM", self.0.id());
        self.0.wait().expect("a child").code()
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        self.end();
    }
}

#[test]
fn a_cluster_starts_with_one_command_and_goes_on_where_it_was() {
    let dir = tempfile::tempdir().expect("a folder");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/local-cluster");
    let start = || {
        let mut process = std::process::Command::new(&script)
            .args([
                "--nodes",
                "2",
                "--members",
                "1",
                "--output",
                "json",
                "--dir",
            ])
            .arg(dir.path())
            .env("REQUESTROCKET_BIN", env!("CARGO_BIN_EXE_requestrocket"))
            .stdout(std::process::Stdio::piped())
            .spawn()
            .expect("python3 runs the script");
        let stdout = process.stdout.take().expect("its output");
        let mut line = String::new();
        let mut reader = std::io::BufReader::new(stdout);
        std::io::BufRead::read_line(&mut reader, &mut line).expect("a line");
        let ready: serde_json::Value = serde_json::from_str(&line).expect("one line of JSON");
        (Script(process), ready)
    };
    let call = |ready: &serde_json::Value, method: &str, path: &str, body: Option<&str>| {
        let token = ready["admin_token"].as_str().expect("a token");
        let request = Request::new(method, &format!("/api/v1{path}"))
            .field("authorization", &format!("Bearer {token}"))
            // The balancer adds whom it is called by; control planes believe no more than that.
            .field("x-forwarded-for", "192.0.2.7");
        let request = match body {
            Some(body) => request.json(body),
            None => request,
        };
        request.send(ready["control"].as_str().expect("a URL"))
    };
    let (script, ready) = start();
    wait_for("both nodes on the list", || {
        let nodes = call(&ready, "GET", "/nodes", None).json();
        (nodes["items"].as_array().expect("a list").len() == 2).then_some(())
    });
    let upstream = Upstream::json("{}");
    let target = json!({
        "base_url": upstream.url(), "allow_http": true, "allow_networks": ["127.0.0.0/8"],
        "name": "kept",
    });
    let made = call(
        &ready,
        "POST",
        "/orgs/default/targets",
        Some(&target.to_string()),
    );
    assert_eq!(made.status(), 201, "{}", made.text());
    let audit = call(&ready, "GET", "/orgs/default/audit?limit=1", None).json();
    assert_eq!(audit["items"][0]["source"], "127.0.0.1");
    let open = json!({"kind": "proxy", "auth_type": "none"}).to_string();
    let open = call(&ready, "POST", "/orgs/default/credentials", Some(&open)).json();
    let proxy = json!({
        "target_id": made.json()["id"], "proxy_credential_ids": [open["id"]],
        "acknowledge_open": true,
    });
    let proxy = call(
        &ready,
        "POST",
        "/orgs/default/proxies",
        Some(&proxy.to_string()),
    )
    .json();
    // Its URL is the balancer's, behind which every node answers.
    let url = proxy["url"].as_str().expect("a URL").to_owned();
    let (at, path) = url.split_at(url.find("/api/").expect("a path"));
    assert_eq!(ready["gateway"], at);
    let nodes = ready["nodes"].as_array().expect("a list").iter();
    for node in nodes.chain([&ready["gateway"]]) {
        let node = node.as_str().expect("a URL");
        wait_for("the proxy", || {
            let answer = Request::new("GET", path).send(node);
            (answer.status() == 200).then_some(())
        });
    }
    assert_eq!(script.stop(), Some(0));
    let (script, again) = start();
    assert_eq!(
        (&again["control"], &again["gateway"]),
        (&ready["control"], &ready["gateway"])
    );
    // Either control plane, and the balancer before both.
    let controls = again["controls"].as_array().expect("a list");
    assert_eq!(controls.len(), 2);
    for control in controls.iter().chain([&again["control"]]) {
        let asked = json!({"control": control, "admin_token": again["admin_token"]});
        let targets = call(&asked, "GET", "/orgs/default/targets", None);
        assert!(targets.text().contains("kept"), "{}", targets.text());
    }
    assert_eq!(script.stop(), Some(0));
}

#[test]
fn a_node_leaves_records_only_under_the_name_of_its_certificate() {
    let cluster = Cluster::new();
    let control = Gateway::with(cluster.control_start());
    let node = cluster.node("gw-1", "gw-9");
    let upstream = Upstream::json("{}");
    let proxy = control.proxy(&upstream.url());
    wait_status(&node, &proxy, "GET", 200);
    wait_for("the refusal", || {
        node.log().contains("does not name `gw-1`").then_some(())
    });
    let found = control.get(&format!("/records?proxy={}", proxy.id));
    assert_eq!(found["items"], json!([]));
}

/// A process with these settings, on free ports, that keeps what it has in this folder.
pub fn process(mode: &str, config: &str, folder: &Path) -> Command {
    let file = folder.join("faulty.toml");
    std::fs::write(
        &file,
        format!("data_dir = {:?}\n{config}", folder.join("data")),
    )
    .expect("a file");
    let mut process = binary();
    process
        .args([mode, "--config"])
        .arg(&file)
        .env("REQUESTROCKET_GATEWAY__LISTEN", "127.0.0.1:0")
        .env("REQUESTROCKET_CONTROL__LISTEN", "127.0.0.1:0");
    process
}

/// What a process that cannot start says.
pub fn refused(mode: &str, config: &str, folder: &Path) -> (Option<i32>, String) {
    let output = process(mode, config, folder).output();
    let output = output.expect("the binary runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code(), said)
}

#[test]
fn what_a_cluster_lacks_is_said_at_the_start() {
    let folder = tempfile::tempdir().expect("a folder");
    let etcd = "[store]\nkind = \"etcd\"\nendpoints = [\"http://127.0.0.1:1\"]\n";
    let keys = |name: &str| folder.path().join(name);
    let made = binary()
        .args(["keyring", "new", "--nodes"])
        .arg(keys("nodes.json"))
        .arg("--control")
        .arg(keys("control.json"))
        .status();
    assert!(made.expect("the binary runs").success());
    let public = format!("[keys]\npublic_file = {:?}\n", keys("control.json"));
    let ring = format!("[keys]\nring_file = {:?}\n", keys("nodes.json"));
    let url = "[gateway]\npublic_url = \"http://gw.example\"\n";
    let swapped = format!("[keys]\nring_file = {:?}\n", keys("control.json"));
    let rows = [
        ("node", String::new(), "store.kind"),
        ("node", etcd.to_owned(), "keyring new"),
        ("control", etcd.to_owned(), "keyring new"),
        ("node", format!("{etcd}{swapped}"), "is not a key ring"),
        (
            "node",
            format!("region = \"eu\"\n{etcd}{ring}"),
            "of region local",
        ),
        ("node", format!("{etcd}{ring}"), "link.endpoints"),
        (
            "node",
            format!("{etcd}{ring}[link]\nendpoints = [\"127.0.0.1:1\"]\n"),
            "link.ca_file",
        ),
        ("control", format!("{etcd}{public}"), "gateway.public_url"),
        (
            "control",
            format!("[store]\nkind = \"etcd\"\n{public}{url}"),
            "no etcd endpoint",
        ),
    ];
    for (mode, config, expected) in rows {
        let (code, said) = refused(mode, &config, folder.path());
        assert_eq!(code, Some(2), "{mode} {config}: {said}");
        assert!(said.contains(expected), "{expected} in {said}");
    }
    let (code, said) = refused("control", &format!("{etcd}{public}{url}"), folder.path());
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("127.0.0.1:1"), "names the endpoint: {said}");
    let again = binary()
        .args(["keyring", "new", "--nodes"])
        .arg(keys("nodes.json"))
        .arg("--control")
        .arg(keys("other.json"))
        .status();
    let authority = binary()
        .args(["link", "authority", "--dir"])
        .arg(keys("link"))
        .status();
    assert!(authority.expect("the binary runs").success());
    for arguments in [
        &["link", "authority"][..],
        &["link", "issue", "not a name"],
        &["link", "issue", "gw-1", "--dir", "/none"],
    ] {
        let output = binary()
            .args(arguments)
            .args(match arguments.contains(&"--dir") {
                true => vec![],
                false => vec![
                    std::ffi::OsString::from("--dir"),
                    keys("link").into_os_string(),
                ],
            })
            .output()
            .expect("the binary runs");
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {output:?}");
    }
    assert_eq!(
        again.expect("the binary runs").code(),
        Some(2),
        "nothing is overwritten"
    );
}

/// Limits need the space that is left: configuration stops before etcd does.
#[test]
fn a_store_that_is_nearly_full_takes_no_configuration_and_traffic_goes_on() {
    let cluster = Cluster::new();
    let control = Gateway::with(cluster.control_start());
    let token = control.token.clone();
    let node = cluster.node("gw-1", "gw-1");
    let upstream = Upstream::json("{}");
    let proxy = control.proxy(&upstream.url());
    wait_for("the proxy", || {
        let answer = proxy.request("GET", "/").send(&node.url);
        (answer.status() == 200).then_some(())
    });
    let member = &cluster.etcd[0].endpoint();
    let series = format!("requestrocket_store_size_bytes{{member=\"{member}\"}}");
    let size = wait_for("a size", || {
        let size = control.metric(&series);
        (size > 4_096.0).then_some(size)
    });
    let (status, folder) = control.stop();
    assert_eq!(status.code(), Some(0));
    let mut start = cluster.control_start();
    start.environment.push((
        "REQUESTROCKET_STORE__QUOTA_BYTES".into(),
        format!("{}", (size / 0.72) as u64),
    ));
    let path = format!("/api/v1/orgs/default/proxies/{}", proxy.id);
    let rename = json!({"name": "renamed"});
    let write =
        |control: &Gateway| control.control_call("PATCH", &path, Some(&token), Some(&rename));
    let control = Gateway::inside(folder, &start);
    wait_for("a word of it", || {
        control.log().contains("has taken").then_some(())
    });
    let (_, folder) = control.stop();
    start.environment.pop();
    start.environment.push((
        "REQUESTROCKET_STORE__QUOTA_BYTES".into(),
        format!("{}", (size / 0.9) as u64),
    ));
    let control = Gateway::inside(folder, &start);
    let refused = wait_for("a refusal", || {
        let answer = write(&control);
        (answer.status() == 503).then_some(answer)
    });
    assert_eq!(refused.json()["code"], "store-full");
    assert_eq!(proxy.request("GET", "/").send(&node.url).status(), 200);
}
