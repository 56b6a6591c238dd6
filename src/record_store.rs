//! Opens the store of records that the settings name.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ::control::records::clickhouse::ClickHouseSettings;
use ::control::records::{Records, RecordsError};
use ::control::regions::is_loopback;
use rustls::ClientConfig;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls_platform_verifier::ConfigVerifierExt;
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;
use tracing::warn;
use url::Url;
use zeroize::Zeroizing;

use crate::own_secrets;
use crate::serve::{self, CannotStart};
use crate::settings::Settings;

/// Longest time that records are gathered, in milliseconds: a node waits 30 s for its batch.
const GATHER_MS_MAX: u64 = 5_000;
/// Most days that records are kept where a calendar keeps them: some hundred years.
const DAYS_MAX: u32 = 36_500;

/// Records of requests.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RecordsSettings {
    /// `node`: whether requests leave records.
    pub enabled: bool,
    /// Where control planes keep records.
    pub store: RecordStoreKind,
    /// How long records are kept, in days.
    pub retention_days: u32,
    /// Most bytes of records that are kept; beyond them the oldest go, in SQLite of organisations
    /// with more than an equal share.
    pub retention_bytes: u64,
    /// Most bytes of records that a node keeps on disk while no control plane takes them.
    pub spool_bytes: u64,
    /// The ClickHouse of `store = "clickhouse"`.
    pub clickhouse: ClickHouseKeys,
}

impl Default for RecordsSettings {
    fn default() -> Self {
        Self {
            enabled: true,
            store: RecordStoreKind::Sqlite,
            retention_days: 90,
            retention_bytes: 10 * 1024 * 1024 * 1024,
            spool_bytes: 256 * 1024 * 1024,
            clickhouse: ClickHouseKeys::default(),
        }
    }
}

/// Where control planes keep records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RecordStoreKind {
    /// Files of the control plane's machine.
    #[default]
    Sqlite,
    /// A ClickHouse that all control planes share.
    Clickhouse,
}

/// Where ClickHouse is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClickHouseKeys {
    /// Its HTTP interface, as in `https://clickhouse:8443`.
    pub url: Option<String>,
    /// The user.
    pub user: String,
    /// A file with the user's password.
    pub password_file: Option<PathBuf>,
    /// The database; made where it is missing.
    pub database: String,
    /// A PEM file with the authorities of its certificate; those of the system when absent.
    pub ca_file: Option<PathBuf>,
    /// How long records of all nodes are gathered before they are written, in milliseconds.
    pub gather_ms: u64,
}

impl Default for ClickHouseKeys {
    fn default() -> Self {
        Self {
            url: None,
            user: "default".into(),
            password_file: None,
            database: "requestrocket".into(),
            ca_file: None,
            gather_ms: 200,
        }
    }
}

/// Opens the store; ClickHouse need not be reachable yet, and is talked to on `runtime`.
///
/// # Errors
/// [`CannotStart`]: the file cannot be used, or a setting of ClickHouse is faulty.
pub fn open(settings: &Settings, runtime: &Handle) -> anyhow::Result<Arc<Records>> {
    let records = match plan(&settings.records)? {
        Some(clickhouse) => Records::in_clickhouse(clickhouse, runtime.clone()),
        None => Records::open(&file(settings)).map_err(unusable)?,
    };
    Ok(Arc::new(records))
}

/// Looks whether the store could be opened, while another process has it.
///
/// # Errors
/// As for [`open`].
pub fn check(settings: &Settings) -> anyhow::Result<()> {
    match plan(&settings.records)? {
        Some(_) => Ok(()),
        None => Records::check(&file(settings)).map_err(unusable),
    }
}

/// The ClickHouse of the settings; none where records are kept in a file.
fn plan(given: &RecordsSettings) -> anyhow::Result<Option<ClickHouseSettings>> {
    match given.store {
        RecordStoreKind::Sqlite if given.clickhouse != ClickHouseKeys::default() => {
            refused("`records.clickhouse` counts only with `records.store = \"clickhouse\"`")
        }
        RecordStoreKind::Sqlite => Ok(None),
        RecordStoreKind::Clickhouse => {
            clickhouse(&given.clickhouse, given.retention_days).map(Some)
        }
    }
}

fn file(settings: &Settings) -> PathBuf {
    settings.data_dir.join("records.sqlite")
}

fn unusable(error: RecordsError) -> anyhow::Error {
    serve::unusable(format!("the records file: {error}"), error.is_of_disk())
}

fn clickhouse(given: &ClickHouseKeys, days: u32) -> anyhow::Result<ClickHouseSettings> {
    let Some(url) = &given.url else {
        return refused("`records.store = \"clickhouse\"` needs `records.clickhouse.url`");
    };
    let url = address(url)?;
    let name = &given.database;
    let is_name = |name: &str| {
        let first = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        first && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    };
    if !is_name(name) {
        let why = "is no name of letters, digits and `_`";
        return refused(&format!("`records.clickhouse.database` `{name}` {why}"));
    }
    if given.gather_ms > GATHER_MS_MAX {
        let why = format!("`records.clickhouse.gather_ms` may be {GATHER_MS_MAX} at most");
        return refused(&why);
    }
    if !(1..=DAYS_MAX).contains(&days) {
        let why = "with ClickHouse `records.retention_days` must be 1 to";
        return refused(&format!("{why} {DAYS_MAX}"));
    }
    let password = match &given.password_file {
        Some(file) => {
            let text = Zeroizing::new(String::from_utf8(read("password_file", file)?).map_err(
                |_| CannotStart("`records.clickhouse.password_file` is no text".into()),
            )?);
            own_secrets::keep(text.trim_end());
            Zeroizing::new(text.trim_end().to_owned())
        }
        None => Zeroizing::default(),
    };
    let is_encrypted = url.scheme() == "https";
    if !is_encrypted && !is_loopback(&url) && !password.is_empty() {
        warn!("`records.clickhouse.url` is not https: password and records cross the network open");
    }
    let tls = match &given.ca_file {
        Some(_) if !is_encrypted => {
            return refused("`records.clickhouse.ca_file` counts only with an `https` URL");
        }
        Some(file) => trusting(file)?,
        None => ClientConfig::with_platform_verifier()
            .map_err(|error| CannotStart(format!("the system's authorities: {error}")))?,
    };
    Ok(ClickHouseSettings {
        url,
        user: given.user.clone(),
        password,
        database: name.clone(),
        tls: Arc::new(tls),
        gather: Duration::from_millis(given.gather_ms),
        days,
    })
}

fn address(text: &str) -> anyhow::Result<Url> {
    // The text may hold a password: it is not repeated.
    let Ok(url) = text.parse::<Url>() else {
        return refused("`records.clickhouse.url` is no URL such as https://clickhouse:8443");
    };
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
        return refused("`records.clickhouse.url` must begin with https:// or http:// and a host");
    }
    if !url.username().is_empty() || url.password().is_some() || url.query().is_some() {
        let why = "`records.clickhouse.url` holds no user, password or parameters";
        return refused(&format!(
            "{why}; see `user`, `password_file` and `database`"
        ));
    }
    Ok(url)
}

fn trusting(file: &Path) -> anyhow::Result<ClientConfig> {
    let faulty = |why: String| CannotStart(format!("`records.clickhouse.ca_file`: {why}"));
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&read("ca_file", file)?) {
        let certificate = certificate.map_err(|error| faulty(error.to_string()))?;
        let added = roots.add(certificate);
        added.map_err(|error| faulty(error.to_string()))?;
    }
    if roots.is_empty() {
        return Err(faulty("there is no certificate in it".into()).into());
    }
    Ok(ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth())
}

fn read(key: &str, file: &Path) -> anyhow::Result<Vec<u8>> {
    let content = std::fs::read(file).map_err(|error| {
        let file = file.display();
        CannotStart(format!("`records.clickhouse.{key}` {file}: {error}"))
    })?;
    Ok(content)
}

fn refused<T>(why: &str) -> anyhow::Result<T> {
    Err(CannotStart(why.into()).into())
}
