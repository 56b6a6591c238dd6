//! How commands reach a control plane.

use std::path::PathBuf;

use clap::Args;

/// The organisation that is meant where none is named.
pub const DEFAULT_ORG: &str = "default";

/// Where a client command finds the control plane.
#[derive(Debug, Args)]
pub struct ControlArgs {
    /// Base URL of the control plane.
    #[arg(
        long = "control",
        env = "REQUESTROCKET_CONTROL_URL",
        default_value = "http://127.0.0.1:8081"
    )]
    pub control_url: String,
    /// PEM file with the authorities of an `https` control plane's certificate, instead of the
    /// system's.
    #[arg(long, env = "REQUESTROCKET_CA_FILE")]
    pub ca_file: Option<PathBuf>,
    /// API token; better given in the environment than as an argument.
    #[arg(long, env = "REQUESTROCKET_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// Organisation, by slug or id.
    #[arg(long, env = "REQUESTROCKET_ORG", default_value = DEFAULT_ORG)]
    pub org: String,
}
