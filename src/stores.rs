//! Opens the store that the settings name.

use std::path::Path;
use std::sync::Arc;

use proto::store::Store;
use proto::store::embedded::Embedded;
use proto::store::etcd::{Etcd, EtcdOptions, EtcdTls, EtcdUser};

use crate::serve::CannotStart;
use crate::settings::{Settings, StoreKind, StoreSettings};

/// Opens the store; etcd need not be reachable yet.
///
/// # Errors
/// [`CannotStart`]: the file cannot be used, or a setting of etcd is faulty.
pub fn open(settings: &Settings) -> anyhow::Result<Arc<dyn Store>> {
    match settings.store.kind {
        StoreKind::Embedded => {
            let file = settings.data_dir.join("store.sqlite");
            let store = Embedded::open(&file).map_err(|error| CannotStart(error.to_string()))?;
            Ok(store)
        }
        StoreKind::Etcd => {
            let options = etcd(&settings.store)?;
            let opened = Etcd::open(options);
            let store = opened.map_err(|error| CannotStart(format!("`store`: {error}")))?;
            Ok(store)
        }
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
        (Some(name), Some(file)) => Some(EtcdUser {
            name: name.clone(),
            password: read("password_file", file)?.trim_end().to_owned(),
        }),
        (None, None) => None,
        _ => {
            let why = "`store.username` and `store.password_file` are given together";
            return Err(CannotStart(why.into()).into());
        }
    };
    let identity_pem = match (&settings.cert_file, &settings.key_file) {
        (Some(cert), Some(key)) => Some((read("cert_file", cert)?, read("key_file", key)?)),
        (None, None) => None,
        _ => {
            let why = "`store.cert_file` and `store.key_file` are given together";
            return Err(CannotStart(why.into()).into());
        }
    };
    options.tls = match &settings.ca_file {
        Some(file) => Some(EtcdTls {
            ca_pem: read("ca_file", file)?,
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
