//! `requestrocket config check`: what a start would say of a file of settings, without one.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::harness::gateway::{Gateway, Start, binary};

/// Checks a file for a role; gives the exit code, what was answered and what was said.
fn checked(file: &Path, role: &str, options: &[&str]) -> (Option<i32>, String, String) {
    let output = binary()
        .args(["config", "check", "--role", role])
        .args(options)
        .arg(file)
        .output()
        .expect("the binary runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, said) = (text(&output.stdout), text(&output.stderr));
    (output.status.code(), out, said)
}

/// A file with these settings in a folder, and the data folder that it names.
fn file(folder: &Path, config: &str) -> (PathBuf, PathBuf) {
    let (file, data) = (folder.join("checked.toml"), folder.join("data"));
    std::fs::write(&file, format!("data_dir = {data:?}\n{config}")).expect("a file");
    (file, data)
}

#[test]
fn what_a_start_would_refuse_is_said_and_nothing_is_made() {
    let folder = tempfile::tempdir().expect("a folder");
    let etcd = "[store]\nkind = \"etcd\"\nendpoints = [\"http://127.0.0.1:1\"]\n";
    for (role, config, expected) in [
        ("standalone", "", ""),
        ("dev", "", ""),
        (
            "standalone",
            "[gatway]\nlisten = \"127.0.0.1:1\"",
            "did you mean `gateway`",
        ),
        (
            "standalone",
            "[gateway]\nkeep_alive_ms = \"soon\"",
            "keep_alive_ms",
        ),
        (
            "standalone",
            "[control]\nlisten = \"0.0.0.0:8081\"",
            "--insecure-control",
        ),
        (
            "standalone",
            "[control]\nadmin_token = \"short\"",
            "32 characters",
        ),
        (
            "standalone",
            "[gateway.tls]\ncert_file = \"/none\"",
            "`gateway.tls.key_file` is missing",
        ),
        (
            "standalone",
            "[records]\nstore = \"clickhouse\"",
            "`records.clickhouse.url`",
        ),
        ("node", "", "store.kind"),
        ("node", etcd, "keyring new"),
        ("control", etcd, "keyring new"),
    ] {
        let (file, data) = file(folder.path(), config);
        let (code, out, said) = checked(&file, role, &[]);
        match expected {
            "" => {
                assert_eq!((code, said.as_str()), (Some(0), ""), "{role} {config}");
                assert!(out.contains(&format!("`requestrocket {role}`")), "{out}");
            }
            expected => {
                assert_eq!(code, Some(2), "{role} {config}: {out}");
                assert!(said.contains(expected), "{role} {config}: {said}");
            }
        }
        assert!(!data.exists(), "{role} {config}: nothing is made");
    }
    let none = folder.path().join("none.toml");
    assert_eq!(checked(&none, "standalone", &[]).0, Some(2));
}

#[test]
fn the_settings_of_processes_that_run_are_fine() {
    let gateway = Gateway::with(Start {
        mode: "standalone",
        ..Start::default()
    });
    let config = gateway.data_dir().with_file_name("config.toml");
    let (code, out, said) = checked(&config, "standalone", &["--output", "json"]);
    assert_eq!(code, Some(0), "{said}");
    let told: Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!(told, json!({"file": config, "role": "standalone"}));

    let cluster = Cluster::new();
    let folder = tempfile::tempdir().expect("a folder");
    for (role, start) in [
        ("control", cluster.control_start()),
        ("node", cluster.node_start("gw-1", "gw-1")),
    ] {
        let (fine, _) = file(folder.path(), &start.config);
        let (code, _, said) = checked(&fine, role, &[]);
        assert_eq!(code, Some(0), "{role}: {said}");
        let (faulty, _) = file(folder.path(), &start.config.replace("ca.pem", "none.pem"));
        let (code, _, said) = checked(&faulty, role, &[]);
        assert_eq!(code, Some(2), "{role}: {said}");
        assert!(said.contains("none.pem"), "{role}: {said}");
    }
}
