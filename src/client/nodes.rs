//! `requestrocket nodes`: who serves, and what.

use serde_json::Value;

use super::Api;
use super::access::DEFAULT_ORG;
use super::clock_skew;
use super::problem::Problem;
use super::records::shown;
use crate::cli::{NodesArgs, Output};
use crate::say;

/// The code of a task that panicked and runs again.
const RESTARTED: &str = "task-restarted";
/// The code of a target's endpoint that does not answer.
const FAILING: &str = "endpoint-failing";

/// Whether a fault is one that a node has now, and that is its own: not a task that runs again, nor
/// a target that does not answer.
pub(super) fn is_of_now_and_its_own(fault: &str) -> bool {
    ![RESTARTED, FAILING]
        .iter()
        .any(|code| fault.starts_with(code))
}

/// Lists the nodes.
///
/// # Errors
/// What the control plane said.
pub async fn list(args: &NodesArgs) -> anyhow::Result<()> {
    let api = Api::new(&args.control)?;
    let found = found(&api, &args.control.org).await?;
    if args.output == Output::Json {
        say(&found.to_string());
        return Ok(());
    }
    let items = found["items"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    say(&lines(items).join("\n"));
    Ok(())
}

/// The nodes, with what they serve of an organisation.
///
/// # Errors
/// What the control plane said.
pub(super) async fn found(api: &Api, org: &str) -> anyhow::Result<Value> {
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    let query = query.append_pair("org", org).finish();
    match api.list_absolute(&format!("/nodes?{query}")).await {
        Ok(found) => Ok(found),
        // Where nobody named one, the organisation is not what is to be known.
        Err(error) if org == DEFAULT_ORG && is_of_the_question(&error) => {
            let found = api.list_absolute("/nodes").await?;
            let org = shown(org);
            eprintln!("requestrocket: not shown is which version of {org} each serves: {error}");
            Ok(found)
        }
        Err(error) => Err(error),
    }
}

/// Whether the control plane refused the question as it was asked (400): without the organisation
/// it may answer.
fn is_of_the_question(error: &anyhow::Error) -> bool {
    let problem = error.downcast_ref::<Problem>();
    problem.is_some_and(|problem| problem.0["status"] == 400)
}

/// A line for each node, and for each thing that is to be known of it.
pub(super) fn lines(nodes: &[Value]) -> Vec<String> {
    if nodes.is_empty() {
        return vec!["no node is there".into()];
    }
    let mut lines = Vec::new();
    for node in nodes {
        lines.push(first_line(node));
        lines.extend(applied(&node["applied"]));
        for org in node["behind"].as_array().into_iter().flatten() {
            lines.push(format!(
                "      has not seen version {} of {}",
                org["newest"],
                organisation(org).unwrap_or_default()
            ));
        }
        for (key, count) in node["sealing"]["older"].as_object().into_iter().flatten() {
            lines.push(format!(
                "      {count} of its secrets are sealed to key {key}, which has to stay in the \
                 key ring"
            ));
        }
        let faults = faults(node).into_iter();
        lines.extend(faults.map(|fault| format!("    ! {fault}")));
    }
    lines
}

/// What is wrong with a node: a code, and words.
pub(super) fn faults(node: &Value) -> Vec<String> {
    let listed = |name: &str| node[name].as_array().into_iter().flatten();
    let mut faults = Vec::new();
    for problem in listed("problems") {
        let text = |key: &str| problem[key].as_str().unwrap_or_default();
        faults.push(format!("{} {}", text("code"), text("detail")));
    }
    faults.extend(clock_skew::words(node, "the control plane's"));
    if let Some(meters) = node["meters_degraded"].as_u64() {
        faults.push(format!(
            "meters-degraded {meters} go without the store, by their on_store_loss"
        ));
    }
    for (task, count) in node["restarts"].as_object().into_iter().flatten() {
        faults.push(format!("{RESTARTED} {task}: {count} times; see its log"));
    }
    for (file, why) in node["not_kept"].as_object().into_iter().flatten() {
        let why = why.as_str().unwrap_or_default();
        faults.push(format!("copy-not-written {file}: {why}"));
    }
    for failing in listed("failing") {
        let text = |key: &str| failing[key].as_str().unwrap_or_default();
        let (endpoint, target, detail) = (text("endpoint"), text("target"), text("detail"));
        faults.push(format!("{FAILING} {endpoint} of {target}: {detail}"));
    }
    for fault in listed("faults") {
        let text = |key: &str| fault[key].as_str().unwrap_or_default();
        let place = [text("org"), text("object")].join(" ");
        faults.push(format!(
            "{} {}: {}",
            text("code"),
            place.trim(),
            text("detail")
        ));
    }
    faults
}

/// What an organisation is called: its slug, or where that is not known its id.
fn organisation(of: &Value) -> Option<&str> {
    of["slug"].as_str().or(of["org"].as_str())
}

/// What a node serves of the organisation that was asked for.
fn applied(applied: &Value) -> Option<String> {
    let org = organisation(applied)?;
    let lag = (
        applied["version"].as_u64(),
        applied["lag_versions"].as_u64(),
    );
    if applied["apart"] == true {
        return Some(format!(
            "      serves version {} of {org}, which is not in the line of versions of the store, \
             whose newest is {}",
            applied["version"], applied["newest"]
        ));
    }
    Some(match lag {
        (None, _) => format!(
            "      which version of {org} it serves is not known, the newest is {}",
            applied["newest"]
        ),
        (Some(n), None) => format!("      serves version {n} of {org}"),
        (Some(n), Some(0)) => format!("      serves version {n} of {org}, the newest"),
        (Some(n), Some(versions)) => format!(
            "      serves version {n} of {org}, {versions} behind version {} for {} s",
            applied["newest"], applied["lag_s"]
        ),
    })
}

/// Who a node is and whether it serves the newest.
fn first_line(node: &Value) -> String {
    let text = |key: &str| node[key].as_str().unwrap_or_default();
    // One that is cut from etcd, or all while etcd is away, are known by their connection only.
    if let Some(since) = node["connected_since"].as_str() {
        return format!(
            "{:20} {:12} connected since {since}, last heard {}",
            text("name"),
            text("region"),
            text("heard_at"),
        );
    }
    let state = match node["current"].as_bool() {
        Some(true) => "current",
        _ => "behind",
    };
    format!(
        "{:20} {:12} {:22} {:10} {state} at revision {}, {} in flight",
        text("name"),
        text("region"),
        text("address"),
        text("program"),
        node["revision"],
        node["in_flight"],
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_node_is_a_line_and_so_is_each_of_its_faults() {
        let node = json!({
            "name": "gw-1", "region": "eu", "address": "10.0.0.1:8080", "program": "0.1.0",
            "revision": 7, "in_flight": 3, "current": false, "clock_ahead_ms": -2_500,
            "meters_degraded": 2,
            "behind": [{"org": "org_1", "slug": "acme", "newest": 9},
                       {"org": "org_2", "slug": null, "newest": 3}],
            "applied": {"org": "org_1", "slug": "acme", "version": 7, "newest": 9,
                        "lag_versions": 2, "lag_s": 31},
            "problems": [{"code": "name-taken", "detail": "gw-1 too"}],
            "restarts": {"records": 3}, "not_kept": {"kept.bin": "no space left"},
            "sealing": {"keys": ["k2", "k1"], "older": {"k1": 4}},
            "failing": [{"target": "tgt_1", "endpoint": "a:443", "detail": "it answered 503"}],
            "faults": [{"org": "org_1", "object": null, "code": "leaf-missing", "detail": "gone"}],
        });
        let lines = lines(&[node]);
        assert!(lines[0].starts_with("gw-1"), "{lines:?}");
        assert!(
            lines[0].ends_with("behind at revision 7, 3 in flight"),
            "{lines:?}"
        );
        assert_eq!(
            lines[1],
            "      serves version 7 of acme, 2 behind version 9 for 31 s"
        );
        assert_eq!(lines[2], "      has not seen version 9 of acme");
        assert_eq!(lines[3], "      has not seen version 3 of org_2");
        let older =
            "      4 of its secrets are sealed to key k1, which has to stay in the key ring";
        assert_eq!(lines[4], older);
        assert_eq!(lines[5], "    ! name-taken gw-1 too");
        assert_eq!(
            lines[6],
            "    ! clock-skew its clock is 2.5 s behind the control plane's; set both by NTP"
        );
        assert_eq!(
            lines[7],
            "    ! meters-degraded 2 go without the store, by their on_store_loss"
        );
        assert_eq!(
            lines[8..],
            [
                "    ! task-restarted records: 3 times; see its log",
                "    ! copy-not-written kept.bin: no space left",
                "    ! endpoint-failing a:443 of tgt_1: it answered 503",
                "    ! leaf-missing org_1: gone",
            ]
        );
        assert_eq!(super::lines(&[]), ["no node is there"]);
    }

    #[test]
    fn only_a_refused_question_is_asked_again_without_the_organisation() {
        let problem = |status: u16| anyhow::Error::from(Problem(json!({"status": status})));
        assert!(is_of_the_question(&problem(400)));
        for status in [401, 403, 404, 503] {
            assert!(!is_of_the_question(&problem(status)), "{status}");
        }
        assert!(!is_of_the_question(&anyhow::anyhow!("cannot be reached")));
    }

    #[test]
    fn what_a_node_serves_of_one_organisation_is_a_line() {
        let check = |applied: Value, expected: Option<&str>| {
            let expected = expected.map(|text| format!("      {text}"));
            assert_eq!(super::applied(&applied), expected, "{applied}");
        };
        check(Value::Null, None);
        check(
            json!({"org": "org_1", "version": 9, "newest": 9, "lag_versions": 0, "lag_s": 0}),
            Some("serves version 9 of org_1, the newest"),
        );
        check(
            json!({"org": "org_1", "version": 9, "newest": null}),
            Some("serves version 9 of org_1"),
        );
        check(
            json!({"org": "org_1", "version": 9, "newest": 7, "apart": true}),
            Some(
                "serves version 9 of org_1, which is not in the line of versions of the store, \
                 whose newest is 7",
            ),
        );
        check(
            json!({"org": "org_1", "version": null, "newest": 9}),
            Some("which version of org_1 it serves is not known, the newest is 9"),
        );
    }

    #[test]
    fn a_node_that_is_cut_off_says_so_and_since_when_it_is_connected() {
        let node = json!({
            "name": "gw-1", "region": "eu", "current": false,
            "connected_since": "2026-01-01T00:00:00Z", "heard_at": "2026-01-01T00:00:20Z",
            "problems": [{"code": "cut-off", "detail": "it serves what it has"}],
        });
        let said = "gw-1                 eu           connected since 2026-01-01T00:00:00Z, last \
                    heard 2026-01-01T00:00:20Z";
        let lines = lines(&[node]);
        assert_eq!(lines, [said, "    ! cut-off it serves what it has"]);
    }
}
