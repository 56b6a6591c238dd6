//! Secrets that only some regions may have: where their bytes are, and where they are not.

use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD_NO_PAD;
use proto::seal::SealError;
use serde_json::{Value, json};

use crate::harness::gateway::{Gateway, TARGET_SECRET};
use crate::harness::http::{Message, Request};
use crate::harness::packed;
use crate::harness::upstream::Upstream;
use crate::harness::wait_for;
use crate::pinned::Pair;
use crate::regions::{Region, open, sealed};

/// Long enough to be nowhere by chance; its length is a multiple of three, so that base64 of text
/// that ends with it can be found.
pub const CANARY: &str = "canary-7d1f0a9be35c4e21f0";

/// The forms in which it could lie somewhere.
fn forms() -> [Vec<u8>; 3] {
    let hex: String = CANARY.bytes().map(|byte| format!("{byte:02x}")).collect();
    let base64 = BASE64_STANDARD_NO_PAD.encode(CANARY);
    // The last letters depend on what follows.
    let base64 = base64[..base64.len() - 2].to_owned();
    [
        CANARY.as_bytes().to_vec(),
        hex.into_bytes(),
        base64.into_bytes(),
    ]
}

pub fn holds(bytes: &[u8], part: &[u8]) -> bool {
    // As text, which the standard library looks through much faster.
    let part = str::from_utf8(part).expect("a text");
    String::from_utf8_lossy(bytes).contains(part)
}

/// Neither the bytes nor what is packed in them hold the canary.
pub fn is_free_of(bytes: &[u8], place: &str) {
    for bytes in packed::unpacked(bytes) {
        is_free(&bytes, place);
    }
}

fn is_free(bytes: &[u8], place: &str) {
    for form in forms() {
        assert!(!holds(bytes, &form), "the canary is in {place}");
    }
}

pub fn folder_is_free(folder: &Path) {
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        match path.is_dir() {
            true => folder_is_free(&path),
            false => {
                for bytes in packed::unpacked_file(&path) {
                    is_free(&bytes, &path.to_string_lossy());
                }
            }
        }
    }
}

/// Whether a process has these bytes in its memory.
pub fn has_in_memory(process: &Gateway, part: &[u8]) -> bool {
    let proc = Path::new("/proc").join(process.id().to_string());
    let maps = std::fs::read_to_string(proc.join("maps")).expect("its maps");
    let mut memory = std::fs::File::open(proc.join("mem")).expect("its memory");
    let mut found = false;
    for line in maps.lines().filter(|line| line.contains(" rw")) {
        let range = line
            .split(' ')
            .next()
            .and_then(|range| range.split_once('-'));
        let (from, to) = range.expect("a range");
        let at = |text| u64::from_str_radix(text, 16).expect("an address");
        let (from, to) = (at(from), at(to));
        let mut bytes = Vec::new();
        memory.seek(SeekFrom::Start(from)).expect("an address");
        // Parts of it may not be there.
        let _ = (&mut memory).take(to - from).read_to_end(&mut bytes);
        found |= holds(&bytes, part);
    }
    found
}

fn is_sealed(region: &Region, credential: &str, of: &str) -> bool {
    let keys = sealed(&region.dump(), of);
    keys.iter().any(|(key, _)| key.contains(credential))
}

pub fn code_of(answer: &Message) -> (u16, Value, Value) {
    let error = answer.json()["errors"][0].clone();
    (
        answer.status(),
        error["pointer"].clone(),
        error["code"].clone(),
    )
}

pub fn id_of(made: &Value) -> String {
    made["id"].as_str().expect("an id").to_owned()
}

/// schedules.md, part one, 4: a secret of eu alone is stored at home, which must serve it to eu,
/// and can be read there by nobody; a proxy lists no region that its credential is not for.
#[test]
fn a_secret_of_one_region_is_nowhere_else() {
    let pair = Pair::new();
    let upstream = Upstream::json("{}");
    let target = json!({"base_url": upstream.url(), "allow_http": true,
                        "allow_networks": ["127.0.0.0/8"]});
    let target = pair.us.create("/targets", target);
    let secret = json!({"kind": "target", "auth_type": "bearer", "secret": {"token": CANARY},
                        "hosts": [upstream.url()], "regions": ["eu"]});
    let secret = pair.us.create("/credentials", secret);
    assert_eq!(secret["regions"], json!(["eu"]));
    let caller = json!({"kind": "proxy", "auth_type": "api_key"});
    let caller = pair.us.create("/credentials", caller);
    let mut proxy = json!({"target_id": target["id"], "target_credential_id": secret["id"],
                           "proxy_credential_ids": [caller["id"]]});
    let refused = pair.us.api("POST", "/proxies", Some(&proxy));
    let expected = (422, json!("/regions"), json!("credential-region"));
    assert_eq!(code_of(&refused), expected, "us would need it");
    proxy["regions"] = json!(["eu"]);
    proxy["cross_region"] = json!("forward");
    let proxy = id_of(&pair.us.create("/proxies", proxy));
    let key = caller["secret"]["key"].as_str().expect("a key");
    let request = Request::new("GET", &format!("/api/{proxy}/"));
    let request = request.field("authorization", &format!("Bearer {key}"));
    for node in [&pair.nodes[1], &pair.nodes[0]] {
        wait_for("the proxy", || {
            (request.send(&node.url).status() == 200).then_some(())
        });
        let injected = format!("Bearer {CANARY}");
        assert_eq!(
            upstream.last().field("authorization"),
            Some(injected.as_str())
        );
    }
    pair.two.wait_equal();
    let told = pair.eu.command(&["regions"]);
    let told = String::from_utf8_lossy(&told.stdout).into_owned();
    assert!(told.contains("is kept in every region"), "{told}");

    // What is sealed for eu is in both stores, and opens with the keys of eu's nodes alone.
    let id = id_of(&secret);
    for region in [&pair.two.us, &pair.two.eu] {
        assert!(is_sealed(region, &id, "eu") && !is_sealed(region, &id, "us"));
        let value = &sealed(&region.dump(), "eu")[0];
        let opened = open(&pair.two.ring("eu"), value, &upstream.url());
        assert_eq!(opened.as_deref(), Ok(CANARY));
        let refused = open(&pair.two.ring("us"), value, &upstream.url());
        assert!(matches!(refused, Err(SealError::UnknownKey { .. })));
    }
    // Its bytes are in no store, no file, no export and no record.
    for region in [&pair.two.us, &pair.two.eu] {
        for (key, value) in region.dump() {
            is_free_of(&value, &key);
        }
    }
    let controls = [&pair.us, &pair.eu];
    for process in controls.into_iter().chain(&pair.nodes) {
        folder_is_free(process.data_dir().parent().expect("its folder"));
    }
    for control in controls {
        for path in [
            "/config",
            "/records?limit=100",
            "/versions?limit=100",
            "/audit",
        ] {
            let answer = control.api("GET", path, None);
            assert_eq!(answer.status(), 200, "{path}: {}", answer.text());
            is_free_of(&answer.body, path);
        }
    }
    // eu's node has it, as a node must; that of us never had.
    assert!(has_in_memory(&pair.nodes[1], CANARY.as_bytes()));
    assert!(!has_in_memory(&pair.nodes[0], CANARY.as_bytes()));
}

/// schedules.md, part one, 4, of narrowing, and part two, 18, of widening.
#[test]
fn a_secret_leaves_a_region_at_once_and_comes_to_none_that_nobody_vouches_for() {
    let pair = Pair::new();
    let upstream = Upstream::json("{}");
    let proxy = pair.us.proxy(&upstream.url());
    let (path, id) = (
        format!("/credentials/{}", proxy.target_credential),
        proxy.target_credential.clone(),
    );
    let holders = || {
        let held = |region: &Region, of| is_sealed(region, &id, of);
        let (us, eu) = (&pair.two.us, &pair.two.eu);
        let pairs = [("us", us), ("us", eu), ("eu", us), ("eu", eu)];
        pairs.map(|(of, region)| held(region, of))
    };
    wait_for("what is sealed in both regions", || {
        (holders() == [true; 4]).then_some(())
    });
    let eu = json!({"regions": ["eu"]});
    let refused = pair.us.api("PATCH", &path, Some(&eu));
    let expected = (422, json!("/regions"), json!("credential-region"));
    assert_eq!(code_of(&refused), expected, "a proxy needs it in us");
    pair.us.patch(
        &format!("/proxies/{}", proxy.id),
        json!({"regions": ["eu"]}),
    );
    pair.us.patch(&path, eu);
    wait_for("the end of what was sealed for us", || {
        (holders() == [false, false, true, true]).then_some(())
    });
    wait_for("the proxy in eu", || {
        let answer = proxy.request("GET", "/").send(&pair.nodes[1].url);
        (answer.status() == 200).then_some(())
    });

    pair.us.patch(&path, json!({"regions": ["eu", "us"]}));
    let shown = pair.us.get(&path);
    assert_eq!(shown["unsealed_in"], json!(["us"]), "{shown}");
    assert_eq!(holders(), [false, false, true, true]);
    // Where it is sealed it stays, until another region has it.
    let proxy_of = format!("/proxies/{}", proxy.id);
    let all = pair.us.patch(&proxy_of, json!({"regions": ["us"]}));
    assert_eq!(all["regions"], json!(["us"]));
    let refused = pair
        .us
        .api("PATCH", &path, Some(&json!({"regions": ["us"]})));
    let expected = (422, json!("/regions"), json!("secret-required"));
    assert_eq!(code_of(&refused), expected);
    pair.us.patch(&proxy_of, json!({"regions": ["eu"]}));
    let both = json!({"regions": ["eu", "us"], "secret": {"token": TARGET_SECRET}});
    pair.us.patch(&path, both);
    wait_for("what is sealed in both regions", || {
        (holders() == [true; 4]).then_some(())
    });
    // No region that does not exist, and none for what callers present.
    let mars = pair
        .us
        .api("PATCH", &path, Some(&json!({"regions": ["mars"]})));
    assert_eq!(mars.status(), 422, "{}", mars.text());
    let caller = format!("/credentials/{}", proxy.proxy_credential);
    let caller = pair
        .us
        .api("PATCH", &caller, Some(&json!({"regions": ["eu"]})));
    assert_eq!(
        code_of(&caller),
        (422, json!("/regions"), json!("not-applicable"))
    );
}
