//! What can be done to a configuration, and why it may be refused.

use std::sync::Arc;

use jiff::Timestamp;

use crate::object::{Body, ObjectId};
use crate::org::Role;
use crate::policy::Policy;
use crate::problem::Problem;
use crate::seal::NewSecret;

/// How an update makes the new body of the old one; called again after a lost race.
pub type Change = Arc<dyn Fn(&Body) -> Result<Body, Vec<Problem>> + Send + Sync>;

/// One change to a configuration.
#[derive(Clone)]
pub enum Operation {
    /// Adds an object.
    Create {
        /// A fresh id, issued by control.
        id: ObjectId,
        /// The object.
        body: Body,
        /// The secret of a credential that holds one.
        secret: Option<Arc<NewSecret>>,
    },
    /// Changes an object.
    Update {
        /// Which.
        id: ObjectId,
        /// `If-Match`: the version that last changed it must be this one.
        precondition: Option<u64>,
        /// How. What it does to a credential's secret fields is ignored; `secret` decides.
        change: Change,
        /// What becomes of the secret.
        secret: SecretChange,
    },
    /// Gives an object the form that it had in an earlier version, whether it is there or not.
    ///
    /// Secrets are facts: a credential that is there keeps its own with the hosts that it is bound
    /// to, one that was deleted comes back without (`secret: missing`), and nobody gets in with
    /// it. Where restored proxies need hosts that the secret is not bound to it is missing too.
    Restore {
        /// Which.
        id: ObjectId,
        /// The earlier form.
        body: Body,
    },
    /// Removes an object.
    Delete {
        /// Which.
        id: ObjectId,
        /// `If-Match`: the version that last changed it must be this one.
        precondition: Option<u64>,
    },
}

impl Operation {
    /// The object that it is about.
    pub fn id(&self) -> ObjectId {
        match self {
            Self::Create { id, .. }
            | Self::Update { id, .. }
            | Self::Restore { id, .. }
            | Self::Delete { id, .. } => *id,
        }
    }
}

/// What an update does to a credential's secret.
#[derive(Clone, Debug, Default)]
pub enum SecretChange {
    /// It stays.
    #[default]
    Keep,
    /// It is replaced.
    Set {
        /// The new one.
        secret: Arc<NewSecret>,
        /// Until when callers may use the one before; at once when absent. The secret of a target
        /// credential is always replaced at once. At most two secrets are valid at one time: a
        /// second rotation ends the overlap of the first.
        old_until: Option<Timestamp>,
    },
    /// It and the ones before it are over; nothing takes their place.
    Revoke,
}

/// What an application of operations depends on besides its parent.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// The time of the change.
    pub now: Timestamp,
    /// What the operator allows.
    pub policy: &'a Policy,
    /// The role of whoever asks; some settings of a proxy are for admins only.
    pub role: Role,
}

/// Why operations were refused; the parent stays as it is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// The object does not exist (404).
    #[error("{0} does not exist")]
    NotFound(ObjectId),
    /// The object was changed since the caller read it (412).
    #[error("{id} was changed: its version is now {current}")]
    PreconditionFailed {
        /// The object.
        id: ObjectId,
        /// The version that last changed it.
        current: u64,
    },
    /// The caller's role does not reach (403). Pointers as in [`ApplyError::Invalid`].
    #[error("the role does not allow this change: {}", listed(.0))]
    Forbidden(Vec<Problem>),
    /// The objects are faulty (422). With one operation a pointer is into its object; with
    /// several, it begins with the operation's index: `/2/base_url`. Those of a rollback name the
    /// object: `/targets/tgt_…/base_url`.
    #[error("the submitted objects are faulty: {}", listed(.0))]
    Invalid(Vec<Problem>),
    /// A name that must be unique belongs to another object (409).
    #[error("{what} is taken by {by}")]
    Taken {
        /// The name, such as "alias `billing`".
        what: String,
        /// Whose it is.
        by: ObjectId,
    },
    /// The object is named by others (409).
    #[error("{id} is in use by {} object(s)", users.len())]
    InUse {
        /// The object.
        id: ObjectId,
        /// Who names it (at most 100).
        users: Vec<ObjectId>,
    },
    /// What these regions keep alone is not here, and the change would be in it, or something in it
    /// could be wrong by the change (503).
    #[error("what {} alone keeps is not in this region: {why}", .regions.join(", "))]
    Withheld {
        /// The regions.
        regions: Vec<String>,
        /// What the change has to do with it.
        why: String,
    },
    /// A bound is exceeded (413).
    #[error("{0}")]
    TooLarge(String),
}

/// Problems on one line, for a log.
fn listed(problems: &[Problem]) -> String {
    let line = |problem: &Problem| match problem.pointer.as_str() {
        "" => problem.detail.clone(),
        pointer => format!("{pointer} {}", problem.detail),
    };
    problems.iter().map(line).collect::<Vec<_>>().join("; ")
}
