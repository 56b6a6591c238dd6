//! TLS between nodes and control planes: both sides prove who they are. A renewed certificate is
//! shown from the next connection on; the authorities are read at a start.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use crate::certificate_files::{self, Shown};
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
        .with_cert_resolver(files.shown);
    Ok(Arc::new(config))
}

/// For the side that connects.
///
/// # Errors
/// As for [`server`].
pub fn client(settings: &LinkSettings) -> anyhow::Result<Arc<ClientConfig>> {
    let files = Files::read(settings)?;
    let mut config = ClientConfig::builder()
        .with_root_certificates(files.roots)
        .with_client_cert_resolver(files.shown);
    // A resumed session shows no certificate: the other side would go by an old one. Connections
    // are few and long.
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// Looks whether either side could be had.
///
/// # Errors
/// As for [`server`].
pub fn check(settings: &LinkSettings) -> anyhow::Result<()> {
    let (_, cert, key_file) = read(settings)?;
    certificate_files::check("link", cert, key_file)
}

struct Files {
    roots: RootCertStore,
    shown: Arc<Shown>,
}

impl Files {
    fn read(settings: &LinkSettings) -> anyhow::Result<Self> {
        let (roots, cert, key_file) = read(settings)?;
        let shown = certificate_files::shown("link".into(), cert.into(), key_file.into())?;
        Ok(Self { roots, shown })
    }
}

/// The authorities, and where our certificate and its key are.
fn read(settings: &LinkSettings) -> anyhow::Result<(RootCertStore, &Path, &Path)> {
    let ca = given(&settings.ca_file, "ca_file")?;
    let cert = given(&settings.cert_file, "cert_file")?;
    let key_file = given(&settings.key_file, "key_file")?;
    let mut roots = RootCertStore::empty();
    for certificate in certificates(ca, "ca_file")? {
        roots
            .add(certificate)
            .map_err(|error| faulty(ca, "ca_file", error))?;
    }
    Ok((roots, cert, key_file))
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rustls::{ClientConnection, ServerConnection};

    use super::*;
    use crate::certificates::{authority, issue};
    use crate::cli::{LinkAuthorityArgs, LinkIssueArgs, Output};

    fn issued(dir: &Path, name: &str) -> LinkSettings {
        let (name, dir) = (name.to_owned(), dir.to_owned());
        let file = |text: String| Some(dir.join(text));
        let settings = LinkSettings {
            ca_file: file("ca.pem".into()),
            cert_file: file(format!("{name}.pem")),
            key_file: file(format!("{name}-key.pem")),
            ..LinkSettings::default()
        };
        let (days, output) = (1, Output::Json);
        issue(&LinkIssueArgs {
            name,
            dir,
            days,
            output,
        })
        .unwrap();
        settings
    }

    /// A handshake; gives the certificates that the client and the server saw.
    fn meet(client: &Arc<ClientConfig>, server: &Arc<ServerConfig>) -> [Vec<u8>; 2] {
        let name = "control-1".try_into().unwrap();
        let mut client = ClientConnection::new(client.clone(), name).unwrap();
        let mut server = ServerConnection::new(server.clone()).unwrap();
        while client.is_handshaking() || server.is_handshaking() {
            let mut bytes = Vec::new();
            client.write_tls(&mut bytes).unwrap();
            server.read_tls(&mut bytes.as_slice()).unwrap();
            server.process_new_packets().unwrap();
            let mut bytes = Vec::new();
            server.write_tls(&mut bytes).unwrap();
            client.read_tls(&mut bytes.as_slice()).unwrap();
            client.process_new_packets().unwrap();
        }
        let first = |seen: Option<&[CertificateDer<'static>]>| seen.unwrap()[0].to_vec();
        [
            first(client.peer_certificates()),
            first(server.peer_certificates()),
        ]
    }

    #[tokio::test]
    async fn both_sides_show_a_renewed_certificate_without_a_restart() {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path();
        authority(&LinkAuthorityArgs {
            dir: dir.into(),
            output: Output::Json,
        })
        .unwrap();
        let [control, node] = ["control-1", "node-1"].map(|name| issued(dir, name));
        let (server, client) = (server(&control).unwrap(), super::client(&node).unwrap());
        let before = meet(&client, &server);
        assert_eq!(before, meet(&client, &server));
        for name in ["control-1", "node-1"] {
            std::fs::remove_file(dir.join(format!("{name}.pem"))).unwrap();
            std::fs::remove_file(dir.join(format!("{name}-key.pem"))).unwrap();
            issued(dir, name);
        }
        let renewed = async {
            let [server_before, client_before] = &before;
            loop {
                let [of_server, of_client] = meet(&client, &server);
                if of_server != *server_before && of_client != *client_before {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let renewed = tokio::time::timeout(Duration::from_secs(60), renewed).await;
        renewed.expect("both show the new certificates");
    }
}
