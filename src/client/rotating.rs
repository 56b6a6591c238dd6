//! `requestrocket rotate`: a credential gets another secret.

use anyhow::{Context, ensure};
use awc::http::Method;
use clap::Args;
use serde_json::{Value, json};

use super::Api;
use super::confirm::ConfirmArgs;
use super::kinds::Kind;
use super::named;
use super::objects::tell_secrets;
use super::records::shown;
use super::secrets::SecretArgs;
use super::warnings::warn;
use crate::cli::{ControlArgs, Output};
use crate::say;

/// Arguments of `rotate`.
#[derive(Debug, Args)]
pub struct RotateArgs {
    /// The credential, by id or name.
    pub credential: String,
    /// How long the old secret of a proxy credential is accepted beside the new one, as in 30s,
    /// 15m, 24h or 7d; without it the old one ends at once.
    #[arg(long, value_name = "DURATION", value_parser = milliseconds)]
    pub overlap: Option<u64>,
    /// The new secret; without it a key is generated for a proxy credential.
    #[command(flatten)]
    pub secret: SecretArgs,
    /// Only if the credential is at this version (`version` in what `get` shows).
    #[arg(long, value_name = "N")]
    pub if_version: Option<u64>,
    /// Whether to ask.
    #[command(flatten)]
    pub confirm: ConfirmArgs,
    /// How to show it.
    #[arg(long, value_enum, default_value_t)]
    pub output: Output,
    /// Where the control plane is.
    #[command(flatten)]
    pub control: ControlArgs,
}

/// Replaces the secret.
///
/// # Errors
/// There is no such credential, nobody agreed, or what the control plane said.
pub async fn rotate(args: &RotateArgs) -> anyhow::Result<()> {
    let api = Api::new(&args.control)?;
    let of = (Kind::Credentials, args.control.org.as_str());
    let found = named::find(&api, of, None, &args.credential).await?;
    let text = |field: &str| found.object[field].as_str().unwrap_or_default();
    let is_callers = text("kind") == "proxy";
    ensure!(
        is_callers || args.secret.is_given(),
        "{} is what the gateway shows its target, whose secret cannot be generated here: give the \
         new one with --secret-stdin or --secret-file",
        found.label()
    );
    let mut rotation = json!({ "overlap_ms": args.overlap.unwrap_or(0) });
    if let Some(secret) = args.secret.read(text("auth_type"))? {
        rotation["secret"] = secret;
    }
    let mut seen = args.if_version;
    if is_callers && args.overlap.is_none_or(|ms| ms == 0) {
        let what = format!("end the secret of {} for whoever uses it", found.label());
        let asked = args.confirm.ask(&what)?;
        seen = seen.or_else(|| found.version().filter(|_| asked));
    }
    let path = format!("{}/rotate", found.path);
    let rotated = api
        .write(Method::POST, &path, seen, Some(&rotation))
        .await?;
    warn(&rotated);
    if args.output == Output::Json {
        say(&rotated.to_string());
        return Ok(());
    }
    say(&format!("{} has another secret", found.label()));
    tell_secrets(&rotated);
    for line in former(&rotated) {
        say(&line);
    }
    Ok(())
}

/// Until when former secrets are accepted.
fn former(credential: &Value) -> Vec<String> {
    let former = credential["secret"]["former"]
        .as_array()
        .into_iter()
        .flatten();
    let ends = former.filter_map(|one| one["valid_until"].as_str());
    ends.map(|until| format!("the former one is accepted until {}", shown(until)))
        .collect()
}

/// A duration such as 30s, 15m, 24h or 7d, in milliseconds.
fn milliseconds(text: &str) -> anyhow::Result<u64> {
    let split = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let seconds: u64 = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => 0,
    };
    number
        .parse::<u64>()
        .ok()
        .filter(|_| seconds > 0)
        .and_then(|number| number.checked_mul(seconds)?.checked_mul(1_000))
        .context("write a number with its unit, as in 30s, 15m, 24h or 7d")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_overlap_has_a_number_and_a_unit() {
        for (text, expected) in [
            ("30s", Some(30_000)),
            ("0s", Some(0)),
            ("15m", Some(900_000)),
            ("24h", Some(86_400_000)),
            ("7d", Some(604_800_000)),
            ("7", None),
            ("h", None),
            ("", None),
            ("-1h", None),
            ("1w", None),
            ("99999999999999999999s", None),
            ("9999999999999999999d", None),
        ] {
            assert_eq!(milliseconds(text).ok(), expected, "{text:?}");
        }
    }

    #[test]
    fn the_end_of_a_former_secret_is_a_line() {
        let credential = json!({"secret": {"former": [{"valid_until": "2026-12-01T00:00:00Z"}]}});
        let expected = "the former one is accepted until 2026-12-01T00:00:00Z";
        assert_eq!(former(&credential), [expected]);
        assert!(former(&json!({"secret": {"former": null}})).is_empty());
    }
}
