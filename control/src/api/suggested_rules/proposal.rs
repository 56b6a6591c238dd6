//! What is answered: the rules, and the changes by which they come to be. Pure.

use std::collections::BTreeSet;

use jiff::Timestamp;
use proto::id::ProxyId;
use proto::object::{Body, ObjectId};
use proto::rule::{Effect, Mode, OnUnreadable, PathPart, Presence, Rule};
use proto::tree::Objects;
use serde_json::{Value, json};

use super::Found;
use super::grouping::Suggested;
use crate::openapi::reference;

/// What was asked for.
pub struct Asked {
    /// Whose requests.
    pub proxy: ProxyId,
    /// Of the rules.
    pub mode: Mode,
    /// Whether the proxy denies already what no rule allows.
    pub denies: bool,
    /// Of requests that began at or after this instant.
    pub from: Timestamp,
    /// Of requests that began before it.
    pub to: Timestamp,
}

impl Asked {
    /// A rule as it is submitted.
    fn rule(&self, suggested: &Suggested) -> Rule {
        let (count, from, to) = (suggested.records, self.from, self.to);
        Rule {
            id: String::new(),
            effect: Effect::Allow,
            priority: 0,
            mode: self.mode,
            methods: suggested.methods.clone(),
            path: Some(PathPart {
                pattern: suggested.pattern.clone(),
                flags: String::new(),
                presence: Presence::Present,
            }),
            headers: Vec::new(),
            query: Vec::new(),
            body: Vec::new(),
            source: Vec::new(),
            on_unreadable: OnUnreadable::default(),
            message: None,
            notes: Some(format!(
                "suggested: {count} requests from {from:.0} to {to:.0}"
            )),
        }
    }

    /// What is to be done for a rule to be there, if anything.
    fn operation(&self, rule: &Rule, there: Option<&Rule>) -> Option<Value> {
        match there {
            None => {
                let parent = self.proxy;
                Some(json!({"create": "rules", "parent": parent, "object": rule}))
            }
            Some(there) if self.mode == Mode::Enforce && there.mode == Mode::Shadow => {
                Some(json!({"update": there.id, "patch": {"mode": Mode::Enforce}}))
            }
            Some(_) => None,
        }
    }
}

/// The rules of the proxy itself.
pub fn there(objects: &Objects, on: ObjectId) -> Vec<Rule> {
    let rules = objects.values().filter_map(|object| match &object.body {
        Body::Rule(rule) if rule.parent == on => Some((object.id, &rule.spec)),
        _ => None,
    });
    rules
        .map(|(id, rule)| Rule {
            id: id.to_string(),
            ..rule.clone()
        })
        .collect()
}

/// The rule that is there already, if one is. With the same methods it is, whatever its mode; one
/// with more only where it is in force, since it would have to be put in force otherwise.
fn same<'a>(there: &'a [Rule], wanted: &Rule) -> Option<&'a Rule> {
    let with = |fits: fn(&Rule, &Rule) -> bool, mode: Mode| {
        let mut fitting = there.iter().filter(move |one| one.mode == mode);
        fitting.find(|one| fits(one, wanted))
    };
    with(is_as_wide, Mode::Enforce).or_else(|| with(is_equal, Mode::Shadow))
}

/// Whether one rule allows all that the other would: the same path, and its methods.
fn is_as_wide(there: &Rule, wanted: &Rule) -> bool {
    let (named, wanted_named) = (methods(there), methods(wanted));
    is_of_path(there, wanted) && (there.methods.is_empty() || wanted_named.is_subset(&named))
}

/// Whether one rule allows what the other would, and nothing else.
fn is_equal(there: &Rule, wanted: &Rule) -> bool {
    is_of_path(there, wanted) && methods(there) == methods(wanted)
}

/// Whether a rule asks for the path of the other and, but for methods, nothing else.
fn is_of_path(there: &Rule, wanted: &Rule) -> bool {
    let plain = there.headers.is_empty()
        && there.query.is_empty()
        && there.body.is_empty()
        && there.source.is_empty();
    plain && there.effect == Effect::Allow && there.path == wanted.path
}

/// The methods that a rule names; GET covers HEAD.
fn methods(rule: &Rule) -> BTreeSet<String> {
    let named = rule.methods.iter().map(|name| name.to_ascii_uppercase());
    let mut named: BTreeSet<String> = named.collect();
    if named.contains("GET") {
        named.insert("HEAD".into());
    }
    named
}

/// The answer.
pub fn show(asked: &Asked, there: &[Rule], found: &Found) -> Value {
    let mut operations = Vec::new();
    let mut rules = Vec::with_capacity(found.rules.len());
    for suggested in &found.rules {
        let rule = asked.rule(suggested);
        let same = same(there, &rule);
        operations.extend(asked.operation(&rule, same));
        rules.push(json!({
            "rule": rule, "rule_id": same.map(|rule| &rule.id), "records": suggested.records,
            "by_method": suggested.by_method, "example": suggested.example,
        }));
    }
    if asked.mode == Mode::Enforce && !asked.denies && !rules.is_empty() {
        let patch = json!({"default_rule_effect": Effect::Deny});
        operations.push(json!({"update": asked.proxy, "patch": patch}));
    }
    let left_over: u64 = found.left.values().sum();
    let reasons = found
        .left
        .iter()
        .map(|(why, count)| (why.as_str().to_owned(), json!(count)));
    let cut = found.cut_at_us;
    let complete_from = cut.and_then(|us| Timestamp::from_microsecond(us).ok());
    let changes = (!operations.is_empty()).then(|| json!({"operations": operations}));
    json!({
        "proxy_id": asked.proxy,
        "mode": asked.mode,
        "from": asked.from,
        "to": asked.to,
        "complete_from": complete_from.unwrap_or(asked.from),
        "cut": cut.is_some(),
        "records": found.records,
        "rules": rules,
        "left_over": {"records": left_over, "reasons": Value::Object(reasons.collect())},
        "changes": changes,
    })
}

/// The schema of the answer.
pub fn schema() -> Value {
    let number = |description: &str| json!({"type": "integer", "description": description});
    let time = json!({"type": "string", "format": "date-time"});
    json!({
        "type": "object",
        "properties": {
            "proxy_id": {"type": "string"},
            "mode": {"type": "string", "enum": ["shadow", "enforce"]},
            "from": time, "to": time,
            "complete_from": {"type": "string", "format": "date-time",
                "description": "From here on all was read that is still kept: retention may have \
                    dropped records"},
            "cut": {"type": "boolean",
                "description": "Whether there was more than one call reads: about 100,000 \
                    records, or what is read in 15 seconds"},
            "records": number("Requests that were sent to the target, and read"),
            "rules": {"type": "array", "description": "At most 200, those that cover most first",
                "items": {"type": "object", "properties": {
                    "rule": reference("Rule"),
                    "rule_id": {"type": ["string", "null"],
                        "description": "The proxy has this rule already, in either mode, or has \
                            one in force with more methods"},
                    "records": number("Requests that it covers; each counts for one rule"),
                    "by_method": {"type": "object", "additionalProperties": {"type": "integer"},
                        "description": "The same by method"},
                    "example": {"type": "string", "description": "The path of one of them"}
                }}},
            "left_over": {"type": "object", "properties": {
                "records": number("Requests of which no rule is made"),
                "reasons": {"type": "object", "additionalProperties": {"type": "integer"},
                    "description": "Of them by why: `refused_by_target` (its status was 400 or \
                        above), `no_answer` (of the target), `other_region` (it was passed on \
                        to one), `too_long` (the path was cut, or is too long for a pattern), \
                        `ambiguous` (targets may read it with other segments), `too_many` (more \
                        different paths or rules than are told apart)"}
            }},
            "changes": {"oneOf": [reference("Changes"), {"type": "null"}],
                "description": "The body of `POST …/changes` by which they come to be; null where \
                    nothing is missing"}
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::suggested_rules::segments::Left;

    fn rule(fields: Value) -> Rule {
        serde_json::from_value(fields).unwrap()
    }

    #[test]
    fn a_rule_that_is_there_is_known_again() {
        let path = json!({"pattern": "^/a$"});
        let wanted = rule(json!({"effect": "allow", "methods": ["GET", "POST"], "path": path}));
        let allow = |methods: Value| json!({"effect": "allow", "methods": methods, "path": path});
        let with = |name: &str, value: Value| {
            let mut fields = allow(json!(["GET", "POST"]));
            fields[name] = value;
            fields
        };
        // In force, and in shadow mode.
        for (there, enforced, shadow) in [
            (allow(json!(["GET", "POST"])), true, true),
            (allow(json!(["post", "get", "HEAD"])), true, true),
            // What is wider would put more in force than was used.
            (allow(json!(["GET", "POST", "DELETE"])), true, false),
            (allow(json!([])), true, false),
            (allow(json!(["GET"])), false, false),
            (with("effect", json!("deny")), false, false),
            (with("path", json!({"pattern": "^/b$"})), false, false),
            (with("source", json!(["192.0.2.1"])), false, false),
        ] {
            for (mode, expected) in [("enforce", enforced), ("shadow", shadow)] {
                let mut there = there.clone();
                there["mode"] = json!(mode);
                let there = [rule(there)];
                assert_eq!(same(&there, &wanted).is_some(), expected, "{there:?}");
            }
        }
    }

    #[test]
    fn only_the_same_rule_is_put_in_force() {
        let path = json!({"pattern": "^/a$"});
        let there = |id: &str, methods: Value| {
            let fields = json!({"effect": "allow", "mode": "shadow", "methods": methods,
                                "path": path});
            Rule {
                id: id.into(),
                ..rule(fields)
            }
        };
        let there = [there("wide", json!([])), there("same", json!(["GET"]))];
        let found = Found {
            rules: vec![Suggested {
                methods: vec!["GET".into()],
                pattern: "^/a$".into(),
                records: 1,
                by_method: [("GET".into(), 1)].into(),
                example: "/a".into(),
            }],
            left: [(Left::NoAnswer, 2)].into(),
            records: 3,
            cut_at_us: None,
        };
        let asked = Asked {
            proxy: ProxyId::from_bits(1),
            mode: Mode::Enforce,
            denies: true,
            from: Timestamp::UNIX_EPOCH,
            to: Timestamp::MAX,
        };
        let shown = show(&asked, &there, &found);
        let update = json!([{"update": "same", "patch": {"mode": "enforce"}}]);
        assert_eq!(shown["changes"]["operations"], update, "{shown}");
        assert_eq!(shown["rules"][0]["by_method"], json!({"GET": 1}));
        let left = json!({"records": 2, "reasons": {"no_answer": 2}});
        assert_eq!(shown["left_over"], left);
        // With the wide one alone the rule is made.
        let shown = show(&asked, &there[..1], &found);
        let operations = &shown["changes"]["operations"];
        assert_eq!(operations[0]["create"], "rules", "{shown}");
        assert_eq!(shown["rules"][0]["rule_id"], Value::Null);
    }
}
