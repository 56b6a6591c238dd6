//! Why a publish led to nothing.

use proto::id::OrgId;
use proto::seal::SealError;
use proto::store::StoreError;
use proto::store::facts::{RaiseError, UnreadableFact};
use proto::tree::{ApplyError, Hash, TreeError};

/// Why a publish led to nothing.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The operations cannot be applied (403, 404, 409, 412, 413, 422).
    #[error(transparent)]
    Refused(#[from] ApplyError),
    /// There is no such organisation (404).
    #[error("organisation {0} does not exist")]
    OrgUnknown(OrgId),
    /// The `Idempotency-Key` was used for another request (422).
    #[error("this idempotency key was used for another request")]
    KeyReused,
    /// Too many publishes of this organisation wait already (503).
    #[error("too many publishes of this organisation wait")]
    Overloaded,
    /// The newest version is not the one that was to be followed. Nothing was done.
    #[error("another version was published meanwhile")]
    Moved,
    /// The deadline passed while others published (503). Nothing was done.
    #[error("others published until the deadline passed")]
    Contended,
    /// The store took the version or did not; it could not be asked before the deadline (503).
    #[error("whether version {n} was stored could not be found out")]
    OutcomeUnknown {
        /// The version's number.
        n: u64,
        /// Its hash.
        hash: Hash,
    },
    /// The store was restored or wiped: what it holds does not descend from what was seen (503).
    #[error("the store holds version {found} of {org}, but version {seen} was seen before")]
    Regressed {
        /// The organisation.
        org: OrgId,
        /// The version seen before.
        seen: u64,
        /// The version found now.
        found: u64,
    },
    /// Somebody serves what the store does not hold: it was restored or wiped (503).
    #[error("the store holds version {n} of {org}, but {witness} has a version that is not in it")]
    Behind {
        /// The organisation.
        org: OrgId,
        /// The version in the store.
        n: u64,
        /// Who has more, in words.
        witness: String,
    },
    /// Versions of the organisation are made in another region, or are to be (503). Nothing was
    /// done.
    #[error("versions of {org} are made in region {home}")]
    NotHome {
        /// The organisation.
        org: OrgId,
        /// The region.
        home: String,
    },
    /// An organisation is deleted in the home of `system`, and its own home is another region
    /// (409). Nothing was done.
    #[error(
        "home of {org} is region {home}, and that of `system`, which deletes organisations, is \
         region {system}"
    )]
    HomeElsewhere {
        /// The organisation.
        org: OrgId,
        /// Its home.
        home: String,
        /// The home of `system`.
        system: String,
    },
    /// What these regions keep alone is not here, and is needed for what was asked (503). Nothing
    /// was done.
    #[error("what {} alone keeps of {org} is not in this region", .regions.join(", "))]
    Withheld {
        /// The organisation.
        org: OrgId,
        /// The regions.
        regions: Vec<String>,
    },
    /// Some objects may not leave their regions, and the one that is to be home is not among them
    /// (409). Nothing was done.
    #[error(
        "{org} has objects with `residency: strict` that may be in {regions} alone: region {to} \
         cannot be its home before these are changed"
    )]
    Stays {
        /// The organisation.
        org: OrgId,
        /// Their regions.
        regions: String,
        /// Which region is not among them.
        to: String,
    },
    /// The store failed (503). Nothing was done.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What the store holds cannot be understood by this release; nothing may be built on it (500).
    #[error("the stored configuration cannot be read: {0}")]
    Unreadable(String),
    /// A bound of the tree is exceeded (413).
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// A secret could not be sealed (500).
    #[error(transparent)]
    Seal(#[from] SealError),
}

impl PublishError {
    /// Whether the same try may succeed a moment later.
    pub(super) fn may_pass(&self) -> bool {
        matches!(
            self,
            Self::Contended
                | Self::Store(StoreError::Unavailable(_) | StoreError::OutcomeUnknown(_))
        )
    }
}

impl From<UnreadableFact> for PublishError {
    fn from(error: UnreadableFact) -> Self {
        Self::Unreadable(error.to_string())
    }
}

impl From<RaiseError> for PublishError {
    fn from(error: RaiseError) -> Self {
        match error {
            RaiseError::Store(error) => error.into(),
            RaiseError::Unreadable(error) => error.into(),
        }
    }
}
