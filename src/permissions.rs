//! What the operator lets tenants ask for: settings of the installation, the same on nodes and
//! control planes.

use std::time::Duration;

use proto::policy::{Policy, TlsException};
use serde::{Deserialize, Serialize};

use crate::settings::Settings;

/// How targets are reached.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EgressSettings {
    /// Hosts whose targets may have `tls.ca`, and `tls.insecure` where `policy.allow_insecure_tls`
    /// is set.
    pub tls_exceptions: Vec<TlsException>,
}

/// What tenants may ask for at all.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PolicySettings {
    /// Targets may be plain HTTP.
    pub allow_http: bool,
    /// Targets at hosts of `egress.tls_exceptions` may switch certificate verification off.
    pub allow_insecure_tls: bool,
    /// How long a proxy still answers to an alias that it had before, in seconds.
    pub alias_grace_s: u64,
}

impl Default for PolicySettings {
    fn default() -> Self {
        Self {
            allow_http: false,
            allow_insecure_tls: false,
            alias_grace_s: 86_400,
        }
    }
}

/// The settings as what objects are judged by.
pub fn policy(settings: &Settings) -> Policy {
    Policy {
        allow_http: settings.policy.allow_http,
        allow_insecure_tls: settings.policy.allow_insecure_tls,
        tls_exceptions: settings.egress.tls_exceptions.clone(),
        alias_grace: Duration::from_secs(settings.policy.alias_grace_s),
        regions: regions(settings),
        content_by_region: settings.regions.content_by_region,
    }
}

fn regions(settings: &Settings) -> Vec<String> {
    let peers = settings.regions.peers.iter().map(|peer| peer.name.clone());
    std::iter::once(settings.region.clone())
        .chain(peers)
        .collect()
}
