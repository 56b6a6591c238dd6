//! Metrics that stand fast while the process runs: what it is, its bounds, when its certificates
//! end.

use std::fmt::Write;
use std::path::PathBuf;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::expiry;
use crate::settings::Settings;

/// Renders them; certificates are read anew each time, since they are replaced while it runs.
pub fn render(settings: &Settings, out: &mut String) {
    let name = "requestrocket_build_info";
    let _ = writeln!(
        out,
        "# HELP {name} The program that runs; always 1.\n# TYPE {name} gauge\n\
         {name}{{version=\"{}\"}} 1",
        env!("CARGO_PKG_VERSION")
    );
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
        let _ = writeln!(
            out,
            "# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}"
        );
    }
    let name = "requestrocket_certificate_expiry_timestamp_seconds";
    let help = "When a certificate of this process, or the authority it trusts, ends.";
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} gauge");
    for (which, path) in certificates(settings) {
        if let Some(at) = first_end(&path) {
            let _ = writeln!(out, "{name}{{certificate=\"{which}\"}} {at}");
        }
    }
}

fn certificates(settings: &Settings) -> Vec<(&'static str, PathBuf)> {
    let all = [
        ("link", &settings.link.cert_file),
        ("link-authority", &settings.link.ca_file),
        ("store", &settings.store.cert_file),
        ("store-authority", &settings.store.ca_file),
        ("traces", &settings.traces.cert_file),
        ("traces-authority", &settings.traces.ca_file),
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
