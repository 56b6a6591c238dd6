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
}

#[test]
fn a_secret_is_never_printed() {
    let input: SecretInput = serde_json::from_value(serde_json::json!({"key": "canary"})).unwrap();
    assert!(!format!("{input:?}").contains("canary"));
}
