//! Rows of what rules decide, refuse and warn of.

mod bypasses;
mod decisions;
mod parts;
mod saved;

use std::net::IpAddr;

use http::{HeaderMap, HeaderName, HeaderValue};
use serde_json::{Value, json};

use super::*;
use crate::body_view::{BodyLimits, BodyView, Unreadable};
use crate::path::{PathOptions, PathReading};

/// A request as a row writes it.
#[derive(Clone)]
struct Request {
    method: &'static str,
    target: String,
    headers: Vec<(&'static str, &'static str)>,
    source: &'static str,
    body: Option<Vec<u8>>,
    options: PathOptions,
}

impl Request {
    fn to(method: &'static str, target: &str) -> Self {
        Self {
            method,
            target: target.to_owned(),
            headers: Vec::new(),
            source: "192.0.2.1",
            body: None,
            options: PathOptions::default(),
        }
    }

    fn get(target: &str) -> Self {
        Self::to("GET", target)
    }

    fn header(mut self, name: &'static str, value: &'static str) -> Self {
        self.headers.push((name, value));
        self
    }

    fn from(mut self, source: &'static str) -> Self {
        self.source = source;
        self
    }

    fn json(self, body: &str) -> Self {
        self.body("application/json", body)
    }

    fn form(self, body: &str) -> Self {
        self.body("application/x-www-form-urlencoded", body)
    }

    fn body(mut self, kind: &'static str, body: &str) -> Self {
        self.body = Some(body.as_bytes().to_vec());
        self.header("content-type", kind)
    }

    fn header_map(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in &self.headers {
            let value = HeaderValue::from_bytes(value.as_bytes()).unwrap();
            headers.append(name.parse::<HeaderName>().unwrap(), value);
        }
        headers
    }

    /// Runs `ask` on the facts of the request without its body.
    fn ask<T>(&self, ask: impl FnOnce(&Facts<'_>) -> T) -> T {
        let (path, query) = self.target.split_once('?').unwrap_or((&self.target, ""));
        let path = PathReading::parse(path.as_bytes(), self.options).unwrap();
        let headers = self.header_map();
        let source: IpAddr = self.source.parse().unwrap();
        ask(&Facts::new(
            self.method.as_bytes(),
            &path,
            query.as_bytes(),
            &headers,
            source,
        ))
    }

    /// Runs `ask` as the pipeline does: again with the body if it asks for it.
    fn answer(&self, rules: &RuleSet) -> Answer {
        self.ask(|facts| {
            let first = Answer::of(&rules.evaluate(facts));
            if first != Answer::NeedsBody {
                return first;
            }
            let content_type = facts.headers.get("content-type").map(HeaderValue::as_bytes);
            let coding = facts
                .headers
                .get("content-encoding")
                .map(HeaderValue::as_bytes);
            let body = self.body.as_deref().unwrap_or_default();
            let view = BodyView::read(content_type, coding, body, &BodyLimits::new(1024));
            let body = match &view {
                Ok(view) => BodyFacts::View(view),
                Err(reason) => BodyFacts::Unreadable(*reason),
            };
            Answer::of(&rules.evaluate(&facts.clone().with_body(body)))
        })
    }
}

/// A decision as a row writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Allowed,
    Denied,
    DeniedByDefault,
    NeedsBody,
}

impl Answer {
    fn of(evaluation: &Evaluation<'_>) -> Self {
        match &evaluation.outcome {
            Outcome::Allowed { .. } => Self::Allowed,
            Outcome::Denied { default: false, .. } => Self::Denied,
            Outcome::Denied { default: true, .. } => Self::DeniedByDefault,
            Outcome::NeedsBody => Self::NeedsBody,
        }
    }
}

/// Rules from JSON; ids are given by place (`r0`, `r1`, …).
fn rules(rules: Value) -> Vec<Rule> {
    let mut rules: Vec<Rule> = serde_json::from_value(rules).unwrap();
    for (place, rule) in rules.iter_mut().enumerate() {
        if rule.id.is_empty() {
            rule.id = format!("r{place}");
        }
    }
    rules
}

fn set(list: Value, default: Effect) -> RuleSet {
    RuleSet::compile(&rules(list), default).unwrap()
}

/// One deny rule where everything else is allowed.
fn deny(mut rule: Value) -> RuleSet {
    rule["effect"] = json!("deny");
    set(json!([rule]), Effect::Allow)
}

/// One allow rule where everything else is denied.
fn allow(mut rule: Value) -> RuleSet {
    rule["effect"] = json!("allow");
    set(json!([rule]), Effect::Deny)
}

/// The same rule among so many others that paths are matched by one set.
fn among_paths(rule: &Value, effect: &str, default: Effect) -> RuleSet {
    let other = |n| json!({"effect": effect, "path": {"pattern": format!("^/other/{n}/x$")}});
    among((0..40).map(other).collect(), rule, effect, default)
}

/// The same rule among so many others that fields are, also those that it names itself.
fn among_fields(rule: &Value, effect: &str, default: Effect) -> RuleSet {
    let names = ["headers", "query"].map(|list| {
        let named = rule[list].as_array().into_iter().flatten();
        let mut names: Vec<_> = named.map(|part| part["name"].clone()).collect();
        names.push(json!("other"));
        names
    });
    let other = |n: usize| {
        let (list, names) = (["headers", "query"][n % 2], &names[n % 2]);
        let name = &names[n / 2 % names.len()];
        let part = json!({"name": name, "value": format!("^other {n}$")});
        json!({"effect": effect, (list): [part]})
    };
    among((0..70).map(other).collect(), rule, effect, default)
}

fn among(mut others: Vec<Value>, rule: &Value, effect: &str, default: Effect) -> RuleSet {
    let mut rule = rule.clone();
    rule["effect"] = json!(effect);
    others.insert(others.len() / 2, rule);
    set(Value::Array(others), default)
}

/// Whether a deny and an allow rule with these parts match the request.
#[track_caller]
fn check(rule: Value, request: &Request, deny_matches: bool, allow_matches: bool) {
    let target = &request.target;
    let denied = [
        deny(rule.clone()),
        among_paths(&rule, "deny", Effect::Allow),
        among_fields(&rule, "deny", Effect::Allow),
    ];
    for rules in denied {
        let expected = if deny_matches {
            Answer::Denied
        } else {
            Answer::Allowed
        };
        assert_eq!(
            request.answer(&rules),
            expected,
            "deny {rule} on {} {target}",
            request.method
        );
    }
    let allowed = [
        allow(rule.clone()),
        among_paths(&rule, "allow", Effect::Deny),
        among_fields(&rule, "allow", Effect::Deny),
    ];
    for rules in allowed {
        let expected = if allow_matches {
            Answer::Allowed
        } else {
            Answer::DeniedByDefault
        };
        assert_eq!(
            request.answer(&rules),
            expected,
            "allow {rule} on {} {target}",
            request.method
        );
    }
}
