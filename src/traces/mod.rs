//! The export of traces over OTLP: finished requests are taken from the workers' queue, made into
//! spans and sent in batches, all on a thread that no request waits for.
//!
//! A collector that is gone or slow costs memory up to the queue's bound and nothing else: what
//! finds no room is dropped and counted, and a batch that is refused is tried again a few times.

pub mod attributes;
mod http;
mod settings;
mod spans;

use std::time::Duration;

use ::http::{HeaderMap, HeaderName};
use anyhow::{Context, bail};
use node::metrics::Metrics;
use node::traces::{Finished, TraceSender};
use opentelemetry_otlp::tonic_types::metadata::MetadataMap;
use opentelemetry_otlp::tonic_types::transport::{Certificate, ClientTlsConfig, Identity};
use opentelemetry_otlp::{Compression, WithExportConfig, WithTonicConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SpanData, SpanExporter as _};
use tokio::sync::mpsc::Receiver;
use tokio::sync::oneshot;
use tracing::{info, warn};

use self::http::HttpExporter;
pub use settings::{Protocol, TraceSettings};
use spans::Spans;

/// Most requests in a batch.
const BATCH_REQUESTS_MAX: usize = 256;
/// How often a batch is sent before it is given up, and the pause after the first failure.
const TRIES: u32 = 4;
const PAUSE: Duration = Duration::from_millis(500);
/// Longest time that the end of the process waits for what is left.
const LEAVE_MAX: Duration = Duration::from_secs(3);

/// The running export.
pub struct Export {
    stop: oneshot::Sender<()>,
    ended: oneshot::Receiver<()>,
}

/// Starts the export where the settings name a collector.
///
/// # Errors
/// A setting is faulty, or a certificate cannot be read.
pub fn start(
    settings: &TraceSettings,
    node: &str,
    region: &str,
    metrics: &Metrics,
) -> anyhow::Result<Option<(TraceSender, Export)>> {
    let Some(endpoint) = settings.endpoint.clone() else {
        return Ok(None);
    };
    let (sender, queue) = node::traces::queue(settings.sampling(), metrics.clone());
    let resource = Resource::builder()
        .with_service_name(settings.service_name.clone())
        .with_attributes([
            opentelemetry::KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            opentelemetry::KeyValue::new("service.instance.id", node.to_owned()),
            opentelemetry::KeyValue::new("cloud.region", region.to_owned()),
        ])
        .build();
    // Its own: an exporter over tonic hangs when its runtime is the one that waits for it.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let built = {
        let _entered = runtime.enter();
        exporter(settings, &endpoint, &resource)
    };
    let exporter = match built {
        Ok(exporter) => exporter,
        Err(error) => {
            // A runtime must not end by itself within another one.
            runtime.shutdown_background();
            return Err(error.context(format!("traces to {endpoint}")));
        }
    };
    let run = Run {
        exporter,
        spans: Spans::new(),
        metrics: metrics.clone(),
        pause: Duration::from_millis(settings.batch_ms.max(1)),
        failing: false,
    };
    info!("traces go to {endpoint}");
    let ((stop, stopping), (end, ended)) = (oneshot::channel(), oneshot::channel());
    std::thread::Builder::new()
        .name("traces".into())
        .spawn(move || {
            runtime.block_on(run.run(queue, stopping));
            // An error means that nobody waits.
            let _ = end.send(());
        })?;
    Ok(Some((sender, Export { stop, ended })))
}

impl Export {
    /// Waits a moment until what is left is sent.
    pub async fn leave(self) {
        // Errors mean that it has ended already.
        let _ = self.stop.send(());
        let _ = tokio::time::timeout(LEAVE_MAX, self.ended).await;
    }
}

enum Exporter {
    Grpc(Box<opentelemetry_otlp::SpanExporter>),
    Http(Box<HttpExporter>),
}

impl Exporter {
    async fn export(&self, batch: Vec<SpanData>) -> anyhow::Result<()> {
        match self {
            Self::Grpc(exporter) => Ok(exporter.export(batch).await?),
            Self::Http(exporter) => exporter.export(batch).await,
        }
    }
}

fn exporter(
    settings: &TraceSettings,
    endpoint: &str,
    resource: &Resource,
) -> anyhow::Result<Exporter> {
    let headers = settings.headers()?;
    for (_, value) in &headers {
        crate::own_secrets::keep(value);
    }
    let authorities = settings.authorities(endpoint)?;
    if settings.protocol == Protocol::Http {
        let tls = authorities
            .as_deref()
            .map(|pem| settings.rustls(pem))
            .transpose()?;
        let exporter = HttpExporter::new(endpoint, &headers, settings.gzip(), tls, resource)?;
        return Ok(Exporter::Http(Box::new(exporter)));
    }
    let mut fields = HeaderMap::new();
    for (name, value) in &headers {
        let name: HeaderName = name.parse().context("the name of a header")?;
        fields.insert(name, value.parse().context("the value of a header")?);
    }
    let metadata = MetadataMap::from_headers(fields);
    let mut builder = opentelemetry_otlp::SpanExporter::builder()
        .with_tonic()
        .with_endpoint(endpoint)
        .with_timeout(Duration::from_secs(10))
        .with_metadata(metadata);
    if settings.gzip() {
        builder = builder.with_compression(Compression::Gzip);
    }
    if let Some(pem) = authorities {
        let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem));
        if let Some((certificate, key)) = settings.identity()? {
            tls = tls.identity(Identity::from_pem(certificate, key));
        }
        builder = builder.with_tls_config(tls);
    }
    let mut exporter = builder.build()?;
    exporter.set_resource(resource);
    Ok(Exporter::Grpc(Box::new(exporter)))
}

struct Run {
    exporter: Exporter,
    spans: Spans,
    metrics: Metrics,
    pause: Duration,
    failing: bool,
}

impl Run {
    async fn run(mut self, mut queue: Receiver<Finished>, mut stopping: oneshot::Receiver<()>) {
        let mut waiting = Vec::with_capacity(BATCH_REQUESTS_MAX);
        let mut stopped = false;
        loop {
            let received = tokio::select! {
                count = queue.recv_many(&mut waiting, BATCH_REQUESTS_MAX) => count,
                _ = &mut stopping, if !stopped => {
                    // What is in the queue still comes out of it, then it ends.
                    stopped = true;
                    queue.close();
                    continue;
                }
            };
            if received == 0 {
                return;
            }
            if !stopped {
                // A little later there are more, and one batch is sent for them.
                let full = filled(&mut queue, &mut waiting);
                tokio::select! {
                    () = full => {}
                    () = tokio::time::sleep(self.pause) => {}
                    _ = &mut stopping => {
                        stopped = true;
                        queue.close();
                    }
                }
            }
            let tries = if stopped { 1 } else { TRIES };
            self.send(&waiting, tries).await;
            waiting.clear();
        }
    }

    async fn send(&mut self, finished: &[Finished], tries: u32) {
        let count = finished.len() as u64;
        let mut pause = PAUSE;
        for left in (0..tries).rev() {
            let batch = finished
                .iter()
                .flat_map(|request| self.spans.of(request))
                .collect();
            match self.exporter.export(batch).await {
                Ok(()) => {
                    self.metrics.traces_exported(count);
                    if std::mem::take(&mut self.failing) {
                        info!("the collector of traces takes them again");
                    }
                    return;
                }
                Err(error) => {
                    self.metrics.trace_export_failed();
                    // Once, until it is well again: a collector that is gone must not fill the log.
                    if !std::mem::replace(&mut self.failing, true) {
                        warn!(%error, "traces cannot be sent: {error:#}");
                    }
                    if left > 0 {
                        tokio::time::sleep(pause).await;
                        pause *= 2;
                    }
                }
            }
        }
        self.metrics.traces_dropped(count);
    }
}

/// Takes requests until a batch is full or the queue ends.
async fn filled(queue: &mut Receiver<Finished>, waiting: &mut Vec<Finished>) {
    while waiting.len() < BATCH_REQUESTS_MAX {
        let room = BATCH_REQUESTS_MAX - waiting.len();
        if queue.recv_many(waiting, room).await == 0 {
            return;
        }
    }
}

/// Where systems keep the certificates that they trust.
const BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
    "/etc/ssl/ca-bundle.pem",
];

/// The system's authorities.
fn system_bundle() -> anyhow::Result<Vec<u8>> {
    let given = std::env::var("SSL_CERT_FILE").ok();
    let paths = given.iter().map(String::as_str).chain(BUNDLES);
    for path in paths {
        if let Ok(pem) = std::fs::read(path) {
            return Ok(pem);
        }
    }
    bail!("no file with the system's certificates was found; set `traces.ca_file`")
}
