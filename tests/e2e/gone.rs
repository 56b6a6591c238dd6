//! Files of the data folder that are gone while others that belong to them are there.

use super::start::refused;
use crate::harness::gateway::{Gateway, Start, binary};
use crate::harness::http::Request;

#[test]
fn a_key_ring_that_is_gone_is_not_made_anew_over_a_store_that_was_filled_with_it() {
    let gateway = Gateway::start();
    let (path, key) = gateway.demo();
    let data = gateway.data_dir();
    let (_, folder) = gateway.stop();
    let ring = data.join("keyring.json");
    let kept = std::fs::read(&ring).expect("the key ring");
    std::fs::remove_file(&ring).expect("a file");
    let said = refused(
        &["dev", "--data-dir", data.to_str().expect("a path")],
        "",
        &[],
    );
    assert!(
        said.contains("keyring.json") && said.contains("store.sqlite was filled with one"),
        "{said}"
    );
    assert!(!ring.exists(), "nothing is made");
    std::fs::write(&ring, kept).expect("a file");
    let gateway = Gateway::inside(folder, &Start::default());
    let bearer = format!("Bearer {key}");
    let answer = Request::new("GET", &path).field("authorization", &bearer);
    assert_eq!(answer.send(&gateway.url).status(), 200);
}

#[test]
fn a_store_that_is_gone_is_not_made_anew_beside_its_archive() {
    let gateway = Gateway::start();
    let (path, key) = gateway.demo();
    let data = gateway.data_dir();
    let (_, folder) = gateway.stop();
    let (store, kept) = (data.join("store.sqlite"), data.join("kept.sqlite"));
    std::fs::rename(&store, &kept).expect("the store");
    let arguments = ["dev", "--data-dir", data.to_str().expect("a path")];
    // Of the limits of the machine that tests run on.
    let quiet = [("REQUESTROCKET_LOG__FILTER", "error")];
    for is_there in [false, true] {
        if is_there {
            std::fs::File::create(&store).expect("an empty file");
        }
        let said = refused(&arguments, "", &quiet);
        assert!(
            said.contains("store.sqlite is gone or empty") && said.contains("archive.sqlite"),
            "{said}"
        );
        assert_eq!(store.exists(), is_there, "nothing is made");
    }
    // Nor a key ring, which would open nothing of the store that is put back.
    let (ring, kept_ring) = (data.join("keyring.json"), data.join("ring.json"));
    std::fs::rename(&ring, &kept_ring).expect("the key ring");
    refused(&arguments, "", &quiet);
    assert!(!ring.exists());
    std::fs::rename(&kept_ring, &ring).expect("the key ring");
    let restored = binary()
        .arg("restore")
        .arg(&kept)
        .arg("--data-dir")
        .arg(&data)
        .output()
        .expect("the binary runs");
    let said = String::from_utf8_lossy(&restored.stdout).into_owned();
    assert!(restored.status.success(), "{restored:?}");
    assert!(said.contains("store.sqlite is the backup now"), "{said}");
    assert!(data.join("store.sqlite.aside.1").exists(), "the empty one");
    let gateway = Gateway::inside(folder, &Start::default());
    let bearer = format!("Bearer {key}");
    let answer = Request::new("GET", &path).field("authorization", &bearer);
    assert_eq!(answer.send(&gateway.url).status(), 200);
}
