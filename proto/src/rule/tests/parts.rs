//! Each part of a rule on its own, and all of them together.

use super::*;

#[test]
fn a_rule_without_parts_matches_everything() {
    check(json!({}), &Request::get(""), true, true);
    check(
        json!({}),
        &Request::to("MERGE", "/x?y").json("{"),
        true,
        true,
    );
}

#[test]
fn patterns_are_unanchored_and_take_flags() {
    let path = |pattern: &str, flags: &str| json!({"path": {"pattern": pattern, "flags": flags}});
    check(path("dmi", ""), &Request::get("/admin"), true, true);
    check(path("DMI", ""), &Request::get("/admin"), false, false);
    check(path("DMI", "i"), &Request::get("/admin"), true, true);
    check(
        path("d m i # spaced", "x"),
        &Request::get("/admin"),
        true,
        true,
    );
    check(path("d m i", "ix"), &Request::get("/ADMIN"), true, true);
    check(path("^/a|^/b", ""), &Request::get("/b"), true, true);
    check(path("^/$", ""), &Request::get(""), true, true);
    check(path("\\?", ""), &Request::get("/a?b"), false, false);
    let value = |flags: &str| json!({"query": [{"name": "q", "value": "^b.c$", "flags": flags}]});
    check(value(""), &Request::get("/?q=a%0Ab%0Ac"), false, false);
    check(value("s"), &Request::get("/?q=b%0Ac"), true, true);
    check(value("ms"), &Request::get("/?q=a%0Ab%0Ac"), true, true);
}

#[test]
fn header_names_are_patterns_without_case_that_fit_as_a_whole() {
    let named = |name: &str| json!({"headers": [{"name": name}]});
    let request = Request::get("/").header("x-debug-level", "3");
    check(named("X-Debug-Level"), &request, true, true);
    check(named("x-debug-.*"), &request, true, true);
    check(named("X-DEBUG-(level|depth)"), &request, true, true);
    check(named("x-debug"), &request, false, false);
    check(named("debug-level"), &request, false, false);
    check(named("x-debug|y"), &request, false, false);
    let valued = |value: &str| json!({"headers": [{"name": "x-debug-level", "value": value}]});
    check(valued("3"), &request, true, true);
    check(valued("^[0-2]$"), &request, false, false);
    let absent = json!({"headers": [{"name": "x-debug-.*", "presence": "absent"}]});
    check(absent.clone(), &request, false, false);
    check(absent, &Request::get("/"), true, true);
}

#[test]
fn query_names_are_patterns_with_case_that_fit_as_a_whole() {
    let named = |name: &str| json!({"query": [{"name": name}]});
    let request = Request::get("/?page%5Bsize%5D=5&flag");
    check(named("flag"), &request, true, true);
    check(named("Flag"), &request, false, false);
    check(named("fla"), &request, false, false);
    check(named("page\\[.*\\]"), &request, true, true);
    check(named("page"), &request, false, false);
    let valued = json!({"query": [{"name": "page\\[size\\]", "value": "^\\d+$"}]});
    check(valued.clone(), &request, true, true);
    check(valued, &Request::get("/?page[size]=x"), false, false);
    check(
        json!({"query": [{"name": "a"}, {"name": "b"}]}),
        &Request::get("/?a&b"),
        true,
        true,
    );
    check(
        json!({"query": [{"name": "a"}, {"name": "b"}]}),
        &Request::get("/?a"),
        false,
        false,
    );
}

#[test]
fn body_parts_find_scalars() {
    let part = |path: &str, value: &str| json!({"body": [{"json_path": path, "value": value}]});
    let post = Request::to("POST", "/")
        .json(r#"{"amount":1.50,"big":1e2,"ok":true,"no":null,"o":{},"m":[{"r":"a"},{"r":"b"}]}"#);
    check(part("$.amount", "^1\\.50$"), &post, true, true);
    check(part("$.big", "^1e2$"), &post, true, true);
    check(part("$.ok", "^true$"), &post, true, true);
    check(part("$.no", "^null$"), &post, true, true);
    check(part("$.o", ""), &post, false, false);
    check(part("$.m[*].r", "^a$"), &post, true, false);
    check(part("$.m[*].r", "^[ab]$"), &post, true, true);
    check(json!({"body": [{"json_path": "$.o"}]}), &post, true, true);
    check(json!({"body": [{"json_path": "$.x"}]}), &post, false, false);
    check(
        json!({"body": [{"json_path": "$.m[?@.r == 'b']"}]}),
        &post,
        true,
        true,
    );
    let absent = |path: &str| json!({"body": [{"json_path": path, "presence": "absent"}]});
    check(absent("$.x"), &post, true, true);
    check(absent("$.ok"), &post, false, false);
    check(absent("$"), &Request::get("/"), true, true);
}

#[test]
fn too_many_results_are_an_unreadable_body() {
    let rule = json!({"body": [{"json_path": "$[*]", "value": "never"}]});
    let denying = deny(rule.clone());
    let allowing = allow(rule);
    let body = format!("[{}1]", "1,".repeat(10_000));
    let limits = BodyLimits::new(1 << 20);
    let view = BodyView::read(None, None, body.as_bytes(), &limits).unwrap();
    Request::to("POST", "/").ask(|facts| {
        let facts = facts.clone().with_body(BodyFacts::View(&view));
        let Outcome::Denied { rules, .. } = denying.evaluate(&facts).outcome else {
            panic!()
        };
        assert_eq!(rules[0].unreadable, Some(Unreadable::TooManyResults));
        assert_eq!(
            Answer::of(&allowing.evaluate(&facts)),
            Answer::DeniedByDefault
        );
    });
}

#[test]
fn sources_are_networks_or_addresses() {
    let rule = json!({"source": ["10.0.0.0/8", "2001:db8::/32", "192.0.2.7"]});
    for (source, matches) in [
        ("10.1.2.3", true),
        ("::ffff:10.1.2.3", true),
        ("11.0.0.1", false),
        ("2001:db8::1", true),
        ("2001:db9::1", false),
        ("192.0.2.7", true),
        ("192.0.2.8", false),
        ("::10.1.2.3", false),
    ] {
        check(
            rule.clone(),
            &Request::get("/").from(source),
            matches,
            matches,
        );
    }
    let mapped = json!({"source": ["::ffff:10.0.0.0/104", "::ffff:192.0.2.7"]});
    check(
        mapped.clone(),
        &Request::get("/").from("10.9.9.9"),
        true,
        true,
    );
    check(
        mapped.clone(),
        &Request::get("/").from("192.0.2.7"),
        true,
        true,
    );
    check(mapped, &Request::get("/").from("2001:db8::1"), false, false);
}

#[test]
fn all_parts_must_match() {
    let rule = json!({
        "methods": ["POST"], "path": {"pattern": "^/v1/"}, "source": ["192.0.2.0/24"],
        "headers": [{"name": "x-a"}], "query": [{"name": "q", "value": "1"}],
        "body": [{"json_path": "$.a"}],
    });
    let all = Request::to("POST", "/v1/x?q=1")
        .header("x-a", "b")
        .json(r#"{"a":1}"#);
    check(rule.clone(), &all, true, true);
    let without = |change: fn(&mut Request)| {
        let mut request = all.clone();
        change(&mut request);
        request
    };
    for request in [
        without(|request| request.method = "PUT"),
        without(|request| request.target = "/v2/x?q=1".to_owned()),
        without(|request| request.target = "/v1/x?q=2".to_owned()),
        without(|request| request.source = "198.51.100.1"),
        without(|request| request.headers.retain(|(name, _)| *name != "x-a")),
        without(|request| request.body = Some(b"{}".to_vec())),
    ] {
        check(rule.clone(), &request, false, false);
    }
}
