//! Unique secrets of every kind in a cluster whose parts fail one after another; then not one of
//! them is in what any of its processes, etcd or ClickHouse keeps, tells or answers.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::cluster::{Cluster, wait_status};
use crate::harness::clickhouse::{ClickHouse, PASSWORD, USER};
use crate::harness::etcd::{etcdctl, write_file};
use crate::harness::gateway::{Gateway, TARGET_SECRET, output};
use crate::harness::http::Request;
use crate::harness::otlp::{self, Received};
use crate::harness::secrets::{Secret, check, check_files, forms, private_parts};
use crate::harness::upstream::{After, Upstream, json_answer};
use crate::harness::wait_for;

const ADMIN: &str = "canary-cluster-admin-5e1c0f7b9a3d2468";
const WRONG_KEY: &str = "canary-cluster-wrong-key-90ab";
const GIVEN_KEY: &str = "canary-cluster-given-key-41ee";
const QUERY_VALUE: &str = "canary-cluster-query-77c3";
const HEADER: &str = "canary-cluster-header-2bd8";
const OTLP: &str = "canary-cluster-otlp-f60c";
const OPERATOR: &str = "canary-cluster-operator-token-8d3b61f7";
const ETCD_PASSWORD: &str = "canary-cluster-etcd-password-a94e";

/// Longest lines of a private key in PEM.
pub fn pem_parts(pem: &str) -> Vec<String> {
    let lines = pem
        .lines()
        .filter(|line| line.len() >= 48 && !line.starts_with('-'));
    lines.map(str::to_owned).collect()
}

/// Every key and value of etcd.
fn all_of_etcd(cluster: &Cluster) -> Vec<u8> {
    let output = Command::new("etcdctl")
        .args(["--endpoints", &cluster.etcd[0].endpoint()])
        .args(["--user", &format!("root:{ETCD_PASSWORD}")])
        .args(["get", "", "--prefix"])
        .output()
        .expect("etcdctl runs; see tests/install-test-deps");
    assert!(output.status.success(), "{output:?}");
    assert!(output.stdout.len() > 1_000, "etcd holds a configuration");
    output.stdout
}

/// From now on etcd wants to know who asks; gives what its users are told by variables.
fn with_password(cluster: &Cluster, folder: &Path) -> Vec<(String, String)> {
    for arguments in [
        &["user", "add", &format!("root:{ETCD_PASSWORD}")][..],
        &["user", "grant-role", "root", "root"],
        &["auth", "enable"],
    ] {
        etcdctl(&cluster.etcd[0], arguments);
    }
    let file = write_file(folder, "etcd-password", ETCD_PASSWORD);
    let file = file.display().to_string();
    vec![
        ("REQUESTROCKET_STORE__USERNAME".into(), "root".into()),
        ("REQUESTROCKET_STORE__PASSWORD_FILE".into(), file),
    ]
}

/// A collector to which processes prove themselves: their settings, what it is told, and the
/// private key that they hold for it.
fn collector(folder: &Path) -> (String, Received, String) {
    let (certificate, key) = otlp::certificate();
    let (endpoint, received) = otlp::grpc_tls(&certificate, &key);
    let (own, own_key) = otlp::certificate();
    let files = [
        ("ca_file", "collector.pem", &certificate),
        ("cert_file", "own.pem", &own),
        ("key_file", "own-key.pem", &own_key),
    ];
    let files = files.map(|(setting, name, pem)| {
        let file = write_file(folder, name, pem);
        format!("{setting} = {file:?}\n")
    });
    let settings = format!(
        "[otlp]\nendpoint = \"{endpoint}\"\nheaders = \"x-key={OTLP}\"\n{}",
        files.concat()
    );
    (settings, received, own_key)
}

#[test]
fn no_secret_of_a_cluster_is_where_it_does_not_belong() {
    let mut clickhouse = ClickHouse::start();
    let folder = tempfile::tempdir().expect("a folder");
    let password = write_file(folder.path(), "password", PASSWORD);
    let operator = write_file(folder.path(), "operator", OPERATOR);
    let cluster = Cluster::new();
    let of_etcd = with_password(&cluster, folder.path());
    // All that can be told is told to a collector too.
    let (otlp, received, otlp_key) = collector(folder.path());
    let log = format!(
        "[log]\nfilter = \"trace\"\nformat = \"json\"\n{otlp}\
         [traces]\nbatch_ms = 20\n[metrics]\ninterval_ms = 50\n"
    );
    let mut start = cluster.control_start();
    start.environment.extend(of_etcd.clone());
    start.config.push_str(&format!(
        "{log}[control]\noperator_token_file = {operator:?}\n\
         [records]\nstore = \"clickhouse\"\n[records.clickhouse]\nurl = {:?}\n\
         user = {USER:?}\npassword_file = {password:?}\ngather_ms = 20\n",
        clickhouse.url()
    ));
    start
        .environment
        .push(("REQUESTROCKET_ADMIN_TOKEN".into(), ADMIN.into()));
    let control = Gateway::with(start.clone());
    let mut node_start = cluster.node_start("gw-1", "gw-1");
    node_start.config.push_str(&log);
    node_start.environment.extend(of_etcd);
    let node = Gateway::with(node_start.clone());
    // Bodies are kept: it shows back all that the gateway is to overwrite, and what else callers
    // send to a target is not.
    let upstream = Upstream::start(|request, connection| {
        let fields = request.fields.iter();
        let callers = ["x-session-token", "user-agent"];
        let shown = fields
            .filter(|(name, _)| !callers.contains(&name.as_str()))
            .map(|(name, value)| format!("{name}={value}"));
        let shown = shown.collect::<Vec<_>>().join("&").replace('"', "");
        match request.target().contains("/cut") {
            true => return After::Close,
            false => connection.send(json_answer("200 OK", &json!({"by": shown}).to_string())),
        }
        After::Keep
    });
    let record = json!({"record": {"payload": {"bytes_max": 65536}}});
    let proxy = control.proxy_with(&upstream.url(), json!({}), record);
    let given = json!({"kind": "proxy", "auth_type": "api_key", "secret": {"key": GIVEN_KEY}});
    let given = control.create("/credentials", given);
    let both = json!({"proxy_credential_ids": [given["id"], proxy.proxy_credential]});
    control.patch(&format!("/proxies/{}", proxy.id), both);
    let api_token = control.create("/tokens", json!({"name": "v", "role": "viewer"}));
    let api_token = api_token["secret"]["token"]
        .as_str()
        .expect("a token")
        .to_owned();
    wait_status(&node, &proxy, "GET", 200);
    // The operator's own token where it belongs, and where nobody expects it.
    for path in ["/api/v1/me", &format!("/api/v1/orgs/{OPERATOR}")] {
        control.control_call("GET", path, Some(OPERATOR), None);
    }

    let mut ids = Vec::new();
    let mut call = |node: &Gateway| {
        let issued = proxy.key.as_str();
        // What has its own key in its path is refused, and has a record as well.
        for (path, key, in_path) in [
            ("/ok", GIVEN_KEY, issued),
            ("/ok", GIVEN_KEY, GIVEN_KEY),
            ("/ok", issued, "none"),
            ("/ok", issued, issued),
            ("/cut", GIVEN_KEY, issued),
            ("/ok", WRONG_KEY, WRONG_KEY),
        ] {
            let held = format!("{TARGET_SECRET}/{issued}/{key}");
            let in_path = format!("{TARGET_SECRET}/{in_path}");
            let target = format!("{}{path}/{in_path}?q={QUERY_VALUE}", proxy.path);
            let body = json!({"keys": format!("{} {TARGET_SECRET}", proxy.key)});
            let request = Request::new("POST", &target)
                .field("authorization", &format!("Bearer {key}"))
                .field("x-session-token", HEADER)
                .field("user-agent", &format!("agent/1 ({held})"))
                .json(&body.to_string());
            let answer = request.send(&node.url);
            ids.extend(answer.field("requestrocket-request-id").map(str::to_owned));
        }
    };
    call(&node);
    // With ClickHouse away, and then with no control plane at all.
    clickhouse.kill();
    call(&node);
    let of_control = control.log();
    let inside = control.kill();
    call(&node);
    let spool = node.data_dir().join("spool");
    wait_for("records on disk", || {
        let files = std::fs::read_dir(&spool).ok()?;
        (files.count() > 0).then_some(())
    });
    let (of_node, data) = (node.log(), node.data_dir());
    // In order: a node that is killed loses what was in memory only.
    let (status, inside_node) = node.stop();
    assert_eq!(status.code(), Some(0));
    let written = output(inside_node.path());

    let mut secrets: Vec<String> = [
        ADMIN,
        WRONG_KEY,
        GIVEN_KEY,
        QUERY_VALUE,
        HEADER,
        OTLP,
        PASSWORD,
        OPERATOR,
        ETCD_PASSWORD,
    ]
    .map(str::to_owned)
    .into();
    secrets.extend([TARGET_SECRET.to_owned(), proxy.key.clone(), api_token]);
    let ring = cluster.file("nodes.json");
    let ring = std::fs::read_to_string(ring).expect("the ring of nodes");
    let ring: Value = serde_json::from_str(&ring).expect("JSON");
    let before = secrets.len();
    private_parts(&ring, "", &mut secrets);
    assert!(
        secrets.len() >= before + 2,
        "the private keys of the ring were not found"
    );
    for name in ["gw-1-key.pem", "127.0.0.1-key.pem", "ca-key.pem"] {
        let pem = std::fs::read_to_string(cluster.file(name)).expect("a private key");
        let parts = pem_parts(&pem);
        assert!(!parts.is_empty(), "{name}");
        secrets.extend(parts);
    }
    let of_collector = pem_parts(&otlp_key);
    assert!(!of_collector.is_empty(), "a key of more than a line");
    secrets.extend(of_collector);
    let secrets: Vec<Secret> = secrets
        .into_iter()
        .map(|secret| (secret.clone(), forms(&secret)))
        .collect();

    // The kept copy of the configuration and the records that wait are among these.
    assert!(data.join("kept.bin").exists());
    check_files(&data, &secrets);
    check("the log of the node", of_node.as_bytes(), &secrets);
    check("standard output of the node", &written, &secrets);
    check("the log of control", of_control.as_bytes(), &secrets);
    check("etcd", &all_of_etcd(&cluster), &secrets);

    clickhouse.restart();
    let control = Gateway::inside(inside, &start);
    let node = Gateway::inside(inside_node, &node_start);
    let last = ids.last().expect("an id").clone();
    for id in &ids {
        control.record(id);
    }
    let rows = clickhouse.query("SELECT * FROM requestrocket.requests FORMAT TSVRaw");
    assert!(
        rows.contains(&last) && rows.contains("payload") && rows.contains("agent/1 (***"),
        "{rows}"
    );
    check("ClickHouse", rows.as_bytes(), &secrets);
    let org = "/api/v1/orgs/default";
    for path in [
        format!("{org}/records/{}", ids[0]),
        format!("{org}/records/{}/trace", ids[0]),
        format!("{org}/records/export"),
        format!("{org}/telemetry?by=path"),
        format!("{org}/config"),
        "/api/v1/nodes".to_owned(),
        "/metrics".to_owned(),
    ] {
        let answer = control.control_call("GET", &path, Some(ADMIN), None);
        assert_eq!(answer.status(), 200, "{path}");
        check(&path, &answer.body, &secrets);
    }
    for asked in [
        json!({"record": ids[0]}),
        json!({"proxy": proxy.id, "last": 10}),
        json!({"proxy": proxy.id, "request": {"method": "POST", "path": "/ok"}}),
    ] {
        let answer = control.api("POST", "/explain", Some(&asked));
        assert_eq!(answer.status(), 200, "{asked}: {}", answer.text());
        check("explain", &answer.body, &secrets);
    }
    check("the log of control", control.log().as_bytes(), &secrets);
    check("the log of the node", node.log().as_bytes(), &secrets);
    check_files(&control.data_dir(), &secrets);
    for (what, told) in [
        ("spans", format!("{:?}", received.spans())),
        ("metrics", format!("{:?}", received.metrics())),
        ("log lines", format!("{:?}", received.lines())),
    ] {
        assert!(told.len() > 1_000, "{what} were told");
        check(what, told.as_bytes(), &secrets);
    }
}
