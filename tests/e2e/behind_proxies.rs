//! Where requests come from when load balancers stand before the listeners: `trusted_proxies` and
//! `forwarded_header` of gateway and REST API.

use serde_json::{Value, json};

use crate::harness::gateway::Gateway;
use crate::harness::http::{Message, Request};
use crate::harness::upstream::Upstream;
use crate::regions::Two;

/// A gateway whose listeners are behind proxies of these networks.
fn behind(networks: &str) -> Gateway {
    let config = format!(
        "[gateway]\ntrusted_proxies = {networks}\n\
         [control]\ntrusted_proxies = {networks}\nforwarded_header = \"forwarded\"\n\
         [policy]\nallow_http = true\n\
         [[dial_guard.permit]]\nnetwork = \"127.0.0.0/8\"\nports = [\"1-65535\"]\norgs = [\"*\"]\n"
    );
    Gateway::configured(&config)
}

/// A change through the REST API with a field that says where it comes from; what the audit says.
fn audited(gateway: &Gateway, name: &str, value: &str) -> Value {
    let made = Request::new("POST", "/api/v1/orgs/default/targets")
        .field("content-type", "application/json")
        .field("authorization", &format!("Bearer {}", gateway.token))
        .field(name, value)
        .body(json!({"base_url": "https://api.example.com"}).to_string())
        .send(&gateway.control);
    assert_eq!(made.status(), 201, "{}", made.text());
    gateway.get("/audit?limit=1")["items"][0]["source"].clone()
}

#[test]
fn what_trusted_proxies_say_counts_in_audit_rules_and_records() {
    let gateway = behind("[\"127.0.0.0/8\", \"10.0.0.0/8\"]");
    let forwarded = "for=6.6.6.6, for=192.0.2.7;proto=https, for=10.0.0.3";
    assert_eq!(audited(&gateway, "forwarded", forwarded), "192.0.2.7");
    assert_eq!(audited(&gateway, "forwarded", "for=unknown"), "127.0.0.1");
    // The field of the settings counts, not the other one, which a proxy may let pass.
    assert_eq!(audited(&gateway, "x-forwarded-for", "6.6.6.6"), "127.0.0.1");

    let upstream = Upstream::json("{}");
    let proxy = gateway.proxy(&upstream.url());
    let rules = format!("/proxies/{}/rules", proxy.id);
    gateway.create(
        &rules,
        json!({"effect": "deny", "source": ["192.0.2.0/24"]}),
    );
    let from = |value: &str| -> Message {
        proxy.send(&proxy.request("GET", "/").field("x-forwarded-for", value))
    };
    assert_eq!(from("198.51.100.1, 192.0.2.7").status(), 400);
    let passed = from("192.0.2.7, 198.51.100.1");
    assert_eq!(passed.status(), 200, "{}", passed.text());
    let id = passed.field("requestrocket-request-id").expect("an id");
    assert_eq!(gateway.record(id)["source_address"], "198.51.100.1");
}

#[test]
fn what_others_say_changes_nothing() {
    let gateway = behind("[\"10.0.0.0/8\"]");
    let forged = "for=10.0.0.1, for=6.6.6.6";
    assert_eq!(audited(&gateway, "forwarded", forged), "127.0.0.1");
    let upstream = Upstream::json("{}");
    let proxy = gateway.proxy(&upstream.url());
    let rules = format!("/proxies/{}/rules", proxy.id);
    gateway.create(&rules, json!({"effect": "deny", "source": ["127.0.0.0/8"]}));
    let request = proxy
        .request("GET", "/")
        .field("x-forwarded-for", "192.0.2.7");
    assert_eq!(proxy.send(&request).status(), 400);
}

#[test]
fn a_write_that_another_region_sends_on_comes_from_its_caller() {
    let two = Two::new();
    let (us, eu) = two.controls_with("trusted_proxies = [\"127.0.0.0/8\"]\n");
    assert_eq!(
        audited(&eu, "x-forwarded-for", "6.6.6.6, 192.0.2.7"),
        "192.0.2.7"
    );
    assert_eq!(us.get("/audit?limit=1")["items"][0]["source"], "192.0.2.7");
}
