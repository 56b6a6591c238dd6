//! Proxies that one region serves, called in the other: passed on, redirected, refused.

use std::io::Write;

use serde_json::{Value, json};

use crate::cluster::wait_status;
use crate::harness::gateway::{Gateway, Proxy, TARGET_SECRET};
use crate::harness::http::{Connection, Message, Request};
use crate::harness::upstream::{After, Gate, Upstream, json_answer};
use crate::harness::wait_for;
use crate::regions::Two;

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

/// Two regions whose gateways reach each other, with a node each.
pub struct Pair {
    pub two: Two,
    pub us: Gateway,
    pub eu: Gateway,
    /// Those of us and of eu.
    pub nodes: [Gateway; 2],
}

impl Pair {
    pub fn new() -> Self {
        Self::with(|_| {})
    }

    pub fn with(change: impl FnOnce(&mut Two)) -> Self {
        let mut two = Two::new();
        two.us.gateway = two.us.node_url();
        two.eu.gateway = two.eu.node_url();
        change(&mut two);
        let (us, eu) = two.controls();
        let nodes = [two.node(&two.us), two.node(&two.eu)];
        Self { two, us, eu, nodes }
    }

    /// A proxy that only eu serves, with further fields; known in both regions.
    fn proxy(&self, upstream: &Upstream, fields: Value) -> Proxy {
        let mut all = json!({"regions": ["eu"]});
        let all_fields = all.as_object_mut().expect("an object");
        all_fields.extend(fields.as_object().expect("an object").clone());
        let proxy = self.us.proxy_with(&upstream.url(), json!({}), all);
        wait_status(&self.nodes[1], &proxy, "GET", 200);
        wait_for("the proxy in us", || {
            let answer = proxy.request("GET", "/").send(&self.nodes[0].url);
            (answer.status() != 401).then_some(())
        });
        proxy
    }

    /// Sends a request to the region that does not serve it.
    fn at_us(&self, request: &Request) -> Message {
        request.send(&self.nodes[0].url)
    }
}

fn id_of(answer: &Message) -> String {
    let id = answer.field("requestrocket-request-id");
    id.expect("an id").to_owned()
}

#[test]
fn a_call_is_passed_on_as_it_came_and_counts_where_it_is_served() {
    let pair = Pair::new();
    let upstream = Upstream::fixed(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 8\r\n\
         set-cookie: s=1; Path=/app; HttpOnly\r\n\r\n{\"a\": 1}",
    );
    let fields = json!({"alias": "pay", "cross_region": "forward", "cookies": "pass"});
    let proxy = pair.proxy(&upstream, fields);
    let urls = pair.us.get(&format!("/proxies/{}", proxy.id))["urls"].clone();
    assert_eq!(
        urls,
        json!({"eu": format!("{}/api/{}", pair.two.eu.gateway, proxy.id)})
    );

    let request = proxy
        .request("POST", "/v1/%2Fx?a=%20&b=+")
        .field("x-own", "kept")
        .field("connection", "x-hop")
        .field("x-hop", "1")
        .field("traceparent", &format!("00-{TRACE}-b7ad6b7169203331-01"))
        .field(
            "requestrocket-passed-on",
            "from=eu;to=us;id=req_0;source=9.9.9.9;proof=00",
        )
        .json("{\"q\": 1}");
    let answer = pair.at_us(&request);
    assert_eq!(
        answer.outcome(),
        (200, "proxy-access-granted"),
        "{}",
        answer.text()
    );
    assert_eq!(answer.json(), json!({"a": 1}));
    let seen = upstream.last();
    assert_eq!(
        (seen.method(), seen.target()),
        ("POST", "/v1/%2Fx?a=%20&b=+")
    );
    assert_eq!(seen.text(), "{\"q\": 1}");
    assert_eq!(seen.field("x-own"), Some("kept"));
    let injected = format!("Bearer {TARGET_SECRET}");
    assert_eq!(seen.field("authorization"), Some(injected.as_str()));
    let traceparent = seen.field("traceparent").unwrap_or_default();
    assert!(
        traceparent.starts_with(&format!("00-{TRACE}-")),
        "{traceparent}"
    );
    let names = seen.fields.iter().map(|(name, _)| name.as_str());
    let ours: Vec<&str> = names
        .filter(|name| name.starts_with("requestrocket-"))
        .collect();
    assert!(
        ours.is_empty() && seen.field("x-hop").is_none(),
        "{:?}",
        seen.fields
    );

    // Both regions tell of it, under one id and in one trace.
    let id = id_of(&answer);
    let (here, there) = (pair.us.record(&id), pair.eu.record(&id));
    assert_eq!(
        (&here["region"], &here["forwarded_to"]),
        (&json!("us"), &json!("eu"))
    );
    assert_eq!(
        (&there["region"], &there["forwarded_from"]),
        (&json!("eu"), &json!("us"))
    );
    for record in [&here, &there] {
        assert_eq!(record["trace_id"], TRACE, "{record}");
        assert_eq!(
            (&record["status"], &record["path"]),
            (&json!(200), &json!("/v1/%2Fx"))
        );
        assert_eq!(
            record["source_address"], here["source_address"],
            "the caller's address"
        );
        assert!(!record.to_string().contains(&proxy.key), "{record}");
    }
    assert_eq!(here["target_credential_id"], Value::Null);
    assert_eq!(
        there["target_credential_id"],
        proxy.target_credential.as_str()
    );

    // By its alias; an error of the other gateway is that gateway's; a wrong key ends here.
    let by_alias =
        Request::new("HEAD", "/api/pay/x").field("authorization", &format!("Bearer {}", proxy.key));
    let answer = pair.at_us(&by_alias);
    assert_eq!(answer.outcome(), (200, "proxy-access-granted"));
    let cookie = Some("s=1; Path=/api/pay/app; HttpOnly");
    assert_eq!(answer.field("set-cookie"), cookie, "mapped once");
    let rule = json!({"effect": "deny", "methods": ["DELETE"], "message": "not here"});
    pair.us
        .create(&format!("/proxies/{}/rules", proxy.id), rule);
    wait_status(&pair.nodes[1], &proxy, "DELETE", 400);
    let denied = pair.at_us(&proxy.request("DELETE", "/"));
    assert_eq!(
        denied.outcome(),
        (400, "proxy-access-denied"),
        "{}",
        denied.text()
    );
    assert_eq!(denied.json()["request_id"], id_of(&denied).as_str());
    let limit = json!({"limits": {"per_day": 1}});
    pair.us.patch(&format!("/proxies/{}", proxy.id), limit);
    let limited = wait_for("the limit", || {
        let answer = pair.at_us(&proxy.request("GET", "/"));
        (answer.status() == 429).then_some(answer)
    });
    assert_eq!(limited.outcome().1, "rate-limited");
    assert!(limited.field("retry-after").is_some());
    assert_eq!(limited.json()["request_id"], id_of(&limited).as_str());
    let before = upstream.seen().len();
    let wrong = Request::new("GET", &proxy.path).field("authorization", "Bearer wrong");
    let known = pair.at_us(&wrong);
    assert_eq!(known.status(), 401);
    let nobody = Request::new("GET", "/api/prx_0").field("authorization", "Bearer wrong");
    let of = |answer: &Message| {
        let mut body = answer.json();
        body["request_id"] = Value::Null;
        body
    };
    assert_eq!(of(&known), of(&pair.at_us(&nobody)), "as an unknown proxy");
    assert_eq!(upstream.seen().len(), before);
}

#[test]
fn bodies_and_events_stream_between_regions() {
    let pair = Pair::new();
    let (first, second) = (Gate::default(), Gate::default());
    let gates = (first.clone(), second.clone());
    // Says that the request's first part is there before it asks for the rest.
    let upstream = Upstream::raw(move |connection, _| {
        while let Some(head) = connection.head() {
            if !head.target().starts_with("/stream") {
                connection.send(json_answer("200 OK", "{}"));
                continue;
            }
            let mut body = Vec::new();
            while !body.ends_with(b"first") {
                body.extend(connection.some().expect("the first part"));
            }
            gates.0.open();
            while !body.ends_with(b"second") {
                body.extend(connection.some().expect("the second part"));
            }
            connection.send(
                "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\
                 transfer-encoding: chunked\r\n\r\n9\r\ndata: 1\n\n\r\n",
            );
            gates.1.pass();
            connection.send("9\r\ndata: 2\n\n\r\n0\r\n\r\n");
        }
    });
    let proxy = pair.proxy(&upstream, json!({"cross_region": "forward"}));
    let node = &pair.nodes[0].url;
    let mut connection = Connection::open(node);
    let head = proxy
        .request("POST", "/stream")
        .field("content-length", "11");
    connection.send(head.bytes(node));
    connection.send("first");
    first.pass();
    connection.send("second");
    let answer = connection.head().expect("a head");
    assert_eq!(answer.outcome(), (200, "proxy-access-granted"));
    let mut read = Vec::new();
    while !read.windows(9).any(|part| part == b"data: 1\n\n") {
        read.extend(connection.some().expect("the first event"));
    }
    second.open();
    while !read.ends_with(b"0\r\n\r\n") {
        read.extend(connection.some().expect("the rest"));
    }
    assert!(read.windows(9).any(|part| part == b"data: 2\n\n"));

    // A caller that leaves takes the calls of both regions with it.
    let mut leaving = Connection::open(node);
    leaving.send(
        proxy
            .request("POST", "/stream")
            .field("content-length", "11")
            .bytes(node),
    );
    leaving.stream().write_all(b"first").expect("it reads");
    let closed = upstream.connections();
    drop(leaving);
    upstream.wait_closed(closed.min(1));
}

#[test]
fn a_call_is_redirected_or_refused_as_the_proxy_says() {
    let pair = Pair::new();
    let upstream = Upstream::json("{}");
    let caller = json!({"kind": "proxy", "auth_type": "api_key", "settings": {"query": "key"},
                        "explain": true});
    let caller = pair.us.create("/credentials", caller);
    let key = caller["secret"]["key"].as_str().expect("a key");
    let proxy = pair.proxy(&upstream, json!({"cross_region": "redirect"}));
    let both = json!({"proxy_credential_ids": [proxy.proxy_credential, caller["id"]]});
    let path = format!("/proxies/{}", proxy.id);
    pair.us.patch(&path, both);
    let with_key = Request::new("POST", &format!("{}/a/b?x=1&key={key}&y=2", proxy.path)).body("1");
    let redirected = wait_for("the second credential", || {
        let answer = pair.at_us(&with_key);
        (answer.status() != 401).then_some(answer)
    });
    assert_eq!(
        redirected.outcome(),
        (307, "region-redirect"),
        "{}",
        redirected.text()
    );
    let there = format!("{}/api/{}/a/b?x=1&y=2", pair.two.eu.gateway, proxy.id);
    assert_eq!(
        redirected.field("location"),
        Some(there.as_str()),
        "without the key"
    );
    let explained = redirected
        .field("requestrocket-explain")
        .unwrap_or_default();
    assert!(
        explained.starts_with("code=region-redirect, "),
        "{explained}"
    );
    let before = upstream.seen().len();
    let wrong = Request::new("GET", &format!("{}/?key=wrong", proxy.path));
    assert_eq!(pair.at_us(&wrong).status(), 401);

    // What explains a decision tells the same.
    let question = json!({"proxy": proxy.id, "credential": proxy.proxy_credential,
                          "request": {"method": "GET", "path": "/a"}});
    let explained = |control: &Gateway| {
        let answer = control.api("POST", "/explain", Some(&question));
        assert_eq!(answer.status(), 200, "{}", answer.text());
        answer.json()
    };
    let told = explained(&pair.us);
    assert_eq!(
        (&told["decision"], &told["code"]),
        (&json!("denied"), &json!("region-redirect"))
    );

    pair.us.patch(&path, json!({"cross_region": "reject"}));
    wait_status(&pair.nodes[0], &proxy, "GET", 421);
    let refused = pair.at_us(&proxy.request("GET", "/"));
    assert_eq!(refused.outcome(), (421, "wrong-region"));
    assert!(refused.field("location").is_none());
    assert_eq!(upstream.seen().len(), before, "nothing went to the target");
    assert_eq!(explained(&pair.us)["code"], "wrong-region");
    assert_eq!(pair.nodes[1].url, pair.two.eu.gateway);
    let record = pair.us.record(&id_of(&refused));
    assert_eq!(
        (&record["code"], &record["attempts"]),
        (&json!("wrong-region"), &json!(0))
    );

    pair.us.patch(&path, json!({"cross_region": "forward"}));
    wait_status(&pair.nodes[0], &proxy, "GET", 200);
    let told = explained(&pair.us);
    assert_eq!(told["decision"], "allowed");
    let stages = told["stages"].as_array().expect("a list");
    let stage = |name| {
        stages
            .iter()
            .find(|stage| stage["stage"] == name)
            .expect("a stage")
    };
    let there = format!("{}/api/{}", pair.two.eu.gateway, proxy.id);
    let there = json!([{"region": "eu", "url": there}]);
    assert_eq!(stage("authenticate")["passed_on_to"], there, "{told}");
    assert_eq!(
        stage("forward")["url"],
        format!("{}/a", upstream.url()),
        "{told}"
    );
    let both = pair.at_us(&Request::new("GET", &format!("{}/?key={key}", proxy.path)));
    let line = both.field("requestrocket-explain").unwrap_or_default();
    assert!(
        line.contains("inject;") && line.contains("passed-on;"),
        "{line}"
    );
    assert!(line.ends_with("from=\"us\";to=\"eu\""), "{line}");

    // A region that nobody knows, and one that is listed twice.
    for (regions, pointer) in [
        (json!(["mars"]), "/regions/0"),
        (json!(["eu", "eu"]), "/regions/1"),
        (json!([]), "/regions"),
        (json!(["*", "eu"]), "/regions"),
    ] {
        let faulty = pair
            .us
            .api("PATCH", &path, Some(&json!({"regions": regions})));
        assert_eq!(faulty.status(), 422, "{}", faulty.text());
        assert_eq!(
            faulty.json()["errors"][0]["pointer"],
            pointer,
            "{}",
            faulty.text()
        );
    }
    // Back to all regions.
    pair.us.patch(&path, json!({"regions": ["*"]}));
    let record = wait_for("us serving it itself", || {
        let answer = pair.at_us(&proxy.request("GET", "/"));
        let record = pair.us.record(&id_of(&answer));
        record["forwarded_to"].is_null().then_some(record)
    });
    assert_eq!(
        (&record["status"], &record["region"]),
        (&json!(200), &json!("us"))
    );
}

#[test]
fn a_region_that_is_gone_is_said_to_be_and_comes_back() {
    let pair = Pair::new();
    let upstream = Upstream::json("{}");
    let proxy = pair.proxy(&upstream, json!({"cross_region": "forward"}));
    assert_eq!(pair.at_us(&proxy.request("GET", "/")).status(), 200);
    let Pair {
        two,
        us,
        eu,
        nodes: [here, there],
    } = pair;
    drop(there);
    let gone = wait_for("the end of the gateway", || {
        let answer = proxy.request("POST", "/").body("1").send(&here.url);
        (answer.status() == 503).then_some(answer)
    });
    assert_eq!(
        gone.outcome(),
        (503, "region-unavailable"),
        "{}",
        gone.text()
    );
    assert_eq!(gone.field("retry-after"), Some("1"));
    let detail = gone.json()["detail"].as_str().expect("a text").to_owned();
    assert!(detail.contains("not carried out"), "{detail}");
    let _there = two.node(&two.eu);
    wait_status(&here, &proxy, "GET", 200);
    drop((us, eu));
}

/// Nobody is sent to where nobody is: neither while calls come nor by the first after a while.
#[test]
fn no_caller_is_redirected_to_a_region_that_is_gone() {
    let pair = Pair::new();
    let upstream = Upstream::json("{}");
    let proxy = pair.proxy(&upstream, json!({"cross_region": "redirect"}));
    wait_status(&pair.nodes[0], &proxy, "GET", 307);
    let Pair {
        two,
        us,
        eu,
        nodes: [here, there],
    } = pair;
    drop(there);
    let gone = wait_for("the end of the gateway", || {
        let answer = proxy.request("GET", "/").send(&here.url);
        (answer.status() != 307).then_some(answer)
    });
    let expected = (503, "region-unavailable");
    assert_eq!(gone.outcome(), expected, "{}", gone.text());
    assert_eq!(gone.field("retry-after"), Some("1"));
    assert!(gone.field("location").is_none());
    let _there = two.node(&two.eu);
    wait_status(&here, &proxy, "GET", 307);
    drop((us, eu));
}

/// A gateway's address that leads back here: the request comes once more and goes no further.
#[test]
fn regions_that_do_not_agree_make_no_loop() {
    let pair = Pair::with(|two| two.eu.gateway = two.us.way_to_node());
    let upstream = Upstream::json("{}");
    let proxy = pair.proxy(&upstream, json!({"cross_region": "forward"}));
    let before = upstream.seen().len();
    let answer = pair.at_us(&proxy.request("GET", "/"));
    assert_eq!(
        answer.outcome(),
        (503, "region-unavailable"),
        "{}",
        answer.text()
    );
    assert!(answer.text().contains("do not agree"), "{}", answer.text());
    assert_eq!(upstream.seen().len(), before);
}

/// Whatever stands at the gateway's address: the key goes there and nowhere else.
#[test]
fn a_key_never_goes_to_a_third_host() {
    let third = Upstream::json("{}");
    let location = format!("{}/api/x", third.url());
    let stranger = Upstream::start(move |_, connection| {
        let answer = format!(
            "HTTP/1.1 307 Temporary Redirect\r\nlocation: {location}\r\ncontent-length: 0\r\n\r\n"
        );
        connection.send(answer);
        After::Keep
    });
    let url = stranger.url();
    let pair = Pair::with(|two| two.eu.gateway = url);
    let upstream = Upstream::json("{}");
    let proxy = pair.proxy(&upstream, json!({"cross_region": "forward"}));
    let answer = pair.at_us(&proxy.request("GET", "/"));
    assert_eq!(
        answer.outcome(),
        (503, "region-unavailable"),
        "{}",
        answer.text()
    );
    assert!(answer.field("location").is_none());
    assert!(
        stranger
            .seen()
            .iter()
            .all(|seen| seen.target().starts_with(&proxy.path))
    );
    assert!(third.seen().is_empty());
}

/// What stands between caller and gateway cannot say whether a request got through.
#[test]
fn a_request_that_a_load_balancer_answers_may_have_been_carried_out() {
    let balancer = Upstream::fixed("HTTP/1.1 504 Gateway Timeout\r\ncontent-length: 0\r\n\r\n");
    let url = balancer.url();
    let pair = Pair::with(|two| two.eu.gateway = url);
    let upstream = Upstream::json("{}");
    let proxy = pair.proxy(&upstream, json!({"cross_region": "forward"}));
    for (method, should_retry) in [("POST", Some("false")), ("GET", None)] {
        let answer = pair.at_us(&proxy.request(method, "/"));
        let text = answer.text();
        assert_eq!(answer.outcome(), (503, "region-unavailable"), "{text}");
        assert_eq!(answer.field("x-should-retry"), should_retry, "{method}");
        assert!(text.contains("may have been carried out"), "{text}");
    }
}

/// The key is known here, so the region that refuses it lags behind.
#[test]
fn a_region_that_does_not_know_the_key_yet_ends_no_call_for_good() {
    let behind = Upstream::fixed(
        "HTTP/1.1 401 Unauthorized\r\nrequestrocket-proxy-code: proxy-access-denied\r\n\
         content-length: 0\r\n\r\n",
    );
    let url = behind.url();
    let pair = Pair::with(|two| two.eu.gateway = url);
    let upstream = Upstream::json("{}");
    let proxy = pair.proxy(&upstream, json!({"cross_region": "forward"}));
    let answer = pair.at_us(&proxy.request("POST", "/"));
    let text = answer.text();
    assert_eq!(answer.outcome(), (503, "region-unavailable"), "{text}");
    assert_eq!(answer.field("retry-after"), Some("1"));
    assert_eq!(answer.field("x-should-retry"), None);
    assert!(text.contains("does not know the caller's key"), "{text}");
}

#[test]
fn what_was_told_to_another_region_is_not_believed() {
    let stranger = Upstream::json("{}");
    let url = stranger.url();
    let pair = Pair::with(|two| two.eu.gateway = url);
    let upstream = Upstream::json("{}");
    let proxy = pair.proxy(&upstream, json!({"cross_region": "forward"}));
    let request = proxy.request("GET", "/");
    pair.at_us(&request);
    let seen = stranger.last();
    assert_eq!(seen.target(), format!("{}/", proxy.path));
    let told = seen.field("requestrocket-passed-on").expect("the field");
    assert!(told.contains(";to=eu;"), "{told}");
    let path = format!("/proxies/{}", proxy.id);
    pair.us.patch(&path, json!({"regions": ["*"]}));
    wait_status(&pair.nodes[0], &proxy, "GET", 200);
    let answer = pair.at_us(&request.field("requestrocket-passed-on", told));
    assert_eq!(answer.status(), 200, "{}", answer.text());
    let id = told.split(';').find_map(|part| part.strip_prefix("id="));
    assert_ne!(id, Some(id_of(&answer).as_str()));
}
