//! Which form each command answers in, and so fails in.

use super::{Command, ConfigCommand, FileFormat, LinkCommand, Output, RecordOutput, TraceOutput};

impl Command {
    /// The form of its answer, and so of its failure.
    pub fn output(&self) -> Output {
        match self {
            Self::Dev(args) => args.node.output,
            Self::Standalone(args) | Self::Control(args) => args.node.output,
            Self::Node(args) => args.node.output,
            Self::Keyring(command) => command.output(),
            Self::Link(LinkCommand::Authority(args)) => args.output,
            Self::Link(LinkCommand::Issue(args)) => args.output,
            Self::Add(args) => args.output,
            Self::Apply(args) => args.output,
            Self::Changes(args) => args.output,
            Self::Test(args) => args.output,
            Self::Recover(args) => args.output,
            Self::Meters(args) => args.output(),
            Self::Restore(args) => args.output,
            Self::Raise(args) => args.output,
            Self::List(args) => args.output,
            Self::Get(args) => args.output,
            Self::Create(args) => args.output,
            Self::Set(args) => args.output,
            Self::Delete(args) => args.output,
            Self::Rotate(args) => args.output,
            Self::Health(args) => args.output,
            Self::Regions(args) => args.output(),
            Self::Replication(args) => args.output,
            Self::Unmatched(args) => args.output,
            Self::Export(args) => match args.output {
                FileFormat::Json => Output::Json,
                FileFormat::Yaml => Output::Text,
            },
            Self::Explain(args) => args.output,
            Self::SuggestRules(args) => args.output,
            Self::Records(args) => match args.output {
                RecordOutput::Text => Output::Text,
                RecordOutput::Json | RecordOutput::Ndjson => Output::Json,
            },
            Self::Record(args) => args.output,
            Self::Tail(args) => args.output,
            Self::Trace(args) => match args.output {
                TraceOutput::Text => Output::Text,
                TraceOutput::Json | TraceOutput::Otlp => Output::Json,
            },
            Self::Top(args) => args.output,
            Self::Telemetry(args) => args.output,
            Self::Audit(args) => args.output(),
            Self::Nodes(args) => args.output,
            Self::Versions(args) => args.output,
            Self::Diff(args) => args.output,
            Self::Rollback(args) => args.output,
            Self::Openapi => Output::Json,
            Self::Config(ConfigCommand::Reference) | Self::Completions(_) => Output::Text,
            Self::Config(ConfigCommand::Check(args)) => args.output,
        }
    }
}
