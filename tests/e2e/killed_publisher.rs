//! A control plane that is killed at each write of a publish in turn, before etcd has it and after:
//! the version is whole or absent, the next publish succeeds, nodes serve what is in force, and
//! what is left over is collected without anything that a version reaches.

use std::collections::BTreeSet;
use std::sync::Arc;

use proto::id::OrgId;
use proto::keys;
use proto::store::load;
use proto::tree::{Head, OrgConfig, Root, VersionRecord};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::cluster::Cluster;
use crate::harness::etcd::EtcdServer;
use crate::harness::etcd_relay::{EtcdRelay, Moment};
use crate::harness::gateway::{Gateway, Proxy, Start};
use crate::harness::http::{Connection, Message, Request};
use crate::harness::signals;
use crate::harness::upstream::Upstream;
use crate::harness::wait_for;
use crate::raw_store::RawStore;

/// Credentials whose secrets a large publish replaces: their sealed values, what deletes the old
/// ones and the facts that end these take several transactions each.
pub const LARGE: usize = 130;
/// The same of one that fits one transaction.
pub const SMALL: usize = 3;
/// Objects that a publish creates or changes beside them: a target, one more credential, and a
/// proxy with its credential.
const OTHERS: usize = 4;

struct Scene {
    raw: RawStore,
    org: OrgId,
    /// A control plane that lives.
    witness: Gateway,
    nodes: [Gateway; 3],
    upstream: Upstream,
    proxy: Proxy,
    /// Ids of all whose secrets may change, but for the proxy's own.
    credentials: Vec<String>,
    /// How many of them do.
    replaced: usize,
    /// The number of the last publish that was begun.
    publish: u64,
    cluster: Cluster,
}

impl Scene {
    fn new() -> Self {
        let cluster = Cluster::of(EtcdServer::start_cluster(3));
        let witness = Gateway::with(swept(cluster.control_start(), 600));
        let nodes = ["gw-1", "gw-2", "gw-3"].map(|name| cluster.node(name, name));
        let upstream = Upstream::json("{}");
        let proxy = witness.proxy(&upstream.url());
        let credentials = made(&witness);
        let path = "/api/v1/orgs/default";
        let org = witness.control_call("GET", path, Some(&witness.token), None);
        Self {
            raw: RawStore::new(&cluster.etcd[0]),
            org: org.json()["id"]
                .as_str()
                .expect("an id")
                .parse()
                .expect("an id"),
            witness,
            nodes,
            upstream,
            proxy,
            credentials,
            replaced: LARGE,
            publish: 0,
            cluster,
        }
    }

    /// A control plane that reaches etcd by a relay.
    fn victim(&self, relay: &EtcdRelay) -> Start {
        let mut start = swept(self.cluster.further_control_start(), 600);
        let members: Vec<_> = self.cluster.etcd.iter().map(EtcdServer::endpoint).collect();
        let (members, relay) = (format!("{members:?}"), format!("{:?}", [relay.endpoint()]));
        start.config = start.config.replace(&members, &relay);
        start
    }

    /// Sends a publish; `None` where the control plane died of it.
    fn ask(&self, control: &Gateway) -> Option<Message> {
        let publish = self.publish;
        let replaced = &self.credentials[..self.replaced];
        let operations = operations(&self.proxy, replaced, publish);
        let request = Request::new("POST", "/api/v1/orgs/default/changes")
            .field("authorization", &format!("Bearer {}", self.witness.token))
            .field("idempotency-key", &mark(publish))
            .json(&json!({"operations": operations}).to_string());
        let mut connection = Connection::open(&control.control);
        connection.send(request.bytes(&control.control));
        connection.read_to("POST").filter(|answer| answer.complete)
    }

    /// The newest version, read from etcd alone, each leaf checked against its hash; and all that
    /// etcd keeps are as whole.
    fn newest(&self) -> OrgConfig {
        let (store, org) = (self.raw.store(), self.org);
        let kept = self.kept();
        let read = async {
            for head in kept {
                let n = head.n;
                let read = load::version(store, org, head, None).await;
                let loaded = read.unwrap_or_else(|error| panic!("version {n}: {error}"));
                assert!(loaded.faults.is_empty(), "{n}: {:?}", loaded.faults);
            }
            let found = load::head(store, org).await.expect("a head");
            let read = load::version(store, org, found.expect("a head").0, None).await;
            read.expect("a version").config
        };
        let config = self.raw.wait(read);
        let sealed = self.keys(&keys::secrets(org));
        for named in self.named(&config) {
            let is_there = sealed.iter().any(|key| key.starts_with(&named));
            assert!(is_there, "version {}: no {named}", config.head.n);
        }
        config
    }

    /// The heads of all versions that etcd keeps.
    fn kept(&self) -> Vec<Head> {
        let listed = self.raw.list(&keys::versions(self.org));
        let records = listed.iter().map(|(_, value)| {
            let record: VersionRecord = serde_json::from_slice(value).expect("a record");
            record.head
        });
        records.collect()
    }

    fn keys(&self, prefix: &str) -> BTreeSet<String> {
        let listed = self.raw.list(prefix).into_iter();
        listed.map(|(key, _)| key).collect()
    }

    /// What the keys of the sealed values begin with that a version names.
    fn named(&self, config: &OrgConfig) -> BTreeSet<String> {
        let credentials = config.objects.credentials();
        let named = credentials.filter_map(|(id, stored)| {
            let sealed = keys::secret(self.org, id, stored.seal_id()?, "");
            Some(sealed)
        });
        named.collect()
    }

    /// Leaves, roots and sealed values that no version reaches.
    fn left_over(&self) -> BTreeSet<String> {
        let mut reached = BTreeSet::new();
        for root in self.kept().iter().flat_map(|head| head.roots.values()) {
            let key = keys::leaf(self.org, root);
            let content = proto::tree::unpack(*root, &self.raw.get(&key)).expect("a root");
            let leaves = Root::parse(&content).expect("a root").leaves;
            reached.extend(leaves.values().map(|leaf| keys::leaf(self.org, leaf)));
            reached.insert(key);
        }
        let named = self.named(&self.newest());
        let mut left = self.keys(&keys::leaves(self.org));
        left.retain(|key| !reached.contains(key));
        let mut sealed = self.keys(&keys::secrets(self.org));
        sealed.retain(|key| !named.iter().any(|named| key.starts_with(named)));
        left.extend(sealed);
        left
    }

    /// Objects that a publish creates or changes.
    fn marked(&self) -> usize {
        self.replaced + OTHERS
    }

    /// Judges what a control plane that died has left, of a publish onto this version.
    fn judge(&mut self, before: &OrgConfig, step: &str) {
        let publish = self.publish;
        let found = self.newest();
        let stands = found.head.hash != before.head.hash;
        let expected = if stands { self.marked() } else { 0 };
        assert_eq!(marked(&found, publish), expected, "{step}");
        if stands {
            assert_eq!(found.head.parent, Some(before.head.hash), "{step}");
        }
        let shown = &self.witness.get("/versions?limit=1")["items"][0];
        assert_eq!(shown["n"], found.head.n, "{step}");
        assert_eq!(shown["hash"], found.head.hash.to_string(), "{step}");
        self.serves(if stands { publish } else { publish - 1 }, step);
        // Whoever got no answer asks again, by the same key.
        let again = self.ask(&self.witness).expect("an answer");
        assert_eq!(again.status(), 200, "{step}: {}", again.text());
        self.stands(before, step);
        let made = self.newest();
        assert!(!stands || made.head.hash == found.head.hash, "{step}");
        let renamed = json!({"name": format!("after {step}")});
        let path = format!("/targets/{}", self.proxy.target);
        self.witness.patch(&path, renamed);
        let retiring = self.raw.find(&keys::retiring(self.org));
        assert_eq!(retiring, None, "{step}: all that is over is told");
    }

    /// That the publish is one version after this one, whole and served.
    fn stands(&self, before: &OrgConfig, step: &str) {
        let made = self.newest();
        assert_eq!(made.head.n, before.head.n + 1, "{step}");
        assert_eq!(marked(&made, self.publish), self.marked(), "{step}");
        self.serves(self.publish, step);
    }

    /// Waits until every node sends the secret of a publish.
    fn serves(&self, publish: u64, step: &str) {
        let expected = format!("Bearer {}", token(publish));
        for node in &self.nodes {
            wait_for(&format!("{expected} after {step}"), || {
                let answer = self.proxy.request("GET", "/").send(&node.url);
                assert_eq!(answer.status(), 200, "{step}: {}", answer.text());
                (self.upstream.last().field("authorization") == Some(&expected)).then_some(())
            });
        }
    }

    /// One publish by a control plane that is killed at its `nth` write. False if there is none.
    fn killed_at(
        &mut self,
        (nth, moment): (u64, Moment),
        (relay, start, folder): (&EtcdRelay, &Start, &Arc<TempDir>),
    ) -> bool {
        self.publish += 1;
        let step = format!("{moment:?} write {nth} of {} secrets", self.replaced);
        let before = self.newest();
        let victim = Gateway::inside(folder.clone(), start);
        let id = victim.id();
        relay.at_write((nth, moment), &self.org.to_string(), move || {
            signals::send("KILL", id);
        });
        let answer = self.ask(&victim);
        if !relay.has_sprung() {
            let answer = answer.expect("an answer");
            assert_eq!(answer.status(), 200, "{step}: {}", answer.text());
            self.stands(&before, &step);
            victim.kill();
            return false;
        }
        // It may have answered before its last write: then the version stands.
        let answered = answer.map(|answer| answer.status());
        assert!(matches!(answered, None | Some(200)), "{step}: {answered:?}");
        victim.ended();
        let stands = self.newest().head.n == before.head.n + 1;
        assert!(answered.is_none() || stands, "{step}: it had answered");
        self.judge(&before, &step);
        true
    }
}

/// Makes the credentials whose secrets are replaced; gives their ids.
pub fn made(control: &Gateway) -> Vec<String> {
    let create = |at: usize| json!({"create": "credentials", "object": credential(0, at)});
    let operations: Vec<Value> = (0..LARGE).map(create).collect();
    let made = control.api("POST", "/changes", Some(&json!({"operations": operations})));
    assert_eq!(made.status(), 200, "{}", made.text());
    let listed = control.get("/credentials?limit=500");
    let items = listed["items"].as_array().expect("a list").iter();
    let named = items.filter(|item| item["name"] == mark(0));
    let id = |item: &Value| item["id"].as_str().expect("an id").to_owned();
    let credentials: Vec<String> = named.map(id).collect();
    assert_eq!(credentials.len(), LARGE);
    credentials
}

/// What a publish does: it replaces these secrets and the proxy's own, and more.
pub fn operations(proxy: &Proxy, replaced: &[String], publish: u64) -> Vec<Value> {
    let secret = json!({"token": token(publish)});
    let marked = json!({"name": mark(publish), "secret": secret});
    let url = format!("https://{}.example", mark(publish));
    let update = |(at, id): (usize, &String)| {
        let fields = credential(publish, at);
        let patch = json!({"name": fields["name"], "secret": fields["secret"]});
        json!({"update": id, "patch": patch})
    };
    let mut operations = vec![
        json!({"create": "targets", "object": {"base_url": url, "name": mark(publish)}}),
        json!({"create": "credentials", "object": credential(publish, LARGE)}),
        json!({"update": proxy.id, "patch": {"name": mark(publish)}}),
        json!({"update": proxy.target_credential, "patch": marked}),
    ];
    operations.extend(replaced.iter().enumerate().map(update));
    operations
}

/// How often it sweeps.
pub fn swept(mut start: Start, sweep_s: u64) -> Start {
    let history = format!("[history]\nsweep_s = {sweep_s}\n");
    start.config.push_str(&history);
    start
}

fn mark(publish: u64) -> String {
    format!("mark-{publish}")
}

pub fn token(publish: u64) -> String {
    format!("secret-of-publish-{publish}")
}

fn credential(publish: u64, at: usize) -> Value {
    json!({
        "kind": "target", "auth_type": "bearer", "name": mark(publish),
        "secret": {"token": format!("{}-{at}", token(publish))},
        "hosts": ["https://h.example"],
    })
}

/// Objects of a version that are as a publish wants them.
pub fn marked(config: &OrgConfig, publish: u64) -> usize {
    let mark = json!(mark(publish)).to_string();
    let objects = config.objects.iter();
    let bodies = objects.map(|(_, object)| json!(object.body).to_string());
    bodies.filter(|body| body.contains(&mark)).count()
}

#[test]
fn a_control_killed_at_any_write_leaves_its_version_whole_or_absent() {
    let mut scene = Scene::new();
    let relay = EtcdRelay::to(&scene.cluster.etcd[0]);
    let start = scene.victim(&relay);
    let folder = Arc::new(tempfile::tempdir().expect("a folder"));
    // The proxy's secret is that of a publish from here on.
    let answer = scene.ask(&scene.witness).expect("an answer");
    assert_eq!(answer.status(), 200, "{}", answer.text());
    scene.serves(0, "the first publish");
    for (replaced, least, moment) in [
        (LARGE, 5, Moment::Before),
        (LARGE, 5, Moment::After),
        (SMALL, 1, Moment::Before),
        (SMALL, 1, Moment::After),
    ] {
        scene.replaced = replaced;
        let killed = (1..).take_while(|nth| {
            let by = (&relay, &start, &folder);
            scene.killed_at((*nth, moment), by)
        });
        let killed = killed.count();
        assert!(killed >= least, "{killed} writes of {replaced} secrets");
    }

    // Nobody has swept so far. Once all of them are gone one comes that does.
    assert_ne!(scene.left_over(), BTreeSet::new());
    let newest = scene.newest().head.hash;
    let mut next = start.clone();
    next.config = next.config.replace("sweep_s = 600", "sweep_s = 1");
    let mut sweeper = Gateway::with(next);
    sweeper.token = scene.witness.token.clone();
    std::mem::replace(&mut scene.witness, sweeper).stop();
    wait_for("a store with nothing left over", || {
        scene.left_over().is_empty().then_some(())
    });
    assert_eq!(scene.newest().head.hash, newest);
    scene.publish += 1;
    let before = scene.newest();
    let answer = scene.ask(&scene.witness).expect("an answer");
    assert_eq!(answer.status(), 200, "{}", answer.text());
    scene.stands(&before, "the sweep");
}
