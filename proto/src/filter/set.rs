//! The filters that apply to one body, and what they do to it.
//!
//! **Order.** Scopes: target credential, target, proxy credential, proxy. Each works on what the
//! one before has left, so nothing comes back. Within a scope first all `retain` together (what
//! any of their paths selects is kept), then all `destroy` together (what any of their paths
//! selects of the rest goes), then all `mask`, then all `redact`. Filters of one scope and one
//! operation do not see each other's effect, so their order never matters, also for indexes. Of
//! two masks on one value the one that says less counts; of one within another the outer.
//!
//! **When a `retain` selects nothing**, the root stays, empty: `{}` or `[]`. A root that is a
//! scalar and is not selected (only `$` selects it) becomes `null`. So the output is always one
//! JSON document.
//!
//! **Fails closed.** A body that cannot be read in exactly one way, or that makes a path or a
//! search exceed its caps, is an error, and none of it is handed on.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use super::compiled::{Action, Body, CompiledFilter};
use super::redact::{Find, Redactions, Redactor, marked};
use super::{Kind, applies_to};
use crate::json_path::{SelectError, Work};
use crate::json_text::{JsonError, JsonText, Kind as ValueKind, NodeId};

/// The names of the scopes in the order in which they apply.
const SCOPES: [&str; 4] = ["target_credential", "target", "proxy_credential", "proxy"];

/// All filters of one direction for one proxy. Cheap to apply from many threads.
#[derive(Clone, Debug, Default)]
pub struct FilterSet {
    /// Only scopes that have filters, in their order.
    scopes: Vec<Scope>,
    /// Some `retain` does not say what it keeps of error bodies.
    blanks_errors: bool,
    fingerprint: String,
}

#[derive(Clone, Debug, Default)]
struct Scope {
    retains: Vec<Arc<CompiledFilter>>,
    destroys: Vec<Arc<CompiledFilter>>,
    masks: Vec<Arc<CompiledFilter>>,
    redacts: Vec<Arc<CompiledFilter>>,
}

/// A filtered body.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// What may go on. Byte for byte as it came, but for what was removed or replaced.
    pub body: Vec<u8>,
    /// The filters that changed something, in the order in which they applied. The retains of one
    /// scope remove together, so all of them are named.
    pub changed: Vec<Arc<str>>,
    /// How often what was redacted.
    pub redacted: Redactions,
}

/// What becomes of the body of a response that is not 2xx.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ErrorBody {
    /// It goes on as it is.
    Pass,
    /// This goes on in its place.
    Filtered(Applied),
    /// Nothing of it may go on: the caller gets our problem document with the target's status.
    Blank,
}

/// Why a body cannot be filtered. No variant holds any text of the body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    /// It is not JSON that can be read in exactly one way.
    #[error(transparent)]
    Json(#[from] JsonError),
    /// A path exceeded a cap on it.
    #[error(transparent)]
    Select(#[from] SelectError),
}

impl FilterError {
    /// The stable code of the early end that this causes (422).
    pub fn code(&self) -> &'static str {
        "filter-not-json"
    }
}

impl FilterSet {
    /// The filters of one direction, by scope: target credential, target, proxy credential,
    /// proxy.
    pub fn new(scopes: [&[Arc<CompiledFilter>]; 4]) -> FilterSet {
        let mut set = FilterSet::default();
        let mut hash = blake3::Hasher::new();
        for (name, filters) in SCOPES.iter().zip(scopes) {
            let mut scope = Scope::default();
            for filter in filters {
                hash.update(name.as_bytes());
                hash.update(&filter.hash);
                set.blanks_errors |= filter.blanks_errors();
                let of_kind = match &filter.action {
                    Action::Retain => &mut scope.retains,
                    Action::Destroy => &mut scope.destroys,
                    Action::Mask(..) => &mut scope.masks,
                    Action::Redact(_) => &mut scope.redacts,
                };
                of_kind.push(Arc::clone(filter));
            }
            scope
                .masks
                .sort_by(|one, other| match (&one.action, &other.action) {
                    (Action::Mask(one, _), Action::Mask(other, _)) => one.cmp(other),
                    _ => std::cmp::Ordering::Equal,
                });
            if !filters.is_empty() {
                set.scopes.push(scope);
            }
        }
        set.fingerprint = hash.finalize().to_hex().chars().take(16).collect();
        set
    }

    /// Whether no filter applies: then bodies pass unread.
    pub fn is_empty(&self) -> bool {
        self.scopes.is_empty()
    }

    /// 16 hex digits that change when the filters do: the part that is added to an `ETag`, so that
    /// a body cached under other filters is not confirmed (`hardening` 20).
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Filters the JSON body of a request or of a 2xx response. An empty set hands the body on
    /// unread.
    ///
    /// # Errors
    /// [`FilterError`]: then nothing of the body may go on.
    pub fn apply(&self, body: &[u8]) -> Result<Applied, FilterError> {
        self.apply_as(Body::Success, body)
    }

    /// Filters the body of a response that is not 2xx (`error_bodies: filter`).
    ///
    /// Blank where a `retain` without `error_retain` applies, and where the body is not one JSON
    /// document by its type and by its bytes. An empty body passes: there is nothing in it.
    pub fn apply_error(&self, body: &[u8], content_type: &str) -> ErrorBody {
        if self.is_empty() || body.is_empty() {
            return ErrorBody::Pass;
        }
        if self.blanks_errors || applies_to(content_type) != Kind::Json {
            return ErrorBody::Blank;
        }
        match self.apply_as(Body::Error, body) {
            Ok(applied) => ErrorBody::Filtered(applied),
            Err(_) => ErrorBody::Blank,
        }
    }

    fn apply_as(&self, kind: Body, body: &[u8]) -> Result<Applied, FilterError> {
        let mut applied = Applied::default();
        if self.is_empty() {
            applied.body = body.to_vec();
            return Ok(applied);
        }
        let mut document = JsonText::parse(body)?;
        let mut work = Work::for_one_body();
        for scope in &self.scopes {
            scope.retain(kind, &mut document, &mut work, &mut applied.changed)?;
            scope.destroy(kind, &mut document, &mut work, &mut applied.changed)?;
            scope.mask(kind, &mut document, &mut work, &mut applied.changed)?;
            scope.redact(kind, &mut document, &mut work, &mut applied)?;
        }
        applied.body = document.render().into_bytes();
        Ok(applied)
    }
}

impl Scope {
    fn retain(
        &self,
        kind: Body,
        document: &mut JsonText<'_>,
        work: &mut Work,
        changed: &mut Vec<Arc<str>>,
    ) -> Result<(), FilterError> {
        if self.retains.is_empty() {
            return Ok(());
        }
        let mut kept = Vec::new();
        for filter in &self.retains {
            kept.append(&mut filter.select(kind, document, work)?);
        }
        if document.retain(&kept) {
            changed.extend(self.retains.iter().map(|filter| Arc::clone(&filter.id)));
        }
        Ok(())
    }

    fn destroy(
        &self,
        kind: Body,
        document: &mut JsonText<'_>,
        work: &mut Work,
        changed: &mut Vec<Arc<str>>,
    ) -> Result<(), FilterError> {
        let mut doomed = Vec::new();
        for filter in &self.destroys {
            let mut selected = filter.select(kind, document, work)?;
            if !selected.is_empty() {
                changed.push(Arc::clone(&filter.id));
            }
            doomed.append(&mut selected);
        }
        for id in doomed {
            document.remove(id);
        }
        Ok(())
    }

    fn mask(
        &self,
        kind: Body,
        document: &mut JsonText<'_>,
        work: &mut Work,
        changed: &mut Vec<Arc<str>>,
    ) -> Result<(), FilterError> {
        let mut masked: HashSet<NodeId> = HashSet::new();
        let mut texts = Vec::new();
        for filter in &self.masks {
            let Action::Mask(with, key) = &filter.action else {
                continue;
            };
            let before = texts.len();
            for id in filter.select(kind, document, work)? {
                // What a value is replaced by may be made of all that is in it.
                work.read(document.span(id).len())?;
                if masked.insert(id)
                    && let Some(text) = with.of(document, id, key)
                {
                    texts.push((id, text));
                }
            }
            if texts.len() > before {
                changed.push(Arc::clone(&filter.id));
            }
        }
        for (id, text) in texts {
            document.replace(id, &text);
        }
        Ok(())
    }

    fn redact(
        &self,
        kind: Body,
        document: &mut JsonText<'_>,
        work: &mut Work,
        applied: &mut Applied,
    ) -> Result<(), FilterError> {
        let mut found = Found::default();
        for filter in &self.redacts {
            let Action::Redact(redactor) = &filter.action else {
                continue;
            };
            let before = found.count;
            found.search(
                redactor,
                filter.select(kind, document, work)?,
                document,
                work,
            )?;
            if found.count > before {
                applied.changed.push(Arc::clone(&filter.id));
            }
        }
        found.replace(document, &mut applied.redacted);
        Ok(())
    }
}

/// What the redacts of one scope found.
#[derive(Default)]
struct Found<'r> {
    values: BTreeMap<NodeId, Vec<Find<'r>>>,
    names: BTreeMap<NodeId, Vec<Find<'r>>>,
    count: usize,
}

impl<'r> Found<'r> {
    /// Searches all strings and numbers in `roots`, and the names of members in them.
    fn search(
        &mut self,
        redactor: &'r Redactor,
        mut roots: Vec<NodeId>,
        document: &JsonText<'_>,
        work: &mut Work,
    ) -> Result<(), SelectError> {
        roots.sort_unstable();
        let mut searched: Option<NodeId> = None;
        for root in roots {
            if searched.is_some_and(|outer| document.is_within(root, outer)) {
                continue;
            }
            searched = Some(root);
            for id in document.subtree(root) {
                if id != root && document.is_member(id) {
                    self.look(redactor, Place::Name(id), &document.name(id), work)?;
                }
                match document.kind(id) {
                    ValueKind::String => {
                        self.look(redactor, Place::Value(id), &document.string(id), work)?;
                    }
                    ValueKind::Number => {
                        self.look(redactor, Place::Value(id), document.raw(id), work)?;
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }

    fn look(
        &mut self,
        redactor: &'r Redactor,
        place: Place,
        text: &str,
        work: &mut Work,
    ) -> Result<(), SelectError> {
        let mut finds = Vec::new();
        redactor.find(text, work, &mut finds)?;
        if !finds.is_empty() {
            self.count += finds.len();
            let all = match place {
                Place::Value(id) => self.values.entry(id),
                Place::Name(id) => self.names.entry(id),
            };
            all.or_default().append(&mut finds);
        }
        Ok(())
    }

    fn replace(self, document: &mut JsonText<'_>, counts: &mut Redactions) {
        for (id, finds) in self.values {
            let text = match document.kind(id) {
                ValueKind::String => document.string(id),
                _ => document.raw(id).into(),
            };
            let text = marked(&text, finds, counts);
            document.replace(id, &text);
        }
        let mut renamed: BTreeMap<NodeId, Vec<(NodeId, String)>> = BTreeMap::new();
        for (id, finds) in self.names {
            let name = marked(&document.name(id), finds, counts);
            let parent = document.parent(id);
            renamed.entry(parent).or_default().push((id, name));
        }
        for (object, names) in renamed {
            document.rename_members(object, names);
        }
    }
}

/// Where a text stands.
#[derive(Clone, Copy)]
enum Place {
    Value(NodeId),
    Name(NodeId),
}
