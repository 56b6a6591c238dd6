//! The stages of the pipeline, and the time that each took of a request.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The time that one stage took.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StageTime {
    /// Which stage.
    pub stage: Stage,
    /// Microseconds.
    pub us: u32,
}

/// The stages of the pipeline, in the order in which a request meets them.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Takes a permit and finds the proxy.
    Receive,
    /// Proves the caller.
    Authenticate,
    /// Judges the rules.
    Authorize,
    /// Spends tokens.
    Limit,
    /// Readies the request for the target.
    Prepare,
    /// Adds the target credential.
    Inject,
    /// Talks to the target.
    Forward,
    /// Filters the answer.
    Filter,
    /// Settles meters and writes this record.
    Record,
    /// Answers the caller.
    Respond,
}

impl Stage {
    /// Every stage in order.
    pub const ALL: [Self; 10] = [
        Self::Receive,
        Self::Authenticate,
        Self::Authorize,
        Self::Limit,
        Self::Prepare,
        Self::Inject,
        Self::Forward,
        Self::Filter,
        Self::Record,
        Self::Respond,
    ];

    /// Its name: of its file, its span and its metrics, and in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Receive => "receive",
            Self::Authenticate => "authenticate",
            Self::Authorize => "authorize",
            Self::Limit => "limit",
            Self::Prepare => "prepare",
            Self::Inject => "inject",
            Self::Forward => "forward",
            Self::Filter => "filter",
            Self::Record => "record",
            Self::Respond => "respond",
        }
    }
}
