//! TLS between nodes and control planes: both sides prove who they are.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use crate::serve::CannotStart;
use crate::settings::LinkSettings;

/// For the side that listens.
///
/// # Errors
/// [`CannotStart`]: a file is missing or faulty.
pub fn server(settings: &LinkSettings) -> anyhow::Result<Arc<ServerConfig>> {
    let files = Files::read(settings)?;
    let verifier = WebPkiClientVerifier::builder(Arc::new(files.roots))
        .build()
        .map_err(|error| CannotStart(format!("`link.ca_file`: {error}")))?;
    let config = ServerConfig::builder()
        .with_client_cert_verifier(verifier)
        .with_single_cert(files.chain, files.key)
        .map_err(|error| CannotStart(format!("`link.cert_file`: {error}")))?;
    Ok(Arc::new(config))
}

/// For the side that connects.
///
/// # Errors
/// As for [`server`].
pub fn client(settings: &LinkSettings) -> anyhow::Result<Arc<ClientConfig>> {
    let files = Files::read(settings)?;
    let config = ClientConfig::builder()
        .with_root_certificates(files.roots)
        .with_client_auth_cert(files.chain, files.key)
        .map_err(|error| CannotStart(format!("`link.cert_file`: {error}")))?;
    Ok(Arc::new(config))
}

struct Files {
    roots: RootCertStore,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Files {
    fn read(settings: &LinkSettings) -> anyhow::Result<Self> {
        let ca = given(&settings.ca_file, "ca_file")?;
        let cert = given(&settings.cert_file, "cert_file")?;
        let key_file = given(&settings.key_file, "key_file")?;
        let mut roots = RootCertStore::empty();
        for certificate in certificates(ca, "ca_file")? {
            roots
                .add(certificate)
                .map_err(|error| faulty(ca, "ca_file", error))?;
        }
        let key = PrivateKeyDer::from_pem_file(key_file)
            .map_err(|error| faulty(key_file, "key_file", error))?;
        Ok(Self {
            roots,
            chain: certificates(cert, "cert_file")?,
            key,
        })
    }
}

fn given<'s>(path: &'s Option<PathBuf>, key: &str) -> anyhow::Result<&'s Path> {
    let path = path.as_deref();
    Ok(path.ok_or_else(|| {
        CannotStart(format!(
            "`link.{key}` is missing: nodes and control planes prove themselves with `cert_file`, \
             `key_file` and `ca_file`"
        ))
    })?)
}

fn certificates(path: &Path, key: &str) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path)
        .map_err(|error| faulty(path, key, error))?
        .collect();
    let found = found.map_err(|error| faulty(path, key, error))?;
    match found.is_empty() {
        true => Err(faulty(path, key, "it holds no certificate").into()),
        false => Ok(found),
    }
}

fn faulty(path: &Path, key: &str, reason: impl std::fmt::Display) -> CannotStart {
    CannotStart(format!("`link.{key}` {}: {reason}", path.display()))
}
