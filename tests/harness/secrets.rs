//! Looks for secrets, in every form in which they could be written, in what was written.
#![allow(dead_code, reason = "each test program uses a part of it")]

use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::Value;

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

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack
        .windows(needle.len())
        .any(|window| window == needle)
}

/// Nothing of what was written holds a secret in any form.
pub fn check(place: &str, written: &[u8], secrets: &[Secret]) {
    for (secret, forms) in secrets {
        let found = forms.iter().find(|form| contains(written, form));
        assert!(
            found.is_none(),
            "{place} holds {secret} as {:?}",
            found.map(|form| String::from_utf8_lossy(form))
        );
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
            let bytes = std::fs::read(&path).expect("a file");
            check(&path.display().to_string(), &bytes, secrets);
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
