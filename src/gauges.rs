//! Metrics that stand fast while the process runs: what it is, its bounds, when its certificates
//! end.

use std::path::PathBuf;

use proto::exposition::Families;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::expiry;
use crate::settings::Settings;

/// Adds them; certificates are read anew each time, since they are replaced while it runs.
pub fn add_to(out: &mut Families, settings: &Settings) {
    let help = "The program that runs; always 1.";
    let family = out.gauge("requestrocket_build_info", help);
    family.with([("version", env!("CARGO_PKG_VERSION").into())], 1);
    let bounds = [
        (
            "requestrocket_requests_in_flight_max",
            "Most requests in flight.",
            settings.gateway.requests_in_flight_max,
        ),
        (
            "requestrocket_mailbox_capacity",
            "Most requests that wait before one stage of one worker.",
            settings.gateway.mailbox_capacity as u64,
        ),
        (
            "requestrocket_connections_max",
            "Most open connections of callers.",
            settings.gateway.connections_max as u64,
        ),
        (
            "requestrocket_records_spool_bytes_max",
            "Most bytes of records that wait on disk.",
            settings.records.spool_bytes,
        ),
    ];
    for (name, help, value) in bounds {
        out.gauge(name, help).is(value);
    }
    let name = "requestrocket_certificate_expiry_timestamp_seconds";
    let help = "When a certificate of this process, or the authority it trusts, ends.";
    let family = out.gauge(name, help);
    for (which, path) in certificates(settings) {
        if let Some(at) = first_end(&path) {
            family.with([("certificate", which.into())], at as f64);
        }
    }
}

fn certificates(settings: &Settings) -> Vec<(&'static str, PathBuf)> {
    let all = [
        ("link", &settings.link.cert_file),
        ("link-authority", &settings.link.ca_file),
        ("store", &settings.store.cert_file),
        ("store-authority", &settings.store.ca_file),
        ("otlp", &settings.otlp.cert_file),
        ("otlp-authority", &settings.otlp.ca_file),
    ];
    all.into_iter()
        .filter_map(|(which, path)| Some((which, path.clone()?)))
        .collect()
}

/// The first end of all certificates in a file, in seconds since the Unix epoch.
fn first_end(path: &PathBuf) -> Option<i64> {
    let pem = std::fs::read(path).ok()?;
    let certificates = CertificateDer::pem_slice_iter(&pem).filter_map(Result::ok);
    certificates.filter_map(|der| expiry::not_after(&der)).min()
}
