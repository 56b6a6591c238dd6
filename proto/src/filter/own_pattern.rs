//! Patterns that an organisation gives `redact` besides the detectors there are.

use std::ops::Range;

use regex::{Regex, RegexSet, RegexSetBuilder};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::redact::Detector;
use crate::json_path::{SelectError, Work};
use crate::problem::Problem;
use crate::rule::{self, PATTERN_COMPILED_BYTES_MAX};

/// Most own patterns of one filter.
pub const OWN_PATTERNS_MAX: usize = 16;
/// Longest name of an own pattern, in bytes.
const NAME_BYTES_MAX: usize = 32;

/// An own pattern of a `redact`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct OwnPattern {
    /// What stands in brackets in the place of what was found: a small letter, then at most 31
    /// small letters, digits and `_`.
    pub name: String,
    /// A regular expression, searched anywhere in a string; at most 1,024 bytes. Neither
    /// look-around nor back-references.
    pub pattern: String,
    /// Flags: any of `i`, `m`, `s`, `x`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub flags: String,
}

/// The own patterns of one filter, compiled.
#[derive(Clone, Debug)]
pub(super) struct Own {
    set: RegexSet,
    patterns: Vec<(String, Regex)>,
    bytes_max: usize,
}

impl Own {
    /// Compiles the patterns of a filter; none where there are none.
    ///
    /// # Errors
    /// Every problem, at `/patterns/…`.
    pub(super) fn compile(patterns: &[OwnPattern]) -> Result<Option<Own>, Vec<Problem>> {
        if patterns.is_empty() {
            return Ok(None);
        }
        let mut problems = Vec::new();
        if patterns.len() > OWN_PATTERNS_MAX {
            let count = patterns.len();
            let detail = format!("{count} patterns, at most {OWN_PATTERNS_MAX} are allowed");
            return Err(vec![Problem::new("/patterns", "too-many-patterns", detail)]);
        }
        let mut compiled: Vec<(String, Regex)> = Vec::new();
        let mut bytes_max = 0;
        for (index, own) in patterns.iter().enumerate() {
            let at = |field: &str| format!("/patterns/{index}/{field}");
            if let Some(detail) = name_problem(&own.name, &compiled) {
                problems.push(Problem::new(at("name"), "pattern-name-invalid", detail));
            }
            match rule::compile_pattern(&own.pattern, &own.flags) {
                Ok((regex, _)) if regex.is_match("") => {
                    let detail = "matches an empty text too, so it would be found everywhere";
                    problems.push(Problem::new(at("pattern"), "pattern-matches-empty", detail));
                }
                Ok((regex, bytes)) => {
                    bytes_max += bytes;
                    compiled.push((own.name.clone(), regex));
                }
                Err(problem) => problems.push(problem.below(&format!("/patterns/{index}"))),
            }
        }
        let set = RegexSetBuilder::new(compiled.iter().map(|(_, regex)| regex.as_str()))
            .size_limit(OWN_PATTERNS_MAX * PATTERN_COMPILED_BYTES_MAX)
            .dfa_size_limit(PATTERN_COMPILED_BYTES_MAX)
            .build();
        match (set, problems.is_empty()) {
            (Ok(set), true) => Ok(Some(Own {
                set,
                patterns: compiled,
                // Once each and once together.
                bytes_max: 2 * bytes_max,
            })),
            (Err(_), true) => {
                let detail = "the patterns are too large together; use fewer or smaller ones";
                Err(vec![Problem::new("/patterns", "pattern-too-large", detail)])
            }
            (_, false) => Err(problems),
        }
    }

    /// An upper bound of what the compiled patterns take, in bytes.
    pub(super) fn bytes_max(&self) -> usize {
        self.bytes_max
    }

    pub(super) fn name(&self, index: usize) -> &str {
        self.patterns.get(index).map_or("", |(name, _)| name)
    }

    /// Hands every match in `text` to `found`, with the place of its pattern.
    pub(super) fn find(
        &self,
        text: &str,
        work: &mut Work,
        found: &mut dyn FnMut(Range<usize>, usize),
    ) -> Result<(), SelectError> {
        work.search(text.len())?;
        if !self.set.is_match(text) {
            return Ok(());
        }
        for index in &self.set.matches(text) {
            let Some((_, pattern)) = self.patterns.get(index) else {
                continue;
            };
            let mut at = 0;
            // A search may look through all the rest to decide where its match ends.
            while at <= text.len() {
                work.search(text.len() - at)?;
                let Some(next) = pattern.find_at(text, at) else {
                    break;
                };
                at = match next.is_empty() {
                    true => {
                        next.end() + text[next.end()..].chars().next().map_or(1, char::len_utf8)
                    }
                    false => next.end(),
                };
                if !next.is_empty() {
                    found(next.range(), index);
                }
            }
        }
        Ok(())
    }
}

/// What is wrong with a name.
fn name_problem(name: &str, before: &[(String, Regex)]) -> Option<String> {
    let in_name = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    let begins = name.as_bytes().first().is_some_and(u8::is_ascii_lowercase);
    if !begins || name.len() > NAME_BYTES_MAX || !name.bytes().all(in_name) {
        return Some(format!(
            "must begin with a small letter, then at most {} small letters, digits and `_`",
            NAME_BYTES_MAX - 1
        ));
    }
    if Detector::ALL.iter().any(|known| known.as_str() == name) {
        return Some(format!("`{name}` is the name of a detector"));
    }
    let taken = before.iter().any(|(other, _)| other == name);
    taken.then(|| format!("`{name}` is the name of another pattern of this filter"))
}
