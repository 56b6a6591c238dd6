//! TLS between nodes and control planes: both sides prove who they are. A renewed certificate is
//! shown, and other authorities are gone by, from the next connection on.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::server::NoServerSessionStorage;
use rustls::{ClientConfig, ServerConfig};

use crate::certificate_files::{self, Shown};
use crate::link_authorities::{self, Authorities};
use crate::serve::CannotStart;
use crate::settings::LinkSettings;

/// For the side that listens.
///
/// # Errors
/// [`CannotStart`]: a file is missing or faulty.
pub fn server(settings: &LinkSettings) -> anyhow::Result<Arc<ServerConfig>> {
    let files = Files::follow(settings)?;
    let mut config = ServerConfig::builder()
        .with_client_cert_verifier(files.authorities)
        .with_cert_resolver(files.shown);
    // A resumed session proves nothing anew: it would go by authorities that count no more.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// For the side that connects.
///
/// # Errors
/// As for [`server`].
pub fn client(settings: &LinkSettings) -> anyhow::Result<Arc<ClientConfig>> {
    let files = Files::follow(settings)?;
    let mut config = ClientConfig::builder()
        .dangerous()
        .with_custom_certificate_verifier(files.authorities)
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
    let [ca, cert, key_file] = paths(settings)?;
    link_authorities::check(ca)?;
    certificate_files::check("link", cert, key_file)
}

/// What the files of the settings hold at any time.
struct Files {
    authorities: Arc<Authorities>,
    shown: Arc<Shown>,
}

impl Files {
    fn follow(settings: &LinkSettings) -> anyhow::Result<Self> {
        let [ca, cert, key_file] = paths(settings)?;
        Ok(Self {
            authorities: link_authorities::followed(ca)?,
            shown: certificate_files::shown("link".into(), cert.into(), key_file.into())?,
        })
    }
}

/// Where the authorities, our certificate and its key are.
fn paths(settings: &LinkSettings) -> anyhow::Result<[&Path; 3]> {
    Ok([
        given(&settings.ca_file, "ca_file")?,
        given(&settings.cert_file, "cert_file")?,
        given(&settings.key_file, "key_file")?,
    ])
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rustls::pki_types::CertificateDer;
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

    type Meeting = Result<[Vec<u8>; 2], rustls::Error>;

    /// A handshake; gives the certificates that the client and the server saw.
    fn try_to_meet(client: &Arc<ClientConfig>, server: &Arc<ServerConfig>) -> Meeting {
        let name = "control-1".try_into().unwrap();
        let mut client = ClientConnection::new(client.clone(), name).unwrap();
        let mut server = ServerConnection::new(server.clone()).unwrap();
        while client.is_handshaking() || server.is_handshaking() {
            let mut bytes = Vec::new();
            client.write_tls(&mut bytes).unwrap();
            server.read_tls(&mut bytes.as_slice()).unwrap();
            server.process_new_packets()?;
            let mut bytes = Vec::new();
            server.write_tls(&mut bytes).unwrap();
            client.read_tls(&mut bytes.as_slice()).unwrap();
            client.process_new_packets()?;
        }
        let first = |seen: Option<&[CertificateDer<'static>]>| seen.unwrap()[0].to_vec();
        Ok([
            first(client.peer_certificates()),
            first(server.peer_certificates()),
        ])
    }

    fn meet(client: &Arc<ClientConfig>, server: &Arc<ServerConfig>) -> [Vec<u8>; 2] {
        try_to_meet(client, server).unwrap()
    }

    fn authority_in(dir: &Path) -> String {
        authority(&LinkAuthorityArgs {
            dir: dir.into(),
            output: Output::Json,
        })
        .unwrap();
        std::fs::read_to_string(dir.join("ca.pem")).unwrap()
    }

    /// Waits until a handshake ends as it should.
    async fn until(sides: (&Arc<ClientConfig>, &Arc<ServerConfig>), accepted: bool) {
        let ends = async {
            while try_to_meet(sides.0, sides.1).is_ok() != accepted {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let ended = tokio::time::timeout(Duration::from_secs(60), ends).await;
        ended.expect(if accepted { "they meet" } else { "one refuses" });
    }

    #[tokio::test]
    async fn both_sides_go_by_other_authorities_without_a_restart() {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let [old, new] = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let (before, after) = (authority_in(old.path()), authority_in(new.path()));
        let of = |dir: &Path| ["control-1", "node-1"].map(|name| issued(dir, name));
        let [[old_control, old_node], [new_control, new_node]] = [of(old.path()), of(new.path())];
        // All four read authorities from the same file.
        let file = old.path().join("trusted.pem");
        let trusting = |settings: LinkSettings| LinkSettings {
            ca_file: Some(file.clone()),
            ..settings
        };
        let trusts = |text: &str| std::fs::write(&file, text).unwrap();
        trusts(&before);
        let [old_server, new_server] =
            [old_control, new_control].map(|settings| server(&trusting(settings)).unwrap());
        let [old_client, new_client] =
            [old_node, new_node].map(|settings| client(&trusting(settings)).unwrap());
        assert!(try_to_meet(&old_client, &old_server).is_ok());
        assert!(try_to_meet(&new_client, &old_server).is_err(), "a client");
        assert!(try_to_meet(&old_client, &new_server).is_err(), "a server");
        trusts(&format!("{before}{after}"));
        until((&new_client, &old_server), true).await;
        until((&old_client, &new_server), true).await;
        until((&new_client, &new_server), true).await;
        assert!(try_to_meet(&old_client, &old_server).is_ok(), "both count");
        // Who keeps a session of before does not get past either.
        let mut resuming = ClientConfig::clone(&old_client);
        resuming.resumption = Resumption::in_memory_sessions(8);
        let resuming = Arc::new(resuming);
        assert!(try_to_meet(&resuming, &new_server).is_ok());
        trusts(&after);
        until((&old_client, &new_server), false).await;
        assert!(try_to_meet(&resuming, &new_server).is_err(), "a session");
        until((&new_client, &old_server), false).await;
        until((&old_client, &old_server), false).await;
        until((&new_client, &new_server), true).await;
    }

    #[tokio::test]
    async fn both_sides_show_a_renewed_certificate_without_a_restart() {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path();
        authority_in(dir);
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
