//! Meters as objects: what they hang on, what they count by, what refused callers are told.

use serde_json::{Value, json};

use crate::harness::gateway::{Gateway, Proxy, Start};
use crate::harness::http::{Connection, Request};
use crate::harness::upstream::{After, Gate, Upstream, json_answer};
use crate::harness::wait_for;

fn granted(answers: impl Iterator<Item = u16>) -> usize {
    answers.filter(|status| *status == 200).count()
}

fn minute(limit: u64) -> Value {
    json!([{"limit": limit, "window": "minute"}])
}

/// So many requests at once, each on a connection of its own; the answers are to be read.
fn send(gateway: &Gateway, proxy: &Proxy, count: usize) -> Vec<Connection> {
    let one = |_| {
        let mut connection = Connection::open(&gateway.url);
        connection.send(proxy.request("GET", "/").bytes(&gateway.url));
        connection
    };
    (0..count).map(one).collect()
}

/// A second proxy on the same target, credentials and caller.
fn sibling(gateway: &Gateway, proxy: &Proxy) -> Request {
    let fields = json!({
        "target_id": proxy.target, "target_credential_id": proxy.target_credential,
        "proxy_credential_ids": [proxy.proxy_credential],
    });
    let made = gateway.create("/proxies", fields);
    let url = made["url"].as_str().expect("a URL");
    Request::new("GET", &url[gateway.url.len()..])
        .field("authorization", &format!("Bearer {}", proxy.key))
}

#[test]
fn a_meter_on_a_target_credential_is_one_limit_for_every_proxy() {
    let gateway = Gateway::start();
    let upstream = Upstream::json("{}");
    let proxy = gateway.proxy(&upstream.url());
    let other = sibling(&gateway, &proxy);
    let place = format!("/credentials/{}/meters", proxy.target_credential);
    let meter = gateway.create(&place, json!({"name": "vendor", "limits": minute(4)}));
    let calls = (0..8).map(|at| match at % 2 {
        0 => proxy.get("/").status(),
        _ => other.send(&gateway.url).status(),
    });
    assert_eq!(granted(calls), 4);
    assert_eq!(upstream.seen().len(), 4);

    let refused = proxy.get("/");
    assert_eq!(refused.outcome(), (429, "rate-limited"));
    let told = &refused.json()["meters"][0];
    assert_eq!(told["id"], meter["id"], "{told}");
    assert_eq!(told["name"], "vendor-minute");
    assert_eq!(told["window"], "minute");
    assert_eq!(
        refused.field("ratelimit-policy"),
        Some("\"vendor-minute\";q=4;w=60")
    );
    let left = refused.field("ratelimit").expect("what is left");
    assert!(left.starts_with("\"vendor-minute\";r=0;t="), "{left}");
    let seconds: u64 = refused
        .field("retry-after")
        .expect("a time")
        .parse()
        .expect("a number");
    let millis: u64 = refused
        .field("retry-after-ms")
        .expect("a time")
        .parse()
        .expect("a number");
    assert_eq!(seconds, millis.div_ceil(1_000));
    assert!((1..=130).contains(&seconds), "{seconds}");
    assert!(refused.text().contains("vendor"), "{}", refused.text());

    // A changed limit works at once, and what was spent stays spent.
    let one = format!("{place}/{}", meter["id"].as_str().expect("an id"));
    gateway.patch(&one, json!({"limits": minute(6)}));
    assert_eq!(granted((0..4).map(|_| proxy.get("/").status())), 2);
    gateway.patch(&one, json!({"limits": []}));
    assert_eq!(
        granted((0..4).map(|_| proxy.get("/").status())),
        4,
        "it only observes"
    );
}

#[test]
fn meters_hang_on_everything_that_a_request_goes_through() {
    let gateway = Gateway::start();
    let upstream = Upstream::json("{}");
    let proxy = gateway.proxy(&upstream.url());
    for place in [
        "/meters".to_owned(),
        format!("/targets/{}/meters", proxy.target),
        format!("/credentials/{}/meters", proxy.target_credential),
        format!("/credentials/{}/meters", proxy.proxy_credential),
        format!("/proxies/{}/meters", proxy.id),
    ] {
        let meter = gateway.create(&place, json!({"limits": minute(2)}));
        assert_eq!(
            granted((0..4).map(|_| proxy.get("/").status())),
            2,
            "{place}"
        );
        let id = meter["id"].as_str().expect("an id");
        let gone = gateway.api("DELETE", &format!("{place}/{id}"), None);
        assert_eq!(gone.status(), 204, "{}", gone.text());
        assert_eq!(proxy.get("/").status(), 200, "{place}");
    }
}

#[test]
fn a_meter_counts_what_its_condition_says_however_it_is_spelled() {
    let gateway = Gateway::start();
    let upstream = Upstream::json("{}");
    let proxy = gateway.proxy(&upstream.url());
    let when = json!({"methods": ["POST"], "path": {"pattern": "^/v1/chat"},
                      "body": [{"json_path": "$.model", "value": "^big$"}]});
    let place = format!("/proxies/{}/meters", proxy.id);
    gateway.create(&place, json!({"limits": minute(2), "when": when}));
    let post = |path: &str, body: &str| {
        let request = proxy.request("POST", path).json(body);
        proxy.send(&request).status()
    };
    let big = r#"{"model":"big"}"#;
    for _ in 0..3 {
        assert_eq!(post("/v1/chat", r#"{"model":"small"}"#), 200);
        assert_eq!(post("/v1/other", big), 200);
        assert_eq!(proxy.get("/v1/chat").status(), 200);
    }
    assert_eq!(post("/v1/chat", big), 200);
    assert_eq!(post("/v1/ch%61t", big), 200);
    assert_eq!(post("/v1/chat", big), 429);
    // What cannot be read exactly one way is counted too.
    assert_eq!(post("/v1/chat", r#"{"model":"small","model":"big"}"#), 429);
    assert_eq!(post("/v1/chat", r#"{"model":"small"}"#), 200);
    assert_eq!(
        upstream.seen().last().expect("a request").text(),
        r#"{"model":"small"}"#
    );
}

#[test]
fn each_value_of_a_key_has_the_limit_for_itself_and_long_ones_share_one() {
    let gateway = Gateway::start();
    let upstream = Upstream::json("{}");
    let proxy = gateway.proxy(&upstream.url());
    let place = format!("/proxies/{}/meters", proxy.id);
    let key = json!({"by": "header", "name": "X-Customer"});
    gateway.create(&place, json!({"limits": minute(2), "key": key}));
    let call = |customer: &str| {
        let request = proxy.request("GET", "/").field("x-customer", customer);
        proxy.send(&request).status()
    };
    for customer in ["a", "b"] {
        assert_eq!(granted((0..3).map(|_| call(customer))), 2, "{customer}");
    }
    assert_eq!(
        granted((0..3).map(|_| proxy.get("/").status())),
        2,
        "without the header"
    );
    let long = |at: usize| format!("{at}{}", "x".repeat(2_000));
    assert_eq!(
        granted((0..4).map(|at| call(&long(at)))),
        2,
        "the overflow key"
    );
    assert!(gateway.metric("requestrocket_limit_overflows_total") >= 4.0);
}

#[test]
fn a_header_of_ten_megabytes_is_refused_before_any_meter_sees_it() {
    let gateway = Gateway::start();
    let upstream = Upstream::json("{}");
    let proxy = gateway.proxy(&upstream.url());
    let key = json!({"by": "header", "name": "X-Customer"});
    let place = format!("/proxies/{}/meters", proxy.id);
    gateway.create(&place, json!({"limits": minute(2), "key": key}));
    let mut connection = Connection::open(&gateway.url);
    let head = proxy
        .request("GET", "/")
        .field("x-customer", &"x".repeat(10 * 1024 * 1024));
    // The gateway may close before it has read all of it.
    let bytes = head.bytes(&gateway.url);
    let _ = std::io::Write::write_all(connection.stream(), &bytes);
    if let Some(answer) = connection.read() {
        assert!((400..500).contains(&answer.status()), "{}", answer.status());
    }
    assert!(upstream.seen().is_empty());
    assert_eq!(proxy.get("/").status(), 200);
}

#[test]
fn a_budget_that_is_used_up_says_so_and_one_that_nearly_is_warns() {
    let gateway = Gateway::start();
    let upstream = Upstream::json("{}");
    let proxy = gateway.proxy(&upstream.url());
    let budget = json!({"name": "budget", "limits": [{"limit": 10, "window": "month"}],
                        "at_limit": {"answer": "budget_exhausted"}});
    gateway.create("/meters", budget);
    let answers: Vec<_> = (0..10).map(|_| proxy.get("/")).collect();
    assert_eq!(granted(answers.iter().map(|answer| answer.status())), 10);
    let warned = |at: usize| {
        let answer = answers.get(at).expect("ten answers");
        answer.field("requestrocket-proxy-warning").is_some()
    };
    assert!(!warned(0) && !warned(4), "far from it");
    let warnings: Vec<bool> = (0..10).map(warned).collect();
    assert!(warned(9), "at the limit: {warnings:?}");
    let refused = proxy.get("/");
    assert_eq!(refused.outcome(), (402, "budget-exhausted"));
    assert_eq!(refused.field("x-should-retry"), Some("false"));
    assert!(refused.field("retry-after").is_some());
    assert_eq!(upstream.seen().len(), 10);
}

#[test]
fn a_request_that_a_later_meter_refuses_spends_nothing() {
    let gateway = Gateway::start();
    let upstream = Upstream::json("{}");
    let proxy = gateway.proxy(&upstream.url());
    let place = format!("/proxies/{}/meters", proxy.id);
    gateway.create(&place, json!({"limits": [{"limit": 6, "window": "day"}]}));
    let narrow = gateway.create(&place, json!({"limits": minute(2)}));
    assert_eq!(granted((0..10).map(|_| proxy.get("/").status())), 2);
    let narrow = format!("{place}/{}", narrow["id"].as_str().expect("an id"));
    gateway.api("DELETE", &narrow, None);
    assert_eq!(granted((0..10).map(|_| proxy.get("/").status())), 4);
}

#[test]
fn a_bucket_lets_a_burst_through_and_fills_again() {
    let gateway = Gateway::start();
    let upstream = Upstream::json("{}");
    let proxy = gateway.proxy(&upstream.url());
    let limit = json!({"limit": 60, "window": "minute", "algorithm": "token_bucket", "burst": 5});
    let place = format!("/proxies/{}/meters", proxy.id);
    gateway.create(&place, json!({"limits": [limit]}));
    let first = granted((0..20).map(|_| proxy.get("/").status()));
    // One comes back each second; twenty calls take less than a few of them.
    assert!((5..=9).contains(&first), "{first}");
    let again = wait_for("a token", || {
        (proxy.get("/").status() == 200).then_some(true)
    });
    assert!(again);
}

#[test]
fn so_many_calls_are_in_flight_and_an_ended_one_makes_place() {
    let gateway = Gateway::start();
    let gate = Gate::default();
    let held = gate.clone();
    let upstream = Upstream::start(move |_, connection| {
        held.pass();
        connection.send(json_answer("200 OK", "{}"));
        After::Keep
    });
    let proxy = gateway.proxy(&upstream.url());
    let limit = json!({"limit": 2, "algorithm": "concurrency"});
    let place = format!("/proxies/{}/meters", proxy.id);
    gateway.create(&place, json!({"limits": [limit]}));
    let mut open = send(&gateway, &proxy, 2);
    upstream.wait_seen(2);
    let refused = proxy.get("/");
    assert_eq!(refused.outcome(), (429, "rate-limited"));
    assert_eq!(refused.json()["meters"][0]["window"], "concurrency");
    assert_eq!(gateway.metric("requestrocket_limit_refusals_total"), 1.0);
    assert!(refused.field("retry-after").is_some());
    gate.open();
    for connection in &mut open {
        assert_eq!(connection.read().expect("an answer").status(), 200);
    }
    for _ in 0..5 {
        assert_eq!(proxy.get("/").status(), 200, "one after the other fits");
    }
}

#[test]
fn held_callers_are_served_in_order_within_their_time_and_others_refused_at_once() {
    let gateway = Gateway::start();
    let upstream = Upstream::json("{}");
    let proxy = gateway.proxy(&upstream.url());
    let place = format!("/proxies/{}/meters", proxy.id);
    let limit = json!({"limit": 3, "window": "second"});
    let hold = json!({"max_wait_ms": 5_000, "max_waiting": 20});
    gateway.create(
        &place,
        json!({"limits": [limit], "at_limit": {"hold": hold}}),
    );
    let mut open = send(&gateway, &proxy, 10);
    let waiting = || gateway.metric("requestrocket_limit_callers_held");
    wait_for("callers that wait", || (waiting() >= 1.0).then_some(()));
    // Three pass each second.
    for (at, connection) in open.iter_mut().enumerate() {
        let answer = connection.read().expect("an answer");
        assert_eq!(answer.status(), 200, "{at}: {}", answer.text());
    }
    assert_eq!(upstream.seen().len(), 10);
    assert!(gateway.metric("requestrocket_limit_held_total") >= 5.0);
    wait_for("nobody that waits", || (waiting() == 0.0).then_some(()));

    // A day's limit that is used up gives nothing within five seconds.
    let hold = json!({"max_wait_ms": 5_000});
    let day = json!({"limits": [{"limit": 1, "window": "day"}], "at_limit": {"hold": hold}});
    let proxy = gateway.proxy(&upstream.url());
    let meter = gateway.create(&format!("/proxies/{}/meters", proxy.id), day);
    let first = proxy.get("/");
    assert_eq!(first.status(), 200, "{}", first.text());
    let refused = wait_for("a refusal", || {
        let answer = proxy.get("/");
        (answer.status() == 429).then_some(answer)
    });
    let text = refused.text();
    assert_eq!(refused.json()["meters"][0]["id"], meter["id"], "{text}");
}

#[test]
fn a_target_that_asks_to_wait_is_waited_for_by_all_that_use_its_credential() {
    let gateway = Gateway::start();
    let busy = "HTTP/1.1 429 Too Many Requests\r\nretry-after: 561635\r\ncontent-length: 0\r\n\r\n";
    let upstream = Upstream::start(move |request, connection| {
        match request.target().ends_with("/busy") {
            true => connection.send(busy),
            false => connection.send(json_answer("200 OK", "{}")),
        }
        After::Keep
    });
    let proxy = gateway.proxy(&upstream.url());
    let other = sibling(&gateway, &proxy);
    let place = format!("/credentials/{}/meters", proxy.target_credential);
    let learn = json!({"from": "retry_after", "pause_max_ms": 2_000});
    let meter = gateway.create(&place, json!({"name": "vendor", "learn": learn}));
    assert_eq!(proxy.get("/").status(), 200);
    assert_eq!(proxy.get("/busy").status(), 429, "the target's own");
    let seen = upstream.seen().len();
    for answer in [proxy.get("/"), other.send(&gateway.url)] {
        assert_eq!(answer.outcome(), (429, "rate-limited"));
        assert!(answer.text().contains("asked to wait"), "{}", answer.text());
        let seconds: u64 = answer
            .field("retry-after")
            .expect("a time")
            .parse()
            .expect("a number");
        assert!((1..=2).contains(&seconds), "clamped: {seconds}");
    }
    assert_eq!(upstream.seen().len(), seen);
    wait_for("the pause to end", || {
        (proxy.get("/").status() == 200).then_some(())
    });

    let id = meter["id"].as_str().expect("an id");
    gateway.patch(&format!("{place}/{id}"), json!({"learn": {"from": "off"}}));
    assert_eq!(proxy.get("/busy").status(), 429);
    assert_eq!(proxy.get("/").status(), 200);
}

#[test]
fn usage_says_how_much_of_each_key_is_used_and_names_no_customer() {
    let gateway = Gateway::start();
    let upstream = Upstream::json("{}");
    let proxy = gateway.proxy(&upstream.url());
    let place = format!("/proxies/{}/meters", proxy.id);
    let by_header = json!({"by": "header", "name": "X-Customer"});
    let keyed = json!({"name": "each", "limits": minute(10), "key": by_header});
    let keyed = gateway.create(&place, keyed);
    let all = json!({"name": "all", "limits": minute(100), "key": {"by": "proxy"}});
    let all = gateway.create(&place, all);
    for customer in ["alice", "alice", "alice", "bob"] {
        let request = proxy.request("GET", "/").field("x-customer", customer);
        assert_eq!(proxy.send(&request).status(), 200);
    }
    let usage = wait_for("usage", || {
        let found = gateway.get("/meters/usage");
        let items = found["items"].as_array().cloned().unwrap_or_default();
        (items.len() >= 3).then_some(items)
    });
    let text = Value::from(usage.clone()).to_string();
    assert!(!text.contains("alice") && !text.contains("bob"), "{text}");
    let of = |meter: &Value| {
        let same = |key: &&Value| key["meter_id"] == meter["id"];
        usage.iter().filter(same).cloned().collect::<Vec<_>>()
    };
    assert_eq!(of(&keyed).len(), 2, "{text}");
    let whole = of(&all);
    assert_eq!(whole.len(), 1, "{text}");
    assert_eq!(whole[0]["key"], proxy.id.as_str());
    assert_eq!(whole[0]["parent_id"], proxy.id.as_str());
    let used = whole[0]["limits"][0]["used"].as_u64().expect("a number");
    assert!((4..=10).contains(&used), "{used}");
    let only = format!(
        "/meters/usage?top=1&meter={}",
        all["id"].as_str().expect("an id")
    );
    assert_eq!(
        gateway.get(&only)["items"].as_array().map(Vec::len),
        Some(1)
    );
    assert_eq!(
        gateway.api("GET", "/meters/usage?top=0", None).status(),
        400
    );
}

#[test]
fn a_reset_forgets_what_was_used() {
    let gateway = Gateway::start();
    let upstream = Upstream::json("{}");
    let proxy = gateway.proxy(&upstream.url());
    let place = format!("/proxies/{}/meters", proxy.id);
    let meter = gateway.create(&place, json!({"limits": [{"limit": 2, "window": "day"}]}));
    let one = format!("{place}/{}", meter["id"].as_str().expect("an id"));
    assert_eq!(granted((0..4).map(|_| proxy.get("/").status())), 2);
    gateway.patch(&one, json!({"resets": 1}));
    assert_eq!(granted((0..4).map(|_| proxy.get("/").status())), 2);
    let refused = proxy.get("/");
    assert_eq!(refused.json()["meters"][0]["id"], meter["id"]);
}

#[test]
fn the_command_line_shows_resets_and_raises_a_meter() {
    let gateway = Gateway::start();
    let upstream = Upstream::json("{}");
    let proxy = gateway.proxy(&upstream.url());
    let place = format!("/proxies/{}/meters", proxy.id);
    let limits = json!([{"limit": 2, "window": "minute"}, {"limit": 50, "window": "day"}]);
    let meter = gateway.create(&place, json!({"name": "vendor", "limits": limits}));
    let id = meter["id"].as_str().expect("an id");
    let other = gateway.create(&place, json!({"name": "other", "limits": minute(100)}));
    let run = |arguments: &[&str]| {
        let output = gateway.command(&[&["meters"], arguments].concat());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        (output.status.success(), text + &said)
    };
    let passes = || {
        wait_for("a first one", || {
            (proxy.get("/").status() == 200).then_some(())
        });
        assert_eq!(granted((0..3).map(|_| proxy.get("/").status())), 1);
    };
    passes();
    let shown = wait_for("what is used", || {
        let (done, said) = run(&["--meter", id]);
        (done && said.contains("2 of 2")).then_some(said)
    });
    let lines: Vec<&str> = shown.lines().collect();
    assert!(
        lines[0].starts_with("meter ") && lines[0].contains(" used "),
        "{shown}"
    );
    assert_eq!(lines.len(), 3, "a line for each limit: {shown}");
    assert!(
        lines[1].contains("vendor") && lines[1].contains("100 %"),
        "{shown}"
    );
    assert!(
        !shown.contains(other["id"].as_str().expect("an id")),
        "{shown}"
    );

    let (done, said) = run(&["reset", id]);
    assert!(done && said.contains("reset once"), "{said}");
    passes();
    let (done, said) = run(&["reset", id, "--output", "json"]);
    let told: Value = serde_json::from_str(&said).expect("one JSON text");
    assert!(done && told["resets"] == 2, "{said}");
    passes();
    let (done, said) = run(&["raise", id, "--percent", "150", "--seconds", "60"]);
    assert!(done && said.contains("150 percent"), "{said}");
    wait_for("one more", || {
        (proxy.get("/").status() == 200).then_some(())
    });
    let (done, said) = run(&["--limit", "1", "--output", "json"]);
    let told: Value = serde_json::from_str(&said).expect("one JSON text");
    assert!(
        done && told["items"].as_array().map(Vec::len) == Some(1),
        "{said}"
    );

    let (done, said) = run(&["reset", &proxy.id]);
    assert!(!done && said.contains("on the proxy"), "{said}");
    let (done, said) = run(&["reset", "../x"]);
    assert!(!done && said.contains("list meters"), "{said}");
    let (done, said) = run(&["--limit", "1", "reset", id]);
    assert!(!done && said.contains("cannot be used with"), "{said}");
}

/// Every bad meter is refused with the place and a code; none of them changes anything.
#[test]
fn what_no_meter_can_be_is_refused_at_its_place() {
    let gateway = Gateway::start();
    let upstream = Upstream::json("{}");
    let proxy = gateway.proxy(&upstream.url());
    let place = format!("/proxies/{}/meters", proxy.id);
    let limit = |limit: Value| json!({"limits": [{"limit": limit, "window": "minute"}]});
    let second = |per: u64| json!({"limit": per, "window": "second"});
    let value = |value: Value| {
        let limits = json!([{"limit": 5, "window": "minute"}]);
        json!({"kind": "response_value", "value": value, "limits": limits})
    };
    let slots = json!({"limit": 5, "algorithm": "concurrency"});
    for (meter, pointer) in [
        (limit(json!(0)), "/limits/0/limit"),
        (limit(json!((1_u64 << 53) + 1)), "/limits/0/limit"),
        (limit(json!(u64::MAX)), "/limits/0/limit"),
        (
            json!({"limits": [second(5), second(6)]}),
            "/limits/1/window",
        ),
        (
            json!({"limits": [second(50), {"limit": 9, "window": "minute"}]}),
            "/limits/0/limit",
        ),
        (json!({"limits": [{"limit": 5}]}), "/limits/0/window"),
        (json!({"kind": "response_value"}), "/value"),
        (json!({"value": {"template": "gemini"}}), "/value"),
        (value(json!({})), "/value/values"),
        (
            value(json!({"values": [{"path": "usage"}]})),
            "/value/values/0/path",
        ),
        (
            value(json!({"values": [{"path": "$..a..b"}]})),
            "/value/values/0/path",
        ),
        (
            value(json!({"template": "gemini", "estimate": 0})),
            "/value/estimate",
        ),
        (
            json!({"kind": "response_value", "value": {"template": "gemini"}, "limits": [slots]}),
            "/limits/0/algorithm",
        ),
    ] {
        let answer = gateway.api("POST", &place, Some(&meter));
        let told = answer.json();
        assert_eq!(answer.status(), 422, "{meter}: {told}");
        assert_eq!(told["errors"][0]["pointer"], pointer, "{meter}: {told}");
    }
    // What is not of the form is no document, whatever its rules are.
    for meter in [
        limit(json!(-1)),
        limit(json!(1.5)),
        limit(json!("5")),
        limit(json!(1e308)),
        json!({"limits": [{"limit": 5, "window": "fortnight"}]}),
        json!({"kind": "sum"}),
        value(json!({"template": "other"})),
        value(json!({"template": "gemini", "estimate": -1})),
    ] {
        let answer = gateway.api("POST", &place, Some(&meter));
        let told = answer.text();
        assert!([400, 422].contains(&answer.status()), "{meter}: {told}");
        assert!(told.contains("errors") || told.contains("detail"), "{told}");
    }
    assert_eq!(gateway.get(&place)["items"], json!([]));
    assert_eq!(proxy.get("/").status(), 200);
}

#[test]
fn of_meters_that_contradict_each_other_the_tighter_one_holds() {
    let gateway = Gateway::start();
    let upstream = Upstream::json("{}");
    let proxy = gateway.proxy(&upstream.url());
    gateway.create("/meters", json!({"name": "wide", "limits": minute(100)}));
    let place = format!("/targets/{}/meters", proxy.target);
    gateway.create(&place, json!({"name": "narrow", "limits": minute(3)}));
    let place = format!("/proxies/{}/meters", proxy.id);
    gateway.create(&place, json!({"name": "middle", "limits": minute(9)}));
    assert_eq!(granted((0..12).map(|_| proxy.get("/").status())), 3);
    let refused = proxy.get("/");
    assert_eq!(refused.json()["meters"][0]["name"], "narrow-minute");
}

#[test]
fn callers_that_two_meters_hold_have_their_turn_at_both() {
    let gateway = Gateway::start();
    let upstream = Upstream::json("{}");
    let proxy = gateway.proxy(&upstream.url());
    let place = format!("/proxies/{}/meters", proxy.id);
    let hold = json!({"hold": {"max_wait_ms": 20_000, "max_waiting": 40}});
    for name in ["one", "other"] {
        let limits = json!([{"limit": 4, "window": "second"}]);
        gateway.create(
            &place,
            json!({"name": name, "limits": limits, "at_limit": hold}),
        );
    }
    let mut open = send(&gateway, &proxy, 24);
    for (at, connection) in open.iter_mut().enumerate() {
        let answer = connection.read().expect("an answer");
        assert_eq!(answer.status(), 200, "{at}: {}", answer.text());
    }
    assert_eq!(upstream.seen().len(), 24);
    // What was granted is accounted for once its blocks are settled.
    let metric = |name: &str| gateway.metric(&format!("requestrocket_limit_tokens_{name}_total"));
    wait_for("the account", || {
        let ended = metric("spent") + metric("returned") + metric("expired");
        (metric("spent") >= 48.0 && ended == metric("granted")).then_some(())
    });
}

#[test]
fn a_bucket_with_a_burst_of_one_gives_what_its_limit_says() {
    let gateway = Gateway::start();
    let upstream = Upstream::json("{}");
    let proxy = gateway.proxy(&upstream.url());
    let limit = json!({"limit": 600, "window": "minute", "algorithm": "token_bucket", "burst": 1});
    let hold = json!({"hold": {"max_wait_ms": 20_000, "max_waiting": 40}});
    let place = format!("/proxies/{}/meters", proxy.id);
    gateway.create(&place, json!({"limits": [limit], "at_limit": hold}));
    // Ten a second: two seconds, or twenty with one for each life of a block.
    let mut open = send(&gateway, &proxy, 20);
    for (at, connection) in open.iter_mut().enumerate() {
        let answer = connection.read().expect("an answer");
        assert_eq!(answer.status(), 200, "{at}: {}", answer.text());
    }
}

#[test]
fn a_raised_meter_gives_more_for_a_while_and_less_again() {
    let gateway = Gateway::start();
    let upstream = Upstream::json("{}");
    let proxy = gateway.proxy(&upstream.url());
    let place = format!("/proxies/{}/meters", proxy.id);
    let meter = gateway.create(&place, json!({"limits": [{"limit": 4, "window": "day"}]}));
    let raise = format!("/meters/{}/raise", meter["id"].as_str().expect("an id"));
    assert_eq!(granted((0..8).map(|_| proxy.get("/").status())), 4);
    let asked = |body: Value| {
        let answer = gateway.api("POST", &raise, Some(&body));
        assert_eq!(answer.status(), 200, "{body}: {}", answer.text());
        answer.json()
    };
    let raised = asked(json!({"percent": 250, "seconds": 600}));
    assert_eq!(raised["percent"], 250, "{raised}");
    wait_for("more", || (proxy.get("/").status() == 200).then_some(()));
    assert_eq!(granted((0..12).map(|_| proxy.get("/").status())), 5);
    // It ends by itself, and by a word: what was spent stays spent.
    asked(json!({"percent": 100}));
    let usage = wait_for("the limit as it was", || {
        let found = gateway.get("/meters/usage");
        let limit = found["items"][0]["limits"][0].clone();
        (limit["limit"] == 4).then_some(limit)
    });
    assert_eq!(usage["used"], 10, "{usage}");
    assert_eq!(proxy.get("/").status(), 429);
    asked(json!({"percent": 400, "seconds": 1}));
    wait_for("more, briefly", || {
        (proxy.get("/").status() == 200).then_some(())
    });
    wait_for("the end of it", || {
        let found = gateway.get("/meters/usage");
        (found["items"][0]["limits"][0]["limit"] == 4).then_some(())
    });

    for (body, pointer) in [
        (json!({"percent": 99, "seconds": 5}), "/percent"),
        (json!({"percent": 1_001, "seconds": 5}), "/percent"),
        (json!({"percent": 200}), "/seconds"),
        (json!({"percent": 200, "seconds": 86_401}), "/seconds"),
    ] {
        let answer = gateway.api("POST", &raise, Some(&body));
        assert_eq!(answer.status(), 422, "{}", answer.text());
        assert_eq!(answer.json()["errors"][0]["pointer"], pointer);
    }
    let other = format!("/meters/{}/raise", "mtr_01m8dkpjg4eksbvcjtwq1z7tb1");
    let body = json!({"percent": 200, "seconds": 5});
    assert_eq!(gateway.api("POST", &other, Some(&body)).status(), 404);
}

#[test]
fn what_is_used_is_told_after_a_restart_before_any_request_comes() {
    let gateway = Gateway::start();
    let upstream = Upstream::json("{}");
    let proxy = gateway.proxy(&upstream.url());
    let place = format!("/proxies/{}/meters", proxy.id);
    let day = json!([{"limit": 20, "window": "day"}]);
    let whole = gateway.create(&place, json!({"limits": day}));
    let each = gateway.create(&place, json!({"limits": day, "key": {"by": "caller"}}));
    assert_eq!(granted((0..7).map(|_| proxy.get("/").status())), 7);
    let (_, folder) = gateway.stop();
    let gateway = Gateway::inside(folder, &Start::default());
    for meter in [&whole, &each] {
        let id = meter["id"].as_str().expect("an id");
        let key = wait_for("what the store knows", || {
            let found = gateway.get(&format!("/meters/usage?meter={id}"));
            found["items"].as_array()?.first().cloned()
        });
        let used = key["limits"][0]["used"].as_u64().expect("a number");
        assert!((7..=20).contains(&used), "{key}");
        assert_eq!(key["remembered"], true, "{key}");
    }
    assert_eq!(upstream.seen().len(), 7, "nothing was asked for it");
}
