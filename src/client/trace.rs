//! `requestrocket trace`: one request as a waterfall of its stages and attempts.

use serde_json::Value;

use super::records::{milliseconds, path_part, shown};
use super::{Api, across};
use crate::cli::{TraceArgs, TraceOutput};
use crate::say;

/// Columns of the bars.
const BAR_COLUMNS: u64 = 40;

/// Draws a request.
///
/// # Errors
/// What the control plane said.
pub async fn draw(args: &TraceArgs) -> anyhow::Result<()> {
    let api = Api::new(&args.control)?;
    let format = match args.output {
        TraceOutput::Otlp => "?format=otlp",
        TraceOutput::Json | TraceOutput::Text => "",
    };
    let path = format!("/records/{}/trace{format}", path_part(&args.id)?);
    let trace = api
        .get(&across::path(&path, args.regions.as_deref()))
        .await?;
    match args.output {
        TraceOutput::Json | TraceOutput::Otlp => say(&trace.to_string()),
        TraceOutput::Text => say(&lines(&trace).join("\n")),
    }
    Ok(())
}

fn lines(trace: &Value) -> Vec<String> {
    let text = |value: &Value| value.as_str().map(shown).unwrap_or_default();
    let whole_us = trace["duration_us"].as_u64().unwrap_or_default();
    let status = trace["status"]
        .as_u64()
        .map_or("no answer".into(), |status| status.to_string());
    let mut lines = vec![
        format!(
            "{} {}: {status} {} in {}",
            text(&trace["method"]),
            text(&trace["path"]),
            text(&trace["code"]),
            milliseconds(whole_us)
        ),
        format!(
            "{} on {} at {}, trace {}",
            text(&trace["request_id"]),
            text(&trace["node"]),
            text(&trace["started_at"]),
            trace["trace_id"].as_str().unwrap_or("none"),
        ),
    ];
    for span in trace["spans"].as_array().into_iter().flatten() {
        let number = |key: &str| span[key].as_u64().unwrap_or_default();
        let (start_us, duration_us) = (number("start_us"), number("duration_us"));
        let indent = if span["kind"] == "attempt" { "  " } else { "" };
        let mark = if span["outcome"] == "end" { '!' } else { ' ' };
        let line = format!(
            "{:14}{mark}|{}| {:>11}  {}",
            format!("{indent}{}", text(&span["name"])),
            bar(start_us, duration_us, whole_us),
            milliseconds(duration_us),
            text(&span["decision"]),
        );
        lines.push(line.trim_end().to_owned());
        let events = span["events"].as_array().into_iter().flatten();
        lines.extend(events.map(|event| event_line(event, whole_us)));
    }
    if let Some(dropped) = trace["events_dropped"].as_u64().filter(|count| *count > 0) {
        lines.push(format!(
            "{dropped} more events, which the record has no room for"
        ));
    }
    lines
}

/// What happened inside the span above: at its place, with the time since the request's start.
fn event_line(event: &Value, whole_us: u64) -> String {
    let at_us = event["at_us"].as_u64().unwrap_or_default();
    let column = column(at_us, whole_us).min(BAR_COLUMNS - 1);
    let marks = (0..BAR_COLUMNS).map(|at| if at == column { '·' } else { ' ' });
    let text = event["text"].as_str().map(shown).unwrap_or_default();
    format!(
        "{:15}|{}| {:>11}  {text}",
        "",
        marks.collect::<String>(),
        format!("at {}", milliseconds(at_us)),
    )
}

/// The column of an instant.
fn column(us: u64, whole_us: u64) -> u64 {
    us.min(whole_us).saturating_mul(BAR_COLUMNS) / whole_us.max(1)
}

/// Where a span lies in the whole. Every span is seen: the shortest as a thin line.
fn bar(start_us: u64, duration_us: u64, whole_us: u64) -> String {
    let from = column(start_us, whole_us).min(BAR_COLUMNS - 1);
    let to = column(start_us.saturating_add(duration_us), whole_us);
    (0..BAR_COLUMNS)
        .map(|at| match at {
            at if (from..to).contains(&at) => '█',
            at if at == from => '▏',
            _ => ' ',
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_request_is_a_waterfall() {
        let trace = json!({
            "request_id": "req_1", "trace_id": null, "started_at": "2026-11-25T10:00:00Z",
            "duration_us": 1_000, "method": "GET", "path": "/x", "status": 504,
            "code": "upstream-timeout", "node": "gw-1",
            "spans": [
                {"name": "receive", "kind": "stage", "start_us": 0, "duration_us": 1,
                 "outcome": "pass", "decision": "proxy prx_1"},
                {"name": "forward", "kind": "stage", "start_us": 500, "duration_us": 500,
                 "outcome": "end", "decision": "upstream-timeout"},
                {"name": "attempt 1", "kind": "attempt", "start_us": 500, "duration_us": 250,
                 "outcome": "end", "decision": "reset", "events": [
                    {"kind": "retry", "at_us": 750, "subject": null, "count": 1,
                     "text": "retry 1\n"},
                 ]},
            ],
            "events_dropped": 2,
        });
        let lines = lines(&trace);
        assert_eq!(lines[0], "GET /x: 504 upstream-timeout in 1.00 ms");
        assert_eq!(
            lines[1],
            "req_1 on gw-1 at 2026-11-25T10:00:00Z, trace none"
        );
        let bar = |from: usize, to: usize| {
            format!(
                "{}{}{}",
                " ".repeat(from),
                "█".repeat(to - from),
                " ".repeat(40 - to)
            )
        };
        assert_eq!(
            lines[2],
            format!(
                "receive        |▏{}|     0.00 ms  proxy prx_1",
                " ".repeat(39)
            )
        );
        assert_eq!(
            lines[3],
            format!(
                "forward       !|{}|     0.50 ms  upstream-timeout",
                bar(20, 40)
            )
        );
        assert_eq!(
            lines[4],
            format!("  attempt 1   !|{}|     0.25 ms  reset", bar(20, 30))
        );
        let place = format!("{}·{}", " ".repeat(30), " ".repeat(9));
        let event = format!("{}|{place}|  at 0.75 ms  retry 1", " ".repeat(15));
        assert!(lines[5].starts_with(&event), "{}", lines[5]);
        assert!(!lines[5].contains('\n'));
        assert!(lines[6].starts_with("2 more events"), "{}", lines[6]);
    }

    #[test]
    fn a_bar_stays_in_its_frame() {
        for (start, duration, whole) in [(0, 0, 0), (9, 9, 9), (10, u64::MAX, 5), (u64::MAX, 1, 3)]
        {
            assert_eq!(
                bar(start, duration, whole).chars().count(),
                BAR_COLUMNS as usize
            );
        }
    }
}
