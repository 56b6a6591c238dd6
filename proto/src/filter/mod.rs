//! Filters: which parts of a JSON body go on. The model, and everything that can be wrong with it.
//!
//! A filter hangs on one of four objects (its *scope*). [`FilterSet`] compiles the filters of all
//! four for one direction and applies them to a body; it is where their meaning is written down.
//! `mask`, `redact` and the request-only operations do not exist yet: an unknown `op` does not
//! deserialize, and the error names the ones there are.

mod media;
mod set;

#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use media::{Kind, applies_to};
pub use set::{Applied, ErrorBody, FilterError, FilterSet};

use crate::json_path::JsonPath;
use crate::problem::Problem;

/// Most filters on one object.
pub const FILTERS_PER_SCOPE_MAX: usize = 100;
/// Most paths in `paths` or `error_retain` of one filter.
pub const PATHS_MAX: usize = 64;
/// Longest `notes`, in bytes.
pub const NOTES_BYTES_MAX: usize = 4_096;

/// One filter, as the API takes it and the store keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Filter {
    /// `flt_…`; given by control, empty in a request that creates the filter.
    #[serde(default)]
    pub id: String,
    /// What happens to the values that `paths` select.
    pub op: Op,
    /// RFC 9535 JSONPaths, 1 to 64, each at most 1,024 bytes.
    pub paths: Vec<String>,
    /// Which body it applies to. Default: `response`.
    #[serde(default)]
    pub direction: Direction,
    /// For people; never leaves the control API. At most 4,096 bytes.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub notes: String,
    /// Only for `retain` on responses: what is kept of a JSON *error* body, instead of `paths`.
    /// Without it an error body is blanked, for it may hold what `retain` was there to hide.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_retain: Option<Vec<String>>,
}

/// What a filter does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Op {
    /// Keep only what the paths select (with all that is in it) and the containers around it.
    Retain,
    /// Remove what the paths select.
    Destroy,
}

/// Which body a filter applies to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// From target to caller.
    #[default]
    Response,
    /// From caller to target.
    Request,
}

impl Filter {
    /// Everything that is wrong with the filter, each with the place in it. Empty: it is valid,
    /// and [`FilterSet::compile`] takes it.
    ///
    /// Codes: `paths-empty`, `too-many-paths`, `notes-too-long`, `destroys-root`,
    /// `error-retain-needs-retain`, `error-retain-needs-response`, and those of
    /// [`PathError`](crate::json_path::PathError).
    pub fn validate(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        check_paths("/paths", &self.paths, self.op, &mut problems);
        if self.notes.len() > NOTES_BYTES_MAX {
            let detail = format!(
                "the notes have {} bytes, at most {NOTES_BYTES_MAX} are allowed",
                self.notes.len()
            );
            problems.push(Problem::new("/notes", "notes-too-long", detail));
        }
        let Some(error_paths) = &self.error_retain else {
            return problems;
        };
        check_paths("/error_retain", error_paths, Op::Retain, &mut problems);
        if self.op != Op::Retain {
            problems.push(Problem::new(
                "/error_retain",
                "error-retain-needs-retain",
                "`error_retain` says what a `retain` keeps of error bodies; `destroy` applies to \
                 them as it is. Remove it",
            ));
        }
        if self.direction != Direction::Response {
            problems.push(Problem::new(
                "/error_retain",
                "error-retain-needs-response",
                "only responses have error bodies. Remove it, or set `direction` to `response`",
            ));
        }
        problems
    }
}

fn check_paths(pointer: &str, paths: &[String], op: Op, problems: &mut Vec<Problem>) {
    if paths.is_empty() {
        problems.push(Problem::new(
            pointer,
            "paths-empty",
            "at least one path is required",
        ));
    }
    if paths.len() > PATHS_MAX {
        let detail = format!("{} paths, at most {PATHS_MAX} are allowed", paths.len());
        problems.push(Problem::new(pointer, "too-many-paths", detail));
        return;
    }
    for (index, path) in paths.iter().enumerate() {
        if let Err(problem) = check_path(path, op) {
            problems.push(problem.below(&format!("{pointer}/{index}")));
        }
    }
}

/// A path that `op` may have, or the problem with it (at an empty pointer).
fn check_path(path: &str, op: Op) -> Result<JsonPath, Problem> {
    let parsed =
        JsonPath::parse(path).map_err(|fault| Problem::new("", fault.code, fault.to_string()))?;
    if op == Op::Destroy && parsed.is_root() {
        return Err(Problem::new(
            "",
            "destroys-root",
            "`$` is the whole body, which cannot be removed. Name its parts (`$.*`)",
        ));
    }
    Ok(parsed)
}
