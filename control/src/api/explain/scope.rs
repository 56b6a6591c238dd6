//! One scope's rules on a request of which not everything may be known.

use proto::object::{Body, ObjectId};
use proto::rule::{Effect, Facts, Mode, Part, Rule, RuleSet, Scope, TraceResult};
use proto::tree::Objects;
use serde_json::{Value, json};

use super::described::Described;

/// Rules listed of one scope.
const RULES_LISTED_MAX: usize = 100;

/// The rules of one scope, as they stand and compiled.
pub struct Scoped<'a> {
    /// The kind of the object that they hang on.
    pub scope: Scope,
    /// Its id.
    pub id: String,
    /// What decides when no rule matches.
    pub default: Effect,
    /// The rules.
    pub rules: Vec<&'a Rule>,
    /// The same, compiled.
    pub set: RuleSet,
}

impl<'a> Scoped<'a> {
    /// A single rule, denying where it matches, as the condition of a meter is judged.
    pub fn condition(rule: &'a Rule) -> Option<Self> {
        let set = RuleSet::compile(std::slice::from_ref(rule), Effect::Allow).ok()?;
        Some(Self {
            scope: Scope::Proxy,
            id: rule.id.clone(),
            default: Effect::Allow,
            rules: vec![rule],
            set,
        })
    }

    /// The rules of an object; `None` where they do not compile, as nothing that is stored does.
    pub fn new(objects: &'a Objects, scope: Scope, on: ObjectId, default: Effect) -> Option<Self> {
        let rules = objects.values().filter_map(|object| match &object.body {
            Body::Rule(rule) if rule.parent == on => Some(&rule.spec),
            _ => None,
        });
        let rules: Vec<&Rule> = rules.collect();
        let owned: Vec<Rule> = rules.iter().map(|rule| (*rule).clone()).collect();
        Some(Self {
            scope,
            id: on.to_string(),
            default,
            rules,
            set: RuleSet::compile(&owned, default).ok()?,
        })
    }
}

/// Whether a rule matches, or a scope allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// It does.
    Yes,
    /// It does not.
    No,
    /// That depends on what is not known.
    Unknown,
}

impl Scoped<'_> {
    /// Whether the scope allows, and what it says for itself.
    pub fn judge(
        &self,
        facts: &Facts<'_>,
        request: &Described,
        denying: &mut Vec<String>,
    ) -> (Known, Value) {
        let (mut listed, mut others) = (Vec::new(), 0);
        let mut said = [[false; 2]; 2];
        for (rule, trace) in self.rules.iter().zip(self.set.trace(facts)) {
            let (known, why) = known(trace.result, rule, request);
            if known == Known::No {
                others += 1;
                continue;
            }
            let enforced = trace.mode == Mode::Enforce;
            let (deny, sure) = (trace.effect == Effect::Deny, known == Known::Yes);
            said[usize::from(deny)][usize::from(sure)] |= enforced;
            if enforced && deny && sure {
                denying.push(rule.id.clone());
            }
            if listed.len() < RULES_LISTED_MAX {
                let matches = if sure { "yes" } else { "unknown" };
                let mut shown = json!({"id": rule.id, "effect": trace.effect, "mode": trace.mode,
                                       "priority": rule.priority, "matches": matches});
                if let Some(why) = why {
                    shown["because"] = json!(why);
                }
                if let Some(message) = &rule.message {
                    shown["message"] = json!(message);
                }
                listed.push(shown);
            }
        }
        let [[allow_waits, allowed], [deny_waits, denied]] = said;
        let passes = allowed || self.default == Effect::Allow;
        // As the pipeline decides: any deny denies, else any allow allows, else the default.
        let answer = match (denied, passes) {
            (true, _) => Known::No,
            (false, true) if deny_waits => Known::Unknown,
            (false, true) => Known::Yes,
            (false, false) if allow_waits => Known::Unknown,
            (false, false) => Known::No,
        };
        let outcome = match answer {
            Known::Yes => "allow",
            Known::No => "deny",
            Known::Unknown => "unknown",
        };
        let default = !denied && !allowed && answer != Known::Unknown;
        let shown = json!({"scope": self.scope, "scope_id": self.id, "outcome": outcome,
                           "default": default, "default_rule_effect": self.default,
                           "rules": listed, "rules_that_do_not_match": others});
        (answer, shown)
    }
}

/// Whether a rule matches a request of which not everything is known, and why that is so.
fn known(result: TraceResult, rule: &Rule, request: &Described) -> (Known, Option<String>) {
    let unknown = request.unknown;
    let needs = |what: &str| (Known::Unknown, Some(format!("needs {what}")));
    match result {
        // An override of the method, which is used on POST, is a header or a form's field.
        TraceResult::No(Part::Methods) if unknown.headers && request.method == "POST" => {
            return needs("what overrides the method");
        }
        TraceResult::No(Part::Methods) => return (Known::No, None),
        TraceResult::No(Part::Path) if !unknown.path => return (Known::No, None),
        TraceResult::No(Part::Source) if request.source.is_some() => return (Known::No, None),
        _ => {}
    }
    if !rule.methods.is_empty() && unknown.headers && request.method == "POST" {
        return needs("what overrides the method");
    }
    if rule.path.is_some() && unknown.path {
        return needs("the whole path");
    }
    if !rule.source.is_empty() && request.source.is_none() {
        return needs("the caller's address");
    }
    if !rule.headers.is_empty() && unknown.headers {
        return needs("header fields");
    }
    if !rule.query.is_empty() && unknown.query {
        return needs("query values");
    }
    match result {
        TraceResult::No(_) => (Known::No, None),
        TraceResult::UnknownNeedsBody => needs("the body"),
        TraceResult::Yes(None) => (Known::Yes, None),
        TraceResult::Yes(Some(unreadable)) => (Known::Yes, Some(unreadable.to_string())),
    }
}
