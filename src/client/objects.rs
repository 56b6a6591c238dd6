//! `requestrocket get`, `create`, `set` and `delete`: one object, of any kind.

use std::path::PathBuf;

use anyhow::{Context, ensure};
use awc::http::Method;
use clap::Args;
use serde_json::{Value, json};

use super::Api;
use super::configuration;
use super::confirm::ConfirmArgs;
use super::fields;
use super::kinds::{self, Kind};
use super::named::{self, Found, label};
use super::problem;
use super::records::shown;
use super::secrets::{SecretArgs, shown_once};
use super::versions::change_lines;
use super::warnings::warn;
use crate::cli::{ControlArgs, Output};
use crate::say;

/// Which object.
#[derive(Debug, Args)]
pub struct WhichArgs {
    /// Of which kind.
    #[arg(value_enum)]
    pub kind: Kind,
    /// Its id, its alias or slug, or its name.
    pub name: String,
    /// Of a rule, filter or meter: what it hangs on, by id or as in proxies/billing. Without it all
    /// of them are looked through.
    #[arg(long, value_name = "ID|KIND/NAME")]
    pub on: Option<String>,
}

/// Arguments of `get`.
#[derive(Debug, Args)]
pub struct GetArgs {
    /// Which.
    #[command(flatten)]
    pub which: WhichArgs,
    /// How to show it: text is YAML.
    #[arg(long, value_enum, default_value_t)]
    pub output: Output,
    /// Where the control plane is.
    #[command(flatten)]
    pub control: ControlArgs,
}

/// Arguments of `create`.
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// Of which kind.
    #[arg(value_enum)]
    pub kind: Kind,
    /// Its fields, as the API names them: name=ci, limits.per_minute=60, methods=GET,HEAD. What is
    /// no text is JSON.
    #[arg(value_name = "FIELD=VALUE")]
    pub fields: Vec<String>,
    /// A file with the fields, YAML or JSON; `-` for standard input. Secrets stand in it as
    /// {env: NAME} or {file: PATH}.
    #[arg(long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Of a rule, filter or meter: what it hangs on, by id or as in proxies/billing.
    #[arg(long, value_name = "ID|KIND/NAME")]
    pub on: Option<String>,
    /// The secret of a credential; one of kind proxy gets a generated key without it.
    #[command(flatten)]
    pub secret: SecretArgs,
    /// How to show it.
    #[arg(long, value_enum, default_value_t)]
    pub output: Output,
    /// Where the control plane is.
    #[command(flatten)]
    pub control: ControlArgs,
}

/// Arguments of `set`.
#[derive(Debug, Args)]
pub struct SetArgs {
    /// Which.
    #[command(flatten)]
    pub which: WhichArgs,
    /// What is to change, as in active=false or limits.per_minute=60; FIELD=null takes a field
    /// away. The other fields stay.
    #[arg(value_name = "FIELD=VALUE")]
    pub fields: Vec<String>,
    /// A file with what is to change, YAML or JSON; `-` for standard input.
    #[arg(long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Only if the object is at this version (`version` in what `get` shows).
    #[arg(long, value_name = "N")]
    pub if_version: Option<u64>,
    /// How to show it.
    #[arg(long, value_enum, default_value_t)]
    pub output: Output,
    /// Where the control plane is.
    #[command(flatten)]
    pub control: ControlArgs,
}

/// Arguments of `delete`.
#[derive(Debug, Args)]
pub struct DeleteArgs {
    /// Which.
    #[command(flatten)]
    pub which: WhichArgs,
    /// Only if the object is at this version (`version` in what `get` shows).
    #[arg(long, value_name = "N")]
    pub if_version: Option<u64>,
    /// Whether to ask.
    #[command(flatten)]
    pub confirm: ConfirmArgs,
    /// How to show it.
    #[arg(long, value_enum, default_value_t)]
    pub output: Output,
    /// Where the control plane is.
    #[command(flatten)]
    pub control: ControlArgs,
}

impl WhichArgs {
    async fn find(&self, api: &Api, org: &str) -> anyhow::Result<Found> {
        named::find(api, (self.kind, org), self.on.as_deref(), &self.name).await
    }
}

/// Shows an object.
///
/// # Errors
/// There is none of that name, or what the control plane said.
pub async fn get(args: &GetArgs) -> anyhow::Result<()> {
    let api = Api::new(&args.control)?;
    let object = args.which.find(&api, &args.control.org).await?.object;
    say(&match args.output {
        Output::Json => object.to_string(),
        Output::Text => serde_saphyr::to_string(&object)?.trim_end().to_owned(),
    });
    Ok(())
}

/// Makes an object.
///
/// # Errors
/// What is wrong with the arguments, or what the control plane said.
pub async fn create(args: &CreateArgs) -> anyhow::Result<()> {
    let kind = args.kind;
    let file_is_stdin = args
        .file
        .as_ref()
        .is_some_and(|file| file.as_os_str() == "-");
    ensure!(
        !(file_is_stdin && args.secret.secret_stdin),
        "standard input is either the fields or the secret: give one of them as a file"
    );
    let mut document = document(kind, &args.fields, args.file.as_ref())?;
    ensure!(
        kind == Kind::Credentials || !args.secret.is_given(),
        "{} have no secret that is given: leave --secret-stdin and --secret-file out",
        kind.word()
    );
    ensure!(
        document["secret"].is_null() || !args.secret.is_given(),
        "the file says where the secret is: leave --secret-stdin and --secret-file out"
    );
    let auth_type = document["auth_type"].as_str().unwrap_or("api_key");
    if let Some(secret) = args.secret.read(auth_type)? {
        document["secret"] = secret;
    }
    let api = Api::new(&args.control)?;
    let (org, on) = (&args.control.org, args.on.as_deref());
    let place = kind.place_for_new(&api, org, on).await?;
    let made = api.write(Method::POST, &place, None, Some(&document)).await;
    let made = made.map_err(|error| kinds::of_nowhere(error, org, on));
    let made = told(made, (&api, org)).await?;
    warn(&made);
    if args.output == Output::Json {
        say(&made.to_string());
        return Ok(());
    }
    say(&format!("made {} {}", kind.one(), label(&made)));
    let url = made["alias_url"].as_str().or_else(|| made["url"].as_str());
    if let Some(url) = url {
        say(&format!("url {}", shown(url)));
    }
    tell_secrets(&made);
    Ok(())
}

/// Tells the secrets that were generated.
pub(super) fn tell_secrets(answer: &Value) {
    for (id, secret) in shown_once(answer) {
        say(&format!("{id}: {secret}   (shown only now)"));
    }
}

/// Changes fields of an object.
///
/// # Errors
/// There is none of that name, or what the control plane said.
pub async fn set(args: &SetArgs) -> anyhow::Result<()> {
    let (kind, org) = (args.which.kind, &args.control.org);
    let patch = document(kind, &args.fields, args.file.as_ref())?;
    ensure!(
        patch["secret"].is_null(),
        "a secret is replaced by `requestrocket rotate`, which tells until when the old one works"
    );
    let api = Api::new(&args.control)?;
    let Found { path, object } = args.which.find(&api, org).await?;
    let after = api
        .write(Method::PATCH, &path, args.if_version, Some(&patch))
        .await;
    let after = told(after, (&api, org)).await?;
    warn(&after);
    if args.output == Output::Json {
        say(&after.to_string());
        return Ok(());
    }
    let is_same = object["version"] == after["version"];
    say(&match is_same {
        true => "nothing was to be changed".to_owned(),
        false => {
            let change = json!({"id": after["id"], "change": "updated", "before": object,
                                "after": after});
            change_lines(&json!({ "changes": [change] })).join("\n")
        }
    });
    Ok(())
}

/// Deletes an object.
///
/// # Errors
/// There is none of that name, nobody agreed, or what the control plane said.
pub async fn delete(args: &DeleteArgs) -> anyhow::Result<()> {
    let (kind, org) = (args.which.kind, &args.control.org);
    let api = Api::new(&args.control)?;
    let found = args.which.find(&api, org).await?;
    let asked = args
        .confirm
        .ask(&format!("delete {} {}", kind.one(), found.label()))?;
    // Who agreed did so to what was there then.
    let seen = args
        .if_version
        .or_else(|| found.version().filter(|_| asked));
    let deleted = api.write(Method::DELETE, &found.path, seen, None).await;
    told(deleted, (&api, org)).await?;
    if kind == Kind::Orgs {
        let names = [&found.object["id"], &found.object["slug"]];
        names
            .into_iter()
            .filter_map(Value::as_str)
            .for_each(|name| api.forget(name));
    }
    say(&match args.output {
        Output::Json => json!({ "deleted": found.object["id"] }).to_string(),
        Output::Text => format!("deleted {} {}", kind.one(), found.label()),
    });
    Ok(())
}

/// What is answered to a write; a refusal with who uses the object.
async fn told(written: anyhow::Result<Value>, (api, org): (&Api, &str)) -> anyhow::Result<Value> {
    match written {
        Ok(answer) => Ok(answer),
        Err(error) => Err(problem::with_users(error, api, org).await),
    }
}

/// What the arguments and a file say of an object.
fn document(kind: Kind, arguments: &[String], file: Option<&PathBuf>) -> anyhow::Result<Value> {
    let given = fields::document(kind, arguments)?;
    let Some(file) = file else {
        ensure!(
            !arguments.is_empty(),
            "say its fields: FIELD=VALUE, or --file FILE"
        );
        return Ok(given);
    };
    let content = configuration::document(file)?;
    fields::joined(content, given).with_context(|| file.display().to_string())
}
