//! `requestrocket rotate`: another secret, shown once; the old one ends at once or after an
//! overlap.

use crate::harness::gateway::Gateway;
use crate::harness::upstream::Upstream;
use crate::harness::wait_for;
use crate::objects::{done, refused, told};

#[test]
fn a_callers_key_is_replaced_with_an_overlap_or_at_once() {
    let gateway = Gateway::start();
    let upstream = Upstream::json("{}");
    let mut proxy = gateway.proxy(&upstream.url());
    let credential = proxy.proxy_credential.clone();
    let said = done(&gateway, &["rotate", &credential, "--overlap", "24h"], "");
    let key = said.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        line.ends_with("(shown only now)")
            .then(|| words[1].to_owned())
    });
    let key = key.expect("a key");
    assert!(
        said.contains("\nthe former one is accepted until "),
        "{said}"
    );
    let old = std::mem::replace(&mut proxy.key, key);
    wait_for("the new key", || {
        (proxy.get("/").status() == 200).then_some(())
    });
    let new = std::mem::replace(&mut proxy.key, old);
    assert_eq!(proxy.get("/").status(), 200, "the old one is accepted too");

    // Without an overlap callers are cut off, so somebody has to say yes.
    let unasked = refused(&gateway, &["rotate", &credential]);
    assert!(unasked.contains("--yes"), "{unasked}");
    let rotated = told(&gateway, &["rotate", &credential, "--yes"], "");
    let newest = rotated["secret"]["key"].as_str().expect("a key").to_owned();
    assert_ne!(newest, new);
    wait_for("the end of the old ones", || {
        (proxy.get("/").status() == 401).then_some(())
    });
    proxy.key = newest;
    assert_eq!(proxy.get("/").status(), 200);
    let given = "a-Given-Key-of-enough-characters-7";
    told(
        &gateway,
        &["rotate", &credential, "--yes", "--secret-stdin"],
        given,
    );
    proxy.key = given.to_owned();
    wait_for("the given key", || {
        (proxy.get("/").status() == 200).then_some(())
    });
    let stale = ["rotate", &credential, "--yes", "--if-version", "1"];
    assert!(refused(&gateway, &stale).contains("read it again"));
}

#[test]
fn a_targets_secret_is_given_and_in_use_at_once() {
    let gateway = Gateway::start();
    let upstream = Upstream::json("{}");
    let proxy = gateway.proxy(&upstream.url());
    let credential = proxy.target_credential.as_str();
    let none = refused(&gateway, &["rotate", credential]);
    assert!(none.contains("--secret-stdin"), "{none}");
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("secret");
    std::fs::write(&file, "another-secret-of-the-target\n").expect("a file");
    let file = file.display().to_string();
    let said = done(
        &gateway,
        &["rotate", credential, "--secret-file", &file],
        "",
    );
    assert!(!said.contains("another-secret"), "{said}");
    wait_for("the new secret", || {
        assert_eq!(proxy.get("/").status(), 200);
        let sent = upstream.last();
        let sent = sent.field("authorization") == Some("Bearer another-secret-of-the-target");
        sent.then_some(())
    });
    let overlap = [
        "rotate",
        credential,
        "--secret-file",
        &file,
        "--overlap",
        "1h",
    ];
    assert!(refused(&gateway, &overlap).contains("/overlap_ms"));
    let wrong = gateway.command(&["rotate", credential, "--overlap", "1"]);
    assert_eq!(wrong.status.code(), Some(2), "{wrong:?}");
    let missing = ["rotate", credential, "--secret-file", "/nowhere"];
    assert!(refused(&gateway, &missing).contains("/nowhere"));
    let near = refused(&gateway, &["rotate", "nobody"]);
    assert!(
        near.contains("no credential of organisation default"),
        "{near}"
    );
}
