//! What commands say of arguments that cannot be meant.

use crate::harness::gateway::{Gateway, binary};

/// What a command that fails says; it ends with this code.
fn said(gateway: &Gateway, arguments: &[&str], code: i32) -> String {
    let output = gateway.command(arguments);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
    said
}

#[test]
fn an_argument_that_would_not_count_is_refused() {
    let gateway = Gateway::start();
    for (arguments, words) in [
        (["--limit", "5"], "--limit and --cursor are of a page"),
        (["--cursor", "x"], "--limit and --cursor are of a page"),
    ] {
        let arguments = [&["records", "--output", "ndjson"][..], &arguments].concat();
        let said = said(&gateway, &arguments, 1);
        assert!(said.contains(words), "{said}");
    }
    let pages = said(&gateway, &["meters", "--limit", "0"], 2);
    assert!(pages.contains("--limit"), "{pages}");
    let cursor = said(&gateway, &["meters", "--cursor", "x"], 2);
    assert!(cursor.contains("--cursor"), "{cursor}");
    let ca = said(&gateway, &["list", "targets", "--ca-file", "none.pem"], 1);
    assert!(ca.contains("--ca-file"), "{ca}");
    // Units of earlier releases may have it: it is not what is refused.
    let mut node = binary();
    let node = node.args(["node", "--insecure-control"]).output();
    let node = node.expect("the binary runs").stderr;
    let node = String::from_utf8_lossy(&node).into_owned();
    assert!(node.contains("`store.kind"), "{node}");
    let help = binary().args(["node", "--help"]).output();
    let help = help.expect("the binary runs").stdout;
    assert!(!String::from_utf8_lossy(&help).contains("insecure-control"));
}

#[test]
fn an_address_or_an_organisation_that_cannot_be_meant_is_named() {
    let gateway = Gateway::start();
    let listed = |control: &str| {
        let mut command = binary();
        command
            .args(["list", "targets", "--control", control])
            .env("REQUESTROCKET_TOKEN", &gateway.token);
        let output = command.output().expect("the binary runs");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.success(), said)
    };
    // What was copied from a call.
    let (works, said_of_it) = listed(&format!("{}/api/v1", gateway.control));
    assert!(works, "{said_of_it}");
    let plain = gateway.control.trim_start_matches("http://");
    for control in [plain, "http://127.0.0.1:1", &gateway.url] {
        let (works, said) = listed(control);
        assert!(!works, "{control}");
        assert!(said.contains("REQUESTROCKET_CONTROL_URL"), "{said}");
    }
    let org = said(&gateway, &["nodes", "--org", "nosuch"], 1);
    assert!(org.contains("`org` names no organisation"), "{org}");
    assert!(gateway.command(&["nodes"]).status.success());
}
