//! `requestrocket replication`: how far each region has come with each organisation.

use clap::Args;
use serde_json::Value;

use super::Api;
use super::records::shown;
use crate::cli::{ControlArgs, Output};
use crate::say;

/// Arguments of `replication`.
#[derive(Debug, Args)]
pub struct ReplicationArgs {
    /// Only this organisation: its slug or id.
    pub organisation: Option<String>,
    /// Only how far this region has come.
    #[arg(long)]
    pub region: Option<String>,
    /// How to show it.
    #[arg(long, value_enum, default_value_t)]
    pub output: Output,
    /// Where the control plane is.
    #[command(flatten)]
    pub control: ControlArgs,
}

/// Lists it.
///
/// # Errors
/// What the control plane said.
pub async fn list(args: &ReplicationArgs) -> anyhow::Result<()> {
    let api = Api::new(&args.control)?;
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    for (name, value) in [("org", &args.organisation), ("region", &args.region)] {
        if let Some(value) = value {
            query.append_pair(name, value);
        }
    }
    let query = query.finish();
    let found = api.list_absolute(&format!("/replication?{query}")).await?;
    match args.output {
        Output::Json => say(&found.to_string()),
        Output::Text => {
            let items = found["items"].as_array();
            say(&lines(items.map(Vec::as_slice).unwrap_or_default()).join("\n"));
        }
    }
    Ok(())
}

fn lines(rows: &[Value]) -> Vec<String> {
    if rows.is_empty() {
        return vec!["nothing is replicated that is asked for".into()];
    }
    rows.iter().map(line).collect()
}

fn line(row: &Value) -> String {
    let text = |key: &str| row[key].as_str().unwrap_or_default();
    let name = row["slug"].as_str().unwrap_or(text("org"));
    let version = row["version"].as_u64();
    let version = version.map_or_else(|| "nothing".to_owned(), |n| format!("version {n}"));
    let state = match (text("state"), row["lag_versions"].as_u64()) {
        ("home", _) => "home".to_owned(),
        ("current", _) => format!("current with {}", text("home")),
        ("behind", Some(1)) => format!("1 version behind {}", text("home")),
        ("behind", Some(lag)) => format!("{lag} versions behind {}", text("home")),
        (state, _) => format!("{state}, home is {}", text("home")),
    };
    let line = format!("{name:20} {:12} {version:14} {state}", text("region"));
    match row["why"].as_str() {
        Some(why) => format!("{line}: {}", shown(why)),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_row_is_a_line() {
        let row = |state: &str, lag: u64, why: Value| {
            json!({"region": "eu", "org": "org_1", "slug": "acme", "home": "us", "version": 7,
                   "lag_versions": lag, "state": state, "why": why})
        };
        let said = |row: Value| {
            lines(&[row])[0]
                .split_whitespace()
                .collect::<Vec<_>>()
                .join(" ")
        };
        let null = Value::Null;
        assert_eq!(
            said(row("current", 0, null.clone())),
            "acme eu version 7 current with us"
        );
        assert_eq!(
            said(row("behind", 3, null)),
            "acme eu version 7 3 versions behind us"
        );
        assert_eq!(
            said(row("untaken", 3, json!("a leaf is missing"))),
            "acme eu version 7 untaken, home is us: a leaf is missing"
        );
        let new = json!({"region": "eu", "org": "org_1", "slug": null, "home": "us",
                         "version": null, "lag_versions": 1, "state": "behind", "why": null});
        assert_eq!(said(new), "org_1 eu nothing 1 version behind us");
    }
}
