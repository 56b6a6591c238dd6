//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::client::regions::RegionsArgs;
use crate::keyrings::KeyringCommand;

/// An outbound API gateway: callers hold a proxy credential, targets see a target credential.
#[derive(Debug, Parser)]
#[command(name = "requestrocket", version, propagate_version = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run gateway and control plane on this machine, with an echo target and a demo proxy.
    Dev(DevArgs),
    /// Run gateway and control plane on this machine, for production.
    Standalone(RoleArgs),
    /// Run a node of a cluster: the gateway alone, configured through etcd.
    Node(NodeArgs),
    /// Run a control plane of a cluster: the REST API alone, over etcd.
    Control(RoleArgs),
    /// Make the keys of a region.
    #[command(subcommand)]
    Keyring(KeyringCommand),
    /// Make certificates for the connection between nodes and control planes.
    #[command(subcommand)]
    Link(LinkCommand),
    /// Make target, credentials and proxy for an API, and print what to paste.
    Add(AddArgs),
    /// Make an organisation's configuration what a file says, as one version.
    Apply(ApplyArgs),
    /// Print an organisation's configuration as a file for `apply`, without secrets.
    Export(ExportArgs),
    /// Say what would become of a request, or of a proxy's last ones, and why; nothing is sent.
    Explain(ExplainArgs),
    /// List who changed what, when and from where, newest first.
    Audit(AuditArgs),
    /// List the nodes of the region, with what each serves.
    Nodes(NodesArgs),
    /// List the regions, with how far replication has come.
    Regions(RegionsArgs),
    /// List the versions of an organisation's configuration, newest first.
    Versions(VersionsArgs),
    /// Show what a version changed.
    Diff(DiffArgs),
    /// Publish a version with the content of an earlier one; secrets and tokens stay as they are.
    Rollback(RollbackArgs),
    /// Show settings.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Print the OpenAPI description of the control plane.
    Openapi,
}

/// Arguments of `dev`.
#[derive(Debug, Args)]
pub struct DevArgs {
    /// Address that callers connect to; port 0 takes a free one.
    #[arg(long)]
    pub gateway: Option<SocketAddr>,
    /// Address of the REST API; port 0 takes a free one.
    #[arg(long)]
    pub control: Option<SocketAddr>,
    /// Folder for configuration, records and keys.
    #[arg(long)]
    pub data_dir: Option<PathBuf>,
    /// A TOML file with settings.
    #[arg(long)]
    pub config: Option<PathBuf>,
    /// How to say what was started.
    #[arg(long, value_enum, default_value_t)]
    pub output: Output,
}

/// Arguments of `standalone`, `node` and `control`.
#[derive(Debug, Args)]
pub struct RoleArgs {
    /// A TOML file with settings.
    #[arg(long)]
    pub config: Option<PathBuf>,
    /// Listen on a control address that is not loopback although there is no TLS.
    #[arg(long)]
    pub insecure_control: bool,
    /// How to say what was started.
    #[arg(long, value_enum, default_value_t)]
    pub output: Output,
}

/// Arguments of `node`.
#[derive(Debug, Args)]
pub struct NodeArgs {
    /// Those of every role.
    #[command(flatten)]
    pub role: RoleArgs,
    /// Replace the node that runs on the same data folder: take its listening sockets, serve, and
    /// let it drain and end. No connection is refused. Without such a node, start as usual.
    #[arg(long)]
    pub take_over: bool,
}

/// The commands about certificates.
#[derive(Debug, Subcommand)]
pub enum LinkCommand {
    /// Make an authority: ca.pem and ca-key.pem.
    Authority(LinkAuthorityArgs),
    /// Issue a certificate: NAME.pem and NAME-key.pem.
    Issue(LinkIssueArgs),
}

/// Arguments of `link authority`.
#[derive(Debug, Args)]
pub struct LinkAuthorityArgs {
    /// Folder for the files.
    #[arg(long, default_value = ".")]
    pub dir: PathBuf,
}

/// Arguments of `link issue`.
#[derive(Debug, Args)]
pub struct LinkIssueArgs {
    /// A node's `node_name`, or the host name or address under which nodes reach a control plane.
    pub name: String,
    /// Folder with the authority's files, and for the new ones.
    #[arg(long, default_value = ".")]
    pub dir: PathBuf,
    /// How long the certificate is valid, in days.
    #[arg(long, default_value_t = 397)]
    pub days: u64,
}

/// The form of a command's answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    #[default]
    Text,
    /// One JSON object on one line.
    Json,
}

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
    /// API token; better given in the environment than as an argument.
    #[arg(long, env = "REQUESTROCKET_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// Organisation, by slug or id.
    #[arg(long, env = "REQUESTROCKET_ORG", default_value = "default")]
    pub org: String,
}

/// Arguments of `add`.
#[derive(Debug, Args)]
pub struct AddArgs {
    /// Base URL of the API, such as https://api.openai.com.
    pub base_url: String,
    /// How the API is authenticated to.
    #[arg(long, value_enum, default_value_t)]
    pub auth: AddAuth,
    /// Header for `--auth api-key`.
    #[arg(long)]
    pub header: Option<String>,
    /// Read the API's secret (key, token, or user:password) from standard input.
    #[arg(long, conflicts_with = "secret_file")]
    pub secret_stdin: bool,
    /// Read the API's secret from a file.
    #[arg(long)]
    pub secret_file: Option<PathBuf>,
    /// Short name for the proxy's URL.
    #[arg(long)]
    pub alias: Option<String>,
    /// Allow only this: method and path, as in 'POST /v1/chat/completions'; a path that ends in *
    /// stands for all that begins so. Repeatable.
    #[arg(long, value_name = "METHOD PATH")]
    pub allow: Vec<String>,
    /// Allow only GET and HEAD.
    #[arg(long, conflicts_with = "allow")]
    pub read_only: bool,
    /// Rate limit, as in 60/min or 10000/day. Repeatable.
    #[arg(long, value_name = "N/WINDOW")]
    pub limit: Vec<String>,
    /// Allow a plain http:// URL.
    #[arg(long)]
    pub allow_http: bool,
    /// A network that is not public in which the API may lie. Repeatable.
    #[arg(long, value_name = "CIDR")]
    pub allow_network: Vec<String>,
    /// How to say what was made.
    #[arg(long, value_enum, default_value_t)]
    pub output: Output,
    /// Where the control plane is.
    #[command(flatten)]
    pub control: ControlArgs,
}

/// Arguments of `apply`.
#[derive(Debug, Args)]
pub struct ApplyArgs {
    /// The file, YAML or JSON; `-` for standard input.
    pub file: PathBuf,
    /// Say what would change, and change nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// Delete targets, credentials and proxies that the file does not name.
    #[arg(long)]
    pub prune: bool,
    /// How to show what changed.
    #[arg(long, value_enum, default_value_t)]
    pub output: Output,
    /// Where the control plane is.
    #[command(flatten)]
    pub control: ControlArgs,
}

/// The form of an export.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum FileFormat {
    /// YAML.
    #[default]
    Yaml,
    /// JSON.
    Json,
}

/// Arguments of `export`.
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// The form of the file.
    #[arg(long, value_enum, default_value_t)]
    pub output: FileFormat,
    /// Where the control plane is.
    #[command(flatten)]
    pub control: ControlArgs,
}

/// Arguments of `explain`.
#[derive(Debug, Args)]
pub struct ExplainArgs {
    /// The proxy, by id, alias or name; not with --record.
    pub proxy: Option<String>,
    /// The request's method.
    #[arg(requires = "path")]
    pub method: Option<String>,
    /// The request's path behind the proxy, with its query.
    pub path: Option<String>,
    /// A header field, as in 'content-type: application/json'. Repeatable.
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE")]
    pub headers: Vec<String>,
    /// The request's body.
    #[arg(long, conflicts_with = "body_file")]
    pub body: Option<String>,
    /// A file with the request's body; `-` for standard input.
    #[arg(long)]
    pub body_file: Option<PathBuf>,
    /// The caller's IP address.
    #[arg(long)]
    pub source: Option<String>,
    /// Id of the proxy credential that the caller holds; by default the proxy's first.
    #[arg(long)]
    pub credential: Option<String>,
    /// A request that has been made, by its id.
    #[arg(long, conflicts_with_all = ["proxy", "last"])]
    pub record: Option<String>,
    /// So many of the proxy's last requests.
    #[arg(long, conflicts_with = "method")]
    pub last: Option<u32>,
    /// A file with changes that are not published, `operations` as for the API, YAML or JSON.
    #[arg(long)]
    pub change: Option<PathBuf>,
    /// How to say it.
    #[arg(long, value_enum, default_value_t)]
    pub output: Output,
    /// Where the control plane is.
    #[command(flatten)]
    pub control: ControlArgs,
}

/// Arguments of `audit`.
#[derive(Debug, Args)]
pub struct AuditArgs {
    /// How many versions.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=50))]
    pub limit: u32,
    /// How to show them.
    #[arg(long, value_enum, default_value_t)]
    pub output: Output,
    /// Where the control plane is.
    #[command(flatten)]
    pub control: ControlArgs,
}

/// Arguments of `nodes`.
#[derive(Debug, Args)]
pub struct NodesArgs {
    /// How to show them.
    #[arg(long, value_enum, default_value_t)]
    pub output: Output,
    /// Where the control plane is.
    #[command(flatten)]
    pub control: ControlArgs,
}

/// Arguments of `versions`.
#[derive(Debug, Args)]
pub struct VersionsArgs {
    /// How many.
    #[arg(long, default_value_t = 20)]
    pub limit: u32,
    /// How to show them.
    #[arg(long, value_enum, default_value_t)]
    pub output: Output,
    /// Where the control plane is.
    #[command(flatten)]
    pub control: ControlArgs,
}

/// Arguments of `diff`.
#[derive(Debug, Args)]
pub struct DiffArgs {
    /// Number of the version.
    pub n: u64,
    /// The version to compare with; by default the one before.
    #[arg(long)]
    pub from: Option<u64>,
    /// How to show it.
    #[arg(long, value_enum, default_value_t)]
    pub output: Output,
    /// Where the control plane is.
    #[command(flatten)]
    pub control: ControlArgs,
}

/// Arguments of `rollback`.
#[derive(Debug, Args)]
pub struct RollbackArgs {
    /// Number of the version to return to.
    pub n: u64,
    /// Say what would change, and change nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// How to show it.
    #[arg(long, value_enum, default_value_t)]
    pub output: Output,
    /// Where the control plane is.
    #[command(flatten)]
    pub control: ControlArgs,
}

/// How a target is authenticated to, for `add`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum AddAuth {
    /// `Authorization: Bearer …`.
    #[default]
    Bearer,
    /// A key in a header (`--header`, default `x-api-key`).
    ApiKey,
    /// `Authorization: Basic …`; the secret is `user:password`.
    Basic,
    /// Nothing.
    None,
}

/// The commands about settings.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Print every setting with its default, unit and meaning.
    Reference,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn no_two_arguments_have_one_name() {
        super::Cli::command().debug_assert();
    }
}
