//! A rollback past the rotation of a caller's key: the old key stays refused, live and after a
//! start from a copy of the configuration that was made before the rotation.

use std::fs;
use std::path::Path;

use serde_json::json;

use crate::cluster::{Cluster, wait_known, wait_status};
use crate::harness::gateway::{Gateway, Proxy};
use crate::harness::http::Request;
use crate::harness::upstream::Upstream;

/// The status of a call with the key that a proxy was made with.
fn status(node: &Gateway, proxy: &Proxy) -> u16 {
    proxy.request("GET", "/").send(&node.url).status()
}

/// Starts the node without etcd on these copies; `other` was never rotated, `rotated` was.
fn start_on(
    (cluster, folder): (&Cluster, std::sync::Arc<tempfile::TempDir>),
    copies: impl FnOnce(&Path),
    (other, rotated): (&Proxy, &Proxy),
) -> std::sync::Arc<tempfile::TempDir> {
    copies(&folder.path().join("data"));
    let node = Gateway::inside(folder, &cluster.node_start("gw-1", "gw-1"));
    assert_eq!(status(&node, other), 200, "it serves from the copy");
    assert_eq!(status(&node, rotated), 401, "the old key stays refused");
    node.kill()
}

#[test]
fn a_rollback_past_a_rotation_brings_no_key_back_live_or_from_an_earlier_copy() {
    let mut cluster = Cluster::new();
    let control = Gateway::with(cluster.control_start());
    let start = cluster.node_start("gw-1", "gw-1");
    let node = Gateway::with(start.clone());
    let upstream = Upstream::json("{}");
    let (rotated, other) = (
        control.proxy(&upstream.url()),
        control.proxy(&upstream.url()),
    );
    wait_status(&node, &rotated, "GET", 200);
    wait_status(&node, &other, "GET", 200);
    let versions = control.get("/versions?limit=1");
    let before = versions["items"][0]["n"].as_u64().expect("a number");
    // A node that ends in order leaves a copy of what it served last.
    let (ended, folder) = node.stop();
    assert!(ended.success());
    let data = folder.path().join("data");
    let earlier = fs::read(data.join("kept.bin")).expect("a copy");
    let node = Gateway::inside(folder, &start);
    assert_eq!(status(&node, &rotated), 200);

    let path = format!("/credentials/{}/rotate", rotated.proxy_credential);
    let answer = control.api("POST", &path, Some(&json!({"overlap_ms": 0})));
    assert_eq!(answer.status(), 200, "{}", answer.text());
    let key = answer.json()["secret"]["key"]
        .as_str()
        .expect("a key")
        .to_owned();
    wait_status(&node, &rotated, "GET", 401);
    let back = control.api("POST", &format!("/versions/{before}/rollback"), None);
    assert_eq!(back.status(), 200, "{}", back.text());
    wait_known(&control, [&node]);
    assert_eq!(status(&node, &rotated), 401, "the rollback is in effect");
    let with_new = Request::new("GET", &format!("{}/", rotated.path));
    let with_new = with_new.field("authorization", &format!("Bearer {key}"));
    assert_eq!(
        with_new.send(&node.url).status(),
        200,
        "the new key goes on"
    );

    let (ended, folder) = node.stop();
    assert!(ended.success());
    cluster.etcd[0].stop();
    let of = (&other, &rotated);
    let in_place = |data: &Path| fs::write(data.join("kept.bin"), &earlier).expect("a file");
    let folder = start_on((&cluster, folder), in_place, of);
    // And where the copy before is all that can be read.
    let damaged = |data: &Path| {
        fs::write(data.join("kept.bin"), b"damaged").expect("a file");
        fs::write(data.join("kept-previous.bin"), &earlier).expect("a file");
    };
    start_on((&cluster, folder), damaged, of);
}
