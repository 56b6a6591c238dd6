//! What a process looks through before it asks the one that it replaces to end: everything that
//! could keep it from starting and that can be told while another one has the data folder, but for
//! whether etcd can be reached (`stores::answers`). A successor that finds a fault leaves things as
//! they are.
//!
//! Nothing here is kept: a start reads it all again, where the same functions refuse it.

use std::net::SocketAddr;

use ::control::archive::Archive;
use proto::seal::PublicKeyring;

use crate::serve::CannotStart;
use crate::settings::Settings;
use crate::{
    bootstrap, certificate_files, data_plane, keyrings, link_tls, otlp, record_store, regions,
    stores,
};

/// What a control plane is made of.
///
/// # Errors
/// [`CannotStart`]: a setting or a file cannot be used.
pub fn of_control(settings: &Settings, keys: &PublicKeyring) -> anyhow::Result<()> {
    let regions = regions::open(settings, keys)?;
    if let Some(regions) = &regions {
        regions::trust(regions)?;
    }
    if regions.is_some() || settings.link.listen.is_some() {
        link_tls::check(&settings.link)?;
    }
    of_either(settings, keys)
}

/// What a process is made of that is both; `own` are the addresses of its listeners.
///
/// # Errors
/// As for [`of_control`].
pub fn of_single(
    settings: &Settings,
    keys: &PublicKeyring,
    own: Vec<SocketAddr>,
) -> anyhow::Result<()> {
    of_data_plane(settings, own)?;
    of_either(settings, keys)
}

/// What a node is made of; `own` are the addresses of its listeners.
///
/// # Errors
/// As for [`of_control`].
pub fn of_node(settings: &Settings, own: Vec<SocketAddr>) -> anyhow::Result<()> {
    link_tls::check(&settings.link)?;
    of_data_plane(settings, own)?;
    otlp::metrics::check(settings).map_err(|error| CannotStart(format!("{error:#}")))?;
    stores::check(settings)
}

fn of_data_plane(settings: &Settings, own: Vec<SocketAddr>) -> anyhow::Result<()> {
    certificate_files::check_listener("gateway", &settings.gateway.tls)?;
    let checked = node::gateway::check(&settings.gateway);
    checked.map_err(|error| CannotStart(format!("gateway settings: {error}")))?;
    data_plane::check(settings, own)
}

fn of_either(settings: &Settings, keys: &PublicKeyring) -> anyhow::Result<()> {
    certificate_files::check_listener("control", &settings.control.tls)?;
    bootstrap::operator_token(&settings.control)?;
    keyrings::signing(settings, keys)?;
    otlp::metrics::check(settings).map_err(|error| CannotStart(format!("{error:#}")))?;
    record_store::check(settings)?;
    stores::check(settings)?;
    Archive::check(&stores::archive_file(settings)).map_err(stores::archive_unusable)
}
