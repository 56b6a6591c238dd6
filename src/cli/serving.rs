//! Arguments of the commands that serve, and of the one that looks whether they could.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;

use super::Output;
use crate::handover::Role;

/// Arguments of `dev`.
#[derive(Debug, Args)]
pub struct DevArgs {
    /// Address that callers connect to; port 0 takes a free one.
    #[arg(long, value_parser = crate::setting_faults::socket)]
    pub gateway: Option<SocketAddr>,
    /// Address of the REST API; port 0 takes a free one.
    #[arg(long, value_parser = crate::setting_faults::socket)]
    pub control: Option<SocketAddr>,
    /// Folder for configuration, records and keys.
    #[arg(long)]
    pub data_dir: Option<PathBuf>,
    /// Those of every process that serves.
    #[command(flatten)]
    pub node: NodeArgs,
}

/// Arguments of `standalone` and `control`.
#[derive(Debug, Args)]
pub struct RoleArgs {
    /// Listen on a control address that is not loopback although there is no TLS.
    #[arg(long)]
    pub insecure_control: bool,
    /// Those of every process that serves.
    #[command(flatten)]
    pub node: NodeArgs,
}

/// Arguments of `node`.
#[derive(Debug, Args)]
pub struct NodeRoleArgs {
    /// Means nothing: it has no REST API. Taken for one release, for units that have it.
    #[arg(long, hide = true)]
    pub insecure_control: bool,
    /// Those of every process that serves.
    #[command(flatten)]
    pub node: NodeArgs,
}

/// Arguments of every process that serves.
#[derive(Debug, Args)]
pub struct NodeArgs {
    /// A TOML file with settings.
    #[arg(long)]
    pub config: Option<PathBuf>,
    /// Replace the process of this command that runs on the same data folder: take its listening
    /// sockets, let it end, and serve. No connection is refused. Without such a process, start as
    /// usual.
    #[arg(long)]
    pub take_over: bool,
    /// How to say what was started.
    #[arg(long, value_enum, default_value_t)]
    pub output: Output,
}

/// Arguments of `config check`.
#[derive(Debug, Args)]
pub struct ConfigCheckArgs {
    /// The TOML file. The environment counts too, as it does at a start.
    pub file: PathBuf,
    /// The command that is to run with it.
    #[arg(long, value_enum)]
    pub role: Role,
    /// How to say that it could.
    #[arg(long, value_enum, default_value_t)]
    pub output: Output,
}
