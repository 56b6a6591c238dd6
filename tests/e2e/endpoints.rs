//! Targets with several endpoints: requests go to the nearest that works, what may be sent again
//! goes on to another one when it fails, and comes back slowly when it works again.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use crate::harness::gateway::Gateway;
use crate::harness::http::{Connection, Message, Request};
use crate::harness::upstream::{After, ClosedPort, Upstream, json_answer};
use crate::harness::wait_for;
use crate::pinned::Pair;

/// A way to call a proxy that was made in one call.
pub struct Made {
    path: String,
    key: String,
    pub answer: Value,
}

impl Made {
    pub fn request(&self, method: &str, path: &str) -> Request {
        let key = format!("Bearer {}", self.key);
        Request::new(method, &format!("{}{path}", self.path)).field("authorization", &key)
    }
}

/// A proxy for a target with these endpoints, with a bearer credential; `more` goes into the
/// target.
pub fn made(gateway: &Gateway, endpoints: &[Value], more: Value) -> Made {
    made_with(gateway, endpoints, more, json!({}))
}

/// The same, with further fields of the proxy.
fn made_with(gateway: &Gateway, endpoints: &[Value], more: Value, proxy: Value) -> Made {
    let mut target = json!({
        "base_url": endpoints[0]["base_url"], "endpoints": endpoints, "allow_http": true,
        "allow_networks": ["127.0.0.0/8"],
    });
    let fields = target.as_object_mut().expect("fields");
    fields.extend(more.as_object().expect("fields").clone());
    let mut document = json!({"target": target, "credentials": [
        {"kind": "target", "auth_type": "bearer", "secret": {"token": "the-targets"}},
        {"kind": "proxy", "auth_type": "api_key"},
    ]});
    let fields = document.as_object_mut().expect("fields");
    fields.extend(proxy.as_object().expect("fields").clone());
    let answer = gateway.create("/proxies", document);
    let url = answer["url"].as_str().expect("a URL");
    Made {
        path: url[gateway.url.len()..].to_owned(),
        key: answer["credentials"][1]["secret"]["key"]
            .as_str()
            .expect("a key")
            .to_owned(),
        answer,
    }
}

fn at(upstream: &Upstream) -> Value {
    json!({"base_url": upstream.url()})
}

/// An endpoint that breaks every connection while it is `down`, after it has read a request.
pub fn breakable(name: &'static str) -> (Upstream, Arc<AtomicBool>) {
    let down = Arc::new(AtomicBool::new(false));
    let is_down = Arc::clone(&down);
    let upstream = Upstream::start(move |_, connection| {
        if is_down.load(Ordering::SeqCst) {
            return After::Close;
        }
        connection.send(json_answer("200 OK", &format!("{{\"from\":\"{name}\"}}")));
        After::Keep
    });
    (upstream, down)
}

/// Callers that send a request after the other, each on a connection of its own, until stopped.
pub struct Load {
    stop: Arc<AtomicBool>,
    answers: Arc<Mutex<Vec<(u16, String)>>>,
    callers: Vec<std::thread::JoinHandle<()>>,
}

impl Load {
    pub fn of(gateway: &Gateway, made: &Made, requests: &[(&str, &str)]) -> Self {
        let (stop, answers) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let callers = requests.iter().map(|(method, body)| {
            let mut request = made.request(method, "/x");
            if !body.is_empty() {
                request = request.json(body);
            }
            let bytes = request.bytes(&gateway.url["http://".len()..]);
            let (stop, answers): (_, Arc<Mutex<Vec<_>>>) =
                (Arc::clone(&stop), Arc::clone(&answers));
            let (method, host) = ((*method).to_owned(), gateway.url.clone());
            std::thread::spawn(move || {
                let mut connection = Connection::open(&host);
                while !stop.load(Ordering::SeqCst) {
                    connection.send(&bytes);
                    let answer = connection.read_to(&method).expect("an answer");
                    let found = (answer.status(), answer.text());
                    answers.lock().expect("no panic").push(found);
                }
            })
        });
        let callers = callers.collect();
        Self {
            stop,
            answers,
            callers,
        }
    }

    /// Waits until so many answers that came from now on are as wanted.
    pub fn wait(&self, what: &str, count: usize, wanted: impl Fn(&(u16, String)) -> bool) {
        let from = self.answers.lock().expect("no panic").len();
        wait_for(what, || {
            let answers = self.answers.lock().expect("no panic");
            let found = answers[from..].iter().filter(|answer| wanted(answer));
            (found.count() >= count).then_some(())
        });
    }

    pub fn end(self) -> Vec<(u16, String)> {
        self.stop.store(true, Ordering::SeqCst);
        for caller in self.callers {
            caller.join().expect("a caller ends");
        }
        std::mem::take(&mut self.answers.lock().expect("no panic"))
    }
}

pub fn is_from(name: &'static str) -> impl Fn(&(u16, String)) -> bool {
    move |answer| answer.1.contains(name)
}

/// The last endpoint was not reached; the one before it had read the request.
#[test]
fn what_an_endpoint_may_have_done_is_told_though_another_failed_last() {
    let gateway = Gateway::start();
    let (breaks, down) = breakable("breaks");
    down.store(true, Ordering::SeqCst);
    let closed = ClosedPort::new();
    let endpoints = [
        json!({"base_url": breaks.url(), "weight": 1000}),
        json!({"base_url": closed.url(), "weight": 1}),
    ];
    let made = made(&gateway, &endpoints, json!({}));
    let answer = made.request("GET", "/").send(&gateway.url);
    assert_eq!(answer.outcome(), (502, "upstream-unreachable"));
    assert_eq!(breaks.seen().len(), 1);
    let detail = answer.json()["detail"].to_string();
    assert!(detail.contains("refuses connections"), "{detail}");
    assert!(detail.contains("may have been carried out"), "{detail}");
}

#[test]
fn an_endpoint_fails_and_no_idempotent_request_does_and_it_comes_back() {
    let gateway = Gateway::start();
    let (near, down) = breakable("near");
    let (far, _) = breakable("far");
    let endpoints = [
        json!({"base_url": near.url(), "region": "local"}),
        json!({"base_url": far.url(), "region": "eu"}),
    ];
    let breaker = json!({"consecutive_failures": 3, "open_ms": 100, "open_max_ms": 200});
    // A region that is not one of the installation is refused.
    let target = json!({"base_url": near.url(), "endpoints": endpoints, "allow_http": true});
    let refused = gateway.api("POST", "/targets", Some(&target));
    assert_eq!(refused.status(), 422, "{}", refused.text());
    assert_eq!(
        refused.json()["errors"][0]["pointer"],
        "/endpoints/1/region"
    );

    let near_first = [
        json!({"base_url": near.url(), "weight": 1000}),
        json!({"base_url": far.url(), "weight": 1}),
    ];
    let more = json!({"breaker": breaker, "slow_start_ms": 0});
    let made = made(&gateway, &near_first, more);
    let load = Load::of(
        &gateway,
        &made,
        &[
            ("GET", ""),
            ("PUT", "{\"a\":1}"),
            ("DELETE", ""),
            ("HEAD", ""),
        ],
    );
    load.wait("answers of the near one", 200, is_from("near"));
    down.store(true, Ordering::SeqCst);
    load.wait("answers of the far one", 500, is_from("far"));
    down.store(false, Ordering::SeqCst);
    load.wait("answers of the near one again", 200, is_from("near"));
    let answers = load.end();
    let failed = answers.iter().filter(|(status, _)| *status != 200);
    assert_eq!(failed.count(), 0, "of {}", answers.len());
    let series = |at: &Upstream, outcome: &str| {
        let target = made.answer["target_id"].as_str().expect("an id");
        let address = at.url()["http://".len()..].to_owned();
        format!(
            "requestrocket_endpoint_requests_total{{target=\"{target}\",endpoint=\"{address}\",\
             outcome=\"{outcome}\"}}"
        )
    };
    assert!(gateway.metric(&series(&near, "failed")) >= 3.0);
    assert!(gateway.metric(&series(&far, "answered")) >= 500.0);
    assert!(gateway.metric("requestrocket_failovers_total") >= 3.0);
    // While it was left alone it was not asked but by probes.
    let probes = near.seen().len() + far.seen().len() - answers.len();
    assert!(probes < 60, "{probes} requests were sent twice");
}

#[test]
fn what_comes_back_is_not_met_by_all_at_once() {
    let gateway = Gateway::start();
    let (near, down) = breakable("near");
    let (far, _) = breakable("far");
    let breaker = json!({"consecutive_failures": 1, "open_ms": 100, "open_max_ms": 100});
    let endpoints = [
        json!({"base_url": near.url(), "weight": 1000}),
        json!({"base_url": far.url(), "weight": 1}),
    ];
    let more = json!({"breaker": breaker, "slow_start_ms": 3_600_000});
    let made = made(&gateway, &endpoints, more);
    let ask = || made.request("GET", "/").send(&gateway.url).text();
    down.store(true, Ordering::SeqCst);
    wait_for("the near one to fail", || {
        assert!(ask().contains("far"));
        (near.seen().len() == 1).then_some(())
    });
    down.store(false, Ordering::SeqCst);
    wait_for("a probe", || ask().contains("near").then_some(()));
    let near_again = (0..200).filter(|_| ask().contains("near")).count();
    assert!((1..60).contains(&near_again), "{near_again} of 200");
}

#[test]
fn what_was_written_and_is_not_idempotent_is_never_sent_again() {
    let gateway = Gateway::start();
    let (near, down) = breakable("near");
    let far = Upstream::json("{\"from\":\"far\"}");
    down.store(true, Ordering::SeqCst);
    let endpoints = [
        json!({"base_url": near.url(), "weight": 1000}),
        json!({"base_url": far.url(), "weight": 1}),
    ];
    let marked = json!({"retry": {"idempotency_header": "idempotency-key"}});
    let made = made(&gateway, &endpoints, marked);
    let post = |key: Option<&str>| {
        let mut request = made.request("POST", "/").json("{\"pay\":1}");
        if let Some(key) = key {
            request = request.field("idempotency-key", key);
        }
        request.send(&gateway.url)
    };
    let (mut refused, before) = (0, far.seen().len());
    wait_for("the near one to be asked", || {
        let answer = post(None);
        if answer.status() == 502 {
            assert!(answer.text().contains("may have been carried out"));
            refused += 1;
        }
        (near.seen().len() == 1).then_some(())
    });
    assert_eq!(
        (refused, far.seen().len()),
        (1, before),
        "it went on to the other one"
    );
    // With the key that the target recognises it may be.
    assert_eq!(post(Some("k")).status(), 200);
    assert_eq!(far.last().field("idempotency-key"), Some("k"));
}

#[test]
fn a_request_that_was_not_written_goes_on_whatever_it_is() {
    let gateway = Gateway::start();
    let gone = ClosedPort::new();
    let url = gone.url().to_owned();
    let bodies = Arc::new(AtomicUsize::new(0));
    let sum = Arc::clone(&bodies);
    let live = Upstream::start(move |request, connection| {
        sum.fetch_add(request.body.len(), Ordering::SeqCst);
        connection.send(json_answer("200 OK", "{}"));
        After::Keep
    });
    let dead = json!({"base_url": url, "weight": 1000});
    let never = json!({"breaker": {"consecutive_failures": 1000}});
    let made = made(&gateway, &[dead, json!({"base_url": live.url()})], never);
    let body = "x".repeat(300_000);
    for _ in 0..5 {
        let answer = made.request("POST", "/").body(&body).send(&gateway.url);
        assert_eq!(answer.status(), 200, "{}", answer.text());
    }
    assert_eq!(bodies.load(Ordering::SeqCst), 1_500_000);
    // One in a thousand goes to the live one first.
    let record = wait_for("a request to the dead one", || {
        let answer = made.request("GET", "/a").send(&gateway.url);
        let id = answer.field("requestrocket-request-id").expect("an id");
        let record = gateway.record(id);
        (record["endpoints"].as_array().map(Vec::len) == Some(2)).then_some(record)
    });
    let host = |url: &str| url["http://".len()..].to_owned();
    let sends = record["sends"].as_array().expect("a list");
    assert_eq!(record["endpoints"], json!([host(&url), host(&live.url())]));
    assert_eq!(
        (sends.len(), sends[0]["failure"].as_str()),
        (2, Some("connect"))
    );
    assert_eq!(
        (sends[1]["status"].as_u64(), record["attempts"].as_u64()),
        (Some(200), Some(1))
    );
    // The secret goes to both, and to no third host.
    assert_eq!(
        live.last().field("authorization"),
        Some("Bearer the-targets")
    );
    let credential = &made.answer["credentials"][0];
    assert_eq!(credential["hosts"].as_array().map(Vec::len), Some(2));
    let target = format!(
        "/targets/{}",
        made.answer["target_id"].as_str().expect("an id")
    );
    let outside = json!({"endpoints": [{"base_url": url}, {"base_url": "http://127.0.0.9:1"}]});
    let refused = gateway.api("PATCH", &target, Some(&outside));
    assert_eq!(refused.status(), 422, "{}", refused.text());
    let errors = &refused.json()["errors"];
    assert_eq!(errors[0]["pointer"], "/endpoints/1/base_url", "{errors}");
    // What would be asked, and in which order.
    let question = json!({"proxy": made.answer["id"], "request": {"method": "GET", "path": "/"}});
    let explained = gateway.api("POST", "/explain", Some(&question)).json();
    let stages = explained["stages"].as_array().expect("stages");
    let forward = stages
        .iter()
        .find(|stage| stage["stage"] == "forward")
        .expect("forward");
    assert_eq!(
        forward["endpoints"][0]["base_url"],
        url.as_str(),
        "{forward}"
    );
    assert_eq!(forward["endpoints"][1]["distance"], 0);
}

#[test]
fn a_request_that_a_limit_held_for_long_goes_on_too() {
    let gateway = Gateway::start();
    let gone = ClosedPort::new();
    let live = Upstream::json("{}");
    let dead = json!({"base_url": gone.url(), "weight": 1000});
    let total = json!({"breaker": {"consecutive_failures": 1000}, "timeouts": {"total_ms": 1500}});
    let made = made(&gateway, &[dead, at(&live)], total);
    let meters = format!(
        "/proxies/{}/meters",
        made.answer["id"].as_str().expect("an id")
    );
    let hold = json!({"max_wait_ms": 20_000, "max_waiting": 20});
    let limit = json!({"limit": 1, "window": "second"});
    gateway.create(
        &meters,
        json!({"limits": [limit], "at_limit": {"hold": hold}}),
    );
    let send = || made.request("GET", "/").send(&gateway.url);
    // One a second: the last waits for longer than the target may take.
    std::thread::scope(|scope| {
        let sent: Vec<_> = (0..4).map(|_| scope.spawn(send)).collect();
        for answer in sent {
            let answer = answer.join().expect("an answer");
            assert_eq!(answer.status(), 200, "{}", answer.text());
        }
    });
}

/// What each of two endpoints answers, and what the caller then gets of a `GET`.
#[test]
fn a_gateways_fault_is_passed_on_when_the_others_have_nothing_better() {
    let gateway = Gateway::start();
    let statuses = |status: &'static str| {
        Upstream::fixed(json_answer(status, &format!("{{\"status\":\"{status}\"}}")))
    };
    let check = |first: &Upstream, second: &Upstream, expected: (u16, &str)| {
        let heavy = json!({"base_url": first.url(), "weight": 1000});
        let made = made(&gateway, &[heavy, at(second)], json!({}));
        let answer: Message = wait_for("a request to the first", || {
            let answer = made.request("GET", "/").send(&gateway.url);
            (!first.seen().is_empty()).then_some(answer)
        });
        assert_eq!(answer.outcome(), expected, "{}", answer.text());
        answer
    };
    let granted = "proxy-access-granted";
    let unavailable = statuses("503 Service Unavailable");
    // It stays to the end: on its port another upstream would be called on a kept connection.
    let fine = statuses("200 OK");
    check(&unavailable, &fine, (200, granted));
    let gone = Upstream::raw(|_, _| {});
    let answer = check(&statuses("504 Gateway Timeout"), &gone, (504, granted));
    let id = answer.field("requestrocket-request-id").expect("an id");
    let record = gateway.record(id);
    assert_eq!(
        record["sends"].as_array().map(Vec::len),
        Some(2),
        "{record}"
    );
    assert_eq!(
        record["endpoints"].as_array().map(Vec::len),
        Some(2),
        "{record}"
    );
    // The target's own answers are never asked for twice.
    let broken = statuses("500 Internal Server Error");
    let spare = statuses("200 OK");
    check(&broken, &spare, (500, granted));
    assert!(spare.seen().is_empty());
}

#[test]
fn a_caller_that_leaves_while_another_endpoint_is_asked_was_given_no_answer() {
    let gateway = Gateway::start();
    let unavailable = Upstream::fixed(json_answer("503 Service Unavailable", "{}"));
    let silent = Upstream::raw(|connection, keep| {
        if let Some(request) = connection.read() {
            keep(&request);
        }
        while connection.some().is_some() {}
    });
    let heavy = json!({"base_url": unavailable.url(), "weight": 1000});
    let made = made(&gateway, &[heavy, at(&silent)], json!({}));
    let host = &gateway.url["http://".len()..];
    // The light one is rarely asked first: then that one is not asked at all.
    let last = wait_for("a request to the first", || {
        let asked = silent.seen().len();
        let path = format!("/{asked}");
        let mut caller = Connection::open(&gateway.url);
        caller.send(made.request("GET", &path).bytes(host));
        silent.wait_seen(asked + 1);
        drop(caller);
        (!unavailable.seen().is_empty()).then_some(path)
    });
    let record = wait_for("its record", || {
        let found = gateway.get(&format!("/records?path={last}"));
        found["items"].as_array().expect("a list").first().cloned()
    });
    assert_eq!(record["code"], "client-aborted", "{record}");
    assert_eq!(record["status"], Value::Null, "{record}");
    assert_eq!(record["upstream_status"], Value::Null, "{record}");
    assert_eq!(record["attempts"], 2, "{record}");
    let statuses = record["sends"].as_array().expect("a list").iter();
    let statuses: Vec<_> = statuses.map(|sent| sent["status"].clone()).collect();
    assert_eq!(statuses, [json!(503), Value::Null], "{record}");
}

/// The target has endpoints in eu and us: when that of eu fails, nothing goes to us.
#[test]
fn requests_of_a_pinned_proxy_stay_in_its_regions_when_their_endpoint_fails() {
    let pair = Pair::new();
    let (eu, down) = breakable("eu");
    let us = Upstream::json("{\"from\":\"us\"}");
    let endpoints = [
        json!({"base_url": eu.url(), "region": "eu"}),
        json!({"base_url": us.url(), "region": "us"}),
    ];
    let breaker = json!({"consecutive_failures": 2, "open_ms": 100, "open_max_ms": 200});
    let target = json!({"breaker": breaker, "slow_start_ms": 0});
    let pinned = json!({"regions": ["eu"], "cross_region": "forward"});
    let made = made_with(&pair.us, &endpoints, target, pinned);
    let ask = |node: &Gateway| made.request("GET", "/").send(&node.url);
    let wait_200 = |node: &Gateway| {
        wait_for("an answer of eu", || {
            let answer = ask(node);
            (answer.status() == 200).then(|| assert!(answer.text().contains("eu")))
        });
    };
    for node in &pair.nodes {
        wait_200(node);
    }
    down.store(true, Ordering::SeqCst);
    for node in &pair.nodes {
        wait_for("the endpoint to be left alone", || {
            let answer = ask(node);
            assert!([502, 503].contains(&answer.status()), "{}", answer.text());
            (answer.outcome().1 == "circuit-open").then_some(())
        });
    }
    down.store(false, Ordering::SeqCst);
    for node in &pair.nodes {
        wait_200(node);
    }
    assert_eq!(us.connections(), 0, "not one byte");

    // What would be asked; and what leaves no endpoint is refused.
    let question = json!({"proxy": made.answer["id"], "request": {"method": "GET", "path": "/"}});
    let explained = pair.us.api("POST", "/explain", Some(&question)).json();
    let stages = explained["stages"].as_array().expect("stages");
    let forward = stages.iter().find(|stage| stage["stage"] == "forward");
    let asked = forward.expect("forward")["endpoints"].as_array();
    let asked: Vec<_> = asked.expect("a list").iter().collect();
    assert_eq!((asked.len(), &asked[0]["region"]), (1, &json!("eu")));
    let only_us = json!({"base_url": us.url(), "endpoints": [endpoints[1]]});
    let target = made.answer["target_id"].as_str().expect("an id");
    let target = format!("/targets/{target}");
    let refused = pair.us.api("PATCH", &target, Some(&only_us));
    assert_eq!(refused.status(), 422, "{}", refused.text());
    let error = refused.json()["errors"][0].clone();
    assert_eq!(
        (&error["pointer"], &error["code"]),
        (&json!("/endpoints"), &json!("endpoint-region"))
    );
}
