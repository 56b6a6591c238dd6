//! The checks of one rule at save: what is refused, and what is accepted with a warning.

use super::compile::Compiler;
use super::{Effect, PathPart, Presence, Rule};
use crate::problem::Problem;

impl Rule {
    /// Everything that is wrong with the rule; empty if it can be stored.
    ///
    /// Pointers begin at the rule (`/headers/0/value`).
    pub fn validate(&self) -> Vec<Problem> {
        let mut compiler = Compiler::default();
        compiler.rule(self, "");
        compiler.finish().err().unwrap_or_default()
    }

    /// What is valid but probably not meant.
    pub fn warnings(&self) -> Vec<Problem> {
        let Some(path) = &self.path else {
            return Vec::new();
        };
        let mut warnings = Vec::new();
        let mut warn = |code, detail: &str| {
            warnings.push(Problem::new("/path/pattern", code, detail));
        };
        // A pattern either lets through what it finds, or lets through what it does not find.
        let admits = (self.effect == Effect::Allow) == (path.presence == Presence::Present);
        let branches = top_level_branches(&path.pattern);
        if admits && !branches.iter().all(|branch| is_anchored(branch)) {
            warn(
                "path-not-anchored",
                "the pattern is found anywhere: /v1/users also lets through /evil/v1/users; begin \
                 it (and each of its alternatives) with ^",
            );
        }
        if !admits && branches.iter().any(|branch| misses_slash(branch)) {
            warn(
                "path-trailing-slash",
                "the pattern ends in $ and does not see the same path with a slash at its end; \
                 end it in /?$",
            );
        }
        if names_what_canonical_removes(path) {
            warn(
                "path-only-raw",
                "the canonical reading of a path holds no `;`, `\\` or `//`: what the pattern \
                 says of them is compared with the path as it was spelled, which callers choose",
            );
        }
        warnings
    }
}

/// The alternatives of a pattern that are not inside of parentheses or classes.
fn top_level_branches(pattern: &str) -> Vec<&str> {
    let mut branches = Vec::new();
    let (mut start, mut depth, mut in_class) = (0, 0_usize, false);
    let mut characters = pattern.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '\\' => {
                characters.next();
            }
            '[' => in_class = true,
            ']' => in_class = false,
            '(' if !in_class => depth += 1,
            ')' if !in_class => depth = depth.saturating_sub(1),
            '|' if !in_class && depth == 0 => {
                branches.push(pattern.get(start..at).unwrap_or_default());
                start = at + 1;
            }
            _ => {}
        }
    }
    branches.push(pattern.get(start..).unwrap_or_default());
    branches
}

/// Whether a branch begins with `^` or `\A`, perhaps inside of groups or after flags.
fn is_anchored(branch: &str) -> bool {
    let mut rest = branch.trim_start();
    while let Some(inner) = rest.strip_prefix('(') {
        rest = match inner.strip_prefix('?') {
            Some(flags) => match flags.find([':', ')', '>']) {
                Some(end) => flags.get(end + 1..).unwrap_or_default(),
                None => "",
            },
            None => inner,
        };
    }
    rest.starts_with('^') || rest.starts_with(r"\A")
}

/// Whether a branch ends in `$` and cannot match a slash before it.
fn misses_slash(branch: &str) -> bool {
    let branch = branch.trim_end().trim_end_matches(')');
    let Some(before) = branch
        .strip_suffix('$')
        .or_else(|| branch.strip_suffix(r"\z"))
    else {
        return false;
    };
    let before = before.trim_end_matches(')');
    let escaped = before.ends_with('\\') && !before.ends_with(r"\\");
    !escaped
        && !["/?", "/*", ".*", ".+"]
            .iter()
            .any(|end| before.ends_with(end))
}

fn names_what_canonical_removes(path: &PathPart) -> bool {
    [";", r"\\", "//", "%3B", "%3b"]
        .iter()
        .any(|spelling| path.pattern.contains(spelling))
}
