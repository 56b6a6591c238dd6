//! One filter, ready to apply. Compiled once and shared by all that it applies to.

use std::sync::Arc;

use super::mask::{Mask, MaskKey, With};
use super::own_pattern::Own;
use super::redact::Redactor;
use super::{Direction, Filter, Op, check_path};
use crate::json_path::{JsonPath, SelectError, Work};
use crate::json_text::{JsonText, NodeId};
use crate::problem::Problem;

/// A filter that can be applied.
#[derive(Clone, Debug)]
pub struct CompiledFilter {
    pub(super) id: Arc<str>,
    /// Which body it applies to.
    pub direction: Direction,
    pub(super) action: Action,
    paths: Vec<JsonPath>,
    /// What a `retain` keeps of error bodies, where it says so.
    error_paths: Option<Vec<JsonPath>>,
    /// Of all that it does.
    pub(super) hash: [u8; 32],
}

#[derive(Clone, Debug)]
pub(super) enum Action {
    Retain,
    Destroy,
    Mask(With, MaskKey),
    Redact(Redactor),
}

/// Which of a filter's paths count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Body {
    Success,
    Error,
}

impl CompiledFilter {
    /// Compiles a filter; `key` is for masks that hash.
    ///
    /// # Errors
    /// Every problem of the filter, see [`Filter::validate`].
    pub fn new(filter: &Filter, key: &MaskKey) -> Result<CompiledFilter, Vec<Problem>> {
        let problems = filter.validate();
        if !problems.is_empty() {
            return Err(problems);
        }
        let parse = |paths: &[String]| -> Result<Vec<JsonPath>, Problem> {
            paths
                .iter()
                .map(|path| check_path(path, filter.op))
                .collect()
        };
        let action = match filter.op {
            Op::Retain => Action::Retain,
            Op::Destroy => Action::Destroy,
            Op::Mask => {
                let with = filter
                    .mask
                    .as_ref()
                    .map_or_else(|| Ok(With::default()), Mask::with);
                Action::Mask(with.map_err(|problem| vec![problem])?, key.clone())
            }
            Op::Redact => {
                let own = Own::compile(&filter.patterns)?;
                Action::Redact(Redactor::new(&filter.detect, own))
            }
        };
        Ok(CompiledFilter {
            id: filter.id.as_str().into(),
            direction: filter.direction,
            action,
            paths: parse(&filter.paths).map_err(|problem| vec![problem])?,
            error_paths: filter
                .error_retain
                .as_deref()
                .map(parse)
                .transpose()
                .map_err(|problem| vec![problem])?,
            hash: hash_of(filter),
        })
    }

    /// Whether nothing of an error body may go on.
    pub(super) fn blanks_errors(&self) -> bool {
        matches!(self.action, Action::Retain) && self.error_paths.is_none()
    }

    /// What the filter's paths select, together. A `redact` without paths selects all.
    pub(super) fn select(
        &self,
        body: Body,
        document: &JsonText<'_>,
        work: &mut Work,
    ) -> Result<Vec<NodeId>, SelectError> {
        let paths = match (body, &self.error_paths) {
            (Body::Error, Some(paths)) => paths,
            _ => &self.paths,
        };
        if paths.is_empty() {
            return Ok(vec![NodeId::ROOT]);
        }
        let mut selected = Vec::new();
        for path in paths {
            selected.append(&mut path.select(document, work)?);
        }
        Ok(selected)
    }
}

/// All that a filter does: not who it is, nor what people are told of it.
fn hash_of(filter: &Filter) -> [u8; 32] {
    let does = Filter {
        id: String::new(),
        notes: String::new(),
        ..filter.clone()
    };
    // Structs of texts and lists always serialise.
    *blake3::hash(&serde_json::to_vec(&does).unwrap_or_default()).as_bytes()
}
