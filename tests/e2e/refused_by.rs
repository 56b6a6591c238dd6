//! Records, traces and headers name the meter that refused a request, its window and the cause.

use serde_json::{Value, json};

use crate::harness::gateway::{Gateway, Proxy};
use crate::harness::http::{Connection, Message};
use crate::harness::upstream::{After, Gate, Upstream, json_answer};
use crate::harness::wait_for;

fn meter(gateway: &Gateway, proxy: &Proxy, meter: Value) -> String {
    let created = gateway.create(&format!("/proxies/{}/meters", proxy.id), meter);
    created["id"].as_str().expect("an id").to_owned()
}

/// A gateway with a proxy whose caller is told what each stage decided.
fn explained(upstream: &Upstream) -> (Gateway, Proxy) {
    let gateway = Gateway::start();
    let proxy = gateway.proxy(&upstream.url());
    let credential = format!("/credentials/{}", proxy.proxy_credential);
    gateway.patch(&credential, json!({"explain": true}));
    wait_for("explanations", || {
        proxy.get("/").field("requestrocket-explain").map(|_| ())
    });
    (gateway, proxy)
}

/// What is told of a refused request: its record, the stage's words and the header.
fn check(gateway: &Gateway, answer: &Message, expected: &Value, words: &str, tag: &str) {
    let id = answer.field("requestrocket-request-id").expect("an id");
    let record = gateway.record(id);
    assert_eq!(record["refused_by"], json!([expected]), "{record}");
    let found = gateway.get(&format!(
        "/records?meter={}",
        expected["meter"].as_str().expect("an id")
    ));
    let items = found["items"].as_array().expect("records").iter();
    assert!(items.clone().any(|one| one["request_id"] == id), "{found}");
    assert!(
        items
            .clone()
            .all(|one| one["refused_by"] == json!([expected]))
    );
    // What needs its body first is refused when it is to be sent.
    let trace = gateway.get(&format!("/records/{id}/trace"));
    let spans = trace["spans"].as_array().expect("spans").iter();
    let mut ended = spans.filter(|span| span["outcome"] == "end");
    let said = ended.next().and_then(|span| span["decision"].as_str());
    assert!(said.is_some_and(|said| said.ends_with(words)), "{trace}");
    assert!(ended.next().is_none(), "{trace}");
    let header = answer.field("requestrocket-explain").expect("a header");
    assert!(header.contains(&format!(";by=\"{tag}\"")), "{header}");
}

#[test]
fn of_two_meters_without_names_the_one_that_refused_is_named() {
    let upstream = Upstream::json("{}");
    let (gateway, proxy) = explained(&upstream);
    // Of the same window: what callers see of them has the same name.
    let of = |limit: u64| json!({"limits": [{"limit": limit, "window": "hour"}]});
    let wide = meter(&gateway, &proxy, of(1_000));
    let narrow = meter(&gateway, &proxy, of(1));
    let refused = wait_for("a refusal", || {
        let answer = proxy.get("/");
        (answer.status() == 429).then_some(answer)
    });
    assert_ne!(wide, narrow);
    let expected = json!({"meter": narrow, "window": "hour", "cause": "empty"});
    let words = format!("too little is left of the limit per hour of {narrow}");
    let tag = format!("{narrow}:hour:empty");
    check(&gateway, &refused, &expected, &words, &tag);
    let found = gateway.get(&format!("/records?meter={wide}"));
    assert_eq!(found["items"], json!([]));
}

#[test]
fn a_meter_of_values_with_something_left_is_named_too() {
    let upstream = Upstream::fixed(json_answer("200 OK", r#"{"usage":{"total_tokens":600}}"#));
    let (gateway, proxy) = explained(&upstream);
    let value = json!({"template": "openai_chat", "estimate": 10});
    let limits = json!([{"limit": 1_000, "window": "hour"}]);
    let budget = json!({"kind": "response_value", "value": value, "limits": limits});
    let budget = meter(&gateway, &proxy, budget);
    let ask = |most: u64| {
        let body = json!({"model": "m", "max_tokens": most}).to_string();
        proxy.send(&proxy.request("POST", "/").json(&body))
    };
    let refused = wait_for("a refusal", || {
        let answer = ask(600);
        (answer.status() == 429).then_some(answer)
    });
    let left = &refused.json()["meters"][0]["remaining"];
    assert!(left.as_u64() > Some(0), "something is left: {left}");
    let expected = json!({"meter": budget, "window": "hour", "cause": "empty"});
    let words = format!("too little is left of the limit per hour of {budget}");
    let tag = format!("{budget}:hour:empty");
    check(&gateway, &refused, &expected, &words, &tag);
}

#[test]
fn calls_in_flight_are_a_cause_of_their_own() {
    let gate = Gate::default();
    let held = gate.clone();
    let upstream = Upstream::start(move |request, connection| {
        if request.target() == "/held" {
            held.pass();
        }
        connection.send(json_answer("200 OK", "{}"));
        After::Keep
    });
    let (gateway, proxy) = explained(&upstream);
    let limits = json!({"limits": [{"limit": 1, "algorithm": "concurrency"}]});
    let calls = meter(&gateway, &proxy, limits);
    let mut open = Vec::new();
    let refused = wait_for("a refusal", || {
        // One that is sent before the meter is in force takes no place.
        let mut connection = Connection::open(&gateway.url);
        connection.send(proxy.request("GET", "/held").bytes(&gateway.url));
        open.push(connection);
        let answer = proxy.get("/");
        (answer.status() == 429).then_some(answer)
    });
    let expected = json!({"meter": calls, "window": "concurrency", "cause": "in-flight"});
    let words = format!("all calls in flight of {calls} are in use");
    let tag = format!("{calls}:concurrency:in-flight");
    check(&gateway, &refused, &expected, &words, &tag);
    gate.open();
    let mut statuses = open
        .iter_mut()
        .map(|one| one.read().expect("an answer").status());
    assert!(statuses.any(|status| status == 200));
}
