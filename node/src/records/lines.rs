//! A log line for each request, for whoever asks for it (`log.requests`).

use proto::record::Record;
use tracing::info;

/// The target of these events, for `log.filter`.
pub const TARGET: &str = "requests";

/// Logs a finished request. Away from the workers: it has left the request's path.
pub fn log(record: &Record) {
    let Record {
        method,
        path,
        code,
        total_us,
        ..
    } = record;
    let status = record
        .status
        .map_or("-".to_owned(), |status| status.to_string());
    let ms = *total_us as f64 / 1_000.0;
    info!(
        target: TARGET,
        request_id = %record.request_id,
        org_id = %record.org_id,
        proxy_id = %record.proxy_id,
        upstream_status = record.upstream_status,
        attempts = record.attempts,
        trace_id = record.trace_id.as_deref(),
        "{method} {path} {status} {code} {ms:.1} ms"
    );
}
