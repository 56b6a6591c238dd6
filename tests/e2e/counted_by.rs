//! What meters count and by what: conditions on headers, and a limit for each claim of a token, for
//! each address of a caller and for each credential of the target.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use crate::harness::gateway::{Gateway, Proxy};
use crate::harness::http::{Message, Request};
use crate::harness::upstream::Upstream;
use crate::harness::wait_for;

fn minute(limit: u64) -> Value {
    json!([{"limit": limit, "window": "minute"}])
}

/// How many of four calls pass.
fn granted(call: impl Fn() -> u16) -> usize {
    (0..4).filter(|_| call() == 200).count()
}

fn id(object: &Value) -> &str {
    object["id"].as_str().expect("an id")
}

/// A token of this payload; nobody has to be able to check it but by comparing it.
fn jwt(payload: &Value) -> String {
    let encoded = |text: &str| URL_SAFE_NO_PAD.encode(text);
    let parts = [r#"{"alg":"HS256"}"#, &payload.to_string(), "a signature"].map(encoded);
    parts.join(".")
}

#[test]
fn a_condition_on_headers_counts_any_value_and_what_is_absent() {
    let gateway = Gateway::start();
    let upstream = Upstream::json("{}");
    for (headers, counted, others) in [
        (
            json!([{"name": "X-Plan", "value": "^free$"}]),
            vec![vec!["free"], vec!["paid", "free"]],
            vec![vec![], vec!["paid"], vec!["freedom"]],
        ),
        (
            json!([{"name": "x-plan", "presence": "absent"}]),
            vec![vec![]],
            vec![vec!["paid"], vec![""]],
        ),
    ] {
        let proxy = gateway.proxy(&upstream.url());
        let place = format!("/proxies/{}/meters", proxy.id);
        let meter = json!({"limits": minute(2), "when": {"headers": headers}});
        gateway.create(&place, meter);
        let call = |plans: &[&str]| {
            let request = proxy.request("GET", "/");
            let with = |request: Request, plan: &&str| request.field("x-plan", plan);
            proxy.send(&plans.iter().fold(request, with)).status()
        };
        for plans in &others {
            assert_eq!(granted(|| call(plans)), 4, "{headers} {plans:?}");
        }
        assert_eq!(granted(|| call(&counted[0])), 2, "{headers}");
        for plans in &counted {
            assert_eq!(call(plans), 429, "{headers} {plans:?}");
        }
        for plans in &others {
            assert_eq!(call(plans), 200, "{headers} {plans:?}");
        }
    }
}

#[test]
fn callers_with_one_claim_have_one_limit_together() {
    let gateway = Gateway::start();
    let upstream = Upstream::json("{}");
    let proxy = gateway.proxy(&upstream.url());
    let tokens = [
        json!({"sub": "1", "team": "a"}),
        json!({"sub": "2", "team": "a"}),
        json!({"sub": "3", "team": "b"}),
        json!({"sub": "4"}),
    ]
    .map(|payload| jwt(&payload));
    let credential = |token: &String| {
        let secret = json!({"token": token});
        let caller = json!({"kind": "proxy", "auth_type": "jwt", "secret": secret});
        id(&gateway.create("/credentials", caller)).to_owned()
    };
    let mut callers: Vec<String> = tokens.iter().map(credential).collect();
    // One whose key is no token has no claim either.
    callers.push(proxy.proxy_credential.clone());
    let fields = json!({"proxy_credential_ids": callers});
    gateway.patch(&format!("/proxies/{}", proxy.id), fields);
    let key = json!({"by": "claim", "name": "team"});
    let place = format!("/proxies/{}/meters", proxy.id);
    gateway.create(&place, json!({"limits": minute(2), "key": key}));
    let call = |token: &str| {
        let request = proxy.request("GET", "/").without("authorization");
        let request = request.field("authorization", &format!("Bearer {token}"));
        proxy.send(&request).status()
    };
    let [first, second, third, none] = &tokens;
    assert_eq!((call(first), call(second)), (200, 200));
    assert_eq!((call(first), call(second)), (429, 429), "of one team");
    assert_eq!(granted(|| call(third)), 2);
    assert_eq!((call(none), call(&proxy.key)), (200, 200));
    assert_eq!(
        (call(none), call(&proxy.key)),
        (429, 429),
        "without a claim"
    );
}

#[test]
fn each_address_has_the_limit_for_itself_and_of_ipv6_each_network() {
    let gateway = Gateway::configured(
        "[gateway]\ntrusted_proxies = [\"127.0.0.0/8\"]\n\
         [policy]\nallow_http = true\n\
         [[dial_guard.permit]]\nnetwork = \"127.0.0.0/8\"\nports = [\"1-65535\"]\norgs = [\"*\"]\n",
    );
    let upstream = Upstream::json("{}");
    let proxy = gateway.proxy(&upstream.url());
    let place = format!("/proxies/{}/meters", proxy.id);
    let key = json!({"by": "source"});
    gateway.create(&place, json!({"limits": minute(2), "key": key}));
    let call = |source: &str| {
        let request = proxy.request("GET", "/").field("x-forwarded-for", source);
        proxy.send(&request).status()
    };
    for source in [
        "192.0.2.1",
        "192.0.2.2",
        "2001:db8:0:1::1",
        "2001:db8:0:2::1",
    ] {
        assert_eq!(granted(|| call(source)), 2, "{source}");
    }
    for same in ["192.0.2.1", "::ffff:192.0.2.1", "2001:db8:0:1:ffff::7"] {
        assert_eq!(call(same), 429, "{same}");
    }
    assert_eq!(call("192.0.2.3"), 200);
}

/// A further proxy of the same target and caller, which injects this credential.
fn injecting(gateway: &Gateway, proxy: &Proxy, credential: &str) -> Request {
    let fields = json!({
        "target_id": proxy.target, "target_credential_id": credential,
        "proxy_credential_ids": [proxy.proxy_credential],
    });
    let made = gateway.create("/proxies", fields);
    let url = made["url"].as_str().expect("a URL");
    Request::new("GET", &url[gateway.url.len()..])
        .field("authorization", &format!("Bearer {}", proxy.key))
}

#[test]
fn each_target_credential_has_the_limit_of_its_target_for_itself() {
    let gateway = Gateway::start();
    let upstream = Upstream::json("{}");
    let proxy = gateway.proxy(&upstream.url());
    let origin = upstream.url();
    let second = json!({"kind": "target", "auth_type": "bearer", "hosts": [origin],
                        "secret": {"token": "another-secret-of-the-target"}});
    let second = gateway.create("/credentials", second);
    let same = injecting(&gateway, &proxy, &proxy.target_credential);
    let other = injecting(&gateway, &proxy, id(&second));
    let place = format!("/targets/{}/meters", proxy.target);
    let key = json!({"by": "target_credential"});
    gateway.create(&place, json!({"limits": minute(2), "key": key}));
    let call = |request: &Request| request.send(&gateway.url).status();
    assert_eq!((proxy.get("/").status(), call(&same)), (200, 200));
    assert_eq!((proxy.get("/").status(), call(&same)), (429, 429));
    assert_eq!(granted(|| call(&other)), 2);
}

#[test]
fn a_caller_that_may_is_told_which_meters_counted_its_request() {
    let gateway = Gateway::start();
    let upstream = Upstream::json(r#"{"usage":{"total_tokens":30}}"#);
    let proxy = gateway.proxy(&upstream.url());
    let place = format!("/proxies/{}/meters", proxy.id);
    let when = json!({"headers": [{"name": "x-plan", "value": "^free$"}]});
    let free = json!({"limits": minute(100), "when": when});
    let free = gateway.create(&place, free);
    let value = json!({"template": "openai_chat", "estimate": 20});
    let cost = json!({"kind": "response_value", "value": value, "limits": minute(10_000)});
    let cost = gateway.create(&place, cost);
    let credential = format!("/credentials/{}", proxy.proxy_credential);
    gateway.patch(&credential, json!({"explain": true}));
    let said = |plan: &str| {
        let request = proxy.request("POST", "/").field("x-plan", plan).json("{}");
        let answer: Message = proxy.send(&request);
        assert_eq!(answer.status(), 200, "{}", answer.text());
        answer.field("requestrocket-explain").map(str::to_owned)
    };
    let (free, cost) = (id(&free), id(&cost));
    let paid = wait_for("explanations", || said("paid"));
    // The estimate, or what the answer has cost where it came whole with its head.
    let spent = |tokens: u64| format!(";spent=\"{cost}:{tokens}\"");
    let is_told = [20, 30].iter().any(|tokens| paid.contains(&spent(*tokens)));
    assert!(is_told && !paid.contains(free), "{paid}");
    let both = said("free").expect("an explanation");
    assert!(
        both.contains(&format!("{free}:1")) && both.contains(&format!("{cost}:")),
        "{both}"
    );
}
