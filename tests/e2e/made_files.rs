//! Files that commands make, keys and certificates: never one over another, and what was
//! interrupted or lost in part can be made whole.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

use crate::harness::gateway::binary;

/// Runs a command of the binary in a folder.
fn run(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = binary();
    let output = command.args(arguments).current_dir(folder).output();
    output.expect("the binary runs")
}

/// Runs one that does what it is for.
fn done(folder: &Path, arguments: &[&str]) {
    let output = run(folder, arguments);
    assert!(output.status.success(), "{arguments:?}: {output:?}");
}

/// Runs one that refuses; gives what it said.
fn refused(folder: &Path, arguments: &[&str]) -> String {
    let output = run(folder, arguments);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
    said
}

/// The names of the files in a folder.
fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("a folder");
    let entries = entries.map(|entry| entry.expect("an entry").file_name());
    let names = entries.map(|name| name.to_string_lossy().into_owned());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

#[test]
fn the_two_files_of_a_key_ring_are_two() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    for (nodes, control) in [("ring", "ring"), ("./ring", "ring"), ("ring", "./ring")] {
        let said = refused(
            folder,
            &["keyring", "new", "--nodes", nodes, "--control", control],
        );
        assert!(said.contains("the file for nodes too"), "{said}");
        assert_eq!(names(folder), [""; 0], "the next try finds the place free");
    }
}

#[test]
fn a_key_ring_that_was_made_in_part_can_be_made_whole() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let new = |control: &str| {
        ["keyring", "new", "--nodes", "nodes", "--control", control].map(str::to_owned)
    };
    let words = |arguments: &[String]| {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        run(folder, &arguments)
    };
    assert_eq!(words(&new("none/control")).status.code(), Some(2));
    assert_eq!(names(folder), [""; 0], "nothing is left in its way");
    assert!(words(&new("control")).status.success());
    let public = fs::read(folder.join("control")).expect("a file");
    fs::remove_file(folder.join("control")).expect("a file");
    let said = words(&new("control"));
    assert_eq!(said.status.code(), Some(2), "secrets may be sealed to it");
    let said = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(said.contains("requestrocket keyring public"), "{said}");
    let anew = [
        "keyring",
        "public",
        "--nodes",
        "nodes",
        "--control",
        "control",
    ];
    done(folder, &anew);
    assert_eq!(fs::read(folder.join("control")).expect("a file"), public);
    assert!(refused(folder, &anew).contains("not overwritten"));

    // What signs belongs into the file too.
    let signer = [
        "keyring",
        "signer",
        "--control",
        "control",
        "--signing",
        "signing",
    ];
    done(folder, &signer);
    done(folder, &signer);
    let public = fs::read(folder.join("control")).expect("a file");
    fs::remove_file(folder.join("control")).expect("a file");
    done(folder, &[&anew[..], &["--signing", "signing"]].concat());
    assert_eq!(fs::read(folder.join("control")).expect("a file"), public);
}

#[test]
fn a_certificate_whose_key_is_there_is_made_of_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let pem = |name: &str| fs::read_to_string(folder.join(name)).expect("a file");
    let remove = |name: &str| fs::remove_file(folder.join(name)).expect("a file");
    let (authority, issue) = (["link", "authority"], ["link", "issue", "gw-1"]);
    done(folder, &authority);
    done(folder, &issue);
    for (command, certificate, key) in [
        (&authority[..], "ca.pem", "ca-key.pem"),
        (&issue[..], "gw-1.pem", "gw-1-key.pem"),
    ] {
        assert!(refused(folder, command).contains("not overwritten"));
        let kept = pem(key);
        remove(certificate);
        done(folder, command);
        assert_eq!(pem(key), kept);
        assert!(pem(certificate).starts_with("-----BEGIN CERTIFICATE-----"));
        // The other way round nobody can tell what is meant.
        remove(key);
        let said = refused(folder, command);
        assert!(said.contains(key), "{said}");
        fs::write(folder.join(key), kept).expect("a file");
    }
}

/// The script makes the keys of `deploy/compose.yaml`; it finds the binary in the path.
#[test]
fn the_keys_of_containers_are_made_whole_after_an_interruption() {
    let folder = tempfile::tempdir().expect("a folder");
    let etc = folder.path().join("etc");
    for part in ["keys", "control", "node"] {
        fs::create_dir_all(etc.join(part)).expect("a folder");
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/compose/make-keys");
    let program = Path::new(env!("CARGO_BIN_EXE_requestrocket"));
    let mut path = program.parent().expect("its folder").as_os_str().to_owned();
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap_or_default());
    let make = || {
        let mut command = Command::new("sh");
        let made = command.arg(&script).arg(&etc).env("PATH", &path).output();
        let made = made.expect("the script runs");
        assert!(made.status.success(), "{made:?}");
    };
    make();
    let all = names(&etc.join("keys"));
    let ring = fs::read(etc.join("keys/keyring.json")).expect("a file");
    for lost in ["keyring.public.json", "ca.pem", "node-1.pem"] {
        fs::remove_file(etc.join("keys").join(lost)).expect("a file");
    }
    make();
    assert_eq!(names(&etc.join("keys")), all);
    assert_eq!(
        fs::read(etc.join("keys/keyring.json")).expect("a file"),
        ring
    );
    let given = ["ca.pem", "keyring.json", "node-1-key.pem", "node-1.pem"];
    assert_eq!(names(&etc.join("node"))[..4], given);
}

/// The script makes what the secrets of `deploy/kubernetes` hold, for each pod.
#[test]
fn the_secrets_of_pods_are_made_for_each_and_not_made_anew() {
    let folder = tempfile::tempdir().expect("a folder");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/kubernetes/make-keys");
    let program = Path::new(env!("CARGO_BIN_EXE_requestrocket"));
    let mut path = program.parent().expect("its folder").as_os_str().to_owned();
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap_or_default());
    let keys = folder.path().join("keys");
    let make = || {
        let made = Command::new("sh")
            .arg(&script)
            .arg(&keys)
            .env("PATH", &path)
            .output();
        let made = made.expect("the script runs");
        assert!(made.status.success(), "{made:?}");
        let read = |name: &str| fs::read(keys.join(name)).expect("a file");
        ["keyring.json", "admin-token", "ca.pem"].map(read)
    };
    let first = make();
    assert_eq!(first[1].len(), 64);
    let pair = |name: &str| [format!("{name}-key.pem"), format!("{name}.pem")];
    let node = [
        "requestrocket-node-0",
        "requestrocket-node-1",
        "requestrocket-node-2",
    ];
    let mut expected = vec!["ca.pem".to_owned(), "keyring.json".into()];
    expected.extend(node.into_iter().flat_map(pair));
    assert_eq!(names(&keys.join("node")), expected);
    let control = [0, 1].map(|at| format!("requestrocket-control-{at}.requestrocket-control"));
    let mut expected = vec![
        "admin-token".to_owned(),
        "ca.pem".into(),
        "keyring.public.json".into(),
    ];
    expected.extend(control.iter().flat_map(|name| pair(name)));
    expected.sort();
    assert_eq!(names(&keys.join("control")), expected);
    fs::remove_file(keys.join("requestrocket-node-1.pem")).expect("a file");
    assert_eq!(make(), first);
    assert!(keys.join("requestrocket-node-1.pem").exists());
    pods_can_start(&keys);
}

/// Every pod could start with its settings and with what was made for it.
fn pods_can_start(keys: &Path) {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/kubernetes/settings.yaml");
    let manifest = fs::read_to_string(manifest).expect("a file");
    let manifest: Value = serde_saphyr::from_str(&manifest).expect("YAML");
    for (role, at) in [("control", 0), ("control", 1), ("node", 0), ("node", 2)] {
        let pod = format!("requestrocket-{role}-{at}");
        let toml = manifest["data"][format!("{role}.toml")].as_str();
        let own = keys.join(role);
        let toml = toml
            .expect("settings")
            .replace("/etc/requestrocket/keys", own.to_str().expect("a path"));
        let file = keys.join(format!("{role}.toml"));
        fs::write(&file, toml).expect("a file");
        let certified = match role {
            "control" => format!("{pod}.requestrocket-control"),
            _ => pod.clone(),
        };
        let mut command = binary();
        command
            .args(["config", "check", "--role", role])
            .arg(&file)
            .env("REQUESTROCKET_DATA_DIR", keys.join("data"))
            .env(
                "REQUESTROCKET_LINK__CERT_FILE",
                own.join(format!("{certified}.pem")),
            )
            .env(
                "REQUESTROCKET_LINK__KEY_FILE",
                own.join(format!("{certified}-key.pem")),
            );
        match role {
            "control" => command.env("REQUESTROCKET_ADMIN_TOKEN_FILE", own.join("admin-token")),
            _ => command.env("REQUESTROCKET_NODE_NAME", &pod).env(
                "REQUESTROCKET_PEERS__ADVERTISE",
                format!("{pod}.requestrocket-node:8083"),
            ),
        };
        let checked = command.output().expect("the binary runs");
        assert!(checked.status.success(), "{pod}: {checked:?}");
    }
}

#[test]
fn a_certificate_is_valid_for_a_day_to_ten_years() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    done(folder, &["link", "authority"]);
    for days in ["0", "3651", "3000000", "18446744073709551615", "-1"] {
        let days = format!("--days={days}");
        let said = refused(folder, &["link", "issue", "gw-1", &days]);
        assert!(said.contains("--days"), "{said}");
    }
    assert_eq!(names(folder), ["ca-key.pem", "ca.pem"]);
    for (name, days) in [("gw-1", "1"), ("gw-2", "3650")] {
        done(folder, &["link", "issue", name, "--days", days]);
    }
}
