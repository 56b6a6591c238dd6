//! The three members of etcd have no room left: for changes (their quota), or for anything (their
//! disks). Traffic goes on, nothing can be changed, and what the runbooks say brings all back.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Instant;

use serde_json::json;

use super::cluster::{self, Cluster, Links, Members, SECOND};
use super::load::Load;
use crate::harness::etcd::EtcdServer;
use crate::harness::gateway::{Proxy, binary};
use crate::harness::wait_for;

const MIB: usize = 1024 * 1024;
/// The quota of each member.
const QUOTA: &str = "--quota-backend-bytes=25165824";
/// Room on each member's disk: etcd takes two files of 64 MB in advance.
const DISK_MIB: usize = 176;

/// Keys of configuration and history, by member 0.
fn keys(cluster: &mut Cluster<'_>) -> Vec<String> {
    let text = cluster.etcd(0, |member| {
        let parts = [
            "leaf/",
            "versions/",
            "secrets/",
            "live/head/",
            "live/retired/",
        ];
        let read = |part: &str| {
            let key = format!("/requestrocket/{part}");
            etcdctl(member, &["get", "--prefix", "--keys-only", &key], &[]).1
        };
        parts.map(read).concat()
    });
    let lines = text.lines().filter(|line| !line.is_empty());
    lines.map(str::to_owned).collect()
}

/// What takes room.
fn value() -> Vec<u8> {
    (0..MIB).map(|at| (at * 131 % 251) as u8).collect()
}

/// Runs `etcdctl`, and gives whether it succeeded and what it said.
fn etcdctl(member: &EtcdServer, arguments: &[&str], input: &[u8]) -> (bool, String) {
    let mut child = Command::new("etcdctl")
        .env("ETCDCTL_API", "3")
        .args(["--endpoints", &member.endpoint()])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("etcdctl can be started");
    let mut pipe = child.stdin.take().expect("a pipe");
    pipe.write_all(input).expect("it reads");
    drop(pipe);
    let output = child.wait_with_output().expect("it ends");
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    (output.status.success(), said)
}

/// Asserts that both control planes refuse a change with a code, and that nothing of it is left.
fn refuses(cluster: &mut Cluster<'_>, proxy: &Proxy, code: &str) {
    let before = keys(cluster);
    for at in [0, 1] {
        let path = format!("/proxies/{}", proxy.id);
        let refused = wait_for("a refusal", || {
            let answer = cluster.controls[at].call("PATCH", &path, &json!({"name": "lost"}));
            (answer.json()["code"] == code).then_some(answer)
        });
        assert_eq!(refused.status(), 503, "{}", refused.text());
        let rotate = format!("/credentials/{}/rotate", proxy.target_credential);
        let secret = json!({"secret": {"token": "lost"}});
        let rotated = cluster.controls[at].call("POST", &rotate, &secret);
        assert_eq!(rotated.status(), 503, "{}", rotated.text());
        assert_eq!(rotated.json()["code"], code);
        // More than one transaction has room for: its leaves are written before its head.
        let large = |at: usize| {
            let labels: serde_json::Map<_, _> = (0..40)
                .map(|n| {
                    (
                        format!("label-{n}"),
                        format!("{at}-{n}-{}", "x".repeat(200)).into(),
                    )
                })
                .collect();
            let object = json!({"base_url": format!("https://h{at}.example"), "labels": labels});
            json!({"create": "targets", "object": object})
        };
        let operations: Vec<_> = (0..200).map(large).collect();
        let changes = json!({"operations": operations});
        let refused = cluster.controls[at].call("POST", "/changes", &changes);
        assert_eq!(refused.status(), 503, "{}", refused.text());
        assert_eq!(refused.json()["code"], code);
    }
    assert_eq!(keys(cluster), before, "the refused writes left something");
}

/// `requestrocket recover --space`.
fn recover(cluster: &Cluster<'_>) {
    let control = cluster.controls[0].gateway();
    let output = binary()
        .args(["recover", "--space"])
        .env("REQUESTROCKET_CONTROL_URL", &control.control)
        .env("REQUESTROCKET_TOKEN", &control.token)
        .output()
        .expect("the binary runs");
    assert!(output.status.success(), "{output:?}");
}

/// Asserts that a change is made and in effect on all nodes, as one version more than before.
fn goes_on(cluster: &Cluster<'_>, proxy: &Proxy, load: &Load, before: u64) {
    cluster.rename(1, proxy, "found");
    cluster.agrees(0);
    load.after(SECOND).is_clean("with room again");
    for node in &cluster.nodes {
        node.wait_readiness("ok");
    }
    for at in [0, 1] {
        assert_eq!(
            cluster.version(at),
            before + 1,
            "the refused writes left nothing"
        );
    }
}

#[test]
fn beyond_its_quota_etcd_takes_no_change_and_traffic_goes_on() {
    let members = Members {
        flags: &[QUOTA],
        ..Members::default()
    };
    cluster::run_on(members, Links::Peers, |cluster, proxy| {
        let load = cluster.load(proxy);
        load.after(SECOND).is_clean("before anything");
        let before = cluster.version(0);
        // Old changes take the room: one key, written again and again.
        cluster.etcd(0, |member| {
            let value = value();
            wait_for("a full etcd", || {
                let (written, said) = etcdctl(member, &["put", "ballast"], &value);
                (!written && said.contains("database space exceeded")).then_some(())
            });
        });
        load.after(SECOND).is_clean("full");
        refuses(cluster, proxy, "store-full");
        let begun = Instant::now();
        while begun.elapsed() < cluster::outage(10) {
            load.after(SECOND).is_clean("full");
        }
        recover(cluster);
        goes_on(cluster, proxy, &load, before);
    });
}

#[test]
fn with_full_disks_nothing_is_lost_and_traffic_goes_on() {
    let members = Members {
        disk_mib: Some(DISK_MIB),
        ..Members::default()
    };
    cluster::run_on(members, Links::Peers, |cluster, proxy| {
        let load = cluster.load(proxy);
        load.after(SECOND).is_clean("before anything");
        cluster.rename(0, proxy, "kept");
        cluster.agrees(0);
        let before = cluster.version(0);
        for at in 0..3 {
            cluster.etcd(at, EtcdServer::fill_disk);
        }
        // A member that cannot write ends. The last one may stay, and is of no use alone.
        let value = value();
        wait_for("members that end", || {
            let ended = |cluster: &mut Cluster<'_>, at| cluster.etcd(at, EtcdServer::has_ended);
            let (gone, left): (Vec<_>, Vec<_>) = (0..3).partition(|at| ended(cluster, *at));
            if let Some(at) = left.first().filter(|_| gone.len() < 2) {
                let put = ["--command-timeout=2s", "put", "ballast"];
                cluster.etcd(*at, |member| etcdctl(member, &put, &value));
                return None;
            }
            Some(())
        });
        let path = format!("/proxies/{}", proxy.id);
        for at in [0, 1] {
            let refused = cluster.controls[at].call("PATCH", &path, &json!({"name": "lost"}));
            assert_eq!(refused.status(), 503, "{}", refused.text());
            assert_eq!(refused.json()["code"], "store-unavailable");
        }
        let begun = Instant::now();
        while begun.elapsed() < cluster::outage(10) {
            load.after(SECOND).is_clean("full disks");
        }
        for node in &cluster.nodes {
            node.wait_readiness("degraded");
        }
        for at in 0..3 {
            cluster.etcd(at, |member| {
                member.kill();
                member.empty_disk();
                member.spawn();
            });
        }
        for at in 0..3 {
            cluster.etcd(at, EtcdServer::wait);
        }
        recover(cluster);
        goes_on(cluster, proxy, &load, before);
    });
}
