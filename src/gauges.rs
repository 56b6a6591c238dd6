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
        ("gateway", &settings.gateway.tls.cert_file),
        ("control", &settings.control.tls.cert_file),
        ("link", &settings.link.cert_file),
        ("link-authority", &settings.link.ca_file),
        ("store", &settings.store.cert_file),
        ("store-authority", &settings.store.ca_file),
        ("clickhouse-authority", &settings.records.clickhouse.ca_file),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_certificate_that_the_settings_name_has_its_end() {
        let folder = tempfile::tempdir().unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let made = |name: &str, year: i32| {
            let mut params = rcgen::CertificateParams::new(["x".into()]).unwrap();
            params.not_after = rcgen::date_time_ymd(year, 1, 1);
            let path = folder.path().join(name);
            std::fs::write(&path, params.self_signed(&key).unwrap().pem()).unwrap();
            Some(path)
        };
        let mut settings = Settings::default();
        let named = [
            ("gateway", &mut settings.gateway.tls.cert_file),
            ("control", &mut settings.control.tls.cert_file),
            ("link", &mut settings.link.cert_file),
            ("link-authority", &mut settings.link.ca_file),
            ("store", &mut settings.store.cert_file),
            ("store-authority", &mut settings.store.ca_file),
            (
                "clickhouse-authority",
                &mut settings.records.clickhouse.ca_file,
            ),
            ("otlp", &mut settings.otlp.cert_file),
            ("otlp-authority", &mut settings.otlp.ca_file),
        ];
        let mut expected = Vec::new();
        for ((name, setting), year) in named.into_iter().zip(2030..) {
            *setting = made(name, year);
            let end = jiff::civil::date(i16::try_from(year).unwrap(), 1, 1).at(0, 0, 0, 0);
            let end = jiff::tz::TimeZone::UTC.to_timestamp(end).unwrap();
            expected.push((name, end.as_second()));
        }
        let ends = certificates(&settings).into_iter();
        let ends = ends.map(|(name, path)| (name, first_end(&path).unwrap()));
        assert_eq!(ends.collect::<Vec<_>>(), expected);
    }
}
