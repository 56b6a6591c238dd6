//! Operations on a version → the objects of the next one, or everything that is wrong with it.
//!
//! Operations are functions of their parent, so that a publisher who lost a race applies the very
//! same operations to the new head. All or nothing; pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;

use super::references::{self, Judged};
use super::{Objects, OrgConfig, pack};
use crate::credential::{CredentialKind, SecretState};
use crate::id::CredentialId;
use crate::object::{Body, Object, ObjectId, StoredCredential};
use crate::org::Role;
use crate::policy::Policy;
use crate::problem::Problem;
use crate::retired::{NextRetired, Retired};
use crate::seal::NewSecret;
use crate::version::Generation;

/// Most objects of an organisation.
pub const OBJECTS_MAX: usize = 100_000;
/// Largest object, in bytes of canonical JSON.
pub const OBJECT_BYTES_MAX: usize = 256 * 1024;

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
    /// Removes an object.
    Delete {
        /// Which.
        id: ObjectId,
        /// `If-Match`: the version that last changed it must be this one.
        precondition: Option<u64>,
    },
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
    #[error("the role does not allow this change")]
    Forbidden(Vec<Problem>),
    /// The objects are faulty (422). With one operation a pointer is into its object; with
    /// several, it begins with the operation's index: `/2/base_url`.
    #[error("{} problem(s) in the submitted objects", .0.len())]
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
    /// A bound is exceeded (413).
    #[error("{0}")]
    TooLarge(String),
}

/// How far the fact of a credential's retired secrets rises.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retirement {
    /// Generations below this are over now.
    floor: Generation,
    /// Generations below that are over from then on.
    next: Option<NextRetired>,
}

impl Retirement {
    /// The fact after this, given the fact before.
    pub fn raise(&self, before: Option<Retired>, now: Timestamp) -> Retired {
        let raised = Retired {
            lowest: self.floor.clone(),
            next: self.next.clone(),
        };
        match before {
            Some(before) => before.settled(now).merge(raised),
            None => raised,
        }
    }
}

/// The objects of the next version, not yet packed.
#[derive(Clone, Debug, Default)]
pub struct Draft {
    /// All objects.
    pub(super) objects: Objects,
    /// Objects created, changed or deleted, in the order of their ids.
    pub changed: Vec<ObjectId>,
    /// Credentials whose older secrets are over.
    pub retirements: BTreeMap<CredentialId, Retirement>,
    /// Secrets to be sealed under the new version's hosts.
    pub secrets: BTreeMap<CredentialId, Arc<NewSecret>>,
    /// Sealed values that nothing names any more: credential and seal id.
    pub unsealed: Vec<(CredentialId, String)>,
}

impl Draft {
    /// An object of the draft.
    pub fn object(&self, id: ObjectId) -> Option<&Arc<Object>> {
        self.objects.get(&id)
    }

    /// A credential of the draft.
    pub fn credential(&self, id: CredentialId) -> Option<&StoredCredential> {
        super::credential_in(&self.objects, id)
    }
}

/// Applies operations to a version.
///
/// # Errors
/// The first of: an unknown object, a stale precondition, a role that does not reach, every
/// problem of the objects and their references, a taken name, an object in use, a bound.
pub fn apply(
    parent: &OrgConfig,
    operations: &[Operation],
    context: &Context<'_>,
) -> Result<Draft, ApplyError> {
    let mut work = Work::new(parent, context);
    for (at, operation) in operations.iter().enumerate() {
        work.step(at, operation)?;
    }
    work.finish(operations.len())
}

struct Work<'a> {
    parent: &'a OrgConfig,
    context: &'a Context<'a>,
    /// The version being made, as the generation of the secrets that it sets.
    generation: Generation,
    draft: Draft,
    /// Which operation touched an object last.
    touched: BTreeMap<ObjectId, usize>,
    problems: Vec<(usize, Problem)>,
}

impl<'a> Work<'a> {
    fn new(parent: &'a OrgConfig, context: &'a Context<'a>) -> Self {
        let epoch = parent.head.epoch.clone();
        Self {
            parent,
            context,
            generation: Generation {
                epoch,
                n: parent.head.n.saturating_add(1),
            },
            draft: Draft {
                objects: parent.objects.clone(),
                ..Draft::default()
            },
            touched: BTreeMap::new(),
            problems: Vec::new(),
        }
    }

    fn step(&mut self, at: usize, operation: &Operation) -> Result<(), ApplyError> {
        match operation {
            Operation::Create { id, body, secret } => {
                self.touched.insert(*id, at);
                self.create(at, *id, body.clone(), secret.as_ref())
            }
            Operation::Update {
                id,
                precondition,
                change,
                secret,
            } => {
                let old = self.existing(*id, *precondition)?;
                self.touched.insert(*id, at);
                match change(&old.body) {
                    Ok(body) => self.update(at, &old, body, secret),
                    Err(problems) => self.report(at, problems),
                }
                Ok(())
            }
            Operation::Delete { id, precondition } => {
                let old = self.existing(*id, *precondition)?;
                self.touched.insert(*id, at);
                self.draft.objects.remove(id);
                if let (ObjectId::Credential(id), Body::Credential(stored)) = (id, &old.body) {
                    self.retire(*id, stored, None);
                }
                Ok(())
            }
        }
    }

    fn report(&mut self, at: usize, problems: impl IntoIterator<Item = Problem>) {
        self.problems
            .extend(problems.into_iter().map(|problem| (at, problem)));
    }

    /// The object, if the caller knows its newest form: that of the parent, whatever earlier
    /// operations of the same publish did to it.
    fn existing(&self, id: ObjectId, precondition: Option<u64>) -> Result<Arc<Object>, ApplyError> {
        let old = self
            .draft
            .objects
            .get(&id)
            .ok_or(ApplyError::NotFound(id))?;
        let current = self
            .parent
            .objects
            .get(&id)
            .map_or(old.version, |object| object.version);
        match precondition {
            Some(version) if version != current => {
                Err(ApplyError::PreconditionFailed { id, current })
            }
            _ => Ok(Arc::clone(old)),
        }
    }

    fn create(
        &mut self,
        at: usize,
        id: ObjectId,
        mut body: Body,
        secret: Option<&Arc<NewSecret>>,
    ) -> Result<(), ApplyError> {
        if self.draft.objects.contains_key(&id) {
            return Err(ApplyError::Taken {
                what: format!("id {id}"),
                by: id,
            });
        }
        if !is_of_kind(id, &body) {
            self.report(
                at,
                [Problem::new(
                    "",
                    "kind",
                    format!("{id} is not of this kind"),
                )],
            );
            return Ok(());
        }
        if let (ObjectId::Credential(id), Body::Credential(stored)) = (id, &mut body) {
            (stored.secret, stored.previous) = (None, Vec::new());
            match secret {
                Some(secret) => self.set_secret(at, id, stored, secret),
                None if stored.credential.has_secret() => {
                    let detail = "this type of credential holds a secret";
                    self.report(at, [Problem::new("/secret", "required", detail)]);
                }
                None => {}
            }
        }
        let now = self.context.now;
        let object = Object {
            id,
            version: 0,
            created_at: now,
            updated_at: now,
            body,
        };
        self.draft.objects.insert(id, Arc::new(object));
        Ok(())
    }

    fn update(&mut self, at: usize, old: &Object, mut body: Body, secret: &SecretChange) {
        let fixed = fixed_fields(&old.body, &body);
        if !fixed.is_empty() {
            return self.report(at, fixed);
        }
        if let (ObjectId::Credential(id), Body::Credential(was), Body::Credential(stored)) =
            (old.id, &old.body, &mut body)
        {
            (stored.secret, stored.previous) = (was.secret.clone(), was.previous.clone());
            self.update_secret(at, id, was, stored, secret);
        }
        let object = Object {
            body,
            ..old.clone()
        };
        self.draft.objects.insert(old.id, Arc::new(object));
    }

    fn update_secret(
        &mut self,
        at: usize,
        id: CredentialId,
        was: &StoredCredential,
        stored: &mut StoredCredential,
        change: &SecretChange,
    ) {
        match change {
            SecretChange::Keep => {
                let (mut before, mut after) = (
                    was.credential.hosts.clone(),
                    stored.credential.hosts.clone(),
                );
                before.sort_unstable();
                after.sort_unstable();
                if before != after && was.credential.has_secret() {
                    let detail = "the secret is bound to its hosts: give `secret` again to \
                                  change them";
                    self.report(at, [Problem::new("/hosts", "secret-required", detail)]);
                }
            }
            SecretChange::Set { secret, old_until } => {
                let overlap = old_until.filter(|until| {
                    *until > self.context.now && was.credential.kind == CredentialKind::Proxy
                });
                self.retire(id, was, overlap);
                let old = was.secret.clone().filter(|_| overlap.is_some());
                stored.previous = old.into_iter().collect();
                self.set_secret(at, id, stored, secret);
            }
            SecretChange::Revoke => {
                self.retire(id, was, None);
                self.draft.secrets.remove(&id);
                (stored.secret, stored.previous) = (None, Vec::new());
            }
        }
    }

    fn set_secret(
        &mut self,
        at: usize,
        id: CredentialId,
        stored: &mut StoredCredential,
        secret: &Arc<NewSecret>,
    ) {
        if !stored.credential.has_secret() {
            let detail = "type none holds no secret";
            return self.report(at, [Problem::new("/secret", "not-applicable", detail)]);
        }
        let sealed = secret.seal_id.is_some() && secret.plaintext.is_some();
        if sealed != (stored.credential.kind == CredentialKind::Target) {
            let detail = "the secret was prepared for the other kind of credential";
            return self.report(at, [Problem::new("/secret", "kind", detail)]);
        }
        stored.secret = Some(SecretState {
            generation: self.generation.clone(),
            digest: secret.digest.clone(),
            seal_id: secret.seal_id.clone(),
            issued: secret.issued,
            hint: secret.hint.clone(),
            set_at: self.context.now,
        });
        if sealed {
            self.draft.secrets.insert(id, Arc::clone(secret));
        }
    }

    /// Ends the secrets that a credential had in the parent: now, or at the overlap's end.
    fn retire(&mut self, id: CredentialId, was: &StoredCredential, overlap: Option<Timestamp>) {
        let states = was.secret.iter().chain(&was.previous);
        let named = states.filter_map(|state| state.seal_id.clone());
        self.draft
            .unsealed
            .extend(named.map(|seal_id| (id, seal_id)));
        let next = overlap.map(|from| NextRetired {
            lowest: self.generation.clone(),
            from,
        });
        let current = was.secret.as_ref().map(|state| state.generation.clone());
        let floor = current
            .filter(|_| next.is_some())
            .unwrap_or(self.generation.clone());
        self.draft
            .retirements
            .insert(id, Retirement { floor, next });
    }

    fn finish(mut self, operations: usize) -> Result<Draft, ApplyError> {
        references::complete(&mut self.draft.objects, self.touched.keys());
        self.settle_versions();
        let mut judged = Judged::default();
        references::judge(
            &self.parent.objects,
            &self.draft.objects,
            &self.touched,
            self.context,
            &mut judged,
        );
        let at = |(at, problem): (usize, Problem)| match operations {
            ..=1 => problem,
            _ => problem.below(&format!("/{at}")),
        };
        if !judged.forbidden.is_empty() {
            return Err(ApplyError::Forbidden(
                judged.forbidden.into_iter().map(at).collect(),
            ));
        }
        self.problems.extend(judged.problems);
        if !self.problems.is_empty() {
            self.problems.sort_by_key(|(at, _)| *at);
            return Err(ApplyError::Invalid(
                self.problems.into_iter().map(at).collect(),
            ));
        }
        if let Some(conflict) = judged.conflict {
            return Err(conflict);
        }
        self.check_bounds()?;
        // A secret that was set and then lost with its object needs no seal.
        let objects = &self.draft.objects;
        self.draft
            .secrets
            .retain(|id, _| objects.contains_key(&ObjectId::Credential(*id)));
        Ok(self.draft)
    }

    /// Numbers what changed; what did not keeps its `Arc`, version and time.
    fn settle_versions(&mut self) {
        for id in self.touched.keys() {
            let old = self.parent.objects.get(id);
            match (old, self.draft.objects.get_mut(id)) {
                (None, None) => continue,
                (Some(old), Some(new)) if old.body == new.body => {
                    *new = Arc::clone(old);
                    continue;
                }
                (_, Some(new)) => {
                    *new = Arc::new(Object {
                        version: self.generation.n,
                        updated_at: self.context.now,
                        ..Object::clone(new)
                    });
                }
                (Some(_), None) => {}
            }
            self.draft.changed.push(*id);
        }
    }

    fn check_bounds(&self) -> Result<(), ApplyError> {
        if self.draft.objects.len() > OBJECTS_MAX {
            let detail = format!("an organisation has at most {OBJECTS_MAX} objects");
            return Err(ApplyError::TooLarge(detail));
        }
        for object in self
            .draft
            .changed
            .iter()
            .filter_map(|id| self.draft.objects.get(id))
        {
            let bytes = pack::line(object).len();
            if bytes > OBJECT_BYTES_MAX {
                let id = object.id;
                let detail = format!("{id} has {bytes} bytes; at most {OBJECT_BYTES_MAX} fit");
                return Err(ApplyError::TooLarge(detail));
            }
        }
        Ok(())
    }
}

fn is_of_kind(id: ObjectId, body: &Body) -> bool {
    matches!(
        (id, body),
        (ObjectId::Org(_), Body::Org(_))
            | (ObjectId::Token(_), Body::Token(_))
            | (ObjectId::Target(_), Body::Target(_))
            | (ObjectId::Credential(_), Body::Credential(_))
            | (ObjectId::Proxy(_), Body::Proxy(_))
    )
}

/// Fields that an update may not change.
fn fixed_fields(old: &Body, new: &Body) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut fixed = |pointer: &str, same: bool| {
        if !same {
            let detail = "cannot change; create another object instead";
            problems.push(Problem::new(pointer, "immutable", detail));
        }
    };
    match (old, new) {
        (Body::Org(old), Body::Org(new)) => fixed("/slug", old.slug == new.slug),
        (Body::Token(old), Body::Token(new)) => fixed("/digest", old.digest == new.digest),
        (Body::Credential(old), Body::Credential(new)) => {
            fixed("/kind", old.credential.kind == new.credential.kind);
            fixed(
                "/auth_type",
                old.credential.auth_type == new.credential.auth_type,
            );
        }
        (Body::Target(_), Body::Target(_)) | (Body::Proxy(_), Body::Proxy(_)) => {}
        _ => fixed("", false),
    }
    problems
}
