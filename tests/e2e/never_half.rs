//! A version is in effect as a whole: while a proxy, its target and the secret that goes there
//! change together, no request is sent by a mixture of before and after, on any of three nodes.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::cluster::{Cluster, wait_status};
use crate::harness::etcd::EtcdServer;
use crate::harness::gateway::{Gateway, Proxy};
use crate::harness::http::Connection;
use crate::harness::upstream::{Upstream, json_answer};
use crate::harness::wait_for;

/// Versions that are made under load.
const CHANGES: u64 = 20;
/// Connections to each node.
const CONNECTIONS: usize = 2;

/// Stops who calls when it goes, also by a panic.
struct Stops<'a>(&'a AtomicBool);

impl Drop for Stops<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Answers by which change it was called: as the path has it, and as the secret has it.
fn told() -> Upstream {
    Upstream::raw(|connection, _| {
        while let Some(request) = connection.read() {
            let secret = request.field("authorization").unwrap_or_default();
            let number = secret
                .rsplit('-')
                .next()
                .and_then(|n| n.parse::<u64>().ok());
            let path = request.target().trim_matches('/').trim_start_matches('v');
            // What a proxy is made with has no number.
            let told = json!({"path": path, "secret": number.unwrap_or(0).to_string()});
            connection.send(json_answer("200 OK", &told.to_string()));
        }
    })
}

/// One version with another target, another secret and the proxy that names both; gives the target.
fn change(control: &Gateway, proxy: &Proxy, upstream: &Upstream, n: u64, before: &str) -> String {
    let target = json!({
        "name": format!("v{n}"), "base_url": format!("{}/v{n}", upstream.url()),
        "allow_http": true, "allow_networks": ["127.0.0.0/8"],
    });
    let secret = json!({
        "kind": "target", "auth_type": "bearer", "hosts": [upstream.url()],
        "secret": {"token": format!("secret-of-change-{n}")},
    });
    let operations = json!({"operations": [
        {"create": "targets", "as": "t", "object": target},
        {"create": "credentials", "as": "c", "object": secret},
        {"update": proxy.id, "patch": {"target_id": "@t", "target_credential_id": "@c"}},
        {"delete": before},
    ]});
    let made = control.api("POST", "/changes", Some(&operations));
    assert_eq!(made.status(), 200, "{}", made.text());
    let made = made.json();
    let changes = made["changes"].as_array().expect("a list").iter();
    let ids = changes.filter(|change| change["change"] == "created");
    let mut ids = ids.filter_map(|change| change["id"].as_str());
    ids.find(|id| id.starts_with("tgt_"))
        .expect("a target")
        .to_owned()
}

/// Calls a node until it is told to stop; notes by which change the last answer came.
fn call(node: &Gateway, proxy: &Proxy, stop: &AtomicBool, newest: &AtomicU64) {
    let mut connection = Connection::open(&node.url);
    let (bytes, mut before) = (proxy.request("GET", "/").bytes(&node.url), 0);
    while !stop.load(Ordering::Relaxed) {
        connection.send(&bytes);
        let answer = connection.read_to("GET").expect("an answer");
        assert_eq!(answer.status(), 200, "{}", answer.text());
        let told = answer.json();
        assert_eq!(told["path"], told["secret"], "half of a version");
        let number = |value: &Value| value.as_str()?.parse::<u64>().ok();
        let number = number(&told["path"]).expect("a number");
        assert!(number >= before, "{number} after {before}");
        before = number;
        newest.store(number, Ordering::Relaxed);
        // A pace that leaves the processors to the nodes.
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_proxy_its_target_and_its_secret_change_together_under_load() {
    let cluster = Cluster::of(EtcdServer::start_cluster(3));
    let control = Gateway::with(cluster.control_start());
    let nodes = ["gw-1", "gw-2", "gw-3"].map(|name| cluster.node(name, name));
    let upstream = told();
    let proxy = control.proxy(&format!("{}/v0", upstream.url()));
    for node in &nodes {
        wait_status(node, &proxy, "GET", 200);
    }
    let stop = AtomicBool::new(false);
    let newest = nodes
        .each_ref()
        .map(|_| [(); CONNECTIONS].map(|()| AtomicU64::new(0)));
    thread::scope(|scope| {
        let _stops = Stops(&stop);
        let (stop, proxy) = (&stop, &proxy);
        for (node, newest) in nodes.iter().zip(&newest) {
            for newest in newest {
                scope.spawn(move || call(node, proxy, stop, newest));
            }
        }
        let mut target = proxy.target.clone();
        for n in 1..=CHANGES {
            target = change(&control, proxy, &upstream, n, &target);
            // Every other one, so that some come while the one before is on its way.
            if n % 2 == 0 {
                let is_there = |at: &AtomicU64| at.load(Ordering::Relaxed) == n;
                wait_for(&format!("change {n} on all connections"), || {
                    newest.iter().flatten().all(is_there).then_some(())
                });
            }
        }
    });
}
