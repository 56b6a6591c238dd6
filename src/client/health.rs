//! `requestrocket health`: whether a process serves, and, with an operator's token, whether
//! everything around it is well. The exit code says it too.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use control::publish::NO_TIME;
use serde_json::{Value, json};

use super::problem::Problem;
use super::records::shown;
use super::region_faults::{diverged, skew, untaken, unverified};
use super::{Api, nodes, recover, regions};
use crate::cli::{ControlArgs, Output};
use crate::say;

/// How long a probe waits for an answer.
const PROBE_MAX: Duration = Duration::from_secs(5);
/// Largest answer to a probe that is read, in bytes.
const PROBE_BYTES_MAX: usize = 64 * 1024;

/// Arguments of `health`.
#[derive(Debug, Args)]
pub struct HealthArgs {
    /// Ask this URL alone whether its process serves: that of `admin.listen` of a node or control
    /// plane, or of a control plane. No token is needed.
    #[arg(long, value_name = "URL", conflicts_with = "lag_max_s")]
    pub probe: Option<String>,
    /// How many seconds a node or region may be behind.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub lag_max_s: u32,
    /// How to show it.
    #[arg(long, value_enum, default_value_t)]
    pub output: Output,
    /// Where the control plane is.
    #[command(flatten)]
    pub control: ControlArgs,
}

/// What was found.
#[derive(Default)]
struct Found {
    lines: Vec<String>,
    /// What is not as it should be.
    faults: Vec<String>,
    document: Value,
}

/// Asks, and says what is found.
///
/// # Errors
/// Something is not as it should be, or cannot be reached.
pub async fn check(args: &HealthArgs) -> anyhow::Result<()> {
    let found = match &args.probe {
        Some(url) => probed(args, (url, "--probe")).await?,
        None => {
            let control = (args.control.control_url.as_str(), super::NAMED_BY);
            let found = probed(args, control).await?;
            around(args, found).await?
        }
    };
    match args.output {
        Output::Json => {
            let mut document = found.document;
            document["healthy"] = found.faults.is_empty().into();
            document["faults"] = json!(found.faults);
            say(&document.to_string());
        }
        Output::Text => say(&found.lines.join("\n")),
    }
    match found.faults.len() {
        0 => Ok(()),
        1 => bail!("not healthy: {}", found.faults[0]),
        several => bail!(
            "not healthy: {several} faults, the first: {}",
            found.faults[0]
        ),
    }
}

/// What the probes at a URL answer.
async fn probed(args: &HealthArgs, (url, named_by): (&str, &'static str)) -> anyhow::Result<Found> {
    let (client, base) = super::connection(ca_file(args, url), (url, named_by), PROBE_MAX)?;
    let mut words = Vec::new();
    for path in ["/healthz", "/readyz"] {
        let asked = client.get(format!("{base}{path}")).send().await;
        let mut answer = asked
            .map_err(|error| anyhow::anyhow!("{error}"))
            .with_context(|| format!("cannot reach {base} ({named_by})"))?;
        let document = answer.body().limit(PROBE_BYTES_MAX).await?;
        let document: Value = serde_json::from_slice(&document).unwrap_or_default();
        let Some(word) = document["status"].as_str().map(shown) else {
            bail!(
                "{base}{path} answered {} and not as a process of RequestRocket does; check the \
                 address ({named_by})",
                answer.status()
            );
        };
        words.push((answer.status().is_success(), word));
    }
    Ok(ready(base, &words))
}

/// The authorities for a URL. Those of the control plane, by the environment, say nothing of a
/// process without TLS that is probed beside it.
fn ca_file<'a>(args: &'a HealthArgs, url: &str) -> Option<&'a Path> {
    let is_probed_bare = args.probe.is_some() && url.trim().starts_with("http://");
    args.control.ca_file.as_deref().filter(|_| !is_probed_bare)
}

/// What `/healthz` and `/readyz` say: whether they said yes, and the word.
fn ready(base: &str, words: &[(bool, String)]) -> Found {
    let word = words
        .last()
        .map(|(_, word)| word.as_str())
        .unwrap_or_default();
    let faults = match words.iter().all(|(yes, _)| *yes) {
        true => Vec::new(),
        false => vec![format!("{base} does not serve: {word}")],
    };
    Found {
        lines: vec![format!("{base}  {word}")],
        faults,
        document: json!({"url": base, "status": word}),
    }
}

/// What the control plane knows of nodes, regions and the store, where the token is for that.
async fn around(args: &HealthArgs, mut found: Found) -> anyhow::Result<Found> {
    if found.document["status"] == "degraded" {
        let degraded = "the control plane does not reach the store: nothing can be changed";
        found.faults.push(degraded.to_owned());
    }
    if args.control.token.is_none() {
        let token = "nodes, store and regions were not asked for: no token (REQUESTROCKET_TOKEN)";
        found.lines.push(token.to_owned());
        return Ok(found);
    }
    let api = Api::new(&args.control)?;
    let lag_max_s = f64::from(args.lag_max_s);
    let nodes = nodes::found(&api, &args.control.org).await;
    found.add("nodes", nodes, |found| judge_nodes(found, lag_max_s))?;
    let store = api.list_absolute("/recovery").await;
    found.add("store", store, judge_store)?;
    let regions = api.list_absolute("/regions").await;
    found.add("regions", regions, |found| judge_regions(found, lag_max_s))?;
    Ok(found)
}

/// Lines for a person, and faults.
type Judged = (Vec<String>, Vec<String>);

impl Found {
    /// Adds an answer, or that the token is not for it.
    fn add(
        &mut self,
        name: &str,
        answer: anyhow::Result<Value>,
        judge: impl Fn(&Value) -> Judged,
    ) -> anyhow::Result<()> {
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) => {
                let problem = error.downcast::<Problem>()?;
                let line = format!("{name}: {problem}");
                // Who may not know it is no fault; that nobody can tell it is one.
                if problem.0["status"] != 403 {
                    self.faults.push(line.clone());
                }
                self.lines.push(line);
                self.document[name] = json!({ "not_known": problem.0 });
                return Ok(());
            }
        };
        let (lines, faults) = judge(&answer);
        self.lines.extend(lines);
        self.faults.extend(faults);
        self.document[name] = answer["items"].clone();
        Ok(())
    }
}

fn items(found: &Value) -> &[Value] {
    found["items"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default()
}

fn judge_nodes(found: &Value, lag_max_s: f64) -> Judged {
    let nodes = items(found);
    let lines = nodes::lines(nodes);
    if nodes.is_empty() {
        return (
            lines,
            vec!["no node is there: no call is answered".to_owned()],
        );
    }
    let mut faults = Vec::new();
    for node in nodes {
        let name = node["name"].as_str().unwrap_or_default();
        let of_node = nodes::faults(node).into_iter();
        let of_node = of_node.filter(|fault| nodes::is_of_now_and_its_own(fault));
        faults.extend(of_node.map(|fault| format!("node {name}: {fault}")));
        let applied = &node["applied"];
        let lag_s = applied["lag_s"].as_f64().filter(|lag_s| *lag_s > lag_max_s);
        faults.extend(lag_s.map(|lag_s| format!("node {name}: it is behind for {lag_s} s")));
        if applied["apart"] == true {
            faults.push(format!(
                "node {name}: it serves a version that the store does not have"
            ));
        }
    }
    (lines, faults)
}

fn judge_store(found: &Value) -> Judged {
    // With what was not looked at.
    let lines = recover::regressions(found);
    let lacking = items(found).len();
    let lacking = (lacking > 0).then(|| {
        format!("the store lacks something of {lacking} organisations: `requestrocket recover`")
    });
    // That time ran out tells nothing of the store; that it cannot be read does.
    let unchecked = found["unchecked"].as_array().into_iter().flatten();
    let mut unread = unchecked.filter_map(|one| one["why"].as_str().filter(|why| *why != NO_TIME));
    let unread = unread.next().map(|why| {
        let why = shown(why);
        format!("whether the store has lost leaves cannot be told: {why}")
    });
    (lines, lacking.into_iter().chain(unread).collect())
}

fn judge_regions(found: &Value, lag_max_s: f64) -> Judged {
    let mut faults = Vec::new();
    for region in items(found) {
        let name = region["name"].as_str().unwrap_or_default();
        let told = [skew(region), diverged(region)].into_iter().flatten();
        let told = told.chain(unverified(region)).chain(untaken(region));
        let mut of_region: Vec<String> = told.map(|line| line.trim().to_owned()).collect();
        let replication = &region["replication"];
        // Of a region's control planes one replicates, and knows; how far other regions have come
        // is theirs to judge.
        if region["own"] == true && replication["leads"] == true {
            if replication["connected"] != true {
                let why = replication["error"]
                    .as_str()
                    .unwrap_or("home does not answer");
                of_region.push(format!("it is not connected: {why}"));
            }
            let lag_s = replication["lag_seconds"].as_f64();
            let lag_s = lag_s.filter(|lag_s| *lag_s > lag_max_s);
            of_region.extend(lag_s.map(|lag_s| format!("it was current {lag_s:.0} s ago")));
        }
        let of_region = of_region.into_iter();
        faults.extend(of_region.map(|fault| format!("region {name}: {fault}")));
    }
    (regions::regions(found), faults)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_drains_does_not_serve_and_who_has_no_store_still_does() {
        let said =
            |yes: bool, word: &str| ready("http://a", &[(true, "ok".into()), (yes, word.into())]);
        assert!(said(true, "ok").faults.is_empty());
        assert!(said(true, "degraded").faults.is_empty());
        let draining = said(false, "draining");
        assert_eq!(draining.faults, ["http://a does not serve: draining"]);
        assert_eq!(draining.lines, ["http://a  draining"]);
    }

    #[test]
    fn a_probe_without_tls_needs_no_authorities() {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            health: HealthArgs,
        }
        let parsed = |arguments: &[&str]| {
            let line = [&["health", "--ca-file", "ca.pem"][..], arguments].concat();
            <Line as clap::Parser>::try_parse_from(line).map(|line| line.health)
        };
        for (arguments, url, takes) in [
            (&["--probe", "http://a"][..], "http://a", false),
            (&["--probe", "https://a"], "https://a", true),
            // It is told that it is not for that one.
            (&["--lag-max-s", "5"], "http://a", true),
        ] {
            let args = parsed(arguments).unwrap();
            assert_eq!(ca_file(&args, url).is_some(), takes, "{arguments:?}");
        }
        assert!(parsed(&["--probe", "http://a", "--lag-max-s", "5"]).is_err());
    }

    #[test]
    fn a_store_that_cannot_be_read_is_a_fault_and_a_look_without_time_is_none() {
        for (why, expected) in [(NO_TIME, 0), ("a leaf is damaged", 1)] {
            let found = json!({"items": [], "unchecked_count": 1, "unchecked": [
                {"org": "org_1", "slug": "acme", "why": why}]});
            let (lines, faults) = judge_store(&found);
            assert!(lines.len() == 1 && lines[0].contains(why), "{lines:?}");
            assert_eq!(faults.len(), expected, "{faults:?}");
        }
        assert!(judge_store(&json!({"items": []})).1.is_empty());
    }

    #[test]
    fn a_node_is_well_although_a_target_is_not() {
        let check = |node: Value, expected: &[&str]| {
            let (lines, faults) = judge_nodes(&json!({ "items": [node] }), 60.0);
            assert_eq!(faults, expected, "{lines:?}");
        };
        check(
            json!({"name": "gw-1", "current": true, "restarts": {"records": 1},
                   "failing": [{"endpoint": "a", "target": "t", "detail": "no"}]}),
            &[],
        );
        check(json!({"name": "gw-1", "applied": {"lag_s": 60}}), &[]);
        check(
            json!({"name": "gw-1", "applied": {"org": "o", "lag_s": 61}, "meters_degraded": 2,
                   "problems": [{"code": "cut-off", "detail": "it serves what it has"}]}),
            &[
                "node gw-1: cut-off it serves what it has",
                "node gw-1: meters-degraded 2 go without the store, by their on_store_loss",
                "node gw-1: it is behind for 61 s",
            ],
        );
        let (_, faults) = judge_nodes(&json!({"items": []}), 60.0);
        assert_eq!(faults, ["no node is there: no call is answered"]);
    }

    #[test]
    fn a_region_is_judged_by_the_control_plane_that_replicates() {
        let region = |leads: bool, connected: bool, lag: f64| {
            json!({"items": [
                {"name": "us", "own": false, "home": true, "gateway": "http://us"},
                {"name": "eu", "own": true, "home": false, "replication": {
                    "leads": leads, "connected": connected, "lag_versions": 0,
                    "lag_seconds": lag, "diverged": [], "error": null}},
            ]})
        };
        for (found, expected) in [
            (region(true, true, 1.5), &[][..]),
            (region(false, false, 500.0), &[]),
            (
                region(true, true, 61.2),
                &["region eu: it was current 61 s ago"],
            ),
            (
                region(true, false, 5.0),
                &["region eu: it is not connected: home does not answer"],
            ),
        ] {
            let (lines, faults) = judge_regions(&found, 60.0);
            assert_eq!(faults, expected, "{lines:?}");
            assert_eq!(lines.len(), 2);
        }
    }

    #[test]
    fn what_the_token_is_not_for_is_no_fault_and_what_nobody_can_tell_is_one() {
        for (status, expected) in [(403, 0), (503, 1)] {
            let problem = Problem(json!({"status": status, "title": "T", "detail": "d"}));
            let mut found = Found::default();
            let judged = |_: &Value| (Vec::new(), Vec::new());
            found.add("nodes", Err(problem.into()), judged).unwrap();
            assert_eq!(found.faults.len(), expected, "{status}");
            assert_eq!(found.lines, ["nodes: T: d"]);
            assert_eq!(found.document["nodes"]["not_known"]["status"], status);
        }
        let mut found = Found::default();
        let away = Err(anyhow::anyhow!("cannot reach"));
        assert!(
            found
                .add("nodes", away, |_| (Vec::new(), Vec::new()))
                .is_err()
        );
    }
}
