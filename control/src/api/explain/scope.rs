//! One scope's rules on a request of which not everything may be known.

use std::sync::OnceLock;

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
    /// The same without their methods, once that is asked for.
    any_method: OnceLock<Option<RuleSet>>,
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
            any_method: OnceLock::new(),
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
            any_method: OnceLock::new(),
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
    /// What each rule would be whatever the method, where that is not known.
    fn apart_from_methods(&self, facts: &Facts<'_>, request: &Described) -> Vec<TraceResult> {
        let names_methods = |rule: &&Rule| !rule.methods.is_empty();
        if !request.unknown.method || !self.rules.iter().any(names_methods) {
            return Vec::new();
        }
        let set = self.any_method.get_or_init(|| {
            let bare = |rule: &&Rule| Rule {
                methods: Vec::new(),
                ..(*rule).clone()
            };
            let rules: Vec<Rule> = self.rules.iter().map(bare).collect();
            RuleSet::compile(&rules, self.default).ok()
        });
        let traces = set.as_ref().map(|set| set.trace(facts));
        let traces = traces.into_iter().flatten();
        traces.map(|trace| trace.result).collect()
    }

    /// Whether the scope allows, and what it says for itself.
    pub fn judge(
        &self,
        facts: &Facts<'_>,
        request: &Described,
        denying: &mut Vec<String>,
    ) -> (Known, Value) {
        let (mut listed, mut others) = (Vec::new(), 0);
        let mut said = [[false; 2]; 2];
        let apart = self.apart_from_methods(facts, request);
        for (at, (rule, trace)) in self.rules.iter().zip(self.set.trace(facts)).enumerate() {
            let apart = apart.get(at).copied().filter(|_| !rule.methods.is_empty());
            let (known, why) = known((trace.result, apart), rule, request);
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

/// Whether a rule matches a request of which not everything is known, and why that is so. `apart`
/// is what it would be whatever the method.
fn known(
    (result, apart): (TraceResult, Option<TraceResult>),
    rule: &Rule,
    request: &Described,
) -> (Known, Option<String>) {
    let unknown = request.unknown;
    let needs = |what: &str| (Known::Unknown, Some(format!("needs {what}")));
    let fails = |result: TraceResult| match result {
        TraceResult::No(Part::Path) => !unknown.path,
        TraceResult::No(Part::Source) => request.source.is_some(),
        TraceResult::No(Part::Methods) => apart.is_none(),
        _ => false,
    };
    if fails(result) || apart.is_some_and(fails) {
        return (Known::No, None);
    }
    if apart.is_some() {
        // An override is one more method: a deny rule that covers the one that is known matches
        // anyway, an allow rule that does not cover it never does.
        match (rule.effect, result) {
            (Effect::Deny, TraceResult::No(Part::Methods)) => {
                return needs("what overrides the method");
            }
            (Effect::Allow, TraceResult::No(Part::Methods)) => return (Known::No, None),
            (Effect::Allow, _) => return needs("what overrides the method"),
            (Effect::Deny, _) => {}
        }
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

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use http::HeaderMap;
    use proptest::prelude::*;
    use proto::body_view::{BodyLimits, BodyView};
    use proto::path::{PathOptions, PathReading};
    use proto::rule::{BodyFacts, Outcome};

    use super::super::described::Unknown;
    use super::*;

    /// Whether a rule matches a POST of `/x` of which a record tells.
    fn found(mut rule: Value, overridden: bool) -> Known {
        rule["id"] = json!("rul_1");
        let rule: Rule = serde_json::from_value(rule).unwrap();
        let scoped = Scoped::condition(&rule).unwrap();
        let headers = HeaderMap::new();
        let path = PathReading::parse(b"/x", PathOptions::default()).unwrap();
        let source = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let facts = Facts::new(b"POST", &path, b"", &headers, source);
        let request = Described {
            method: "POST".to_owned(),
            source: Some(source),
            unknown: Unknown {
                headers: true,
                method: overridden,
                ..Unknown::default()
            },
            ..Described::default()
        };
        let trace = scoped.set.trace(&facts).remove(0);
        let apart = scoped.apart_from_methods(&facts, &request);
        known((trace.result, apart.first().copied()), &rule, &request).0
    }

    #[test]
    fn an_override_that_is_not_known_leaves_open_only_what_it_decides() {
        use Known::{No, Unknown, Yes};
        let rule = |effect: &str, methods: &[&str], path: &str| {
            let path = json!({ "pattern": path });
            json!({"effect": effect, "methods": methods, "path": path})
        };
        for (rule, overridden, plain) in [
            (rule("deny", &["DELETE"], "^/x"), Unknown, No),
            (rule("deny", &["DELETE"], "^/y"), No, No),
            (rule("deny", &["POST"], "^/x"), Yes, Yes),
            (rule("deny", &["POST"], "^/y"), No, No),
            (rule("allow", &["GET"], "^/x"), No, No),
            (rule("allow", &["POST"], "^/x"), Unknown, Yes),
            (rule("allow", &["POST"], "^/y"), No, No),
            (
                json!({"effect": "deny", "methods": ["DELETE"], "source": ["192.0.2.0/24"]}),
                No,
                No,
            ),
        ] {
            assert_eq!(found(rule.clone(), true), overridden, "{rule} overridden");
            assert_eq!(found(rule.clone(), false), plain, "{rule}");
        }
    }

    /// A rule of a small world, in which most rules match some request.
    fn rules() -> impl Strategy<Value = Value> {
        let pick = |of: &'static [&'static str]| proptest::sample::select(of);
        (
            pick(&["deny", "allow"]),
            pick(&["enforce", "enforce", "shadow"]),
            proptest::sample::subsequence(vec!["GET", "POST"], 0..=2),
            proptest::option::of(pick(&["^/x", "^/y"])),
            proptest::option::of(pick(&["present", "absent"])),
            proptest::option::of(pick(&["^1$", "^2$"])),
            proptest::option::of(pick(&["127.0.0.0/8", "192.0.2.0/24"])),
        )
            .prop_map(|(effect, mode, methods, path, header, body, source)| {
                let mut rule = json!({"effect": effect, "mode": mode, "methods": methods});
                if let Some(pattern) = path {
                    rule["path"] = json!({ "pattern": pattern });
                }
                if let Some(presence) = header {
                    rule["headers"] = json!([{"name": "x-a", "presence": presence}]);
                }
                if let Some(value) = body {
                    rule["body"] = json!([{"json_path": "$.n", "value": value}]);
                }
                if let Some(range) = source {
                    rule["source"] = json!([range]);
                }
                rule
            })
    }

    proptest! {
        /// What is said of a request of which all is known is what the pipeline decides, and what
        /// is said for certain of one of which less is known is that as well.
        #[test]
        fn a_scope_is_explained_as_the_pipeline_decides(
            rules in proptest::collection::vec(rules(), 0..5),
            (default_allows, is_post, is_at_x) in any::<(bool, bool, bool)>(),
            (has_header, is_two, is_local) in any::<(bool, bool, bool)>(),
            (no_headers, no_body, no_source, no_path) in any::<(bool, bool, bool, bool)>(),
        ) {
            let rules: Vec<Rule> = (rules.into_iter().enumerate())
                .map(|(at, mut rule)| {
                    rule["id"] = json!(format!("rul_{at}"));
                    serde_json::from_value(rule).unwrap()
                })
                .collect();
            let default = if default_allows { Effect::Allow } else { Effect::Deny };
            let scoped = Scoped {
                scope: Scope::Proxy,
                id: "prx_1".to_owned(),
                default,
                rules: rules.iter().collect(),
                set: RuleSet::compile(&rules, default).unwrap(),
                any_method: OnceLock::new(),
            };
            let method = if is_post { "POST" } else { "GET" };
            let path: &[u8] = if is_at_x { b"/x" } else { b"/y" };
            let path = PathReading::parse(path, PathOptions::default()).unwrap();
            let mut headers = HeaderMap::new();
            if has_header {
                headers.insert("x-a", http::HeaderValue::from_static("1"));
            }
            let local = if is_local { Ipv4Addr::LOCALHOST } else { Ipv4Addr::new(192, 0, 2, 1) };
            let source = IpAddr::V4(local);
            let body: &[u8] = if is_two { br#"{"n": 2}"# } else { br#"{"n": 1}"# };
            let limits = BodyLimits::new(1024);
            let view = BodyView::read(Some(b"application/json"), None, body, &limits);
            let facts = Facts::new(method.as_bytes(), &path, b"", &headers, source);
            let whole = facts.clone().with_body(BodyFacts::of(Some(&view)));
            let decided = match scoped.set.evaluate(&whole).outcome {
                Outcome::Allowed { .. } => Known::Yes,
                Outcome::Denied { .. } => Known::No,
                Outcome::NeedsBody => return Err(TestCaseError::fail("the body is known")),
            };

            let known = Described { source: Some(source), ..Described::default() };
            prop_assert_eq!(scoped.judge(&whole, &known, &mut Vec::new()).0, decided);

            let unknown = Unknown { headers: no_headers, path: no_path, ..Unknown::default() };
            let source = known.source.filter(|_| !no_source);
            let less = Described { source, unknown, ..Described::default() };
            let facts = if no_body { &facts } else { &whole };
            let said = scoped.judge(facts, &less, &mut Vec::new()).0;
            prop_assert!(said == Known::Unknown || said == decided, "{said:?}, not {decided:?}");
        }
    }
}
