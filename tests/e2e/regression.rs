//! etcd goes back behind what was served: nodes notice and go on, nothing is written, and what a
//! person decides counts. On a real etcd whose data are put back, with the same cluster id.

use proto::store::Op;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::cluster::{Cluster, recover, wait_faults, wait_known, wait_sound, wait_status};
use crate::harness::etcd::{self, EtcdServer};
use crate::harness::gateway::{Gateway, Proxy};
use crate::harness::stores::{LIVE, dump, part};
use crate::harness::upstream::Upstream;
use crate::harness::wait_for;
use crate::raw_store::RawStore;
use crate::versions::run;

pub fn wait_regressed(control: &Gateway, node: &str) {
    wait_faults(control, node, "store-regressed", 1);
}

/// Denies DELETE, and sees it in effect.
pub fn deny_delete(control: &Gateway, node: &Gateway, proxy: &Proxy) {
    let rule = json!({"effect": "deny", "methods": ["DELETE"]});
    control.create(&format!("/proxies/{}/rules", proxy.id), rule);
    wait_status(node, proxy, "DELETE", 400);
}

/// A write is refused, with the word for it.
pub fn is_refused(control: &Gateway, proxy: &Proxy) {
    let path = format!("/proxies/{}", proxy.id);
    let write = json!({"name": "renamed"});
    wait_for("the refusal", || {
        let answer = control.api("PATCH", &path, Some(&write));
        (answer.json()["code"] == "store-regressed").then_some(())
    });
}

pub fn rename(control: &Gateway, proxy: &Proxy) {
    wait_written(control, proxy, "renamed");
}

pub fn wait_written(control: &Gateway, proxy: &Proxy, name: &str) {
    let path = format!("/proxies/{}", proxy.id);
    let write = json!({"name": name});
    wait_for("a write", || {
        let answer = control.api("PATCH", &path, Some(&write));
        (answer.status() == 200).then_some(())
    });
}

/// What was decided stands in the audit, with who did it.
fn is_audited(control: &Gateway, expected: &Value) {
    let audit = control.operator("/orgs/system/audit").json();
    let items = audit["items"].as_array().cloned().unwrap_or_default();
    let decided = items
        .iter()
        .filter(|item| item["kind"] == "recovery_decided");
    let mut decided = decided.filter(|item| item["details"] == *expected);
    let found = decided.next().unwrap_or_else(|| panic!("{audit}"));
    assert!(
        found["author"].is_string() && found["source"] == "127.0.0.1",
        "{found}"
    );
}

#[test]
fn what_a_restored_etcd_has_lost_is_written_back_from_a_node() {
    let mut cluster = Cluster::new();
    let control = Gateway::with(cluster.control_start());
    let token = control.token.clone();
    let node = cluster.node("gw-1", "gw-1");
    let upstream = Upstream::json("{}");
    let proxy = control.proxy(&upstream.url());
    wait_status(&node, &proxy, "GET", 200);
    let (good, said) = recover(&control, &[]);
    assert!(good && said.contains("everything"), "{said}");
    let (good, said) = recover(&control, &["--accept-store"]);
    assert!(!good && said.contains("has not gone back"), "{said}");

    let copy = cluster.etcd[0].backup();
    deny_delete(&control, &node, &proxy);
    cluster.etcd[0].restore(Some(&copy));
    wait_regressed(&control, "gw-1");
    // It goes on with what it had, and so does the control plane, which refuses to write.
    assert_eq!(proxy.request("GET", "/").send(&node.url).status(), 200);
    assert_eq!(proxy.request("DELETE", "/").send(&node.url).status(), 400);
    is_refused(&control, &proxy);
    assert!(node.log().contains("store-regressed"), "{}", node.log());
    assert_eq!(control.metric("requestrocket_store_regressed"), 1.0);
    let (good, shown) = run(&control, &["nodes"]);
    assert!(good && shown.contains("store-regressed"), "{shown}");
    // Also after it was started again.
    let control = cluster.control_again(control.kill(), &token);
    wait_regressed(&control, "gw-1");
    is_refused(&control, &proxy);
    let (good, said) = recover(&control, &[]);
    assert!(
        good && said.contains("default ") && said.contains("--from-node"),
        "{said}"
    );

    let (good, said) = recover(&control, &["--from-node", "gw-1"]);
    assert!(good && said.contains("epoch 2"), "{said}");
    wait_sound(&control, "gw-1");
    let decided = json!({"from_node": "gw-1", "accept_store": false, "reclaim_space": false});
    is_audited(&control, &decided);
    rename(&control, &proxy);
    assert_eq!(proxy.request("DELETE", "/").send(&node.url).status(), 400);
    // One that knows nothing of before gets all of it from etcd, the secret too.
    let fresh = cluster.node("gw-2", "gw-2");
    wait_status(&fresh, &proxy, "DELETE", 400);
    wait_status(&fresh, &proxy, "GET", 200);
}

/// The same with three members, one of which is gone again when a person decides.
#[test]
fn what_three_restored_members_have_lost_is_written_back_by_two_of_them() {
    let mut cluster = Cluster::of(EtcdServer::start_cluster(3));
    let control = Gateway::with(cluster.control_start());
    let nodes = [cluster.node("gw-1", "gw-1"), cluster.node("gw-2", "gw-2")];
    let upstream = Upstream::json("{}");
    let proxy = control.proxy(&upstream.url());
    for node in &nodes {
        wait_status(node, &proxy, "GET", 200);
    }
    let copies = etcd::backup_all(&mut cluster.etcd);
    wait_written(&control, &proxy, "after the backup");
    for node in &nodes {
        deny_delete(&control, node, &proxy);
    }
    etcd::restore_all(&mut cluster.etcd, &copies);
    let goes_on = || {
        for node in &nodes {
            assert_eq!(proxy.request("GET", "/").send(&node.url).status(), 200);
            assert_eq!(proxy.request("DELETE", "/").send(&node.url).status(), 400);
        }
    };
    for name in ["gw-1", "gw-2"] {
        wait_regressed(&control, name);
    }
    goes_on();
    is_refused(&control, &proxy);
    // Whichever members a process asks, they say the same.
    cluster.etcd[0].kill();
    for name in ["gw-1", "gw-2"] {
        wait_regressed(&control, name);
    }
    is_refused(&control, &proxy);
    let recovered = wait_for("the recovery", || {
        let (good, said) = recover(&control, &["--from-node", "gw-2"]);
        good.then_some(said)
    });
    assert!(recovered.contains("epoch 2"), "{recovered}");
    for name in ["gw-1", "gw-2"] {
        wait_sound(&control, name);
    }
    goes_on();
    cluster.etcd[0].restart();
    wait_written(&control, &proxy, "after the recovery");
    let held = |member: &EtcdServer| part(&dump(&member.endpoint()), &LIVE);
    let first = held(&cluster.etcd[0]);
    assert!(!first.is_empty());
    for member in &cluster.etcd[1..] {
        assert_eq!(held(member), first, "all members hold the same");
    }
    let fresh = cluster.node("gw-3", "gw-3");
    wait_status(&fresh, &proxy, "DELETE", 400);
    wait_status(&fresh, &proxy, "GET", 200);
}

/// Two proxies, and a backup of etcd: after it one gets a rule, the key of the other is rotated.
fn rotated_after_backup(
    cluster: &mut Cluster,
    control: &Gateway,
    node: &Gateway,
    upstream: &Upstream,
) -> (Proxy, Proxy, TempDir) {
    let (proxy, rotated) = (
        control.proxy(&upstream.url()),
        control.proxy(&upstream.url()),
    );
    wait_status(node, &proxy, "GET", 200);
    wait_status(node, &rotated, "GET", 200);
    let copy = cluster.etcd[0].backup();
    deny_delete(control, node, &proxy);
    let rotate = format!("/credentials/{}/rotate", rotated.proxy_credential);
    let answer = wait_for("a rotation", || {
        let answer = control.api("POST", &rotate, Some(&json!({})));
        (answer.status() == 200).then(|| answer.json())
    });
    assert!(answer["secret"]["key"].is_string(), "{answer}");
    wait_status(node, &rotated, "GET", 401);
    (proxy, rotated, copy)
}

#[test]
fn a_restored_etcd_counts_when_a_person_says_so_and_revives_no_key() {
    let mut cluster = Cluster::new();
    let control = Gateway::with(cluster.control_start());
    let node = cluster.node("gw-1", "gw-1");
    let upstream = Upstream::json("{}");
    let (proxy, rotated, copy) = rotated_after_backup(&mut cluster, &control, &node, &upstream);
    cluster.etcd[0].restore(Some(&copy));
    wait_regressed(&control, "gw-1");
    is_refused(&control, &proxy);

    let (good, said) = recover(&control, &["--accept-store"]);
    assert!(good, "{said}");
    let decided = json!({"accept_store": true, "reclaim_space": false});
    is_audited(&control, &decided);
    // The rule that came after the backup is gone; the revocation is not.
    wait_status(&node, &proxy, "DELETE", 200);
    wait_sound(&control, "gw-1");
    assert_eq!(rotated.request("GET", "/").send(&node.url).status(), 401);
    rename(&control, &proxy);
    let fresh = cluster.node("gw-2", "gw-2");
    wait_status(&fresh, &proxy, "DELETE", 200);
    assert_eq!(rotated.request("GET", "/").send(&fresh.url).status(), 401);
}

/// The control plane that lets the backup count knows nothing of what came after it.
#[test]
fn a_revocation_outlives_the_disks_of_all_control_planes_and_a_restored_etcd() {
    let mut cluster = Cluster::new();
    let control = Gateway::with(cluster.control_start());
    let token = control.token.clone();
    let node = cluster.node("gw-1", "gw-1");
    let upstream = Upstream::json("{}");
    let (proxy, rotated, copy) = rotated_after_backup(&mut cluster, &control, &node, &upstream);
    drop(control);
    cluster.etcd[0].restore(Some(&copy));
    let fresh = tempfile::tempdir().expect("a folder");
    let control = cluster.control_again(fresh, &token);
    wait_regressed(&control, "gw-1");
    let (good, said) = recover(&control, &["--accept-store"]);
    assert!(good, "{said}");
    wait_sound(&control, "gw-1");
    let fresh = cluster.node("gw-2", "gw-2");
    wait_status(&fresh, &proxy, "DELETE", 200);
    assert_eq!(rotated.request("GET", "/").send(&fresh.url).status(), 401);
}

/// Part two, 16: whoever forgot what was before publishes until the numbers overtake.
#[test]
fn a_restored_etcd_is_not_forgotten_when_its_numbers_overtake() {
    let mut cluster = Cluster::new();
    let control = Gateway::with(cluster.control_start());
    let token = control.token.clone();
    let start = cluster.node_start("gw-1", "gw-1");
    let node = Gateway::with(start.clone());
    let upstream = Upstream::json("{}");
    let proxy = control.proxy(&upstream.url());
    wait_status(&node, &proxy, "GET", 200);
    let copy = cluster.etcd[0].backup();
    deny_delete(&control, &node, &proxy);
    // Nobody is there who knows better: the node rests, and the control plane lost its disk.
    let (status, folder) = node.stop();
    assert_eq!(status.code(), Some(0));
    drop(control);
    cluster.etcd[0].restore(Some(&copy));
    let fresh = tempfile::tempdir().expect("a folder");
    let control = cluster.control_again(fresh, &token);
    for _ in 0..6 {
        rename(&control, &proxy);
        control.patch(&format!("/proxies/{}", proxy.id), json!({"name": "back"}));
    }
    let node = Gateway::inside(folder, &start);
    wait_regressed(&control, "gw-1");
    assert_eq!(proxy.request("DELETE", "/").send(&node.url).status(), 400);
    is_refused(&control, &proxy);
    let (good, said) = recover(&control, &["--from-node", "gw-9"]);
    assert!(!good && said.contains("gw-9"), "{said}");
    let (good, said) = recover(&control, &["--from-node", "gw-1"]);
    assert!(good, "{said}");
    wait_sound(&control, "gw-1");
    assert_eq!(proxy.request("DELETE", "/").send(&node.url).status(), 400);
    rename(&control, &proxy);
}

#[test]
fn a_wiped_etcd_is_filled_again_from_a_node() {
    let mut cluster = Cluster::new();
    let control = Gateway::with(cluster.control_start());
    let token = control.token.clone();
    let node = cluster.node("gw-1", "gw-1");
    let upstream = Upstream::json("{}");
    let proxy = control.proxy(&upstream.url());
    wait_status(&node, &proxy, "GET", 200);
    cluster.etcd[0].restore(None);
    wait_regressed(&control, "gw-1");
    assert_eq!(proxy.request("GET", "/").send(&node.url).status(), 200);
    let control = cluster.control_again(control.kill(), &token);
    wait_regressed(&control, "gw-1");
    let (good, said) = recover(&control, &["--accept-store"]);
    assert!(!good && said.contains("--from-node"), "{said}");
    let (good, said) = recover(&control, &["--from-node", "gw-1"]);
    assert!(good, "{said}");
    wait_sound(&control, "gw-1");
    rename(&control, &proxy);
    let fresh = cluster.node("gw-2", "gw-2");
    wait_status(&fresh, &proxy, "GET", 200);
}

/// A proxy with a limit of ten that the node knows of, and its target, which nobody has called.
fn limited(control: &Gateway, node: &Gateway, window: &str) -> (Proxy, Upstream) {
    let upstream = Upstream::json("{}");
    let proxy = control.proxy(&upstream.url());
    let meter = json!({"name": window, "limits": [{"limit": 10, "window": window}]});
    control.create(&format!("/proxies/{}/meters", proxy.id), meter);
    wait_known(control, [node]);
    (proxy, upstream)
}

#[test]
fn a_restored_etcd_gives_no_limit_a_second_time() {
    let mut cluster = Cluster::new();
    let control = Gateway::with(cluster.control_start());
    let node = cluster.node("gw-1", "gw-1");
    let limited = ["hour", "day"].map(|window| limited(&control, &node, window));
    let used = || {
        limited
            .each_ref()
            .map(|(_, upstream)| upstream.seen().len())
    };
    let (busy, _target) = self::limited(&control, &node, "second");
    for (proxy, _) in &limited {
        wait_status(&node, proxy, "GET", 200);
    }
    assert_eq!(used(), [1, 1]);
    let backup = cluster.etcd[0].backup();
    // More is written after it than will be before the node asks again.
    let store = RawStore::new(&cluster.etcd[0]);
    for _ in 0..300 {
        store.put(vec![Op::put("test/later", Vec::new())]);
    }
    // Not all of it: a node that knows a limit as used up refuses and asks etcd nothing.
    for _ in 0..5 {
        for (proxy, _) in &limited {
            wait_status(&node, proxy, "GET", 200);
        }
    }
    assert_eq!(used(), [6, 6]);
    for (restored, times, calls) in [(Some(&backup), 1, 2), (None, 2, 12)] {
        cluster.etcd[0].restore(restored);
        wait_for("what the node has found", || {
            // Its blocks end after 200 ms, so that etcd is asked again and again.
            busy.request("GET", "/").send(&node.url);
            let found = node
                .log()
                .matches("of limits since that is not known")
                .count();
            (found >= times).then_some(())
        });
        for (proxy, _) in &limited {
            for _ in 0..calls {
                let answer = proxy.request("GET", "/").send(&node.url);
                assert!(
                    [200, 429, 503].contains(&answer.status()),
                    "{}",
                    answer.text()
                );
            }
        }
    }
    for (proxy, _) in &limited {
        wait_status(&node, proxy, "GET", 429);
    }
    // Of one that is forgotten it would be 18; of the day what was left is given.
    let [hour, day] = used();
    assert!(hour <= 10 && (7..=10).contains(&day), "{hour} {day}");
}
