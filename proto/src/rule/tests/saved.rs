//! What is refused at save, all of it at once, and what is warned of.

use super::*;
use crate::pattern_size;
use crate::problem::Problem;

fn rule(rule: Value) -> Rule {
    serde_json::from_value(rule).unwrap()
}

/// The pointers and codes of a rule's problems.
fn problems(value: Value) -> Vec<(String, &'static str)> {
    coded(rule(value).validate())
}

fn coded(problems: Vec<Problem>) -> Vec<(String, &'static str)> {
    problems
        .into_iter()
        .map(|problem| (problem.pointer, problem.code))
        .collect()
}

#[track_caller]
fn refuses(value: Value, pointer: &str, code: &str) {
    let found = problems(value.clone());
    let found: Vec<_> = found
        .iter()
        .map(|(at, code)| (at.as_str(), *code))
        .collect();
    assert_eq!(found, [(pointer, code)], "{value}");
}

#[test]
fn a_rule_reads_and_writes_the_names_of_the_design() {
    let stored = json!({
        "id": "rul_1", "effect": "deny", "priority": -3, "mode": "shadow", "methods": ["POST"],
        "path": {"pattern": "^/v1", "flags": "i", "presence": "absent"},
        "headers": [{"name": "x-a", "value": "b", "flags": "i", "presence": "present"}],
        "query": [{"name": "q", "presence": "absent"}],
        "body": [{"json_path": "$.a", "value": "b", "presence": "present"}],
        "source": ["10.0.0.0/8"], "on_unreadable": "skip", "message": "public", "notes": "private",
    });
    let rule: Rule = serde_json::from_value(stored.clone()).unwrap();
    assert_eq!(rule.validate(), []);
    assert_eq!(serde_json::to_value(&rule).unwrap(), stored);
    let small: Rule = serde_json::from_value(json!({"effect": "allow"})).unwrap();
    let defaults = (small.priority, small.mode, small.on_unreadable);
    assert_eq!(defaults, (0, Mode::Enforce, OnUnreadable::Deny));
    for unknown in [
        json!({"effect": "allow", "claims": []}),
        json!({"effect": "allow", "path": {"pattern": "x", "regex": 1}}),
        json!({"effect": "block"}),
        json!({"effect": "allow", "path": {"pattern": "x", "presence": "must_exist"}}),
        json!({}),
    ] {
        assert!(
            serde_json::from_value::<Rule>(unknown.clone()).is_err(),
            "{unknown}"
        );
    }
}

#[test]
fn each_fault_has_its_place_and_code() {
    let path = |pattern: &str| json!({"effect": "deny", "path": {"pattern": pattern}});
    refuses(path("(?=x)"), "/path/pattern", "pattern-look-around");
    refuses(path("(?<!x)y"), "/path/pattern", "pattern-look-around");
    refuses(path("(a)\\1"), "/path/pattern", "pattern-backreference");
    refuses(path("(a"), "/path/pattern", "pattern-invalid");
    refuses(path("a)(b"), "/path/pattern", "pattern-invalid");
    refuses(path("a**{"), "/path/pattern", "pattern-invalid");
    refuses(path(&"a".repeat(1025)), "/path/pattern", "pattern-too-long");
    refuses(
        path("(\\w{100}){100}"),
        "/path/pattern",
        "pattern-too-large",
    );
    assert_eq!(problems(path(&"a".repeat(1024))), []);
    let flags = |flags: &str| json!({"effect": "deny", "path": {"pattern": "a", "flags": flags}});
    refuses(flags("g"), "/path/flags", "flag-unknown");
    refuses(flags("imxU"), "/path/flags", "flag-unknown");
    assert_eq!(problems(flags("imsx")), []);
    let header = |part: Value| json!({"effect": "deny", "headers": [{"name": "x"}, part]});
    refuses(
        header(json!({"name": ""})),
        "/headers/1/name",
        "name-missing",
    );
    refuses(
        header(json!({"name": "a)|(?:b"})),
        "/headers/1/name",
        "pattern-invalid",
    );
    refuses(
        header(json!({"name": "a", "value": "["})),
        "/headers/1/value",
        "pattern-invalid",
    );
    refuses(
        header(json!({"name": "a", "flags": "i"})),
        "/headers/1/flags",
        "flags-without-value",
    );
    let query = |part: Value| json!({"effect": "deny", "query": [part]});
    refuses(
        query(json!({"name": "("})),
        "/query/0/name",
        "pattern-invalid",
    );
    refuses(
        query(json!({"name": "a", "value": "a", "flags": "q"})),
        "/query/0/flags",
        "flag-unknown",
    );
    let body = |part: Value| json!({"effect": "deny", "body": [part]});
    refuses(
        body(json!({"json_path": "model"})),
        "/body/0/json_path",
        "json-path-invalid",
    );
    refuses(
        body(json!({"json_path": "$..a..b"})),
        "/body/0/json_path",
        "json-path-invalid",
    );
    refuses(
        body(json!({"json_path": "$", "value": "("})),
        "/body/0/value",
        "pattern-invalid",
    );
    refuses(
        json!({"effect": "deny", "methods": ["GET", "A B"]}),
        "/methods/1",
        "method-invalid",
    );
    refuses(
        json!({"effect": "deny", "methods": [""]}),
        "/methods/0",
        "method-invalid",
    );
    let source = |network: &str| json!({"effect": "deny", "source": ["10.0.0.0/8", network]});
    for network in [
        "10.0.0.0/33",
        "10.0.0",
        "example.com",
        "",
        "::1/129",
        "10.0.0.1:80",
    ] {
        refuses(source(network), "/source/1", "source-invalid");
    }
    let message = |text: &str| json!({"effect": "deny", "message": text});
    assert_eq!(problems(message(&"é".repeat(200))), []);
    refuses(message(&"é".repeat(201)), "/message", "message-too-long");
    refuses(message("a\r\nb"), "/message", "message-control-character");
    refuses(
        json!({"effect": "deny", "notes": "x".repeat(4097)}),
        "/notes",
        "notes-too-long",
    );
    refuses(
        json!({"effect": "deny", "methods": vec!["GET"; 65]}),
        "/methods",
        "parts-too-many",
    );
}

#[test]
fn a_refused_pattern_says_why() {
    let detail = |pattern: &str| {
        let rule = rule(json!({"effect": "deny", "path": {"pattern": pattern}}));
        rule.validate().remove(0).detail
    };
    assert!(detail("^(?!/v1)").contains("not linear"));
    assert!(detail("^(?!/v1)").contains("presence: absent"));
    assert!(detail("(a)\\1").contains("not linear"));
    assert_eq!(detail("(a"), "not a valid pattern: unclosed group");
}

#[test]
fn all_problems_are_told_at_once() {
    let found = problems(json!({
        "effect": "allow", "methods": ["B D"], "path": {"pattern": "(", "flags": "g"},
        "headers": [{"name": "(", "value": "[", "flags": "z"}], "query": [{"name": ""}],
        "body": [{"json_path": "", "value": "("}], "source": ["x"], "message": "\u{7}",
    }));
    let pointers: Vec<_> = found.iter().map(|(pointer, _)| pointer.as_str()).collect();
    assert_eq!(
        pointers,
        [
            "/message",
            "/methods/0",
            "/path/flags",
            "/path/pattern",
            "/source/0",
            "/headers/0/name",
            "/headers/0/flags",
            "/headers/0/value",
            "/query/0/name",
            "/body/0/json_path",
            "/body/0/value",
        ]
    );
}

#[test]
fn a_scope_has_unique_ids_and_bounds() {
    let compile = |rules: Vec<Rule>| match RuleSet::compile(&rules, Effect::Allow) {
        Ok(set) => panic!("{} rules compiled", set.len()),
        Err(problems) => coded(problems),
    };
    let with = |id: &str, pattern: String| {
        let mut rule = rule(json!({"effect": "deny", "path": {"pattern": pattern}}));
        rule.id = id.to_owned();
        rule
    };
    let numbered = |count: usize, pattern: fn(usize) -> String| {
        (0..count)
            .map(|n| with(&format!("r{n}"), pattern(n)))
            .collect::<Vec<_>>()
    };
    let problem = |pointer: &str, code: &'static str| (pointer.to_owned(), code);
    let twins = vec![
        with("a", "x".into()),
        with("", "(".into()),
        with("a", "y".into()),
    ];
    assert_eq!(
        compile(twins),
        [
            problem("/1/id", "id-missing"),
            problem("/2/id", "id-not-unique"),
            problem("/1/path/pattern", "pattern-invalid"),
        ]
    );
    let many = numbered(1001, |n| format!("^/{n}$"));
    assert_eq!(compile(many), [problem("", "rules-too-many")]);
    let long = numbered(300, |n| format!("^/{n}{}", "a".repeat(1000)));
    assert!(compile(long).contains(&problem("", "patterns-too-long")));
    let large = numbered(70, |n| format!("{n}\\w{{5}}"));
    assert_eq!(compile(large), [problem("", "patterns-too-large")]);
    let most = numbered(1000, |n| format!("^/v1/customers/[^/]+/orders/{n}/?$"));
    let set = RuleSet::compile(&most, Effect::Allow).unwrap();
    assert_eq!(set.len(), 1000);
    assert_eq!(
        Request::get("/v1/customers/x/orders/999").answer(&set),
        Answer::Denied
    );
    assert_eq!(
        Request::get("/v1/customers/x/orders/1000").answer(&set),
        Answer::Allowed
    );
}

#[test]
fn scopes_that_share_patterns_judge_and_count_as_alone() {
    let searched = |flags: &str| json!({"pattern": "^/a$", "flags": flags});
    let path = |flags| json!([{"effect": "deny", "path": searched(flags)}]);
    let name = json!([{"effect": "deny", "headers": [{"name": "^x-.$", "value": "^/a$"}]}]);
    let parameter = json!([{"effect": "deny", "query": [{"name": "^x-.$"}]}]);
    let mut patterns = Patterns::default();
    let requests = ["/a", "/A", "/a?x-y=1", "/a?X-Y=1", "/b?xx-y=1"];
    let requests = requests.map(|target| Request::get(target).header("X-z", "/a"));
    // A flag, the case of names and all of a name tell patterns apart that are written alike.
    for (list, denied) in [
        (path(""), [true, false, true, true, false]),
        (path("i"), [true, true, true, true, false]),
        (name, [true; 5]),
        (parameter, [false, false, true, false, false]),
    ] {
        let alone = set(list.clone(), Effect::Allow);
        for compiled_before in [false, true] {
            let before = pattern_size::made_bytes();
            let shared = RuleSet::sharing(&rules(list.clone()), Effect::Allow, &mut patterns);
            let made = pattern_size::made_bytes() - before;
            assert!(made == 0 || !compiled_before, "{list} is compiled twice");
            let shared = shared.unwrap();
            assert_eq!(shared.compiled_bytes_max(), alone.compiled_bytes_max());
            let answers = requests.each_ref().map(|request| request.answer(&shared));
            let answers = answers.map(|answer| answer == Answer::Denied);
            assert_eq!(answers, denied, "{list}");
        }
    }
}

#[test]
fn what_is_probably_not_meant_is_warned_of() {
    let warnings = |effect: &str, presence: &str, pattern: &str| {
        let part = json!({"pattern": pattern, "presence": presence});
        let found = rule(json!({"effect": effect, "path": part})).warnings();
        found
            .into_iter()
            .map(|warning| warning.code)
            .collect::<Vec<_>>()
    };
    let allow = |pattern: &str| warnings("allow", "present", pattern);
    let deny = |pattern: &str| warnings("deny", "present", pattern);
    for anchored in [
        "^/a",
        r"\A/a",
        "^/a|^/b",
        "(^/a)",
        "(?:^/a|^/b)",
        "(?i)^/a",
        "^[|]",
        r"^\|",
    ] {
        assert_eq!(allow(anchored), [""; 0], "{anchored}");
    }
    for loose in ["/v1/users", "", "^/a|/b", "users$", "(/a)"] {
        assert_eq!(allow(loose), ["path-not-anchored"], "{loose}");
    }
    for whole in [
        "^/admin",
        "^/admin/?$",
        "^/admin(/.*)?",
        r"^/cost\$",
        "admin/.*$",
    ] {
        assert_eq!(deny(whole), [""; 0], "{whole}");
    }
    for exact in [
        "^/admin$",
        "^/admin/$",
        "(^/admin$)",
        "^/a/?$|^/b$",
        r"^/a\z",
    ] {
        assert_eq!(deny(exact), ["path-trailing-slash"], "{exact}");
    }
    for raw in ["^/a;b", r"^/a\\b", "^//"] {
        assert_eq!(deny(raw), ["path-only-raw"], "{raw}");
    }
    // Turned round, a pattern lets through what the other effect's would not.
    assert_eq!(warnings("deny", "absent", "/v1"), ["path-not-anchored"]);
    assert_eq!(
        warnings("allow", "absent", "^/admin$"),
        ["path-trailing-slash"]
    );
    assert_eq!(rule(json!({"effect": "allow"})).warnings(), []);
    for never in ["^v1/x", "^/v1|^v2/", r"\Av1"] {
        assert!(deny(never).contains(&"path-never-matches"), "{never}");
    }
    for query in ["^/x[?]a=1", r"^/x\?a_b=1", r"/\?page=\d"] {
        assert!(deny(query).contains(&"path-has-no-query"), "{query}");
    }
    for fine in [
        "^/v1",
        "^.*/x",
        "^v?/x",
        "^(/a|/b)",
        "^[/]x",
        "^/x=?y",
        "^/(?P<n>a)=b",
        "^/colou?r=red",
        "^/a/?id=1",
    ] {
        let found = deny(fine);
        assert!(!found.contains(&"path-never-matches"), "{fine}");
        assert!(!found.contains(&"path-has-no-query"), "{fine}");
    }
    let places = |document: serde_json::Value| -> Vec<(String, &str)> {
        let found = rule(document).warnings().into_iter();
        found.map(|w| (w.pointer.to_string(), w.code)).collect()
    };
    let unusual = json!({"effect": "deny", "methods": ["get", "GETT", "PURGE"]});
    assert_eq!(
        places(unusual),
        [
            ("/methods/1".to_owned(), "method-unusual"),
            ("/methods/2".to_owned(), "method-unusual")
        ]
    );
    for all in [
        json!({"effect": "deny"}),
        json!({"effect": "deny", "path": {"pattern": ""}}),
    ] {
        assert!(places(all).contains(&(String::new(), "denies-all")));
    }
}
