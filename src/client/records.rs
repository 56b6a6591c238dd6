//! `requestrocket records` and `record`: what was asked of the gateway, and what became of it.

use std::io::Write;

use anyhow::{Context, bail, ensure};
use futures_util::StreamExt;
use proto::visible;
use serde_json::Value;

use super::{Api, across};
use crate::cli::{ChoiceArgs, Output, RecordArgs, RecordOutput, RecordsArgs};
use crate::say;

/// How many requests are listed where nothing is said.
const LIMIT: u32 = 20;

/// Lists requests.
///
/// # Errors
/// What the control plane said, or standard output cannot be written.
pub async fn list(args: &RecordsArgs) -> anyhow::Result<()> {
    if args.output == RecordOutput::Ndjson {
        ensure!(
            args.limit.is_none() && args.cursor.is_none(),
            "--output ndjson writes every record that fits: --limit and --cursor are of a page \
             (--output json); choose fewer with --from, --to and the like"
        );
    }
    let api = Api::new(&args.control)?;
    let mut query = chosen(&args.choice)?;
    add(&mut query, "from", args.from.as_deref());
    add(&mut query, "to", args.to.as_deref());
    add(&mut query, "regions", args.regions.as_deref());
    if args.output == RecordOutput::Ndjson {
        return export(&api, &query).await;
    }
    let limit = args.limit.unwrap_or(LIMIT).to_string();
    add(&mut query, "limit", Some(&limit));
    add(&mut query, "cursor", args.cursor.as_deref());
    let found = api.get(&format!("/records?{}", encoded(&query))).await?;
    across::warn(&found);
    if args.output == RecordOutput::Json {
        say(&found.to_string());
        return Ok(());
    }
    let items = found["items"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    for item in items {
        say(&line_of(item, args.regions.as_deref()));
    }
    match more_follow(&found) {
        Some(line) => say(&line),
        None if items.is_empty() => say("no request is recorded that fits"),
        None => {}
    }
    Ok(())
}

/// Writes every record as a line. A file that is cut ends with an error, not silently.
async fn export(api: &Api, query: &[(String, String)]) -> anyhow::Result<()> {
    let mut lines = api
        .stream(&format!("/records/export?{}", encoded(query)))
        .await?;
    let missing = lines.headers().get("requestrocket-partial");
    if let Some(missing) = missing.and_then(|missing| missing.to_str().ok()) {
        across::warn_of_head(missing);
    }
    let mut out = std::io::stdout().lock();
    while let Some(piece) = lines.next().await {
        let piece = piece.map_err(|error| anyhow::anyhow!("{error}"));
        let piece = piece.context("the file broke off; what was written is not all")?;
        if let Err(error) = out.write_all(&piece).and_then(|()| out.flush()) {
            return match error.kind() {
                // A reader that has enough.
                std::io::ErrorKind::BrokenPipe => Ok(()),
                _ => Err(error).context("standard output cannot be written"),
            };
        }
    }
    Ok(())
}

/// Shows one request.
///
/// # Errors
/// What the control plane said.
pub async fn show(args: &RecordArgs) -> anyhow::Result<()> {
    let api = Api::new(&args.control)?;
    let path = format!("/records/{}", path_part(&args.id)?);
    let record = api
        .get(&across::path(&path, args.regions.as_deref()))
        .await?;
    match args.output {
        Output::Json => say(&record.to_string()),
        Output::Text => say(&fields(&record).join("\n")),
    }
    Ok(())
}

/// An id as a part of a path: what is none would name something else.
pub fn path_part(id: &str) -> anyhow::Result<&str> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    match !id.is_empty() && id.bytes().all(plain) {
        true => Ok(id),
        false => bail!("`{id}` is no id of a request, `req_…`"),
    }
}

/// The query parameters of a choice.
///
/// # Errors
/// A further field is not written as `name=value`.
pub fn chosen(choice: &ChoiceArgs) -> anyhow::Result<Vec<(String, String)>> {
    let mut query = Vec::new();
    for (name, value) in [
        ("proxy", &choice.proxy),
        ("credential", &choice.credential),
        ("status", &choice.status),
        ("code", &choice.code),
        ("method", &choice.method),
        ("path", &choice.path),
        ("source", &choice.source),
    ] {
        add(&mut query, name, value.as_deref());
    }
    for field in &choice.fields {
        let (name, value) = field
            .split_once('=')
            .with_context(|| format!("`{field}` is no field: write name=value"))?;
        add(&mut query, name.trim(), Some(value));
    }
    Ok(query)
}

/// Adds a parameter that is given.
pub fn add(query: &mut Vec<(String, String)>, name: &str, value: Option<&str>) {
    if let Some(value) = value {
        query.push((name.to_owned(), value.to_owned()));
    }
}

/// The query of one page of a list.
pub fn page(limit: u32, cursor: Option<&str>) -> String {
    let mut query = vec![("limit".to_owned(), limit.to_string())];
    add(&mut query, "cursor", cursor);
    encoded(&query)
}

/// The line that says how to see the next page; none after the last.
pub fn more_follow(found: &Value) -> Option<String> {
    let cursor = found["next_cursor"].as_str()?;
    Some(format!("more follow: --cursor {cursor}"))
}

/// A query string.
pub fn encoded(query: &[(String, String)]) -> String {
    let mut text = url::form_urlencoded::Serializer::new(String::new());
    text.extend_pairs(query).finish()
}

/// A record on a line, with its region where several are asked.
pub fn line_of(record: &Value, regions: Option<&str>) -> String {
    let region = || shown(record["region"].as_str().unwrap_or_default());
    match regions {
        None => line(record),
        Some(_) => format!("{:8} {}", region(), line(record)),
    }
}

/// A record on a line.
pub fn line(record: &Value) -> String {
    let text = |key: &str| record[key].as_str().unwrap_or_default();
    let status = match record["status"].as_u64() {
        Some(status) => status.to_string(),
        None => "-".into(),
    };
    let why = record["auth_failure"]
        .as_str()
        .map(|why| format!(" ({why})"));
    format!(
        "{:27} {:>3} {:>10} {:6} {} {}{} {}",
        text("started_at"),
        status,
        milliseconds(record["total_us"].as_u64().unwrap_or_default()),
        text("method"),
        shown(text("path")),
        text("code"),
        why.unwrap_or_default(),
        text("id"),
    )
}

/// Microseconds in milliseconds, as people read them.
pub fn milliseconds(us: u64) -> String {
    format!("{:.2} ms", us as f64 / 1_000.0)
}

/// What others chose, without what would act on a terminal or begin a line.
pub fn shown(text: &str) -> String {
    visible::on_one_line(text).into_owned()
}

/// A record with a line for each field that says something.
fn fields(record: &Value) -> Vec<String> {
    let says = |value: &&Value| match value {
        Value::Null => false,
        Value::Array(items) => !items.is_empty(),
        _ => true,
    };
    let fields = record.as_object().into_iter().flatten();
    let fields = fields
        .filter(|(_, value)| says(value))
        .map(|(name, value)| {
            let value = match value {
                Value::String(text) => shown(text),
                value => value.to_string(),
            };
            format!("{name:30} {value}")
        });
    fields.collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_record_is_a_line_that_cannot_be_forged() {
        let record = json!({
            "id": "req_1", "started_at": "2026-11-25T10:00:00Z", "status": 401, "total_us": 1_234,
            "method": "GET", "path": "/a\n\u{1b}[2J\u{202e}b", "code": "proxy-access-denied",
            "auth_failure": "wrong-key",
        });
        let of_regions = json!({"region": "eu", "started_at": "2026-11-25T10:00:00Z"});
        let line_of_eu = line_of(&of_regions, Some("all"));
        assert!(line_of_eu.starts_with("eu       2026-11-25T10:00:00Z "));
        assert_eq!(line_of(&of_regions, None), line(&of_regions));
        assert_eq!(
            line(&record),
            "2026-11-25T10:00:00Z        401    1.23 ms GET    /a\\n\\u001b[2J\\u202eb \
             proxy-access-denied (wrong-key) req_1"
        );
    }

    #[test]
    fn a_choice_becomes_a_query() {
        let choice = ChoiceArgs {
            proxy: Some("a b".into()),
            credential: None,
            status: Some("5xx".into()),
            code: None,
            method: None,
            path: Some("/v1/*".into()),
            source: None,
            fields: vec!["node=gw=1".into()],
        };
        let query = chosen(&choice).unwrap();
        assert_eq!(
            encoded(&query),
            "proxy=a+b&status=5xx&path=%2Fv1%2F*&node=gw%3D1"
        );
        let wrong = ChoiceArgs {
            fields: vec!["node".into()],
            ..choice
        };
        assert!(chosen(&wrong).is_err());
    }

    #[test]
    fn an_id_is_no_path() {
        for (id, good) in [
            ("req_01", true),
            ("", false),
            ("../tokens", false),
            ("a/b", false),
        ] {
            assert_eq!(path_part(id).is_ok(), good, "{id}");
        }
    }
}
