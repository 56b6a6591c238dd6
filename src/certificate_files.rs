//! The certificates that this process shows to others. Who renews one writes the files; nobody
//! restarts anything.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use jiff::Timestamp;
use node::config::TlsSettings;
use rustls::client::ResolvesClientCert;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ServerConfig, SignatureScheme};
use tracing::{error, info, warn};
use zeroize::Zeroizing;

use crate::expiry;
use crate::serve::CannotStart;

/// How often the files are looked at.
pub const LOOK: Duration = Duration::from_secs(2);

/// Reads the certificate of a listener and keeps it as its files are; `None` where none is set.
/// `section` is the listener's in the settings. Must be called within a Tokio runtime.
///
/// # Errors
/// [`CannotStart`]: one of the two files is not set, cannot be read or is of another certificate.
pub fn watched(
    section: &'static str,
    settings: &TlsSettings,
) -> anyhow::Result<Option<ServerConfig>> {
    let Some((cert, key)) = both(section, settings)? else {
        return Ok(None);
    };
    let shown = shown(format!("{section}.tls"), cert, key)?;
    let config = ServerConfig::builder()
        .with_no_client_auth()
        .with_cert_resolver(shown);
    Ok(Some(config))
}

/// Looks whether the certificate of a listener could be shown, where one is set.
///
/// # Errors
/// As for [`watched`].
pub fn check_listener(section: &'static str, settings: &TlsSettings) -> anyhow::Result<()> {
    match both(section, settings)? {
        Some((cert, key)) => check(&format!("{section}.tls"), &cert, &key),
        None => Ok(()),
    }
}

/// The files of a listener's certificate and of its key.
fn both(section: &str, settings: &TlsSettings) -> Result<Option<(PathBuf, PathBuf)>, CannotStart> {
    let missing = match (&settings.cert_file, &settings.key_file) {
        (None, None) => return Ok(None),
        (Some(cert), Some(key)) => return Ok(Some((cert.clone(), key.clone()))),
        (Some(_), None) => "key_file",
        (None, Some(_)) => "cert_file",
    };
    Err(CannotStart(format!(
        "`{section}.tls.{missing}` is missing: a listener speaks TLS with both files, plain HTTP \
         with none"
    )))
}

/// Reads a certificate and its key, and keeps showing what their files hold. `table` is where the
/// settings `cert_file` and `key_file` are. Must be called within a Tokio runtime.
///
/// # Errors
/// [`CannotStart`]: a file cannot be read or is of another certificate.
pub fn shown(table: String, cert: PathBuf, key: PathBuf) -> anyhow::Result<Arc<Shown>> {
    let files = Files { table, cert, key };
    let (content, certified, told) = files.begin()?;
    let shown = Arc::new(Shown {
        current: ArcSwap::new(Arc::new(certified)),
    });
    tokio::spawn(follow(files, (content, told), shown.clone()));
    Ok(shown)
}

/// Looks whether two files hold a certificate and its key, and says when it is over.
///
/// # Errors
/// [`CannotStart`]: a file cannot be read or is of another certificate.
pub fn check(table: &str, cert: &Path, key: &Path) -> anyhow::Result<()> {
    let files = Files {
        table: table.to_owned(),
        cert: cert.to_owned(),
        key: key.to_owned(),
    };
    files.begin().map(drop)
}

/// Shows what the files hold, as soon as that is a certificate with its key. While one of the two
/// is written and the other is not, they do not fit: the old certificate stays.
async fn follow(files: Files, (mut content, mut end): (Content, Option<i64>), shown: Arc<Shown>) {
    let mut told = String::new();
    loop {
        tokio::time::sleep(LOOK).await;
        end = files.tell_end(&shown.current.load(), end);
        let outcome = files.read().and_then(|found| {
            if found == content {
                return Ok(None);
            }
            let certified = files.certified(&found)?;
            Ok(Some((found, certified)))
        });
        match outcome {
            Ok(None) => told.clear(),
            Ok(Some((found, certified))) => {
                content = found;
                shown.current.store(Arc::new(certified));
                told.clear();
                info!("the new certificate of `{}` is shown", files.table);
            }
            Err(error) if error != told => {
                warn!("the certificate is not renewed, the old one is shown: {error}");
                told = error;
            }
            Err(_) => {}
        }
    }
}

/// The certificate that is shown now.
#[derive(Debug)]
pub struct Shown {
    current: ArcSwap<CertifiedKey>,
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load_full())
    }
}

impl ResolvesClientCert for Shown {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load_full())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Where a certificate is.
struct Files {
    table: String,
    cert: PathBuf,
    key: PathBuf,
}

/// What the files hold.
#[derive(PartialEq, Eq)]
struct Content {
    cert: Vec<u8>,
    key: Zeroizing<Vec<u8>>,
}

impl Files {
    /// What they hold at a start, and the end of it that was told.
    fn begin(&self) -> anyhow::Result<(Content, CertifiedKey, Option<i64>)> {
        let content = self.read().map_err(CannotStart)?;
        let certified = self.certified(&content).map_err(CannotStart)?;
        let told = self.tell_end(&certified, None);
        Ok((content, certified, told))
    }

    fn read(&self) -> Result<Content, String> {
        let read = |key: &str, path: &Path| {
            std::fs::read(path).map_err(|error| self.faulty(key, path, error))
        };
        Ok(Content {
            cert: read("cert_file", &self.cert)?,
            key: read("key_file", &self.key)?.into(),
        })
    }

    fn certified(&self, content: &Content) -> Result<CertifiedKey, String> {
        let in_cert = |reason: &dyn std::fmt::Display| self.faulty("cert_file", &self.cert, reason);
        let in_key = |reason: &dyn std::fmt::Display| self.faulty("key_file", &self.key, reason);
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&content.cert).collect();
        let chain = chain.map_err(|error| in_cert(&error))?;
        if chain.is_empty() {
            return Err(in_cert(&"it holds no certificate in PEM"));
        }
        let key = PrivateKeyDer::from_pem_slice(&content.key).map_err(|error| in_key(&error))?;
        let provider = CryptoProvider::get_default()
            .cloned()
            .unwrap_or_else(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider()));
        CertifiedKey::from_der(chain, key, &provider).map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => {
                in_key(&"it is not the key of the certificate in `cert_file`")
            }
            error => in_cert(&error),
        })
    }

    /// Logs, once, that the certificate is over; gives the end that was told. The process goes on:
    /// those who trust it refuse it, and a new one counts without a restart where it is followed.
    fn tell_end(&self, certified: &CertifiedKey, told: Option<i64>) -> Option<i64> {
        let end = expiry::not_after(certified.end_entity_cert().ok()?)?;
        if told == Some(end) || end >= Timestamp::now().as_second() {
            return told;
        }
        let (table, file) = (&self.table, self.cert.display());
        let at = Timestamp::from_second(end).unwrap_or_default();
        error!("`{table}.cert_file` {file} has ended at {at}, the other side refuses it: renew it");
        Some(end)
    }

    fn faulty(&self, key: &str, path: &Path, reason: impl std::fmt::Display) -> String {
        format!("`{}.{key}` {}: {reason}", self.table, path.display())
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertifiedKey, generate_simple_self_signed};

    use super::*;

    fn why(cert: Option<&str>, key: Option<&str>) -> String {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: Option<&str>| {
            text.map(|text| {
                let path = folder.path().join(name);
                std::fs::write(&path, text).unwrap();
                path
            })
        };
        let settings = TlsSettings {
            cert_file: file("cert.pem", cert),
            key_file: file("key.pem", key),
        };
        watched("gateway", &settings).unwrap_err().to_string()
    }

    #[test]
    fn what_is_wrong_is_said_of_the_setting_that_names_it() {
        let made = || generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let (CertifiedKey { cert, signing_key }, other) = (made(), made());
        let (cert, key) = (cert.pem(), signing_key.serialize_pem());
        let (cert, key) = (Some(cert.as_str()), Some(key.as_str()));
        assert!(why(cert, None).starts_with("`gateway.tls.key_file` is missing"));
        assert!(why(None, key).starts_with("`gateway.tls.cert_file` is missing"));
        let text = why(Some("nothing"), key);
        assert!(text.contains("cert.pem: it holds no certificate"), "{text}");
        let text = why(cert, Some("nothing"));
        assert!(text.starts_with("`gateway.tls.key_file`"), "{text}");
        let text = why(cert, Some(&other.signing_key.serialize_pem()));
        assert!(text.contains("not the key of the certificate"), "{text}");
    }
}
