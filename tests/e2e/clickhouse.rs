//! Records in ClickHouse: of a cluster, and of one process.

use serde_json::{Value, json};

use crate::cluster::{Cluster, wait_status};
use crate::harness::clickhouse::{ClickHouse, PASSWORD, USER};
use crate::harness::gateway::{Gateway, Proxy, Start};
use crate::harness::otlp;
use crate::harness::tls_relay::TlsRelay;
use crate::harness::upstream::Upstream;
use crate::harness::wait_for;

/// Settings of a control plane, with the password in a file of `folder`.
pub fn settings(clickhouse: &ClickHouse, folder: &std::path::Path) -> String {
    settings_at(&clickhouse.url(), folder)
}

/// The same for one that is reached by another URL.
fn settings_at(url: &str, folder: &std::path::Path) -> String {
    let file = folder.join("password");
    std::fs::write(&file, format!("{PASSWORD}\n")).expect("a file");
    format!(
        "[records]\nstore = \"clickhouse\"\n[records.clickhouse]\nurl = {:?}\n\
         user = {USER:?}\npassword_file = {file:?}\ngather_ms = 20\n",
        url
    )
}

pub fn ids(proxy: &Proxy, node: &Gateway, count: usize) -> Vec<String> {
    let ids = (0..count).map(|_| {
        let answer = proxy.request("GET", "/kept").send(&node.url);
        assert_eq!(answer.status(), 200);
        let id = answer.field("requestrocket-request-id");
        id.expect("an id").to_owned()
    });
    ids.collect()
}

/// Ids of the records of `/kept`, as a list of the API has them.
pub fn listed(control: &Gateway) -> Option<Vec<String>> {
    let path = "/records?path=/kept&limit=500";
    let answer = control.api("GET", path, None);
    if answer.status() != 200 {
        assert_eq!(answer.json()["code"], "records-unavailable");
        return None;
    }
    let items = answer.json()["items"].as_array().expect("a list").clone();
    let id = |item: &Value| item["id"].as_str().expect("an id").to_owned();
    Some(items.iter().map(id).collect())
}

#[test]
fn records_of_a_cluster_outlive_everything_and_come_once() {
    let mut clickhouse = ClickHouse::start();
    let folder = tempfile::tempdir().expect("a folder");
    let cluster = Cluster::new();
    let mut start = cluster.control_start();
    start.config.push_str(&settings(&clickhouse, folder.path()));
    let control = Gateway::with(start.clone());
    let node = cluster.node("gw-1", "gw-1");
    let upstream = Upstream::json("{}");
    let proxy = control.proxy(&upstream.url());
    let other = control.proxy(&upstream.url());
    wait_status(&node, &proxy, "GET", 200);
    let mut made = ids(&proxy, &node, 10);
    wait_for("ten records", || {
        (listed(&control)?.len() == 10).then_some(())
    });
    // ClickHouse has them, and neither control plane nor node is told.
    clickhouse.lose_answers(2);
    made.extend(ids(&proxy, &node, 10));
    wait_for("twenty records", || {
        (listed(&control)?.len() == 20).then_some(())
    });
    clickhouse.kill();
    made.extend(ids(&proxy, &node, 20));
    assert_eq!(listed(&control), None, "503");
    // A key is revoked without it; how the key was used is not known then.
    let wanted = json!({"credential": other.proxy_credential});
    let path = "/api/v1/revocations";
    let revoked = control.control_call("POST", path, Some(&control.token), Some(&wanted));
    assert_eq!(revoked.status(), 200, "{}", revoked.text());
    let revoked = revoked.json();
    assert!(revoked["use_unknown"].is_string(), "{revoked}");
    assert_eq!(revoked["used_24h"], Value::Null, "{revoked}");
    wait_status(&node, &other, "GET", 401);
    // A control plane starts without it.
    let inside = control.kill();
    let control = Gateway::inside(inside, &start);
    made.extend(ids(&proxy, &node, 5));
    assert_eq!(listed(&control), None, "503");
    clickhouse.restart();
    let mut found = wait_for("all records", || {
        listed(&control).filter(|found| found.len() >= made.len())
    });
    found.sort_unstable();
    made.sort_unstable();
    assert_eq!(found, made);
    let sums = control.get("/telemetry?path=/kept&bucket=1m&by=status&from=1h");
    assert_eq!(sums["groups"][0]["value"], "200");
    assert_eq!(sums["groups"][0]["count"], made.len(), "{sums}");
    let record = control.record(&made[0]);
    assert_eq!(record["node"], "gw-1");
    let trace = control.get(&format!("/records/{}/trace", made[0]));
    assert_eq!(trace["spans"][0]["name"], "receive", "{trace}");
    assert!(!control.log().contains(PASSWORD), "{}", control.log());
}

#[test]
fn one_process_waits_for_it_too() {
    let mut clickhouse = ClickHouse::start();
    let folder = tempfile::tempdir().expect("a folder");
    let gateway = Gateway::with(Start {
        config: settings(&clickhouse, folder.path()),
        ..Start::default()
    });
    let upstream = Upstream::json("{}");
    let proxy = gateway.proxy(&upstream.url());
    clickhouse.kill();
    let made = ids(&proxy, &gateway, 30);
    assert_eq!(listed(&gateway), None, "503");
    clickhouse.restart();
    let found = wait_for("all records", || {
        listed(&gateway).filter(|found| found.len() >= made.len())
    });
    assert_eq!(found.len(), made.len());
}

/// Over TLS with an authority of its own: who is not told of it sends nothing.
#[test]
fn it_is_reached_over_https_with_an_authority_of_its_own() {
    let clickhouse = ClickHouse::start();
    let (certificate, key) = otlp::certificate();
    let relay = TlsRelay::before(clickhouse.port(), &certificate, &key);
    let upstream = Upstream::json("{}");
    let folder = tempfile::tempdir().expect("a folder");
    let own = folder.path().join("own.pem");
    let (stranger, _) = otlp::certificate();
    let other = folder.path().join("other.pem");
    for (file, pem) in [(&own, &certificate), (&other, &stranger)] {
        std::fs::write(file, pem).expect("a file");
    }
    let of = |authorities: &std::path::Path| {
        let settings = settings_at(&relay.url(), folder.path());
        let config = format!("{settings}ca_file = {authorities:?}\n");
        Gateway::with(Start {
            config,
            ..Start::default()
        })
    };
    let distrusting = of(&other);
    let proxy = distrusting.proxy(&upstream.url());
    ids(&proxy, &distrusting, 1);
    wait_for("a refused certificate", || {
        (listed(&distrusting).is_none() && distrusting.log().contains("certificate")).then_some(())
    });
    assert_eq!(relay.connections(), 0, "nothing was sent");
    drop(distrusting);
    let trusting = of(&own);
    let proxy = trusting.proxy(&upstream.url());
    let mut made = ids(&proxy, &trusting, 10);
    let mut found = wait_for("ten records", || {
        listed(&trusting).filter(|found| found.len() >= made.len())
    });
    found.sort_unstable();
    made.sort_unstable();
    assert_eq!(found, made);
    assert!(relay.connections() > 0);
    let count = clickhouse.query("SELECT count() FROM requestrocket.requests FORMAT TSV");
    assert_eq!(count, "10", "what it was not told is not there");
}
