//! Arguments of the commands that look at requests.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::{ControlArgs, Output};

/// Which requests.
#[derive(Debug, Args)]
pub struct ChoiceArgs {
    /// Through this proxy, by id, alias or name.
    #[arg(long)]
    pub proxy: Option<String>,
    /// With this credential on either side, by id.
    #[arg(long)]
    pub credential: Option<String>,
    /// A status such as 429, or a class such as 5xx.
    #[arg(long)]
    pub status: Option<String>,
    /// The outcome, such as rate-limited.
    #[arg(long)]
    pub code: Option<String>,
    /// The method.
    #[arg(long)]
    pub method: Option<String>,
    /// The path behind the proxy; * stands for anything, as in '/v1/*'.
    #[arg(long)]
    pub path: Option<String>,
    /// The caller's address, or a network in which it lies.
    #[arg(long)]
    pub source: Option<String>,
    /// Any other field, as in node=gw-1 or duration_ms_min=500; the API's description of
    /// `list_records` names them all. Repeatable.
    #[arg(long = "where", value_name = "FIELD=VALUE")]
    pub fields: Vec<String>,
}

/// The form of `records`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum RecordOutput {
    /// For people.
    #[default]
    Text,
    /// One page as one JSON object.
    Json,
    /// Every record as a line of JSON, without a page's bound.
    Ndjson,
}

/// Arguments of `records`.
#[derive(Debug, Args)]
pub struct RecordsArgs {
    /// Which.
    #[command(flatten)]
    pub choice: ChoiceArgs,
    /// Started at or after this instant (RFC 3339), or so long ago, as in 15m or 7d.
    #[arg(long)]
    pub from: Option<String>,
    /// Started before this instant, or so long ago.
    #[arg(long)]
    pub to: Option<String>,
    /// How many; 20 where nothing is said. Not of `--output ndjson`, which writes all.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=500))]
    pub limit: Option<u32>,
    /// Where the page before ended: its `next_cursor`. Not of `--output ndjson`.
    #[arg(long)]
    pub cursor: Option<String>,
    /// Regions that are asked, as in eu,us, or all; by default that of the control plane.
    #[arg(long)]
    pub regions: Option<String>,
    /// How to show them.
    #[arg(long, value_enum, default_value_t)]
    pub output: RecordOutput,
    /// Where the control plane is.
    #[command(flatten)]
    pub control: ControlArgs,
}

/// Arguments of `record`.
#[derive(Debug, Args)]
pub struct RecordArgs {
    /// Id of the request: what its answer had in `requestrocket-request-id`.
    pub id: String,
    /// Regions that are asked where that of the control plane has it not, as in eu,us, or all.
    #[arg(long)]
    pub regions: Option<String>,
    /// How to show it.
    #[arg(long, value_enum, default_value_t)]
    pub output: Output,
    /// Where the control plane is.
    #[command(flatten)]
    pub control: ControlArgs,
}

/// Arguments of `tail`.
#[derive(Debug, Args)]
pub struct TailArgs {
    /// Which.
    #[command(flatten)]
    pub choice: ChoiceArgs,
    /// How many of those that are there already.
    #[arg(short = 'n', long, default_value_t = 10)]
    #[arg(value_parser = clap::value_parser!(u32).range(0..=500))]
    pub lines: u32,
    /// Go on with those that come.
    #[arg(short, long)]
    pub follow: bool,
    /// Regions that are asked, as in eu,us, or all; by default that of the control
    /// plane. Those that come are followed in one region.
    #[arg(long, conflicts_with = "follow")]
    pub regions: Option<String>,
    /// How to show them: JSON is a line each.
    #[arg(long, value_enum, default_value_t)]
    pub output: Output,
    /// Where the control plane is.
    #[command(flatten)]
    pub control: ControlArgs,
}

/// The form of `trace`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum TraceOutput {
    /// A waterfall, for people.
    #[default]
    Text,
    /// The same as JSON.
    Json,
    /// A file for trace viewers: an `ExportTraceServiceRequest` in the JSON form of OTLP.
    Otlp,
}

/// Arguments of `trace`.
#[derive(Debug, Args)]
pub struct TraceArgs {
    /// Id of the request: what its answer had in `requestrocket-request-id`.
    pub id: String,
    /// Regions that are asked where that of the control plane has it not, as in eu,us, or all.
    #[arg(long)]
    pub regions: Option<String>,
    /// How to show it.
    #[arg(long, value_enum, default_value_t)]
    pub output: TraceOutput,
    /// Where the control plane is.
    #[command(flatten)]
    pub control: ControlArgs,
}

/// Arguments of `top`.
#[derive(Debug, Args)]
pub struct TopArgs {
    /// What requests are grouped by: proxy, proxy_credential, target_credential, status, code,
    /// node, version, method, path, source, user_agent, upstream_status or auth_failure.
    #[arg(long, default_value = "proxy")]
    pub by: String,
    /// What the first has most of: count, errors, error_rate, refused, p99, response_bytes or
    /// request_bytes.
    #[arg(long, default_value = "count")]
    pub order: String,
    /// How many.
    #[arg(long, default_value_t = 10)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub limit: u32,
    /// Started at or after this instant (RFC 3339), or so long ago.
    #[arg(long, default_value = "1h")]
    pub from: String,
    /// Started before this instant, or so long ago.
    #[arg(long)]
    pub to: Option<String>,
    /// Which requests.
    #[command(flatten)]
    pub choice: ChoiceArgs,
    /// Regions that are asked, as in eu,us, or all; by default that of the control plane.
    #[arg(long)]
    pub regions: Option<String>,
    /// How to show them.
    #[arg(long, value_enum, default_value_t)]
    pub output: Output,
    /// Where the control plane is.
    #[command(flatten)]
    pub control: ControlArgs,
}

/// Arguments of `telemetry`.
#[derive(Debug, Args)]
pub struct TelemetryArgs {
    /// Length of a span, such as 1m, 1h or 1d.
    #[arg(long, default_value = "5m")]
    pub bucket: String,
    /// Started at or after this instant (RFC 3339), or so long ago.
    #[arg(long, default_value = "1h")]
    pub from: String,
    /// Started before this instant, or so long ago.
    #[arg(long)]
    pub to: Option<String>,
    /// Which requests.
    #[command(flatten)]
    pub choice: ChoiceArgs,
    /// Regions that are asked, as in eu,us, or all; by default that of the control plane.
    #[arg(long)]
    pub regions: Option<String>,
    /// How to show them.
    #[arg(long, value_enum, default_value_t)]
    pub output: Output,
    /// Where the control plane is.
    #[command(flatten)]
    pub control: ControlArgs,
}

/// Arguments of `suggest-rules`.
#[derive(Debug, Args)]
pub struct SuggestRulesArgs {
    /// The proxy, by id, alias or name.
    pub proxy: String,
    /// Made of requests that started at or after this instant (RFC 3339), or so long ago.
    #[arg(long, default_value = "7d")]
    pub from: String,
    /// That started before this instant, or so long ago.
    #[arg(long)]
    pub to: Option<String>,
    /// Rules in force, and the proxy's default_rule_effect: deny; without it they are in shadow
    /// mode, recorded and denying nothing.
    #[arg(long)]
    pub enforce: bool,
    /// How to show them: JSON is the file for `changes`, and for `explain --change`.
    #[arg(long, value_enum, default_value_t)]
    pub output: Output,
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
    /// A file with changes that are not published, as for `changes`, YAML or JSON.
    #[arg(long)]
    pub change: Option<PathBuf>,
    /// How to say it.
    #[arg(long, value_enum, default_value_t)]
    pub output: Output,
    /// Where the control plane is.
    #[command(flatten)]
    pub control: ControlArgs,
}
