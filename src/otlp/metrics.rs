//! Metrics over OTLP: every so often the same families that `/metrics` shows, in cumulative form.
//!
//! Nothing is kept for a collector that is away: what it misses is in the next values. A metric
//! that is added to a process is here without a line of its own, since the form is made of
//! [`Families`].

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, Exemplar, Gauge, Histogram, HistogramDataPoint, Metric,
    NumberDataPoint, ResourceMetrics, ScopeMetrics, Sum, exemplar, metric, number_data_point,
};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::transform::common::tonic::ResourceAttributesWithSchema;
use prost::Message;
use proto::exposition::{
    self, Durations, Families, Family, Kind, Label, LabelValue, MetricsSource, Point, Value,
};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use tokio::time::{Instant, MissedTickBehavior};

use super::counts::{COUNTS, Counts};
use super::{Collector, Export, NotTaken, Outage, Signal, Transport, ns, resource, variable};
use crate::settings::Settings;

/// Most points in one export: collectors take 4 MiB, and a histogram has some 500 bytes.
const POINTS_MAX: usize = 2_000;
/// The pause before an export that was not taken is sent once more.
const PAUSE: Duration = Duration::from_secs(1);
/// The interval of the OpenTelemetry specification.
const INTERVAL_MS_DEFAULT: u64 = 60_000;

/// Metrics over OTLP.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MetricsSettings {
    /// Whether they are exported, where there is a collector.
    pub export: bool,
    /// Their collector, where it is another one than that of all signals.
    pub endpoint: Option<String>,
    /// How often they are sent, in milliseconds.
    pub interval_ms: Option<u64>,
}

impl Default for MetricsSettings {
    fn default() -> Self {
        Self {
            export: true,
            endpoint: None,
            interval_ms: None,
        }
    }
}

impl MetricsSettings {
    fn interval(&self, variable: impl Fn(&str) -> Option<String>) -> anyhow::Result<Duration> {
        const NAME: &str = "OTEL_METRIC_EXPORT_INTERVAL";
        let ms = match (self.interval_ms, variable(NAME)) {
            (Some(ms), _) => ms,
            (None, None) => INTERVAL_MS_DEFAULT,
            (None, Some(text)) => text
                .trim()
                .parse()
                .map_err(|_| anyhow::anyhow!("{NAME}={text} is no number of milliseconds"))?,
        };
        if ms == 0 {
            anyhow::bail!("`metrics.interval_ms` must be at least 1");
        }
        Ok(Duration::from_millis(ms))
    }
}

/// Where metrics go, and how often; none where the settings name no collector.
fn plan(settings: &Settings) -> anyhow::Result<Option<(Collector, Duration)>> {
    let own = &settings.metrics;
    let endpoint = (own.export, own.endpoint.as_deref());
    let collector = settings
        .otlp
        .collector(Signal::Metrics, endpoint, variable)?;
    let planned = collector.map(|collector| Ok((collector, own.interval(variable)?)));
    planned.transpose()
}

/// Looks whether the export could be started.
///
/// # Errors
/// As for [`start`].
pub fn check(settings: &Settings) -> anyhow::Result<()> {
    match plan(settings)? {
        Some((collector, _)) => super::check(&collector),
        None => Ok(()),
    }
}

/// Starts the export where the settings name a collector.
///
/// # Errors
/// A setting is faulty, or a certificate cannot be read.
pub fn start(settings: &Settings, source: MetricsSource) -> anyhow::Result<Option<Export>> {
    let Some((collector, interval)) = plan(settings)? else {
        return Ok(None);
    };
    let form = Form::new(&resource(settings));
    let started = Export::start(&collector, move |transport, stopping| {
        let outage = Outage::none(Signal::Metrics);
        let run = Run {
            transport,
            source,
            form,
            outage,
        };
        run.run(interval, stopping)
    });
    started.map(Some)
}

struct Run {
    transport: Transport,
    source: MetricsSource,
    form: Form,
    outage: Outage,
}

impl Run {
    async fn run(mut self, interval: Duration, mut stopping: oneshot::Receiver<()>) {
        let mut ticks = tokio::time::interval_at(Instant::now() + interval, interval);
        // A collector that is slow is not asked more often for it.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => self.tell(true).await,
                _ = &mut stopping => break,
            }
        }
        // The last values of this process.
        self.tell(false).await;
    }

    async fn tell(&mut self, again: bool) {
        let exports = self.form.exports(&(self.source)(), SystemTime::now());
        let mut told = self.send_all(&exports).await;
        if again && told.as_ref().is_err_and(|missed| missed.again) {
            tokio::time::sleep(PAUSE).await;
            told = self.send_all(&exports).await;
        }
        match told {
            Ok(()) => {
                Counts::count(&COUNTS.metrics_exported, 1);
                self.outage.over();
            }
            Err(missed) => {
                Counts::count(&COUNTS.metric_export_failures, 1);
                self.outage.met(&missed);
            }
        }
    }

    async fn send_all(&self, exports: &[Bytes]) -> Result<(), NotTaken> {
        for export in exports {
            self.transport.export(export.clone()).await?;
        }
        Ok(())
    }
}

/// Makes exports of families.
struct Form {
    resource: ResourceAttributesWithSchema,
    started_ns: u64,
}

impl Form {
    fn new(resource: &opentelemetry_sdk::Resource) -> Self {
        Self {
            resource: resource.into(),
            started_ns: ns(SystemTime::now()),
        }
    }

    /// All points, in as many exports as they need.
    fn exports(&self, families: &Families, now: SystemTime) -> Vec<Bytes> {
        let now_ns = ns(now);
        let (mut exports, mut metrics, mut points) = (Vec::new(), Vec::new(), 0);
        for family in families.iter() {
            let mut rest = &family.points[..];
            while !rest.is_empty() {
                let (some, later) = rest.split_at(rest.len().min(POINTS_MAX - points));
                metrics.push(self.metric(family, some, now_ns));
                (rest, points) = (later, points + some.len());
                if points == POINTS_MAX {
                    exports.push(self.export(std::mem::take(&mut metrics)));
                    points = 0;
                }
            }
        }
        if !metrics.is_empty() {
            exports.push(self.export(metrics));
        }
        exports
    }

    fn export(&self, metrics: Vec<Metric>) -> Bytes {
        let scope = InstrumentationScope {
            name: "requestrocket".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            ..InstrumentationScope::default()
        };
        let resource = Resource {
            attributes: self.resource.attributes.0.clone(),
            ..Resource::default()
        };
        let request = ExportMetricsServiceRequest {
            resource_metrics: vec![ResourceMetrics {
                resource: Some(resource),
                scope_metrics: vec![ScopeMetrics {
                    scope: Some(scope),
                    metrics,
                    ..ScopeMetrics::default()
                }],
                ..ResourceMetrics::default()
            }],
        };
        request.encode_to_vec().into()
    }

    fn metric(&self, family: &Family, points: &[Point], now_ns: u64) -> Metric {
        let temporality = AggregationTemporality::Cumulative.into();
        let numbers = || points.iter().filter_map(|point| self.number(point, now_ns));
        let data = match family.kind {
            Kind::Counter => metric::Data::Sum(Sum {
                data_points: numbers().collect(),
                aggregation_temporality: temporality,
                is_monotonic: true,
            }),
            Kind::Gauge => metric::Data::Gauge(Gauge {
                data_points: numbers().collect(),
            }),
            Kind::Histogram => {
                let points = points.iter().filter_map(|point| match &point.value {
                    Value::Durations(durations) => {
                        Some(self.histogram(durations, &point.labels, now_ns))
                    }
                    Value::Count(_) | Value::Level(_) => None,
                });
                metric::Data::Histogram(Histogram {
                    data_points: points.collect(),
                    aggregation_temporality: temporality,
                })
            }
        };
        Metric {
            name: family.otel_name(),
            description: family.help.into(),
            unit: family.unit().into(),
            data: Some(data),
            ..Metric::default()
        }
    }

    fn number(&self, point: &Point, now_ns: u64) -> Option<NumberDataPoint> {
        let value = match &point.value {
            Value::Count(count) => {
                number_data_point::Value::AsInt(i64::try_from(*count).unwrap_or(i64::MAX))
            }
            Value::Level(level) => number_data_point::Value::AsDouble(*level),
            Value::Durations(_) => return None,
        };
        Some(NumberDataPoint {
            attributes: attributes(&point.labels),
            start_time_unix_nano: self.started_ns,
            time_unix_nano: now_ns,
            value: Some(value),
            ..NumberDataPoint::default()
        })
    }

    fn histogram(
        &self,
        durations: &Durations,
        labels: &[Label],
        now_ns: u64,
    ) -> HistogramDataPoint {
        HistogramDataPoint {
            attributes: attributes(labels),
            start_time_unix_nano: self.started_ns,
            time_unix_nano: now_ns,
            count: durations.count(),
            sum: Some(seconds(durations.sum_us)),
            bucket_counts: durations.counts.clone(),
            explicit_bounds: durations.bounds_us.iter().map(|us| seconds(*us)).collect(),
            exemplars: durations.exemplars.iter().map(exemplar).collect(),
            ..HistogramDataPoint::default()
        }
    }
}

fn exemplar(shown: &exposition::Exemplar) -> Exemplar {
    Exemplar {
        time_unix_nano: shown.at_ms.max(0).unsigned_abs() * 1_000_000,
        value: Some(exemplar::Value::AsDouble(seconds(shown.value_us))),
        span_id: shown.span_id.to_be_bytes().into(),
        trace_id: shown.trace_id.to_be_bytes().into(),
        ..Exemplar::default()
    }
}

fn attributes(labels: &[Label]) -> Vec<KeyValue> {
    let attributes = labels.iter().map(|(name, value)| {
        let value = match value {
            LabelValue::Text(text) => Any::StringValue(text.to_string()),
            LabelValue::Number(number) => Any::IntValue(*number),
            LabelValue::Flag(flag) => Any::BoolValue(*flag),
        };
        KeyValue {
            key: (*name).to_owned(),
            value: Some(AnyValue { value: Some(value) }),
            ..KeyValue::default()
        }
    });
    attributes.collect()
}

fn seconds(us: u64) -> f64 {
    us as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    #[test]
    fn many_points_go_in_several_exports_and_none_is_lost() {
        let mut families = Families::default();
        families.counter("none_total", "");
        for name in ["a_total", "b_total"] {
            let family = families.counter(name, "");
            for n in 0..POINTS_MAX as u64 * 3 / 2 {
                family.with([("n", n.to_string().into())], n);
            }
        }
        let form = Form::new(&opentelemetry_sdk::Resource::builder_empty().build());
        let exports = form.exports(&families, UNIX_EPOCH + Duration::from_secs(1));
        let counts = exports.iter().map(|export| {
            let request = ExportMetricsServiceRequest::decode(export.clone()).unwrap();
            let scopes = &request.resource_metrics[0].scope_metrics;
            let metrics = scopes[0].metrics.iter().map(|metric| match &metric.data {
                Some(metric::Data::Sum(sum)) => (metric.name.clone(), sum.data_points.len()),
                other => panic!("{other:?}"),
            });
            metrics.collect::<Vec<_>>()
        });
        let named = |name: &str, count| (name.to_owned(), count);
        let expected = [
            vec![named("a", POINTS_MAX)],
            vec![named("a", POINTS_MAX / 2), named("b", POINTS_MAX / 2)],
            vec![named("b", POINTS_MAX)],
        ];
        assert_eq!(counts.collect::<Vec<_>>(), expected);
    }

    #[test]
    fn the_interval_is_that_of_the_settings_or_of_the_variable() {
        let own = |interval_ms| MetricsSettings {
            interval_ms,
            ..MetricsSettings::default()
        };
        let says = |text: &'static str| move |_: &str| Some(text.to_owned());
        let ms = Duration::from_millis;
        assert_eq!(own(None).interval(|_| None).unwrap(), ms(60_000));
        assert_eq!(own(None).interval(says("500")).unwrap(), ms(500));
        assert_eq!(own(Some(7)).interval(says("500")).unwrap(), ms(7));
        assert!(own(None).interval(says("soon")).is_err());
        assert!(own(Some(0)).interval(|_| None).is_err());
    }
}
