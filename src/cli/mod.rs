//! The command line.

mod output;
mod requests;
mod serving;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

pub use requests::{
    ChoiceArgs, ExplainArgs, RecordArgs, RecordOutput, RecordsArgs, SuggestRulesArgs, TailArgs,
    TelemetryArgs, TopArgs, TraceArgs, TraceOutput,
};

pub use serving::{ConfigCheckArgs, DevArgs, NodeRoleArgs, RoleArgs};

pub use crate::client::access::ControlArgs;

use crate::client::add::AddArgs;
use crate::client::completions::CompletionsArgs;
use crate::client::health::HealthArgs;
use crate::client::meters::{MetersArgs, RaiseArgs};
use crate::client::objects::{CreateArgs, DeleteArgs, GetArgs, SetArgs};
use crate::client::recover::RecoverArgs;
use crate::client::regions::RegionsArgs;
use crate::client::replication::ReplicationArgs;
use crate::client::rotating::RotateArgs;
use crate::client::test::TestArgs;
use crate::client::unmatched::UnmatchedArgs;
use crate::keyrings::KeyringCommand;
use crate::stores::RestoreArgs;

/// The name of the binary.
pub const PROGRAM: &str = "requestrocket";

/// An outbound API gateway: callers hold a proxy credential, targets see a target credential.
#[derive(Debug, Parser)]
#[command(name = PROGRAM, version, propagate_version = true)]
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
    Node(NodeRoleArgs),
    /// Run a control plane of a cluster: the REST API alone, over etcd.
    Control(RoleArgs),
    /// Make the keys of a region, and vouch for those of others.
    #[command(subcommand)]
    Keyring(KeyringCommand),
    /// Make certificates for the connection between nodes and control planes.
    #[command(subcommand)]
    Link(LinkCommand),
    /// Make target, credentials and proxy for an API, and print what to paste.
    Add(AddArgs),
    /// List the objects of a kind, with their ids.
    List(crate::client::list::ListArgs),
    /// Show an object with all its fields.
    Get(GetArgs),
    /// Make an object: an organisation, a token, a credential, a rule, ….
    Create(CreateArgs),
    /// Change fields of an object; the others stay.
    Set(SetArgs),
    /// Delete an object, with the rules, filters and meters that hang on it.
    Delete(DeleteArgs),
    /// Give a credential another secret, at once or with an overlap.
    Rotate(RotateArgs),
    /// Make an organisation's configuration what a file says, as one version.
    Apply(ApplyArgs),
    /// Carry out the operations of a file, all or none, as one version.
    Changes(ChangesArgs),
    /// Print an organisation's configuration as a file for `apply`, without secrets.
    Export(ExportArgs),
    /// Say what would become of a request, or of a proxy's last ones, and why; nothing is sent.
    Explain(ExplainArgs),
    /// Make an allow-list of what a proxy was used for, and print it; nothing is changed.
    SuggestRules(SuggestRulesArgs),
    /// Send a request through a proxy, as a caller would, and say what became of it.
    Test(TestArgs),
    /// List requests, newest first; or write them as a file of lines.
    Records(RecordsArgs),
    /// Show the record of one request.
    Record(RecordArgs),
    /// Show requests as they come.
    Tail(TailArgs),
    /// Draw one request: its stages and attempts, how long each took, what each decided.
    Trace(TraceArgs),
    /// Show which proxies, callers, statuses or paths have most requests, errors or time.
    Top(TopArgs),
    /// Count requests, errors, durations and bytes by spans of time.
    Telemetry(TelemetryArgs),
    /// List who did what, when and from where, newest first; or verify that nobody changed that.
    Audit(AuditArgs),
    /// Say whether a process serves, and with an operator's token whether nodes, store and regions
    /// are well. The exit code is 1 if not.
    Health(HealthArgs),
    /// List the nodes of the region, with what each serves.
    Nodes(NodesArgs),
    /// Say what counts after the store was restored from a backup or wiped; without a decision,
    /// show what it lacks.
    Recover(RecoverArgs),
    /// Put a backup of the embedded store in its place, while nothing runs.
    Restore(RestoreArgs),
    /// List attempts that matched no proxy, newest first, with the name that was probably meant.
    Unmatched(UnmatchedArgs),
    /// Show how much of each meter is used now, the most used first; reset or raise one.
    Meters(MetersArgs),
    /// Let a meter give more than its limits for a while, as `meters raise` does.
    Raise(RaiseArgs),
    /// List the regions, with how far replication has come; make another one home.
    Regions(RegionsArgs),
    /// Show how far each region has come with each organisation.
    Replication(ReplicationArgs),
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
    /// Print what a shell needs to complete commands, options and their values.
    Completions(CompletionsArgs),
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
    /// How to say what was made.
    #[arg(long, value_enum, default_value_t)]
    pub output: Output,
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
    #[arg(value_parser = clap::value_parser!(u32).range(1..=3650))]
    pub days: u32,
    /// How to say what was made.
    #[arg(long, value_enum, default_value_t)]
    pub output: Output,
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
    /// The file is of another installation: an `id` that nothing has here gets another one.
    #[arg(long)]
    pub import: bool,
    /// How to show what changed.
    #[arg(long, value_enum, default_value_t)]
    pub output: Output,
    /// Where the control plane is.
    #[command(flatten)]
    pub control: ControlArgs,
}

/// Arguments of `changes`.
#[derive(Debug, Args)]
pub struct ChangesArgs {
    /// The file with `operations`, or a list of them alone, YAML or JSON; `-` for standard input.
    pub file: PathBuf,
    /// Say what would change, and change nothing.
    #[arg(long)]
    pub dry_run: bool,
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

/// Arguments of `audit`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct AuditArgs {
    /// What to do; without it the audit is listed.
    #[command(subcommand)]
    pub action: Option<AuditAction>,
    /// How much to list, how, and where.
    #[command(flatten)]
    pub list: AuditListArgs,
}

impl AuditArgs {
    /// How to show what it does.
    pub fn output(&self) -> Output {
        match &self.action {
            None => self.list.output,
            Some(AuditAction::Verify(args)) => args.output,
        }
    }
}

/// What can be done with the audit.
#[derive(Debug, Subcommand)]
pub enum AuditAction {
    /// Say whether entries and versions are as they were written; the exit code is 1 if not.
    Verify(AuditVerifyArgs),
}

/// Arguments of `audit verify`.
#[derive(Debug, Args)]
pub struct AuditVerifyArgs {
    /// How to show it.
    #[arg(long, value_enum, default_value_t)]
    pub output: Output,
    /// Where the control plane is.
    #[command(flatten)]
    pub control: ControlArgs,
}

/// Arguments of a list of the audit.
#[derive(Debug, Args)]
pub struct AuditListArgs {
    /// How many versions and entries.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=50))]
    pub limit: u32,
    /// Where an earlier list ended, as its last line says.
    #[arg(long)]
    pub cursor: Option<String>,
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
    /// Where an earlier list ended, as its last line says.
    #[arg(long)]
    pub cursor: Option<String>,
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

/// The commands about settings.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Print every setting with its default, unit and meaning.
    Reference,
    /// Say whether a process could start with a file of settings, and what is wrong; nothing is
    /// started or written. The exit code is 2 if not.
    Check(ConfigCheckArgs),
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn no_two_arguments_have_one_name() {
        super::Cli::command().debug_assert();
    }
}
