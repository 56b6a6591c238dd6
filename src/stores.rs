//! Opens the store that the settings name.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use control::archive::ArchiveError;
use proto::keys;
use proto::store::embedded::{Embedded, EmbeddedOptions};
use proto::store::etcd::{Etcd, EtcdOptions, EtcdTls, EtcdUser};
use proto::store::{Store, StoreError};
use proto::tree::SYSTEM_ORG;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tracing::{info, warn};

use crate::certificate_files;
use crate::cli::Output;
use crate::data_folder::DataFolder;
use crate::handover::{STORE_WAIT_MAX, TELL_EVERY};
use crate::own_secrets;
use crate::say;
use crate::serve::{self, CannotStart};
use crate::settings::Settings;

/// Where configuration and tokens are.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StoreSettings {
    /// Which store.
    pub kind: StoreKind,
    /// Client URLs of the etcd members.
    pub endpoints: Vec<String>,
    /// Prefix of all our keys in etcd.
    pub prefix: String,
    /// A user of etcd's role-based access control.
    pub username: Option<String>,
    /// A file with the user's password.
    pub password_file: Option<PathBuf>,
    /// A PEM file with the authorities of the members' certificates; turns TLS on.
    pub ca_file: Option<PathBuf>,
    /// A PEM file with our certificate.
    pub cert_file: Option<PathBuf>,
    /// A PEM file with its key.
    pub key_file: Option<PathBuf>,
    /// The name expected in the members' certificates.
    pub server_name: Option<String>,
    /// How old the configuration that a node kept on its disk may be, in seconds, when it starts
    /// without the store.
    pub kept_max_s: u64,
    /// The quota of each etcd member (`--quota-backend-bytes`), in bytes, or the largest size of
    /// the embedded store's file. Beyond 85 % of it nothing is published. 0: nobody looks.
    pub quota_bytes: u64,
}

impl Default for StoreSettings {
    fn default() -> Self {
        Self {
            kind: StoreKind::Embedded,
            endpoints: Vec::new(),
            prefix: "/requestrocket/".into(),
            username: None,
            password_file: None,
            ca_file: None,
            cert_file: None,
            key_file: None,
            server_name: None,
            kept_max_s: 7 * 86_400,
            quota_bytes: 8 << 30,
        }
    }
}

/// Which store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StoreKind {
    /// A file of this machine, for one process.
    #[default]
    Embedded,
    /// An etcd cluster.
    Etcd,
}

/// Opens the store; etcd need not be reachable yet.
///
/// # Errors
/// [`CannotStart`]: the file cannot be used or was lost, or a setting of etcd is faulty; another
/// error where the disk is full.
pub fn open(settings: &Settings) -> anyhow::Result<Arc<dyn Store>> {
    match settings.store.kind {
        StoreKind::Embedded => {
            let mut options = EmbeddedOptions::default();
            if settings.store.quota_bytes > 0 {
                options.size_bytes_max = settings.store.quota_bytes;
            }
            not_lost(settings)?;
            let opened = Embedded::open_with(&file(settings), &options);
            let store = opened.map_err(unusable)?;
            Ok(store)
        }
        StoreKind::Etcd => {
            let options = etcd(&settings.store)?;
            let opened = Etcd::open(options);
            let store = opened.map_err(|error| CannotStart(error.to_string()))?;
            Ok(store)
        }
    }
}

/// Looks whether the store could be opened, while another process has it.
///
/// # Errors
/// As for [`open`].
pub fn check(settings: &Settings) -> anyhow::Result<()> {
    match settings.store.kind {
        StoreKind::Embedded => {
            not_lost(settings)?;
            Embedded::check(&file(settings)).map_err(unusable)
        }
        StoreKind::Etcd => open(settings).map(drop),
    }
}

/// The file of an embedded store that an earlier start has made.
pub fn used_file(settings: &Settings) -> Option<PathBuf> {
    let path = Some(file(settings)).filter(|_| settings.store.kind == StoreKind::Embedded)?;
    path.exists().then_some(path)
}

fn file(settings: &Settings) -> PathBuf {
    file_in(&settings.data_dir)
}

fn file_in(data_dir: &Path) -> PathBuf {
    data_dir.join("store.sqlite")
}

/// Arguments of `restore`.
#[derive(Debug, Args)]
pub struct RestoreArgs {
    /// The backup of `store.sqlite`; without it, the one that is there is taken to be a backup.
    pub backup: Option<PathBuf>,
    /// The data folder of the process, which is not running.
    #[arg(long)]
    pub data_dir: PathBuf,
    /// How to say what was done.
    #[arg(long, value_enum, default_value_t)]
    pub output: Output,
}

/// Runs `requestrocket restore`.
///
/// # Errors
/// The folder is not there, a process has the store, the backup is none, or a file cannot be moved.
pub fn restore(args: &RestoreArgs) -> anyhow::Result<()> {
    is_folder(&args.data_dir)?;
    let _claim = DataFolder::open(&args.data_dir)?.claim()?;
    let store = file_in(&args.data_dir);
    let moved = Embedded::restore(&store, args.backup.as_deref()).map_err(unusable)?;
    if args.output == Output::Json {
        say(&serde_json::json!({"store": store, "moved": moved}).to_string());
        return Ok(());
    }
    let names: Vec<String> = moved
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    let moved = match names.is_empty() {
        true => "nothing had to be moved aside".to_owned(),
        false => format!("what was there before is kept as {}", names.join(", ")),
    };
    say(&format!("{} is the backup now; {moved}", store.display()));
    Ok(())
}

/// Refuses a folder that is mistyped: it would be made, and hold a backup that no process reads.
fn is_folder(data_dir: &Path) -> Result<(), CannotStart> {
    let why = match data_dir.metadata() {
        Ok(found) if found.is_dir() => return Ok(()),
        Ok(_) => "it is no folder".to_owned(),
        Err(error) => error.to_string(),
    };
    Err(CannotStart(format!(
        "{} is no data folder (--data-dir): {why}; on a new machine make it first",
        data_dir.display()
    )))
}

/// The file of the versions that left the store.
pub fn archive_file(settings: &Settings) -> PathBuf {
    settings.data_dir.join("archive.sqlite")
}

/// That it cannot be used.
pub fn archive_unusable(error: ArchiveError) -> anyhow::Error {
    serve::unusable(format!("archive.sqlite: {error}"), error.is_of_disk())
}

fn unusable(error: StoreError) -> anyhow::Error {
    serve::unusable(error.to_string(), matches!(error, StoreError::Full(_)))
}

/// Refuses to make a store beside the archive of one: the first start made both, so the store was
/// lost, and a new one would be served in its place without a word.
///
/// # Errors
/// [`CannotStart`]: that is so.
pub fn not_lost(settings: &Settings) -> Result<(), CannotStart> {
    if !matches!(settings.store.kind, StoreKind::Embedded) {
        return Ok(());
    }
    let (store, archive) = (file(settings), archive_file(settings));
    let is_empty = |path: &Path| match path.metadata() {
        Ok(found) => found.len() == 0,
        Err(error) => error.kind() == ErrorKind::NotFound,
    };
    if !is_empty(&store) || is_empty(&archive) {
        return Ok(());
    }
    Err(CannotStart(format!(
        "{store} is gone or empty, and {} beside it belongs to what was in it: put the former back \
         with `requestrocket restore BACKUP --data-dir {folder}`, which moves what is left of the \
         lost file aside; to begin anew without it, move the archive away",
        archive.display(),
        store = store.display(),
        folder = settings.data_dir.display(),
    )))
}

/// Waits until a store that other processes share answers, before a successor asks the old process
/// to end: nobody would serve while it does not.
///
/// # Errors
/// As for [`open`]; it does not answer in time.
pub async fn answers(settings: &Settings) -> anyhow::Result<()> {
    if settings.store.kind == StoreKind::Embedded {
        return Ok(());
    }
    let reached = reach(&open(settings)?, STORE_WAIT_MAX).await;
    reached.map_err(cannot_take_over)
}

/// Why a successor ends, and the old process goes on.
pub fn cannot_take_over(error: StoreError) -> anyhow::Error {
    match error {
        StoreError::Unusable(_) => CannotStart(error.to_string()).into(),
        error => anyhow::Error::new(error).context(
            "the store could not be read, so the old process goes on; start this one again, and \
             stop the old one while this one waits if it is to begin from what is kept on disk",
        ),
    }
}

/// Between two attempts to reach the store at a start.
const REACH_EVERY: Duration = Duration::from_millis(250);

/// Waits until the store answers, and says what it waits for: whoever started this process sees at
/// once what is wrong.
///
/// # Errors
/// What the store said last, after `wait`, or as soon as no wait can help
/// ([`StoreError::Unusable`]).
pub async fn reach(store: &Arc<dyn Store>, wait: Duration) -> Result<(), StoreError> {
    let (begun, wait_s) = (Instant::now(), wait.as_secs());
    let (until, mut tell) = (begun + wait, begun);
    loop {
        let error = match store.get(&keys::head(SYSTEM_ORG)).await {
            Ok(_) if tell == begun => return Ok(()),
            Ok(_) => {
                info!("the store is reached");
                return Ok(());
            }
            Err(error) => error,
        };
        let now = Instant::now();
        let next = now + REACH_EVERY;
        if matches!(error, StoreError::Unusable(_)) || next >= until {
            return Err(error);
        }
        if tell == begun {
            warn!(wait_s, "waiting {wait_s} s at most for the store: {error}");
            tell = begun + TELL_EVERY;
        } else if now >= tell {
            let waited_s = now.duration_since(begun).as_secs();
            warn!(
                waited_s,
                "the store does not answer after {waited_s} s: {error}"
            );
            tell = now + TELL_EVERY;
        }
        tokio::time::sleep_until(next).await;
    }
}

/// Why a process that has nothing else to serve from ends: what only a person can mend is a fault
/// of settings; for the rest its service manager starts it again.
pub fn cannot_begin(error: StoreError) -> anyhow::Error {
    match error {
        StoreError::Unusable(_) => CannotStart(error.to_string()).into(),
        error => anyhow::Error::new(error).context(
            "the store cannot be reached, and nothing is kept on disk to start from; start again \
             when it can",
        ),
    }
}

/// The authorities of a PEM file.
fn authorities(path: &Path) -> anyhow::Result<String> {
    let faulty = |reason: &dyn std::fmt::Display| {
        CannotStart(format!("`store.ca_file` {}: {reason}", path.display()))
    };
    let text = std::fs::read_to_string(path).map_err(|error| faulty(&error))?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
    match found.map_err(|error| faulty(&error))?.is_empty() {
        true => Err(faulty(&"it holds no certificate in PEM").into()),
        false => Ok(text),
    }
}

fn etcd(settings: &StoreSettings) -> anyhow::Result<EtcdOptions> {
    let read = |key: &str, path: &Path| -> anyhow::Result<String> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| CannotStart(format!("`store.{key}` {}: {error}", path.display())))?;
        Ok(text)
    };
    let mut options = EtcdOptions::new(&settings.endpoints);
    options.prefix.clone_from(&settings.prefix);
    options.user = match (&settings.username, &settings.password_file) {
        (Some(name), Some(file)) => {
            let password = read("password_file", file)?.trim_end().to_owned();
            own_secrets::keep(&password);
            let name = name.clone();
            Some(EtcdUser { name, password })
        }
        (None, None) => None,
        _ => {
            let why = "`store.username` and `store.password_file` are given together";
            return Err(CannotStart(why.into()).into());
        }
    };
    let identity_pem = match (&settings.cert_file, &settings.key_file) {
        (Some(cert), Some(key)) => {
            certificate_files::check("store", cert, key)?;
            Some((read("cert_file", cert)?, read("key_file", key)?))
        }
        (None, None) => None,
        _ => {
            let why = "`store.cert_file` and `store.key_file` are given together";
            return Err(CannotStart(why.into()).into());
        }
    };
    options.tls = match &settings.ca_file {
        Some(file) => Some(EtcdTls {
            ca_pem: authorities(file)?,
            identity_pem,
            server_name: settings.server_name.clone(),
        }),
        None if identity_pem.is_some() => {
            let why = "`store.cert_file` needs `store.ca_file`: without it there is no TLS";
            return Err(CannotStart(why.into()).into());
        }
        None => None,
    };
    Ok(options)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backup_is_not_put_into_a_folder_that_is_not_there() {
        let dir = tempfile::tempdir().unwrap();
        let backup = dir.path().join("backup");
        std::fs::write(&backup, "").unwrap();
        for (name, words) in [("mistyped", "No such file"), ("backup", "it is no folder")] {
            let data_dir = dir.path().join(name);
            let args = RestoreArgs {
                backup: Some(backup.clone()),
                data_dir: data_dir.clone(),
                output: Output::Text,
            };
            let said = restore(&args).unwrap_err();
            assert!(said.is::<CannotStart>(), "{said}");
            assert!(said.to_string().contains(words), "{said}");
            assert!(!data_dir.is_dir());
        }
    }
}
