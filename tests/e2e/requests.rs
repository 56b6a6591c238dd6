//! What was asked of the gateway, as the API and the command line tell it: lists, files, traces,
//! sums, and requests as they come.

use std::io::{BufRead, BufReader};
use std::process::{Output, Stdio};

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::KeyValue;
use serde_json::{Value, json};

use crate::harness::gateway::{Gateway, Proxy, binary};
use crate::harness::http::Message;
use crate::harness::upstream::Upstream;
use crate::harness::wait_for;

fn text(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).expect("text")
}

fn lines(output: &Output) -> Vec<Value> {
    let text = text(output);
    text.lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect()
}

fn id(answer: &Message) -> String {
    answer
        .field("requestrocket-request-id")
        .expect("an id")
        .to_owned()
}

/// A gateway with a proxy through which `calls` requests went, one of them a 503 of the target.
fn called(calls: usize) -> (Gateway, Upstream, Proxy, Vec<String>) {
    let gateway = Gateway::start();
    let upstream = Upstream::start(|request, connection| {
        let status = match request.target().ends_with("/fails") {
            true => "503 Service Unavailable",
            false => "200 OK",
        };
        connection.send(format!(
            "HTTP/1.1 {status}\r\ncontent-length: 2\r\n\r\n{{}}"
        ));
        crate::harness::upstream::After::Keep
    });
    let proxy = gateway.proxy_with(&upstream.url(), json!({}), json!({"alias": "shop"}));
    let mut ids: Vec<String> = (0..calls)
        .map(|n| id(&proxy.get(&format!("/item/{n}"))))
        .collect();
    ids.push(id(&proxy.get("/fails")));
    for id in &ids {
        gateway.record(id);
    }
    (gateway, upstream, proxy, ids)
}

#[test]
fn requests_are_listed_filtered_and_written_as_a_file() {
    let (gateway, _upstream, proxy, ids) = called(5);
    let listed = gateway.command(&["records", "--proxy", "shop"]);
    let listed = text(&listed);
    assert_eq!(listed.lines().count(), ids.len(), "{listed}");
    assert!(
        listed.lines().next().unwrap_or_default().contains("/fails"),
        "newest first"
    );
    let failed = gateway.command(&["records", "--status", "5xx", "--output", "json"]);
    let page = &lines(&failed)[0];
    assert_eq!(page["items"].as_array().map(Vec::len), Some(1), "{page}");
    assert_eq!(page["items"][0]["upstream_status"], 503);
    assert_eq!(page["items"][0]["sends"][0]["status"], 503);
    let file = gateway.command(&["records", "--path", "/item/*", "--output", "ndjson"]);
    let records = lines(&file);
    let mut found: Vec<&str> = records.iter().filter_map(|r| r["id"].as_str()).collect();
    found.reverse();
    assert_eq!(found, ids[..5], "all, in their order");
    let by_field = [
        "records",
        "--where",
        "upstream_status=503",
        "--output",
        "json",
    ];
    assert_eq!(
        lines(&gateway.command(&by_field))[0]["items"][0]["id"],
        ids[5]
    );
    let one = text(&gateway.command(&["record", &ids[0]]));
    assert!(one.contains("/item/0") && one.contains(&proxy.id), "{one}");
    assert!(!one.contains(&proxy.key));
}

#[test]
fn pages_of_a_filtered_list_join_to_the_whole() {
    let (gateway, _upstream, _proxy, ids) = called(6);
    let mut cursor = String::new();
    let mut found = Vec::new();
    loop {
        let path = format!("/records?proxy=shop&status=2xx&limit=2&from=1h{cursor}");
        let page = gateway.get(&path);
        let items = page["items"].as_array().expect("items").iter();
        found.extend(items.filter_map(|item| Some(item["id"].as_str()?.to_owned())));
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    found.reverse();
    assert_eq!(found, ids[..6]);
}

/// The command writes what the API gives: one OTLP export, with a span for each that is drawn and
/// the SERVER span above them.
fn a_file_for_viewers(gateway: &Gateway, id: &str, drawn: &Value) {
    let [file] = &*lines(&gateway.command(&["trace", id, "--output", "otlp"])) else {
        panic!("one line");
    };
    let of_api = gateway.get(&format!("/records/{id}/trace?format=otlp"));
    // The attributes of a resource have no order.
    let spans_of = |export: &Value| export["resourceSpans"][0]["scopeSpans"].clone();
    assert_eq!(spans_of(file), spans_of(&of_api));
    let file: ExportTraceServiceRequest = serde_json::from_value(file.clone()).expect("OTLP");
    let spans = &file.resource_spans[0].scope_spans[0].spans;
    let (roots, others): (Vec<_>, Vec<_>) = spans
        .iter()
        .partition(|span| span.parent_span_id.is_empty());
    let [root] = &*roots else {
        panic!("{roots:?}");
    };
    let of_request = |pair: &KeyValue| pair.key == "requestrocket.request.id";
    let named = root.attributes.iter().find(|pair| of_request(pair));
    assert!(format!("{named:?}").contains(id), "{root:?}");
    let known: Vec<&[u8]> = spans.iter().map(|span| &*span.span_id).collect();
    for span in &others {
        assert!(known.contains(&&*span.parent_span_id), "{span:?}");
        assert_eq!(span.trace_id, root.trace_id);
    }
    let drawn = drawn["spans"].as_array().expect("spans").iter();
    let of_kind = |kind: &'static str| drawn.clone().filter(move |span| span["kind"] == kind);
    for stage in of_kind("stage") {
        assert!(
            others.iter().any(|span| span.name == stage["name"]),
            "{stage}"
        );
    }
    // CLIENT spans are called by their method.
    let attempts = others.iter().filter(|span| span.name == "GET");
    assert_eq!(attempts.count(), of_kind("attempt").count());
}

#[test]
fn a_trace_shows_where_the_time_went_and_what_each_stage_decided() {
    let (gateway, _upstream, proxy, ids) = called(1);
    let trace = gateway.get(&format!("/records/{}/trace", ids[0]));
    let spans = trace["spans"].as_array().expect("spans");
    let stages = || spans.iter().filter(|span| span["kind"] == "stage");
    let sum: u64 = stages()
        .filter_map(|span| span["duration_us"].as_u64())
        .sum();
    assert_eq!(Some(sum), trace["duration_us"].as_u64(), "{trace}");
    let named = |name: &str| {
        let found = spans.iter().find(|span| span["name"] == name);
        found.unwrap_or_else(|| panic!("{name} in {trace}"))
    };
    let decision = |name: &str| {
        named(name)["decision"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    assert!(decision("authenticate").contains(&proxy.proxy_credential));
    assert!(decision("inject").contains(&proxy.target_credential));
    assert!(decision("attempt 1").starts_with("answered 200"), "{trace}");
    let (forward, attempt) = (named("forward"), named("attempt 1"));
    let span = |span: &Value| {
        let start = span["start_us"].as_u64().expect("a number");
        (
            start,
            start + span["duration_us"].as_u64().expect("a number"),
        )
    };
    assert!(
        span(attempt).0 >= span(forward).0 && span(attempt).1 <= span(forward).1,
        "{trace}"
    );
    let drawn = text(&gateway.command(&["trace", &ids[0]]));
    for part in ["receive", "attempt 1", "respond", "█", "GET /item/0: 200"] {
        assert!(drawn.contains(part), "{part} in\n{drawn}");
    }
    let as_json = lines(&gateway.command(&["trace", &ids[0], "--output", "json"]));
    assert_eq!(as_json, std::slice::from_ref(&trace));
    a_file_for_viewers(&gateway, &ids[0], &trace);
    // A refused one ends where it was refused.
    let refused = proxy.send(&proxy.request("GET", "/x").without("authorization"));
    gateway.record(&id(&refused));
    let trace = gateway.get(&format!("/records/{}/trace", id(&refused)));
    let ends: Vec<&Value> = trace["spans"]
        .as_array()
        .expect("spans")
        .iter()
        .filter(|span| span["outcome"] == "end")
        .collect();
    assert_eq!(ends.len(), 1, "{trace}");
    assert_eq!(ends[0]["decision"], "refused: no-credential");
}

#[test]
fn sums_say_what_the_records_say() {
    let (gateway, _upstream, proxy, _) = called(9);
    let found = gateway.get("/telemetry?by=proxy&from=1h");
    let group = &found["groups"][0];
    assert_eq!(group["value"], json!(proxy.id), "{found}");
    assert_eq!(
        (&group["name"], &group["count"]),
        (&json!("shop"), &json!(10))
    );
    assert_eq!(
        (&group["errors"], &group["attempts"]),
        (&json!(1), &json!(10))
    );
    assert_eq!(group["response_bytes"], 20);
    assert!(group["duration_ms"]["p99"].as_f64() >= group["duration_ms"]["p50"].as_f64());
    // By a dimension of which no sums are kept.
    let paths = gateway.get("/telemetry?by=path&from=1h&groups=3&order=errors");
    assert_eq!(paths["groups"][0]["value"], "/fails", "{paths}");
    assert_eq!(paths["rest"]["count"], 7);
    let by_time = gateway.get("/telemetry?bucket=1m&from=10m");
    let buckets = by_time["groups"][0]["buckets"]
        .as_array()
        .expect("buckets")
        .iter();
    let sum: u64 = buckets.filter_map(|bucket| bucket["count"].as_u64()).sum();
    assert_eq!(sum, 10, "{by_time}");
    let top = text(&gateway.command(&["top", "--by", "status"]));
    assert!(top.contains("200") && top.contains("503"), "{top}");
    let spans = text(&gateway.command(&["telemetry", "--bucket", "1m"]));
    assert!(spans.lines().count() >= 2, "{spans}");
    for (path, parameter) in [
        ("/telemetry?by=colour", "by"),
        ("/telemetry?bucket=1s&from=7d", "bucket"),
        ("/telemetry?groups=0", "groups"),
        ("/records?source=here", "source"),
        ("/records?from=yesterday", "from"),
    ] {
        let answer = gateway.api("GET", path, None);
        assert_eq!(answer.status(), 400, "{path}: {}", answer.text());
        assert!(
            answer.text().contains(parameter),
            "{path}: {}",
            answer.text()
        );
    }
}

#[test]
fn requests_are_followed_as_they_come() {
    let (gateway, upstream, proxy, ids) = called(2);
    let other = gateway.proxy(&upstream.url());
    let mut last = ids[2].clone();
    for choice in [
        ["--proxy", "shop"],
        ["--credential", &proxy.proxy_credential],
        ["--credential", &proxy.target_credential],
    ] {
        let mut child = binary()
            .args(["tail", "--follow", "-n", "1", "--status", "5xx"])
            .args(choice)
            .args(["--output", "json", "--control", &gateway.control])
            .env("REQUESTROCKET_TOKEN", &gateway.token)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the binary runs");
        let mut out = BufReader::new(child.stdout.take().expect("its output"));
        let mut next = || {
            let mut line = String::new();
            out.read_line(&mut line).expect("a line");
            let record: Value = serde_json::from_str(&line).expect("JSON");
            record["id"].as_str().unwrap_or_default().to_owned()
        };
        // The last one that is there proves that it follows already.
        assert_eq!(next(), last, "{choice:?}");
        other.get("/fails");
        proxy.get("/item/9");
        last = id(&proxy.get("/fails"));
        assert_eq!(next(), last, "{choice:?}");
        child.kill().expect("a child");
        child.wait().expect("a child");
        gateway.record(&last);
    }
}

#[test]
fn tail_shows_what_its_options_choose_the_oldest_first() {
    let (gateway, upstream, shop, ids) = called(2);
    let other = gateway.proxy(&upstream.url());
    let posted = id(&other.send(&other.request("POST", "/orders").body("x")));
    let refused = id(&other.send(&other.request("GET", "/x").without("authorization")));
    gateway.record(&posted);
    gateway.record(&refused);
    let of_shop = &ids[..];
    let all = [of_shop, &[posted.clone(), refused.clone()]].concat();
    let (posted, refused) = (&[posted][..], &[refused][..]);
    for (options, expected) in [
        (&[][..], &all[..]),
        (&["-n", "2"], &all[3..]),
        (&["-n", "0"], &[]),
        (&["--proxy", "shop"], of_shop),
        (&["--proxy", &other.id, "-n", "1"], refused),
        (&["--credential", &shop.proxy_credential], of_shop),
        (&["--credential", &other.target_credential], posted),
        (&["--status", "503"], &ids[2..]),
        (&["--status", "4xx"], refused),
        (&["--code", "proxy-access-denied"], refused),
        (&["--method", "POST"], posted),
        (&["--path", "/item/*"], &ids[..2]),
        (&["--source", "127.0.0.0/8"], &all),
        (&["--source", "192.0.2.1"], &[]),
        (&["--where", "auth_failure=no-credential"], refused),
        (
            &["--where", "attempts_min=1", "--where", "method=POST"],
            posted,
        ),
    ] {
        let asked = [&["tail", "--output", "json"], options].concat();
        let shown = lines(&gateway.command(&asked));
        let shown: Vec<&str> = shown
            .iter()
            .filter_map(|record| record["id"].as_str())
            .collect();
        assert_eq!(shown, expected, "{options:?}");
    }
    let shown = text(&gateway.command(&["tail", "--method", "POST"]));
    assert!(
        shown.contains("/orders") && shown.contains(&posted[0]),
        "{shown}"
    );
    assert_eq!(shown.lines().count(), 1, "{shown}");
    let wrong = gateway.command(&["tail", "--where", "colour=red"]);
    assert!(!wrong.status.success(), "{wrong:?}");
}

#[test]
fn a_follower_whose_token_ends_is_let_go() {
    let gateway = Gateway::start();
    let upstream = Upstream::json("{}");
    let proxy = gateway.proxy(&upstream.url());
    let made = gateway.create("/tokens", json!({"name": "t", "role": "viewer"}));
    let token = made["secret"]["token"]
        .as_str()
        .expect("a token")
        .to_owned();
    let mut child = binary()
        .args(["tail", "--follow", "-n", "0", "--control", &gateway.control])
        .args(["--output", "json"])
        .env("REQUESTROCKET_TOKEN", &token)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    wait_for("a follower", || {
        let followers = gateway.metric("requestrocket_control_followers");
        (followers == 1.0).then_some(())
    });
    let id = made["id"].as_str().expect("an id");
    assert_eq!(
        gateway
            .api("DELETE", &format!("/tokens/{id}"), None)
            .status(),
        204
    );
    // Records that go on coming do not keep it.
    let ended = wait_for("its end", || {
        proxy.get("/");
        child.try_wait().expect("a child")
    });
    assert!(!ended.success());
}

#[test]
fn a_failed_command_says_so_in_the_form_that_was_asked_for() {
    let gateway = Gateway::start();
    let absent = "req_00000000000000000000000000";
    for arguments in [
        &["record", absent, "--output", "json"][..],
        &["trace", absent, "--output", "json"],
        &["records", "--where", "colour=red", "--output", "ndjson"],
        &["top", "--by", "colour", "--output", "json"],
        &["diff", "99999", "--output", "json"],
    ] {
        let output = gateway.command(arguments);
        assert!(
            !output.status.success() && output.stdout.is_empty(),
            "{output:?}"
        );
        let problem: Value = serde_json::from_slice(&output.stderr)
            .unwrap_or_else(|error| panic!("{arguments:?}: {error} {output:?}"));
        assert!(
            problem["code"].is_string() && problem["title"].is_string(),
            "{problem}"
        );
    }
    let nowhere = binary()
        .args([
            "records",
            "--output",
            "json",
            "--control",
            "http://127.0.0.1:1",
        ])
        .env("REQUESTROCKET_TOKEN", "x")
        .output()
        .expect("the binary runs");
    let problem: Value = serde_json::from_slice(&nowhere.stderr).expect("JSON");
    assert_eq!(problem["code"], "command-failed");
}
