//! Why an organisation is not taken, and whether that is its own affair or one of all.

use std::io;

use proto::id::OrgId;
use proto::store::StoreError;
use proto::store::load::LoadError;
use proto::tree::TreeError;
use proto::wire::replication::Position;

use crate::publish::PublishError;

/// Why versions were not stored. The local head has not moved, or has to a version of home.
#[derive(Debug, thiserror::Error)]
pub(super) enum ApplyError {
    #[error("the store: {0}")]
    Store(#[from] StoreError),
    #[error("the other region: {0}")]
    Link(#[from] io::Error),
    #[error("{org}: {why}")]
    Refused { org: OrgId, why: String },
    #[error("what is stored here cannot be read: {0}")]
    Local(String),
    #[error("content cannot be read: {0}")]
    Content(#[from] TreeError),
    #[error(
        "version {} ({}) of {org} is not taken: {why}; nothing of it was stored", .at.n, .at.hash
    )]
    Unverified {
        org: OrgId,
        at: Position,
        why: String,
    },
    #[error("{0} moved meanwhile, or another control plane replicates")]
    Moved(OrgId),
}

impl ApplyError {
    /// Whether it is of one organisation: others can be taken over the same connection and into the
    /// same store.
    pub fn is_of_one(&self) -> bool {
        match self {
            Self::Refused { .. }
            | Self::Local(_)
            | Self::Content(_)
            | Self::Unverified { .. }
            | Self::Moved(_)
            | Self::Store(StoreError::TooLarge(_) | StoreError::Invalid(_)) => true,
            Self::Store(_) | Self::Link(_) => false,
        }
    }
}

impl From<LoadError> for ApplyError {
    fn from(error: LoadError) -> Self {
        match error {
            LoadError::Store(error) => Self::Store(error),
            error => Self::Local(error.to_string()),
        }
    }
}

impl From<PublishError> for ApplyError {
    fn from(error: PublishError) -> Self {
        match error {
            PublishError::Store(error) => Self::Store(error),
            error => Self::Local(error.to_string()),
        }
    }
}
