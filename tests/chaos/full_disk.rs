//! The disk of one of our own processes is full: requests and limits go on, what cannot be kept is
//! refused or counted, and with room again all is as before, by itself.

use std::fs;
use std::sync::Arc;
use std::time::SystemTime;

use serde_json::{Value, json};

use super::cluster::{self, Cluster, Links, Process, SECOND as CLUSTER_SECOND};
use super::load::Load;
use crate::harness::disk::Disk;
use crate::harness::etcd::copy_folder;
use crate::harness::gateway::{Gateway, Proxy, Start};
use crate::harness::upstream::{Upstream, json_answer};
use crate::harness::wait_for;

/// Room for everything that a test writes before it takes it away.
const DISK_MIB: usize = 32;
/// Requests a second.
const RATE: u32 = 100;
const SECOND: u64 = RATE as u64;
const DROPPED: &str = "requestrocket_records_dropped_total";

/// Names of all targets.
fn targets(gateway: &Gateway) -> Vec<String> {
    let listed = gateway.get("/targets?limit=500");
    let items = listed["items"].as_array().expect("a list");
    let name = |target: &Value| target["name"].as_str().unwrap_or_default().to_owned();
    let mut names: Vec<_> = items.iter().map(name).collect();
    names.sort();
    names
}

/// The version that the organisation is at.
fn version(gateway: &Gateway) -> Value {
    gateway.get("/versions?limit=1")["items"][0]["n"].clone()
}

/// Whether a node's copy of the configuration cannot be written.
const COPY_FAILING: &str = "requestrocket_kept_failing{file=\"kept.bin\"}";

/// A target that is written until it is refused; the names of those that were not are kept.
fn refused(gateway: &Gateway, kept: &mut Vec<String>) {
    let answer = wait_for("a refusal", || {
        let name = format!("target-{}", kept.len());
        let body = json!({"name": name, "base_url": "https://api.example.com"});
        let answer = gateway.api("POST", "/targets", Some(&body));
        if answer.status() == 201 {
            kept.push(name);
            return None;
        }
        Some(answer)
    });
    assert_eq!(answer.status(), 503, "{}", answer.text());
    let problem = answer.json();
    assert_eq!(problem["code"], "store-full", "{problem}");
    let detail = problem["detail"].as_str().expect("words");
    assert!(detail.contains("disk is full"), "{problem}");
    assert!(detail.contains("nothing was changed"), "{problem}");
}

/// One process that may call targets of this machine.
fn standalone() -> Start {
    Start {
        mode: "standalone",
        config: "[policy]\nallow_http = true\n[[dial_guard.permit]]\nnetwork = \"127.0.0.0/8\"\n\
                 ports = [\"1-65535\"]\norgs = [\"*\"]\n"
            .into(),
        ..Start::default()
    }
}

#[test]
fn one_process_that_was_stopped_in_order_starts_on_a_full_disk() {
    let Some(_one) = cluster::alone() else {
        return;
    };
    let folder = Arc::new(tempfile::tempdir().expect("a folder"));
    let disk = Disk::mount(folder.path().join("data"), DISK_MIB);
    let gateway = Gateway::inside(folder.clone(), &standalone());
    let upstream = Upstream::json("{}");
    let proxy = gateway.proxy(&upstream.url());
    assert_eq!(proxy.get("/").status(), 200);
    drop(gateway.stop());
    disk.fill();
    let gateway = Gateway::inside(folder.clone(), &standalone());
    let answer = proxy.request("GET", "/").send(&gateway.url);
    assert_eq!(answer.status(), 200);
    drop((gateway, disk));
}

#[test]
fn one_process_alone_serves_refuses_changes_and_loses_none() {
    let Some(_one) = cluster::alone() else {
        return;
    };
    let folder = Arc::new(tempfile::tempdir().expect("a folder"));
    let disk = Disk::mount(folder.path().join("data"), DISK_MIB);
    let start = standalone();
    let mut gateway = Gateway::inside(folder.clone(), &start);
    let token = gateway.token.clone();
    let answer = json_answer("200 OK", "{}");
    let upstream = Upstream::raw(move |connection, _| {
        while connection.read().is_some() {
            connection.send(&answer);
        }
    });
    let proxy = gateway.proxy_with(
        &upstream.url(),
        json!({"name": "target-0"}),
        json!({"limits": {"per_minute": RATE * 60 * 3}}),
    );
    let strict = gateway.proxy_with(
        &upstream.url(),
        json!({"name": "target-1"}),
        json!({"limits": {"per_minute": 5}}),
    );
    let unused = gateway.proxy_with(
        &upstream.url(),
        json!({"name": "target-2"}),
        json!({"limits": {"per_minute": 20}}),
    );
    let mut kept = targets(&gateway);
    let load = Load::start(vec![gateway.url.clone()], proxy.request("GET", "/"), RATE);
    load.after(SECOND).is_clean("before anything");
    assert_eq!(strict.get("/").status(), 200);

    disk.fill();
    refused(&gateway, &mut kept);
    // What is left of the room that files had taken before is used up.
    wait_for("records that are dropped", || {
        (gateway.metric(DROPPED) > 0.0).then_some(())
    });
    refused(&gateway, &mut kept);
    let before = version(&gateway);
    let secret = json!({"secret": {"token": "lost"}});
    let rotate = format!("/credentials/{}/rotate", proxy.target_credential);
    let rotated = gateway.api("POST", &rotate, Some(&secret));
    assert_eq!(rotated.status(), 503, "{}", rotated.text());
    assert_eq!(version(&gateway), before, "nothing half applied");
    assert_eq!(targets(&gateway), kept, "reads go on");
    let granted = (0..10).filter(|_| strict.get("/").status() == 200).count();
    // A minute may end between.
    assert!(
        (1..=5).contains(&granted),
        "{granted} of 4 that are left in a minute"
    );
    // A limit of which the store has nothing yet; a minute may end between.
    let granted = (0..60).filter(|_| unused.get("/").status() == 200).count();
    assert!((19..=40).contains(&granted), "{granted} of 20 in a minute");
    load.after(5 * SECOND).is_answered("full");
    let log = gateway.log();
    let lines = log
        .lines()
        .filter(|line| line.contains("could not be kept"));
    let lines = lines.count();
    assert!(
        (1..=3).contains(&lines),
        "{lines} lines of dropped records:\n{log}"
    );

    disk.empty();
    wait_for("a change", || {
        let body = json!({"name": "with-room", "base_url": "https://api.example.com"});
        let answer = gateway.api("POST", "/targets", Some(&body));
        (answer.status() == 201).then_some(())
    });
    kept.push("with-room".into());
    kept.sort();
    let id = wait_for("a record", || {
        let answer = proxy.get("/");
        let id = answer
            .field("requestrocket-request-id")
            .expect("an id")
            .to_owned();
        (gateway.api("GET", &format!("/records/{id}"), None).status() == 200).then_some(id)
    });
    load.after(SECOND).is_clean("with room again");
    drop(load);
    assert_eq!(targets(&gateway), kept);

    drop(gateway.kill());
    gateway = Gateway::inside(folder.clone(), &start);
    gateway.token = token;
    assert_eq!(targets(&gateway), kept, "no acknowledged change is lost");
    gateway.record(&id);
    drop((gateway, disk));
}

const SPOOLED: &str = "requestrocket_records_spooled";

/// Starts a process again, with what it had, on a small disk of its own.
fn on_disk(process: &mut Process) -> Disk {
    let folder = process.kill();
    let (data, before) = (folder.path().join("data"), folder.path().join("before"));
    fs::rename(&data, &before).expect("the data is set aside");
    let disk = Disk::mount(data.clone(), DISK_MIB);
    copy_folder(&before, &data);
    process.resume(folder);
    disk
}

/// Calls a proxy on a node; the id of its record.
fn call(node: &Process, proxy: &Proxy, path: &str) -> String {
    let answer = proxy.request("GET", path).send(&node.gateway().url);
    assert_eq!(answer.status(), 200, "{}", answer.text());
    let id = answer.field("requestrocket-request-id");
    id.expect("an id").to_owned()
}

/// Whether one of the control planes has the record.
fn is_kept(cluster: &Cluster<'_>, id: &str) -> bool {
    let path = format!("/records/{id}");
    let mut controls = cluster.controls.iter();
    controls.any(|control| {
        let answer = control.gateway().api("GET", &path, None);
        answer.status() == 200
    })
}

#[test]
fn a_node_whose_disk_is_full_serves_drops_the_oldest_records_and_recovers() {
    cluster::run_with(Links::Peers, |cluster, proxy| {
        let disk = on_disk(&mut cluster.nodes[0]);
        let load = cluster.load(proxy);
        load.after(CLUSTER_SECOND);
        load.after(CLUSTER_SECOND).is_clean("before anything");
        let folders: Vec<_> = cluster.controls.iter_mut().map(Process::kill).collect();
        let node = &cluster.nodes[0];
        let waits = || node.metric(SPOOLED).filter(|count| *count > 0.0);
        wait_for("records on the node's disk", waits);
        let oldest = call(node, proxy, "/oldest");
        load.after(CLUSTER_SECOND).is_clean("without control");

        disk.fill();
        let dropped = || node.metric(DROPPED).unwrap_or_default();
        wait_for("the oldest that go", || (dropped() > 0.0).then_some(()));
        let before_kib = node.gateway().resident_kib();
        load.after(20 * CLUSTER_SECOND).is_clean("full");
        let grown_kib = node.gateway().resident_kib().saturating_sub(before_kib);
        assert!(grown_kib < 64 * 1024, "{grown_kib} KiB more");
        let lines = node.gateway().log();
        let told = lines.matches("records cannot be kept").count();
        assert!((1..=3).contains(&told), "{told} lines");
        // Whatever ends a node ends it on a full disk too.
        let folder = cluster.nodes[0].kill();
        load.after(CLUSTER_SECOND)
            .is_answered_but_by(0, "a node is killed");
        cluster.nodes[0].resume(folder);
        load.after(CLUSTER_SECOND);
        load.after(CLUSTER_SECOND)
            .is_clean("started on a full disk");

        let node = &cluster.nodes[0];
        let newest = call(node, proxy, "/newest");
        disk.empty();
        for (control, folder) in cluster.controls.iter_mut().zip(folders) {
            control.resume(folder);
        }
        let node = &cluster.nodes[0];
        node.wait_metric(SPOOLED, 0);
        wait_for("the newest record", || {
            is_kept(cluster, &newest).then_some(())
        });
        assert!(!is_kept(cluster, &oldest), "it went first");
        let told = "requestrocket_control_records_lost_total";
        wait_for("a control plane that is told of the loss", || {
            let mut controls = cluster.controls.iter();
            let lost = controls.any(|control| control.gateway().metric(told) > 0.0);
            lost.then_some(())
        });
        let kept = node.gateway().data_dir().join("kept.bin");
        let written = || -> Option<SystemTime> { fs::metadata(&kept).ok()?.modified().ok() };
        let (before, lost) = (written(), node.metric(DROPPED));
        cluster.rename(0, proxy, "found");
        cluster.agrees(0);
        wait_for("a copy on the disk", || (written() > before).then_some(()));
        node.wait_metric(COPY_FAILING, 0);
        load.after(CLUSTER_SECOND).is_clean("with room again");
        assert_eq!(node.metric(DROPPED), lost, "no more is lost");
        drop((load, disk));
    });
}

#[test]
fn control_planes_whose_disks_are_full_take_changes_and_nodes_keep_the_records() {
    cluster::run_with(Links::Peers, |cluster, proxy| {
        let disks: Vec<_> = cluster.controls.iter_mut().map(on_disk).collect();
        let load = cluster.load(proxy);
        load.after(CLUSTER_SECOND).is_clean("before anything");
        let first = call(&cluster.nodes[0], proxy, "/first");
        wait_for("its record", || is_kept(cluster, &first).then_some(()));

        disks.iter().for_each(Disk::fill);
        for node in &cluster.nodes {
            let waits = || node.metric(SPOOLED).filter(|count| *count > 0.0);
            wait_for("records on the node's disk", waits);
        }
        let waiting = call(&cluster.nodes[0], proxy, "/waiting");
        for (at, control) in cluster.controls.iter().enumerate() {
            cluster.rename(at, proxy, &format!("full-{at}"));
            let found = control.gateway().api("GET", "/records?limit=5", None);
            assert_eq!(
                found.status(),
                200,
                "a read needs no room: {}",
                found.text()
            );
            control.read("/targets");
            let refused = "requestrocket_control_records_refused_total";
            wait_for("records that are refused", || {
                (control.gateway().metric(refused) > 0.0).then_some(())
            });
        }
        cluster.agrees(0);
        assert!(is_kept(cluster, &first), "reads go on");
        assert!(!is_kept(cluster, &waiting), "it waits");
        // Whatever ends a control plane ends it on a full disk too.
        let folder = cluster.controls[1].kill();
        cluster.controls[1].resume(folder);
        cluster.controls[1].read("/records?limit=5");
        cluster.rename(1, proxy, "again");
        load.after(5 * CLUSTER_SECOND).is_clean("full");

        disks.iter().for_each(Disk::empty);
        for node in &cluster.nodes {
            node.wait_metric(SPOOLED, 0);
            assert_eq!(node.metric(DROPPED), Some(0.0), "no record is lost");
        }
        wait_for("the record that waited", || {
            is_kept(cluster, &waiting).then_some(())
        });
        load.after(CLUSTER_SECOND).is_clean("with room again");
        drop((load, disks));
    });
}
