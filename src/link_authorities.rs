//! The authorities that the other side of a link proves itself by, as their file has them: who
//! takes one in or out writes the file, and nobody restarts anything.
//!
//! What counts is asked for in each handshake. Connections that are there go on: they were proved
//! by what counted when they began.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme};
use tracing::{info, warn};

use crate::certificate_files::LOOK;
use crate::serve::CannotStart;

/// Reads the authorities of `link.ca_file` and keeps to what the file holds. Must be called within
/// a Tokio runtime.
///
/// # Errors
/// [`CannotStart`]: the file cannot be read, or something in it is no authority.
pub fn followed(file: &Path) -> anyhow::Result<Arc<Authorities>> {
    let (content, trusted) = begin(file)?;
    let authorities = Arc::new(Authorities {
        trusted: ArcSwap::from_pointee(trusted),
    });
    tokio::spawn(follow(file.to_owned(), content, authorities.clone()));
    Ok(authorities)
}

/// Looks whether a file holds authorities.
///
/// # Errors
/// As for [`followed`].
pub fn check(file: &Path) -> Result<(), CannotStart> {
    begin(file).map(drop)
}

/// The authorities that count now, for either side.
#[derive(Debug)]
pub struct Authorities {
    trusted: ArcSwap<Trusted>,
}

#[derive(Debug)]
struct Trusted {
    servers: Arc<WebPkiServerVerifier>,
    clients: Arc<dyn ClientCertVerifier>,
    count: usize,
}

/// Trusts what the file holds, as soon as all of it can be read; until then what it held before.
async fn follow(file: PathBuf, mut content: Vec<u8>, authorities: Arc<Authorities>) {
    let mut told = String::new();
    loop {
        tokio::time::sleep(LOOK).await;
        let outcome = read(&file).and_then(|found| {
            if found == content {
                return Ok(None);
            }
            let trusted = Trusted::of(&file, &found)?;
            Ok(Some((found, trusted)))
        });
        match outcome {
            Ok(None) => told.clear(),
            Ok(Some((found, trusted))) => {
                let count = trusted.count;
                info!("authorities of `link.ca_file` that count from now on: {count}");
                content = found;
                authorities.trusted.store(Arc::new(trusted));
                told.clear();
            }
            Err(error) if error != told => {
                warn!("the authorities are not renewed, those of before count: {error}");
                told = error;
            }
            Err(_) => {}
        }
    }
}

fn begin(file: &Path) -> Result<(Vec<u8>, Trusted), CannotStart> {
    let content = read(file).map_err(CannotStart)?;
    let trusted = Trusted::of(file, &content).map_err(CannotStart)?;
    Ok((content, trusted))
}

fn read(file: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(file).map_err(|error| faulty(file, error))
}

fn faulty(file: &Path, reason: impl std::fmt::Display) -> String {
    format!("`link.ca_file` {}: {reason}", file.display())
}

impl Trusted {
    fn of(file: &Path, content: &[u8]) -> Result<Self, String> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(content) {
            let certificate = certificate.map_err(|error| faulty(file, error))?;
            let added = roots.add(certificate);
            added.map_err(|error| faulty(file, error))?;
        }
        let (count, roots) = (roots.len(), Arc::new(roots));
        if count == 0 {
            return Err(faulty(file, "it holds no certificate"));
        }
        let servers = WebPkiServerVerifier::builder(roots.clone()).build();
        let clients = WebPkiClientVerifier::builder(roots).build();
        Ok(Self {
            servers: servers.map_err(|error| faulty(file, error))?,
            clients: clients.map_err(|error| faulty(file, error))?,
            count,
        })
    }
}

impl ServerCertVerifier for Authorities {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let servers = &self.trusted.load().servers;
        servers.verify_server_cert(end_entity, intermediates, name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let servers = &self.trusted.load().servers;
        servers.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let servers = &self.trusted.load().servers;
        servers.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.trusted.load().servers.supported_verify_schemes()
    }
}

impl ClientCertVerifier for Authorities {
    /// None: they change, and whoever connects has one certificate to show.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let clients = &self.trusted.load().clients;
        clients.verify_client_cert(end_entity, intermediates, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let clients = &self.trusted.load().clients;
        clients.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let clients = &self.trusted.load().clients;
        clients.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.trusted.load().clients.supported_verify_schemes()
    }
}
