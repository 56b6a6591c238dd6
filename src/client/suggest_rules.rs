//! `requestrocket suggest-rules`: an allow-list made of what a proxy was used for.

use serde_json::{Value, json};

use super::Api;
use super::access::DEFAULT_ORG;
use super::records::{add, encoded, shown};
use crate::cli::{Output, SuggestRulesArgs};
use crate::say;

/// Shows the rules, or the file for `changes`. Changes nothing.
///
/// # Errors
/// What the control plane said.
pub async fn suggest(args: &SuggestRulesArgs) -> anyhow::Result<()> {
    let mut query = Vec::new();
    add(&mut query, "from", Some(&args.from));
    add(&mut query, "to", args.to.as_deref());
    add(&mut query, "mode", args.enforce.then_some("enforce"));
    let path = format!(
        "/proxies/{}/suggested-rules?{}",
        path_part(&args.proxy),
        encoded(&query)
    );
    let found = Api::new(&args.control)?.get(&path).await?;
    match args.output {
        Output::Text => say(&lines(&found, args).join("\n")),
        Output::Json => {
            // What is not in the file is said beside it.
            for line in incomplete(&found) {
                eprintln!("requestrocket: {line}");
            }
            match &found["changes"] {
                Value::Null => say(&json!({"operations": []}).to_string()),
                changes => say(&changes.to_string()),
            }
        }
    }
    Ok(())
}

/// A name as a part of a path.
fn path_part(name: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    let mut part = String::with_capacity(name.len());
    for byte in name.bytes() {
        match plain(byte) {
            true => part.push(char::from(byte)),
            false => part.push_str(&format!("%{byte:02X}")),
        }
    }
    part
}

fn lines(found: &Value, args: &SuggestRulesArgs) -> Vec<String> {
    let rules = found["rules"].as_array().map_or(&[][..], Vec::as_slice);
    let count = found["records"].as_u64().unwrap_or_default();
    if rules.is_empty() {
        let mut lines = vec![format!("{count} requests were sent; they make no rule")];
        lines.extend(incomplete(found));
        return lines;
    }
    let mut lines = vec![format!("{:>10}  {:20}  path", "requests", "methods")];
    lines.extend(rules.iter().map(line));
    lines.extend(incomplete(found));
    lines.push(match (found["changes"].is_null(), args.enforce) {
        (true, _) => "all of these rules are there".to_owned(),
        (false, enforce) => {
            let (of, again) = (of_org(args), asked(args));
            let changes = format!("`requestrocket changes FILE{of}`");
            match enforce {
                true => format!(
                    "to try them on requests that were made, and apply them: `{again} --output \
                     json`, then `requestrocket explain {} --last 1000 --change FILE{of}` and \
                     {changes}",
                    word(&args.proxy)
                ),
                false => format!(
                    "to apply them in shadow mode, where they deny nothing: `{again} --output \
                     json`, then {changes}"
                ),
            }
        }
    });
    lines
}

/// The command as it was given, but for its output and where the control plane is.
fn asked(args: &SuggestRulesArgs) -> String {
    let mut words = format!("requestrocket suggest-rules {}", word(&args.proxy));
    for (option, value) in [("--from", Some(&args.from)), ("--to", args.to.as_ref())] {
        if let Some(value) = value {
            words.push_str(&format!(" {option} {}", word(value)));
        }
    }
    if args.enforce {
        words.push_str(" --enforce");
    }
    words + &of_org(args)
}

/// The option that names the organisation, where it is not the one without an option.
fn of_org(args: &SuggestRulesArgs) -> String {
    match args.control.org.as_str() {
        DEFAULT_ORG => String::new(),
        org => format!(" --org {}", word(org)),
    }
}

/// A text as one word of a shell.
fn word(text: &str) -> String {
    let text = shown(text);
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.:+".contains(c);
    match !text.is_empty() && text.chars().all(plain) {
        true => text,
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

fn line(suggested: &Value) -> String {
    let rule = &suggested["rule"];
    let methods = rule["methods"].as_array().into_iter().flatten();
    let methods: Vec<&str> = methods.filter_map(Value::as_str).collect();
    let there = match suggested["rule_id"].as_str() {
        Some(id) => format!("   is {}", shown(id)),
        None => String::new(),
    };
    format!(
        "{:>10}  {:20}  {}   as {}{there}",
        suggested["records"].as_u64().unwrap_or_default(),
        shown(&methods.join(",")),
        shown(rule["path"]["pattern"].as_str().unwrap_or_default()),
        shown(suggested["example"].as_str().unwrap_or_default()),
    )
}

/// Of what no rule is made, and what was not read.
fn incomplete(found: &Value) -> Vec<String> {
    let mut lines = Vec::new();
    let left = &found["left_over"];
    let count = left["records"].as_u64().unwrap_or_default();
    if count > 0 {
        let reasons = left["reasons"].as_object().into_iter().flatten();
        let reasons: Vec<String> = reasons
            .map(|(why, count)| format!("{count} {}", shown(&why.replace('_', " "))))
            .collect();
        let reasons = reasons.join(", ");
        lines.push(format!("{count} requests make no rule ({reasons})"));
    }
    if found["cut"] == true {
        let from = found["complete_from"].as_str().unwrap_or_default();
        lines.push(format!(
            "made of requests from {from} on: there is more than is read at once"
        ));
    }
    lines
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    fn args(enforce: bool) -> SuggestRulesArgs {
        parsed(&["billing"], enforce.then_some("--enforce"))
    }

    fn parsed(words: &[&'static str], more: Option<&'static str>) -> SuggestRulesArgs {
        let begin = ["requestrocket", "suggest-rules"];
        let words = begin.into_iter().chain(words.iter().copied());
        match Cli::parse_from(words.chain(more)).command {
            Command::SuggestRules(args) => args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn rules_and_what_they_lack_are_lines() {
        let found = json!({
            "records": 12, "cut": true, "complete_from": "2026-11-25T10:00:00Z",
            "rules": [{"records": 9, "example": "/v1/a/7", "rule_id": "rul_1", "rule": {
                "methods": ["GET", "POST"], "path": {"pattern": "^/v1/a/[^/:]+$"}}}],
            "left_over": {"records": 3, "reasons": {"refused_by_target": 3}},
            "changes": {"operations": [{}]},
        });
        let said = lines(&found, &args(false));
        assert_eq!(
            said[1],
            "         9  GET,POST              ^/v1/a/[^/:]+$   as /v1/a/7   is rul_1"
        );
        assert_eq!(said[2], "3 requests make no rule (3 refused by target)");
        assert!(said[3].starts_with("made of requests from 2026-11-25T10:00:00Z on"));
        assert!(
            said[4].starts_with("to apply them in shadow mode"),
            "{said:?}"
        );
        let said = lines(&found, &args(true));
        assert!(said[4].contains(" --enforce --output json`"), "{said:?}");
        let mut none = found;
        (none["changes"], none["cut"]) = (Value::Null, json!(false));
        let last = lines(&none, &args(false)).pop();
        assert_eq!(last.as_deref(), Some("all of these rules are there"));
    }

    #[test]
    fn the_command_that_is_told_asks_the_same_again() {
        assert_eq!(
            asked(&args(true)),
            "requestrocket suggest-rules billing --from 7d --enforce"
        );
        let words = ["Ann's own", "--from", "9d", "--to", "2d", "--org", "acme"];
        let args = parsed(&words, None);
        assert_eq!(
            asked(&args),
            r"requestrocket suggest-rules 'Ann'\''s own' --from 9d --to 2d --org acme"
        );
        let found = json!({"records": 1, "rules": [{}], "changes": {"operations": [{}]}});
        let said = lines(&found, &args).pop().unwrap();
        assert!(
            said.ends_with("`requestrocket changes FILE --org acme`"),
            "{said}"
        );
    }

    #[test]
    fn a_name_is_one_part_of_a_path() {
        assert_eq!(path_part("a-b_1"), "a-b_1");
        assert_eq!(path_part("a/../b ü"), "a%2F%2E%2E%2Fb%20%C3%BC");
    }
}
