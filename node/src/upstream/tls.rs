//! How a target proves who it is: one client configuration per set of settings.
//!
//! A [`TlsSettings`] is built where a configuration version is built, never on the request path:
//! loading the platform's roots reads files. Equal settings share one configuration, so that
//! sessions can be resumed and 100,000 targets with the default settings cost one. The crypto
//! provider is passed by hand: nothing here depends on a process-wide default being installed.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::destination::Digest;

/// Who may vouch for a target.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum Roots {
    /// The platform's certificate authorities.
    #[default]
    Platform,
    /// The platform's, and the certificates of this PEM text.
    PlatformAnd(String),
    /// Only the certificates of this PEM text: a private authority, pinned.
    Only(String),
    /// Nobody: any certificate is taken (`policy.allow_insecure_tls`).
    Unchecked,
}

/// The oldest protocol version that is spoken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum MinVersion {
    /// TLS 1.2 and 1.3.
    #[default]
    Tls12,
    /// TLS 1.3 only.
    Tls13,
}

/// What a target's configuration says about TLS.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct TlsSpec {
    /// Who may vouch for the target.
    pub roots: Roots,
    /// The oldest protocol version.
    pub min_version: MinVersion,
    /// The name that is asked for and that the certificate must carry, instead of the host's.
    pub server_name: Option<String>,
}

/// Settings that cannot be used; the text is for whoever wrote them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TlsSettingsError {
    /// The PEM text holds no certificate, or a broken one.
    #[error("the certificates could not be read: {0}")]
    Certificates(String),
    /// The server name is neither a DNS name nor an address.
    #[error("`{0}` is not a server name")]
    ServerName(String),
    /// The platform has no certificate authorities.
    #[error("the certificate authorities of this machine could not be loaded: {0}")]
    Platform(String),
}

/// Settings ready for use.
#[derive(Debug)]
pub struct TlsSettings {
    identity: [u8; 16],
    pub(super) server_name: Option<ServerName<'static>>,
    pub(super) http1: Arc<ClientConfig>,
    pub(super) http1_or_2: Arc<ClientConfig>,
}

impl TlsSettings {
    /// Builds the configurations; prefer [`TlsCache::get`].
    ///
    /// # Errors
    ///
    /// [`TlsSettingsError`], naming what is wrong with the settings or the machine.
    pub fn new(spec: &TlsSpec) -> Result<Self, TlsSettingsError> {
        let server_name = match &spec.server_name {
            Some(name) => Some(
                ServerName::try_from(name.clone())
                    .map_err(|_| TlsSettingsError::ServerName(name.clone()))?,
            ),
            None => None,
        };
        let provider = Arc::new(aws_lc_rs::default_provider());
        let versions: &[_] = match spec.min_version {
            MinVersion::Tls12 => &[&rustls::version::TLS13, &rustls::version::TLS12],
            MinVersion::Tls13 => &[&rustls::version::TLS13],
        };
        let mut config = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(versions)
            .map_err(|error| TlsSettingsError::Platform(error.to_string()))?
            .dangerous()
            .with_custom_certificate_verifier(verifier(&spec.roots, provider)?)
            .with_no_client_auth();
        config.resumption = Resumption::in_memory_sessions(256);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let mut either = config.clone();
        either.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Self {
            identity: identity(spec),
            server_name,
            http1: Arc::new(config),
            http1_or_2: Arc::new(either),
        })
    }

    /// Equal for settings under which connections may be shared, and only for those.
    pub(super) fn identity(&self) -> &[u8; 16] {
        &self.identity
    }
}

fn identity(spec: &TlsSpec) -> [u8; 16] {
    let mut digest = Digest::new();
    match &spec.roots {
        Roots::Platform => digest.field(b"platform"),
        Roots::PlatformAnd(pem) => {
            digest.field(b"platform and");
            digest.field(pem.as_bytes());
        }
        Roots::Only(pem) => {
            digest.field(b"only");
            digest.field(pem.as_bytes());
        }
        Roots::Unchecked => digest.field(b"unchecked"),
    }
    digest.field(&[spec.min_version as u8]);
    digest.list(spec.server_name.as_slice(), |digest, name| {
        digest.field(name.as_bytes())
    });
    digest.finish()
}

fn verifier(
    roots: &Roots,
    provider: Arc<CryptoProvider>,
) -> Result<Arc<dyn ServerCertVerifier>, TlsSettingsError> {
    let platform = |extra: Vec<CertificateDer<'static>>, provider| {
        rustls_platform_verifier::Verifier::new_with_extra_roots(extra, provider)
            .map_err(|error| TlsSettingsError::Platform(error.to_string()))
    };
    Ok(match roots {
        Roots::Platform => Arc::new(platform(Vec::new(), provider)?),
        Roots::PlatformAnd(pem) => Arc::new(platform(certificates(pem)?, provider)?),
        Roots::Only(pem) => {
            let mut store = RootCertStore::empty();
            for certificate in certificates(pem)? {
                store
                    .add(certificate)
                    .map_err(|error| TlsSettingsError::Certificates(error.to_string()))?;
            }
            WebPkiServerVerifier::builder_with_provider(Arc::new(store), provider)
                .build()
                .map_err(|error| TlsSettingsError::Certificates(error.to_string()))?
        }
        Roots::Unchecked => Arc::new(Unchecked(provider)),
    })
}

fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, TlsSettingsError> {
    let found: Vec<_> = CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|error| TlsSettingsError::Certificates(error.to_string()))?;
    if found.is_empty() {
        return Err(TlsSettingsError::Certificates(
            "no certificate in the text".to_owned(),
        ));
    }
    Ok(found)
}

/// Takes any certificate, but still demands that the peer holds its key.
#[derive(Debug)]
struct Unchecked(Arc<CryptoProvider>);

impl ServerCertVerifier for Unchecked {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Different settings that are kept; beyond it the cache starts again.
const CACHED_MAX: usize = 4096;

/// Equal settings, one value. Belongs to whatever builds configuration versions.
///
/// The lock is taken once per target when a version is built, never for a request.
#[derive(Debug, Default)]
pub struct TlsCache(Mutex<HashMap<TlsSpec, Arc<TlsSettings>>>);

impl TlsCache {
    /// The settings of `spec`, built on first use.
    ///
    /// # Errors
    ///
    /// As [`TlsSettings::new`]; a failure is not kept.
    pub fn get(&self, spec: &TlsSpec) -> Result<Arc<TlsSettings>, TlsSettingsError> {
        let mut cache = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(settings) = cache.get(spec) {
            return Ok(settings.clone());
        }
        let settings = Arc::new(TlsSettings::new(spec)?);
        if cache.len() >= CACHED_MAX {
            cache.clear();
        }
        cache.insert(spec.clone(), settings.clone());
        Ok(settings)
    }
}
