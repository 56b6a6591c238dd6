//! Log lines over OTLP: the same events as on standard error, each as one log record, with the
//! trace and the span that it is about.
//!
//! What may be in a line is decided where it leaves the process, not where it is written: texts are
//! cleaned as those of standard error are ([`one_line::clean`]), so that no live secret and no
//! control character is in them. What threads of exports themselves log is not exported: a
//! collector that fails must not be sent the news of it, and that of the failure of that.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::logs::v1::{LogRecord, ResourceLogs, ScopeLogs, SeverityNumber};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::transform::common::tonic::ResourceAttributesWithSchema;
use prost::Message;
use tokio::sync::mpsc;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use super::batches::{self, Batches, Gather};
use super::counts::{COUNTS, Counts};
use super::{Export, Signal, is_exporting, ns, resource, variable};
use crate::one_line;
use crate::settings::Settings;

/// Most lines that wait for the exporter; more are dropped and counted.
const QUEUE_MAX: usize = 2_048;
/// What makes one export.
const GATHER: Gather = Gather {
    most: 512,
    longest: Duration::from_secs(1),
};
/// Most bytes of one text in a line.
const TEXT_BYTES_MAX: usize = 8 * 1024;
/// Most fields of a line; the log's own events have fewer.
const FIELDS_MAX: usize = 32;

/// Takes events; what it is given to is read by the export.
pub struct LogLayer {
    queue: mpsc::Sender<Line>,
}

/// Starts the export where the settings name a collector.
///
/// # Errors
/// A setting is faulty, or a certificate cannot be read.
pub fn start(settings: &Settings) -> anyhow::Result<Option<(LogLayer, Export)>> {
    let own = (settings.log.export, settings.log.endpoint.as_deref());
    let Some(collector) = settings.otlp.collector(Signal::Logs, own, variable)? else {
        return Ok(None);
    };
    let (queue, lines) = mpsc::channel(QUEUE_MAX);
    let resource = (&resource(settings)).into();
    let export = Export::start(&collector, move |transport, stopping| {
        let exports = Exports { resource };
        batches::send(Signal::Logs, transport, exports, GATHER, lines, stopping)
    })?;
    Ok(Some((LogLayer { queue }, export)))
}

/// An event on its way.
struct Line {
    scope: &'static str,
    record: LogRecord,
}

impl<S: Subscriber> Layer<S> for LogLayer {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if is_exporting() {
            return;
        }
        // A place first: a line that has none costs no work.
        match self.queue.try_reserve() {
            Ok(place) => place.send(line(event, SystemTime::now())),
            Err(_) => Counts::count(&COUNTS.logs_dropped, 1),
        }
    }
}

fn line(event: &Event<'_>, now: SystemTime) -> Line {
    let (number, text) = match *event.metadata().level() {
        Level::ERROR => (SeverityNumber::Error, "ERROR"),
        Level::WARN => (SeverityNumber::Warn, "WARN"),
        Level::INFO => (SeverityNumber::Info, "INFO"),
        Level::DEBUG => (SeverityNumber::Debug, "DEBUG"),
        Level::TRACE => (SeverityNumber::Trace, "TRACE"),
    };
    let now_ns = ns(now);
    let record = LogRecord {
        time_unix_nano: now_ns,
        observed_time_unix_nano: now_ns,
        severity_number: number.into(),
        severity_text: text.into(),
        ..LogRecord::default()
    };
    let mut fields = Fields { record };
    event.record(&mut fields);
    Line {
        scope: event.metadata().target(),
        record: fields.record,
    }
}

/// The fields of an event, as they come.
struct Fields {
    record: LogRecord,
}

impl Fields {
    fn text(&mut self, field: &Field, text: &str) {
        let id = |text: &str| hex::decode(text).unwrap_or_default();
        match field.name() {
            "message" => self.record.body = Some(any(cleaned(text))),
            "trace_id" if text.len() == 32 => self.record.trace_id = id(text),
            "span_id" if text.len() == 16 => self.record.span_id = id(text),
            name => self.field(name, cleaned(text)),
        }
    }

    fn field(&mut self, name: &str, value: Any) {
        let attributes = &mut self.record.attributes;
        if attributes.len() < FIELDS_MAX {
            attributes.push(KeyValue {
                key: name.to_owned(),
                value: Some(any(value)),
                ..KeyValue::default()
            });
        } else {
            self.record.dropped_attributes_count += 1;
        }
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.text(field, &format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.text(field, value);
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.text(field, &value.to_string());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.field(field.name(), Any::IntValue(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        let number = i64::try_from(value)
            .map_or_else(|_| Any::StringValue(value.to_string()), Any::IntValue);
        self.field(field.name(), number);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.field(field.name(), Any::DoubleValue(value));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.field(field.name(), Any::BoolValue(value));
    }
}

fn any(value: Any) -> AnyValue {
    AnyValue { value: Some(value) }
}

/// Without secrets and control characters, and not longer than a line may be. Cut after it is
/// clean: half a secret would not be found.
fn cleaned(text: &str) -> Any {
    let mut clean = one_line::clean(text.as_bytes()).into_owned();
    if clean.len() > TEXT_BYTES_MAX {
        let end = clean.floor_char_boundary(TEXT_BYTES_MAX);
        clean.truncate(end);
    }
    Any::StringValue(clean)
}

/// Makes exports of lines.
struct Exports {
    resource: ResourceAttributesWithSchema,
}

impl Batches for Exports {
    type Item = Line;

    fn export(&mut self, lines: &mut Vec<Line>) -> Bytes {
        export(&self.resource, lines.drain(..))
    }

    fn taken(&self, count: u64, _: &[Line]) {
        Counts::count(&COUNTS.logs_exported, count);
    }

    fn failed(&self) {
        Counts::count(&COUNTS.log_export_failures, 1);
    }

    fn dropped(&self, count: u64) {
        Counts::count(&COUNTS.logs_dropped, count);
    }
}

/// One export, the lines of each part of the program together.
fn export(resource: &ResourceAttributesWithSchema, lines: impl Iterator<Item = Line>) -> Bytes {
    let mut scopes: BTreeMap<&str, Vec<LogRecord>> = BTreeMap::new();
    for line in lines {
        scopes.entry(line.scope).or_default().push(line.record);
    }
    let scopes = scopes.into_iter().map(|(name, log_records)| ScopeLogs {
        scope: Some(InstrumentationScope {
            name: name.to_owned(),
            version: env!("CARGO_PKG_VERSION").into(),
            ..InstrumentationScope::default()
        }),
        log_records,
        ..ScopeLogs::default()
    });
    let request = ExportLogsServiceRequest {
        resource_logs: vec![ResourceLogs {
            resource: Some(Resource {
                attributes: resource.attributes.0.clone(),
                ..Resource::default()
            }),
            scope_logs: scopes.collect(),
            ..ResourceLogs::default()
        }],
    };
    request.encode_to_vec().into()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use node::credentials::live::LiveSecrets;
    use node::credentials::scrub::Scrub;
    use tracing::{error, info};
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    fn told(capacity: usize, events: impl FnOnce()) -> Vec<Line> {
        let (queue, mut lines) = mpsc::channel(capacity);
        let subscriber = tracing_subscriber::registry().with(LogLayer { queue });
        tracing::subscriber::with_default(subscriber, events);
        std::iter::from_fn(|| lines.try_recv().ok()).collect()
    }

    #[test]
    fn an_event_is_a_record_with_its_trace() {
        let lines = told(9, || {
            let (trace_id, span_id) = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331");
            let n = u64::MAX;
            error!(target: "part", trace_id, span_id, status = 503, n, cut = true, "it\nfails");
        });
        let [line] = &lines[..] else {
            panic!("{}", lines.len())
        };
        let record = &line.record;
        assert_eq!(line.scope, "part");
        assert_eq!(
            (record.severity_number, &*record.severity_text),
            (17, "ERROR")
        );
        assert_eq!(
            record.body,
            Some(any(Any::StringValue("it\\nfails".into())))
        );
        assert_eq!(
            hex::encode(&record.trace_id),
            "0af7651916cd43dd8448eb211c80319c"
        );
        assert_eq!(hex::encode(&record.span_id), "b7ad6b7169203331");
        let fields: Vec<_> = record
            .attributes
            .iter()
            .map(|pair| {
                (
                    pair.key.as_str(),
                    pair.value.clone().and_then(|value| value.value),
                )
            })
            .collect();
        let expected = [
            ("status", Some(Any::IntValue(503))),
            ("n", Some(Any::StringValue(u64::MAX.to_string()))),
            ("cut", Some(Any::BoolValue(true))),
        ];
        assert_eq!(fields, expected);
    }

    #[test]
    fn no_live_secret_is_in_a_record_however_long_it_is() {
        let secret = "log-records-live-secret";
        let scrub = Arc::new(Scrub::new([secret], []));
        LiveSecrets::of_process().add(None, &scrub);
        let long = format!("{}{secret}", "x".repeat(TEXT_BYTES_MAX - 5));
        let lines = told(9, || info!(field = secret, long, "header Bearer {secret}"));
        let text = format!("{:?}", lines[0].record);
        assert!(!text.contains("log-r"), "{text}");
        assert!(text.contains("header Bearer ****"));
    }

    #[test]
    fn what_finds_no_room_is_counted_and_exports_tell_nothing_of_themselves() {
        let before = COUNTS
            .logs_dropped
            .load(std::sync::atomic::Ordering::Relaxed);
        let lines = told(2, || (0..5).for_each(|n| info!(n, "told")));
        assert_eq!(lines.len(), 2);
        let after = COUNTS
            .logs_dropped
            .load(std::sync::atomic::Ordering::Relaxed);
        assert!(after >= before + 3);
        super::super::EXPORTS.set(true);
        let lines = told(2, || info!("the collector is gone"));
        super::super::EXPORTS.set(false);
        assert!(lines.is_empty());
    }
}
