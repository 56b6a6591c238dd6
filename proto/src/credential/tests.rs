//! Rows: what a credential may and may not say.

use super::*;

fn codes(json: serde_json::Value) -> Vec<String> {
    let mut credential: Credential = serde_json::from_value(json).unwrap();
    credential.complete();
    credential
        .validate()
        .into_iter()
        .map(|p| format!("{} {}", p.pointer, p.code))
        .collect()
}

#[test]
fn placement_must_fit_kind_and_type() {
    let target = |extra: serde_json::Value| {
        let mut json = serde_json::json!({
            "kind": "target", "auth_type": "api_key", "hosts": ["api.example.com"]
        });
        json["settings"] = extra;
        codes(json)
    };
    for (settings, expected) in [
        (serde_json::json!({}), vec![]),
        (
            serde_json::json!({"header": "X-Key", "prefix": "Token "}),
            vec![],
        ),
        (serde_json::json!({"query": "key"}), vec![]),
        (serde_json::json!({"path": "/bot{secret}"}), vec![]),
        (
            serde_json::json!({"path": "/bot"}),
            vec!["/settings/path path-template"],
        ),
        (
            serde_json::json!({"path": "/../{secret}"}),
            vec!["/settings/path path-template"],
        ),
        (
            serde_json::json!({"header": "Host"}),
            vec!["/settings/header header-reserved"],
        ),
        (
            serde_json::json!({"header": "a b"}),
            vec!["/settings/header header-name"],
        ),
        (
            serde_json::json!({"header": "x", "query": "y"}),
            vec!["/settings contradiction"],
        ),
        (
            serde_json::json!({"prefix": "a\r\n"}),
            vec!["/settings/prefix header-value"],
        ),
    ] {
        assert_eq!(target(settings.clone()), expected, "{settings}");
    }
    assert_eq!(
        codes(serde_json::json!({"kind": "target", "auth_type": "bearer"})),
        ["/hosts required"]
    );
    assert_eq!(
        codes(serde_json::json!({"kind": "proxy", "auth_type": "custom", "hosts": ["a.example"]})),
        ["/auth_type auth-type", "/hosts not-applicable"]
    );
    assert_eq!(
        codes(serde_json::json!({"kind": "target", "auth_type": "none"})),
        [""; 0]
    );
}

#[test]
fn the_age_of_facts_is_bounded_on_both_sides() {
    for (age_s, expected) in [
        (serde_json::json!(null), vec![]),
        (serde_json::json!(60), vec![]),
        (serde_json::json!(604_800), vec![]),
        (serde_json::json!(59), vec!["/max_fact_age_s range"]),
        (serde_json::json!(604_801), vec!["/max_fact_age_s range"]),
    ] {
        for kind in ["proxy", "target"] {
            let credential = serde_json::json!({
                "kind": kind, "auth_type": "none", "max_fact_age_s": age_s
            });
            assert_eq!(codes(credential), expected, "{kind} {age_s}");
        }
    }
}

#[test]
fn callers_have_a_priority_of_one_digit() {
    for (kind, priority, expected) in [
        ("proxy", 0, vec![]),
        ("proxy", 9, vec![]),
        ("proxy", 10, vec!["/priority range"]),
        ("target", 0, vec![]),
        ("target", 1, vec!["/priority not-applicable"]),
    ] {
        let credential = serde_json::json!({
            "kind": kind, "auth_type": "none", "priority": priority
        });
        assert_eq!(codes(credential), expected, "{kind} {priority}");
    }
}

#[test]
fn secrets_must_fit_the_type_and_be_strong() {
    let check = |kind: &str, auth_type: &str, secret: serde_json::Value, expected: &[&str]| {
        let mut credential: Credential = serde_json::from_value(serde_json::json!({
            "kind": kind, "auth_type": auth_type, "hosts": []
        }))
        .unwrap();
        credential.complete();
        let input: SecretInput = serde_json::from_value(secret.clone()).unwrap();
        let found: Vec<String> = credential
            .validate_secret(&input)
            .into_iter()
            .map(|p| format!("{} {}", p.pointer, p.code))
            .collect();
        assert_eq!(found, expected, "{kind} {auth_type} {secret}");
    };
    let strong = "correct-Horse-battery-staple";
    check("proxy", "api_key", serde_json::json!({"key": strong}), &[]);
    check(
        "proxy",
        "api_key",
        serde_json::json!({"key": "short1"}),
        &["/secret/key secret-too-weak"],
    );
    check(
        "proxy",
        "api_key",
        serde_json::json!({"key": "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"}),
        &["/secret/key secret-too-weak"],
    );
    check(
        "proxy",
        "api_key",
        serde_json::json!({"key": format!("rr_{strong}")}),
        &["/secret/key reserved"],
    );
    check(
        "target",
        "api_key",
        serde_json::json!({"key": "short1"}),
        &[],
    );
    check(
        "target",
        "api_key",
        serde_json::json!({"key": "a\r\nHost: x"}),
        &["/secret/key header-value"],
    );
    check(
        "target",
        "api_key",
        serde_json::json!({"key": "a\n"}),
        &["/secret/key header-value"],
    );
    check(
        "target",
        "api_key",
        serde_json::json!({"token": "x"}),
        &["/secret/token not-applicable", "/secret/key required"],
    );
    check(
        "target",
        "basic",
        serde_json::json!({"username": "sk", "password": ""}),
        &[],
    );
    check(
        "target",
        "basic",
        serde_json::json!({"username": "a:b", "password": "c"}),
        &["/secret/username colon"],
    );
    check(
        "target",
        "custom",
        serde_json::json!({}),
        &["/secret count"],
    );
    check(
        "target",
        "custom",
        serde_json::json!({"headers": [{"name": "Transfer-Encoding", "value": "chunked"}]}),
        &["/secret/headers/0/name header-reserved"],
    );
    check(
        "target",
        "custom",
        serde_json::json!({"queries": [{"name": "key", "value": "a\u{0}"}]}),
        &["/secret/queries/0/value header-value"],
    );
    let user = serde_json::json!({"username": "rr_shop", "password": strong});
    check(
        "proxy",
        "basic",
        user.clone(),
        &["/secret/username reserved"],
    );
    check("target", "basic", user, &[]);
    let parts = |count: usize, bytes: usize| {
        let part = |n| serde_json::json!({"name": format!("X-{n:02}"), "value": "v".repeat(bytes)});
        (0..count).map(part).collect::<serde_json::Value>()
    };
    for (list, count, bytes, expected) in [
        ("headers", 16, 4_092, vec![]),
        ("headers", 16, 4_093, vec!["/secret too-large"]),
        ("headers", 4, 16_380, vec![]),
        ("queries", 2, 4_092, vec![]),
        ("queries", 2, 4_093, vec!["/secret/queries too-large"]),
    ] {
        let secret = serde_json::json!({ list: parts(count, bytes) });
        check("target", "custom", secret, &expected);
    }
}

#[test]
fn a_secret_with_its_scheme_is_warned_of() {
    let check = |kind: &str, auth_type: &str, settings: serde_json::Value, secret: &str| {
        let credential = serde_json::json!({
            "kind": kind, "auth_type": auth_type, "settings": settings
        });
        let credential: Credential = serde_json::from_value(credential).unwrap();
        let field = if auth_type == "api_key" {
            "key"
        } else {
            "token"
        };
        let input = serde_json::json!({ field: secret });
        let warnings = credential.secret_warnings(&serde_json::from_value(input).unwrap());
        let codes: Vec<&str> = warnings.iter().map(|warning| warning.code).collect();
        assert!(matches!(codes[..], [] | ["secret-has-scheme"]), "{codes:?}");
        !codes.is_empty()
    };
    let none = || serde_json::json!({});
    let query = serde_json::json!({"query": "k"});
    let (bearer, token) = ("Bearer a-key-0123456789", "token a-key-0123456789");
    assert!(check("proxy", "api_key", none(), bearer));
    assert!(check("proxy", "api_key", none(), token));
    assert!(!check("proxy", "api_key", query, bearer));
    assert!(!check("proxy", "api_key", none(), "Bearer-of-a-key-012345"));
    assert!(check("proxy", "bearer", none(), bearer));
    assert!(!check("proxy", "bearer", none(), token));
    assert!(check("target", "bearer", none(), bearer));
    assert!(!check("target", "api_key", none(), bearer));
}

#[test]
fn a_secret_is_never_printed() {
    let input: SecretInput = serde_json::from_value(serde_json::json!({"key": "canary"})).unwrap();
    assert!(!format!("{input:?}").contains("canary"));
}
