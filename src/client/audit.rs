//! `requestrocket audit`: who did what, when and from where, and whether that is as it was written.

use anyhow::bail;
use serde_json::{Value, json};

use super::Api;
use super::records::{more_follow, page, shown};
use super::versions::change_lines;
use crate::cli::{AuditAction, AuditArgs, AuditListArgs, AuditVerifyArgs, Output};
use crate::say;

/// Lists, or verifies.
///
/// # Errors
/// What the control plane said; or that the audit does not hold.
pub async fn run(args: &AuditArgs) -> anyhow::Result<()> {
    match &args.action {
        None => list(&args.list).await,
        Some(AuditAction::Verify(args)) => verify(args).await,
    }
}

/// Lists versions with what each changed, and what made no version, the newest first.
async fn list(args: &AuditListArgs) -> anyhow::Result<()> {
    let api = Api::new(&args.control)?;
    let page = page(args.limit, args.cursor.as_deref());
    let found = api.get(&format!("/audit?{page}")).await?;
    if args.output == Output::Json {
        say(&found.to_string());
        return Ok(());
    }
    let items = found["items"].as_array().into_iter().flatten();
    let mut lines: Vec<String> = items.flat_map(entry_lines).collect();
    lines.extend(more_follow(&found));
    say(&lines.join("\n"));
    Ok(())
}

/// Says whether entries and versions are as they were written.
async fn verify(args: &AuditVerifyArgs) -> anyhow::Result<()> {
    let api = Api::new(&args.control)?;
    let found = api.get("/audit/verify").await?;
    let holds = found["holds"] == true;
    match args.output {
        Output::Json => say(&found.to_string()),
        Output::Text => say(&verified_lines(&found).join("\n")),
    }
    match holds {
        true => Ok(()),
        false => bail!(
            "the audit does not hold: something was changed in the store by hand, or the store was \
             restored"
        ),
    }
}

fn verified_lines(found: &Value) -> Vec<String> {
    let span = |first: &str, last: &str| match (&found[first], &found[last]) {
        (Value::Null, _) => "none".to_owned(),
        (first, last) => format!("{first} to {last}"),
    };
    let proven = match &found["anchored_until"] {
        Value::Null => "no version says of one yet".to_owned(),
        until => format!("versions prove them up to {until}"),
    };
    let region = found["region"].as_str().map(shown).unwrap_or_default();
    let mut lines = vec![
        format!(
            "entries of region {region}: {}; {proven}",
            span("first_entry", "last_entry")
        ),
        format!("versions: {}", span("first_version", "last_version")),
    ];
    if let Some(signed) = found["signed_versions"].as_u64() {
        lines.push(format!("as they were signed: {signed} versions"));
    }
    for broken in found["breaks"].as_array().into_iter().flatten() {
        let text = |key: &str| broken[key].as_str().map(shown).unwrap_or_default();
        let place = match (&broken["entry"], &broken["version"]) {
            (Value::Null, version) => format!("version {version}"),
            (entry, _) => format!("entry {entry}"),
        };
        lines.push(format!("{place} {}: {}", text("problem"), text("detail")));
    }
    if found["holds"] == true {
        lines.push(match &found["anchored_until"] {
            Value::Null => "nothing in it contradicts itself; no version proves it".into(),
            _ => "nothing in it contradicts itself or a version".into(),
        });
    }
    lines
}

fn entry_lines(entry: &Value) -> Vec<String> {
    let text = |key: &str| entry[key].as_str().map(shown).unwrap_or_default();
    let author = match entry["author_name"].as_str() {
        Some(name) => format!("{} ({})", shown(name), text("author")),
        None => text("author"),
    };
    let from = entry["source"].as_str().map(shown);
    let from = from.as_deref();
    if entry["kind"].is_string() && entry["kind"] != "version" {
        return vec![act_line(entry, &author, from)];
    }
    let from = from.unwrap_or("the process itself");
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

/// What made no version, on a line; its number has a mark, as it is none of a version.
fn act_line(entry: &Value, author: &str, from: Option<&str>) -> String {
    let text = |key: &str| entry[key].as_str().map(shown).unwrap_or_default();
    let details = entry["details"].as_object().into_iter().flatten();
    let details = details.map(|(key, value)| {
        let value = value.as_str().map_or_else(|| value.to_string(), shown);
        format!(" {key}={}", shown(&value))
    });
    let details: String = details.collect();
    let number = format!("+{}", entry["entry"]);
    let from = from.map(|from| format!(" from {from}")).unwrap_or_default();
    format!(
        "{number:>6}  {}  {author}{from}: {}{details}",
        text("at"),
        text("kind")
    )
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
    fn what_made_no_version_is_a_line() {
        let entry = json!({
            "kind": "meter_raised", "entry": 12, "region": "eu", "at": "2026-11-25T10:00:00Z",
            "author": "tok_1", "author_name": "ops\u{202e}", "source": "10.1.2.3",
            "details": {"meter_id": "mtr_1", "percent": 200, "why": "a\nb"},
        });
        let line = concat!(
            "   +12  2026-11-25T10:00:00Z  ops\\u202e (tok_1) from 10.1.2.3: ",
            "meter_raised meter_id=mtr_1 percent=200 why=a\\nb"
        );
        assert_eq!(entry_lines(&entry), [line]);
    }

    #[test]
    fn a_break_is_named() {
        let mut found = json!({
            "region": "eu", "holds": true, "first_entry": 1, "last_entry": 7,
            "anchored_until": 5, "first_version": 1, "last_version": 9, "breaks": [],
        });
        assert_eq!(
            verified_lines(&found),
            [
                "entries of region eu: 1 to 7; versions prove them up to 5",
                "versions: 1 to 9",
                "nothing in it contradicts itself or a version",
            ]
        );
        found["holds"] = json!(false);
        found["breaks"] = json!([
            {"entry": 3, "version": null, "problem": "changed", "detail": "x"},
            {"entry": null, "version": 4, "problem": "missing", "detail": "y"},
        ]);
        let lines = verified_lines(&found);
        assert_eq!(lines[2..], ["entry 3 changed: x", "version 4 missing: y"]);
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
