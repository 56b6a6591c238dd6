//! Ways round a rule that are closed: other spellings of a path, method, parameter or body.

use proptest::prelude::*;

use super::*;
use crate::target::{DoubleEncoding, EncodedSlash};

#[test]
fn no_spelling_of_a_path_passes_a_deny_rule() {
    let rule = json!({"path": {"pattern": "^/admin"}});
    for target in [
        "/admin",
        "/admin/",
        "/admin/x",
        "/%61dmin",
        "/%61%64%6D%69%6E",
        "//admin",
        "///admin/x",
        "/admin;a=1",
        "/;x/admin",
        "/%2Fadmin",
        "/%2f%2fadmin",
        "/admin%2Fx",
        r"/\admin",
        "/%5Cadmin",
        "/admin%3Bx",
    ] {
        let also_raw = target.starts_with("/admin");
        check(rule.clone(), &Request::get(target), true, also_raw);
    }
    for target in ["/users", "/ADMIN", "/x/admin", "/x%2Fadmin", "/", ""] {
        check(rule.clone(), &Request::get(target), false, false);
    }
    // Case is significant; flag `i` is for upstreams where it is not.
    let rule = json!({"path": {"pattern": "^/admin", "flags": "i"}});
    check(rule, &Request::get("/ADMIN"), true, true);
}

#[test]
fn an_allow_rule_holds_in_both_readings() {
    let rule = json!({"path": {"pattern": "^/v1/[^/]+$"}});
    check(rule.clone(), &Request::get("/v1/a"), true, true);
    check(rule.clone(), &Request::get("/v1/a%20b"), true, true);
    check(rule.clone(), &Request::get("/v1/%ff"), true, true);
    check(
        rule.clone(),
        &Request::get("/v1/group%2Fproject"),
        true,
        false,
    );
    check(rule.clone(), &Request::get("/v1/a;b"), true, true);
    check(rule.clone(), &Request::get("/v1//a"), true, false);
    check(rule.clone(), &Request::get("/%761/a"), true, false);
    let mut request = Request::get("/v1/group%2Fproject");
    request.options.encoded_slash = EncodedSlash::Opaque;
    check(rule, &request, true, true);
}

#[test]
fn an_absent_path_holds_in_every_reading_for_an_allow_and_in_any_for_a_deny() {
    let rule = json!({"path": {"pattern": "^/admin", "presence": "absent"}});
    check(rule.clone(), &Request::get("/users"), true, true);
    check(rule.clone(), &Request::get("/admin"), false, false);
    check(rule, &Request::get("/%61dmin"), true, false);
}

#[test]
fn bytes_that_are_not_utf8_hide_nothing() {
    let rule = json!({"path": {"pattern": "^/admin/[^/]+/delete$"}});
    check(rule, &Request::get("/%61dmin/%ff/delete"), true, false);
    let rule = json!({"query": [{"name": "to", "value": "^.+$"}]});
    check(rule, &Request::get("/?to=%ff"), true, true);
}

#[test]
fn a_path_that_overrides_the_path_is_judged_where_it_is_passed_on() {
    let rules = deny(json!({"path": {"pattern": "^/admin"}}));
    let only_v1 = allow(json!({"path": {"pattern": "^/v1/"}}));
    let paths = [PathReading::parse(b"/%61dmin", PathOptions::default()).unwrap()];
    Request::get("/v1/ok").ask(|facts| {
        assert_eq!(Answer::of(&rules.evaluate(facts)), Answer::Allowed);
        assert_eq!(Answer::of(&only_v1.evaluate(facts)), Answer::Allowed);
        let facts = facts.clone().with_path_overrides(&paths);
        assert_eq!(Answer::of(&rules.evaluate(&facts)), Answer::Denied);
        assert_eq!(
            Answer::of(&only_v1.evaluate(&facts)),
            Answer::DeniedByDefault
        );
    });
}

#[test]
fn overrides_of_the_method_are_methods() {
    let rule = json!({"methods": ["DELETE"]});
    let post = Request::to("POST", "/x");
    check(rule.clone(), &Request::to("DELETE", "/x"), true, true);
    check(rule.clone(), &Request::to("delete", "/x"), true, true);
    check(rule.clone(), &post, false, false);
    for name in [
        "x-http-method-override",
        "x-http-method",
        "x-method-override",
    ] {
        check(
            rule.clone(),
            &post.clone().header(name, "DELETE"),
            true,
            false,
        );
        check(
            rule.clone(),
            &post.clone().header(name, " delete "),
            true,
            false,
        );
        check(
            rule.clone(),
            &post.clone().header(name, "PUT, DELETE"),
            true,
            false,
        );
        let twice = post.clone().header(name, "PUT").header(name, "DELETE");
        check(rule.clone(), &twice, true, false);
        check(
            rule.clone(),
            &post.clone().header(name, "PUT"),
            false,
            false,
        );
        check(
            rule.clone(),
            &Request::to("DELETE", "/x").header(name, "GET"),
            true,
            false,
        );
    }
    check(
        rule.clone(),
        &Request::to("POST", "/x?_method=DELETE"),
        true,
        false,
    );
    check(
        rule.clone(),
        &Request::to("POST", "/x?%5fmethod=delete&a=1"),
        true,
        false,
    );
    check(
        rule.clone(),
        &Request::to("POST", "/x?_method=PUT&_method=DELETE"),
        true,
        false,
    );
    check(
        rule.clone(),
        &post.clone().form("a=1&_method=DELETE"),
        true,
        false,
    );
    check(
        rule.clone(),
        &post.clone().form("_method=PUT&%5Fmethod=delete"),
        true,
        false,
    );
    check(rule.clone(), &post.clone().form("a=1"), false, false);
    check(
        rule.clone(),
        &post.clone().json(r#"{"_method":"DELETE"}"#),
        false,
        false,
    );
    // A form that cannot be read may say anything.
    let coded = post
        .clone()
        .form("_method=DELETE")
        .header("content-encoding", "x-unknown");
    check(rule.clone(), &coded, true, false);
    let skip = json!({"methods": ["DELETE"], "on_unreadable": "skip"});
    check(skip, &coded, false, false);
    let only_post = json!({"methods": ["POST"]});
    check(only_post.clone(), &post.clone().form("a=1"), true, true);
    check(
        only_post.clone(),
        &post.clone().form("_method=DELETE"),
        true,
        false,
    );
    check(only_post.clone(), &post.clone().json("{}"), true, true);
    check(
        only_post,
        &post.header("x-http-method-override", "DELETE"),
        true,
        false,
    );
}

#[test]
fn get_covers_head_and_nothing_else() {
    let get = json!({"methods": ["GET"]});
    check(get.clone(), &Request::to("HEAD", "/"), true, true);
    check(get.clone(), &Request::to("TRACE", "/"), false, false);
    check(get, &Request::to("GETX", "/"), false, false);
    let head = json!({"methods": ["HEAD"]});
    check(head.clone(), &Request::to("HEAD", "/"), true, true);
    check(head, &Request::get("/"), false, false);
    let both = json!({"methods": ["GET", "HEAD"]});
    check(both, &Request::to("HEAD", "/"), true, true);
    let own = json!({"methods": ["PURGE", "post"]});
    check(own.clone(), &Request::to("PURGE", "/"), true, true);
    check(own.clone(), &Request::to("POST", "/"), true, true);
    check(own, &Request::to("MERGE", "/"), false, false);
}

#[test]
fn a_good_value_does_not_hide_a_bad_one() {
    let rule = json!({"query": [{"name": "mode", "value": "^read$"}]});
    check(rule.clone(), &Request::get("/?mode=read"), true, true);
    check(
        rule.clone(),
        &Request::get("/?mode=read&mode=write"),
        true,
        false,
    );
    check(
        rule.clone(),
        &Request::get("/?mode=write&m%6fde=re%61d"),
        true,
        false,
    );
    check(rule.clone(), &Request::get("/?mode=write"), false, false);
    check(rule, &Request::get("/"), false, false);
    let rule = json!({"headers": [{"name": "X-Role", "value": "^admin$"}]});
    let request = Request::get("/").header("x-role", "user");
    check(rule.clone(), &request, false, false);
    check(rule, &request.header("x-role", "admin"), true, false);
    let rule = json!({"query": [{"name": "mode", "value": "^read$", "presence": "absent"}]});
    check(rule.clone(), &Request::get("/?mode=read"), false, false);
    check(
        rule.clone(),
        &Request::get("/?mode=read&mode=write"),
        true,
        false,
    );
    check(rule.clone(), &Request::get("/?mode=write"), true, true);
    check(rule, &Request::get("/"), true, true);
}

#[test]
fn a_body_is_judged_by_what_it_is() {
    let rule = json!({"body": [{"json_path": "$.model", "value": "^o3"}]});
    let post = Request::to("POST", "/");
    let model = r#"{"model":"o3-pro"}"#;
    check(rule.clone(), &post.clone().json(model), true, true);
    check(
        rule.clone(),
        &post.clone().body("text/plain", model),
        true,
        true,
    );
    check(
        rule.clone(),
        &post.clone().json(r#"{"model":["x","o3"]}"#),
        true,
        false,
    );
    check(
        rule.clone(),
        &post.clone().json(r#"{"model":["o3","o3-mini"]}"#),
        true,
        true,
    );
    check(
        rule.clone(),
        &post.clone().json(r#"{"model":"x"}"#),
        false,
        false,
    );
    check(rule.clone(), &post.clone().json("{}"), false, false);
    check(rule.clone(), &post, false, false);
    check(rule.clone(), &post.clone().form("model=o3"), true, true);
    check(
        rule.clone(),
        &post.clone().form("model=x&mod%65l=o3"),
        true,
        false,
    );
    // JSON as `curl -d` sends it, and a form inside of JSON.
    check(rule.clone(), &post.clone().form(model), true, false);
    check(
        rule.clone(),
        &post.clone().form(r#"{"x":"&model=o3&y="}"#),
        true,
        false,
    );
    let multipart = "--X\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\no3\r\n--X--";
    check(
        rule,
        &post.body("multipart/form-data; boundary=X", multipart),
        true,
        true,
    );
}

#[test]
fn an_unreadable_body_matches_a_deny_rule_and_never_an_allow_rule() {
    let rule = json!({"body": [{"json_path": "$.model", "value": "^never$"}]});
    let skip = json!({"body": [{"json_path": "$.model", "value": "x"}], "on_unreadable": "skip"});
    let absent = json!({"body": [{"json_path": "$.model", "presence": "absent"}]});
    let post = Request::to("POST", "/");
    let large = format!("{{\"model\":\"{}\"}}", "x".repeat(2000));
    for request in [
        post.clone().json(r#"{"model":"a","model":"x"}"#),
        post.clone().json("{\"model\":NaN}"),
        post.clone().json("\u{feff}{}"),
        post.clone().json(&"[".repeat(100)),
        post.clone().json(&large),
        post.clone().json("{}").header("content-encoding", "snappy"),
        post.clone().json("{}").header("content-encoding", "gzip"),
        post.clone().body("text/csv", "a,b"),
    ] {
        check(rule.clone(), &request, true, false);
        check(skip.clone(), &request, false, false);
        check(absent.clone(), &request, true, false);
    }
}

/// Every way of writing a character that an upstream may decode once.
fn spelled(text: &'static str) -> impl Strategy<Value = String> {
    let characters: Vec<_> = text.chars().collect();
    let count = characters.len();
    let character = move |choices: Vec<u8>| {
        let spell = |(character, choice): (&char, u8)| match choice % 3 {
            0 => character.to_string(),
            1 => format!("%{:02x}", u32::from(*character)),
            _ => format!("%{:02X}", u32::from(*character)),
        };
        characters.iter().zip(choices).map(spell).collect()
    };
    proptest::collection::vec(any::<u8>(), count).prop_map(character)
}

/// What an upstream may read as one slash.
fn slashes() -> impl Strategy<Value = String> {
    let piece = proptest::sample::select(vec!["/", "//", "\\", "%2f", "%2F", "%5c", "%5C", "/;x/"]);
    proptest::collection::vec(piece, 0..3).prop_map(|pieces| format!("/{}", pieces.concat()))
}

proptest! {
    #[test]
    fn no_generated_spelling_of_admin_passes(
        lead in slashes(),
        admin in spelled("admin"),
        tail in proptest::sample::select(vec!["", "/", ";a=1", "%3Bx/y", "%2fx", "\\x", "/%ff"]),
        many in any::<bool>(),
        pass in any::<bool>(),
    ) {
        let rule = json!({"path": {"pattern": "^/admin"}});
        let rules = match many {
            true => among_paths(&rule, "deny", Effect::Allow),
            false => deny(rule),
        };
        let mut request = Request::get(&format!("{lead}{admin}{tail}"));
        if pass {
            request.options.double_encoding = DoubleEncoding::Pass;
        }
        prop_assert_eq!(request.answer(&rules), Answer::Denied, "{}", request.target);
    }

    #[test]
    fn no_generated_spelling_of_users_is_allowed_to_be_admin(
        lead in slashes(),
        admin in spelled("admin"),
        before in spelled("users"),
    ) {
        let rules = allow(json!({"path": {"pattern": "^/users(/[a-z]+)?$"}}));
        let request = Request::get(&format!("{lead}{admin}{lead}{before}"));
        prop_assert_eq!(request.answer(&rules), Answer::DeniedByDefault, "{}", request.target);
    }
}

#[test]
fn whether_the_method_is_overridden_is_told_without_facts() {
    let form = (
        "content-type",
        "application/x-www-form-urlencoded; charset=utf-8",
    );
    for (method, query, header, expected) in [
        ("POST", "", None, Some(false)),
        ("POST", "a=_method", None, Some(false)),
        ("POST", "_method=DELETE", None, Some(true)),
        ("GET", "a=1&%5fmethod=DELETE", None, Some(true)),
        (
            "GET",
            "",
            Some(("x-http-method-override", "DELETE")),
            Some(true),
        ),
        (
            "POST",
            "",
            Some(("x_method_override", "DELETE")),
            Some(true),
        ),
        (
            "POST",
            "",
            Some(("content-type", "application/json")),
            Some(false),
        ),
        ("POST", "", Some(form), None),
        ("PUT", "", Some(form), Some(false)),
    ] {
        let mut headers = http::HeaderMap::new();
        if let Some((name, value)) = header {
            headers.insert(name, value.parse().unwrap());
        }
        let found = Facts::method_overridden(method, query.as_bytes(), &headers);
        assert_eq!(found, expected, "{method} {query} {header:?}");
    }
}
