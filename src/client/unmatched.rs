//! `requestrocket unmatched`: calls of names that are no proxy's.

use clap::Args;
use serde_json::Value;

use super::Api;
use super::records::shown;
use crate::cli::{ControlArgs, Output};
use crate::say;

/// Arguments of `unmatched`.
#[derive(Debug, Args)]
pub struct UnmatchedArgs {
    /// How many.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=200))]
    pub limit: u32,
    /// How to show them.
    #[arg(long, value_enum, default_value_t)]
    pub output: Output,
    /// Where the control plane is.
    #[command(flatten)]
    pub control: ControlArgs,
}

/// Lists attempts that matched no proxy.
///
/// # Errors
/// What the control plane said.
pub async fn list(args: &UnmatchedArgs) -> anyhow::Result<()> {
    let api = Api::new(&args.control)?;
    let path = format!("/unmatched?limit={}", args.limit);
    let found = api.get_absolute(&path).await?;
    if args.output == Output::Json {
        say(&found.to_string());
        return Ok(());
    }
    let items = found["items"].as_array().into_iter().flatten();
    let lines: Vec<String> = items.map(line).collect();
    say(&match lines.is_empty() {
        true => "every request named a proxy".to_owned(),
        false => lines.join("\n"),
    });
    Ok(())
}

fn line(attempt: &Value) -> String {
    let text = |key: &str| attempt[key].as_str().unwrap_or_default();
    let meant = match attempt["nearest"].as_str() {
        Some(name) => format!("  meant {}?", shown(name)),
        None => String::new(),
    };
    format!(
        "{}  {:15}  {:6} /api/{}{meant}",
        text("started_at"),
        text("source_address"),
        text("method"),
        shown(text("name")),
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_attempt_is_a_line_with_what_was_probably_meant() {
        let attempt = json!({
            "started_at": "2026-11-25T10:00:00Z", "source_address": "10.0.0.9", "method": "GET",
            "name": "strpie", "nearest": "stripe",
        });
        let expected = "2026-11-25T10:00:00Z  10.0.0.9         GET    /api/strpie  meant stripe?";
        assert_eq!(line(&attempt), expected);
        let unknown = json!({"name": "x", "nearest": null});
        assert!(line(&unknown).ends_with("/api/x"));
    }
}
