//! Log lines as a real receiver gets them: the events of standard error, each with the trace and
//! the span that it is about, and nothing of the export itself.

use opentelemetry_proto::tonic::collector::metrics::v1::{
    ExportMetricsPartialSuccess, ExportMetricsServiceResponse,
};
use opentelemetry_proto::tonic::logs::v1::LogRecord;
use prost::Message;
use serde_json::json;

use crate::harness::address;
use crate::harness::gateway::Gateway;
use crate::harness::otlp::{self, Received, grpc, http};
use crate::harness::upstream::{After, Upstream};
use crate::harness::wait_for;
use crate::{SERVER, id, telling, text};

fn body(line: &LogRecord) -> String {
    let value = line.body.as_ref().and_then(|body| body.value.as_ref());
    value.map(text).unwrap_or_default()
}

fn field(line: &LogRecord, name: &str) -> Option<String> {
    let found = line.attributes.iter().find(|pair| pair.key == name)?;
    found.value.as_ref()?.value.as_ref().map(text)
}

/// A request whose target is not there; then its line at the receiver.
fn check(received: &Received, gateway: &Gateway) {
    let gone = gateway.proxy("http://127.0.0.1:1");
    let answer = gone.get("/");
    assert_eq!(answer.status(), 502);
    let request = id(&answer);
    let (scope, line) = wait_for("its line", || {
        let about = |line: &LogRecord| field(line, "request").as_deref() == Some(&*request);
        received.lines().into_iter().find(|(_, line)| about(line))
    });
    assert_eq!(scope, "node::unanswered");
    assert!(body(&line).starts_with(&request), "{line:?}");
    assert_eq!((line.severity_number, &*line.severity_text), (9, "INFO"));
    assert!(line.time_unix_nano > 0);
    assert!(field(&line, "target").is_some_and(|target| target.starts_with("tgt_")));
    let server = wait_for("its span", || {
        let spans = received.spans();
        spans.into_iter().find(|span| span.kind == SERVER)
    });
    assert_eq!(
        (line.trace_id, line.span_id),
        (server.trace_id, server.span_id)
    );
    // The same on standard error.
    let shown = gateway.log();
    let told = shown
        .lines()
        .find(|told| told.contains(&request))
        .expect("a line");
    assert!(
        told.contains(&hex::encode(received.spans()[0].trace_id.clone())),
        "{told}"
    );
}

const INFO: &str = "[log]\nfilter = \"info\"\n";

#[test]
fn lines_with_their_traces_over_grpc() {
    let (endpoint, received) = grpc();
    check(
        &received,
        &telling(&endpoint, "compression = \"gzip\"\n", INFO),
    );
}

/// The audit goes to the receiver as it is written: versions, and what makes none.
#[test]
fn the_audit_goes_to_a_collector() {
    let (endpoint, received) = grpc();
    let gateway = telling(&endpoint, "", INFO);
    let meter = gateway.create(
        "/meters",
        json!({"name": "all", "limits": [{"limit": 100, "window": "minute"}]}),
    );
    let id = meter["id"].as_str().expect("an id");
    let raise = json!({"percent": 200, "seconds": 60});
    let raised = gateway.api("POST", &format!("/meters/{id}/raise"), Some(&raise));
    assert_eq!(raised.status(), 200, "{}", raised.text());
    let told = |kind: &str, holds: &str| {
        wait_for("an event of the audit", || {
            let lines = received.lines().into_iter();
            let of_audit = lines
                .filter(|(scope, _)| scope == "audit")
                .map(|(_, line)| line);
            let mut of_kind = of_audit.filter(|line| field(line, "kind").as_deref() == Some(kind));
            of_kind.find(|line| format!("{:?}", line.attributes).contains(holds))
        })
    };
    let version = told("version", id);
    let newest = &gateway.get("/versions?limit=1")["items"][0];
    assert_eq!(
        field(&version, "n"),
        newest["n"].as_u64().map(|n| n.to_string())
    );
    let hash = newest["hash"].as_str().map(str::to_owned);
    assert!(
        hash.is_some() && field(&version, "hash") == hash,
        "{version:?}"
    );
    assert_eq!(field(&version, "source").as_deref(), Some("127.0.0.1"));
    let entry = told("meter_raised", id);
    assert_eq!(field(&entry, "seq").as_deref(), Some("1"));
    assert!(
        field(&entry, "act").is_some_and(|act| act.contains("\"percent\":200")),
        "{entry:?}"
    );
    assert!(gateway.log().contains("meter_raised by"));
}

#[test]
fn lines_with_their_traces_over_http() {
    let (endpoint, received) = http();
    let settings = "protocol = \"http\"\ncompression = \"gzip\"\n";
    check(&received, &telling(&endpoint, settings, INFO));
}

#[test]
fn lines_may_stay_at_home() {
    let (endpoint, received) = grpc();
    let settings = format!("[metrics]\ninterval_ms = 50\n{INFO}export = false\n");
    let gateway = telling(&endpoint, "", &settings);
    assert_eq!(gateway.proxy("http://127.0.0.1:1").get("/").status(), 502);
    wait_for("metrics", || (!received.metrics().is_empty()).then_some(()));
    let (status, _folder) = gateway.stop();
    assert!(status.success());
    assert!(received.lines().is_empty());
}

/// Everything is logged, what connections do too, and the collector takes it: no line of that is
/// about an export at work, which would be told again by the next one, for ever.
#[test]
fn an_export_is_not_told_to_a_collector() {
    let (endpoint, received) = grpc();
    let settings = "[metrics]\ninterval_ms = 50\n[log]\nfilter = \"trace\"\n";
    let gateway = telling(&endpoint, "", settings);
    let upstream = Upstream::json("{}");
    gateway.proxy(&upstream.url()).get("/");
    wait_for("lines and metrics", || {
        let both = !received.lines().is_empty() && !received.metrics().is_empty();
        both.then_some(())
    });
    wait_for("lines that stay at home", || {
        gateway.log().contains("h2::").then_some(())
    });
    let (status, _folder) = gateway.stop();
    assert!(status.success());
    for (scope, line) in received.lines() {
        let own = ["h2", "tonic", "tower", "hyper_util"];
        assert!(
            !own.iter().any(|part| scope.starts_with(part)),
            "{scope} {line:?}"
        );
    }
}

/// A collector that answers with errors gets each line at most four times, is told of once, and
/// what it did not take is counted.
#[test]
fn a_collector_that_fails_is_not_told_of_its_failures() {
    let failing = Upstream::start(|_, connection| {
        connection.send("HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n");
        After::Keep
    });
    let settings = "protocol = \"http\"\n";
    let log = "export = false\n[metrics]\nexport = false\n[log]\nfilter = \"info\"\n";
    let gateway = telling(&failing.url(), settings, log);
    assert_eq!(gateway.proxy("http://127.0.0.1:1").get("/").status(), 502);
    wait_for("lines that are given up", || {
        let dropped = gateway.metric("requestrocket_logs_dropped_total");
        (dropped > 0.0).then_some(())
    });
    let told = gateway.log().matches("logs cannot be sent").count();
    assert_eq!(told, 1);
    // 500 is for good: one export of each batch, and none of what was logged about them.
    let sent = failing.seen().len();
    assert_eq!(
        sent as f64,
        gateway.metric("requestrocket_log_export_failures_total")
    );
    let (status, _folder) = gateway.stop();
    assert!(status.success());
    let of_failures = |body: &[u8]| {
        body.windows(19)
            .any(|found| found == b"logs cannot be sent")
    };
    assert!(
        failing
            .seen()
            .iter()
            .all(|export| !of_failures(&export.body))
    );
}

/// Whatever others say, an event is one line: here a collector tells why it refuses an export, with
/// what would begin a line of its own, steer a terminal and turn the direction of a text.
#[test]
fn what_others_say_forges_no_line() {
    let said = "no\n2026-01-01T00:00:00.000000Z ERROR forged: all is lost\r\u{1b}[2J\u{9b}1m\
                \u{202e}\u{2028}\u{7f}end";
    let answer = ExportMetricsServiceResponse {
        partial_success: Some(ExportMetricsPartialSuccess {
            rejected_data_points: 1,
            error_message: said.to_owned(),
        }),
    };
    let collector = Upstream::start(move |_, connection| {
        let body = answer.encode_to_vec();
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
        connection.send([head.into_bytes(), body].concat());
        After::Keep
    });
    for format in ["text", "json"] {
        let settings = format!(
            "export = false\n[metrics]\ninterval_ms = 50\n[log]\nexport = false\n\
             format = \"{format}\"\n"
        );
        let gateway = telling(&collector.url(), "protocol = \"http\"\n", &settings);
        let line = wait_for("what the collector said", || {
            let log = gateway.log();
            let whole = log.rsplit_once('\n')?.0;
            let mut lines = whole.lines();
            let found = lines.find(|line| line.contains("metrics cannot be sent"));
            found.map(str::to_owned)
        });
        let begin = "no\\n2026-01-01T00:00:00.000000Z ERROR forged: all is lost\\r";
        for escaped in [begin, "\\u202e\\u2028"] {
            assert!(line.contains(escaped), "{format} {line}");
        }
        let log = gateway.log();
        let unseen = |c: char| c != '\n' && proto::visible::is_unseen(c);
        assert!(!log.contains(unseen), "{format} {log}");
        assert!(log.lines().all(|line| !line.starts_with("2026-01-01")));
        if format == "json" {
            let lines = log.lines().map(serde_json::from_str::<serde_json::Value>);
            let lines: Vec<_> = lines.map(|line| line.expect("an object")).collect();
            let told = |line: &serde_json::Value| {
                let message = line["fields"]["message"].as_str();
                message.is_some_and(|message| message.ends_with(said))
            };
            assert!(lines.iter().any(told), "a reader gets what was said: {log}");
        }
    }
}

/// A collector that is gone for a while costs the lines beyond the queue and nothing else.
#[test]
fn a_collector_may_be_gone_and_come_back() {
    let address = address::reserved();
    let log = "[metrics]\nexport = false\n[log]\nfilter = \"info\"\n";
    let gateway = telling(&format!("http://{address}"), "", log);
    let gone = gateway.proxy("http://127.0.0.1:1");
    assert_eq!(gone.get("/").status(), 502);
    wait_for("a failure that is counted", || {
        let failures = gateway.metric("requestrocket_log_export_failures_total");
        (failures > 0.0).then_some(())
    });
    let received = otlp::grpc_at(address);
    let request = id(&gone.get("/"));
    wait_for("its line", || {
        let about = |line: &LogRecord| field(line, "request").as_deref() == Some(&*request);
        received
            .lines()
            .iter()
            .any(|(_, line)| about(line))
            .then_some(())
    });
    assert!(gateway.metric("requestrocket_logs_exported_total") > 0.0);
}
