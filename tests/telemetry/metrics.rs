//! Metrics as a real receiver gets them: the same as `/metrics` shows, under the names, units and
//! attributes of the conventions.

use std::collections::{BTreeMap, BTreeSet};

use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::metrics::v1::number_data_point::Value as Number;
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, HistogramDataPoint, Metric, metric,
};
use serde_json::json;

use crate::harness::address;
use crate::harness::gateway::Gateway;
use crate::harness::http::Request;
use crate::harness::otlp::{self, Received, grpc, http};
use crate::harness::upstream::Upstream;
use crate::harness::wait_for;
use crate::{telling, text};

const OFTEN: &str = "[metrics]\ninterval_ms = 50\n";

fn labels(attributes: &[KeyValue]) -> String {
    let pairs = attributes.iter().map(|pair| {
        let value = pair.value.as_ref().and_then(|value| value.value.as_ref());
        format!("{}={}", pair.key, value.map(text).unwrap_or_default())
    });
    pairs.collect::<Vec<_>>().join(",")
}

/// The points of counters and gauges, by name and attributes.
fn numbers(metrics: &BTreeMap<String, Metric>) -> BTreeMap<String, f64> {
    let mut found = BTreeMap::new();
    for metric in metrics.values() {
        let points = match &metric.data {
            Some(metric::Data::Sum(sum)) => {
                assert!(sum.is_monotonic, "{}", metric.name);
                let temporality = AggregationTemporality::Cumulative;
                assert_eq!(sum.aggregation_temporality(), temporality);
                &sum.data_points
            }
            Some(metric::Data::Gauge(gauge)) => &gauge.data_points,
            _ => continue,
        };
        for point in points {
            assert!(0 < point.start_time_unix_nano);
            assert!(point.start_time_unix_nano < point.time_unix_nano);
            let value = match point.value {
                Some(Number::AsInt(number)) => number as f64,
                Some(Number::AsDouble(number)) => number,
                None => panic!("{} has no value", metric.name),
            };
            let series = format!("{}{{{}}}", metric.name, labels(&point.attributes));
            assert!(found.insert(series, value).is_none());
        }
    }
    found
}

fn histograms(metric: &Metric) -> BTreeMap<String, HistogramDataPoint> {
    let Some(metric::Data::Histogram(histogram)) = &metric.data else {
        panic!("{} is no histogram", metric.name);
    };
    let points = histogram.data_points.iter();
    points
        .map(|point| (labels(&point.attributes), point.clone()))
        .collect()
}

/// The names of `/metrics`, as OTLP has them.
fn names(gateway: &Gateway) -> BTreeSet<String> {
    let answer = gateway.control_call("GET", "/metrics", Some(&gateway.token), None);
    let text = answer.text();
    let sampled = |name: &str| {
        let rest = |line: &str| {
            line.strip_prefix(name)
                .map(|rest| rest.starts_with(['{', ' ', '_']))
        };
        text.lines().any(|line| rest(line) == Some(true))
    };
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let names = types.filter_map(|line| line.split(' ').next());
    let told = names.filter(|name| sampled(name)).map(|name| {
        let stem = name.strip_suffix("_total").unwrap_or(name);
        let stem = stem
            .strip_suffix("_seconds")
            .or(stem.strip_suffix("_bytes"))
            .unwrap_or(stem);
        match stem.strip_prefix("requestrocket_") {
            Some(own) => format!("requestrocket.{own}"),
            None => stem.replace('_', "."),
        }
    });
    told.collect()
}

/// One request that is answered, one that is limited, one that the target fails and one that finds
/// nobody there; then what the receiver knows of them.
fn check(received: &Received, gateway: &Gateway) {
    let upstream = Upstream::start(|request, connection| {
        let status = match request.target() {
            "/broken" => "503 Gone",
            _ => "200 OK",
        };
        connection.send(format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n"));
        crate::harness::upstream::After::Keep
    });
    let proxy = gateway.proxy(&upstream.url());
    assert_eq!(proxy.get("/").status(), 200);
    assert_eq!(proxy.get("/broken").status(), 503);
    let limits = json!({"limits": {"per_minute": 1}});
    let limited = gateway.proxy_with(&upstream.url(), json!({}), limits);
    limited.get("/");
    assert_eq!(limited.get("/").status(), 429);
    let gone = gateway.proxy("http://127.0.0.1:1");
    assert_eq!(gone.get("/").status(), 502);
    let found = Request::new("PROPFIND", &format!("{}/", proxy.path));
    let found = found.field("authorization", "Bearer x").send(&gateway.url);
    assert_eq!(found.status(), 401, "{found:?}");

    let server = "http.server.request.duration";
    let points = wait_for("all requests", || {
        let metrics = received.metrics();
        let points = histograms(metrics.get(server)?);
        let count: u64 = points.values().map(|point| point.count).sum();
        (count == 6).then_some(points)
    });
    for (labels, count) in [
        (
            "http.request.method=GET,http.response.status_code=200,url.scheme=http",
            2,
        ),
        (
            "http.request.method=GET,http.response.status_code=429,url.scheme=http",
            1,
        ),
        (
            "http.request.method=GET,http.response.status_code=503,url.scheme=http,error.type=503",
            1,
        ),
        (
            "http.request.method=GET,http.response.status_code=502,url.scheme=http,\
             error.type=upstream-unreachable",
            1,
        ),
        (
            "http.request.method=_OTHER,http.response.status_code=401,url.scheme=http",
            1,
        ),
    ] {
        let point = points
            .get(labels)
            .unwrap_or_else(|| panic!("{labels} in {points:#?}"));
        assert_eq!(point.count, count, "{labels}");
        assert_eq!(point.bucket_counts.iter().sum::<u64>(), count);
        assert_eq!(point.bucket_counts.len(), point.explicit_bounds.len() + 1);
        assert!(point.sum.is_some_and(|sum| sum > 0.0 && sum < 60.0));
        for bound in [
            0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
        ] {
            assert!(point.explicit_bounds.contains(&bound), "{bound}");
        }
    }
    let metrics = received.metrics();
    assert_eq!(metrics[server].unit, "s");
    let attempts = histograms(&metrics["http.client.request.duration"]);
    let url = upstream.url();
    let (host, port) = url
        .trim_start_matches("http://")
        .split_once(':')
        .expect("a port");
    for (labels, count) in [
        (
            format!(
                "http.request.method=GET,http.response.status_code=200,server.address={host},\
                 server.port={port}"
            ),
            2,
        ),
        (
            "http.request.method=GET,server.address=127.0.0.1,server.port=1,error.type=connect"
                .to_owned(),
            1,
        ),
    ] {
        let point = attempts.get(&labels);
        assert_eq!(
            point.map(|point| point.count),
            Some(count),
            "{labels} in {attempts:#?}"
        );
    }
    let numbers = numbers(&metrics);
    assert_eq!(numbers["requestrocket.requests{code=rate-limited}"], 1.0);
    assert_eq!(numbers["requestrocket.requests_in_flight{}"], 0.0);
    assert_eq!(metrics["requestrocket.records_spool_bytes_max"].unit, "");
    // Neither has what the other lacks.
    assert_eq!(
        metrics.keys().cloned().collect::<BTreeSet<_>>(),
        names(gateway)
    );
}

#[test]
fn the_same_as_prometheus_over_grpc() {
    let (endpoint, received) = grpc();
    let settings = "compression = \"gzip\"\nheaders = \"x-tenant=a%20b\"\n";
    let gateway = telling(&endpoint, settings, &format!("export = false\n{OFTEN}"));
    check(&received, &gateway);
    assert_eq!(received.header("x-tenant").as_deref(), Some("a b"));
    assert_eq!(received.header("grpc-encoding").as_deref(), Some("gzip"));
}

/// What a node says of its configuration, and of callers and targets by reason.
#[test]
fn the_configuration_and_reasons_have_values() {
    let gateway = Gateway::configured("[gateway]\nworkers = 1\n");
    let revision = || gateway.metric("requestrocket_config_revision");
    let applied_s = || gateway.metric("requestrocket_config_applied_timestamp_seconds");
    let before = revision();
    let from_s = jiff::Timestamp::now().as_millisecond() as f64 / 1_000.0;
    let upstream = Upstream::json("{}");
    let proxy = gateway.proxy(&upstream.url());
    assert_eq!(proxy.get("/").status(), 200);
    assert!(before > 0.0 && revision() > before, "{before}");
    let until_s = jiff::Timestamp::now().as_millisecond() as f64 / 1_000.0;
    assert!((from_s..=until_s).contains(&applied_s()), "{}", applied_s());
    assert!(gateway.metric("requestrocket_config_lag_seconds") > 0.0);
    let answer = gateway.control_call("GET", "/metrics", Some(&gateway.token), None);
    let sound = |line: &str| line == "requestrocket_config_faults 0";
    assert!(answer.text().lines().any(sound), "{}", answer.text());

    let by = |name: &str, label: &str, value: &str| {
        gateway.metric(&format!(
            "requestrocket_{name}_total{{{label}=\"{value}\"}}"
        ))
    };
    let answers = |connection: &str| by("upstream_answers", "connection", connection);
    assert_eq!((answers("new"), answers("kept")), (1.0, 0.0));
    let mut sent = 1.0;
    wait_for("a connection that is kept", || {
        proxy.get("/");
        sent += 1.0;
        (answers("kept") > 0.0).then_some(())
    });
    assert_eq!(answers("new") + answers("kept"), sent);

    let refused = |reason: &str| by("auth_failures", "reason", reason);
    let without = proxy.request("GET", "/").without("authorization");
    assert_eq!(proxy.send(&without).status(), 401);
    let gone = gateway.proxy("http://127.0.0.1:1");
    let others = format!("Bearer {}", gone.key);
    for _ in 0..2 {
        let wrong = without.clone().field("authorization", &others);
        assert_eq!(proxy.send(&wrong).status(), 401);
    }
    assert_eq!((refused("no-credential"), refused("wrong-key")), (1.0, 2.0));
    let failed = |reason: &str| by("upstream_failures", "reason", reason);
    assert_eq!(failed("connect"), 0.0);
    assert_eq!(gone.get("/").status(), 502);
    assert_eq!((failed("connect"), failed("reset")), (1.0, 0.0));
}

#[test]
fn the_same_as_prometheus_over_http() {
    let (endpoint, received) = http();
    let settings = "protocol = \"http\"\ncompression = \"gzip\"\nheaders = \"x-tenant=a%20b\"\n";
    let gateway = telling(&endpoint, settings, &format!("export = false\n{OFTEN}"));
    check(&received, &gateway);
    assert_eq!(received.header("x-tenant").as_deref(), Some("a b"));
    assert_eq!(received.header("content-encoding").as_deref(), Some("gzip"));
    assert!(received.spans().is_empty(), "traces are switched off");
}

/// Only the variables of the OpenTelemetry specification are set, metrics have a collector of
/// their own, and the last values come when the process ends.
#[test]
fn variables_alone_and_the_last_values_at_the_end() {
    let (certificate, key) = otlp::certificate();
    let folder = tempfile::tempdir().expect("a folder");
    let authority = folder.path().join("ca.pem");
    std::fs::write(&authority, &certificate).expect("a file");
    let (endpoint, received) = otlp::http_tls(&certificate, &key);
    let variable = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let gateway = Gateway::with(crate::harness::gateway::Start {
        environment: vec![
            variable(
                "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT",
                &format!("{endpoint}/v1/metrics"),
            ),
            variable("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
            variable(
                "OTEL_EXPORTER_OTLP_CERTIFICATE",
                &authority.display().to_string(),
            ),
            variable("OTEL_METRICS_EXPORTER", "otlp,prometheus"),
            variable("OTEL_METRIC_EXPORT_INTERVAL", "3600000"),
        ],
        ..Default::default()
    });
    let upstream = Upstream::json("{}");
    assert_eq!(gateway.proxy(&upstream.url()).get("/").status(), 200);
    assert!(received.metrics().is_empty(), "it is not time");
    let (status, _folder) = gateway.stop();
    assert!(status.success());
    let metrics = received.metrics();
    assert_eq!(
        numbers(&metrics)["requestrocket.requests{code=proxy-access-granted}"],
        1.0
    );
    assert!(received.spans().is_empty(), "traces have no collector");
}

/// A collector that is gone costs no request anything, is counted, and gets all when it is back.
#[test]
fn a_collector_may_be_gone_and_come_back() {
    let address = address::reserved();
    let log = "[log]\nfilter = \"info\"\n";
    let gateway = telling(&format!("http://{address}"), "", &format!("{OFTEN}{log}"));
    let upstream = Upstream::json("{}");
    let proxy = gateway.proxy(&upstream.url());
    for _ in 0..20 {
        assert_eq!(proxy.get("/").status(), 200);
    }
    wait_for("failures that are counted", || {
        let failures = gateway.metric("requestrocket_metric_export_failures_total");
        (failures >= 2.0).then_some(())
    });
    let told = gateway.log().matches("metrics cannot be sent").count();
    assert_eq!(told, 1, "once until it is back");
    let received = otlp::grpc_at(address);
    wait_for("all that was missed", || {
        let numbers = numbers(&received.metrics());
        let granted = "requestrocket.requests{code=proxy-access-granted}";
        (numbers.get(granted) == Some(&20.0)).then_some(())
    });
    wait_for("a word of it", || {
        gateway
            .log()
            .contains("the collector of metrics takes them again")
            .then_some(())
    });
    assert!(gateway.metric("requestrocket_metric_exports_total") > 0.0);
}

/// What `/metrics` says to who accepts OpenMetrics.
pub fn open_metrics(gateway: &Gateway) -> String {
    let accept = "application/openmetrics-text;version=1.0.0;q=0.9,text/plain;q=0.5";
    let answer = Request::new("GET", "/metrics")
        .field("authorization", &format!("Bearer {}", gateway.token))
        .field("accept", accept)
        .send(&gateway.control);
    assert_eq!(answer.status(), 200);
    let media_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    assert_eq!(answer.field("content-type"), Some(media_type));
    let text = answer.text();
    assert!(text.ends_with("\n# EOF\n"));
    text
}

/// Of the requests whose trace a collector has, and of no other, histograms show one in each
/// bucket: its trace, and the span that took so long.
#[test]
fn exemplars_lead_to_traces_that_a_collector_has() {
    let (endpoint, received) = grpc();
    let gateway = telling(&endpoint, "", &format!("ratio = 0.0\n{OFTEN}"));
    let upstream = Upstream::json("{}");
    let proxy = gateway.proxy(&upstream.url());
    let call = |parent: &str| {
        let request = proxy.request("GET", "/").field("traceparent", parent);
        assert_eq!(proxy.send(&request).status(), 200);
    };
    let (kept, left) = (
        "0af7651916cd43dd8448eb211c80319c",
        "1bf7651916cd43dd8448eb211c80319d",
    );
    for (trace, flags) in [(left, "00"), (kept, "01"), (left, "00")] {
        call(&format!("00-{trace}-b7ad6b7169203331-{flags}"));
    }
    let shown = |metric: &str| {
        let points = histograms(received.metrics().get(metric)?);
        let exemplars = points.into_values().flat_map(|point| point.exemplars);
        let exemplars: Vec<_> = exemplars.collect();
        (!exemplars.is_empty()).then_some(exemplars)
    };
    for (metric, kind) in [
        ("http.server.request.duration", crate::SERVER),
        ("http.client.request.duration", crate::CLIENT),
    ] {
        let exemplars = wait_for(metric, || shown(metric));
        let spans = received.spans();
        let span = spans.iter().find(|span| span.kind == kind).expect("a span");
        assert_eq!(exemplars.len(), 1);
        assert_eq!(hex::encode(&exemplars[0].trace_id), kept);
        assert_eq!(exemplars[0].span_id, span.span_id);
        let ended_ms = span.end_time_unix_nano / 1_000_000;
        assert_eq!(exemplars[0].time_unix_nano / 1_000_000, ended_ms);
    }
    let text = open_metrics(&gateway);
    let lines: Vec<&str> = text.lines().filter(|line| line.contains(" # {")).collect();
    assert_eq!(lines.len(), 2, "{lines:?}");
    for (line, name) in lines
        .iter()
        .zip(["http_server_request", "http_client_request"])
    {
        assert!(
            line.starts_with(&format!("{name}_duration_seconds_bucket{{")),
            "{line}"
        );
        assert!(
            line.contains(&format!(" # {{trace_id=\"{kept}\",span_id=\"")),
            "{line}"
        );
    }
    let plain = gateway.control_call("GET", "/metrics", Some(&gateway.token), None);
    assert!(!plain.text().contains(" # {"));
}
