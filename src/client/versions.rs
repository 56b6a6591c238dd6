//! `requestrocket versions`, `diff` and `rollback`: the history of an organisation's configuration.

use serde_json::Value;

use super::Api;
use super::records::{more_follow, page, shown};
use crate::cli::{DiffArgs, Output, RollbackArgs, VersionsArgs};
use crate::say;

/// Lists versions, the newest first.
///
/// # Errors
/// What the control plane said.
pub async fn list(args: &VersionsArgs) -> anyhow::Result<()> {
    let api = Api::new(&args.control)?;
    let page = page(args.limit, args.cursor.as_deref());
    let found = api.get(&format!("/versions?{page}")).await?;
    if args.output == Output::Json {
        say(&found.to_string());
        return Ok(());
    }
    let items = found["items"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    let mut lines: Vec<String> = items.iter().map(version_line).collect();
    lines.extend(more_follow(&found));
    say(&lines.join("\n"));
    Ok(())
}

/// Shows what a version changed.
///
/// # Errors
/// What the control plane said.
pub async fn diff(args: &DiffArgs) -> anyhow::Result<()> {
    let api = Api::new(&args.control)?;
    let from = args.from.map(|n| format!("?from={n}")).unwrap_or_default();
    let found = api.get(&format!("/versions/{}/diff{from}", args.n)).await?;
    tell(&found, args.output);
    Ok(())
}

/// Returns to the content of a version.
///
/// # Errors
/// What the control plane said.
pub async fn rollback(args: &RollbackArgs) -> anyhow::Result<()> {
    let api = Api::new(&args.control)?;
    let dry_run = if args.dry_run { "?dry_run=true" } else { "" };
    let path = format!("/versions/{}/rollback{dry_run}", args.n);
    let done = api.act(&path).await?;
    tell(&done, args.output);
    if args.output == Output::Text {
        say(&outcome(&done, args.dry_run));
    }
    Ok(())
}

/// What came of a write, on a line.
pub fn outcome(done: &Value, dry_run: bool) -> String {
    match (dry_run, done["from"] == done["to"]) {
        (true, _) => "nothing was changed (--dry-run)".into(),
        (false, true) => "nothing was to be changed".into(),
        (false, false) => format!("version {} is published", done["to"]),
    }
}

/// Shows what changed.
pub fn tell(changes: &Value, output: Output) {
    match output {
        Output::Json => say(&changes.to_string()),
        Output::Text => {
            let lines = change_lines(changes);
            if !lines.is_empty() {
                say(&lines.join("\n"));
            }
        }
    }
}

fn version_line(version: &Value) -> String {
    let text = |key: &str| version[key].as_str().unwrap_or_default();
    let changed = version["changed"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    let ids: Vec<&str> = changed.iter().take(3).filter_map(Value::as_str).collect();
    let count = version["changes"].as_u64().unwrap_or_default();
    let more = count.saturating_sub(ids.len() as u64);
    let more = if more > 0 {
        format!(" and {more} more")
    } else {
        String::new()
    };
    let place = match version["kept_in"].as_str() {
        Some("archive") => "  (archive)",
        _ => "",
    };
    format!(
        "{:>6}  {}  {}  {}{more}{place}",
        version["n"].as_u64().unwrap_or_default(),
        text("published_at"),
        text("author"),
        ids.join(" ")
    )
}

/// `+` for what is new, `-` for what is gone, `~` with its fields for what is another.
pub fn change_lines(changes: &Value) -> Vec<String> {
    let mut lines = Vec::new();
    for change in changes["changes"].as_array().into_iter().flatten() {
        let id = change["id"].as_str().unwrap_or_default();
        let (before, after) = (&change["before"], &change["after"]);
        match change["change"].as_str() {
            Some("created") => lines.push(format!("+ {id}  {}", label(after))),
            Some("deleted") => lines.push(format!("- {id}  {}", label(before))),
            _ => {
                lines.push(format!("~ {id}  {}", label(after)));
                lines.extend(field_lines(before, after));
            }
        }
        if after["secret"]["state"] == "missing" && before["secret"]["state"] != "missing" {
            lines.push("    without its secret: give it a new one before it is used".into());
        }
    }
    lines
}

/// What an object is, in a few words: its name, or what a rule, filter or meter does to what.
pub(super) fn label(object: &Value) -> String {
    let text = |value: &Value| value.as_str().map(shown).unwrap_or_default();
    let listed = |value: &Value| {
        let items = value.as_array().into_iter().flatten();
        items.map(text).collect::<Vec<_>>().join(",")
    };
    let parent = object["parent_id"].as_str();
    if let (Some(name), None) = (object["name"].as_str(), parent) {
        return shown(name);
    }
    let mut words = vec![
        text(&object["name"]),
        text(&object["effect"]),
        text(&object["op"]),
    ];
    for limit in object["limits"].as_array().into_iter().flatten() {
        words.push(format!("{}/{}", limit["limit"], text(&limit["window"])));
    }
    if let Some(by) = object["key"]["by"].as_str().filter(|by| *by != "none") {
        words.push(format!("per {by}"));
    }
    if object["mode"] == "shadow" {
        words.push("(shadow)".into());
    }
    words.push(listed(&object["methods"]));
    words.push(text(&object["path"]["pattern"]));
    words.push(listed(&object["paths"]));
    for part in ["headers", "query", "body", "source"] {
        if object[part].as_array().is_some_and(|list| !list.is_empty()) {
            words.push(format!("by {part}"));
        }
    }
    if let Some(parent) = parent {
        words.push(format!("on {parent}"));
    }
    words.retain(|word| !word.is_empty());
    words.join(" ")
}

/// Fields that say the same in other words, or always change.
const STAMPS: [&str; 2] = ["version", "updated_at"];

fn field_lines(before: &Value, after: &Value) -> Vec<String> {
    let (Some(before), Some(after)) = (before.as_object(), after.as_object()) else {
        return Vec::new();
    };
    let gone = before.keys().filter(|key| !after.contains_key(*key));
    let keys = after.keys().chain(gone);
    let changed = keys.filter(|key| !STAMPS.contains(&key.as_str()));
    changed
        .filter(|key| before.get(*key) != after.get(*key))
        .map(|key| {
            let value = |of: Option<&Value>| of.map_or("nothing".to_owned(), Value::to_string);
            format!(
                "    {}: {} -> {}",
                shown(key),
                value(before.get(key)),
                value(after.get(key))
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn changes_are_lines_with_the_fields_that_differ() {
        let changes = json!({"changes": [
            {"id": "prx_1", "change": "created", "before": null, "after": {"name": "a"}},
            {"id": "prx_2", "change": "deleted", "before": {"name": "b"}, "after": null},
            {"id": "prx_3", "change": "updated",
             "before": {"name": "c", "active": true, "alias": "x", "version": 1},
             "after": {"name": "c", "active": false, "version": 2}},
        ]});
        assert_eq!(
            change_lines(&changes),
            [
                "+ prx_1  a",
                "- prx_2  b",
                "~ prx_3  c",
                "    active: true -> false",
                "    alias: \"x\" -> nothing",
            ]
        );
    }

    #[test]
    fn rules_filters_and_lost_secrets_are_told_in_words() {
        let changes = json!({"changes": [
            {"id": "rul_1", "change": "created", "before": null,
             "after": {"effect": "deny", "mode": "shadow", "methods": ["DELETE", "PUT"],
                       "path": {"pattern": "^/a"}, "body": [{}], "parent_id": "prx_1"}},
            {"id": "flt_1", "change": "deleted", "after": null,
             "before": {"op": "destroy", "paths": ["$.a"], "parent_id": "tgt_1"}},
            {"id": "crd_1", "change": "created", "before": null,
             "after": {"name": "key", "secret": {"state": "missing"}}},
        ]});
        assert_eq!(
            change_lines(&changes),
            [
                "+ rul_1  deny (shadow) DELETE,PUT ^/a by body on prx_1",
                "- flt_1  destroy $.a on tgt_1",
                "+ crd_1  key",
                "    without its secret: give it a new one before it is used",
            ]
        );
    }

    #[test]
    fn a_version_is_one_line() {
        let version = json!({
            "n": 7, "published_at": "2026-11-25T10:00:00Z", "author": "tok_1", "changes": 5,
            "changed": ["a", "b", "c", "d", "e"],
        });
        assert_eq!(
            version_line(&version),
            "     7  2026-11-25T10:00:00Z  tok_1  a b c and 2 more"
        );
    }

    #[test]
    fn a_rollback_says_what_it_did() {
        let done = json!({"from": 3, "to": 4});
        assert_eq!(outcome(&done, false), "version 4 is published");
        assert_eq!(
            outcome(&json!({"from": 3, "to": 3}), false),
            "nothing was to be changed"
        );
        assert_eq!(outcome(&done, true), "nothing was changed (--dry-run)");
    }
}
