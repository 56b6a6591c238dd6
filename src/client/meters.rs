//! `requestrocket meters`: how much of each meter is used now, and what a person does about it.

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::Api;
use super::records::{add, encoded, shown};
use super::table::titled;
use crate::cli::{ControlArgs, Output};
use crate::say;

/// Arguments of `meters`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct MetersArgs {
    /// What to do; without it what is used is shown.
    #[command(subcommand)]
    pub action: Option<MetersAction>,
    /// What to show, and how.
    #[command(flatten)]
    pub usage: UsageArgs,
}

impl MetersArgs {
    /// How to show what it does.
    pub fn output(&self) -> Output {
        match &self.action {
            None => self.usage.output,
            Some(MetersAction::Reset(args)) => args.output,
            Some(MetersAction::Raise(args)) => args.output,
        }
    }
}

/// What can be done with a meter.
#[derive(Debug, Subcommand)]
pub enum MetersAction {
    /// Let a meter forget what was used until now, pauses too, for all of its keys.
    Reset(ResetArgs),
    /// Let a meter give more than its limits for a while; 100 percent ends it.
    Raise(RaiseArgs),
}

/// Arguments of `meters` without an action.
#[derive(Debug, Args)]
pub struct UsageArgs {
    /// Only the keys of this meter, `mtr_…`, or of this proxy's own limits, `prx_…`.
    #[arg(long, value_name = "ID")]
    pub meter: Option<String>,
    /// How many keys.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub limit: u32,
    /// How to show them.
    #[arg(long, value_enum, default_value_t)]
    pub output: Output,
    /// Where the control plane is.
    #[command(flatten)]
    pub control: ControlArgs,
}

/// Arguments of `meters reset`.
#[derive(Debug, Args)]
pub struct ResetArgs {
    /// Id of the meter, `mtr_…`, whatever it hangs on.
    pub meter: String,
    /// How to show it.
    #[arg(long, value_enum, default_value_t)]
    pub output: Output,
    /// Where the control plane is.
    #[command(flatten)]
    pub control: ControlArgs,
}

/// Arguments of `raise`.
#[derive(Debug, Args)]
pub struct RaiseArgs {
    /// Id of the meter, `mtr_…`, whatever it hangs on; limits of a proxy's own are changed on the
    /// proxy.
    pub meter: String,
    /// What it gives, in percent of its limits per window: 101 to 1,000; 100 ends it.
    #[arg(long)]
    pub percent: u64,
    /// How long, in seconds: 1 to 86,400.
    #[arg(long, default_value_t = 3_600)]
    pub seconds: u64,
    /// How to show it.
    #[arg(long, value_enum, default_value_t)]
    pub output: Output,
    /// Where the control plane is.
    #[command(flatten)]
    pub control: ControlArgs,
}

/// Shows what is used, or does something with a meter.
///
/// # Errors
/// What the control plane said, or what names no meter.
pub async fn run(args: &MetersArgs) -> anyhow::Result<()> {
    match &args.action {
        None => list(&args.usage).await,
        Some(MetersAction::Reset(args)) => reset(args).await,
        Some(MetersAction::Raise(args)) => raise(args).await,
    }
}

/// Lists the keys of meters, the most used first.
async fn list(args: &UsageArgs) -> anyhow::Result<()> {
    let meter = args.meter.as_deref().map(id).transpose()?;
    let api = Api::new(&args.control)?;
    let mut query = Vec::new();
    add(&mut query, "top", Some(&args.limit.to_string()));
    add(&mut query, "meter", meter);
    let found = api
        .get(&format!("/meters/usage?{}", encoded(&query)))
        .await?;
    say(&match args.output {
        Output::Json => found.to_string(),
        Output::Text => lines(&found, args.limit).join("\n"),
    });
    Ok(())
}

/// Lets a meter forget what was used.
async fn reset(args: &ResetArgs) -> anyhow::Result<()> {
    let path = format!("/meters/{}/reset", id(&args.meter)?);
    let meter = Api::new(&args.control)?.act(&path).await?;
    say(&match args.output {
        Output::Json => meter.to_string(),
        Output::Text => format!(
            "{} counts from nothing again; it was reset {} by now",
            args.meter,
            match meter["resets"].as_u64() {
                Some(1) => "once".to_owned(),
                times => format!("{} times", times.unwrap_or_default()),
            }
        ),
    });
    Ok(())
}

/// Lets a meter give more than its limits for a while.
///
/// # Errors
/// What the control plane said, or what names no meter.
pub async fn raise(args: &RaiseArgs) -> anyhow::Result<()> {
    let path = format!("/meters/{}/raise", id(&args.meter)?);
    let body = json!({"percent": args.percent, "seconds": args.seconds});
    let raised = Api::new(&args.control)?.create(&path, &body).await?;
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

/// A text that can be the id of a meter, or of a proxy: it becomes part of a path.
fn id(given: &str) -> anyhow::Result<&str> {
    let is_id = |(kind, rest): (&str, &str)| {
        let plain = rest.bytes().all(|byte| byte.is_ascii_alphanumeric());
        ["mtr", "prx"].contains(&kind) && !rest.is_empty() && plain
    };
    anyhow::ensure!(
        given.split_once('_').is_some_and(is_id),
        "{} is no id of a meter, which is like mtr_…; `requestrocket list meters` shows ids",
        shown(given)
    );
    Ok(given)
}

const TITLES: [&str; 8] = [
    "meter", "name", "key", "window", "used", "full", "back", "besides",
];

fn lines(found: &Value, limit: u32) -> Vec<String> {
    let keys = found["items"].as_array().map_or(&[][..], Vec::as_slice);
    if keys.is_empty() {
        return vec!["no meter has counted anything lately".into()];
    }
    let mut lines = titled(&TITLES, keys.iter().flat_map(rows).collect());
    if keys.len() == limit as usize {
        lines.push(format!(
            "these are the {limit} of which most is used; --limit shows more"
        ));
    }
    if let Some(more) = found["keys_left_out"].as_u64().filter(|n| *n > 0) {
        lines.push(format!(
            "nodes left out {more} further keys: each tells of those of which most is used"
        ));
    }
    lines
}

/// A line for each limit of a key; what is true of the key stands in the first.
fn rows(key: &Value) -> Vec<Vec<String>> {
    let text = |name: &str| key[name].as_str().map(shown).unwrap_or_default();
    let mut first = vec![text("meter_id"), text("name"), text("key")];
    if key["overflow"] == true {
        first[2] = "(all others)".into();
    }
    let besides = besides(key);
    let limits = key["limits"].as_array().map_or(&[][..], Vec::as_slice);
    if limits.is_empty() {
        first.extend(["none".into(), "".into(), "".into(), "".into(), besides]);
        return vec![first];
    }
    let mut rows = Vec::new();
    for limit in limits {
        let mut row = match rows.is_empty() {
            true => std::mem::take(&mut first),
            false => vec![String::new(); 3],
        };
        row.extend(used(limit));
        if rows.is_empty() {
            row.push(besides.clone());
        }
        rows.push(row);
    }
    rows
}

/// The cells of one limit.
fn used(limit: &Value) -> [String; 4] {
    let number = |name: &str| limit[name].as_u64().unwrap_or_default();
    let (used, most) = (number("used"), number("limit"));
    let full = u128::from(used) * 100 / u128::from(most.max(1));
    let back = match number("reset_ms") {
        0 => String::new(),
        ms if used >= most => format!("next in {}", span(ms)),
        ms => format!("all in {}", span(ms)),
    };
    let window = limit["window"].as_str().map(shown).unwrap_or_default();
    [
        window,
        format!("{used} of {most}"),
        format!("{full} %"),
        back,
    ]
}

/// A time as people say it, rounded up.
fn span(ms: u64) -> String {
    const UNITS: [(u64, &str); 4] = [
        (86_400_000, "days"),
        (3_600_000, "h"),
        (60_000, "min"),
        (1_000, "s"),
    ];
    let fitting = UNITS.iter().find(|(unit, _)| ms > unit * 2);
    match fitting {
        Some((unit, name)) => format!("{} {name}", ms.div_ceil(*unit)),
        None if ms <= 1_000 => format!("{ms} ms"),
        None => format!("{} s", ms.div_ceil(1_000)),
    }
}

/// What else there is to say of a key.
fn besides(key: &Value) -> String {
    let number = |name: &str| key[name].as_u64().filter(|n| *n > 0);
    let mut words = Vec::new();
    if let Some(millionths) = key["share"]["millionths"].as_u64() {
        words.push(share(&key["share"], millionths));
    }
    words.extend(number("waiting").map(|waiting| format!("{waiting} waiting")));
    words.extend(number("paused_ms").map(|ms| format!("paused for {}", span(ms))));
    words.extend(number("estimate").map(|units| format!("sets {units} aside")));
    words.extend(number("missed").map(|missed| format!("{missed} without a value")));
    if key["remembered"] == true {
        words.push("at most: no request since the node's start".into());
    }
    let mode = key["mode"].as_str().filter(|mode| *mode != "store");
    words.extend(mode.map(|mode| format!("goes without the store: {}", shown(mode))));
    words.join(", ")
}

/// What this region has of limits that regions share.
fn share(share: &Value, millionths: u64) -> String {
    let whole = share["whole"].as_array().into_iter().flatten();
    let whole = whole.map(|limit| {
        let window = limit["window"].as_str().map(shown).unwrap_or_default();
        format!("{} per {window}", limit["limit"])
    });
    let whole: Vec<String> = whole.collect();
    let percent = |millionths: u64| millionths as f64 / 10_000.0;
    let mut text = format!(
        "{:.1} percent of {}",
        percent(millionths),
        whole.join(" and ")
    );
    for part in share["leaving"].as_array().into_iter().flatten() {
        let (to, much) = (&part["to"], part["millionths"].as_u64().unwrap_or(0));
        let to = to.as_str().map(shown).unwrap_or_default();
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
    fn a_limit_is_a_line_and_what_is_true_of_the_key_stands_in_the_first() {
        let two = json!({
            "meter_id": "mtr_1", "name": "vendor", "key": "prx_1", "mode": "local_share",
            "limits": [{"window": "minute", "limit": 60, "used": 45, "reset_ms": 11_200},
                       {"window": "day", "limit": 500, "used": 500, "reset_ms": 900}],
            "share": {"regions": ["eu", "us", "ap"], "millionths": 333_333,
                      "whole": [{"window": "minute", "limit": 180}],
                      "leaving": [{"to": "eu", "millionths": 50_000}]},
            "waiting": 3, "paused_ms": 1500, "estimate": 90, "missed": 2,
        });
        let remembered = json!({
            "meter_id": "mtr_22", "name": "", "mode": "store", "remembered": true,
            "limits": [{"window": "concurrency", "limit": 6, "used": 4, "reset_ms": 0}],
        });
        let observing = json!({"meter_id": "mtr_3", "name": "seen", "overflow": true,
                               "mode": "store", "limits": []});
        let found = json!({"items": [two, remembered, observing], "keys_left_out": 7});
        assert_eq!(
            lines(&found, 3),
            [
                "meter   name    key           window       used        full   back            \
                 besides",
                "mtr_1   vendor  prx_1         minute       45 of 60    75 %   all in 12 s     \
                 33.3 percent of 180 per minute, 5.0 percent on the way to eu, 3 waiting, \
                 paused for 2 s, sets 90 aside, \
                 2 without a value, goes without the store: local_share",
                "                              day          500 of 500  100 %  next in 900 ms",
                "mtr_22                        concurrency  4 of 6      66 %                   \
                 at most: no request since the node's start",
                "mtr_3   seen    (all others)  none",
                "these are the 3 of which most is used; --limit shows more",
                "nodes left out 7 further keys: each tells of those of which most is used",
            ]
        );
        let nothing = json!({"items": [], "keys_left_out": 0});
        assert_eq!(
            lines(&nothing, 20),
            ["no meter has counted anything lately"]
        );
    }

    #[test]
    fn times_are_in_the_unit_that_people_would_take() {
        for (ms, text) in [
            (1, "1 ms"),
            (1_000, "1000 ms"),
            (1_001, "2 s"),
            (120_000, "120 s"),
            (120_001, "3 min"),
            (7_200_001, "3 h"),
            (172_800_001, "3 days"),
        ] {
            assert_eq!(span(ms), text);
        }
    }

    #[test]
    fn only_what_can_name_a_meter_becomes_part_of_a_path() {
        assert_eq!(id("mtr_01ab").unwrap(), "mtr_01ab");
        assert_eq!(id("prx_01ab").unwrap(), "prx_01ab");
        for wrong in ["", "mtr_", "crd_01", "mtr_../x", "mtr_a?b", "vendor"] {
            let said = id(wrong).unwrap_err().to_string();
            assert!(
                said.contains("requestrocket list meters"),
                "{wrong}: {said}"
            );
        }
    }
}
