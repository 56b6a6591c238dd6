//! What survives the end of the process, and how it ends.

use std::net::Shutdown;

use serde_json::json;

use crate::harness::address;
use crate::harness::gateway::{Gateway, Proxy, Start, TARGET_SECRET};
use crate::harness::http::{Connection, Request};
use crate::harness::upstream::{After, Gate, Upstream, json_answer};
use crate::harness::wait_for;

/// The statuses of so many calls, and that each 200 is the gateway's own doing.
fn statuses(gateway: &Gateway, proxy: &Proxy, count: usize) -> Vec<u16> {
    let request = proxy.request("GET", "/");
    let calls = (0..count).map(|_| request.send(&gateway.url).status());
    calls.collect()
}

#[test]
fn a_restart_keeps_data_keys_and_what_is_spent() {
    let start = Start::default();
    let gateway = Gateway::with(start);
    let upstream = Upstream::json("{}");
    let limits = json!({"limits": {"per_minute": 5}});
    let proxy = gateway.proxy_with(&upstream.url(), json!({}), limits);
    assert_eq!(statuses(&gateway, &proxy, 3), [200; 3]);
    let before = (
        gateway.token.clone(),
        gateway.ready["demo"]["api_key"].clone(),
    );
    let (status, folder) = gateway.stop();
    assert_eq!(status.code(), Some(0));

    let gateway = Gateway::inside(folder, &Start::default());
    let after = (
        gateway.token.clone(),
        gateway.ready["demo"]["api_key"].clone(),
    );
    assert_eq!(before, after);
    let (path, key) = gateway.demo();
    let demo = crate::harness::http::Request::new("GET", &path)
        .field("authorization", &format!("Bearer {key}"));
    assert_eq!(demo.send(&gateway.url).status(), 200);
    assert_eq!(statuses(&gateway, &proxy, 4), [200, 200, 429, 429]);
    let sent = upstream.last();
    let injected = format!("Bearer {TARGET_SECRET}");
    assert_eq!(sent.field("authorization"), Some(injected.as_str()));
    assert_eq!(upstream.seen().len(), 5);
    let found = gateway.get(&format!("/records?proxy={}", proxy.id));
    assert!(!found["items"].as_array().expect("a list").is_empty());
}

/// Whatever a person makes of the demo: a start succeeds, and offers a key only where it works.
#[test]
fn a_demo_that_was_changed_keeps_nothing_from_starting() {
    let restarted = |gateway: Gateway| Gateway::inside(gateway.stop().1, &Start::default());
    let works = |gateway: &Gateway| {
        let (path, key) = gateway.demo();
        let call = crate::harness::http::Request::new("GET", &path);
        let call = call.field("authorization", &format!("Bearer {key}"));
        call.send(&gateway.url).status() == 200
    };
    let demo = |gateway: &Gateway| {
        let proxies = gateway.get("/proxies")["items"].clone();
        let mut proxies = proxies.as_array().into_iter().flatten();
        let found = proxies.find(|proxy| proxy["alias"] == "demo");
        found.expect("the demo's proxy").clone()
    };
    let at =
        |kind: &str, id: &serde_json::Value| format!("/{kind}/{}", id.as_str().expect("an id"));
    let remove = |gateway: &Gateway, path: &str| {
        let answer = gateway.api("DELETE", path, None);
        assert_eq!(answer.status(), 204, "{}", answer.text());
    };
    let gateway = Gateway::start();
    let proxy = demo(&gateway);
    let (path, caller) = (
        at("proxies", &proxy["id"]),
        &proxy["proxy_credential_ids"][0],
    );
    gateway.patch(&path, json!({"active": false}));
    let gateway = restarted(gateway);
    assert_eq!(gateway.ready["demo"], json!(null), "it is switched off");
    gateway.patch(&path, json!({"active": true}));
    let gateway = restarted(gateway);
    assert!(works(&gateway));
    let rotate = format!("{}/rotate", at("credentials", caller));
    let rotated = gateway.api("POST", &rotate, Some(&json!({})));
    assert_eq!(rotated.status(), 200, "{}", rotated.text());
    let gateway = restarted(gateway);
    assert_eq!(gateway.ready["demo"], json!(null), "its key is another one");
    // Of what is left the target's credential, and its port is taken meanwhile.
    remove(&gateway, &path);
    remove(&gateway, &at("credentials", caller));
    remove(&gateway, &at("credentials", &proxy["target_credential_id"]));
    let target = at("targets", &proxy["target_id"]);
    let base_url = gateway.get(&target)["base_url"].clone();
    let echo = base_url
        .as_str()
        .and_then(|url| url.strip_prefix("http://"));
    let folder = gateway.stop().1;
    let taken = std::net::TcpListener::bind(echo.expect("an address")).expect("it is free again");
    let gateway = Gateway::inside(folder, &Start::default());
    assert_eq!(gateway.ready["demo"], json!(null), "its proxy is gone");
    drop(taken);
    // The alias is somebody else's.
    remove(&gateway, &target);
    let upstream = Upstream::json("{}");
    let alias = json!({"alias": "demo"});
    let other = gateway.proxy_with(&upstream.url(), json!({}), alias);
    let gateway = restarted(gateway);
    assert_eq!(gateway.ready["demo"], json!(null), "its alias is taken");
    assert_eq!(statuses(&gateway, &other, 1), [200]);
    // With nothing left of it, it is made anew.
    remove(&gateway, &format!("/proxies/{}", other.id));
    let gateway = restarted(gateway);
    assert!(works(&gateway));
}

#[test]
fn what_was_acknowledged_survives_kill_9() {
    let gateway = Gateway::start();
    let upstream = Upstream::json("{}");
    let limits = json!({"limits": {"per_minute": 5}});
    let proxy = gateway.proxy_with(&upstream.url(), json!({}), limits);
    assert_eq!(statuses(&gateway, &proxy, 3), [200; 3]);
    let rule = json!({"effect": "deny", "methods": ["DELETE"]});
    gateway.create(&format!("/proxies/{}/rules", proxy.id), rule);
    let gateway = Gateway::inside(gateway.kill(), &Start::default());
    let answer = proxy.request("DELETE", "/").send(&gateway.url);
    assert_eq!(answer.outcome(), (400, "proxy-access-denied"));
    // Tokens that the killed process held may be lost; none is spent twice.
    let granted = statuses(&gateway, &proxy, 4);
    let granted = granted.iter().filter(|status| **status == 200).count();
    assert!(granted <= 2, "{granted} after 3 of 5");
    assert_eq!(upstream.seen().len(), 3 + granted);
}

#[test]
fn a_given_admin_token_replaces_the_made_one() {
    let gateway = Gateway::start();
    let made = gateway.token.clone();
    let (_, folder) = gateway.stop();
    let given = "a-token-that-an-operator-chose-0123456789";
    let variable = ("REQUESTROCKET_ADMIN_TOKEN".to_owned(), given.to_owned());
    let start = Start {
        environment: vec![variable],
        ..Start::default()
    };
    let gateway = Gateway::inside(folder, &start);
    assert_eq!(gateway.token, given);
    let me = |token: &str| {
        let answer = gateway.control_call("GET", "/api/v1/me", Some(token), None);
        answer.status()
    };
    assert_eq!(me(given), 200);
    assert_eq!(me(&made), 401);
}

/// Waits until a gateway takes no more connections.
fn wait_closed(gateway: &Gateway) {
    let address = gateway.url.trim_start_matches("http://");
    wait_for("a closed listener", || {
        std::net::TcpStream::connect(address).is_err().then_some(())
    });
}

#[test]
fn a_stop_lets_requests_end_and_takes_no_new_ones() {
    let gateway = Gateway::start();
    let gate = Gate::default();
    let shared = gate.clone();
    let upstream = Upstream::start(move |_, connection| {
        shared.pass();
        connection.send(json_answer("200 OK", r#"{"whole":true}"#));
        After::Keep
    });
    let proxy = gateway.proxy(&upstream.url());
    let mut caller = Connection::open(&gateway.url);
    caller.send(proxy.request("GET", "/").bytes(&gateway.url));
    upstream.wait_seen(1);
    gateway.signal("TERM");
    wait_closed(&gateway);
    gate.open();
    let answer = caller.read().expect("the request in flight is answered");
    assert_eq!(answer.json(), json!({"whole": true}));
    let (status, _) = gateway.stop();
    assert_eq!(status.code(), Some(0));
}

/// A payment is carried out to its end although its caller has left and the node is stopped, before
/// the head of its answer or behind it.
#[test]
fn a_stop_waits_for_what_is_finished_for_a_caller_that_left() {
    for begun in [false, true] {
        let gateway = Gateway::configured("[gateway]\ndrain_idle_ms = 100");
        let gate = Gate::default();
        let shared = gate.clone();
        let upstream = Upstream::start(move |_, connection| {
            let head = "HTTP/1.1 201 Created\r\ncontent-length: 4\r\n\r\n";
            if begun {
                connection.send(head);
            }
            shared.pass();
            if !begun {
                connection.send(head);
            }
            connection.send("done");
            After::Keep
        });
        let finishes = json!({"on_client_abort": "finish"});
        let proxy = gateway.proxy_with(&upstream.url(), json!({}), finishes);
        let mut caller = Connection::open(&gateway.url);
        caller.send(proxy.request("POST", "/pay").bytes(&gateway.url));
        upstream.wait_seen(1);
        if begun {
            assert_eq!(caller.head().expect("its head").status(), 201);
        }
        drop(caller);
        gateway.signal("TERM");
        wait_closed(&gateway);
        gate.open();
        let (status, folder) = gateway.ended();
        assert_eq!(status.code(), Some(0));
        let gateway = Gateway::inside(folder, &Start::default());
        let found = gateway.get(&format!("/records?proxy={}", proxy.id));
        let record = &found["items"][0];
        assert_eq!(record["upstream_status"], 201, "{begun}: {found}");
        assert_eq!(record["upstream_response_bytes"], 4, "{begun}: {found}");
        assert_eq!(record["code"], "client-aborted", "{begun}: {found}");
    }
}

/// `drain_ms` has an end for everybody: who waits for an answer, who gets one, and whose proxy lets
/// the target finish, whether its caller is there or has left. What became of them is told as it
/// is, and not as their callers' doing.
#[test]
fn what_has_not_ended_when_the_drain_does_is_cut_and_recorded() {
    let config = "[gateway]\ndrain_idle_ms = 100\ndrain_ms = 500";
    let gateway = Gateway::configured(config);
    let upstream = Upstream::raw(|connection, keep| {
        let Some(request) = connection.read() else {
            return;
        };
        if request.start.contains("/begun") {
            connection.send("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\npart");
        }
        keep(&request);
        // Says nothing more; sees the connection's end.
        while connection.some().is_some() {}
    });
    let url = upstream.url();
    let proxy = gateway.proxy(&url);
    let finishes = json!({"on_client_abort": "finish"});
    let finishing = gateway.proxy_with(&url, json!({}), finishes);
    let cases = [
        (&proxy, "/waits"),
        (&proxy, "/begun"),
        (&finishing, "/finishes"),
        (&finishing, "/left"),
    ];
    let mut callers = cases.map(|(proxy, path)| {
        let mut caller = Connection::open(&gateway.url);
        caller.send(proxy.request("POST", path).bytes(&gateway.url));
        caller
    });
    upstream.wait_seen(4);
    let begun = callers[1].head().expect("its head");
    assert_eq!(begun.status(), 200);
    callers[3]
        .stream()
        .shutdown(Shutdown::Both)
        .expect("a socket");
    gateway.signal("TERM");
    for caller in &mut callers {
        while caller.some().is_some() {}
    }
    let (status, folder) = gateway.ended();
    assert_eq!(status.code(), Some(0), "as documented");
    upstream.wait_closed(4);
    let gateway = Gateway::inside(folder, &Start::default());
    let log = gateway.log();
    assert!(log.contains("4 requests had not ended within"), "{log}");
    for (proxy, path) in cases {
        let found = gateway.get(&format!("/records?proxy={}", proxy.id));
        let items = found["items"].as_array().expect("a list");
        let is_it = |record: &&serde_json::Value| record["path"] == path;
        let record = items.iter().find(is_it).expect(path);
        assert_eq!(record["code"], "gateway-stopped", "{record}");
        assert_eq!(record["client_aborted"], false, "{record}");
        let status = (path == "/begun").then_some(200);
        assert_eq!(record["status"], json!(status), "{record}");
    }
}

#[test]
fn a_standalone_has_no_demo_and_hides_its_token() {
    let gateway = Gateway::with(Start {
        mode: "standalone",
        ..Start::default()
    });
    assert_eq!(gateway.ready["demo"], json!(null));
    let me = gateway.control_call("GET", "/api/v1/me", Some(&gateway.token), None);
    assert_eq!(me.status(), 200);
    // Loopback is not dialled unless the operator permits it.
    let upstream = Upstream::json("{}");
    let target = json!({"base_url": upstream.url(), "allow_http": true});
    let refused = gateway.api("POST", "/targets", Some(&target));
    assert_eq!(refused.status(), 422, "{}", refused.text());
}

/// Who sends it means that settings are to be read again, or had a service in mind that does so.
#[test]
fn a_hangup_takes_no_service_away() {
    let gateway = Gateway::start();
    for times in 1..=2 {
        gateway.signal("HUP");
        wait_for("a word of it", || {
            let told = gateway.log().matches("SIGHUP changes nothing").count();
            (told == times).then_some(())
        });
    }
    let (path, key) = gateway.demo();
    let call = Request::new("GET", &path).field("authorization", &format!("Bearer {key}"));
    assert_eq!(call.send(&gateway.url).status(), 200);
    assert_eq!(gateway.stop().0.code(), Some(0));
}

#[test]
fn probes_and_metrics_have_a_listener_of_the_operators() {
    // Ports of port 0 are told only in the log.
    let address = address::reserved().to_string();
    let gateway = Gateway::configured(&format!("[admin]\nlisten = \"{address}\""));
    let get = |path: &str| crate::harness::http::Request::new("GET", path).send(&address);
    assert_eq!(get("/healthz").json()["status"], "ok");
    assert_eq!(get("/readyz").status(), 200);
    let metrics = get("/metrics");
    assert_eq!(metrics.status(), 200);
    assert!(
        metrics
            .text()
            .contains("requestrocket_limit_refusals_total 0")
    );
    assert_eq!(get("/api/v1/orgs").status(), 404);
    // What the listener refuses is counted.
    let mut caller = Connection::open(&gateway.url);
    caller.send("GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n");
    assert_eq!(caller.read().expect("an answer").status(), 400);
    let series = r#"requestrocket_listener_refusals_total{code="malformed-request"}"#;
    assert_eq!(gateway.metric(series), 1.0);
    // Our own ports are no targets.
    let proxy = gateway.proxy(&format!("http://{address}"));
    assert_eq!(proxy.get("/metrics").outcome(), (502, "upstream-blocked"));
    let (status, _) = gateway.stop();
    assert_eq!(status.code(), Some(0));
}

#[test]
fn a_line_for_each_request_is_logged_where_it_is_asked_for() {
    let upstream = Upstream::json("{}");
    let silent = Gateway::start();
    let gateway = Gateway::configured("[log]\nrequests = true\nformat = \"json\"");
    let proxy = gateway.proxy(&upstream.url());
    assert_eq!(proxy.get("/a?key=hidden").status(), 200);
    assert_eq!(silent.proxy(&upstream.url()).get("/b").status(), 200);
    let line = crate::harness::wait_for("the line", || {
        let log = gateway.log();
        let found = log.lines().find(|line| line.contains("GET /a"))?;
        Some(found.to_owned())
    });
    let line: serde_json::Value = serde_json::from_str(&line).expect("a line of JSON");
    assert_eq!(line["fields"]["proxy_id"], json!(proxy.id));
    assert_eq!(line["fields"]["upstream_status"], json!(200));
    let message = line["fields"]["message"].as_str().expect("a text");
    assert!(
        message.starts_with("GET /a 200 proxy-access-granted "),
        "{message}"
    );
    let (_, folder) = silent.stop();
    let log = std::fs::read_to_string(folder.path().join("log")).expect("a log");
    assert!(!log.contains("GET /b"), "{log}");
}

#[test]
fn who_calls_the_rest_api_is_told_which_answer_is_the_last() {
    let gateway = Gateway::start();
    let mut connection = Connection::open(&gateway.control);
    let request = Request::new("GET", "/api/v1/me")
        .field("authorization", &format!("Bearer {}", gateway.token))
        .bytes(&gateway.control);
    let mut ask = || {
        connection.send(&request);
        let answer = connection.read().expect("an answer");
        assert_eq!(answer.status(), 200, "{}", answer.text());
        answer.field("connection") == Some("close")
    };
    assert!(!ask());
    gateway.signal("TERM");
    // A connection that is in use serves until it says that it ends.
    wait_for("the last answer", || ask().then_some(()));
    assert!(connection.read().is_none());
    assert!(gateway.ended().0.success());
}
