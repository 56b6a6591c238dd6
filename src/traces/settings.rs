//! Settings of traces. Where a setting is not given, the variable of the OpenTelemetry
//! specification counts (`OTEL_EXPORTER_OTLP_ENDPOINT` and its kin).

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use node::traces::{Incoming, Sampling};
use percent_encoding::percent_decode_str;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};

use super::system_bundle;

/// Traces.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TraceSettings {
    /// The collector, as in `http://127.0.0.1:4317`; nothing is exported without one.
    pub endpoint: Option<String>,
    /// `grpc` or `http` (protobuf).
    pub protocol: Protocol,
    /// Further header fields of an export, as in `authorization=Bearer%20x,tenant=a`.
    pub headers: Option<String>,
    /// A file with `headers`.
    pub headers_file: Option<PathBuf>,
    /// `gzip` or `none`.
    pub compression: Option<String>,
    /// Authorities of the collector's certificate; by default those of the system.
    pub ca_file: Option<PathBuf>,
    /// A certificate that this process proves itself with.
    pub cert_file: Option<PathBuf>,
    /// Its key.
    pub key_file: Option<PathBuf>,
    /// `service.name` of the spans.
    pub service_name: String,
    /// How long finished requests are gathered before they are sent, in milliseconds.
    pub batch_ms: u64,
    /// What is done with the `traceparent` of callers: `trust`, `join` or `ignore`.
    pub incoming: Incoming,
    /// The share of requests that is exported, 0 to 1.
    pub ratio: f64,
    /// Requests that take at least so long are exported in any case, in milliseconds.
    pub slow_ms: u64,
    /// Requests that end with a 5xx or without an answer are exported in any case.
    pub errors: bool,
    /// Requests that rules, limits or authentication refuse are exported in any case.
    pub refused: bool,
}

/// How batches are sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// OTLP over gRPC.
    #[default]
    Grpc,
    /// OTLP over HTTP with protobuf.
    Http,
}

impl Default for TraceSettings {
    fn default() -> Self {
        Self {
            endpoint: None,
            protocol: Protocol::Grpc,
            headers: None,
            headers_file: None,
            compression: None,
            ca_file: None,
            cert_file: None,
            key_file: None,
            service_name: "requestrocket".into(),
            batch_ms: 1_000,
            incoming: Incoming::Trust,
            ratio: 1.0,
            slow_ms: 5_000,
            errors: true,
            refused: true,
        }
    }
}

impl TraceSettings {
    /// The same with what the variables of the OpenTelemetry specification say where nothing is
    /// given. `variable` reads one.
    ///
    /// # Errors
    /// A variable is faulty, or a setting that has a range is outside.
    pub fn completed(mut self, variable: impl Fn(&str) -> Option<String>) -> Result<Self, String> {
        let given = |name: &str| {
            let special = name.replace("_OTLP_", "_OTLP_TRACES_");
            let value = variable(&special).or_else(|| variable(name));
            value.filter(|value| !value.is_empty())
        };
        if self.endpoint.is_none() {
            self.endpoint = given("OTEL_EXPORTER_OTLP_ENDPOINT");
            match given("OTEL_EXPORTER_OTLP_PROTOCOL").as_deref() {
                None => {}
                Some("grpc") => self.protocol = Protocol::Grpc,
                Some("http/protobuf") => self.protocol = Protocol::Http,
                Some(other) => {
                    return Err(format!(
                        "OTEL_EXPORTER_OTLP_PROTOCOL={other} is not known here"
                    ));
                }
            }
        }
        let file = |name: &str| given(name).map(PathBuf::from);
        self.compression = self
            .compression
            .or_else(|| given("OTEL_EXPORTER_OTLP_COMPRESSION"));
        self.ca_file = self
            .ca_file
            .or_else(|| file("OTEL_EXPORTER_OTLP_CERTIFICATE"));
        self.cert_file = self
            .cert_file
            .or_else(|| file("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE"));
        self.key_file = self
            .key_file
            .or_else(|| file("OTEL_EXPORTER_OTLP_CLIENT_KEY"));
        if self.headers.is_none() && self.headers_file.is_none() {
            self.headers = given("OTEL_EXPORTER_OTLP_HEADERS");
        }
        match self.compression.as_deref() {
            None | Some("gzip" | "none") => {}
            Some(other) => return Err(format!("`traces.compression` {other} is not known here")),
        }
        if !(0.0..=1.0).contains(&self.ratio) {
            return Err(format!("`traces.ratio` must be 0 to 1, not {}", self.ratio));
        }
        Ok(self)
    }

    /// Which traces are kept.
    pub fn sampling(&self) -> Sampling {
        Sampling {
            incoming: self.incoming,
            ratio: self.ratio,
            slow_us: self.slow_ms.saturating_mul(1_000),
            errors: self.errors,
            refused: self.refused,
        }
    }

    /// Whether batches are compressed.
    pub fn gzip(&self) -> bool {
        self.compression.as_deref() == Some("gzip")
    }

    /// The further header fields, decoded.
    pub(super) fn headers(&self) -> anyhow::Result<Vec<(String, String)>> {
        let text = match (&self.headers, &self.headers_file) {
            (Some(text), _) => text.clone(),
            (None, Some(path)) => read(path).and_then(|bytes| Ok(String::from_utf8(bytes)?))?,
            (None, None) => return Ok(Vec::new()),
        };
        parse_headers(&text)
    }

    /// Authorities of an `https` endpoint, as PEM.
    pub(super) fn authorities(&self, endpoint: &str) -> anyhow::Result<Option<Vec<u8>>> {
        match (&self.ca_file, endpoint.starts_with("https:")) {
            (Some(path), true) => read(path).map(Some),
            (None, true) => system_bundle().map(Some),
            (_, false) => Ok(None),
        }
    }

    /// What this process proves itself with: certificate and key, as PEM.
    pub(super) fn identity(&self) -> anyhow::Result<Option<(Vec<u8>, Vec<u8>)>> {
        match (&self.cert_file, &self.key_file) {
            (Some(certificate), Some(key)) => Ok(Some((read(certificate)?, read(key)?))),
            (None, None) => Ok(None),
            _ => anyhow::bail!("`traces.cert_file` and `traces.key_file` are given together"),
        }
    }

    /// The TLS of an exporter over HTTP.
    pub(super) fn rustls(&self, authorities: &[u8]) -> anyhow::Result<Arc<rustls::ClientConfig>> {
        let mut roots = rustls::RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(authorities) {
            // A bundle of a system may hold some that are too odd to be used.
            let _ = roots.add(certificate.context("`traces.ca_file`")?);
        }
        let builder = rustls::ClientConfig::builder().with_root_certificates(roots);
        let config = match self.identity()? {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let chain = CertificateDer::pem_slice_iter(&certificate)
                    .collect::<Result<Vec<_>, _>>()
                    .context("`traces.cert_file`")?;
                let key = PrivateKeyDer::from_pem_slice(&key).context("`traces.key_file`")?;
                builder.with_client_auth_cert(chain, key)?
            }
        };
        Ok(Arc::new(config))
    }
}

fn read(path: &PathBuf) -> anyhow::Result<Vec<u8>> {
    std::fs::read(path).with_context(|| path.display().to_string())
}

/// `name=value` pairs with commas between, values percent-encoded.
fn parse_headers(text: &str) -> anyhow::Result<Vec<(String, String)>> {
    let fields = text
        .trim()
        .split(',')
        .filter(|field| !field.trim().is_empty());
    fields
        .map(|field| {
            // The text may hold a secret: it is not repeated.
            let (name, value) = field.split_once('=').context("a header is no name=value")?;
            let value = percent_decode_str(value.trim())
                .decode_utf8()
                .context("a header")?;
            Ok((name.trim().to_owned(), value.into_owned()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_count_where_nothing_is_set() {
        let variables = |name: &str| {
            let value = match name {
                "OTEL_EXPORTER_OTLP_ENDPOINT" => "http://a:4318",
                "OTEL_EXPORTER_OTLP_PROTOCOL" => "http/protobuf",
                "OTEL_EXPORTER_OTLP_TRACES_COMPRESSION" => "gzip",
                "OTEL_EXPORTER_OTLP_HEADERS" => "authorization=Bearer%20x, tenant=a",
                _ => return None,
            };
            Some(value.to_owned())
        };
        let all = TraceSettings::default().completed(variables).unwrap();
        assert_eq!(all.endpoint.as_deref(), Some("http://a:4318"));
        assert_eq!((all.protocol, all.gzip()), (Protocol::Http, true));
        let field = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(
            all.headers().unwrap(),
            [field("authorization", "Bearer x"), field("tenant", "a")]
        );
        let own = TraceSettings {
            endpoint: Some("http://b".into()),
            ..TraceSettings::default()
        };
        let own = own.completed(variables).unwrap();
        assert_eq!(
            (own.endpoint.as_deref(), own.protocol),
            (Some("http://b"), Protocol::Grpc)
        );
    }

    #[test]
    fn what_is_not_known_is_refused() {
        let none = |_: &str| None;
        let with = |set: fn(&mut TraceSettings)| {
            let mut settings = TraceSettings::default();
            set(&mut settings);
            settings.completed(none)
        };
        assert!(with(|settings| settings.ratio = 1.5).is_err());
        assert!(with(|settings| settings.ratio = f64::NAN).is_err());
        assert!(with(|settings| settings.compression = Some("zip".into())).is_err());
        assert!(with(|settings| settings.ratio = 0.01).is_ok());
        let protocol =
            |name: &str| (name == "OTEL_EXPORTER_OTLP_PROTOCOL").then(|| "http/json".to_owned());
        assert!(TraceSettings::default().completed(protocol).is_err());
        assert!(parse_headers("secret").is_err());
    }
}
