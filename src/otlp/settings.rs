//! Settings of collectors. Where a setting is not given, the variable of the OpenTelemetry
//! specification counts (`OTEL_EXPORTER_OTLP_ENDPOINT` and its kin), that of the signal before that
//! of all.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use percent_encoding::percent_decode_str;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};
use url::Url;

use super::Signal;

/// What the service is called where nobody says another name.
pub const SERVICE_NAME: &str = "requestrocket";

/// The collector of all signals.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OtlpSettings {
    /// Where it is, as in `http://127.0.0.1:4317`; nothing is exported without one.
    pub endpoint: Option<String>,
    /// `grpc` or `http` (protobuf).
    pub protocol: Option<Protocol>,
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
    /// `service.name` of all that is exported.
    pub service_name: Option<String>,
}

/// How exports are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// OTLP over gRPC.
    Grpc,
    /// OTLP over HTTP with protobuf.
    Http,
}

/// The collector of one signal, with all that it takes to reach it.
pub struct Collector {
    /// What it takes.
    pub signal: Signal,
    /// Where it is.
    pub endpoint: String,
    /// Whether `endpoint` has the path already (`OTEL_EXPORTER_OTLP_METRICS_ENDPOINT` and its kin).
    pub is_whole: bool,
    /// How exports are sent.
    pub protocol: Protocol,
    /// Further header fields.
    pub headers: Vec<(String, String)>,
    /// Whether exports are compressed.
    pub gzip: bool,
    /// Authorities of an `https` endpoint, PEM.
    pub authorities: Option<Vec<u8>>,
    /// What this process proves itself with: certificate and key, PEM.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
}

/// A variable of this process that is not empty: the specification has an empty one count as none.
pub fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

impl OtlpSettings {
    /// `service.name` of all that is exported.
    pub fn service_name(&self, variable: impl Fn(&str) -> Option<String>) -> String {
        let given = self.service_name.clone();
        let given = given.or_else(|| variable("OTEL_SERVICE_NAME"));
        given.unwrap_or_else(|| SERVICE_NAME.into())
    }

    /// The collector of a signal; none where it is not exported. `own` is what the signal's own
    /// settings say: whether it is exported, and where to.
    ///
    /// # Errors
    /// A setting or a variable is faulty, or a file cannot be read.
    pub fn collector(
        &self,
        signal: Signal,
        own: (bool, Option<&str>),
        variable: impl Fn(&str) -> Option<String>,
    ) -> anyhow::Result<Option<Collector>> {
        if !own.0 || !is_wanted(signal, &variable)? {
            return Ok(None);
        }
        let special = |name: &str| {
            let signal = signal.variable();
            variable(&format!("OTEL_EXPORTER_OTLP_{signal}_{name}"))
        };
        let general = |name: &str| variable(&format!("OTEL_EXPORTER_OTLP_{name}"));
        let given = |name: &str| special(name).or_else(|| general(name));
        let whole = special("ENDPOINT").filter(|_| own.1.is_none());
        let is_whole = whole.is_some();
        let endpoint = own.1.map(str::to_owned).or(whole);
        let endpoint = endpoint.or_else(|| self.endpoint.clone());
        let Some(endpoint) = endpoint.or_else(|| general("ENDPOINT")) else {
            return Ok(None);
        };
        let is_tls = is_tls(&endpoint)?;
        let headers = match (&self.headers, &self.headers_file) {
            (Some(text), _) => Some(text.clone()),
            (None, Some(path)) => Some(String::from_utf8(read(path)?)?),
            (None, None) => given("HEADERS"),
        };
        let headers = parse_headers(&headers.unwrap_or_default())?;
        for (_, value) in &headers {
            crate::own_secrets::keep(value);
        }
        let file = |own: &Option<PathBuf>, name: &str| {
            own.clone().or_else(|| given(name).map(PathBuf::from))
        };
        let authorities = match (file(&self.ca_file, "CERTIFICATE"), is_tls) {
            (Some(path), true) => Some(read(&path)?),
            (None, true) => Some(system_bundle(&variable)?),
            (_, false) => None,
        };
        let certificate = file(&self.cert_file, "CLIENT_CERTIFICATE");
        let identity = match (certificate, file(&self.key_file, "CLIENT_KEY")) {
            (Some(certificate), Some(key)) => Some((read(&certificate)?, read(&key)?)),
            (None, None) => None,
            _ => bail!("`otlp.cert_file` and `otlp.key_file` are given together"),
        };
        Ok(Some(Collector {
            signal,
            protocol: self.protocol(given("PROTOCOL"))?,
            gzip: self.gzip(given("COMPRESSION"))?,
            endpoint,
            is_whole,
            headers,
            authorities,
            identity,
        }))
    }

    fn protocol(&self, variable: Option<String>) -> anyhow::Result<Protocol> {
        match (self.protocol, variable.as_deref()) {
            (Some(own), _) => Ok(own),
            (None, None | Some("grpc")) => Ok(Protocol::Grpc),
            (None, Some("http/protobuf")) => Ok(Protocol::Http),
            (None, Some(other)) => bail!("OTEL_EXPORTER_OTLP_PROTOCOL={other} is not known here"),
        }
    }

    fn gzip(&self, variable: Option<String>) -> anyhow::Result<bool> {
        match self.compression.clone().or(variable).as_deref() {
            Some("gzip") => Ok(true),
            None | Some("none") => Ok(false),
            Some(other) => bail!("`otlp.compression` {other} is not known here"),
        }
    }
}

/// Whether a collector is called over TLS. Its URL may hold a password: it is not repeated.
fn is_tls(endpoint: &str) -> anyhow::Result<bool> {
    let url = Url::parse(endpoint).ok().filter(Url::has_host);
    match url.as_ref().map(Url::scheme) {
        Some("https") => Ok(true),
        Some("http") => Ok(false),
        _ => bail!("the endpoint is no URL like http://127.0.0.1:4317 or https://otel.example"),
    }
}

/// What `OTEL_TRACES_EXPORTER` and its kin say: a list, of which only `otlp` is done here.
fn is_wanted(signal: Signal, variable: &impl Fn(&str) -> Option<String>) -> anyhow::Result<bool> {
    let disabled = variable("OTEL_SDK_DISABLED");
    if disabled.is_some_and(|value| value.eq_ignore_ascii_case("true")) {
        return Ok(false);
    }
    let name = format!("OTEL_{}_EXPORTER", signal.variable());
    let Some(list) = variable(&name) else {
        return Ok(true);
    };
    let mut wanted = false;
    for exporter in list.split(',').map(str::trim) {
        match exporter {
            "otlp" => wanted = true,
            "none" => {}
            // `GET /metrics` is there in any case.
            "prometheus" if signal == Signal::Metrics => {}
            other => bail!("{name} names {other}, which is not known here"),
        }
    }
    Ok(wanted)
}

impl Collector {
    /// The TLS of an exporter over HTTP.
    ///
    /// # Errors
    /// A certificate cannot be used.
    pub fn rustls(&self) -> anyhow::Result<Option<Arc<rustls::ClientConfig>>> {
        let Some(authorities) = &self.authorities else {
            return Ok(None);
        };
        let mut roots = rustls::RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(authorities) {
            // A bundle of a system may hold some that are too odd to be used.
            let _ = roots.add(certificate.context("`otlp.ca_file`")?);
        }
        let builder = rustls::ClientConfig::builder().with_root_certificates(roots);
        let config = match &self.identity {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let chain = CertificateDer::pem_slice_iter(certificate)
                    .collect::<Result<Vec<_>, _>>()
                    .context("`otlp.cert_file`")?;
                let key = PrivateKeyDer::from_pem_slice(key).context("`otlp.key_file`")?;
                builder.with_client_auth_cert(chain, key)?
            }
        };
        Ok(Some(Arc::new(config)))
    }
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(path).with_context(|| path.display().to_string())
}

/// Where systems keep the certificates that they trust.
const BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
    "/etc/ssl/ca-bundle.pem",
];

/// The system's authorities.
fn system_bundle(variable: &impl Fn(&str) -> Option<String>) -> anyhow::Result<Vec<u8>> {
    let given = variable("SSL_CERT_FILE");
    let mut paths = given.iter().map(String::as_str).chain(BUNDLES);
    let found = paths.find_map(|path| std::fs::read(path).ok());
    found.context("no file with the system's certificates was found; set `otlp.ca_file`")
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

    fn variables(all: &[(&'static str, &'static str)]) -> impl Fn(&str) -> Option<String> + use<> {
        let all = all.to_vec();
        move |name: &str| {
            let found = all.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        }
    }

    const GENERAL: [(&str, &str); 4] = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://a:4318"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
        ("OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "gzip"),
        (
            "OTEL_EXPORTER_OTLP_HEADERS",
            "authorization=Bearer%20x, tenant=a",
        ),
    ];

    #[test]
    fn variables_count_where_nothing_is_set() {
        let none = OtlpSettings::default();
        let of = |signal| none.collector(signal, (true, None), variables(&GENERAL));
        let traces = of(Signal::Traces).unwrap().unwrap();
        assert_eq!(
            (&*traces.endpoint, traces.is_whole),
            ("http://a:4318", false)
        );
        assert_eq!((traces.protocol, traces.gzip), (Protocol::Http, true));
        let field = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let fields = [field("authorization", "Bearer x"), field("tenant", "a")];
        assert_eq!(traces.headers, fields);
        let metrics = of(Signal::Metrics).unwrap().unwrap();
        assert!(!metrics.gzip, "that is for traces");
        let own = OtlpSettings {
            endpoint: Some("http://b".into()),
            protocol: Some(Protocol::Grpc),
            ..OtlpSettings::default()
        };
        let own = own.collector(Signal::Metrics, (true, None), variables(&GENERAL));
        let own = own.unwrap().unwrap();
        assert_eq!((&*own.endpoint, own.protocol), ("http://b", Protocol::Grpc));
    }

    #[test]
    fn what_is_said_of_one_signal_goes_before_what_is_said_of_all() {
        let special = variables(&[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://all"),
            ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "http://metrics/in"),
        ]);
        let all = OtlpSettings {
            endpoint: Some("http://settings".into()),
            ..OtlpSettings::default()
        };
        for (settings, own, signal, endpoint, is_whole) in [
            (
                &all,
                Some("http://own"),
                Signal::Metrics,
                "http://own",
                false,
            ),
            (&all, None, Signal::Metrics, "http://metrics/in", true),
            (&all, None, Signal::Traces, "http://settings", false),
            (
                &OtlpSettings::default(),
                None,
                Signal::Traces,
                "http://all",
                false,
            ),
        ] {
            let found = settings
                .collector(signal, (true, own), &special)
                .unwrap()
                .unwrap();
            assert_eq!((&*found.endpoint, found.is_whole), (endpoint, is_whole));
        }
    }

    #[test]
    fn a_signal_may_be_switched_off() {
        let settings = OtlpSettings {
            endpoint: Some("http://a".into()),
            ..OtlpSettings::default()
        };
        let of = |own, set: &[(&'static str, &'static str)]| {
            let found = settings.collector(Signal::Metrics, (own, None), variables(set));
            found
                .map(|found| found.is_some())
                .map_err(|error| error.to_string())
        };
        for (own, set, expected) in [
            (true, &[][..], Ok(true)),
            (false, &[], Ok(false)),
            (true, &[("OTEL_METRICS_EXPORTER", "none")], Ok(false)),
            (true, &[("OTEL_TRACES_EXPORTER", "none")], Ok(true)),
            (true, &[("OTEL_METRICS_EXPORTER", "prometheus")], Ok(false)),
            (
                true,
                &[("OTEL_METRICS_EXPORTER", "prometheus, otlp")],
                Ok(true),
            ),
            (true, &[("OTEL_SDK_DISABLED", "True")], Ok(false)),
            (
                true,
                &[("OTEL_METRICS_EXPORTER", "console")],
                Err("OTEL_METRICS_EXPORTER names console, which is not known here".to_owned()),
            ),
        ] {
            assert_eq!(of(own, set), expected, "{set:?}");
        }
        let nowhere = OtlpSettings::default();
        let found = nowhere.collector(Signal::Metrics, (true, None), |_: &str| None);
        assert!(found.unwrap().is_none());
    }

    #[test]
    fn what_is_not_known_is_refused() {
        let at = |set: fn(&mut OtlpSettings), variables: &[(&'static str, &'static str)]| {
            let mut settings = OtlpSettings {
                endpoint: Some("https://a".into()),
                ca_file: Some("/dev/null".into()),
                ..OtlpSettings::default()
            };
            set(&mut settings);
            let found =
                settings.collector(Signal::Traces, (true, None), self::variables(variables));
            found.is_ok()
        };
        assert!(at(|_| {}, &[]));
        for (endpoint, is_known) in [
            ("ftp://a", false),
            ("a:4317", false),
            ("/metrics", false),
            ("http:", false),
            ("HTTPS://a:4317", true),
        ] {
            let settings = OtlpSettings {
                endpoint: Some(endpoint.into()),
                ca_file: Some("/dev/null".into()),
                ..OtlpSettings::default()
            };
            let found = settings.collector(Signal::Traces, (true, None), |_: &str| None);
            assert_eq!(found.is_ok(), is_known, "{endpoint}");
        }
        assert!(!at(
            |settings| settings.compression = Some("zip".into()),
            &[]
        ));
        assert!(!at(
            |settings| settings.cert_file = Some("/dev/null".into()),
            &[]
        ));
        assert!(!at(
            |settings| settings.ca_file = Some("/does/not/exist".into()),
            &[]
        ));
        assert!(!at(
            |settings| settings.headers = Some("secret".into()),
            &[]
        ));
        assert!(!at(|_| {}, &[("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json")]));
    }
}
