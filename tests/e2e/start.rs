//! What a start that cannot succeed says: one clear line, exit code 2, nothing half done. And a
//! process that is stopped the moment it says that it serves ends in order.

use std::net::TcpListener;
use std::process::{Command, Stdio};

use serde_json::json;

use crate::cluster::{self, Cluster};
use crate::harness::gateway::{Gateway, Start, binary};

/// Runs the binary with a configuration; gives its exit code and what it said.
pub fn refused(arguments: &[&str], config: &str, environment: &[(&str, &str)]) -> String {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("config.toml");
    std::fs::write(&file, config).expect("a file");
    let output = binary()
        .args(arguments)
        .arg("--config")
        .arg(&file)
        .env("REQUESTROCKET_GATEWAY__LISTEN", "127.0.0.1:0")
        .env("REQUESTROCKET_CONTROL__LISTEN", "127.0.0.1:0")
        .envs(environment.iter().copied())
        .current_dir(folder.path())
        .stdin(Stdio::null())
        .output()
        .expect("the binary runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(output.stdout.is_empty(), "nothing was started: {output:?}");
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.starts_with("requestrocket: "), "{said}");
    said
}

#[test]
fn a_taken_port() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("an address").to_string();
    for flag in ["--gateway", "--control"] {
        let said = refused(&["dev", flag, &address], "", &[]);
        assert!(said.contains(&address), "{said}");
        assert!(said.contains(flag), "{said}");
    }
    let admin = ("REQUESTROCKET_ADMIN__LISTEN", address.as_str());
    for role in ["dev", "standalone"] {
        let said = refused(&[role], "", &[admin]);
        assert!(said.contains("`admin.listen`"), "{said}");
        assert!(!said.contains("--admin"), "there is no such flag: {said}");
    }
}

#[test]
fn a_folder_that_cannot_be_written() {
    // Below a file: not even root can.
    let said = refused(&["dev", "--data-dir", "/dev/null/data"], "", &[]);
    assert!(said.contains("/dev/null/data"), "{said}");
    assert!(said.contains("--data-dir"), "{said}");
    let there = ("REQUESTROCKET_DATA_DIR", "/dev/null/data");
    let said = refused(&["standalone"], "", &[there]);
    let words = "choose another (`data_dir`; --data-dir of `dev`)";
    assert!(said.contains(words), "{said}");
}

#[test]
fn a_region_that_is_no_name_leaves_nothing_behind() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("data");
    let given = data.to_str().expect("a path");
    let said = refused(
        &["dev", "--data-dir", given],
        "",
        &[("REQUESTROCKET_REGION", "EU")],
    );
    assert!(said.contains("`region` is `EU`"), "{said}");
    assert!(said.contains("a-z"), "{said}");
    assert!(!data.exists(), "nothing was written");
}

#[test]
fn a_key_ring_of_another_region() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().to_str().expect("a path");
    let file = |name: &str| folder.path().join(name);
    let made = binary()
        .args(["keyring", "new", "--region", "eu", "--nodes"])
        .arg(file("keyring.json"))
        .arg("--control")
        .arg(file("keyring.public.json"))
        .status()
        .expect("the binary runs");
    assert!(made.success());
    let said = refused(&["dev", "--data-dir", data], "", &[]);
    assert!(said.contains("keyring.json"), "{said}");
    assert!(said.contains("set `region` to `eu`"), "{said}");
    assert!(said.contains("`keys.ring_file`"), "{said}");
}

#[test]
fn a_log_filter_that_nobody_means() {
    // Where the filter passes, the taken port ends the start.
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("an address").to_string();
    let said = |filter: &str| {
        let filter = [("REQUESTROCKET_LOG__FILTER", filter)];
        refused(&["dev", "--gateway", &address], "", &filter)
    };
    for filter in ["warning", "infoo", "info,nodee", "x==", "node=loud"] {
        let said = said(filter);
        assert!(
            said.contains(&format!("`log.filter` is `{filter}`")),
            "{said}"
        );
        assert!(
            said.contains("off, error, warn, info, debug, trace"),
            "{said}"
        );
        assert!(said.matches("invalid").count() < 2, "told once: {said}");
    }
    for filter in ["warn", "INFO", "info,node=debug", "warn,control::api=trace"] {
        let said = said(filter);
        assert!(said.contains(&address), "{filter} is a filter: {said}");
    }
}

#[test]
fn a_wrong_key_names_the_nearest_right_one() {
    let said = refused(&["standalone"], "[gateway]\nkeep_alive = 5", &[]);
    assert!(said.contains("gateway.keep_alive"), "{said}");
    assert!(said.contains("keep_alive_ms"), "{said}");
    let said = refused(
        &["standalone"],
        "",
        &[("REQUESTROCKET_GATEWAY__WORKER", "2")],
    );
    assert!(said.contains("workers"), "{said}");
}

#[test]
fn a_value_of_a_wrong_type() {
    let said = refused(&["standalone"], "[gateway]\nkeep_alive_ms = \"soon\"", &[]);
    assert!(said.contains("keep_alive_ms"), "{said}");
    assert!(said.contains("soon"), "{said}");
}

#[test]
fn a_file_that_is_not_there() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("none.toml");
    let output = binary()
        .args(["standalone", "--config"])
        .arg(&file)
        .output()
        .expect("the binary runs");
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("none.toml"), "{said}");
}

#[test]
fn an_admin_token_that_is_too_short() {
    let short = ("REQUESTROCKET_ADMIN_TOKEN", "short");
    let said = refused(&["dev"], "", &[short]);
    assert!(said.contains("32 characters"), "{said}");
    assert!(!said.contains("short;"), "a token is not shown: {said}");
    let missing = ("REQUESTROCKET_ADMIN_TOKEN_FILE", "/none/token");
    assert!(refused(&["dev"], "", &[missing]).contains("/none/token"));
}

#[test]
fn a_control_address_that_others_reach_without_tls() {
    let open = ("REQUESTROCKET_CONTROL__LISTEN", "0.0.0.0:0");
    let said = refused(&["standalone"], "", &[open]);
    assert!(said.contains("--insecure-control"), "{said}");
    let said = refused(&["dev", "--control", "0.0.0.0:0"], "", &[]);
    assert!(
        said.contains("--insecure-control of `standalone`"),
        "{said}"
    );
}

#[test]
fn a_damaged_key_ring() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("keyring.json"), "{").expect("a file");
    let data = folder.path().to_str().expect("a path");
    let said = refused(&["dev", "--data-dir", data], "", &[]);
    assert!(said.contains("keyring.json"), "{said}");
}

#[test]
fn a_first_token_that_was_deleted_comes_back_only_where_nobody_else_has_one() {
    let mut gateway = Gateway::start();
    let tokens = |gateway: &Gateway| -> Vec<String> {
        let listed = gateway.api_of("system", "GET", "/tokens", None).json();
        let items = listed["items"].as_array().expect("a list").iter();
        items
            .map(|item| item["name"].as_str().expect("a name").to_owned())
            .collect()
    };
    let made = gateway.api_of(
        "system",
        "POST",
        "/tokens",
        Some(&json!({"name": "ours", "role": "owner"})),
    );
    assert_eq!(made.status(), 201, "{}", made.text());
    let made = made.json();
    let own = made["secret"]["token"]
        .as_str()
        .expect("a token")
        .to_owned();
    let listed = gateway.api_of("system", "GET", "/tokens", None).json();
    let items = listed["items"].as_array().expect("a list");
    let first = items.iter().find(|item| item["name"] == "bootstrap");
    let id = first.expect("the first token")["id"]
        .as_str()
        .expect("an id");
    gateway.token.clone_from(&own);
    let path = format!("/tokens/{id}");
    let gone = gateway.api_of("system", "DELETE", &path, None);
    assert_eq!(gone.status(), 204, "{}", gone.text());
    let (_, folder) = gateway.stop();
    let mut gateway = Gateway::inside(folder, &Start::default());
    assert_eq!(gateway.ready["admin_token"], serde_json::Value::Null);
    gateway.token = own;
    assert_eq!(tokens(&gateway), ["ours"]);
    // With the last one gone nobody could get in any more: a start lets the operator in again.
    let path = format!("/tokens/{}", made["id"].as_str().expect("an id"));
    let gone = gateway.api_of("system", "DELETE", &path, None);
    assert_eq!(gone.status(), 204, "{}", gone.text());
    let (_, folder) = gateway.stop();
    let gateway = Gateway::inside(folder, &Start::default());
    assert_eq!(tokens(&gateway), ["bootstrap"]);
}

/// What a service writes at each start is kept for long by its log.
#[test]
fn a_service_tells_the_token_that_it_makes_once_and_keeps_it_in_a_file() {
    let start = Start {
        mode: "standalone",
        ..Start::default()
    };
    let gateway = Gateway::with(start.clone());
    let made = gateway.ready["admin_token"]
        .as_str()
        .expect("a token")
        .to_owned();
    let file = gateway.data_dir().join("admin-token");
    assert_eq!(gateway.ready["admin_token_file"], json!(file));
    assert_eq!(std::fs::read_to_string(&file).expect("a file"), made);
    let (_, folder) = gateway.stop();
    let gateway = Gateway::inside(folder, &start);
    assert_eq!(gateway.ready["admin_token"], json!(null));
    assert_eq!(gateway.ready["admin_token_file"], json!(file));
    let status = |gateway: &Gateway, token: &str| {
        let answer = gateway.control_call("GET", "/api/v1/me", Some(token), None);
        answer.status()
    };
    assert_eq!(status(&gateway, &made), 200);
    let (_, folder) = gateway.stop();
    let given = "a-token-that-an-operator-chose-0123456789";
    let variable = ("REQUESTROCKET_ADMIN_TOKEN".to_owned(), given.to_owned());
    let start = Start {
        environment: vec![variable],
        ..start
    };
    let gateway = Gateway::inside(folder, &start);
    assert_eq!(gateway.ready["admin_token"], json!(null));
    assert_eq!(gateway.ready["admin_token_file"], json!(null));
    assert_eq!(status(&gateway, given), 200);
}

/// Nobody could make it again: it is kept before anything further can fail.
#[test]
fn a_first_start_that_fails_later_leaves_its_token_in_the_file() {
    let cluster = Cluster::new();
    let start = cluster.control_start();
    let folder = tempfile::tempdir().expect("a folder");
    let faulty = start.config.replace("127.0.0.1.pem", "none.pem");
    let (_, said) = cluster::refused("control", &faulty, folder.path());
    assert!(said.contains("none.pem"), "{said}");
    let control = Gateway::inside(folder, &start);
    let me = control.control_call("GET", "/api/v1/me", Some(&control.token), None);
    assert_eq!(me.status(), 200, "{}", control.ready);
}

#[test]
fn a_clickhouse_that_cannot_be() {
    // Of the limits of the machine that tests run on.
    let quiet = [("REQUESTROCKET_LOG__FILTER", "error")];
    let table =
        |keys: &str| format!("[records]\nstore = \"clickhouse\"\n[records.clickhouse]\n{keys}");
    let url = "url = \"https://c:8443\"\n";
    for (keys, said) in [
        (String::new(), "needs `records.clickhouse.url`"),
        ("url = \"clickhouse\"".into(), "is no URL"),
        ("url = \"tcp://c:9000\"".into(), "must begin with https://"),
        (
            "url = \"https://u:hush-7d1@c:8443\"".into(),
            "holds no user",
        ),
        (format!("{url}database = \"a-b\""), "`a-b` is no name"),
        (
            format!("{url}password_file = \"/none\""),
            "`records.clickhouse.password_file` /none",
        ),
        (
            format!("{url}ca_file = \"/none\""),
            "`records.clickhouse.ca_file` /none",
        ),
        (
            format!("{url}ca_file = \"config.toml\""),
            "no certificate in it",
        ),
        (
            "url = \"http://c\"\nca_file = \"x\"".into(),
            "counts only with an `https` URL",
        ),
        (format!("{url}gather_ms = 60000"), "5000 at most"),
        (
            format!("{url}user_name = \"x\""),
            "records.clickhouse.user_name",
        ),
    ] {
        let found = refused(&["standalone"], &table(&keys), &quiet);
        assert!(found.contains(said), "{keys}: {found}");
        assert!(!found.contains("hush-7d1"), "{found}");
    }
    let days = "[records]\nstore = \"clickhouse\"\nretention_days = 0\n[records.clickhouse]\n";
    assert!(refused(&["standalone"], &format!("{days}{url}"), &quiet).contains("retention_days"));
    let unused = refused(
        &["standalone"],
        "[records.clickhouse]\nurl = \"http://c\"",
        &quiet,
    );
    assert!(unused.contains("records.store"), "{unused}");
    let other = refused(&["standalone"], "[records]\nstore = \"oracle\"", &[]);
    assert!(other.contains("oracle"), "{other}");
}

/// Starts the process, asks it to stop as soon as it has said that it serves, and ends as it does:
/// all by what the shell has built in, since another process in between would be too slow.
const STOPPED_AT_ONCE: &str = r#"
    mkfifo said
    "$0" dev --gateway 127.0.0.1:0 --control 127.0.0.1:0 --data-dir data --output json >said &
    read -r line <said
    kill -"$1" $!
    wait $!
"#;

#[test]
fn a_stop_right_after_the_ready_line() {
    for signal in ["TERM", "INT"].repeat(8) {
        let folder = tempfile::tempdir().expect("a folder");
        let binary = binary();
        let mut shell = Command::new("bash");
        for (name, value) in binary.get_envs() {
            match value {
                Some(value) => shell.env(name, value),
                None => shell.env_remove(name),
            };
        }
        let output = shell
            .args(["-c", STOPPED_AT_ONCE])
            .arg(binary.get_program())
            .arg(signal)
            .current_dir(folder.path())
            .output()
            .expect("the shell runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{signal}: {said}");
    }
}

/// Who has organisations of its own needs none that is called `default`.
#[test]
fn a_process_starts_where_the_first_organisation_was_deleted() {
    let start = Start {
        mode: "standalone",
        ..Start::default()
    };
    let gateway = Gateway::with(start.clone());
    gateway.organisation("acme");
    let token = gateway.token.clone();
    let of = |gateway: &Gateway, method: &str, path: &str| {
        let answer = gateway.control_call(method, path, Some(&token), None);
        answer.status()
    };
    assert_eq!(of(&gateway, "DELETE", "/api/v1/orgs/default"), 204);
    let (status, folder) = gateway.stop();
    assert_eq!(status.code(), Some(0));
    let gateway = Gateway::inside(folder, &start);
    assert_eq!(of(&gateway, "GET", "/api/v1/orgs/acme"), 200);
    assert_eq!(of(&gateway, "GET", "/api/v1/orgs/default"), 404);
    let (_, folder) = gateway.stop();
    // `dev` offers its demo there, and says why it does not.
    let gateway = Gateway::inside(folder, &Start::default());
    assert!(gateway.ready["demo"].is_null(), "{}", gateway.ready);
    assert_eq!(of(&gateway, "GET", "/api/v1/orgs/acme"), 200);
}
