//! `requestrocket meters`: how much of each meter is used now.

use serde_json::{Value, json};

use super::Api;
use crate::cli::{MetersArgs, Output, RaiseArgs};
use crate::say;

/// Lists the keys of meters, the most used first.
///
/// # Errors
/// What the control plane said.
pub async fn list(args: &MetersArgs) -> anyhow::Result<()> {
    let api = Api::new(&args.control)?;
    let found = api
        .get(&format!("/meters/usage?top={}", args.limit))
        .await?;
    if args.output == Output::Json {
        say(&found.to_string());
        return Ok(());
    }
    let items = found["items"].as_array();
    say(&lines(items.map(Vec::as_slice).unwrap_or_default()).join("\n"));
    Ok(())
}

/// Lets a meter give more than its limits for a while.
///
/// # Errors
/// What the control plane said.
pub async fn raise(args: &RaiseArgs) -> anyhow::Result<()> {
    let api = Api::new(&args.control)?;
    let path = format!("/meters/{}/raise", args.meter);
    let body = json!({"percent": args.percent, "seconds": args.seconds});
    let raised = api.create(&path, &body).await?;
    if args.output == Output::Json {
        say(&raised.to_string());
        return Ok(());
    }
    say(&match args.percent {
        100 => format!("{} gives what its limits say", args.meter),
        percent => format!(
            "{} gives {percent} percent of its limits for {} s",
            args.meter, args.seconds
        ),
    });
    Ok(())
}

fn lines(keys: &[Value]) -> Vec<String> {
    if keys.is_empty() {
        return vec!["no meter has counted anything lately".into()];
    }
    keys.iter().map(line).collect()
}

fn line(key: &Value) -> String {
    let text = |name: &str| key[name].as_str().unwrap_or_default();
    let mut words = vec![text("meter_id").to_owned(), text("name").to_owned()];
    words.push(text("key").to_owned());
    if key["overflow"] == true {
        words.push("(all that found no place of their own)".into());
    }
    for limit in key["limits"].as_array().into_iter().flatten() {
        let window = limit["window"].as_str().unwrap_or_default();
        words.push(format!("{}/{} per {window}", limit["used"], limit["limit"]));
    }
    if let Some(millionths) = key["share"]["millionths"].as_u64() {
        words.push(share(&key["share"], millionths));
    }
    if let Some(waiting) = key["waiting"].as_u64().filter(|n| *n > 0) {
        words.push(format!("{waiting} waiting"));
    }
    if let Some(ms) = key["paused_ms"].as_u64().filter(|ms| *ms > 0) {
        words.push(format!("paused for {} s", ms.div_ceil(1_000)));
    }
    if let Some(estimate) = key["estimate"].as_u64() {
        words.push(format!("sets {estimate} aside"));
    }
    if let Some(missed) = key["missed"].as_u64().filter(|n| *n > 0) {
        words.push(format!("{missed} without a value"));
    }
    if key["remembered"] == true {
        words.push("at most: no request since the node's start".into());
    }
    if key["mode"].as_str().is_some_and(|mode| mode != "store") {
        words.push(format!("({})", text("mode")));
    }
    words.retain(|word| !word.is_empty());
    words.join("  ")
}

/// What this region has of limits that regions share.
fn share(share: &Value, millionths: u64) -> String {
    let whole = share["whole"].as_array().into_iter().flatten();
    let whole = whole.map(|limit| {
        let window = limit["window"].as_str().unwrap_or_default();
        format!("{} per {window}", limit["limit"])
    });
    let whole: Vec<String> = whole.collect();
    let percent = |millionths: u64| millionths as f64 / 10_000.0;
    let mut text = format!("{:.1} percent of {}", percent(millionths), whole.join(", "));
    for part in share["leaving"].as_array().into_iter().flatten() {
        let (to, much) = (&part["to"], part["millionths"].as_u64().unwrap_or(0));
        let to = to.as_str().unwrap_or_default();
        text.push_str(&format!(
            ", {:.1} percent on the way to {to}",
            percent(much)
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_a_line() {
        let key = json!({
            "meter_id": "mtr_1", "name": "vendor", "key": "prx_1", "mode": "local_share",
            "limits": [{"window": "minute", "limit": 60, "used": 45}],
            "share": {"regions": ["eu", "us", "ap"], "millionths": 333_333,
                      "whole": [{"window": "minute", "limit": 180}],
                      "leaving": [{"to": "eu", "millionths": 50_000}]},
            "waiting": 3, "paused_ms": 1500, "estimate": 90, "missed": 2,
        });
        assert_eq!(
            lines(&[key]),
            [
                "mtr_1  vendor  prx_1  45/60 per minute  33.3 percent of 180 per minute, \
              5.0 percent on the way to eu  3 waiting  paused for 2 s  sets 90 aside  \
              2 without a value  (local_share)"
            ]
        );
        let key = json!({
            "meter_id": "mtr_2", "mode": "store", "remembered": true,
            "limits": [{"window": "day", "limit": 60, "used": 45}],
        });
        assert_eq!(
            lines(&[key]),
            ["mtr_2  45/60 per day  at most: no request since the node's start"]
        );
        assert_eq!(lines(&[]), ["no meter has counted anything lately"]);
    }
}
