//! Looks for secrets, in every form in which they could be written, in what was written.
#![allow(dead_code, reason = "each test program uses a part of it")]

use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::Value;

use super::packed;

/// A secret and its forms.
pub type Secret = (String, Vec<Vec<u8>>);

/// A text in the forms in which it could be written somewhere.
pub fn forms(secret: &str) -> Vec<Vec<u8>> {
    let hexed = hex::encode(secret);
    let json = serde_json::to_string(secret).expect("a text");
    let percent: String = secret.bytes().map(|byte| format!("%{byte:02X}")).collect();
    let mut forms = vec![
        secret.to_owned(),
        hexed.to_uppercase(),
        hexed,
        json.trim_matches('"').to_owned(),
        percent,
    ];
    // In base64 a text looks in one of three ways, by what stands before it; without the ends,
    // which depend on their neighbours.
    for before in ["", "x", "xx"] {
        for engine in [&STANDARD as &dyn Encode, &URL_SAFE_NO_PAD] {
            let text = engine.text(&format!("{before}{secret}"));
            let text = text.trim_end_matches('=');
            forms.push(text[4..text.len() - 4].to_owned());
        }
    }
    forms.into_iter().map(String::into_bytes).collect()
}

trait Encode {
    fn text(&self, text: &str) -> String;
}

impl<E: Engine> Encode for E {
    fn text(&self, text: &str) -> String {
        self.encode(text)
    }
}

/// Nothing of what was written, or is packed in it, holds a secret in any form.
pub fn check(place: &str, written: &[u8], secrets: &[Secret]) {
    for bytes in packed::unpacked(written) {
        check_one(place, &bytes, secrets);
    }
}

/// One pass, whatever the number of secrets: the traces of a cluster's log are many megabytes.
fn check_one(place: &str, written: &[u8], secrets: &[Secret]) {
    let mut starting: Vec<Vec<(&str, &[u8])>> = vec![Vec::new(); 1 << 16];
    let start = |bytes: &[u8]| usize::from(bytes[0]) << 8 | usize::from(bytes[1]);
    for (secret, forms) in secrets {
        for form in forms {
            starting[start(form)].push((secret, form));
        }
    }
    for (at, pair) in written.windows(2).enumerate() {
        for (secret, form) in &starting[start(pair)] {
            assert!(
                !written[at..].starts_with(form),
                "{place} holds {secret} as {:?} behind {:?}",
                String::from_utf8_lossy(form),
                String::from_utf8_lossy(&written[at.saturating_sub(300)..at])
            );
        }
    }
}

/// Every file below a folder but those that are there to hold a secret.
pub fn check_files(folder: &Path, secrets: &[Secret]) {
    const MADE_FOR_SECRETS: [&str; 3] = ["admin-token", "demo.json", "keyring.json"];
    for entry in std::fs::read_dir(folder).expect("a folder").flatten() {
        let path = entry.path();
        let name = entry.file_name().to_string_lossy().into_owned();
        if path.is_dir() {
            check_files(&path, secrets);
        } else if path.is_file() && !MADE_FOR_SECRETS.contains(&name.as_str()) {
            for bytes in packed::unpacked_file(&path) {
                check_one(&path.display().to_string(), &bytes, secrets);
            }
        }
    }
}

/// Private keys and digest keys of the ring: its long texts under names that say so.
pub fn private_parts(value: &Value, name: &str, out: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                private_parts(value, name, out);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| private_parts(item, name, out)),
        // The id of a key stands in what is sealed to it.
        Value::String(text) if text.len() >= 32 && !["public", "id"].contains(&name) => {
            out.push(text.clone());
        }
        _ => {}
    }
}

#[test]
fn a_secret_is_found_wherever_it_stands() {
    let secrets = [("one-secret".to_owned(), forms("one-secret"))];
    let holds = |text: &str| {
        let checked = std::panic::catch_unwind(|| check("a text", text.as_bytes(), &secrets));
        checked.is_err()
    };
    for text in [
        "one-secret",
        "at the end one-secret",
        "6f6e652d736563726574 in hex",
    ] {
        assert!(holds(text), "{text}");
    }
    assert!(!holds("one-secre") && !holds("") && !holds("o"));
    let packed = zstd::bulk::compress(b"a packed one-secret", 3).expect("it is packed");
    let checked = std::panic::catch_unwind(|| check("a frame", &packed, &secrets));
    assert!(checked.is_err(), "in a frame");
}
