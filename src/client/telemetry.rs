//! `requestrocket top` and `telemetry`: many requests together.

use serde_json::Value;

use super::records::{add, chosen, encoded, shown};
use super::{Api, across};
use crate::cli::{Output, TelemetryArgs, TopArgs};
use crate::say;

/// Shows the largest groups.
///
/// # Errors
/// What the control plane said.
pub async fn top(args: &TopArgs) -> anyhow::Result<()> {
    let mut query = chosen(&args.choice)?;
    add(&mut query, "by", Some(&args.by));
    add(&mut query, "order", Some(&args.order));
    add(&mut query, "groups", Some(&args.limit.to_string()));
    add(&mut query, "from", Some(&args.from));
    add(&mut query, "to", args.to.as_deref());
    add(&mut query, "regions", args.regions.as_deref());
    let api = Api::new(&args.control)?;
    let found = api.get(&format!("/telemetry?{}", encoded(&query))).await?;
    across::warn(&found);
    match args.output {
        Output::Json => say(&found.to_string()),
        Output::Text => say(&groups(&found, &args.by).join("\n")),
    }
    Ok(())
}

/// Shows spans of time.
///
/// # Errors
/// What the control plane said.
pub async fn by_time(args: &TelemetryArgs) -> anyhow::Result<()> {
    let mut query = chosen(&args.choice)?;
    add(&mut query, "bucket", Some(&args.bucket));
    add(&mut query, "from", Some(&args.from));
    add(&mut query, "to", args.to.as_deref());
    add(&mut query, "regions", args.regions.as_deref());
    let api = Api::new(&args.control)?;
    let found = api.get(&format!("/telemetry?{}", encoded(&query))).await?;
    across::warn(&found);
    match args.output {
        Output::Json => say(&found.to_string()),
        Output::Text => say(&spans(&found).join("\n")),
    }
    Ok(())
}

fn groups(found: &Value, by: &str) -> Vec<String> {
    let mut lines = vec![head(by)];
    for group in found["groups"].as_array().into_iter().flatten() {
        let value = group["value"].as_str().map_or_else(|| "-".into(), shown);
        let label = match group["name"].as_str() {
            Some(name) => format!("{} {value}", shown(name)),
            None => value,
        };
        lines.push(row(&label, group));
    }
    if found["rest"].is_object() {
        lines.push(row("all others", &found["rest"]));
    }
    if found["approximate"] == true {
        lines.push("a region has more groups than were read: some of these may be too low".into());
    }
    lines.extend(incomplete(found));
    lines
}

fn spans(found: &Value) -> Vec<String> {
    let mut lines = vec![head("from")];
    let buckets = found["groups"][0]["buckets"].as_array();
    for bucket in buckets.into_iter().flatten() {
        lines.push(row(bucket["start"].as_str().unwrap_or_default(), bucket));
    }
    lines.extend(incomplete(found));
    lines
}

/// What was not looked at, if anything.
fn incomplete(found: &Value) -> Option<String> {
    let from = found["complete_from"].as_str()?;
    (found["from"].as_str() != Some(from))
        .then(|| format!("counted from {from} on; there are too many to read more at once"))
}

fn head(label: &str) -> String {
    format!(
        "{:>10} {:>7} {:>8} {:>10} {:>10} {:>10} {:>9}  {label}",
        "requests", "errors", "refused", "p50 ms", "p90 ms", "p99 ms", "sent"
    )
}

fn row(label: &str, group: &Value) -> String {
    let number = |key: &str| group[key].as_u64().unwrap_or_default();
    let ms = |key: &str| match group["duration_ms"][key].as_f64() {
        Some(ms) => format!("{ms:.2}"),
        None => "-".into(),
    };
    let errors = group["error_rate"].as_f64().unwrap_or_default() * 100.0;
    format!(
        "{:>10} {:>6.2}% {:>8} {:>10} {:>10} {:>10} {:>9}  {label}",
        number("count"),
        errors,
        number("refused"),
        ms("p50"),
        ms("p90"),
        ms("p99"),
        size(number("response_bytes")),
    )
}

/// Bytes as people read them.
fn size(bytes: u64) -> String {
    let units = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    let mut scaled = bytes as f64;
    let mut unit = 0;
    while scaled >= 1_000.0 && unit + 1 < units.len() {
        scaled /= 1_000.0;
        unit += 1;
    }
    match unit {
        0 => format!("{bytes} B"),
        unit => format!("{scaled:.1} {}", units[unit]),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn groups_and_the_rest_are_rows() {
        let group = json!({"value": "prx_1", "name": "demo", "count": 10, "error_rate": 0.1,
            "refused": 2, "response_bytes": 1_500,
            "duration_ms": {"p50": 1.0, "p90": 2.5, "p99": null}});
        let found = json!({"from": "a", "complete_from": "b", "groups": [group], "rest": group});
        let lines = groups(&found, "proxy");
        assert_eq!(
            lines[1],
            "        10  10.00%        2       1.00       2.50          -    1.5 kB  demo prx_1"
        );
        assert!(lines[2].ends_with("all others"));
        assert!(lines[3].starts_with("counted from b on"));
    }

    #[test]
    fn sizes() {
        for (bytes, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1_000, "1.0 kB"),
            (u64::MAX, "18.4 EB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }
}
