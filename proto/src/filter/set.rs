//! The filters that apply to one body, compiled, and what they do to it.
//!
//! **Order.** Scopes: target credential, target, proxy credential, proxy. Each works on what the
//! one before has left, so nothing comes back. Within a scope first all `retain` together (what
//! any of their paths selects is kept), then all `destroy` together (what any of their paths
//! selects of the rest goes). Filters of one scope and one operation do not see each other's
//! effect, so their order never matters, also for indexes.
//!
//! **When a `retain` selects nothing**, the root stays, empty: `{}` or `[]`. A root that is a
//! scalar and is not selected (only `$` selects it) becomes `null`. So the output is always one
//! JSON document.
//!
//! **Fails closed.** A body that cannot be read in exactly one way, or that makes a path exceed its
//! caps, is an error, and none of it is handed on.

use std::sync::Arc;

use super::{Direction, FILTERS_PER_SCOPE_MAX, Filter, Kind, Op, applies_to, check_path};
use crate::json_path::{JsonPath, SelectError, Work};
use crate::json_text::{JsonError, JsonText, NodeId};
use crate::problem::Problem;

/// The scopes in the order in which they apply, as they stand in the pointers of problems.
const SCOPES: [&str; 4] = ["target_credential", "target", "proxy_credential", "proxy"];

/// All filters of one direction for one proxy, ready to apply. Cheap to apply from many threads.
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
    retains: Vec<Compiled>,
    destroys: Vec<Compiled>,
}

#[derive(Clone, Debug)]
struct Compiled {
    id: Arc<str>,
    paths: Vec<JsonPath>,
    error_paths: Vec<JsonPath>,
}

/// Which of a filter's paths count.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Body {
    Success,
    Error,
}

/// A filtered body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// What may go on. Byte for byte as it came, minus what was removed.
    pub body: Vec<u8>,
    /// The filters that removed something, in the order in which they applied. The retains of one
    /// scope remove together, so all of them are named.
    pub changed: Vec<Arc<str>>,
}

/// What becomes of the body of a response that is not 2xx.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ErrorBody {
    /// It goes on as it is.
    Pass,
    /// This goes on in its place.
    Filtered(Vec<u8>),
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
    /// Compiles the filters of one direction; those of the other are left out.
    ///
    /// # Errors
    /// Every problem of every filter, at `/{scope}/{index}/…` with the scope's name
    /// (`target_credential`, `target`, `proxy_credential`, `proxy`) and the filter's place in it.
    pub fn compile(
        scopes: [&[Filter]; 4],
        direction: Direction,
    ) -> Result<FilterSet, Vec<Problem>> {
        let mut set = FilterSet::default();
        let mut problems = Vec::new();
        let mut hash = blake3::Hasher::new();
        for (name, filters) in SCOPES.iter().zip(scopes) {
            if filters.len() > FILTERS_PER_SCOPE_MAX {
                let detail = format!(
                    "{} filters, at most {FILTERS_PER_SCOPE_MAX} are allowed on one object",
                    filters.len()
                );
                problems.push(Problem::new(format!("/{name}"), "too-many-filters", detail));
                continue;
            }
            let mut scope = Scope::default();
            for (index, filter) in filters.iter().enumerate() {
                let found = filter.validate();
                if !found.is_empty() {
                    let prefix = format!("/{name}/{index}");
                    problems.extend(found.into_iter().map(|problem| problem.below(&prefix)));
                } else if filter.direction == direction {
                    hash_filter(&mut hash, name, filter);
                    set.blanks_errors |= filter.op == Op::Retain && filter.error_retain.is_none();
                    match (compile_one(filter), filter.op) {
                        (Ok(compiled), Op::Retain) => scope.retains.push(compiled),
                        (Ok(compiled), Op::Destroy) => scope.destroys.push(compiled),
                        (Err(problem), _) => problems.push(problem),
                    }
                }
            }
            if !scope.retains.is_empty() || !scope.destroys.is_empty() {
                set.scopes.push(scope);
            }
        }
        set.fingerprint = hash.finalize().to_hex().chars().take(16).collect();
        if problems.is_empty() {
            Ok(set)
        } else {
            Err(problems)
        }
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
            Ok(applied) => ErrorBody::Filtered(applied.body),
            Err(_) => ErrorBody::Blank,
        }
    }

    fn apply_as(&self, kind: Body, body: &[u8]) -> Result<Applied, FilterError> {
        let mut changed = Vec::new();
        if self.is_empty() {
            return Ok(Applied {
                body: body.to_vec(),
                changed,
            });
        }
        let mut document = JsonText::parse(body)?;
        let mut work = Work::for_one_body();
        for scope in &self.scopes {
            scope.retain(kind, &mut document, &mut work, &mut changed)?;
            scope.destroy(kind, &mut document, &mut work, &mut changed)?;
        }
        Ok(Applied {
            body: document.render().into_bytes(),
            changed,
        })
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
}

impl Compiled {
    /// What the filter's paths select, together.
    fn select(
        &self,
        kind: Body,
        document: &JsonText<'_>,
        work: &mut Work,
    ) -> Result<Vec<NodeId>, SelectError> {
        let paths = match kind {
            Body::Success => &self.paths,
            Body::Error => &self.error_paths,
        };
        let mut selected = Vec::new();
        for path in paths {
            selected.append(&mut path.select(document, work)?);
        }
        Ok(selected)
    }
}

/// Of a filter that is valid: a problem here would be one that `validate` does not find.
fn compile_one(filter: &Filter) -> Result<Compiled, Problem> {
    let parse = |paths: &[String]| -> Result<Vec<JsonPath>, Problem> {
        paths
            .iter()
            .map(|path| check_path(path, filter.op))
            .collect()
    };
    let paths = parse(&filter.paths)?;
    let error_paths = match filter.op {
        Op::Retain => parse(filter.error_retain.as_deref().unwrap_or_default())?,
        Op::Destroy => paths.clone(),
    };
    Ok(Compiled {
        id: filter.id.as_str().into(),
        paths,
        error_paths,
    })
}

/// What a filter does, with lengths before texts so that no two sets hash alike.
fn hash_filter(hash: &mut blake3::Hasher, scope: &str, filter: &Filter) {
    hash.update(format!("{scope}/{:?}/{}/", filter.op, filter.paths.len()).as_bytes());
    let error_paths = filter.error_retain.iter().flatten();
    for path in filter.paths.iter().chain(error_paths) {
        hash.update(format!("{}:{path}", path.len()).as_bytes());
    }
    hash.update(&[0xff]);
}
