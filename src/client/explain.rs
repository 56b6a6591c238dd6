//! `requestrocket explain`: what would become of a request, stage by stage.

use std::path::Path;

use anyhow::{Context, bail};
use serde_json::{Map, Value, json};

use super::Api;
use super::configuration::{operations, parse, read};
use super::records::shown;
use crate::cli::{ExplainArgs, Output};
use crate::say;

/// Asks the control plane and shows its answer.
///
/// # Errors
/// A file cannot be read, or what the control plane said.
pub async fn explain(args: &ExplainArgs) -> anyhow::Result<()> {
    let question = question(args)?;
    let answer = Api::new(&args.control)?
        .create("/explain", &question)
        .await?;
    match args.output {
        Output::Json => say(&answer.to_string()),
        Output::Text => say(&lines(&answer).join("\n")),
    }
    Ok(())
}

fn question(args: &ExplainArgs) -> anyhow::Result<Value> {
    let mut question = json!({});
    if let Some(credential) = &args.credential {
        question["credential"] = json!(credential);
    }
    if let Some(file) = &args.change {
        let name = file.display();
        let text = read(file).with_context(|| format!("cannot read {name}"))?;
        let change = parse(&text).with_context(|| format!("{name} is not valid"))?;
        question["change"] = operations(change);
    }
    if let Some(record) = &args.record {
        question["record"] = json!(record);
        return Ok(question);
    }
    let Some(proxy) = &args.proxy else {
        bail!("say which proxy and request, or --record ID");
    };
    question["proxy"] = json!(proxy);
    match (&args.method, &args.path, args.last) {
        (Some(method), Some(path), None) => {
            question["request"] = request(args, method, path)?;
        }
        (None, None, Some(last)) => question["last"] = json!(last),
        _ => bail!("say what is asked for: METHOD and PATH, or --last N"),
    }
    Ok(question)
}

/// A request that the arguments of a command describe, as the API takes it.
pub struct Described<'a> {
    /// The method.
    pub method: &'a str,
    /// The path behind the proxy, with its query.
    pub path: &'a str,
    /// Header fields, each written `name: value`.
    pub headers: &'a [String],
    /// The body.
    pub body: Option<&'a str>,
    /// A file with the body; `-` for standard input.
    pub body_file: Option<&'a Path>,
    /// The caller's IP address.
    pub source: Option<&'a str>,
}

impl Described<'_> {
    /// The document of the API.
    ///
    /// # Errors
    /// A header field is written otherwise, or the file cannot be read.
    pub fn document(&self) -> anyhow::Result<Value> {
        let headers = headers(self.headers)?;
        let mut request = json!({"method": self.method, "path": self.path, "headers": headers});
        if let Some(body) = self.body {
            request["body"] = json!(body);
        }
        if let Some(file) = self.body_file {
            let body = read(file).with_context(|| format!("cannot read {}", file.display()))?;
            request["body"] = json!(body);
        }
        if let Some(source) = self.source {
            request["source"] = json!(source);
        }
        Ok(request)
    }
}

fn request(args: &ExplainArgs, method: &str, path: &str) -> anyhow::Result<Value> {
    let described = Described {
        method,
        path,
        headers: &args.headers,
        body: args.body.as_deref(),
        body_file: args.body_file.as_deref(),
        source: args.source.as_deref(),
    };
    described.document()
}

/// Header fields, each written `name: value`, as the API takes them.
///
/// # Errors
/// One is written otherwise.
fn headers(texts: &[String]) -> anyhow::Result<Map<String, Value>> {
    let mut headers: Map<String, Value> = Map::new();
    for header in texts {
        let (name, value) = header
            .split_once(':')
            .with_context(|| format!("`{header}` is no header field: write 'name: value'"))?;
        let values = headers.entry(name.trim()).or_insert_with(|| json!([]));
        if let Value::Array(values) = values {
            values.push(json!(value.trim()));
        }
    }
    Ok(headers)
}

fn lines(answer: &Value) -> Vec<String> {
    if answer["looked_at"].is_number() {
        return summary_lines(answer);
    }
    let text = |value: &Value| value.as_str().map(shown).unwrap_or_default();
    let mut lines = Vec::new();
    let record = &answer["record"];
    if record.is_object() {
        let why = record["auth_failure"]
            .as_str()
            .map(|why| format!(" ({why})"));
        lines.push(format!(
            "it was {} {}: {} {}{}",
            text(&record["method"]),
            text(&record["path"]),
            record["status"],
            text(&record["code"]),
            why.unwrap_or_default()
        ));
    }
    for stage in answer["stages"].as_array().into_iter().flatten() {
        let facts = stage_facts(stage).join(", ");
        let line = format!(
            "{:13} {:8} {facts}",
            text(&stage["stage"]),
            text(&stage["outcome"])
        );
        lines.push(line.trim_end().to_owned());
        for scope in stage["scopes"].as_array().into_iter().flatten() {
            lines.extend(scope_lines(scope));
        }
        for filter in stage["filters"].as_array().into_iter().flatten() {
            let paths: Vec<String> = filter["paths"]
                .as_array()
                .into_iter()
                .flatten()
                .map(text)
                .collect();
            let (id, op) = (text(&filter["id"]), text(&filter["op"]));
            lines.push(format!(
                "    {id} {op} {} ({})",
                paths.join(" "),
                text(&filter["scope"])
            ));
        }
    }
    let code = answer["code"].as_str().map(|code| format!(": {code}"));
    lines.push(format!(
        "{}{}",
        text(&answer["decision"]),
        code.unwrap_or_default()
    ));
    lines
}

/// What a stage says for itself, but for what has lines of its own.
fn stage_facts(stage: &Value) -> Vec<String> {
    let fields = stage.as_object().into_iter().flatten();
    let facts = fields.filter(|(name, value)| {
        let has_place = matches!(name.as_str(), "stage" | "outcome" | "scopes" | "filters");
        !has_place && *value != &json!([])
    });
    facts
        .map(|(name, value)| match value.as_str() {
            Some(text) if name == "detail" || name == "assumed" => format!("{name}: {text}"),
            Some(text) => format!("{name} {text}"),
            None => format!("{name} {value}"),
        })
        .collect()
}

fn scope_lines(scope: &Value) -> Vec<String> {
    let text = |value: &Value| value.as_str().map(shown).unwrap_or_default();
    let by_default = match scope["default"].as_bool() {
        Some(true) => " by default",
        _ => "",
    };
    let (kind, id, outcome) = (
        text(&scope["scope"]),
        text(&scope["scope_id"]),
        text(&scope["outcome"]),
    );
    let mut lines = vec![format!("    {kind} {id}: {outcome}{by_default}")];
    for rule in scope["rules"].as_array().into_iter().flatten() {
        let mut line = format!("        {} {}", text(&rule["id"]), text(&rule["effect"]));
        if rule["mode"] == "shadow" {
            line.push_str(" (shadow)");
        }
        if rule["matches"] == "unknown" {
            line.push_str(" unknown");
        }
        for field in ["because", "message"] {
            if let Some(words) = rule[field].as_str() {
                line.push_str(&format!(": {words}"));
            }
        }
        lines.push(line);
    }
    lines
}

/// What a change that is not published decides otherwise.
fn changed_by_this(answer: &Value) -> Vec<String> {
    let changed = &answer["changed_by_this"];
    if !changed.is_object() {
        return Vec::new();
    }
    let count = |field: &str| changed[field].as_u64().unwrap_or_default();
    let mut first = format!(
        "this change would have denied {} of the last {}",
        count("denied"),
        answer["looked_at"],
    );
    if count("allowed") > 0 {
        first.push_str(&format!(", and let {} pass", count("allowed")));
    }
    if count("unknown") > 0 {
        first.push_str(&format!("; of {} it cannot be said", count("unknown")));
    }
    let mut lines = vec![first];
    lines.extend(decided(&changed["requests"]).map(|one| otherwise(one, "now", "is")));
    lines
}

/// Those of a list whose decision is known: of the others the numbers say how many they are.
fn decided(list: &Value) -> impl Iterator<Item = &Value> {
    let all = list.as_array().into_iter().flatten();
    all.filter(|one| one["decision"] != "unknown")
}

/// A request that is decided otherwise than it was or is.
fn otherwise(one: &Value, before: &str, verb: &str) -> String {
    let text = |field: &str| one[field].as_str().map(shown).unwrap_or_default();
    let (id, method, path) = (text("request_id"), text("method"), text("path"));
    let (before, decision) = (text(before), text("decision"));
    format!("    {id} {method} {path}: {verb} {before}, would be {decision}")
}

fn summary_lines(answer: &Value) -> Vec<String> {
    let count = |field: &str| answer[field].as_u64().unwrap_or_default();
    let mut lines = changed_by_this(answer);
    lines.push(format!(
        "of {} requests {} would pass, {} be denied, {} are unknown",
        count("looked_at"),
        count("allowed"),
        count("denied"),
        count("unknown"),
    ));
    for (rule, denied) in answer["denied_by_rule"].as_object().into_iter().flatten() {
        lines.push(format!("    {rule} denies {denied}"));
    }
    lines.extend(decided(&answer["decided_otherwise"]).map(|one| otherwise(one, "was", "was")));
    if count("unknown") > 0 {
        lines.push(
            "what records do not keep cannot be judged; a rule with `mode: shadow` shows it".into(),
        );
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_explanation_is_a_line_per_stage_scope_and_rule() {
        let answer = json!({
            "decision": "denied", "code": "proxy-access-denied",
            "stages": [
                {"stage": "receive", "outcome": "pass", "path": "/a"},
                {"stage": "authorize", "outcome": "deny", "scopes": [
                    {"scope": "proxy", "scope_id": "prx_1", "outcome": "deny", "default": false,
                     "rules": [{"id": "rul_1", "effect": "deny", "mode": "enforce",
                                "matches": "yes", "message": "no"}]},
                    {"scope": "target", "scope_id": "tgt_1", "outcome": "allow", "default": true,
                     "rules": [{"id": "rul_2", "effect": "deny", "mode": "shadow",
                                "matches": "unknown", "because": "needs the body"}]},
                ]},
            ],
        });
        assert_eq!(
            lines(&answer),
            [
                "receive       pass     path /a",
                "authorize     deny",
                "    proxy prx_1: deny",
                "        rul_1 deny: no",
                "    target tgt_1: allow by default",
                "        rul_2 deny (shadow) unknown: needs the body",
                "denied: proxy-access-denied",
            ]
        );
    }

    #[test]
    fn a_summary_says_what_would_be_decided_otherwise() {
        let answer = json!({
            "looked_at": 500, "allowed": 158, "denied": 2, "unknown": 340,
            "denied_by_rule": {"rul_1": 2},
            "decided_otherwise": [{"request_id": "req_1", "method": "GET", "path": "/x",
                                   "was": "proxy-access-granted", "decision": "denied"}],
        });
        let lines = lines(&answer);
        assert_eq!(
            lines[0],
            "of 500 requests 158 would pass, 2 be denied, 340 are unknown"
        );
        assert_eq!(lines[1], "    rul_1 denies 2");
        assert_eq!(
            lines[2],
            "    req_1 GET /x: was proxy-access-granted, would be denied"
        );
        assert!(lines[3].contains("shadow"));
    }

    #[test]
    fn a_summary_begins_with_what_the_change_decides() {
        let mut answer = json!({
            "looked_at": 500, "allowed": 495, "denied": 5, "unknown": 0,
            "denied_by_rule": {}, "decided_otherwise": [],
            "changed_by_this": {"denied": 2, "allowed": 0, "unknown": 0, "requests": [
                {"request_id": "req_1", "method": "GET", "path": "/x", "now": "allowed",
                 "decision": "denied"},
            ]},
        });
        let said = lines(&answer);
        assert_eq!(said[0], "this change would have denied 2 of the last 500");
        assert_eq!(said[1], "    req_1 GET /x: is allowed, would be denied");
        assert!(said[2].starts_with("of 500 requests"), "{said:?}");
        answer["changed_by_this"] =
            json!({"denied": 0, "allowed": 1, "unknown": 3, "requests": []});
        let said = lines(&answer);
        assert_eq!(
            said[0],
            "this change would have denied 0 of the last 500, and let 1 pass; \
             of 3 it cannot be said"
        );
    }
}
