//! `requestrocket recover`: what counts after the store was restored from a backup, or wiped.

use clap::Args;
use serde_json::{Value, json};

use super::Api;
use crate::cli::{ControlArgs, Output};
use crate::say;

/// Arguments of `recover`.
#[derive(Debug, Args)]
pub struct RecoverArgs {
    /// Write back what this node serves, by its `node_name`.
    #[arg(long, value_name = "NAME", conflicts_with = "accept_store")]
    pub from_node: Option<String>,
    /// Let the store's state count; what was published after it is gone.
    #[arg(long)]
    pub accept_store: bool,
    /// Let a full etcd forget old changes and give their space back, one member at a time.
    #[arg(long, conflicts_with_all = ["from_node", "accept_store"])]
    pub space: bool,
    /// How to show it.
    #[arg(long, value_enum, default_value_t)]
    pub output: Output,
    /// Where the control plane is.
    #[command(flatten)]
    pub control: ControlArgs,
}

/// Shows what the store lacks, or carries out what was decided.
///
/// # Errors
/// What the control plane said.
pub async fn recover(args: &RecoverArgs) -> anyhow::Result<()> {
    let api = Api::new(&args.control)?;
    let decision = match (&args.from_node, args.accept_store, args.space) {
        (Some(node), ..) => Some(json!({ "from_node": node })),
        (None, true, _) => Some(json!({ "accept_store": true })),
        (None, false, true) => Some(json!({ "reclaim_space": true })),
        (None, false, false) => None,
    };
    let found = match &decision {
        Some(decision) => api.act_absolute("/recovery", decision).await?,
        None => api.list_absolute("/recovery").await?,
    };
    if args.output == Output::Json {
        say(&found.to_string());
        return Ok(());
    }
    let lines = match decision {
        Some(_) if args.space => vec!["the store has given back what old changes took".into()],
        Some(_) => recovered(&found),
        None => regressions(&found),
    };
    say(&lines.join("\n"));
    Ok(())
}

fn list<'a>(of: &'a Value, key: &str) -> &'a [Value] {
    of[key].as_array().map(Vec::as_slice).unwrap_or_default()
}

fn text<'a>(of: &'a Value, key: &str) -> &'a str {
    of[key].as_str().unwrap_or_default()
}

fn name(of: &Value) -> &str {
    of["slug"].as_str().unwrap_or(text(of, "org"))
}

/// What the store lacks, in lines.
pub(super) fn regressions(found: &Value) -> Vec<String> {
    let items = list(found, "items");
    let unchecked = unchecked(found);
    if items.is_empty() {
        return match unchecked {
            Some(unchecked) => vec![unchecked],
            None => vec!["the store holds everything that was seen".into()],
        };
    }
    let number = |of: &Value| of.as_u64().map_or("none".to_owned(), |n| n.to_string());
    let line = |one: &Value| match one["leaves_lost"].as_u64() {
        Some(leaves @ 1..) => format!(
            "{:20} store: version {:6} without {leaves} of its leaves, which {} holds",
            name(one),
            number(&one["stored"]),
            text(one, "witness")
        ),
        _ => format!(
            "{:20} store: version {:6} seen: version {:6} by {}",
            name(one),
            number(&one["stored"]),
            number(&one["seen"]),
            text(one, "witness")
        ),
    };
    let mut lines: Vec<String> = items.iter().map(line).chain(unchecked).collect();
    let is_lost = |one: &Value| one["leaves_lost"].as_u64() > Some(0);
    if items.iter().any(is_lost) {
        lines.push("leaves are written again within the hour, or at once by either command".into());
    }
    lines.push("`recover --from-node NAME` writes back what that node serves".into());
    lines.push(
        "`recover --accept-store` lets the store's state count; what came later is lost".into(),
    );
    lines
}

/// Which organisations were not looked at.
fn unchecked(found: &Value) -> Option<String> {
    let count = found["unchecked_count"]
        .as_u64()
        .filter(|count| *count > 0)?;
    let shown = list(found, "unchecked");
    let names: Vec<&str> = shown.iter().map(name).collect();
    let why = shown.first().map_or("", |one| text(one, "why"));
    Some(match names.iter().all(|name| name.is_empty()) {
        true => format!("whether the store has lost leaves is not known: {why}"),
        false => format!(
            "whether the store has lost leaves is not known of {count} organisations ({}{}): {why}",
            names.join(", "),
            if count > names.len() as u64 {
                ", …"
            } else {
                ""
            }
        ),
    })
}

fn recovered(found: &Value) -> Vec<String> {
    let line = |one: &Value| {
        format!(
            "{:20} version {} has the content of version {} (epoch {})",
            name(one),
            one["n"],
            one["from"],
            one["epoch"]
        )
    };
    let mut lines: Vec<String> = list(found, "recovered").iter().map(line).collect();
    if let Some(leaves @ 1..) = found["leaves_written"].as_u64() {
        lines.push(format!(
            "{leaves} leaves that the store had lost are written again"
        ));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lost_and_what_can_be_done_is_told() {
        let found = json!({"items": [
            {"org": "org_1", "slug": "acme", "seen": 7, "stored": 5, "witness": "node gw-1"},
            {"org": "org_2", "slug": null, "seen": 3, "stored": null,
             "witness": "this control plane"},
        ]});
        let lines = regressions(&found);
        assert!(
            lines[0].starts_with("acme ") && lines[0].ends_with("by node gw-1"),
            "{lines:?}"
        );
        assert!(
            lines[1].starts_with("org_2 ") && lines[1].contains("version none"),
            "{lines:?}"
        );
        assert!(lines[2].contains("--from-node") && lines[3].contains("--accept-store"));
        assert_eq!(regressions(&json!({"items": []})).len(), 1);
        let lost = json!({"items": [{"org": "org_1", "slug": "acme", "seen": 7, "stored": 7,
                                     "leaves_lost": 2, "witness": "this control plane"}]});
        let lines = regressions(&lost);
        assert!(lines[0].contains("without 2 of its leaves"), "{lines:?}");
        assert!(lines[1].contains("within the hour"), "{lines:?}");
        let not_all = json!({"items": [], "unchecked_count": 2, "unchecked": [
            {"org": "org_1", "slug": "acme", "why": "there was no time left for it"}]});
        let lines = regressions(&not_all);
        assert!(
            lines[0].contains("of 2 organisations (acme, …): there was no time"),
            "{lines:?}"
        );
        let none = json!({"items": [], "unchecked_count": 1, "unchecked": [
            {"org": null, "slug": null, "why": "away"}]});
        assert!(regressions(&none)[0].ends_with("is not known: away"));
        let written = recovered(&json!({"recovered": [], "leaves_written": 2}));
        assert_eq!(
            written,
            ["2 leaves that the store had lost are written again"]
        );
        let done = json!({"recovered": [{"slug": "acme", "n": 8, "from": 7, "epoch": 2}]});
        assert!(recovered(&done)[0].ends_with("version 8 has the content of version 7 (epoch 2)"));
    }
}
