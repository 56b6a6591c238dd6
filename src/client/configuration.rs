//! `requestrocket apply`, `export` and `changes`: the configuration as a file, and lists of
//! operations on it.
//!
//! A file holds no secret. Where one belongs it names where the secret is, an environment variable
//! or another file, and this command puts it in before the document leaves the machine.

use std::io::IsTerminal;
use std::path::Path;

use anyhow::{Context, bail};
use serde_json::{Value, json};

use super::Api;
use super::strict_json;
use super::versions::{outcome, tell};
use super::warnings::warn;
use crate::cli::{ApplyArgs, ChangesArgs, ExportArgs, FileFormat, Output};
use crate::say;

/// Largest file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 32 * 1024 * 1024;

/// Makes the configuration what a file says.
///
/// # Errors
/// The file cannot be read, or what the control plane said.
pub async fn apply(args: &ApplyArgs) -> anyhow::Result<()> {
    let document = document(&args.file)?;
    let said_so = [
        ("dry_run=true", args.dry_run),
        ("prune=true", args.prune),
        ("import=true", args.import),
    ];
    let said_so = said_so.iter().filter(|(_, is_set)| *is_set);
    let query: Vec<&str> = said_so.map(|(parameter, _)| *parameter).collect();
    let path = match query.is_empty() {
        true => "/config".to_owned(),
        false => format!("/config?{}", query.join("&")),
    };
    let api = Api::new(&args.control)?;
    let done = api.replace(&path, &document).await?;
    said(&done, args.output, args.dry_run);
    Ok(())
}

/// Carries out the operations of a file, all or none, as one version.
///
/// # Errors
/// The file cannot be read, or what the control plane said.
pub async fn changes(args: &ChangesArgs) -> anyhow::Result<()> {
    let document = operations(document(&args.file)?);
    let query = if args.dry_run { "?dry_run=true" } else { "" };
    let api = Api::new(&args.control)?;
    let done = api.create(&format!("/changes{query}"), &document).await?;
    said(&done, args.output, args.dry_run);
    Ok(())
}

/// The document of a file, with its secrets.
///
/// # Errors
/// It cannot be read, is not valid, or holds a secret in clear.
pub(super) fn document(file: &Path) -> anyhow::Result<Value> {
    let name = file.display();
    let text = read(file).with_context(|| format!("cannot read {name}"))?;
    let mut document = parse(&text).with_context(|| format!("{name} is not valid"))?;
    fill_secrets(&mut document, &|name| std::env::var(name).ok())
        .with_context(|| format!("{name} is not valid"))?;
    Ok(document)
}

/// Tells what changed, what is probably not meant in it, and keys that were generated.
fn said(done: &Value, output: Output, dry_run: bool) {
    let unmade = (dry_run && output == Output::Text).then(|| without_new_ids(done));
    let done = unmade.as_ref().unwrap_or(done);
    warn(done);
    tell(done, output);
    if output == Output::Text {
        for (given, issued) in done["reissued"].as_object().into_iter().flatten() {
            say(&format!(
                "{given} is {} here",
                issued.as_str().unwrap_or_default()
            ));
        }
        for generated in done["generated"].as_array().into_iter().flatten() {
            let id = generated["id"].as_str().unwrap_or_default();
            let secret = generated["secret"]
                .as_object()
                .and_then(|s| s.values().next());
            let secret = secret.and_then(Value::as_str).unwrap_or_default();
            let made = done["changes"].as_array().into_iter().flatten();
            let name = made
                .filter(|change| change["id"] == id)
                .find_map(|change| change["after"]["name"].as_str());
            say(&format!(
                "{} ({id}): {secret}   (shown only now)",
                name.unwrap_or("credential")
            ));
        }
        say(&outcome(done, dry_run));
    }
}

/// What would change, without the ids of objects that do not exist yet: those that are made will
/// have others. They are called by what they are, with their name.
fn without_new_ids(done: &Value) -> Value {
    let mut shown = done.clone();
    let changes = done["changes"].as_array().into_iter().flatten();
    let new = changes.filter(|change| change["change"] == "created");
    let new: Vec<(&str, String)> = new
        .filter_map(|change| {
            let id = change["id"].as_str()?;
            let name = change["after"]["name"].as_str().unwrap_or_default();
            Some((id, format!("(new {} {name})", kind(id)).replace(" )", ")")))
        })
        .collect();
    for change in shown["changes"].as_array_mut().into_iter().flatten() {
        let id = change["id"].as_str().unwrap_or_default();
        if new.iter().any(|(new, _)| *new == id) {
            let of_line = json!(format!("(new {})", kind(id)));
            change["id"] = of_line.clone();
            change["after"]["id"] = of_line;
        }
    }
    rename(&mut shown, &new);
    shown
}

/// Puts words in the place of ids.
fn rename(value: &mut Value, ids: &[(&str, String)]) {
    match value {
        Value::String(text) => {
            for (id, words) in ids {
                if text.contains(id) {
                    *text = text.replace(id, words);
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| rename(item, ids)),
        Value::Object(fields) => fields.values_mut().for_each(|field| rename(field, ids)),
        _ => {}
    }
}

/// What an id is of.
fn kind(id: &str) -> &'static str {
    match id.split_once('_').map(|(prefix, _)| prefix) {
        Some("tgt") => "target",
        Some("crd") => "credential",
        Some("prx") => "proxy",
        Some("rul") => "rule",
        Some("flt") => "filter",
        Some("mtr") => "meter",
        _ => "object",
    }
}

/// Prints the configuration.
///
/// # Errors
/// What the control plane said.
pub async fn export(args: &ExportArgs) -> anyhow::Result<()> {
    let document = Api::new(&args.control)?.get("/config").await?;
    let text = match args.output {
        FileFormat::Json => serde_json::to_string_pretty(&document)?,
        FileFormat::Yaml => serde_saphyr::to_string(&document)?,
    };
    match args.output {
        // A file that is applied again must say the same; YAML has other escapes than JSON.
        FileFormat::Yaml if !std::io::stdout().is_terminal() => crate::write(text.trim_end()),
        _ => say(text.trim_end()),
    }
    Ok(())
}

/// Reads a file, or standard input for `-`.
///
/// # Errors
/// It cannot be read, or is too large.
pub fn read(path: &Path) -> anyhow::Result<String> {
    use std::io::Read;
    let mut text = String::new();
    let bounded: Box<dyn Read> = match path.as_os_str() == "-" {
        true => Box::new(std::io::stdin().lock()),
        false => Box::new(std::fs::File::open(path)?),
    };
    bounded.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        bail!("it has more than {FILE_BYTES_MAX} bytes");
    }
    Ok(text)
}

/// JSON is YAML, but its own parser says better what is wrong with it.
///
/// # Errors
/// Where it is not valid.
pub fn parse(text: &str) -> anyhow::Result<Value> {
    match text.trim_start().starts_with('{') {
        true => Ok(strict_json::parse(text)?),
        false => serde_saphyr::from_str(text).map_err(|error| {
            // What its options are is for programmers.
            let words = error.to_string();
            let advice = ", set DuplicateKeyPolicy in Options if acceptable";
            anyhow::anyhow!(words.replace(advice, ": a field stands once; remove one of the two"))
        }),
    }
}

/// A list of operations as the API takes it, of a file that has `operations` or the list alone.
pub fn operations(document: Value) -> Value {
    match document {
        Value::Array(operations) => json!({ "operations": operations }),
        document => document,
    }
}

/// Puts secrets in the place of what says where they are.
fn fill_secrets(document: &mut Value, env: &dyn Fn(&str) -> Option<String>) -> anyhow::Result<()> {
    // Of one credential.
    if let Some(secret) = document.get_mut("secret") {
        fill(secret, "/secret", env)?;
    }
    let credentials = document
        .get_mut("credentials")
        .and_then(Value::as_array_mut);
    for (at, credential) in credentials.into_iter().flatten().enumerate() {
        if let Some(secret) = credential.get_mut("secret") {
            fill(secret, &format!("/credentials/{at}/secret"), env)?;
        }
    }
    // Of `changes`: what is created, and what is merged into an object.
    let operations = match document {
        Value::Array(operations) => Some(operations),
        document => document.get_mut("operations").and_then(Value::as_array_mut),
    };
    for (at, operation) in operations.into_iter().flatten().enumerate() {
        for part in ["object", "patch"] {
            let secret = operation
                .get_mut(part)
                .and_then(|part| part.get_mut("secret"));
            if let Some(secret) = secret {
                fill(secret, &format!("/operations/{at}/{part}/secret"), env)?;
            }
        }
    }
    Ok(())
}

fn fill(
    value: &mut Value,
    pointer: &str,
    env: &dyn Fn(&str) -> Option<String>,
) -> anyhow::Result<()> {
    if let Some((kind, name)) = reference(value) {
        let secret = match kind {
            "env" => env(name)
                .with_context(|| format!("{pointer}: the environment has no variable {name}"))?,
            _ => {
                let text = read(Path::new(name))
                    .with_context(|| format!("{pointer}: cannot read the file {name}"))?;
                text.trim_end_matches(['\r', '\n']).to_owned()
            }
        };
        *value = Value::String(secret);
        return Ok(());
    }
    match value {
        Value::Object(fields) => {
            // Of `{name, value}`, an element of type `custom`, only the value is secret.
            let named = fields.len() == 2 && fields.contains_key("value");
            let secret = |field: &&String| !(named && *field == "name");
            let names: Vec<String> = fields.keys().filter(secret).cloned().collect();
            for field in names {
                let Some(value) = fields.get_mut(&field) else {
                    continue;
                };
                fill(value, &format!("{pointer}/{field}"), env)?;
            }
            Ok(())
        }
        Value::Array(items) => {
            for (at, item) in items.iter_mut().enumerate() {
                fill(item, &format!("{pointer}/{at}"), env)?;
            }
            Ok(())
        }
        _ => bail!(
            "{pointer} holds a secret in clear; write {{env: NAME}} or {{file: PATH}} and keep \
             the secret there"
        ),
    }
}

/// `{env: NAME}` or `{file: PATH}`.
fn reference(value: &Value) -> Option<(&'static str, &str)> {
    let fields = value.as_object().filter(|fields| fields.len() == 1)?;
    ["env", "file"]
        .into_iter()
        .find_map(|kind| Some((kind, fields.get(kind)?.as_str()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(secret: Value) -> anyhow::Result<Value> {
        let mut document = json!({"credentials": [{"name": "a"}, {"secret": secret}]});
        let env = |name: &str| (name == "KEY").then(|| "s3cret".to_owned());
        fill_secrets(&mut document, &env)?;
        Ok(document["credentials"][1]["secret"].clone())
    }

    #[test]
    fn a_secret_is_taken_from_where_the_file_says() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        std::fs::write(&path, "from-file\n").unwrap();
        assert_eq!(
            filled(json!({"key": {"env": "KEY"}})).unwrap(),
            json!({"key": "s3cret"})
        );
        let two = json!({"username": {"env": "KEY"}, "password": {"file": path}});
        let two = filled(two).unwrap();
        assert_eq!(two, json!({"username": "s3cret", "password": "from-file"}));
        let headers = json!({"headers": [{"name": "X-Key", "value": {"env": "KEY"}}]});
        let expected = json!({"headers": [{"name": "X-Key", "value": "s3cret"}]});
        assert_eq!(filled(headers).unwrap(), expected);
    }

    #[test]
    fn a_field_that_stands_twice_is_told_without_words_for_programmers() {
        let twice = "targets:\n- name: a\n  base_url: https://a\n  base_url: https://b\n";
        let told = parse(twice).unwrap_err().to_string();
        let expected = "line 4 column 3: duplicate mapping key: base_url: a field stands once; \
                        remove one of the two";
        assert!(told.contains(expected), "{told}");
        assert!(!told.contains("Policy"), "{told}");
    }

    #[test]
    fn ids_of_what_is_not_made_are_not_shown() {
        let (target, proxy) = (
            "tgt_01aaaaaaaaaaaaaaaaaaaaaaaa",
            "prx_01bbbbbbbbbbbbbbbbbbbbbbbb",
        );
        let rule = "rul_01cccccccccccccccccccccccc";
        let done = json!({"from": 1, "to": 2, "changes": [
            {"id": target, "change": "created", "before": null,
             "after": {"id": target, "name": "a"}},
            {"id": rule, "change": "created", "before": null,
             "after": {"id": rule, "effect": "deny", "parent_id": proxy}},
            {"id": proxy, "change": "updated",
             "before": {"name": "p", "target_id": "tgt_01dddddddddddddddddddddddd"},
             "after": {"name": "p", "target_id": target}},
        ]});
        let lines = super::super::versions::change_lines(&without_new_ids(&done));
        assert_eq!(
            lines,
            [
                "+ (new target)  a".to_owned(),
                format!("+ (new rule)  deny on {proxy}"),
                format!("~ {proxy}  p"),
                "    target_id: \"tgt_01dddddddddddddddddddddddd\" -> \"(new target a)\""
                    .to_owned(),
            ]
        );
    }

    #[test]
    fn secrets_of_operations_are_taken_too() {
        let mut document = json!({"operations": [
            {"delete": "tgt_1"},
            {"create": "credentials", "object": {"secret": {"key": {"env": "KEY"}}}},
            {"update": "crd_1", "patch": {"secret": {"key": {"env": "KEY"}}}},
        ]});
        let env = |name: &str| (name == "KEY").then(|| "s3cret".to_owned());
        fill_secrets(&mut document, &env).unwrap();
        assert_eq!(
            document["operations"][1]["object"]["secret"]["key"],
            "s3cret"
        );
        assert_eq!(
            document["operations"][2]["patch"]["secret"]["key"],
            "s3cret"
        );
        document["operations"][2]["patch"]["secret"]["key"] = json!("clear");
        let refused = fill_secrets(&mut document, &env).unwrap_err().to_string();
        let place = "/operations/1/object/secret/key holds a secret in clear";
        assert!(refused.contains(place), "{refused}");
    }

    #[test]
    fn a_secret_in_clear_or_one_that_is_not_there_is_refused_with_its_place() {
        for (secret, words) in [
            (
                json!({"key": "clear"}),
                "/credentials/1/secret/key holds a secret in clear",
            ),
            (
                json!("clear"),
                "/credentials/1/secret holds a secret in clear",
            ),
            (json!({"key": {"env": "NONE"}}), "no variable NONE"),
            (
                json!({"key": {"file": "/nowhere/x"}}),
                "cannot read the file /nowhere/x",
            ),
            (json!({"key": 5}), "in clear"),
            (
                json!({"queries": [{"name": "key", "value": "clear"}]}),
                "/credentials/1/secret/queries/0/value holds a secret in clear",
            ),
        ] {
            let error = format!("{:#}", filled(secret).unwrap_err());
            assert!(error.contains(words), "{error}");
            assert!(!error.contains("\"clear\""), "{error}");
        }
    }

    #[test]
    fn yaml_and_json_are_read_and_a_slip_is_shown_with_its_line() {
        let yaml = "format: requestrocket/1\ntargets:\n  - base_url: https://a.example\n";
        let json = r#"{"format":"requestrocket/1","targets":[{"base_url":"https://a.example"}]}"#;
        assert_eq!(parse(yaml).unwrap(), parse(json).unwrap());
        let slip = format!("{:#}", parse("targets:\n  - a: [1\n  b: 2\n").unwrap_err());
        assert!(slip.contains("line"), "{slip}");
        let slip = format!("{:#}", parse("{\n\"a\": }").unwrap_err());
        assert!(slip.contains("line 2"), "{slip}");
        let bomb = "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\n\
                    c: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\n\
                    e: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: &f [*e,*e,*e,*e,*e,*e,*e,*e,*e]\n\
                    g: [*f,*f,*f,*f,*f,*f,*f,*f,*f]\n";
        assert!(parse(bomb).is_err());
    }
}
