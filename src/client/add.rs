//! `requestrocket add`: target, credentials and proxy for an API in one command.

use anyhow::{Context, bail, ensure};
use clap::{Args, ValueEnum};
use proto::target::BaseUrl;
use serde_json::{Value, json};

use super::Api;
use super::dialled::{base, not_dialled};
use super::narrowing::{limits, rules};
use super::problem::Problem;
use super::sdks;
use super::secrets::SecretArgs;
use super::warnings::line;
use crate::cli::{ControlArgs, Output};
use crate::say;
use crate::setting_faults::whole;

/// Arguments of `add`.
#[derive(Debug, Args)]
pub struct AddArgs {
    /// Base URL of the API, such as https://api.openai.com.
    pub base_url: String,
    /// How the API is authenticated to.
    #[arg(long, value_enum, default_value_t)]
    pub auth: AddAuth,
    /// Header for `--auth api-key`, which alone has one.
    #[arg(long)]
    pub header: Option<String>,
    /// The API's secret.
    #[command(flatten)]
    pub secret: SecretArgs,
    /// Short name for the proxy's URL.
    #[arg(long)]
    pub alias: Option<String>,
    /// Allow only this: method and path, as in 'POST /v1/chat/completions'; a path that ends in *
    /// stands for all that begins so, elsewhere there is no *. Repeatable, for each method.
    #[arg(long, value_name = "METHOD PATH")]
    pub allow: Vec<String>,
    /// Allow only GET and HEAD.
    #[arg(long, conflicts_with = "allow")]
    pub read_only: bool,
    /// Rate limit, as in 60/min or 10000/day. Repeatable, once for each window.
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
    let base = base(&args.base_url, args.allow_http)?;
    let given = limits(&args.limit)?;
    let rules = rules(&args.allow, args.read_only)?;
    applicable(args)?;
    let mut networks = args.allow_network.iter();
    if let Some(alone) = networks.find_map(|text| text.parse().ok()) {
        bail!("--allow-network {alone}: {}", whole(alone));
    }
    let secret = secret(args)?;
    let api = Api::new(&args.control)?;
    let limits = match args.limit.is_empty() {
        true => default_limits(&api).await?,
        false => given,
    };
    let steps = steps((args, &base), &limits, &rules, secret);
    let operations: Vec<&Value> = steps.iter().map(|step| &step.operation).collect();
    let answer = api
        .create("/changes", &json!({ "operations": operations }))
        .await
        .map_err(|error| in_words(error, &steps))?;
    let mut warnings = warnings(&answer);
    warnings.extend(not_dialled(&base, &args.allow_network).map(|said| ("the target's", said)));
    let made = made(&answer)?;
    let variables = sdks::variables(&base, (&made.url, &made.key)).unwrap_or_else(|detail| {
        let warning = json!({"pointer": "/base_url", "code": "sdk-path", "detail": detail});
        warnings.push(("the target's", warning));
        Vec::new()
    });
    for (what, warning) in &warnings {
        eprintln!("requestrocket: {}", line(what, warning));
    }
    let warnings = warnings.into_iter().map(|(_, warning)| warning).collect();
    match args.output {
        Output::Json => say(&document(&made, warnings).to_string()),
        Output::Text => say(&lines(args, &made, &variables, rules.is_empty()).join("\n")),
    }
    Ok(())
}

/// Whether every option has something that it is for.
fn applicable(args: &AddArgs) -> anyhow::Result<()> {
    ensure!(
        args.auth != AddAuth::None || !args.secret.is_given(),
        "--auth none sends no secret: leave --secret-stdin and --secret-file out, or say with \
         --auth how it is sent"
    );
    ensure!(
        args.auth == AddAuth::ApiKey || args.header.is_none(),
        "--header is for --auth api-key alone"
    );
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
    (args, base): (&AddArgs, &BaseUrl),
    limits: &Value,
    rules: &[Value],
    secret: Value,
) -> Vec<Step> {
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
            "hosts": [host(base)],
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
    steps
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
            Some(match field {
                "" => format!("{}:", step.what.trim_end_matches("'s")),
                field => format!("{} {field}", step.what),
            })
        });
        // Fields that have an argument of their own.
        if let Some(detail) = error["detail"].as_str() {
            let detail = detail.replace("`allow_networks`", "--allow-network");
            error["detail"] = detail.replace("`allow_http`", "--allow-http").into();
        }
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
fn host(base: &BaseUrl) -> String {
    proto::hosts::HostPattern::exact(base.origin.clone()).to_string()
}

/// The secret in the shape of its type.
fn secret(args: &AddArgs) -> anyhow::Result<Value> {
    if args.auth == AddAuth::None {
        return Ok(Value::Null);
    }
    let secret = args.secret.read(auth_type(args.auth))?;
    secret
        .context("give the API's secret with --secret-stdin or --secret-file (or use --auth none)")
}

/// What the operator gave the organisation for proxies that say nothing of limits.
async fn default_limits(api: &Api) -> anyhow::Result<Value> {
    let org = api.get("").await?;
    Ok(match &org["default_limits"] {
        Value::Null => json!({}),
        limits => limits.clone(),
    })
}

/// What is valid in what was made and probably not meant, each with what it is about.
fn warnings(answer: &Value) -> Vec<(&'static str, Value)> {
    let changes = answer["changes"].as_array().into_iter().flatten();
    let objects = changes.map(|change| &change["after"]);
    let of = |object: &Value| {
        let what = match object["kind"].as_str() {
            Some("target") => "the target credential's",
            Some("proxy") => "the proxy credential's",
            _ => "a rule's",
        };
        let warnings = object["warnings"].as_array().cloned();
        let warnings = warnings.into_iter().flatten();
        warnings.map(move |warning| (what, warning)).collect()
    };
    objects
        .flat_map(|object| -> Vec<_> { of(object) })
        .collect()
}

fn document(made: &Made, warnings: Vec<Value>) -> Value {
    let (url, key, proxy) = (&made.url, &made.key, &made.proxy);
    let mut out = json!({ "url": url, "api_key": key, "proxy": proxy });
    if !warnings.is_empty() {
        out["warnings"] = warnings.into();
    }
    out
}

fn lines(
    args: &AddArgs,
    made: &Made,
    variables: &[(&'static str, String)],
    open: bool,
) -> Vec<String> {
    let mut lines = vec![
        format!("base URL  {}", made.url),
        format!("API key   {}   (shown once)", made.key),
        String::new(),
    ];
    let variables = variables.iter();
    lines.extend(variables.map(|(name, value)| format!("export {name}={value}")));
    let (method, path) = example(args);
    lines.push(format!(
        "curl{method} -H \"Authorization: Bearer {}\" {}{path}",
        made.key, made.url
    ));
    if open {
        lines.push(String::new());
        lines.push("allows every method and path; narrow with --allow or --read-only".into());
    }
    lines
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

#[cfg(test)]
mod tests {
    use super::*;

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
        let expected = "T\n  the target's /base_url is no URL\n  the proxy: is wrong\n  \
                        /operations/7/object is odd";
        assert_eq!(error, expected);
    }
}
