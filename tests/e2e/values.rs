//! Meters that count values of answers: tokens of a language model, money.

use serde_json::{Value, json};

use crate::harness::gateway::{Gateway, Proxy};
use crate::harness::http::Connection;
use crate::harness::upstream::{After, Gate, Upstream, json_answer};
use crate::harness::wait_for;

fn answer(total: impl std::fmt::Display) -> String {
    json_answer(
        "200 OK",
        &format!(r#"{{"usage":{{"total_tokens":{total}}}}}"#),
    )
}

/// A meter of a proxy, of a thousand an hour.
fn budget(gateway: &Gateway, proxy: &Proxy, value: Value) -> Value {
    let place = format!("/proxies/{}/meters", proxy.id);
    let limits = json!([{"limit": 1_000, "window": "hour"}]);
    let meter = json!({"kind": "response_value", "value": value, "limits": limits});
    gateway.create(&place, meter)
}

/// The one key of a meter, once `met` holds of it.
fn usage(gateway: &Gateway, what: &str, met: impl Fn(&Value) -> bool) -> Value {
    wait_for(what, || {
        let found = gateway.get("/meters/usage");
        let key = found["items"][0].clone();
        (!key.is_null() && met(&key)).then_some(key)
    })
}

fn used(key: &Value) -> u64 {
    key["limits"][0]["used"].as_u64().unwrap_or_default()
}

#[test]
fn an_answer_costs_what_it_says_and_not_what_was_estimated() {
    let gateway = Gateway::start();
    let upstream = Upstream::start(|request, connection| {
        let cost = request
            .target()
            .rsplit('/')
            .next()
            .expect("a path")
            .to_owned();
        connection.send(answer(cost));
        After::Keep
    });
    let proxy = gateway.proxy(&upstream.url());
    budget(
        &gateway,
        &proxy,
        json!({"template": "openai_chat", "estimate": 100}),
    );
    assert_eq!(proxy.get("/700").status(), 200);
    let key = usage(&gateway, "what was missing", |key| used(key) >= 700);
    assert_eq!(key["estimate"], 100, "{key}");
    assert_eq!(proxy.get("/400").status(), 200, "three hundred are left");
    // It cost more than there was: nothing passes until that is paid off.
    usage(&gateway, "all of it", |key| used(key) >= 1_100);
    let refused = proxy.get("/1");
    assert_eq!(refused.outcome(), (429, "rate-limited"));
    assert_eq!(upstream.seen().len(), 2);
    assert_eq!(
        refused.field("ratelimit-policy"),
        Some("\"hour\";q=1000;w=3600")
    );
}

#[test]
fn what_an_answer_did_not_cost_is_given_back() {
    let gateway = Gateway::start();
    let upstream = Upstream::fixed(answer(10));
    let proxy = gateway.proxy(&upstream.url());
    let place = format!("/proxies/{}/meters", proxy.id);
    let value = json!({"template": "openai_chat", "estimate": 600});
    let limits = json!([{"limit": 1_000, "window": "minute"}]);
    gateway.create(
        &place,
        json!({"kind": "response_value", "value": value, "limits": limits}),
    );
    // Each sets six hundred aside. Five of them within a minute: they are given back.
    let begun = std::time::Instant::now();
    for at in 0..5 {
        wait_for("a token", || (proxy.get("/").status() == 200).then_some(()));
        assert!(at == 0 || begun.elapsed().as_secs() < 60, "{at}");
    }
    let key = usage(&gateway, "what is used", |key| used(key) <= 700);
    assert_eq!(key["missed"], 0, "{key}");
}

#[test]
fn a_request_that_may_cost_more_than_is_left_is_refused_and_a_smaller_one_is_not() {
    let gateway = Gateway::start();
    let upstream = Upstream::fixed(answer(600));
    let proxy = gateway.proxy(&upstream.url());
    budget(
        &gateway,
        &proxy,
        json!({"template": "openai_chat", "estimate": 10}),
    );
    let ask = |most: u64| {
        let body = json!({"model": "m", "max_tokens": most}).to_string();
        proxy.send(&proxy.request("POST", "/").json(&body))
    };
    assert_eq!(ask(600).status(), 200);
    let refused = ask(500);
    assert_eq!(
        refused.outcome(),
        (429, "rate-limited"),
        "{}",
        refused.text()
    );
    // It is not used up: the caller is told what is left, and what would have been set aside.
    let told = refused.json();
    let detail = told["detail"].as_str().expect("a text");
    let (left, rest) = detail.split_once(" of 1000 per ").expect(detail);
    let left = left.parse::<u64>().expect(detail);
    assert!((1..=400).contains(&left), "{detail}");
    assert!(rest.contains(" left, and 500 are set aside"), "{detail}");
    assert_eq!(ask(300).status(), 200);
    assert_eq!(upstream.seen().len(), 2);
}

#[test]
fn a_stream_passes_as_it_comes_and_its_usage_is_asked_for_and_taken_out() {
    let gateway = Gateway::start();
    let gate = Gate::default();
    let held = gate.clone();
    let upstream = Upstream::start(move |_, connection| {
        let chunk = |text: &str| format!("{:x}\r\n{text}\r\n", text.len());
        let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\
                    transfer-encoding: chunked\r\n\r\n";
        let first = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}],\"usage\":null}\n\n";
        connection.send([head.to_owned(), chunk(first)].concat());
        held.pass();
        let usage = "data: {\"choices\":[],\"usage\":{\"total_tokens\":900}}\n\n";
        let rest = [usage, "data: [DONE]\n\n"].concat();
        connection.send([chunk(&rest), "0\r\n\r\n".to_owned()].concat());
        After::Keep
    });
    let proxy = gateway.proxy(&upstream.url());
    let value = json!({"template": "openai_chat", "estimate": 10, "request_usage": "inject"});
    budget(&gateway, &proxy, value);
    // What the gateway adds is neither judged nor filtered: the caller did not send it.
    let filter = json!({"op": "destroy", "paths": ["$.stream_options"], "direction": "request"});
    gateway.create(&format!("/proxies/{}/filters", proxy.id), filter);
    let schema = json!({"additionalProperties": false, "properties": {"model": {}, "stream": {}}});
    let validation = json!({"validation": {"request": {"schema": schema}}});
    gateway.patch(&format!("/proxies/{}", proxy.id), validation);
    let request = proxy
        .request("POST", "/chat")
        .json(r#"{"model":"m","stream":true}"#);
    let mut connection = Connection::open(&gateway.url);
    connection.send(request.bytes(&gateway.url));
    assert_eq!(connection.head().expect("a head").status(), 200);
    let piece = connection
        .some()
        .expect("the first event, before the gate opens");
    let mut seen = String::from_utf8_lossy(&piece).into_owned();
    assert!(seen.contains("\"content\":\"a\""), "{seen}");
    gate.open();
    while !seen.contains("[DONE]") {
        let piece = connection.some().expect("the rest of the stream");
        seen.push_str(&String::from_utf8_lossy(&piece));
    }
    assert!(!seen.contains("total_tokens"), "{seen}");
    let asked = upstream.last().json();
    assert_eq!(asked["stream_options"]["include_usage"], true, "{asked}");
    usage(&gateway, "the stream's usage", |key| used(key) >= 900);
}

#[test]
fn a_caller_that_hangs_up_has_paid_what_was_set_aside() {
    let gateway = Gateway::start();
    let upstream = Upstream::start(|request, connection| {
        let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n";
        let said = match request.target().ends_with("/dear") {
            true => "data: {\"message\":{\"usage\":{\"input_tokens\":500}}}\n\n",
            false => "data: {\"type\":\"ping\"}\n\n",
        };
        connection.send([head, said].concat());
        // Until the gateway closes the connection.
        let _ = connection.read();
        After::Close
    });
    let proxy = gateway.proxy(&upstream.url());
    budget(
        &gateway,
        &proxy,
        json!({"template": "anthropic", "estimate": 200}),
    );
    for (path, total) in [("/cheap", 200), ("/dear", 700)] {
        let mut connection = Connection::open(&gateway.url);
        connection.send(proxy.request("POST", path).json("{}").bytes(&gateway.url));
        assert_eq!(connection.head().expect("a head").status(), 200);
        connection.some().expect("an event");
        drop(connection);
        let key = usage(&gateway, path, |key| used(key) >= total);
        assert!(used(&key) < total + 200, "{key}");
    }
    usage(&gateway, "the one that said nothing", |key| {
        key["missed"] == 1
    });
}

#[test]
fn whatever_the_target_says_the_answer_passes_and_the_meter_stands() {
    let gateway = Gateway::start();
    let million = format!(r#"{{"n":[{}1]}}"#, "1,".repeat(999_999));
    let upstream = Upstream::start(move |request, connection| {
        let body = match request.target().rsplit('/').next() {
            Some("nan") => r#"{"n":NaN}"#,
            Some("text") => r#"{"n":"7"}"#,
            Some("nothing") => "{}",
            Some("million") => million.as_str(),
            Some("cut") => r#"{"n":7"#,
            Some("huge") => r#"{"n":1e308}"#,
            _ => r#"{"n":-7}"#,
        };
        connection.send(json_answer("200 OK", body));
        After::Keep
    });
    let proxy = gateway.proxy(&upstream.url());
    let value = json!({"values": [{"path": "$..n"}, {"path": "$..n[*]"}], "estimate": 10});
    budget(&gateway, &proxy, value);
    for path in ["/nan", "/text", "/nothing", "/million", "/cut"] {
        assert_eq!(proxy.get(path).status(), 200, "{path}");
    }
    let key = usage(&gateway, "five answers without a value", |key| {
        key["missed"] == 5
    });
    assert!(used(&key) >= 50, "{key}");
    assert_eq!(proxy.get("/negative").status(), 200);
    assert_eq!(proxy.get("/huge").status(), 200);
    usage(&gateway, "the largest value", |key| used(key) >= 1 << 53);
    assert_eq!(proxy.get("/text").outcome(), (429, "rate-limited"));
    assert!(gateway.metric("requestrocket_limit_values_missed_total") >= 5.0);
    assert!(gateway.metric("requestrocket_limit_values_total") >= 2.0);
}

/// A POST that the target reads and does not answer is not sent again.
#[test]
fn a_call_without_an_answer_stays_at_its_estimate_and_is_counted() {
    let gateway = Gateway::start();
    let upstream = Upstream::start(|_, _| After::Close);
    let proxy = gateway.proxy(&upstream.url());
    let value = json!({"template": "openai_chat", "estimate": 100});
    budget(&gateway, &proxy, value);
    let lost = proxy.send(&proxy.request("POST", "/").json("{}"));
    assert_eq!(lost.outcome(), (502, "upstream-unreachable"));
    let key = usage(&gateway, "the call that was lost", |key| key["missed"] == 1);
    assert!(used(&key) >= 100, "{key}");
}

#[test]
fn a_record_says_which_meter_was_told_no_value() {
    let gateway = Gateway::start();
    let upstream = Upstream::start(|request, connection| {
        match request.target().rsplit('/').next() {
            Some("lost") => return After::Close,
            Some("silent") => connection.send(json_answer("200 OK", "{}")),
            _ => connection.send(answer(30)),
        }
        After::Keep
    });
    let proxy = gateway.proxy(&upstream.url());
    let meter = budget(
        &gateway,
        &proxy,
        json!({"template": "openai_chat", "estimate": 100}),
    );
    let id = meter["id"].as_str().expect("an id");
    let record = |path: &str| {
        let answer = proxy.send(&proxy.request("POST", path).json("{}"));
        gateway.record(answer.field("requestrocket-request-id").expect("an id"))
    };
    for (path, missing, spent) in [
        ("/told", json!([]), 30),
        ("/silent", json!([id]), 100),
        ("/lost", json!([id]), 100),
    ] {
        let record = record(path);
        assert_eq!(record["value_missing"], missing, "{path}: {record}");
        let spends = json!([{"meter": id, "tokens": spent}]);
        assert_eq!(record["meters"], spends, "{path}: {record}");
    }
    let found = gateway.get(&format!("/records?value_missing={id}"));
    let paths: Vec<_> = (found["items"].as_array().expect("records").iter())
        .map(|one| one["path"].as_str().expect("a path"))
        .collect();
    assert_eq!(paths, ["/lost", "/silent"], "{found}");
}

#[test]
fn money_is_weighed_and_headers_count() {
    let gateway = Gateway::start();
    let body = r#"{"usage":{"output_tokens":12}}"#;
    let upstream = Upstream::fixed(format!(
        "HTTP/1.1 200 OK\r\nx-cost-usd: 0.0004\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    ));
    let proxy = gateway.proxy(&upstream.url());
    // In millionths of a dollar: 400 by the header, and 12 tokens of 25 each.
    let value = json!({"estimate": 1, "values": [
        {"header": "x-cost-usd", "weight_millionths": 1_000_000_000_000u64},
        {"path": "$.usage.output_tokens", "weight_millionths": 25_000_000},
    ]});
    budget(&gateway, &proxy, value);
    assert_eq!(proxy.get("/").status(), 200);
    let key = usage(&gateway, "the cost", |key| used(key) >= 700);
    assert!(used(&key) < 1_000, "{key}");
}
