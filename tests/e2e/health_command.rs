//! `requestrocket health`: one screen and an exit code, for people, scripts and containers.

use std::process::Output;

use serde_json::Value;

use crate::cluster::Cluster;
use crate::harness::address;
use crate::harness::gateway::{Gateway, binary};
use crate::harness::wait_for;
use crate::objects::told;

fn probe(url: &str) -> Output {
    let mut command = binary();
    let command = command.args(["health", "--probe", url]);
    command.output().expect("the binary runs")
}

fn said(output: &Output) -> String {
    let both = [output.stdout.as_slice(), &output.stderr].concat();
    String::from_utf8_lossy(&both).into_owned()
}

#[test]
fn all_of_one_machine_is_well_and_is_told_on_one_screen() {
    let gateway = Gateway::start();
    let screen = wait_for("health", || {
        let output = gateway.command(&["health"]);
        output.status.success().then(|| said(&output))
    });
    for words in [
        &format!("{}  ok\n", gateway.control),
        "current at revision",
        "the store holds everything that was seen",
        "* local",
    ] {
        assert!(screen.contains(words), "{screen}");
    }
    let document = told(&gateway, &["health"], "");
    assert_eq!(document["healthy"], true, "{document}");
    assert_eq!(document["nodes"].as_array().map(Vec::len), Some(1));
    // Without a token it is whether the control plane serves, and that more was not asked.
    let mut bare = binary();
    let output = bare
        .args(["health", "--control", &gateway.control])
        .output();
    let output = output.expect("the binary runs");
    assert!(
        output.status.success() && said(&output).contains("no token"),
        "{output:?}"
    );
    // One that may not know of nodes is told so; that is no fault.
    let made = told(&gateway, &["create", "token", "name=v", "role=viewer"], "");
    let token = made["secret"]["token"].as_str().expect("a token");
    wait_for("the token", || {
        let mut command = gateway.client(&["health"]);
        let output = command.env("REQUESTROCKET_TOKEN", token).output();
        let output = output.expect("the binary runs");
        (output.status.success() && said(&output).contains("nodes: ")).then_some(())
    });
    let wrong = gateway
        .client(&["health"])
        .env("REQUESTROCKET_TOKEN", "rr_api_wrong")
        .output();
    assert_eq!(wrong.expect("the binary runs").status.code(), Some(1));
}

#[test]
fn a_probe_asks_any_process_and_says_who_is_none() {
    let gateway = Gateway::start();
    let serves = probe(&gateway.control);
    assert!(serves.status.success(), "{serves:?}");
    assert_eq!(said(&serves), format!("{}  ok\n", gateway.control));
    let nobody = format!("http://{}", address::reserved());
    for (url, words) in [
        (nobody.as_str(), "cannot reach"),
        (&gateway.url, "not as a process of RequestRocket does"),
        ("127.0.0.1:9090", "--probe"),
    ] {
        let output = probe(url);
        assert_eq!(output.status.code(), Some(1), "{url}");
        assert!(said(&output).contains(words), "{url}: {output:?}");
    }
}

#[test]
fn a_cluster_without_its_store_or_its_nodes_is_not_healthy() {
    let mut cluster = Cluster::new();
    let control = Gateway::with(cluster.control_start());
    let health = || {
        let output = control.command(&["health", "--output", "json"]);
        let document: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert_eq!(
            output.status.success(),
            document["healthy"] == true,
            "{document}"
        );
        let faults = document["faults"].as_array().expect("a list").iter();
        let faults = faults.map(|fault| fault.as_str().expect("words").to_owned());
        (document["healthy"] == true, faults.collect::<Vec<_>>())
    };
    let (well, faults) = health();
    assert!(
        !well && faults[0].starts_with("no node is there"),
        "{faults:?}"
    );
    let (node, _, admin) = cluster.watched_node("gw-1");
    wait_for("a node that is well", || health().0.then_some(()));
    let ready = probe(&admin);
    assert!(ready.status.success(), "{ready:?}");
    cluster.etcd.clear();
    wait_for("what is told of the store", || {
        let (well, faults) = health();
        let told = faults
            .iter()
            .any(|fault| fault.contains("does not reach the store"));
        (!well && told).then_some(())
    });
    // A node goes on serving from what it has.
    let degraded = wait_for("the node's word", || {
        let output = probe(&admin);
        said(&output).contains("degraded").then_some(output)
    });
    assert!(degraded.status.success(), "{degraded:?}");
    drop(node);
    assert_eq!(probe(&admin).status.code(), Some(1));
}
