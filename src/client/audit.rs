//! `requestrocket audit`: who changed what, when and from where.

use serde_json::{Value, json};

use super::Api;
use super::records::shown;
use super::versions::change_lines;
use crate::cli::{AuditArgs, Output};
use crate::say;

/// Lists versions with what each changed, the newest first.
///
/// # Errors
/// What the control plane said.
pub async fn list(args: &AuditArgs) -> anyhow::Result<()> {
    let api = Api::new(&args.control)?;
    let found = api.get(&format!("/audit?limit={}", args.limit)).await?;
    if args.output == Output::Json {
        say(&found.to_string());
        return Ok(());
    }
    let items = found["items"].as_array().into_iter().flatten();
    let lines: Vec<String> = items.flat_map(entry_lines).collect();
    say(&lines.join("\n"));
    Ok(())
}

fn entry_lines(entry: &Value) -> Vec<String> {
    let text = |key: &str| entry[key].as_str().map(shown).unwrap_or_default();
    let author = match entry["author_name"].as_str() {
        Some(name) => format!("{} ({})", shown(name), text("author")),
        None => text("author"),
    };
    let from = entry["source"].as_str().map(shown);
    let from = from.as_deref().unwrap_or("the process itself");
    let mut lines = vec![format!(
        "{:>6}  {}  {author} from {from}",
        entry["n"].as_u64().unwrap_or_default(),
        text("published_at"),
    )];
    let changes = json!({"changes": entry["objects"]});
    lines.extend(
        change_lines(&changes)
            .iter()
            .map(|line| format!("        {line}")),
    );
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_forges_nothing() {
        let entry = json!({
            "n": 7, "published_at": "2026-11-25T10:00:00Z", "author": "tok_1",
            "author_name": "a\u{202e}b\nc", "source": "10.1.2.3",
            "objects": [{"id": "prx_1", "change": "created", "before": null,
                         "after": {"name": "d\u{2066}\ne"}}],
        });
        assert_eq!(
            entry_lines(&entry),
            [
                "     7  2026-11-25T10:00:00Z  a\\u202eb\\nc (tok_1) from 10.1.2.3",
                "        + prx_1  d\\u2066\\ne",
            ]
        );
    }

    #[test]
    fn an_entry_says_who_when_where_and_what() {
        let entry = json!({
            "n": 7, "published_at": "2026-11-25T10:00:00Z", "author": "tok_1",
            "author_name": "deploy", "source": "10.1.2.3",
            "objects": [{"id": "prx_1", "change": "updated",
                         "before": {"name": "a", "active": true},
                         "after": {"name": "a", "active": false}}],
        });
        assert_eq!(
            entry_lines(&entry),
            [
                "     7  2026-11-25T10:00:00Z  deploy (tok_1) from 10.1.2.3",
                "        ~ prx_1  a",
                "            active: true -> false",
            ]
        );
    }
}
