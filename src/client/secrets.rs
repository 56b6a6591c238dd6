//! Secrets that commands are given: from standard input or a file, never as an argument, which
//! others on the machine would see.

use std::io::Read;
use std::path::PathBuf;

use anyhow::{Context, bail, ensure};
use clap::Args;
use serde_json::{Value, json};
use zeroize::Zeroizing;

/// Largest secret with all its parts, in bytes.
const SECRET_BYTES_MAX: u64 = 131_072;

/// Where a secret is read from.
#[derive(Debug, Args)]
pub struct SecretArgs {
    /// Read the secret (key, token, user:password, or its fields as JSON) from standard input.
    #[arg(long, conflicts_with = "secret_file")]
    pub secret_stdin: bool,
    /// Read the secret from a file.
    #[arg(long, value_name = "FILE")]
    pub secret_file: Option<PathBuf>,
}

impl SecretArgs {
    /// Whether one is given.
    pub fn is_given(&self) -> bool {
        self.secret_stdin || self.secret_file.is_some()
    }

    /// The secret in the shape that credentials of this type have; nothing where none is given.
    ///
    /// # Errors
    /// It cannot be read, or does not fit the type.
    pub fn read(&self, auth_type: &str) -> anyhow::Result<Option<Value>> {
        let mut text = Zeroizing::new(String::new());
        match &self.secret_file {
            Some(path) => std::fs::File::open(path)
                .and_then(|file| file.take(SECRET_BYTES_MAX + 1).read_to_string(&mut text))
                .with_context(|| format!("reading the secret from {}", path.display()))?,
            None if self.secret_stdin => std::io::stdin()
                .take(SECRET_BYTES_MAX + 1)
                .read_to_string(&mut text)
                .context("reading the secret")?,
            None => return Ok(None),
        };
        ensure!(
            text.len() as u64 <= SECRET_BYTES_MAX,
            "the secret has more than {SECRET_BYTES_MAX} bytes"
        );
        shaped(&text, auth_type).map(Some)
    }
}

/// A secret in the shape of its type.
fn shaped(text: &str, auth_type: &str) -> anyhow::Result<Value> {
    let text = text.trim_end_matches(['\r', '\n']);
    ensure!(!text.is_empty(), "the secret is empty");
    Ok(match auth_type {
        "api_key" => json!({ "key": text }),
        "bearer" | "jwt" => json!({ "token": text }),
        "basic" => {
            let (user, password) = text
                .split_once(':')
                .context("a secret of type basic is user:password")?;
            json!({ "username": user, "password": password })
        }
        "none" => bail!("type none has no secret: leave it out"),
        _ => serde_json::from_str(text)
            .ok()
            .filter(Value::is_object)
            .with_context(|| {
                format!(
                    "a secret of type {auth_type} is given with its fields, as JSON such as \
                     {{\"headers\": [{{\"name\": \"X-Key\", \"value\": \"…\"}}]}}"
                )
            })?,
    })
}

/// The secrets that an answer shows, this once: of the object itself, or of credentials that were
/// made with it; each with its id.
pub fn shown_once(answer: &Value) -> Vec<(&str, &str)> {
    let with_it = answer["credentials"].as_array().into_iter().flatten();
    let all = std::iter::once(answer).chain(with_it);
    all.filter_map(|object| {
        let mut fields = ["key", "token"].into_iter();
        let secret = fields.find_map(|field| object["secret"][field].as_str())?;
        Some((object["id"].as_str()?, secret))
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_has_the_shape_of_its_type_and_is_told_by_no_error() {
        let custom = r#"{"headers": [{"name": "X-Key", "value": "hush"}]}"#;
        for (text, auth_type, expected) in [
            ("hush\n", "api_key", json!({"key": "hush"})),
            ("hush\r\n", "bearer", json!({"token": "hush"})),
            (
                "me:hush:x",
                "basic",
                json!({"username": "me", "password": "hush:x"}),
            ),
            (custom, "custom", serde_json::from_str(custom).unwrap()),
        ] {
            assert_eq!(shaped(text, auth_type).unwrap(), expected);
        }
        for (text, auth_type) in [
            ("\n", "api_key"),
            ("hush", "basic"),
            ("hush", "custom"),
            ("[\"hush\"]", "custom"),
            ("hush", "none"),
        ] {
            let said = format!("{:#}", shaped(text, auth_type).unwrap_err());
            assert!(!said.contains("hush"), "{said}");
        }
    }

    #[test]
    fn what_is_shown_once_is_found_wherever_it_stands() {
        let token = json!({"id": "tok_1", "secret": {"token": "t"}});
        assert_eq!(shown_once(&token), [("tok_1", "t")]);
        let proxy = json!({"id": "prx_1", "credentials": [
            {"id": "crd_1", "secret": {"state": "active"}},
            {"id": "crd_2", "secret": {"state": "active", "key": "k"}},
        ]});
        assert_eq!(shown_once(&proxy), [("crd_2", "k")]);
    }
}
