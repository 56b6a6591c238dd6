//! A collector that answers errors, or not at all, costs no request anything; what is lost is
//! counted, and telemetry arrives again by itself once the collector is well.

use serde_json::json;

use crate::harness::gateway::{Gateway, Proxy, Start};
use crate::harness::otlp::{Mood, Received, grpc, http};
use crate::harness::upstream::Upstream;
use crate::harness::wait_for;
use crate::{attributes, id, telling};

const OFTEN: &str = "[metrics]\ninterval_ms = 50\n";
const DROPPED: &str = "requestrocket_traces_dropped_total";
const TRACES_MISSED: &str = "requestrocket_trace_export_failures_total";
const METRICS_MISSED: &str = "requestrocket_metric_export_failures_total";

/// Waits until a counter of `/metrics` is above a value.
fn above(gateway: &Gateway, name: &str, value: f64) {
    wait_for(name, || (gateway.metric(name) > value).then_some(()));
}

/// Whether the collector has the SERVER span of a request.
fn has(received: &Received, request: &str) -> bool {
    received.spans().iter().any(|span| {
        let found = attributes(span);
        found.get("requestrocket.request.id").map(String::as_str) == Some(request)
    })
}

/// Requests ended, as the collector was told last.
fn told(received: &Received) -> u64 {
    let metrics = received.metrics();
    let durations = metrics.get("http.server.request.duration");
    let data = durations.and_then(|metric| metric.data.as_ref());
    let Some(opentelemetry_proto::tonic::metrics::v1::metric::Data::Histogram(all)) = data else {
        return 0;
    };
    all.data_points.iter().map(|point| point.count).sum()
}

fn served(proxy: &Proxy) -> String {
    let answer = proxy.get("/");
    assert_eq!(answer.status(), 200, "requests do not feel it");
    id(&answer)
}

fn check(received: &Received, gateway: &Gateway) {
    let upstream = Upstream::json("{}");
    let proxy = gateway.proxy_with(&upstream.url(), json!({}), json!({}));
    let mut sent = 0;
    for mood in [Mood::Unavailable, Mood::Refusing, Mood::Silent] {
        received.be(mood);
        let before = [DROPPED, TRACES_MISSED, METRICS_MISSED].map(|name| gateway.metric(name));
        let lost = served(&proxy);
        sent += 1;
        above(gateway, METRICS_MISSED, before[2]);
        above(gateway, TRACES_MISSED, before[1]);
        // One that does not answer is tried for long; it may yet get what it was sent first.
        if mood != Mood::Silent {
            above(gateway, DROPPED, before[0]);
        }
        for _ in 0..20 {
            served(&proxy);
            sent += 1;
        }
        assert!(!has(received, &lost), "{mood:?}");
        received.be(Mood::Well);
        let newest = served(&proxy);
        sent += 1;
        wait_for("a trace again", || has(received, &newest).then_some(()));
        wait_for("all metrics again", || {
            (told(received) == sent).then_some(())
        });
        if mood == Mood::Silent {
            assert!(has(received, &lost), "it was tried again");
        }
    }
}

#[test]
fn errors_and_silence_over_grpc() {
    let (endpoint, received) = grpc();
    check(&received, &telling(&endpoint, "", OFTEN));
}

#[test]
fn errors_and_silence_over_http() {
    let (endpoint, received) = http();
    check(
        &received,
        &telling(&endpoint, "protocol = \"http\"\n", OFTEN),
    );
}

/// What a collector takes in part is lost in part.
#[test]
fn what_a_collector_refuses_of_an_export_is_all_that_counts_as_lost() {
    const EXPORTED: &str = "requestrocket_traces_exported_total";
    let (endpoint, received) = grpc();
    received.be(Mood::Picky);
    let config =
        format!("[otlp]\nendpoint = \"{endpoint}\"\n[traces]\nbatch_ms = 3000\nratio = 1.0\n");
    let gateway = Gateway::with(Start {
        config,
        ..Start::default()
    });
    let upstream = Upstream::json("{}");
    let proxy = gateway.proxy_with(&upstream.url(), json!({}), json!({}));
    for _ in 0..20 {
        served(&proxy);
    }
    let counts = || [EXPORTED, DROPPED, TRACES_MISSED].map(|name| gateway.metric(name));
    wait_for("all of them", || {
        let [exported, dropped, _] = counts();
        (exported + dropped == 20.0).then_some(())
    });
    let [exported, dropped, exports] = counts();
    assert_eq!(dropped, exports, "one of each export");
    assert!(exported > 0.0);
}
