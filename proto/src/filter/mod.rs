//! Filters: which parts of a JSON body go on, and as what. The model, and everything that can be
//! wrong with it.
//!
//! A filter hangs on one of four objects (its *scope*). [`FilterSet`] takes the filters of all
//! four for one direction and applies them to a body; it is where their meaning is written down.

mod compiled;
mod mask;
mod media;
mod own_pattern;
mod redact;
mod set;

#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use compiled::CompiledFilter;
pub use mask::{Mask, MaskKey};
pub use media::{Kind, applies_to};
pub use own_pattern::OwnPattern;
pub use redact::{Detector, Redactions};
pub use set::{Applied, ErrorBody, FilterError, FilterSet};

use crate::json_path::JsonPath;
use crate::problem::Problem;
use crate::rule;

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
    /// RFC 9535 JSONPaths, 1 to 64, each at most 1,024 bytes. `redact` may have none: then it
    /// searches the whole body.
    #[serde(default)]
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
    /// Only for `mask`: what stands in the place of a value. Default: `{"text": "***"}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mask: Option<Mask>,
    /// Only for `redact`: what is looked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub detect: Vec<Detector>,
    /// Only for `redact`: own patterns that are looked for besides, at most 16.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub patterns: Vec<OwnPattern>,
}

/// What a filter does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Op {
    /// Keep only what the paths select (with all that is in it) and the containers around it.
    Retain,
    /// Remove what the paths select.
    Destroy,
    /// Put a string that says less in the place of what the paths select.
    Mask,
    /// Put marks such as `[email]` in the place of personal data and secrets that are found in
    /// the strings, numbers and names in what the paths select.
    Redact,
}

impl Op {
    fn as_str(self) -> &'static str {
        match self {
            Op::Retain => "retain",
            Op::Destroy => "destroy",
            Op::Mask => "mask",
            Op::Redact => "redact",
        }
    }
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
    /// and [`CompiledFilter::new`] takes it.
    ///
    /// Codes: `paths-empty`, `too-many-paths`, `notes-too-long`, `destroys-root`,
    /// `error-retain-needs-retain`, `error-retain-needs-response`, `mask-needs-mask`,
    /// `mask-not-one`, `mask-text-too-long`, `mask-last-range`, `detect-needs-redact`,
    /// `patterns-need-redact`, `detect-empty`, `too-many-patterns`, `pattern-name-invalid`,
    /// `pattern-matches-empty`, those of patterns of rules, and those of
    /// [`PathError`](crate::json_path::PathError).
    pub fn validate(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        if self.op != Op::Redact || !self.paths.is_empty() {
            check_paths("/paths", &self.paths, self.op, &mut problems);
        }
        self.check_mask(&mut problems);
        self.check_redact(&mut problems);
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
                format!(
                    "`error_retain` says what a `retain` keeps of error bodies; `{}` applies to \
                     them as it is. Remove it",
                    self.op.as_str()
                ),
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

impl Filter {
    /// An upper bound of what its own patterns take when compiled, in bytes.
    pub fn compiled_bytes_max(&self) -> usize {
        if self.patterns.is_empty() {
            return 0;
        }
        rule::remembered_size(&self.patterns, || {
            let own = own_pattern::Own::compile(&self.patterns);
            // One that does not compile is refused for itself.
            own.ok().flatten().map_or(0, |own| own.bytes_max())
        })
    }

    fn check_mask(&self, problems: &mut Vec<Problem>) {
        match &self.mask {
            Some(mask) if self.op == Op::Mask => problems.extend(mask.with().err()),
            Some(_) => {
                let detail = format!(
                    "says what a `mask` puts in place, this is `{}`",
                    self.op.as_str()
                );
                problems.push(Problem::new("/mask", "mask-needs-mask", detail));
            }
            None => {}
        }
    }

    fn check_redact(&self, problems: &mut Vec<Problem>) {
        if self.op == Op::Redact {
            if self.detect.is_empty() && self.patterns.is_empty() {
                let detail = "says what to look for: name detectors, or give `patterns`";
                problems.push(Problem::new("/detect", "detect-empty", detail));
            }
            problems.extend(
                own_pattern::Own::compile(&self.patterns)
                    .err()
                    .into_iter()
                    .flatten(),
            );
            return;
        }
        let op = self.op.as_str();
        if !self.detect.is_empty() {
            let detail = format!("says what a `redact` looks for, this is `{op}`");
            problems.push(Problem::new("/detect", "detect-needs-redact", detail));
        }
        if !self.patterns.is_empty() {
            let detail = format!("says what a `redact` looks for, this is `{op}`");
            problems.push(Problem::new("/patterns", "patterns-need-redact", detail));
        }
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
