//! Log lines, on standard error and over OTLP, and, where an OTLP endpoint is in the environment,
//! spans of the REST API.
//!
//! Requests through the gateway are traced by [`crate::traces`], which decides at their end.

use anyhow::Context;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry};

use crate::one_line::OneLine;
use crate::otlp::{self, Export};
use crate::panics;
use crate::serve::CannotStart;
use crate::settings::{LogFormat, LogSettings, Settings};

/// The variable of the OpenTelemetry specification that switches the export on.
const OTLP_ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";

/// What was installed; spans not yet exported are sent by [`Telemetry::shutdown`].
#[derive(Default)]
pub struct Telemetry {
    provider: Option<SdkTracerProvider>,
    lines: Option<Export>,
}

/// Installs logging, and tracing where the environment asks for it. From here on lines go to a
/// collector, where there is one.
///
/// The exporter's connection lives on `runtime`: one that no worker of the gateway waits for.
///
/// # Errors
/// The filter or the endpoint is not valid.
pub fn install(
    settings: &Settings,
    runtime: &tokio::runtime::Runtime,
) -> anyhow::Result<Telemetry> {
    let log = &settings.log;
    panics::told_as(log.format);
    let lines: Box<dyn Layer<Registry> + Send + Sync> = match log.format {
        LogFormat::Text => tracing_subscriber::fmt::layer()
            .with_writer(OneLine(std::io::stderr))
            .with_ansi(false)
            .with_filter(only_events(filter(log)?))
            .boxed(),
        LogFormat::Json => tracing_subscriber::fmt::layer()
            .json()
            .with_writer(OneLine(std::io::stderr))
            .with_filter(only_events(filter(log)?))
            .boxed(),
    };
    let provider = match std::env::var(OTLP_ENDPOINT) {
        Ok(endpoint) if !endpoint.is_empty() && is_grpc() => {
            let _entered = runtime.enter();
            let made = provider().with_context(|| format!("{OTLP_ENDPOINT}={endpoint}"));
            Some(made.map_err(|error| CannotStart(format!("{error:#}")))?)
        }
        _ => None,
    };
    // Not `Option<Layer>`: an absent layer that carries no filter makes the registry keep every
    // span for nobody, which cost a tenth of a request.
    let mut layers = vec![lines];
    let exported = otlp::logs::start(settings);
    let exported = exported.map_err(|error| CannotStart(format!("{error:#}")))?;
    let (layer, exported) = exported.unzip();
    if let Some(layer) = layer {
        layers.push(layer.with_filter(only_events(filter(log)?)).boxed());
    }
    if let Some(provider) = &provider {
        layers.push(
            tracing_opentelemetry::layer()
                .with_tracer(provider.tracer("requestrocket"))
                .with_filter(EnvFilter::new("off,control=info"))
                .boxed(),
        );
    }
    tracing_subscriber::registry().with(layers).init();
    Ok(Telemetry {
        provider,
        lines: exported,
    })
}

/// Whether the filter is one: each part a level, or a part of the program with its level.
///
/// A word alone that is no level would stand for a part of the program of that name, and all else
/// would be off.
///
/// # Errors
/// The part that is wrong, and what it may be.
pub fn check(log: &LogSettings) -> Result<(), String> {
    let is_filter = |part: &&str| match part.contains(['=', '[']) {
        true => EnvFilter::try_new(part).is_ok(),
        false => part.parse::<LevelFilter>().is_ok(),
    };
    let mut parts = log.filter.split(',').filter(|part| !part.is_empty());
    match parts.find(|part| !is_filter(part)) {
        None => Ok(()),
        Some(part) => Err(format!(
            "`{part}` is no level; levels are off, error, warn, info, debug, trace, for all or, as \
             in `info,node=debug`, for a part of the program"
        )),
    }
}

/// Which events are told, on standard error and to a collector.
fn filter(log: &LogSettings) -> anyhow::Result<EnvFilter> {
    let filter = EnvFilter::try_new(&log.filter)?;
    if !log.requests {
        return Ok(filter);
    }
    let all = format!("{}=info", node::records::lines::TARGET);
    Ok(filter.add_directive(all.parse().context("log.requests")?))
}

/// Log lines do not need spans; without this every request would make ten for nobody.
fn only_events(filter: EnvFilter) -> impl tracing_subscriber::layer::Filter<Registry> {
    use tracing_subscriber::filter::{FilterExt, filter_fn};
    filter.and(filter_fn(|metadata| metadata.is_event()))
}

/// Whether the environment asks for the one protocol that these spans are sent with.
fn is_grpc() -> bool {
    let protocol = std::env::var("OTEL_EXPORTER_OTLP_PROTOCOL").unwrap_or_default();
    protocol.is_empty() || protocol == "grpc"
}

fn provider() -> anyhow::Result<SdkTracerProvider> {
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_tonic()
        .build()?;
    Ok(SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_resource(
            opentelemetry_sdk::Resource::builder()
                .with_service_name("requestrocket")
                .build(),
        )
        .build())
}

impl Telemetry {
    /// Sends what is left. Blocks; call it from a plain thread.
    pub fn shutdown(self, runtime: &tokio::runtime::Runtime) {
        if let Some(provider) = self.provider {
            // What cannot be delivered at the end is lost; a shutdown must not hang on it.
            let _ = provider.shutdown();
        }
        if let Some(lines) = self.lines {
            runtime.block_on(lines.leave());
        }
    }
}
