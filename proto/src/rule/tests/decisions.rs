//! How the rules of a scope, and the scopes of a request, make one decision.

use super::*;

const DENY: &str = "deny";
const ALLOW: &str = "allow";

fn on(effect: &str, path: &str) -> Value {
    json!({"effect": effect, "path": {"pattern": path}})
}

#[test]
fn any_deny_denies_else_any_allow_allows_else_the_default() {
    for (list, default, expected) in [
        (json!([]), Effect::Allow, Answer::Allowed),
        (json!([]), Effect::Deny, Answer::DeniedByDefault),
        (json!([on(ALLOW, "a")]), Effect::Deny, Answer::Allowed),
        (
            json!([on(ALLOW, "b")]),
            Effect::Deny,
            Answer::DeniedByDefault,
        ),
        (json!([on(DENY, "a")]), Effect::Allow, Answer::Denied),
        (json!([on(DENY, "b")]), Effect::Allow, Answer::Allowed),
        (
            json!([on(ALLOW, "a"), on(DENY, "a")]),
            Effect::Allow,
            Answer::Denied,
        ),
        (
            json!([on(DENY, "b"), on(ALLOW, "a")]),
            Effect::Deny,
            Answer::Allowed,
        ),
        // Priority orders explanations only.
        (
            json!([{"effect": "allow", "priority": 1000}, {"effect": "deny", "priority": -1000}]),
            Effect::Allow,
            Answer::Denied,
        ),
        // A shadow rule changes nothing.
        (
            json!([{"effect": "deny", "mode": "shadow"}]),
            Effect::Allow,
            Answer::Allowed,
        ),
        (
            json!([{"effect": "allow", "mode": "shadow"}]),
            Effect::Deny,
            Answer::DeniedByDefault,
        ),
    ] {
        let answer = Request::get("/a").answer(&set(list.clone(), default));
        assert_eq!(answer, expected, "{list} by default {default:?}");
    }
}

#[test]
fn a_denial_lists_all_matching_rules_by_priority() {
    let rules = set(
        json!([
            {"effect": "deny", "priority": 1, "message": "no refunds"},
            {"effect": "allow", "priority": 5},
            {"effect": "deny", "priority": 1, "mode": "shadow"},
            {"effect": "deny", "priority": 9, "path": {"pattern": "^/other"}},
            {"effect": "deny", "priority": 7, "notes": "never told"},
        ]),
        Effect::Allow,
    );
    Request::get("/x").ask(|facts| {
        let evaluation = rules.evaluate(facts);
        let Outcome::Denied { default, rules, .. } = evaluation.outcome else {
            panic!()
        };
        assert!(!default);
        let listed: Vec<_> = rules.iter().map(|rule| (rule.id, rule.effect)).collect();
        let (allow, deny) = (Effect::Allow, Effect::Deny);
        assert_eq!(listed, [("r4", deny), ("r1", allow), ("r0", deny)]);
        assert_eq!(rules[2].message, Some("no refunds"));
        let shadow: Vec<_> = evaluation.shadow.iter().map(|rule| rule.id).collect();
        assert_eq!(shadow, ["r2"]);
    });
}

#[test]
fn the_allowing_rule_of_the_highest_priority_is_named() {
    let rules = set(
        json!([{"effect": "allow"}, {"effect": "allow", "priority": 2}, {"effect": "allow"}]),
        Effect::Allow,
    );
    Request::get("/").ask(|facts| {
        let Outcome::Allowed {
            by: AllowedBy::Rule(rule),
        } = rules.evaluate(facts).outcome
        else {
            panic!()
        };
        assert_eq!(rule.id, "r1");
    });
}

#[test]
fn the_body_is_asked_for_only_where_it_could_change_the_outcome() {
    let with_body = |effect: &str, path: &str, mode: &str| {
        json!({"effect": effect, "mode": mode, "path": {"pattern": path},
               "body": [{"json_path": "$.a"}]})
    };
    let deny_waits = || with_body(DENY, "a", "enforce");
    let allow_waits = || with_body(ALLOW, "a", "enforce");
    let (allow, deny) = (Effect::Allow, Effect::Deny);
    for (list, default, expected) in [
        (json!([deny_waits()]), allow, Answer::NeedsBody),
        (json!([deny_waits()]), deny, Answer::DeniedByDefault),
        (
            json!([deny_waits(), on(ALLOW, "a")]),
            deny,
            Answer::NeedsBody,
        ),
        (
            json!([deny_waits(), allow_waits()]),
            deny,
            Answer::NeedsBody,
        ),
        (json!([deny_waits(), on(DENY, "a")]), allow, Answer::Denied),
        (json!([on(DENY, "a"), deny_waits()]), allow, Answer::Denied),
        (json!([allow_waits()]), deny, Answer::NeedsBody),
        (json!([allow_waits()]), allow, Answer::Allowed),
        (
            json!([allow_waits(), on(ALLOW, "a")]),
            deny,
            Answer::Allowed,
        ),
        (json!([allow_waits(), on(DENY, "a")]), deny, Answer::Denied),
        // Another part does not match.
        (
            json!([with_body(DENY, "b", "enforce")]),
            allow,
            Answer::Allowed,
        ),
        (
            json!([with_body(ALLOW, "b", "enforce")]),
            deny,
            Answer::DeniedByDefault,
        ),
        // A shadow rule is waited for as if it were enforced, or it would tell nothing.
        (
            json!([with_body(DENY, "a", "shadow")]),
            allow,
            Answer::NeedsBody,
        ),
        (
            json!([with_body(DENY, "a", "shadow"), on(DENY, "a")]),
            allow,
            Answer::Denied,
        ),
        (
            json!([with_body(ALLOW, "a", "shadow")]),
            allow,
            Answer::Allowed,
        ),
    ] {
        let rules = set(list.clone(), default);
        Request::get("/a").ask(|facts| {
            let answer = Answer::of(&rules.evaluate(facts));
            assert_eq!(answer, expected, "{list} by default {default:?}");
        });
    }
}

#[test]
fn a_shadow_rule_on_the_body_is_recorded_once_the_body_is_known() {
    let rules = set(
        json!([{"effect": "deny", "mode": "shadow", "body": [{"json_path": "$.a"}]}]),
        Effect::Allow,
    );
    let view = BodyView::read(None, None, br#"{"a":1}"#, &BodyLimits::new(100)).unwrap();
    Request::to("POST", "/").ask(|facts| {
        let evaluation = rules.evaluate(&facts.clone().with_body(BodyFacts::View(&view)));
        assert_eq!(Answer::of(&evaluation), Answer::Allowed);
        assert_eq!(evaluation.shadow.len(), 1);
    });
}

#[test]
fn a_trace_tells_what_each_rule_said() {
    let rules = set(
        json!([
            {"effect": "deny", "methods": ["PUT"]},
            on("deny", "^/b"),
            {"effect": "deny", "source": ["10.0.0.0/8"]},
            {"effect": "deny", "headers": [{"name": "host"}, {"name": "x-a"}]},
            {"effect": "deny", "query": [{"name": "q"}]},
            {"effect": "deny", "mode": "shadow", "body": [{"json_path": "$"}]},
            {"effect": "allow"},
        ]),
        Effect::Allow,
    );
    let expected = [
        TraceResult::No(Part::Methods),
        TraceResult::No(Part::Path),
        TraceResult::No(Part::Source),
        TraceResult::No(Part::Headers(1)),
        TraceResult::No(Part::Query(0)),
        TraceResult::UnknownNeedsBody,
        TraceResult::Yes(None),
    ];
    Request::get("/a").header("host", "h").ask(|facts| {
        let trace = rules.trace(facts);
        assert_eq!(
            trace.iter().map(|rule| rule.result).collect::<Vec<_>>(),
            expected
        );
        let unreadable = BodyFacts::Unreadable(Unreadable::TooDeep);
        let trace = rules.trace(&facts.clone().with_body(unreadable));
        assert_eq!(trace[5].result, TraceResult::Yes(Some(Unreadable::TooDeep)));
        assert_eq!((trace[5].id, trace[5].mode), ("r5", Mode::Shadow));
        let empty = BodyView::default();
        let trace = rules.trace(&facts.clone().with_body(BodyFacts::View(&empty)));
        assert_eq!(trace[5].result, TraceResult::No(Part::Body(0)));
    });
}

/// The verdict of scopes that each have these rules and deny by default or not.
fn verdict(scopes: &[(Scope, Value, Effect)], request: &Request) -> Value {
    let sets: Vec<_> = scopes
        .iter()
        .map(|(_, list, default)| set(list.clone(), *default))
        .collect();
    let scoped: Vec<_> = scopes
        .iter()
        .zip(&sets)
        .map(|((scope, ..), rules)| ScopedRules {
            scope: *scope,
            scope_id: "id_1",
            rules,
        })
        .collect();
    request.ask(|facts| match judge(&scoped, facts) {
        Verdict::Allowed { shadow } => json!({"shadow": shadow}),
        Verdict::Denied { denials, shadow } => json!({"denials": denials, "shadow": shadow}),
        Verdict::NeedsBody => json!("needs body"),
    })
}

#[test]
fn every_scope_must_allow_and_every_denying_scope_is_told() {
    let scopes = [
        (
            Scope::ProxyCredential,
            json!([on(DENY, "^/a")]),
            Effect::Allow,
        ),
        (
            Scope::TargetCredential,
            json!([on(ALLOW, "^/b")]),
            Effect::Deny,
        ),
        (
            Scope::Proxy,
            json!([{"effect": "deny", "mode": "shadow"}]),
            Effect::Allow,
        ),
        (
            Scope::Target,
            json!([{"effect": "deny", "priority": 3, "message": "frozen", "notes": "secret",
                    "path": {"pattern": "^/c"}}]),
            Effect::Allow,
        ),
    ];
    let shadow = json!([
        {"scope": "proxy", "scope_id": "id_1", "rule_id": "r0", "effect": "deny"}
    ]);
    assert_eq!(
        verdict(&scopes, &Request::get("/b")),
        json!({"shadow": shadow})
    );
    assert_eq!(
        verdict(&scopes, &Request::get("/a")),
        json!({"denials": [
            {"scope": "proxy_credential", "scope_id": "id_1", "default": false,
             "rules": [{"id": "r0", "effect": "deny", "priority": 0}]},
            {"scope": "target_credential", "scope_id": "id_1", "default": true, "rules": []},
        ], "shadow": shadow})
    );
    assert_eq!(
        verdict(&scopes, &Request::get("/c")),
        json!({"denials": [
            {"scope": "target_credential", "scope_id": "id_1", "default": true, "rules": []},
            {"scope": "target", "scope_id": "id_1", "default": false, "rules": [
                {"id": "r0", "effect": "deny", "priority": 3, "message": "frozen"}]},
        ], "shadow": shadow})
    );
    assert_eq!(verdict(&[], &Request::get("/")), json!({"shadow": []}));
}

#[test]
fn scopes_ask_for_the_body_unless_one_denies_without_it() {
    let waits = json!([{"effect": "deny", "body": [{"json_path": "$.a"}]}]);
    let scopes = [
        (Scope::Proxy, waits, Effect::Allow),
        (Scope::Target, json!([on(DENY, "^/a")]), Effect::Allow),
    ];
    assert_eq!(verdict(&scopes, &Request::get("/b")), json!("needs body"));
    let denied = verdict(&scopes, &Request::get("/a"));
    assert_eq!(denied["denials"][0]["scope"], "target");
}

#[test]
fn a_denial_says_when_only_the_canonical_reading_was_not_allowed() {
    let rule = json!({"effect": "allow", "path": {"pattern": "^/v1/[^/]+$"}});
    let many = (0..30)
        .map(|n| on("allow", &format!("^/{n}$")))
        .chain([rule.clone()]);
    for list in [json!([rule]), Value::Array(many.collect())] {
        let scopes = [(Scope::Proxy, list, Effect::Deny)];
        let hint =
            |target: &str| verdict(&scopes, &Request::get(target))["denials"][0]["hint"].clone();
        assert_eq!(hint("/v1/group%2Fproject"), "path_readings_differ");
        assert_eq!(hint("/v2/x"), Value::Null);
        assert_eq!(hint("/%761/x"), Value::Null);
    }
}

#[test]
fn an_unreadable_body_is_told_as_the_reason() {
    let rules = deny(json!({"body": [{"json_path": "$.a"}]}));
    let scoped = [ScopedRules {
        scope: Scope::Proxy,
        scope_id: "prx_1",
        rules: &rules,
    }];
    Request::to("POST", "/").ask(|facts| {
        let body = BodyFacts::Unreadable(Unreadable::DuplicateKey);
        let Verdict::Denied { denials, .. } = judge(&scoped, &facts.clone().with_body(body)) else {
            panic!()
        };
        assert_eq!(
            denials[0].rules[0].unreadable,
            Some(Unreadable::DuplicateKey)
        );
    });
}

#[test]
fn a_set_of_paths_decides_as_its_patterns_do_alone() {
    let patterns = [
        "^/a",
        "b$",
        "(?i)C",
        "^/[^/]+/d",
        "x|y",
        "^/$",
        "%",
        ";",
        "//",
        "(?x)a # a",
    ];
    let parts: Vec<_> = patterns
        .iter()
        .flat_map(|pattern| {
            ["present", "absent"].map(|p| json!({"pattern": pattern, "presence": p}))
        })
        .collect();
    let methods = [json!([]), json!(["GET"]), json!(["PUT", "PURGE"])];
    for effect in [DENY, ALLOW] {
        let list: Vec<_> = parts
            .iter()
            .flat_map(|part| methods.iter().map(move |methods| (part, methods)))
            .map(|(part, methods)| json!({"effect": effect, "path": part, "methods": methods}))
            .collect();
        let together = set(Value::Array(list.clone()), Effect::Allow);
        assert!(together.path_set.is_some());
        for (method, target) in [
            ("GET", "/a/b"),
            ("GET", "/%61//c"),
            ("HEAD", "/x/d;y"),
            ("PURGE", ""),
            ("POST", "/%25"),
        ] {
            Request::to(method, target).ask(|facts| {
                let trace = together.trace(facts);
                for (rule, said) in list.iter().zip(trace) {
                    let alone = set(json!([rule]), Effect::Allow);
                    assert!(alone.path_set.is_none());
                    assert_eq!(
                        alone.trace(facts)[0].result,
                        said.result,
                        "{rule} on {target}"
                    );
                }
            });
        }
    }
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config::with_cases(96))]

    /// Whatever parts rules have: a set of them decides as each of them does alone.
    #[test]
    fn a_set_of_fields_decides_as_its_rules_do_alone(
        picks in proptest::collection::vec(proptest::array::uniform5(0..6_usize), 20..60),
        fields in proptest::collection::vec((0..3_usize, 0..4_usize), 0..6),
        allows: bool,
    ) {
        let names = ["a", "b", "x-.*", "c", "a", "b"];
        let values = ["", "^1", "2$", "(?i)X", "3", "^$"];
        let rule = |pick: [usize; 5]| {
            let presence = |at: usize| ["present", "present", "absent"][at % 3];
            let part = |name: usize, value: usize, p: usize| {
                let mut part = json!({"name": names[name], "presence": presence(p)});
                if !values[value].is_empty() {
                    part["value"] = json!(values[value]);
                }
                part
            };
            let effect = if allows { "allow" } else { "deny" };
            let mut rule = json!({"effect": effect});
            let first = part(pick[0], pick[1], pick[2]);
            match pick[3] {
                0 => rule["query"] = json!([first]),
                1 => rule["headers"] = json!([first, part(pick[4], pick[0], 0)]),
                2 => {
                    rule["query"] = json!([first]);
                    rule["headers"] = json!([part(pick[4], 1, 0)]);
                }
                _ => rule["headers"] = json!([first]),
            }
            rule
        };
        let list: Vec<Value> = picks.into_iter().map(rule).collect();
        let value = |at: usize| ["1", "12", "x", ""][at];
        let target = fields.iter().map(|(name, at)| format!("{}={}", names[*name], value(*at)));
        let target = format!("/?{}", target.collect::<Vec<_>>().join("&"));
        let mut request = Request { target, ..Request::get("/") };
        for (name, at) in &fields {
            request = request.header(["a", "b", "x-c"][*name], value(*at));
        }
        let default = if allows { Effect::Deny } else { Effect::Allow };
        let alone = list.iter().map(|rule| request.answer(&set(json!([rule]), default)));
        let any = alone.into_iter().any(|answer| (answer == Answer::Allowed) == allows);
        let together = request.answer(&set(Value::Array(list), default));
        let expected = match (any, allows) {
            (true, true) | (false, false) => Answer::Allowed,
            (true, false) => Answer::Denied,
            (false, true) => Answer::DeniedByDefault,
        };
        proptest::prop_assert_eq!(together, expected);
    }
}

#[test]
fn many_rules_on_fields_are_found_by_the_fields_of_the_request() {
    let value = |n: usize| {
        let part = json!({"name": "x-a", "value": format!("^v{n}$")});
        json!({"effect": DENY, "headers": [part]})
    };
    let list: Vec<_> = (0..900).map(value).collect();
    let rules = set(Value::Array(list), Effect::Allow);
    assert!(rules.field_set.is_some() && rules.unfiltered.is_empty());
    let with = |value| Request::get("/").header("x-a", value).answer(&rules);
    assert_eq!(with("v899"), Answer::Denied);
    assert_eq!(with("v900"), Answer::Allowed);
    // What a field does not decide first stays, and few are tried one by one.
    let absent = json!({"effect": DENY, "headers": [{"name": "x-a", "presence": "absent"}]});
    let few = set(json!([value(1), absent]), Effect::Allow);
    assert!(few.field_set.is_none());
    let list = (0..20).map(value).chain([absent]);
    let rules = set(list.collect(), Effect::Allow);
    assert_eq!(rules.unfiltered, [20]);
    assert_eq!(Request::get("/").answer(&rules), Answer::Denied);
}
