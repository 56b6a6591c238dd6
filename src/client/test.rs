//! `requestrocket test`: a request through a proxy, sent by a node.

use std::path::PathBuf;

use anyhow::bail;
use awc::http::Method;
use clap::Args;
use serde_json::{Value, json};

use super::Api;
use super::explain::Described;
use super::kinds::Kind;
use super::named;
use crate::cli::{ControlArgs, Output};
use crate::say;

/// Arguments of `test`.
#[derive(Debug, Args)]
pub struct TestArgs {
    /// The proxy, by id, alias or name.
    pub proxy: String,
    /// The request's method.
    #[arg(default_value = "GET")]
    pub method: String,
    /// The request's path behind the proxy, with its query.
    #[arg(default_value = "/")]
    pub path: String,
    /// A header field, as in 'content-type: application/json'. Repeatable.
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE")]
    pub headers: Vec<String>,
    /// The request's body.
    #[arg(long, conflicts_with = "body_file")]
    pub body: Option<String>,
    /// A file with the request's body; `-` for standard input.
    #[arg(long)]
    pub body_file: Option<PathBuf>,
    /// Id of the proxy credential that the caller is taken to hold; by default the proxy's first.
    #[arg(long)]
    pub credential: Option<String>,
    /// Show the target's answer; needs role admin.
    #[arg(long)]
    pub answer: bool,
    /// How to say it.
    #[arg(long, value_enum, default_value_t)]
    pub output: Output,
    /// Where the control plane is.
    #[command(flatten)]
    pub control: ControlArgs,
}

/// Sends the request and shows its outcome.
///
/// # Errors
/// What the control plane said, or who ended the request.
pub async fn run(args: &TestArgs) -> anyhow::Result<()> {
    let question = question(args)?;
    let api = Api::new(&args.control)?;
    let of = (Kind::Proxies, args.control.org.as_str());
    let proxy = named::find(&api, of, None, &args.proxy).await?;
    let path = format!("{}/test", proxy.path);
    let outcome = api
        .write(Method::POST, &path, None, Some(&question))
        .await?;
    match args.output {
        Output::Json => say(&outcome.to_string()),
        Output::Text => say(&lines(&outcome).join("\n")),
    }
    match outcome["code"].as_str() {
        Some("proxy-access-granted") => Ok(()),
        code => bail!("{}", ending(code.unwrap_or("?"))),
    }
}

/// Who ended a request that did not succeed, with the code of its end.
fn ending(code: &str) -> String {
    let who = match code {
        "upstream-unreachable" | "upstream-tls" | "upstream-timeout" => "the target did not answer",
        "upstream-invalid" | "response-too-large" | "filter-not-json" | "redirect-blocked" => {
            "the target's answer was not passed on"
        }
        "internal-error" | "gateway-stopped" => "the gateway failed",
        _ => "the gateway refused the request",
    };
    format!("{who}: {code}")
}

fn question(args: &TestArgs) -> anyhow::Result<Value> {
    let request = Described {
        method: &args.method,
        path: &args.path,
        headers: &args.headers,
        body: args.body.as_deref(),
        body_file: args.body_file.as_deref(),
        // It comes from this machine.
        source: None,
    };
    let request = request.document()?;
    let mut question = json!({ "request": request, "answer": args.answer });
    if let Some(credential) = &args.credential {
        question["credential"] = json!(credential);
    }
    Ok(question)
}

fn lines(outcome: &Value) -> Vec<String> {
    let text = |key: &str| outcome[key].as_str().unwrap_or_default();
    let target = match outcome["upstream_status"].as_u64() {
        Some(status) => format!(", the target {status}"),
        None => String::new(),
    };
    let ms = |us: &Value| us.as_u64().unwrap_or_default() as f64 / 1_000.0;
    let mut lines = vec![format!(
        "{} {}{target} in {:.1} ms on node {}, record {}",
        outcome["status"],
        text("code"),
        ms(&outcome["total_us"]),
        text("node"),
        text("request_id"),
    )];
    for stage in outcome["stages"].as_array().into_iter().flatten() {
        let name = stage["stage"].as_str().unwrap_or_default();
        lines.push(format!("  {name:13} {:9.3} ms", ms(&stage["us"])));
    }
    if let Some(why) = outcome["auth_failure"].as_str() {
        lines.push(format!("why: {why}"));
    }
    let problem = &outcome["problem"];
    if let Some(detail) = problem["detail"].as_str() {
        lines.push(detail.to_owned());
    }
    for denial in problem["denials"].as_array().into_iter().flatten() {
        let part = |key: &str| denial[key].as_str().unwrap_or_default();
        lines.push(format!(
            "  denied by {} {}",
            part("scope"),
            part("scope_id")
        ));
    }
    let answer = &outcome["answer"];
    if answer.is_object() {
        lines.push(String::new());
        for field in answer["headers"].as_array().into_iter().flatten() {
            let part = |at: usize| field[at].as_str().unwrap_or_default();
            lines.push(format!("{}: {}", part(0), part(1)));
        }
        lines.push(String::new());
        lines.push(answer["body"].as_str().unwrap_or_default().to_owned());
        if answer["whole"] == json!(false) {
            lines.push("… (cut)".to_owned());
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_says_whose_it_is() {
        for code in ["upstream-unreachable", "upstream-tls", "upstream-timeout"] {
            assert_eq!(ending(code), format!("the target did not answer: {code}"));
        }
        let withheld = "the target's answer was not passed on: response-too-large";
        assert_eq!(ending("response-too-large"), withheld);
        let refused = "the gateway refused the request: rate-limited";
        assert_eq!(ending("rate-limited"), refused);
    }

    #[test]
    fn an_outcome_says_what_became_of_it_and_why() {
        let outcome = json!({
            "request_id": "req_1", "node": "gw-1", "status": 400, "code": "proxy-access-denied",
            "upstream_status": null, "total_us": 1500, "attempts": 0,
            "stages": [{"stage": "authorize", "us": 12}],
            "problem": {"detail": "a rule denies it",
                        "denials": [{"scope": "target", "scope_id": "tgt_1"}]},
            "answer": null,
        });
        assert_eq!(
            lines(&outcome),
            [
                "400 proxy-access-denied in 1.5 ms on node gw-1, record req_1",
                "  authorize         0.012 ms",
                "a rule denies it",
                "  denied by target tgt_1",
            ]
        );
        let granted = json!({
            "status": 200, "code": "proxy-access-granted", "upstream_status": 200,
            "answer": {"headers": [["a", "b"]], "body": "hello", "whole": false},
        });
        let lines = lines(&granted);
        assert!(lines[0].contains(", the target 200 in "), "{lines:?}");
        assert_eq!(lines[1..], ["", "a: b", "", "hello", "… (cut)"]);
    }
}
