//! Operations on a version → the objects of the next one, or everything that is wrong with it.
//!
//! Operations are functions of their parent, so that a publisher who lost a race applies the very
//! same operations to the new head. All or nothing; pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::draft::Draft;
use super::operation::{ApplyError, Context, Operation, SecretChange};
use super::references::{self, Judged};
use super::told::Told;
use super::withheld::Withheld;
use super::{OrgConfig, aliases, pack};
use crate::hosts::HostPattern;
use crate::id::CredentialId;
use crate::object::{Body, Object, ObjectId};
use crate::problem::Problem;
use crate::seal::NewSecret;
use crate::version::Generation;

/// Most objects of an organisation.
pub const OBJECTS_MAX: usize = 100_000;
/// Largest object, in bytes of canonical JSON.
pub const OBJECT_BYTES_MAX: usize = 256 * 1024;

/// Applies operations to a version.
///
/// # Errors
/// The first of: an unknown object, or one that is not here, a stale precondition, a role that does
/// not reach, every problem of the objects and their references, a taken name, an object in use, a
/// set that is not here and would be changed or could be wrong by it, a bound.
pub fn apply(
    parent: &OrgConfig,
    operations: &[Operation],
    context: &Context<'_>,
) -> Result<Draft, ApplyError> {
    let mut work = Work::new(parent, context);
    for (at, operation) in operations.iter().enumerate() {
        work.step(at, operation)?;
    }
    work.finish(operations)
}

pub(super) struct Work<'a> {
    pub(super) parent: &'a OrgConfig,
    pub(super) context: &'a Context<'a>,
    /// The version being made, as the generation of the secrets that it sets.
    pub(super) generation: Generation,
    pub(super) draft: Draft,
    /// What the parent has that is not here, if anything.
    withheld: Option<Withheld<'a>>,
    /// Which operation touched an object last.
    touched: BTreeMap<ObjectId, usize>,
    /// Restored credentials that keep hosts and regions of their secret so far, with those of then.
    pub(super) restored_hosts: BTreeMap<CredentialId, (Vec<HostPattern>, Vec<String>)>,
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
                by_region: context.policy.content_by_region,
                ..Draft::default()
            },
            withheld: Withheld::of(parent),
            touched: BTreeMap::new(),
            restored_hosts: BTreeMap::new(),
            problems: Vec::new(),
        }
    }

    fn step(&mut self, at: usize, operation: &Operation) -> Result<(), ApplyError> {
        // What an earlier operation created is here.
        if let Some(withheld) = &self.withheld
            && !self.touched.contains_key(&operation.id())
            && let Some(refusal) = withheld.refuses(operation)
        {
            return Err(refusal);
        }
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
            Operation::Restore { id, body } => {
                self.touched.insert(*id, at);
                match self.draft.objects.get(id).cloned() {
                    Some(old) => {
                        let body = self.with_hosts_of(&old, body.clone());
                        self.update(at, &old, body, &SecretChange::Keep);
                    }
                    None => self.insert(*id, without_secret(body.clone())),
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

    /// Policy goes with the object that it hangs on; new policy on it is a fault, found later.
    fn remove_attached(&mut self) {
        let (objects, touched) = (&self.draft.objects, &self.touched);
        let gone = |id: &ObjectId| !objects.contains_key(id);
        if !touched.keys().any(gone) {
            return;
        }
        let attached = objects.attached().filter_map(|(id, object)| {
            let parent = object.body.parent().filter(gone)?;
            let at = touched.get(&parent)?;
            self.parent.objects.contains_key(id).then_some((*id, *at))
        });
        let attached: Vec<(ObjectId, usize)> = attached.collect();
        for (id, at) in attached {
            self.draft.objects.remove(&id);
            self.touched.insert(id, at);
        }
    }

    pub(super) fn report(&mut self, at: usize, problems: impl IntoIterator<Item = Problem>) {
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
        if !body.is_named_by(id) {
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
        self.insert(id, body);
        Ok(())
    }

    /// Puts a new object in; its version is settled at the end.
    fn insert(&mut self, id: ObjectId, body: Body) {
        let now = self.context.now;
        let object = Object {
            id,
            version: 0,
            created_at: now,
            updated_at: now,
            body,
        };
        self.draft.objects.insert(id, Arc::new(object));
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

    fn finish(mut self, operations: &[Operation]) -> Result<Draft, ApplyError> {
        self.remove_attached();
        self.settle_restored_hosts();
        references::complete(&mut self.draft.objects, self.touched.keys());
        let (before, touched) = (&self.parent.objects, self.touched.keys());
        aliases::settle(before, &mut self.draft.objects, touched, self.context);
        self.settle_versions();
        let mut judged = Judged::default();
        references::judge(
            self.parent,
            &self.draft.objects,
            &self.touched,
            self.context,
            &mut judged,
        );
        let objects = (self.parent, &self.draft.objects);
        let told = Told::of(operations);
        let at = |problem: (usize, Problem)| told.problem(objects, problem);
        if !judged.forbidden.is_empty() {
            return Err(ApplyError::Forbidden(
                judged.forbidden.into_iter().map(at).collect(),
            ));
        }
        let withheld = self.withheld.as_ref();
        let unknown = withheld.and_then(|of| of.take_unknown(&mut judged.problems));
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
        let changed = self.draft.changed.iter();
        let judge = |of: &Withheld<'_>| of.judge(&self.draft.objects, changed);
        if let Some(refusal) = unknown.or_else(|| withheld.and_then(judge)) {
            return Err(refusal);
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

/// The form of a credential whose secrets are gone.
fn without_secret(mut body: Body) -> Body {
    if let Body::Credential(stored) = &mut body {
        (stored.secret, stored.previous) = (None, Vec::new());
    }
    body
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
        (Body::Rule(old), Body::Rule(new)) => fixed("/parent", old.parent == new.parent),
        (Body::Filter(old), Body::Filter(new)) => fixed("/parent", old.parent == new.parent),
        (Body::Meter(old), Body::Meter(new)) => fixed("/parent", old.parent == new.parent),
        _ => fixed("", false),
    }
    problems
}
