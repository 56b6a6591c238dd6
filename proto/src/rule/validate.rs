//! The checks of one rule at save: what is refused, and what is accepted with a warning.

use super::compile::Compiler;
use super::pattern::Patterns;
use super::{Effect, Mode, PathPart, Presence, Rule};
use crate::problem::Problem;

impl Rule {
    /// Everything that is wrong with the rule; empty if it can be stored.
    ///
    /// Pointers begin at the rule (`/headers/0/value`).
    pub fn validate(&self) -> Vec<Problem> {
        let mut patterns = Patterns::default();
        let mut compiler = Compiler::new(&mut patterns);
        compiler.rule(self, "");
        compiler.finish().err().unwrap_or_default()
    }

    /// What is valid but probably not meant.
    pub fn warnings(&self) -> Vec<Problem> {
        let mut warnings = self.unusual_methods();
        if self.effect == Effect::Deny && self.mode == Mode::Enforce && self.matches_all() {
            let detail = "the rule has no condition: it denies every request";
            warnings.push(Problem::new("", "denies-all", detail));
        }
        let Some(path) = &self.path else {
            return warnings;
        };
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
        if branches.iter().any(|branch| is_found_in_no_path(branch)) {
            warn(
                "path-never-matches",
                "every path begins with /, and what follows ^ is another character: begin it \
                 with ^/",
            );
        }
        if names_a_query(&path.pattern) {
            warn(
                "path-has-no-query",
                "a path is compared without its query: for a parameter use `query`",
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

    /// Whether no part says which requests are meant.
    fn matches_all(&self) -> bool {
        self.methods.is_empty()
            && self
                .path
                .as_ref()
                .is_none_or(|path| path.pattern.is_empty() && path.presence == Presence::Present)
            && self.headers.is_empty()
            && self.query.is_empty()
            && self.body.is_empty()
            && self.source.is_empty()
    }

    /// Methods that are tokens and that hardly anybody sends.
    fn unusual_methods(&self) -> Vec<Problem> {
        let methods = self.methods.iter().enumerate();
        let is_usual = |method: &str| {
            let mut known = USUAL_METHODS.iter();
            known.any(|known| known.eq_ignore_ascii_case(method))
        };
        let unusual = methods.filter(|(_, method)| !is_usual(method));
        let warned = unusual.map(|(at, method)| {
            let detail = format!(
                "`{method}` is a method that hardly any client sends: is it spelled as meant?"
            );
            Problem::new(format!("/methods/{at}"), "method-unusual", detail)
        });
        warned.collect()
    }
}

/// Methods of RFC 9110, RFC 5789, WebDAV (RFC 4918) and its kin that proxies may send.
const USUAL_METHODS: [&str; 17] = [
    "GET",
    "HEAD",
    "POST",
    "PUT",
    "PATCH",
    "DELETE",
    "OPTIONS",
    "PROPFIND",
    "PROPPATCH",
    "MKCOL",
    "COPY",
    "MOVE",
    "LOCK",
    "UNLOCK",
    "REPORT",
    "SEARCH",
    "QUERY",
];

/// Whether a branch begins with `^` and a character of its own that is no slash.
fn is_found_in_no_path(branch: &str) -> bool {
    let rest = branch.trim_start();
    let Some(rest) = rest.strip_prefix('^').or_else(|| rest.strip_prefix(r"\A")) else {
        return false;
    };
    let mut characters = rest.chars();
    let first = characters.next().is_some_and(|c| c.is_ascii_alphanumeric());
    // `^v?/x` and the like may still match.
    first && !characters.next().is_some_and(|c| "?*{".contains(c))
}

/// Whether a pattern looks as if a query were meant: `\?name=`. Without the backslash the `?` makes
/// what is before it optional, which may well be meant.
fn names_a_query(pattern: &str) -> bool {
    let marks = [r"\?", "[?]"];
    let mut behind = marks.iter().flat_map(|mark| pattern.split(mark).skip(1));
    behind.any(|rest| {
        let name = rest.find(|c: char| !(c.is_ascii_alphanumeric() || "_-[]\\".contains(c)));
        name.is_some_and(|end| end > 0 && rest.as_bytes().get(end) == Some(&b'='))
    })
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
