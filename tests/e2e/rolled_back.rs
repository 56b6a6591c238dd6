//! The way back past the rotation of a secret: the old one stays refused, live and after a start
//! from a copy of the configuration that was made before it, whether a version is rolled back to or
//! an export of that time is applied.

use std::fs;
use std::path::Path;

use serde_json::json;

use crate::cluster::{Cluster, wait_known, wait_status};
use crate::harness::etcd::EtcdServer;
use crate::harness::gateway::{Gateway, Proxy, TARGET_SECRET};
use crate::harness::http::Request;
use crate::harness::upstream::Upstream;
use crate::harness::wait_for;
use crate::versions::run;

/// The status of a call with the key that a proxy was made with.
fn status(node: &Gateway, proxy: &Proxy) -> u16 {
    proxy.request("GET", "/").send(&node.url).status()
}

/// The same with another key.
fn with_key(node: &Gateway, proxy: &Proxy, key: &str) -> u16 {
    let request = Request::new("GET", &format!("{}/", proxy.path));
    let request = request.field("authorization", &format!("Bearer {key}"));
    request.send(&node.url).status()
}

/// Starts the node without etcd on these copies; `other` was never rotated, `rotated` was.
fn start_on(
    (cluster, folder): (&Cluster, std::sync::Arc<tempfile::TempDir>),
    copies: impl FnOnce(&Path),
    (other, rotated): (&Proxy, &Proxy),
) -> std::sync::Arc<tempfile::TempDir> {
    copies(&folder.path().join("data"));
    let node = Gateway::inside(folder, &cluster.node_start("gw-1", "gw-1"));
    assert_eq!(status(&node, other), 200, "it serves from the copy");
    assert_eq!(status(&node, rotated), 401, "the old key stays refused");
    node.kill()
}

#[test]
fn a_rollback_past_a_rotation_brings_no_key_back_live_or_from_an_earlier_copy() {
    let mut cluster = Cluster::of(EtcdServer::start_cluster(3));
    let control = Gateway::with(cluster.control_start());
    let start = cluster.node_start("gw-1", "gw-1");
    let node = Gateway::with(start.clone());
    let further = ["gw-2", "gw-3"].map(|name| cluster.node(name, name));
    let upstream = Upstream::json("{}");
    let (rotated, other) = (
        control.proxy(&upstream.url()),
        control.proxy(&upstream.url()),
    );
    for node in further.iter().chain([&node]) {
        wait_status(node, &rotated, "GET", 200);
        wait_status(node, &other, "GET", 200);
    }
    let versions = control.get("/versions?limit=1");
    let before = versions["items"][0]["n"].as_u64().expect("a number");
    // A node that ends in order leaves a copy of what it served last.
    let (ended, folder) = node.stop();
    assert!(ended.success());
    let data = folder.path().join("data");
    let earlier = fs::read(data.join("kept.bin")).expect("a copy");
    let node = Gateway::inside(folder, &start);
    assert_eq!(status(&node, &rotated), 200);

    let path = format!("/credentials/{}/rotate", rotated.proxy_credential);
    let answer = control.api("POST", &path, Some(&json!({"overlap_ms": 0})));
    assert_eq!(answer.status(), 200, "{}", answer.text());
    let key = answer.json()["secret"]["key"]
        .as_str()
        .expect("a key")
        .to_owned();
    for node in further.iter().chain([&node]) {
        wait_status(node, &rotated, "GET", 401);
    }
    let back = control.api("POST", &format!("/versions/{before}/rollback"), None);
    assert_eq!(back.status(), 200, "{}", back.text());
    wait_known(&control, further.iter().chain([&node]));
    for node in further.iter().chain([&node]) {
        assert_eq!(status(node, &rotated), 401, "the rollback is in effect");
        assert_eq!(with_key(node, &rotated, &key), 200, "the new key goes on");
    }

    let (ended, folder) = node.stop();
    assert!(ended.success());
    cluster.etcd.iter_mut().for_each(EtcdServer::stop);
    let of = (&other, &rotated);
    let in_place = |data: &Path| fs::write(data.join("kept.bin"), &earlier).expect("a file");
    let folder = start_on((&cluster, folder), in_place, of);
    // And where the copy before is all that can be read.
    let damaged = |data: &Path| {
        fs::write(data.join("kept.bin"), b"damaged").expect("a file");
        fs::write(data.join("kept-previous.bin"), &earlier).expect("a file");
    };
    start_on((&cluster, folder), damaged, of);
}

/// The file says what there was, and nothing of the secrets: those that came later stay.
#[test]
fn an_export_of_before_a_rotation_brings_no_secret_back() {
    let cluster = Cluster::new();
    let control = Gateway::with(cluster.control_start());
    let start = cluster.node_start("gw-1", "gw-1");
    let node = Gateway::with(start.clone());
    let upstream = Upstream::json("{}");
    let proxy = control.proxy(&upstream.url());
    for (kind, id) in [
        ("targets", &proxy.target),
        ("proxies", &proxy.id),
        ("credentials", &proxy.target_credential),
        ("credentials", &proxy.proxy_credential),
    ] {
        control.patch(
            &format!("/{kind}/{id}"),
            json!({"name": format!("name of {id}")}),
        );
    }
    let rule = |method: &str| json!({"effect": "deny", "methods": [method]});
    let rules = format!("/proxies/{}/rules", proxy.id);
    // A file says all of a list that it has.
    control.create(&rules, rule("PUT"));
    wait_status(&node, &proxy, "PUT", 400);
    let (good, exported) = run(&control, &["export"]);
    assert!(good, "{exported}");
    for secret in [TARGET_SECRET, &proxy.key] {
        assert!(!exported.contains(secret), "{exported}");
    }
    let file = cluster.file("before.yaml");
    fs::write(&file, exported).expect("a file");

    let rotate = |id: &str, body: serde_json::Value| {
        let answer = control.api("POST", &format!("/credentials/{id}/rotate"), Some(&body));
        assert_eq!(answer.status(), 200, "{}", answer.text());
        answer.json()
    };
    let rotated = rotate(&proxy.proxy_credential, json!({"overlap_ms": 0}));
    let key = rotated["secret"]["key"].as_str().expect("a key").to_owned();
    let secret = json!({"secret": {"token": "sk_after_the_export"}});
    rotate(&proxy.target_credential, secret);
    control.create(&rules, rule("DELETE"));
    let denied = |node: &Gateway| {
        let request = Request::new("DELETE", &format!("{}/", proxy.path));
        let request = request.field("authorization", &format!("Bearer {key}"));
        request.send(&node.url).status() == 400
    };
    wait_for("the rule", || denied(&node).then_some(()));
    let holds = |node: &Gateway| {
        assert_eq!(status(node, &proxy), 401, "the old key");
        assert_eq!(with_key(node, &proxy, &key), 200, "the new key");
        let sent = upstream.last();
        assert_eq!(
            sent.field("authorization"),
            Some("Bearer sk_after_the_export")
        );
    };
    holds(&node);

    let file = file.to_str().expect("a path");
    let (good, said) = run(&control, &["apply", file, "--prune"]);
    assert!(
        good && said.contains("- rul_") && said.contains("is published"),
        "{said}"
    );
    assert!(!said.contains("shown only now"), "no key is made: {said}");
    wait_for("the end of the rule", || (!denied(&node)).then_some(()));
    holds(&node);
    // Again, for one that knows nothing of before, and for one that begins with what it kept.
    let (good, said) = run(&control, &["apply", file, "--prune"]);
    assert!(good && said.contains("nothing was to be changed"), "{said}");
    let fresh = cluster.node("gw-2", "gw-2");
    wait_for("the proxy", || {
        (with_key(&fresh, &proxy, &key) == 200).then_some(())
    });
    holds(&fresh);
    let (ended, folder) = node.stop();
    assert!(ended.success());
    holds(&Gateway::inside(folder, &start));
}
