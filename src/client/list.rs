//! `requestrocket list`: the objects of a kind, with their ids.

use clap::Args;
use serde_json::{Value, json};

use super::Api;
use super::kinds::Kind;
use super::records::shown;
use super::table::table;
use super::versions::label;
use crate::cli::{ControlArgs, Output};
use crate::say;

/// Arguments of `list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// What to list.
    #[arg(value_enum)]
    pub kind: Kind,
    /// Of rules, filters and meters: only those that hang on this proxy, target or credential, by
    /// its id or as in proxies/billing; without it those of all, one after the other.
    #[arg(long, value_name = "ID|KIND/NAME")]
    pub on: Option<String>,
    /// How to show them.
    #[arg(long, value_enum, default_value_t)]
    pub output: Output,
    /// Where the control plane is.
    #[command(flatten)]
    pub control: ControlArgs,
}

/// Lists the objects of a kind, all pages of them.
///
/// # Errors
/// `--on` names nothing that such objects hang on, or what the control plane said.
pub async fn list(args: &ListArgs) -> anyhow::Result<()> {
    let api = Api::new(&args.control)?;
    let (org, on) = (&args.control.org, args.on.as_deref());
    let items = args.kind.objects(&api, org, on).await?;
    if args.output == Output::Json {
        say(&json!({ "items": items }).to_string());
        return Ok(());
    }
    say(&match items.is_empty() {
        true => format!("there are no {}", args.kind.word()),
        false => table(items.iter().map(|item| row(args.kind, item)).collect()).join("\n"),
    });
    Ok(())
}

/// An object as cells of a table.
fn row(kind: Kind, item: &Value) -> Vec<String> {
    let text = |name: &str| item[name].as_str().map(shown).unwrap_or_default();
    let id = text("id");
    match kind {
        Kind::Orgs => vec![id, text("slug"), text("name")],
        Kind::Tokens => {
            let until = item["expires_at"].as_str();
            let until = until.map(|until| format!("until {}", shown(until)));
            vec![id, text("name"), text("role"), until.unwrap_or_default()]
        }
        Kind::Targets => vec![id, text("name"), addresses(item)],
        Kind::Credentials => {
            let kind = format!("{} {}", text("kind"), text("auth_type"));
            vec![id, text("name"), kind, secret(item)]
        }
        Kind::Proxies => {
            let name = match item["alias"].as_str() {
                Some(alias) => shown(alias),
                None => text("name"),
            };
            let off = match item["active"].as_bool() {
                Some(false) => "switched off",
                _ => "",
            };
            vec![id, name, text("url"), text("target_id"), off.to_owned()]
        }
        Kind::Rules | Kind::Filters | Kind::Meters => vec![id, label(item)],
    }
}

fn addresses(target: &Value) -> String {
    let endpoints = target["endpoints"].as_array().into_iter().flatten();
    let listed = endpoints.filter_map(|endpoint| endpoint["base_url"].as_str());
    let listed: Vec<String> = listed.map(shown).collect();
    match target["base_url"].as_str() {
        Some(base_url) if listed.is_empty() => shown(base_url),
        _ => listed.join(" "),
    }
}

/// How its secret stands, and until when a former one is accepted.
fn secret(credential: &Value) -> String {
    let secret = &credential["secret"];
    let mut words: Vec<String> = Vec::new();
    words.extend(
        secret["state"]
            .as_str()
            .map(|state| format!("secret {state}")),
    );
    words.extend(
        secret["hint"]
            .as_str()
            .map(|hint| format!("…{}", shown(hint))),
    );
    for former in secret["former"].as_array().into_iter().flatten() {
        let until = former["valid_until"].as_str().unwrap_or_default();
        words.push(format!("(the former one until {})", shown(until)));
    }
    if let Some(at) = credential["expires_at"].as_str() {
        words.push(format!("expires {}", shown(at)));
    }
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_the_id_first_and_what_tells_one_from_another() {
        let check = |kind: Kind, items: &[Value], expected: &[&str]| {
            let rows = items.iter().map(|item| row(kind, item)).collect();
            assert_eq!(table(rows), expected);
        };
        check(
            Kind::Proxies,
            &[
                json!({"id": "prx_1", "name": "", "alias": "pay", "url": "http://g/api/pay",
                       "target_id": "tgt_1", "active": true}),
                json!({"id": "prx_22", "name": "b", "alias": null, "url": "http://g/api/prx_22",
                       "target_id": "tgt_1", "active": false}),
            ],
            &[
                "prx_1   pay  http://g/api/pay     tgt_1",
                "prx_22  b    http://g/api/prx_22  tgt_1  switched off",
            ],
        );
        check(
            Kind::Credentials,
            &[
                json!({"id": "crd_1", "name": "k", "kind": "proxy", "auth_type": "api_key",
                     "secret": {"state": "active", "hint": "abcd", "former": [
                         {"valid_until": "2026-12-01T00:00:00Z"}]}}),
            ],
            &["crd_1  k  proxy api_key  secret active …abcd \
               (the former one until 2026-12-01T00:00:00Z)"],
        );
        check(
            Kind::Targets,
            &[
                json!({"id": "tgt_1", "name": "", "base_url": "https://a.example"}),
                json!({"id": "tgt_2", "name": "", "endpoints": [
                    {"base_url": "https://b.example"}, {"base_url": "https://c.example"}]}),
            ],
            &[
                "tgt_1  https://a.example",
                "tgt_2  https://b.example https://c.example",
            ],
        );
        check(
            Kind::Rules,
            &[json!({"id": "rul_1", "effect": "deny", "methods": ["GET"],
                     "parent_id": "prx_1"})],
            &["rul_1  deny GET on prx_1"],
        );
    }
}
