//! An etcd that wants to know who asks. The tokens that it gives for a password end: when their
//! time is over, when it is restarted, and, where it signs them, as soon as any user or role is
//! changed. Processes ask for others then, and nobody notices.

use serde_json::json;

use crate::cluster::{Cluster, wait_known, wait_status};
use crate::harness::etcd::{EtcdServer, ask_for_password, etcdctl};
use crate::harness::gateway::{Gateway, Proxy, Start};
use crate::harness::upstream::Upstream;
use crate::harness::wait_for;

/// What etcd says of a token that it forgets.
const FORGOTTEN: &str = "deleted a simple token";

/// A control plane and a node on an etcd that asks for a password.
struct Guarded {
    cluster: Cluster,
    control: Gateway,
    node: Gateway,
    upstream: Upstream,
    limited: Proxy,
}

impl Guarded {
    fn new(flags: &[&str]) -> Self {
        let cluster = Cluster::of(vec![EtcdServer::start_with(None, flags)]);
        ask_for_password(&cluster.etcd[0]);
        // All that processes need.
        let (role, keys) = ("role", "/requestrocket/");
        for arguments in [
            &[role, "add", "gateway"][..],
            &[
                role,
                "grant-permission",
                "gateway",
                "--prefix=true",
                "readwrite",
                keys,
            ],
            &["user", "add", "gateway:right"],
            &["user", "grant-role", "gateway", "gateway"],
        ] {
            as_root(&cluster.etcd[0], arguments);
        }
        let control = Gateway::with(with_user(&cluster, cluster.control_start()));
        let node = Gateway::with(with_user(&cluster, cluster.node_start("gw-1", "gw-1")));
        let upstream = Upstream::json("{}");
        let limits = json!({"limits": {"per_minute": 10_000}});
        let limited = control.proxy_with(&upstream.url(), json!({}), limits);
        wait_status(&node, &limited, "GET", 200);
        Self {
            cluster,
            control,
            node,
            upstream,
            limited,
        }
    }

    /// What needs reads, writes, leases and watches of both processes; none of it fails.
    fn goes_on(&self) {
        let (control, node) = (&self.control, &self.node);
        wait_known(control, [node]);
        let path = format!("/proxies/{}/test", self.limited.id);
        let test = control.api("POST", &path, Some(&json!({})));
        assert_eq!(test.status(), 200, "{}", test.text());
        assert_eq!(test.json()["code"], "proxy-access-granted");
        let before = self.upstream.seen().len();
        for _ in 0..20 {
            let answer = self.limited.request("GET", "/").send(&node.url);
            assert_eq!(answer.status(), 200, "{}", answer.text());
        }
        assert_eq!(self.upstream.seen().len() - before, 20);
        wait_for("the node as current", || {
            let nodes = control.operator("/nodes").json();
            (nodes["items"][0]["current"] == true).then_some(())
        });
    }

    fn stop(self) {
        assert_eq!(self.node.stop().0.code(), Some(0));
        assert_eq!(self.control.stop().0.code(), Some(0));
    }
}

/// Changes who may what in etcd.
fn as_root(etcd: &EtcdServer, arguments: &[&str]) {
    etcdctl(etcd, &[&["--user", "root:right"], arguments].concat());
}

/// Its settings, with the user that etcd asks for.
fn with_user(cluster: &Cluster, start: Start) -> Start {
    let password = cluster.file("password");
    std::fs::write(&password, "right\n").expect("a file");
    let kind = "kind = \"etcd\"\n";
    let user = format!("{kind}username = \"gateway\"\npassword_file = {password:?}\n");
    assert!(start.config.contains(kind), "{}", start.config);
    let config = start.config.replacen(kind, &user, 1);
    Start { config, ..start }
}

#[test]
fn tokens_of_etcd_end_by_themselves_and_with_a_restart_and_no_call_fails() {
    let mut guarded = Guarded::new(&["--auth-token-ttl", "1", "--log-level", "debug"]);
    guarded.goes_on();
    for _ in 0..3 {
        let forgotten = |etcd: &EtcdServer| etcd.log().matches(FORGOTTEN).count();
        let before = forgotten(&guarded.cluster.etcd[0]);
        wait_for("tokens that are over", || {
            (forgotten(&guarded.cluster.etcd[0]) >= before + 2).then_some(())
        });
        guarded.goes_on();
    }
    guarded.cluster.etcd[0].restart();
    let path = format!("/proxies/{}", guarded.limited.id);
    wait_for("the store", || {
        let renamed = guarded
            .control
            .api("PATCH", &path, Some(&json!({"name": "renamed"})));
        (renamed.status() == 200).then_some(())
    });
    guarded.goes_on();
    guarded.stop();
}

/// Signed tokens are those of a revision of etcd's users, and count no more after it.
#[test]
fn a_change_of_etcds_users_fails_no_call() {
    let folder = tempfile::tempdir().expect("a folder");
    let key = folder.path().join("key");
    std::fs::write(&key, "of-thirty-two-bytes-for-this-test").expect("a file");
    let signed = format!("jwt,sign-method=HS256,ttl=10m,priv-key={}", key.display());
    let guarded = Guarded::new(&["--auth-token", &signed]);
    guarded.goes_on();
    for user in ["one:word", "other:word"] {
        as_root(&guarded.cluster.etcd[0], &["user", "add", user]);
        guarded.goes_on();
    }
    guarded.stop();
}
