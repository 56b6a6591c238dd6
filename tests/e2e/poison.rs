//! What somebody writes straight into etcd and makes no sense: it is quarantined, the rest applies,
//! the old form keeps serving, and `nodes` shows it.

use std::collections::BTreeMap;

use proto::id::OrgId;
use proto::keys;
use proto::store::Op;
use proto::tree::{Delta, EVERYWHERE, Hash, Head, SYSTEM_ORG, VersionRecord};
use serde_json::{Value, json};

use crate::cluster::{Cluster, recover, wait_faults, wait_sound, wait_status};
use crate::harness::etcd::EtcdServer;
use crate::harness::gateway::{Gateway, Proxy};
use crate::harness::upstream::Upstream;
use crate::harness::wait_for;
use crate::raw_store::RawStore;
use crate::tokens::{Node, linked};

/// Direct access to a cluster's etcd, below everything that checks.
struct Raw {
    store: RawStore,
    org: OrgId,
}

impl Raw {
    fn new(cluster: &Cluster, org: &str) -> Self {
        let store = RawStore::new(&cluster.etcd[0]);
        let org = org.parse().expect("an id");
        Self { store, org }
    }

    fn head(&self) -> Head {
        Head::parse(&self.store.get(&keys::head(self.org))).expect("a head")
    }

    /// The content of all leaves of the newest version, by place.
    fn leaves(&self) -> BTreeMap<String, Vec<u8>> {
        let head = self.head();
        let unpacked = |hash: Hash| {
            let packed = self.store.get(&keys::leaf(self.org, &hash));
            proto::tree::unpack(hash, &packed).expect("a leaf")
        };
        let root = proto::tree::Root::parse(&unpacked(head.roots[EVERYWHERE])).expect("a root");
        root.leaves
            .into_iter()
            .map(|(place, hash)| (place, unpacked(hash)))
            .collect()
    }

    /// A version of the right form with these leaves under their true names; those in `left_out`
    /// are not written. Answers the names of the leaves.
    fn publish(&self, leaves: &BTreeMap<String, Vec<u8>>, left_out: &[&str]) -> Vec<Hash> {
        let packed = |content: &[u8]| zstd::bulk::compress(content, 3).expect("zstd");
        let named = leaves
            .iter()
            .map(|(place, content)| (place, Hash::of(content)));
        let root = json!({"leaves": named.collect::<BTreeMap<_, _>>()}).to_string();
        let root_hash = Hash::of(root.as_bytes());
        let mut parent = self.head();
        parent.roots.insert(EVERYWHERE.into(), root_hash);
        let before = self.head();
        // Named like every version after another one; the parent's own name does not matter here.
        let mut base = parent;
        base.hash = before.hash;
        let head = base.reopened(before.epoch, before.n + 1, "poison".into());
        let delta = Delta {
            from: None,
            to: head.hash,
            changed: None,
            deleted: Vec::new(),
        };
        let record = VersionRecord {
            head: head.clone(),
            at: jiff::Timestamp::now(),
            author: "poison".into(),
            source: None,
            changes: 0,
            changed: Vec::new(),
        };
        let json = |value: &Value| value.to_string();
        let mut ops = vec![
            Op::put(keys::leaf(self.org, &root_hash), packed(root.as_bytes())),
            Op::put(keys::delta(self.org), json(&json!(delta))),
            Op::put(keys::version(self.org, head.n), json(&json!(record))),
        ];
        for (place, content) in leaves {
            if !left_out.contains(&place.as_str()) {
                ops.push(Op::put(
                    keys::leaf(self.org, &Hash::of(content)),
                    packed(content),
                ));
            }
        }
        ops.push(Op::put(keys::head(self.org), head.to_json()));
        self.store.put(ops);
        leaves.values().map(|content| Hash::of(content)).collect()
    }
}

fn edited(content: &[u8], edit: impl Fn(&mut Value)) -> Vec<u8> {
    let text = std::str::from_utf8(content).expect("text");
    let line = |line: &str| {
        let mut object: Value = serde_json::from_str(line).expect("an object");
        edit(&mut object);
        object.to_string() + "\n"
    };
    text.lines().map(line).collect::<String>().into_bytes()
}

/// The nodes of [`linked`].
const NAMES: [&str; 3] = ["gw-1", "gw-2", "gw-3"];

#[test]
fn poison_is_quarantined_and_the_rest_applies() {
    let cluster = Cluster::of(EtcdServer::start_cluster(3));
    let control = Gateway::with(cluster.control_start());
    let nodes = linked(&cluster);
    let upstream = Upstream::json("{}");
    let (one, two) = (
        control.proxy(&upstream.url()),
        control.proxy(&upstream.url()),
    );
    let rule = json!({"effect": "deny", "methods": ["DELETE"], "path": {"pattern": "^/x"}});
    control.create(&format!("/proxies/{}/rules", one.id), rule);
    let each = || nodes.iter().map(|node| &node.gateway);
    let denied = |node: &Gateway| one.request("DELETE", "/x").send(&node.url).status();
    for node in each() {
        wait_status(node, &two, "GET", 200);
        wait_for("the rule", || (denied(node) == 400).then_some(()));
    }
    let org = control.control_call("GET", "/api/v1/orgs/default", Some(&control.token), None);
    let raw = Raw::new(&cluster, org.json()["id"].as_str().expect("an id"));
    let good = raw.leaves();

    let listed = |code: &str| NAMES.map(|name| wait_faults(&control, name, code, 1));
    let sound = || {
        for name in NAMES {
            wait_sound(&control, name);
        }
    };
    let serves = |status: u16| {
        for node in each() {
            let answer = one.request("GET", "/").send(&node.url);
            assert_eq!(answer.status(), 200, "{}", answer.text());
            assert_eq!(denied(node), 400, "the old form of the rule holds");
            wait_status(node, &two, "GET", status);
        }
    };
    let back = |good: &BTreeMap<String, Vec<u8>>| {
        raw.publish(good, &[]);
        for node in each() {
            wait_status(node, &two, "GET", 200);
        }
        sound();
    };
    let version = |edit: &dyn Fn(&mut Value)| -> BTreeMap<String, Vec<u8>> {
        let edited = good
            .iter()
            .map(|(place, content)| (place.clone(), edited(content, edit)));
        edited.collect()
    };
    let switch_two_off = |object: &mut Value| {
        if object["id"] == two.id.as_str() {
            object["body"]["proxy"]["active"] = json!(false);
        }
    };
    // A pattern that no longer compiles, and another object that changes in the same version.
    let broken = version(&|object: &mut Value| {
        switch_two_off(object);
        if object["id"]
            .as_str()
            .is_some_and(|id| id.starts_with("rul_"))
        {
            object["body"]["rule"]["spec"]["path"]["pattern"] = json!("(");
        }
    });
    raw.publish(&broken, &[]);
    for faults in listed("object-unusable") {
        assert_eq!(faults[0]["object"], one.id.as_str(), "{faults:?}");
    }
    serves(403);
    let unusable = |node: &Node| node.metric("requestrocket_config_faults");
    assert_eq!(nodes.iter().map(unusable).collect::<Vec<_>>(), [1, 1, 1]);
    back(&good);
    assert_eq!(nodes.iter().map(unusable).collect::<Vec<_>>(), [0, 0, 0]);

    // A line that is no object, and one that does not even tell its id.
    for garbage in ["\"id\":\"", "{\"id\":"] {
        let text = |content: &Vec<u8>| String::from_utf8(content.clone()).expect("text");
        let broken = version(&switch_two_off)
            .into_iter()
            .map(|(place, content)| {
                let line = |line: &str| match line.contains("\"DELETE\"") {
                    true => format!(
                        "{}\n",
                        line.replacen("\"id\":\"", garbage, 1).replace('}', "]")
                    ),
                    false => format!("{line}\n"),
                };
                let lines: String = text(&content).lines().map(line).collect();
                (place, lines.into_bytes())
            });
        raw.publish(&broken.collect(), &[]);
        listed("object-unreadable");
        serves(403);
        back(&good);
    }

    // A leaf that is not there, then one with other content than its name says.
    let missing = version(&|object: &mut Value| object["version"] = json!(77));
    let names = raw.publish(
        &missing,
        &good.keys().map(String::as_str).collect::<Vec<_>>(),
    );
    listed("leaf-missing");
    serves(200);
    let wrong = names.iter().map(|hash| {
        let packed = zstd::bulk::compress(b"{}\n", 3).expect("zstd");
        Op::put(keys::leaf(raw.org, hash), packed)
    });
    raw.store.put(wrong.collect());
    listed("leaf-unreadable");
    serves(200);
    // Control builds nothing on it, and says why.
    let write = json!({"name": "renamed"});
    let refused = control.api("PATCH", &format!("/proxies/{}", one.id), Some(&write));
    assert_eq!(refused.status(), 500, "{}", refused.text());
    raw.publish(&good, &[]);
    sound();
    serves(200);

    // A head that is none, and one that lies.
    for head in [b"nonsense".to_vec(), {
        let mut lie: Value = serde_json::from_slice(&raw.head().to_json()).expect("a head");
        lie["n"] = json!(4711);
        lie.to_string().into_bytes()
    }] {
        let before = raw.store.get(&keys::head(raw.org));
        raw.store.put(vec![Op::put(keys::head(raw.org), head)]);
        listed("version-unreadable");
        serves(200);
        raw.store.put(vec![Op::put(keys::head(raw.org), before)]);
        sound();
    }

    // Where nobody knows what was there, a node that served it does: of a whole version, and of
    // one object.
    let unknown = version(&|object: &mut Value| {
        if object["id"] == one.target.as_str() {
            object["body"]["target"]["of_another_release"] = json!(true);
        }
    });
    for (code, name) in [
        ("version-unreadable", "renamed"),
        ("object-unreadable", "again"),
    ] {
        match code {
            "version-unreadable" => raw
                .store
                .put(vec![Op::put(keys::head(raw.org), "nonsense")]),
            _ => drop(raw.publish(&unknown, &[])),
        }
        listed(code);
        let (good, said) = recover(&control, &["--from-node", "gw-1"]);
        assert!(good, "{code}: {said}");
        sound();
        serves(200);
        let renamed = wait_for("a write", || {
            let write = json!({"name": name});
            let answer = control.api("PATCH", &format!("/proxies/{}", one.id), Some(&write));
            (answer.status() == 200).then(|| answer.json())
        });
        assert_eq!(renamed["name"], name);
    }
}

/// What is wrong in `system` is no reason for a control plane not to start: it is where a person
/// says what counts.
#[test]
fn a_control_plane_starts_with_a_damaged_store_and_recovers_it() {
    let cluster = Cluster::new();
    let control = Gateway::with(cluster.control_start());
    let token = control.token.clone();
    let node = cluster.node("gw-1", "gw-1");
    let upstream = Upstream::json("{}");
    let proxy = control.proxy(&upstream.url());
    wait_status(&node, &proxy, "GET", 200);
    let raw = RawStore::new(&cluster.etcd[0]);
    let head = Head::parse(&raw.get(&keys::head(SYSTEM_ORG))).expect("a head");
    let stopped = |control: Gateway| {
        let (status, folder) = control.stop();
        assert_eq!(status.code(), Some(0));
        folder
    };
    let orgs = |control: &Gateway, method: &str, slug: &str| {
        let slug = json!({"slug": slug});
        let body = (method == "POST").then_some(&slug);
        let answer = control.control_call(method, "/api/v1/orgs", Some(&control.token), body);
        answer.status()
    };
    // A root is lost: the version was seen whole before, and is built on.
    let folder = stopped(control);
    let root = keys::leaf(SYSTEM_ORG, &head.roots[EVERYWHERE]);
    raw.put(vec![Op::Delete(root)]);
    let control = cluster.control_again(folder, &token);
    assert_eq!(orgs(&control, "GET", ""), 200);
    assert_eq!(orgs(&control, "POST", "made-on-it"), 201);
    let folder = stopped(control);

    // The head is none: what was seen before is shown, and nothing is built on it. Nodes have what
    // it was.
    raw.put(vec![Op::put(keys::head(SYSTEM_ORG), "nonsense")]);
    let control = cluster.control_again(folder, &token);
    let log = control.log();
    assert!(log.contains("store-damaged"), "{log}");
    assert_eq!(orgs(&control, "GET", ""), 200);
    assert_eq!(orgs(&control, "POST", "made-after"), 500);
    wait_for("what a node serves, written back", || {
        let (good, _) = recover(&control, &["--from-node", "gw-1"]);
        good.then_some(())
    });
    wait_for("a write", || {
        (orgs(&control, "POST", "made-after") == 201).then_some(())
    });
    assert_eq!(proxy.request("GET", "/").send(&node.url).status(), 200);
}

#[test]
fn what_is_revoked_while_its_proxy_is_quarantined_is_over_at_once() {
    let cluster = Cluster::new();
    let control = Gateway::with(cluster.control_start());
    let node = cluster.node("gw-1", "gw-1");
    let upstream = Upstream::json("{}");
    let proxies = [(); 2].map(|()| control.proxy(&upstream.url()));
    for proxy in &proxies {
        let rule = json!({"effect": "deny", "methods": ["DELETE"], "path": {"pattern": "^/x"}});
        control.create(&format!("/proxies/{}/rules", proxy.id), rule);
        wait_status(&node, proxy, "GET", 200);
    }
    let org = control.control_call("GET", "/api/v1/orgs/default", Some(&control.token), None);
    let raw = Raw::new(&cluster, org.json()["id"].as_str().expect("an id"));
    let break_rules = |object: &mut Value| {
        let is_rule = object["id"]
            .as_str()
            .is_some_and(|id| id.starts_with("rul_"));
        if is_rule {
            object["body"]["rule"]["spec"]["path"]["pattern"] = json!("(");
        }
    };
    let leaves = raw.leaves().into_iter();
    let broken = leaves.map(|(place, content)| (place, edited(&content, break_rules)));
    raw.publish(&broken.collect(), &[]);
    wait_faults(&control, "gw-1", "object-unusable", 2);
    let revoke = |credential: &str| {
        let head = raw.head();
        let retired = proto::retired::Retired {
            lowest: head.generation().next(),
            next: None,
        };
        let key = keys::retired(raw.org, credential.parse().expect("an id"));
        raw.store
            .put(vec![Op::put(key, json!(retired).to_string())]);
    };
    let [one, two] = proxies;
    let seen = |proxy: &Proxy| proxy.request("GET", "/").send(&node.url).status();
    assert_eq!((seen(&one), seen(&two)), (200, 200), "the old forms serve");
    // Its caller's key, and of the other one the secret that it would send.
    revoke(&one.proxy_credential);
    wait_status(&node, &one, "GET", 401);
    assert_eq!(seen(&two), 200);
    revoke(&two.target_credential);
    wait_status(&node, &two, "GET", 401);
}
