//! `requestrocket add`: target, credentials and proxy for an API in one command.

use std::io::Read;
use std::path::PathBuf;

use anyhow::{Context, bail, ensure};
use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::Api;
use super::problem::Problem;
use crate::cli::{ControlArgs, Output};

/// Arguments of `add`.
#[derive(Debug, Args)]
pub struct AddArgs {
    /// Base URL of the API, such as https://api.openai.com.
    pub base_url: String,
    /// How the API is authenticated to.
    #[arg(long, value_enum, default_value_t)]
    pub auth: AddAuth,
    /// Header for `--auth api-key`.
    #[arg(long)]
    pub header: Option<String>,
    /// Read the API's secret (key, token, or user:password) from standard input.
    #[arg(long, conflicts_with = "secret_file")]
    pub secret_stdin: bool,
    /// Read the API's secret from a file.
    #[arg(long)]
    pub secret_file: Option<PathBuf>,
    /// Short name for the proxy's URL.
    #[arg(long)]
    pub alias: Option<String>,
    /// Allow only this: method and path, as in 'POST /v1/chat/completions'; a path that ends in *
    /// stands for all that begins so. Repeatable.
    #[arg(long, value_name = "METHOD PATH")]
    pub allow: Vec<String>,
    /// Allow only GET and HEAD.
    #[arg(long, conflicts_with = "allow")]
    pub read_only: bool,
    /// Rate limit, as in 60/min or 10000/day. Repeatable.
    #[arg(long, value_name = "N/WINDOW")]
    pub limit: Vec<String>,
    /// Allow a plain http:// URL.
    #[arg(long)]
    pub allow_http: bool,
    /// A network that is not public in which the API may lie. Repeatable.
    #[arg(long, value_name = "CIDR")]
    pub allow_network: Vec<String>,
    /// How to say what was made.
    #[arg(long, value_enum, default_value_t)]
    pub output: Output,
    /// Where the control plane is.
    #[command(flatten)]
    pub control: ControlArgs,
}

/// How a target is authenticated to, for `add`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum AddAuth {
    /// `Authorization: Bearer …`.
    #[default]
    Bearer,
    /// A key in a header (`--header`, default `x-api-key`).
    ApiKey,
    /// `Authorization: Basic …`; the secret is `user:password`.
    Basic,
    /// Nothing.
    None,
}

/// Makes what is needed and prints what to paste. All of it is one version: what fails leaves
/// nothing behind.
///
/// # Errors
/// What is wrong with the arguments, or what the control plane said.
pub async fn run(args: &AddArgs) -> anyhow::Result<()> {
    let given = limits(&args.limit)?;
    let rules = rules(args)?;
    let secret = secret(args)?;
    let api = Api::new(&args.control)?;
    let limits = match args.limit.is_empty() {
        true => default_limits(&api).await?,
        false => given,
    };
    let steps = steps(args, &limits, &rules, secret)?;
    let operations: Vec<&Value> = steps.iter().map(|step| &step.operation).collect();
    let answer = api
        .create("/changes", &json!({ "operations": operations }))
        .await
        .map_err(|error| in_words(error, &steps))?;
    print(args, &made(&answer)?, rules.is_empty());
    Ok(())
}

struct Made {
    url: String,
    key: String,
    proxy: Value,
}

/// One operation, and what a person calls its object.
struct Step {
    what: &'static str,
    operation: Value,
}

/// What makes the target, its credential with the rules, the caller's credential and the proxy.
fn steps(
    args: &AddArgs,
    limits: &Value,
    rules: &[Value],
    secret: Value,
) -> anyhow::Result<Vec<Step>> {
    let create = |what, collection: &str, name: &str, object: Value| Step {
        what,
        operation: json!({ "create": collection, "as": name, "object": object }),
    };
    let injects = args.auth != AddAuth::None;
    let target = json!({
        "base_url": args.base_url,
        "allow_http": args.allow_http,
        "allow_networks": args.allow_network,
        // Without a credential of the API the rules hang on the target itself.
        "default_rule_effect": effect(rules.is_empty() || injects),
    });
    let mut proxy = json!({
        "target_id": "@target", "proxy_credential_ids": ["@caller"],
        "limits": limits, "alias": args.alias,
    });
    let mut steps = vec![create("the target's", "targets", "target", target)];
    if injects {
        let mut credential = json!({
            "kind": "target",
            "auth_type": auth_type(args.auth),
            "secret": secret,
            "hosts": [host(&args.base_url)?],
            "default_rule_effect": effect(rules.is_empty()),
        });
        if let Some(header) = &args.header {
            credential["settings"] = json!({ "header": header });
        }
        proxy["target_credential_id"] = "@injected".into();
        let what = "the target credential's";
        steps.push(create(what, "credentials", "injected", credential));
    }
    let parent = if injects { "@injected" } else { "@target" };
    for rule in rules {
        let operation = json!({ "create": "rules", "parent": parent, "object": rule });
        let what = "a rule's";
        steps.push(Step { what, operation });
    }
    let caller = json!({ "kind": "proxy", "auth_type": "api_key" });
    steps.push(create(
        "the proxy credential's",
        "credentials",
        "caller",
        caller,
    ));
    steps.push(create("the proxy's", "proxies", "proxy", proxy));
    Ok(steps)
}

/// A refusal with the names of objects in the place of the numbers of operations.
fn in_words(error: anyhow::Error, steps: &[Step]) -> anyhow::Error {
    let mut problem = match error.downcast::<Problem>() {
        Ok(problem) => problem,
        Err(error) => return error,
    };
    let errors = problem.0["errors"].as_array_mut();
    for error in errors.into_iter().flatten() {
        let place = error["pointer"].as_str().and_then(|pointer| {
            let (at, field) = pointer
                .strip_prefix("/operations/")?
                .split_once("/object")?;
            let step = steps.get(at.parse::<usize>().ok()?)?;
            Some(format!("{} {field}", step.what).trim_end().to_owned())
        });
        if let Some(words) = place {
            error["pointer"] = words.into();
        }
    }
    problem.into()
}

/// What the answer says of what was made.
fn made(answer: &Value) -> anyhow::Result<Made> {
    let key = answer["generated"][0]["secret"]["key"]
        .as_str()
        .context("the answer holds no key")?
        .to_owned();
    let proxy = answer["changes"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|change| &change["after"])
        .find(|object| object["proxy_credential_ids"].is_array())
        .context("the answer holds no proxy")?;
    let url = proxy["alias_url"]
        .as_str()
        .or_else(|| proxy["url"].as_str())
        .context("the answer holds no url")?
        .to_owned();
    let proxy = proxy.clone();
    Ok(Made { url, key, proxy })
}

fn effect(allows: bool) -> &'static str {
    if allows { "allow" } else { "deny" }
}

fn auth_type(auth: AddAuth) -> &'static str {
    match auth {
        AddAuth::Bearer => "bearer",
        AddAuth::ApiKey => "api_key",
        AddAuth::Basic => "basic",
        AddAuth::None => "none",
    }
}

/// The host that the secret is bound to: scheme and port included where they are not the default.
fn host(base_url: &str) -> anyhow::Result<String> {
    let base = proto::target::BaseUrl::parse(base_url)
        .map_err(|detail| anyhow::anyhow!("{base_url} {detail}"))?;
    Ok(proto::hosts::HostPattern::exact(base.origin).to_string())
}

/// The secret in the shape of its type.
fn secret(args: &AddArgs) -> anyhow::Result<Value> {
    if args.auth == AddAuth::None {
        return Ok(Value::Null);
    }
    let mut text = Zeroizing::new(String::new());
    if args.secret_stdin {
        std::io::stdin()
            .take(65_536)
            .read_to_string(&mut text)
            .context("reading the secret")?;
    } else if let Some(path) = &args.secret_file {
        *text = std::fs::read_to_string(path)
            .with_context(|| format!("reading the secret from {}", path.display()))?;
    } else {
        bail!("give the API's secret with --secret-stdin or --secret-file (or use --auth none)");
    }
    let text = text.trim_end_matches(['\r', '\n']);
    ensure!(!text.is_empty(), "the secret is empty");
    Ok(match args.auth {
        AddAuth::ApiKey => json!({ "key": text }),
        AddAuth::Bearer => json!({ "token": text }),
        AddAuth::Basic => {
            let (user, password) = text
                .split_once(':')
                .context("a secret for --auth basic is user:password")?;
            json!({ "username": user, "password": password })
        }
        AddAuth::None => Value::Null,
    })
}

/// The allow rules that `--allow` and `--read-only` stand for.
fn rules(args: &AddArgs) -> anyhow::Result<Vec<Value>> {
    if args.read_only {
        return Ok(vec![
            json!({ "effect": "allow", "methods": ["GET", "HEAD"] }),
        ]);
    }
    args.allow.iter().map(|text| rule(text)).collect()
}

fn rule(text: &str) -> anyhow::Result<Value> {
    let (method, path) = text
        .split_once(' ')
        .filter(|(_, path)| path.starts_with('/'))
        .with_context(|| format!("--allow '{text}': write it like 'POST /v1/charges'"))?;
    ensure!(
        proto::checks::is_token(method),
        "--allow '{text}': `{method}` is not a method; write it like 'POST /v1/charges'"
    );
    // A trailing * allows everything below; otherwise exactly this path, with or without a slash.
    let pattern = match path.strip_suffix('*') {
        Some(prefix) => format!("^{}", escape(prefix)),
        None => format!("^{}/?$", escape(path.trim_end_matches('/'))),
    };
    Ok(json!({
        "effect": "allow",
        "methods": [method.to_ascii_uppercase()],
        "path": { "pattern": pattern },
    }))
}

/// A text as a pattern that matches exactly it.
fn escape(text: &str) -> String {
    text.chars()
        .fold(String::with_capacity(text.len()), |mut out, c| {
            if r"\.+*?()|[]{}^$#&-~".contains(c) {
                out.push('\\');
            }
            out.push(c);
            out
        })
}

/// What the operator gave the organisation for proxies that say nothing of limits.
async fn default_limits(api: &Api) -> anyhow::Result<Value> {
    let org = api.get("").await?;
    Ok(match &org["default_limits"] {
        Value::Null => json!({}),
        limits => limits.clone(),
    })
}

/// `60/min` and `10000/day` as a proxy's limits.
fn limits(texts: &[String]) -> anyhow::Result<Value> {
    let mut limits = serde_json::Map::new();
    for text in texts {
        let wrong = || format!("--limit {text}: write it like 60/min or 10000/day");
        let (count, window) = text.split_once('/').with_context(wrong)?;
        let count: u64 = count.parse().with_context(wrong)?;
        let field = match window {
            "min" | "minute" => "per_minute",
            "day" => "per_day",
            _ => bail!(wrong()),
        };
        limits.insert(field.into(), count.into());
    }
    Ok(Value::Object(limits))
}

fn print(args: &AddArgs, made: &Made, open: bool) {
    if args.output == Output::Json {
        let out = json!({ "url": made.url, "api_key": made.key, "proxy": made.proxy });
        return say(&out.to_string());
    }
    let mut lines = vec![
        format!("base URL  {}", made.url),
        format!("API key   {}   (shown once)", made.key),
        String::new(),
    ];
    for (variable, value) in sdk_variables(args, made) {
        lines.push(format!("export {variable}={value}"));
    }
    let (method, path) = example(args);
    lines.push(format!(
        "curl{method} -H \"Authorization: Bearer {}\" {}{path}",
        made.key, made.url
    ));
    if open {
        lines.push(String::new());
        lines.push("allows every method and path; narrow with --allow or --read-only".into());
    }
    say(&lines.join("\n"));
}

/// A call that is allowed: curl's option for the method, and the path.
fn example(args: &AddArgs) -> (String, &str) {
    match args.allow.first().and_then(|allow| allow.split_once(' ')) {
        Some((method, path)) if method.eq_ignore_ascii_case("get") => {
            (String::new(), path.trim_end_matches('*'))
        }
        Some((method, path)) => {
            let method = format!(" -X {}", method.to_ascii_uppercase());
            (method, path.trim_end_matches('*'))
        }
        None => (String::new(), "/"),
    }
}

/// The lines that an SDK of this API reads.
fn sdk_variables(args: &AddArgs, made: &Made) -> Vec<(&'static str, String)> {
    let host = host(&args.base_url).unwrap_or_default();
    let behind_v1 = if args.base_url.trim_end_matches('/').ends_with("/v1") {
        ""
    } else {
        "/v1"
    };
    match host.as_str() {
        "api.openai.com" => vec![
            ("OPENAI_BASE_URL", format!("{}{behind_v1}", made.url)),
            ("OPENAI_API_KEY", made.key.clone()),
        ],
        "api.anthropic.com" => vec![
            ("ANTHROPIC_BASE_URL", made.url.clone()),
            ("ANTHROPIC_API_KEY", made.key.clone()),
        ],
        _ => Vec::new(),
    }
}

fn say(text: &str) {
    crate::say(text);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_allowed_call_becomes_a_rule() {
        for (text, method, pattern) in [
            (
                "POST /v1/chat/completions",
                "POST",
                r"^/v1/chat/completions/?$",
            ),
            ("get /v1/models/*", "GET", r"^/v1/models/"),
            ("GET /a.b", "GET", r"^/a\.b/?$"),
            ("GET /", "GET", r"^/?$"),
        ] {
            let rule = rule(text).unwrap();
            assert_eq!(rule["methods"], json!([method]));
            assert_eq!(rule["path"]["pattern"], pattern);
        }
        for bad in ["POST", "/v1", "POST v1", "PO ST /v1", "(x) /v1"] {
            assert!(rule(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn faults_are_told_of_objects_not_of_operations() {
        let step = |what| Step {
            what,
            operation: Value::Null,
        };
        let steps = [step("the target's"), step("the proxy's")];
        let document = json!({"title": "T", "errors": [
            {"pointer": "/operations/0/object/base_url", "detail": "is no URL"},
            {"pointer": "/operations/1/object", "detail": "is wrong"},
            {"pointer": "/operations/7/object", "detail": "is odd"},
        ]});
        let error = in_words(Problem(document).into(), &steps).to_string();
        let expected = "T\n  the target's /base_url is no URL\n  the proxy's is wrong\n  \
                        /operations/7/object is odd";
        assert_eq!(error, expected);
    }

    #[test]
    fn limits_are_read() {
        let check = |texts: &[&str]| {
            limits(
                &texts
                    .iter()
                    .map(|text| (*text).to_owned())
                    .collect::<Vec<_>>(),
            )
            .ok()
        };
        assert_eq!(check(&["60/min"]), Some(json!({ "per_minute": 60 })));
        let both = json!({ "per_minute": 1, "per_day": 5 });
        assert_eq!(check(&["1/minute", "5/day"]), Some(both));
        for bad in ["60", "x/min", "60/hour", "-1/min"] {
            assert_eq!(check(&[bad]), None, "{bad}");
        }
    }
}
