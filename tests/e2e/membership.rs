//! The entry of a node: what it says, when it goes, and what is told of a node that works without
//! etcd.

use std::sync::{Arc, Condvar, Mutex, PoisonError};

use serde_json::{Value, json};

use crate::cluster::{Cluster, wait_status};
use crate::harness::address;
use crate::harness::etcd::EtcdServer;
use crate::harness::gateway::{Gateway, Start};
use crate::harness::http::Connection;
use crate::harness::metrics;
use crate::harness::upstream::{After, Upstream, json_answer};
use crate::harness::wait_for;

/// An upstream that answers `/slow` when it is let.
struct Slow {
    upstream: Upstream,
    gate: Arc<(Mutex<bool>, Condvar)>,
}

impl Slow {
    fn start() -> Self {
        let gate = Arc::<(Mutex<bool>, Condvar)>::default();
        let held = gate.clone();
        let upstream = Upstream::start(move |request, connection| {
            if request.target().contains("/slow") {
                let open = held.0.lock().unwrap_or_else(PoisonError::into_inner);
                drop(held.1.wait_while(open, |open| !*open));
            }
            connection.send(json_answer("200 OK", "{}"));
            After::Keep
        });
        Self { upstream, gate }
    }

    fn let_go(&self) {
        *self.gate.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.gate.1.notify_all();
    }
}

fn entries(control: &Gateway) -> Vec<Value> {
    let listed = control.operator("/nodes").json();
    listed["items"].as_array().expect("a list").clone()
}

fn entry(control: &Gateway, name: &str) -> Option<Value> {
    let entries = entries(control).into_iter();
    entries.into_iter().find(|entry| entry["name"] == name)
}

#[test]
fn a_node_says_who_it_is_and_leaves_before_it_drains() {
    let cluster = Cluster::new();
    let control = Gateway::with(cluster.control_start());
    let node = cluster.node("gw-1", "gw-1");
    let slow = Slow::start();
    let proxy = control.proxy(&slow.upstream.url());
    wait_status(&node, &proxy, "GET", 200);
    let mut caller = Connection::open(&node.url);
    caller.send(proxy.request("GET", "/slow").bytes(&node.url));
    let shown = wait_for("the request in the node's entry", || {
        entry(&control, "gw-1").filter(|shown| shown["in_flight"] == 1)
    });
    assert_eq!(shown["region"], "local", "{shown}");
    assert_eq!(
        shown["address"],
        node.url.trim_start_matches("http://"),
        "{shown}"
    );
    assert_eq!(shown["program"], env!("CARGO_PKG_VERSION"), "{shown}");
    assert!(shown["started_at"].is_string(), "{shown}");
    assert!(shown["revision"].as_i64() > Some(0), "{shown}");

    node.signal("TERM");
    wait_for("a list without it", || {
        entries(&control).is_empty().then_some(())
    });
    // It is still there for the one that it serves, and for nobody that it does not know yet.
    slow.let_go();
    let answer = caller.read().expect("an answer");
    assert_eq!(answer.status(), 200, "{}", answer.text());
    assert_eq!(node.ended().0.code(), Some(0));
}

/// Nobody takes the entry of a node that was killed away: its lease ends.
#[test]
fn the_entry_of_a_killed_node_goes_with_its_lease() {
    let cluster = Cluster::new();
    let control = Gateway::with(cluster.control_start());
    let nodes = [cluster.node("gw-1", "gw-1"), cluster.node("gw-2", "gw-2")];
    let names = || -> Vec<String> {
        let names = entries(&control).into_iter();
        let name = |entry: Value| entry["name"].as_str().expect("a name").to_owned();
        names.map(name).collect()
    };
    wait_for("both", || (names() == ["gw-1", "gw-2"]).then_some(()));
    let [first, second] = nodes;
    let _folder = first.kill();
    assert_eq!(names(), ["gw-1", "gw-2"], "its lease has not ended");
    wait_for("one", || (names() == ["gw-2"]).then_some(()));
    assert_eq!(second.stop().0.code(), Some(0));
}

/// A copy that nobody has proven for longer than `store.kept_max_s` might name keys that are over.
#[test]
fn a_node_without_etcd_shows_it_and_does_not_start_from_a_copy_that_is_too_old() {
    let mut cluster = Cluster::new();
    let control = Gateway::with(cluster.control_start());
    let (node, start, admin) = cluster.watched_node("gw-1");
    let upstream = Upstream::json("{}");
    let proxy = control.proxy(&upstream.url());
    wait_status(&node, &proxy, "GET", 200);
    let reachable = "requestrocket_store_reachable";
    assert_eq!(metrics::at(&admin, reachable), Some(1.0));
    cluster.etcd[0].kill();
    wait_for("a metric that says so", || {
        (metrics::at(&admin, reachable) == Some(0.0)).then_some(())
    });
    let age = "requestrocket_facts_age_seconds";
    wait_for(
        "facts that are older than the copy will be allowed to be",
        || metrics::at(&admin, age).filter(|age| *age > 3.0),
    );
    assert_eq!(proxy.request("GET", "/").send(&node.url).status(), 200);
    let (status, folder) = node.stop();
    assert_eq!(status.code(), Some(0));

    // By now the copy is older than this.
    let mut strict = start.clone();
    strict.config = strict
        .config
        .replace("[store]\n", "[store]\nkept_max_s = 1\n");
    let refused = std::panic::catch_unwind(|| Gateway::inside(folder.clone(), &strict));
    let said = match refused {
        Ok(_) => panic!("it serves from a copy that is too old"),
        Err(said) => said.downcast_ref::<String>().cloned().unwrap_or_default(),
    };
    assert!(said.contains("kept on disk is not used"), "{said}");
    assert!(said.contains("store.kept_max_s"), "{said}");
    // The same copy, where it may be so old.
    let node = Gateway::inside(folder, &start);
    assert_eq!(proxy.request("GET", "/").send(&node.url).status(), 200);
}

#[test]
fn processes_start_with_one_healthy_member_of_etcd_that_they_can_reach() {
    let mut cluster = Cluster::of(EtcdServer::start_cluster(3));
    let control = Gateway::with(cluster.control_start());
    let upstream = Upstream::json("{}");
    let proxy = control.proxy(&upstream.url());
    // Endpoints of which two refuse: the members themselves go on, and have their quorum.
    let real: Vec<String> = cluster.etcd.iter().map(EtcdServer::endpoint).collect();
    let dead = |start: &mut Start| {
        for endpoint in &real[..2] {
            let nobody = format!("http://{}", address::reserved());
            start.config = start.config.replace(endpoint, &nobody);
        }
    };
    let mut start = cluster.node_start("gw-1", "gw-1");
    dead(&mut start);
    let node = Gateway::with(start);
    wait_status(&node, &proxy, "GET", 200);
    let mut start = cluster.further_control_start();
    dead(&mut start);
    let second = Gateway::with(start);
    let path = format!("/api/v1/orgs/default/proxies/{}", proxy.id);
    let change = json!({"active": false});
    let changed = second.control_call("PATCH", &path, Some(&control.token), Some(&change));
    assert_eq!(changed.status(), 200, "{}", changed.text());
    wait_status(&node, &proxy, "GET", 403);
    // One member is really gone: the quorum of the two others is behind one endpoint of three.
    cluster.etcd[0].kill();
    let change = json!({"active": true});
    wait_for("a change without that member", || {
        let changed = second.control_call("PATCH", &path, Some(&control.token), Some(&change));
        (changed.status() == 200).then_some(())
    });
    wait_status(&node, &proxy, "GET", 200);
}

/// One machine for everything but the store.
#[test]
fn a_process_alone_keeps_its_configuration_in_etcd_where_it_is_told_to() {
    let mut etcd = EtcdServer::start();
    let start = Start {
        mode: "standalone",
        config: format!(
            "[store]\nkind = \"etcd\"\nendpoints = [{:?}]\n[policy]\nallow_http = true\n\
             [[dial_guard.permit]]\nnetwork = \"127.0.0.0/8\"\nports = [\"1-65535\"]\n\
             orgs = [\"*\"]\n",
            etcd.endpoint()
        ),
        ..Start::default()
    };
    let alone = Gateway::with(start.clone());
    let upstream = Upstream::json("{}");
    let proxy = alone.proxy(&upstream.url());
    wait_status(&alone, &proxy, "GET", 200);
    let (status, folder) = alone.stop();
    assert_eq!(status.code(), Some(0));
    let alone = Gateway::inside(folder, &start);
    assert_eq!(proxy.request("GET", "/").send(&alone.url).status(), 200);
    // It serves without it, also after another start, and changes nothing.
    etcd.kill();
    assert_eq!(proxy.request("GET", "/").send(&alone.url).status(), 200);
    let (status, folder) = alone.stop();
    assert_eq!(status.code(), Some(0));
    let alone = Gateway::inside(folder, &start);
    assert_eq!(proxy.request("GET", "/").send(&alone.url).status(), 200);
    let path = format!("/proxies/{}", proxy.id);
    let refused = alone.api("PATCH", &path, Some(&json!({"name": "lost"})));
    assert_eq!(refused.status(), 503, "{}", refused.text());
    assert_eq!(refused.json()["code"], "store-unavailable");
    etcd.restart();
    wait_for("a change", || {
        let changed = alone.api("PATCH", &path, Some(&json!({"name": "kept"})));
        (changed.status() == 200).then_some(())
    });
}

#[test]
fn commands_say_why_where_no_control_plane_is_there() {
    let control = Gateway::start();
    let gone = control.control.clone();
    let token = control.token.clone();
    let _folder = control.kill();
    for arguments in [&["list", "targets"][..], &["nodes"], &["versions"]] {
        let output = crate::harness::gateway::binary()
            .args(arguments)
            .args(["--control", &gone])
            .env("REQUESTROCKET_TOKEN", &token)
            .output()
            .expect("the binary runs");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        let expected = format!("cannot reach the control plane at {gone}");
        assert!(said.contains(&expected), "{said}");
    }
}
