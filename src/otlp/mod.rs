//! OTLP, for all that is told to a collector: one way to name it, one transport, one rule.
//!
//! The rule: a collector that is gone, slow or full of errors costs bounded memory and nothing
//! else. Each signal is sent from a thread and a runtime of its own, which no request waits for;
//! what cannot be delivered is counted.

pub mod batches;
pub mod counts;
mod grpc;
mod http;
pub mod logs;
pub mod metrics;
mod settings;

use std::cell::Cell;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::anyhow;
use bytes::Bytes;
use opentelemetry::KeyValue;
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceResponse;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceResponse;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use opentelemetry_proto::transform::common::tonic::ResourceAttributesWithSchema;
use opentelemetry_sdk::Resource;
use prost::Message;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use tracing::{info, warn};

use self::grpc::Grpc;
use self::http::Http;
use crate::settings::Settings;
pub use settings::{Collector, OtlpSettings, Protocol, SERVICE_NAME, variable};

/// Longest time for one export.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Most bytes of an answer that are read.
const ANSWER_BYTES_MAX: usize = 64 * 1024;
/// Longest time that the end of the process waits for what is left.
const LEAVE_MAX: Duration = Duration::from_secs(3);

/// What is exported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// Spans.
    Traces,
    /// Metrics.
    Metrics,
    /// Log lines.
    Logs,
}

impl Signal {
    /// Its name in paths.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Traces => "traces",
            Self::Metrics => "metrics",
            Self::Logs => "logs",
        }
    }

    /// Its name in the variables of the OpenTelemetry specification.
    const fn variable(self) -> &'static str {
        match self {
            Self::Traces => "TRACES",
            Self::Metrics => "METRICS",
            Self::Logs => "LOGS",
        }
    }

    /// The method of gRPC that takes it.
    const fn method(self) -> &'static str {
        match self {
            Self::Traces => "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
            Self::Metrics => "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
            Self::Logs => "/opentelemetry.proto.collector.logs.v1.LogsService/Export",
        }
    }

    /// How much of an export the collector refused although it took the rest, and why.
    fn rejected(self, answer: &[u8]) -> Option<(u64, String)> {
        // An answer that is none says nothing of what was taken.
        let (count, why) = match self {
            Self::Traces => {
                let answer = ExportTraceServiceResponse::decode(answer).ok()?;
                let partial = answer.partial_success?;
                (partial.rejected_spans, partial.error_message)
            }
            Self::Metrics => {
                let answer = ExportMetricsServiceResponse::decode(answer).ok()?;
                let partial = answer.partial_success?;
                (partial.rejected_data_points, partial.error_message)
            }
            Self::Logs => {
                let answer = ExportLogsServiceResponse::decode(answer).ok()?;
                let partial = answer.partial_success?;
                (partial.rejected_log_records, partial.error_message)
            }
        };
        let count = u64::try_from(count).ok().filter(|count| *count > 0)?;
        Some((count, why))
    }
}

/// Why a collector did not take an export.
#[derive(Debug)]
pub struct NotTaken {
    /// Whether it may take it later.
    pub again: bool,
    /// How much of it was refused where the rest was taken: spans, points or lines.
    pub part: Option<u64>,
    /// What happened.
    pub error: anyhow::Error,
}

impl NotTaken {
    fn for_now(error: impl Into<anyhow::Error>) -> Self {
        Self {
            again: true,
            part: None,
            error: error.into(),
        }
    }

    fn for_good(error: impl Into<anyhow::Error>) -> Self {
        Self {
            again: false,
            part: None,
            error: error.into(),
        }
    }

    fn in_part(count: u64, why: &str) -> Self {
        let error = anyhow!("the collector refused {count} of an export: {why}");
        Self {
            part: Some(count),
            ..Self::for_good(error)
        }
    }
}

/// The way to a collector.
pub struct Transport {
    signal: Signal,
    over: Over,
}

enum Over {
    Grpc(Box<Grpc>),
    Http(Box<Http>),
}

impl Transport {
    fn new(collector: &Collector) -> anyhow::Result<Self> {
        let over = match collector.protocol {
            Protocol::Grpc => Over::Grpc(Box::new(Grpc::new(collector)?)),
            Protocol::Http => Over::Http(Box::new(Http::new(collector)?)),
        };
        let signal = collector.signal;
        Ok(Self { signal, over })
    }

    /// Sends one export, encoded.
    ///
    /// # Errors
    /// It was not taken, or not all of it.
    pub async fn export(&self, request: Bytes) -> Result<(), NotTaken> {
        let sending = async {
            match &self.over {
                Over::Grpc(grpc) => grpc.export(request).await,
                Over::Http(http) => http.export(request).await,
            }
        };
        let late = || NotTaken::for_now(anyhow!("the collector did not answer in time"));
        let answer = tokio::time::timeout(TIMEOUT, sending)
            .await
            .unwrap_or_else(|_| Err(late()))?;
        match self.signal.rejected(&answer) {
            None => Ok(()),
            // The specification forbids to send it again.
            Some((count, why)) => Err(NotTaken::in_part(count, &why)),
        }
    }
}

thread_local! {
    /// Whether this thread is one of an export.
    static EXPORTS: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread is one of an export: what it logs is not exported, or a collector that fails
/// would be sent the news of it for ever.
fn is_exporting() -> bool {
    EXPORTS.get()
}

/// A running export.
pub struct Export {
    stop: oneshot::Sender<()>,
    ended: oneshot::Receiver<()>,
}

impl Export {
    /// Runs `task` on a thread and a runtime of its own, until what it is given second says to
    /// stop and what is left is sent.
    ///
    /// # Errors
    /// A setting is faulty, or a certificate cannot be read.
    pub fn start<Task: Future<Output = ()>>(
        collector: &Collector,
        task: impl FnOnce(Transport, oneshot::Receiver<()>) -> Task + Send + 'static,
    ) -> anyhow::Result<Self> {
        let name = collector.signal.name();
        let (runtime, transport) = build(collector)?;
        let ((stop, stopping), (end, ended)) = (oneshot::channel(), oneshot::channel());
        std::thread::Builder::new()
            .name(name.into())
            .spawn(move || {
                EXPORTS.set(true);
                runtime.block_on(task(transport, stopping));
                // An error means that nobody waits.
                let _ = end.send(());
            })?;
        info!("{name} go to {}", collector.endpoint);
        Ok(Self { stop, ended })
    }

    /// Waits a moment until what is left is sent.
    pub async fn leave(self) {
        // Errors mean that it has ended already.
        let _ = self.stop.send(());
        let _ = tokio::time::timeout(LEAVE_MAX, self.ended).await;
    }
}

/// Looks whether an export to this collector could be started.
///
/// # Errors
/// As for [`Export::start`].
pub fn check(collector: &Collector) -> anyhow::Result<()> {
    let (runtime, transport) = build(collector)?;
    drop(transport);
    runtime.shutdown_background();
    Ok(())
}

/// The way to a collector, on a runtime of its own.
fn build(collector: &Collector) -> anyhow::Result<(Runtime, Transport)> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let built = {
        let _entered = runtime.enter();
        Transport::new(collector)
    };
    match built {
        Ok(transport) => Ok((runtime, transport)),
        Err(error) => {
            // A runtime must not end by itself within another one.
            runtime.shutdown_background();
            let name = collector.signal.name();
            Err(error.context(format!("{name} to {}", collector.endpoint)))
        }
    }
}

/// Whether exports go well, told once each time it changes: a collector that is gone must not fill
/// the log.
pub struct Outage {
    signal: Signal,
    lasts: bool,
}

impl Outage {
    /// Nothing has failed.
    pub fn none(signal: Signal) -> Self {
        let lasts = false;
        Self { signal, lasts }
    }

    /// An export was taken.
    pub fn over(&mut self) {
        if std::mem::take(&mut self.lasts) {
            info!("the collector of {} takes them again", self.signal.name());
        }
    }

    /// An export was not taken.
    pub fn met(&mut self, missed: &NotTaken) {
        if !std::mem::replace(&mut self.lasts, true) {
            let (name, error) = (self.signal.name(), &missed.error);
            warn!(%error, "{name} cannot be sent: {error:#}");
        }
    }
}

fn ns(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// A resource as the wire has it.
pub fn encoded(resource: &Resource) -> Vec<u8> {
    let attributes = ResourceAttributesWithSchema::from(resource).attributes.0;
    let resource = opentelemetry_proto::tonic::resource::v1::Resource {
        attributes,
        ..Default::default()
    };
    resource.encode_to_vec()
}

/// What every export says of this process.
pub fn resource(settings: &Settings) -> Resource {
    // Takes what OTEL_RESOURCE_ATTRIBUTES says as well.
    Resource::builder()
        .with_service_name(settings.otlp.service_name(variable))
        .with_attributes([
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            KeyValue::new("service.instance.id", settings.name()),
            KeyValue::new("cloud.region", settings.region.clone()),
        ])
        .build()
}
