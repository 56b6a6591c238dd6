//! Rules in four scopes: each can refuse, all are heard, none can be walked around.

use serde_json::{Value, json};

use crate::harness::gateway::{Gateway, Proxy};
use crate::harness::http::Request;
use crate::harness::upstream::Upstream;

/// The path of each scope's object in the API, and its name in a denial.
fn scopes(proxy: &Proxy) -> [(String, &'static str); 4] {
    [
        (
            format!("/credentials/{}", proxy.proxy_credential),
            "proxy_credential",
        ),
        (
            format!("/credentials/{}", proxy.target_credential),
            "target_credential",
        ),
        (format!("/proxies/{}", proxy.id), "proxy"),
        (format!("/targets/{}", proxy.target), "target"),
    ]
}

fn denied_in(answer: &crate::harness::http::Message) -> Vec<String> {
    assert_eq!(
        answer.outcome(),
        (400, "proxy-access-denied"),
        "{}",
        answer.text()
    );
    let denials = answer.json()["denials"].clone();
    let scope = |denial: &Value| denial["scope"].as_str().expect("a scope").to_owned();
    denials
        .as_array()
        .expect("denials")
        .iter()
        .map(scope)
        .collect()
}

#[test]
fn each_scope_denies_alone_and_all_four_together() {
    let gateway = Gateway::start();
    let upstream = Upstream::json("{}");
    let proxy = gateway.proxy(&upstream.url());
    for (at, (object, scope)) in scopes(&proxy).iter().enumerate() {
        let own = json!({
            "effect": "deny", "path": {"pattern": format!("^/{scope}$")},
            "message": format!("not through {scope}"), "notes": "never shown",
        });
        gateway.create(&format!("{object}/rules"), own);
        let all = json!({"effect": "deny", "methods": ["DELETE"]});
        gateway.create(&format!("{object}/rules"), all);
        let answer = proxy.get(&format!("/{scope}"));
        assert_eq!(denied_in(&answer), [*scope]);
        assert!(answer.text().contains(&format!("not through {scope}")));
        assert!(!answer.text().contains("never shown"));
        let answer = proxy.send(&proxy.request("DELETE", "/any"));
        assert_eq!(denied_in(&answer).len(), at + 1);
    }
    assert!(upstream.seen().is_empty());
    assert_eq!(proxy.get("/else").status(), 200);
    let answer = proxy.send(&proxy.request("DELETE", "/any"));
    let id = answer.field("requestrocket-request-id").expect("an id");
    let record = gateway.record(id);
    assert_eq!(
        record["denials"].as_array().expect("denials").len(),
        4,
        "{record}"
    );
}

#[test]
fn a_default_of_deny_lets_only_what_is_allowed_through() {
    let gateway = Gateway::start();
    let upstream = Upstream::json("{}");
    let proxy = gateway.proxy(&upstream.url());
    let allow = json!({"effect": "allow", "methods": ["GET"], "path": {"pattern": "^/v1/models"}});
    gateway.create(&format!("/proxies/{}/rules", proxy.id), allow);
    let deny = json!({"default_rule_effect": "deny"});
    gateway.patch(&format!("/proxies/{}", proxy.id), deny);
    assert_eq!(proxy.get("/v1/models/a").status(), 200);
    for path in [
        "/v1/other",
        "/v1/models/../other",
        "/v1/models/%2e%2e/other",
        "/x/v1/models",
    ] {
        assert_eq!(proxy.get(path).status(), 400, "{path}");
    }
    assert_eq!(
        denied_in(&proxy.send(&proxy.request("POST", "/v1/models"))),
        ["proxy"]
    );
    assert_eq!(upstream.seen().len(), 1);
}

#[test]
fn a_shadow_rule_changes_nothing_and_is_recorded() {
    let gateway = Gateway::start();
    let upstream = Upstream::json("{}");
    let proxy = gateway.proxy(&upstream.url());
    let shadow = json!({"effect": "deny", "mode": "shadow"});
    let rule = gateway.create(&format!("/proxies/{}/rules", proxy.id), shadow);
    let answer = proxy.get("/");
    assert_eq!(answer.status(), 200);
    let id = answer.field("requestrocket-request-id").expect("an id");
    assert_eq!(gateway.record(id)["shadow_rule_ids"], json!([rule["id"]]));
}

#[test]
fn bodies_are_judged_as_the_target_would_read_them() {
    let gateway = Gateway::start();
    let upstream = Upstream::json("{}");
    let proxy = gateway.proxy(&upstream.url());
    let rule = json!({
        "effect": "deny", "body": [{"json_path": "$.model", "value": "^gpt-4"}],
    });
    gateway.create(&format!("/proxies/{}/rules", proxy.id), rule);
    let post = |body: &str| {
        proxy
            .send(&proxy.request("POST", "/v1/chat").json(body))
            .status()
    };
    assert_eq!(post(r#"{"model":"small"}"#), 200);
    assert_eq!(
        upstream.last().text(),
        r#"{"model":"small"}"#,
        "sent as it came"
    );
    for body in [
        r#"{"model":"gpt-4o"}"#,
        r#"{"mod\u0065l":"gpt-4o"}"#,
        r#"{"model":"small","model":"gpt-4o"}"#,
        r#"{"model":"gpt-4o","model":"small"}"#,
        r#"{"model":"gpt-4o""#,
    ] {
        assert_eq!(post(body), 400, "{body}");
    }
    let hidden = proxy
        .request("POST", "/v1/chat")
        .field("content-type", "text/plain")
        .body(r#"{"model":"gpt-4o"}"#);
    assert_eq!(proxy.send(&hidden).status(), 400, "another label");
    assert_eq!(upstream.seen().len(), 1);
}

#[test]
fn a_method_or_path_in_disguise_is_no_way_around() {
    let gateway = Gateway::start();
    let upstream = Upstream::json("{}");
    let proxy = gateway.proxy(&upstream.url());
    let rules = format!("/proxies/{}/rules", proxy.id);
    gateway.create(&rules, json!({"effect": "deny", "methods": ["DELETE"]}));
    gateway.create(
        &rules,
        json!({"effect": "deny", "path": {"pattern": "^/admin"}}),
    );
    for name in [
        "x-http-method-override",
        "x-http-method",
        "x-method-override",
    ] {
        let disguised = proxy.request("POST", "/").field(name, "DELETE");
        assert_eq!(proxy.send(&disguised).status(), 400, "{name}");
    }
    assert!(upstream.seen().is_empty());
    for name in ["x-original-url", "x-rewrite-url"] {
        let disguised = proxy.request("GET", "/open").field(name, "/admin");
        let status = proxy.send(&disguised).status();
        let reached = upstream
            .seen()
            .iter()
            .any(|sent| sent.field(name).is_some());
        assert!(
            status == 400 || !reached,
            "{name} reached the target: {status}"
        );
    }
}

#[test]
fn a_faulty_rule_is_refused_with_its_place() {
    let gateway = Gateway::start();
    let upstream = Upstream::json("{}");
    let proxy = gateway.proxy(&upstream.url());
    let rule = json!({"effect": "deny", "path": {"pattern": "("}, "methods": ["G T"]});
    let answer = gateway.api("POST", &format!("/proxies/{}/rules", proxy.id), Some(&rule));
    assert_eq!(answer.status(), 422, "{}", answer.text());
    let problem = answer.json();
    let pointers: Vec<_> = problem["errors"]
        .as_array()
        .expect("errors")
        .iter()
        .collect();
    let has = |pointer: &str| pointers.iter().any(|error| error["pointer"] == pointer);
    assert!(has("/path/pattern") && has("/methods/0"), "{problem}");
    assert_eq!(proxy.get("/").status(), 200, "nothing was half applied");
}

/// What is explained is what happens: the same requests, described and sent.
#[test]
fn an_explanation_and_the_gateway_agree() {
    let gateway = Gateway::start();
    let upstream = Upstream::json("{}");
    let proxy = gateway.proxy(&upstream.url());
    let rules = format!("/proxies/{}/rules", proxy.id);
    for rule in [
        json!({"effect": "deny", "path": {"pattern": "^/admin"}}),
        json!({"effect": "deny", "query": [{"name": "debug"}]}),
        json!({"effect": "deny", "headers": [{"name": "x-role", "value": "^root$"}]}),
        json!({"effect": "deny", "body": [{"json_path": "$.amount", "value": "^9"}]}),
        json!({"effect": "deny", "methods": ["DELETE"]}),
    ] {
        gateway.create(&rules, rule);
    }
    let explain = |question: Value| {
        let answer = gateway.api("POST", "/explain", Some(&question));
        assert_eq!(answer.status(), 200, "{question}: {}", answer.text());
        answer.json()
    };
    let json_type = ("content-type", "application/json");
    let mut ids = Vec::new();
    for (method, path, header, body) in [
        ("GET", "/things", None, None),
        ("GET", "/admin/users", None, None),
        ("GET", "/%61dmin", None, None),
        ("GET", "/x;y/../admin", None, None),
        ("GET", "/a?debug=1", None, None),
        ("GET", "/a?x=1", Some(("x-role", "root")), None),
        ("GET", "/a", Some(("x-role", "user")), None),
        ("POST", "/", Some(json_type), Some(r#"{"amount": 95}"#)),
        ("POST", "/", Some(json_type), Some(r#"{"amount": 15}"#)),
        ("POST", "/", Some(json_type), Some(r#"{"amount": 15"#)),
        (
            "POST",
            "/",
            Some(("x-http-method-override", "DELETE")),
            Some("{}"),
        ),
        ("DELETE", "/", None, None),
    ] {
        let mut request = proxy.request(method, path);
        let mut described = json!({"method": method, "path": path, "source": "127.0.0.1"});
        if let Some((name, value)) = header {
            request = request.field(name, value);
            described["headers"] = json!({ name: value });
        }
        if let Some(body) = body {
            request = request.body(body);
            described["body"] = json!(body);
        }
        let answer = proxy.send(&request);
        let explained = explain(json!({"proxy": proxy.id, "request": described}));
        let sent = if answer.status() == 200 {
            "allowed"
        } else {
            "denied"
        };
        assert_eq!(
            explained["decision"], sent,
            "{method} {path} {header:?} {body:?}: {explained}"
        );
        if sent == "denied" {
            assert_eq!(
                explained["code"].as_str(),
                answer.field("requestrocket-proxy-code")
            );
        }
        ids.push((
            answer
                .field("requestrocket-request-id")
                .expect("an id")
                .to_owned(),
            sent,
        ));
    }
    // From records: never the opposite of what happened, and unknown where they do not tell.
    for (id, sent) in &ids {
        gateway.record(id);
        let decision = explain(json!({ "record": id }))["decision"].clone();
        assert!(
            decision == *sent || decision == "unknown",
            "{id}: {decision}, was {sent}"
        );
    }
    let last = explain(json!({"proxy": proxy.id, "last": 100}));
    assert_eq!(last["looked_at"], ids.len());
    assert_eq!(last["decided_otherwise"], json!([]), "{last}");
    assert!(
        last["unknown"].as_u64() > Some(0) && last["denied"].as_u64() > Some(0),
        "{last}"
    );
    let change = json!([{"create": "rules", "parent": proxy.id,
                         "object": {"effect": "deny", "path": {"pattern": "^/things"}}}]);
    let question = json!({"proxy": proxy.id, "last": 100, "change": {"operations": change}});
    let would = explain(question);
    let listed = would["decided_otherwise"].as_array().expect("a list");
    assert_eq!(listed.len(), 1, "{would}");
    assert_eq!(
        (&listed[0]["path"], &listed[0]["decision"]),
        (&json!("/things"), &json!("denied"))
    );
    assert_eq!(proxy.get("/things").status(), 200, "nothing was published");
}

/// Servers that take `_` for `-` would read these as what they are not called.
#[test]
fn underscores_are_no_disguise_where_they_are_let_through() {
    let gateway = Gateway::start();
    let upstream = Upstream::json("{}");
    let target = json!({"allow_underscore_headers": true});
    let proxy = gateway.proxy_with(&upstream.url(), target, json!({}));
    let deny = json!({"effect": "deny", "methods": ["DELETE"]});
    gateway.create(&format!("/proxies/{}/rules", proxy.id), deny);
    let disguised = proxy
        .request("POST", "/")
        .field("x_http_method_override", "DELETE");
    assert_eq!(proxy.send(&disguised).status(), 400);
    let mut request = proxy.request("GET", "/").field("some_name", "kept");
    for name in [
        "x_original_url",
        "x_forwarded_for",
        "x_api_key",
        "requestrocket_proxy_code",
    ] {
        request = request.field(name, "disguised");
    }
    assert_eq!(proxy.send(&request).status(), 200);
    let seen = upstream.last();
    assert_eq!(seen.field("some_name"), Some("kept"));
    assert!(
        !format!("{:?}", seen.fields).contains("disguised"),
        "{:?}",
        seen.fields
    );
}

#[test]
fn a_rule_that_is_probably_not_meant_so_is_answered_with_a_warning() {
    let gateway = Gateway::start();
    let upstream = Upstream::json("{}");
    let proxy = gateway.proxy(&upstream.url());
    let rules = format!("/proxies/{}/rules", proxy.id);
    let loose = json!({"effect": "allow", "path": {"pattern": "/v1/users"}});
    let made = gateway.create(&rules, loose);
    assert_eq!(made["warnings"][0]["code"], "path-not-anchored", "{made}");
    let good = json!({"effect": "allow", "path": {"pattern": "^/v1/users"}});
    assert_eq!(gateway.create(&rules, good)["warnings"], Value::Null);
}

/// A target that is a whole URL is judged and sent on by its path, like any other.
#[test]
fn a_url_as_target_goes_round_no_rule() {
    let gateway = Gateway::start();
    let upstream = Upstream::json("{}");
    let proxy = gateway.proxy(&upstream.url());
    let deny = json!({"effect": "deny", "path": {"pattern": "^/admin"}});
    gateway.create(&format!("/proxies/{}/rules", proxy.id), deny);
    let absolute = |authority: &str, path: &str| {
        let target = format!("http://{authority}{}{path}", proxy.path);
        let request = Request::new("GET", &target);
        let request = request.field("authorization", &format!("Bearer {}", proxy.key));
        request.send(&gateway.url)
    };
    let own = gateway.url.trim_start_matches("http://");
    assert_eq!(
        absolute(own, "/ok?a=b").outcome(),
        (200, "proxy-access-granted")
    );
    assert_eq!(upstream.last().target(), "/ok?a=b");
    assert_eq!(upstream.last().field("host"), Some(&upstream.url()[7..]));
    assert_eq!(denied_in(&absolute(own, "/admin")), ["proxy"]);
    assert_eq!(absolute(own, "/%61dmin").status(), 400);
    let foreign = absolute("m.example", "/ok");
    assert_eq!(foreign.outcome(), (400, "malformed-request"));
    assert!(foreign.text().contains("`url`"), "{}", foreign.text());
    assert_eq!(upstream.seen().len(), 1);
}

#[test]
fn what_connection_takes_out_of_a_request_satisfies_no_rule() {
    let gateway = Gateway::start();
    let upstream = Upstream::json("{}");
    let proxy = gateway.proxy(&upstream.url());
    let rule = json!({
        "effect": "deny", "headers": [{"name": "x-dry-run", "presence": "absent"}],
    });
    gateway.create(&format!("/proxies/{}/rules", proxy.id), rule);
    let dry = || proxy.request("GET", "/").field("x-dry-run", "1");
    assert_eq!(proxy.send(&dry()).status(), 200);
    let nominated = dry().field("connection", "keep-alive, X-Dry-Run");
    assert_eq!(denied_in(&proxy.send(&nominated)), ["proxy"]);
    assert_eq!(upstream.seen().len(), 1);
    // An offer to go on in HTTP/2 is ignored, and stays here (RFC 9110 7.8).
    let offer = dry()
        .field("connection", "Upgrade, HTTP2-Settings")
        .field("upgrade", "h2c")
        .field("http2-settings", "AAMAAABkAAQAoAAAAAIAAAAA");
    assert_eq!(proxy.send(&offer).status(), 200);
    let last = upstream.last();
    for name in ["upgrade", "http2-settings"] {
        assert_eq!(last.field(name), None, "{name}");
    }
}
