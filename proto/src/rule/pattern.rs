//! Patterns: regular expressions whose time is linear and whose memory is known.

use std::collections::HashMap;

use regex::{Regex, RegexBuilder};

use super::{PATTERN_BYTES_MAX, PATTERN_COMPILED_BYTES_MAX};
use crate::pattern_size;
use crate::problem::Problem;

/// The code of a pattern whose compiled form is too large.
pub const TOO_LARGE: &str = "pattern-too-large";

/// A compiled pattern and an upper bound of its size.
#[derive(Clone, Debug)]
pub(super) struct Pattern {
    pub(super) regex: Regex,
    pub(super) bytes_max: usize,
}

/// Why a pattern or its flags are refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PatternProblem {
    pub(super) code: &'static str,
    pub(super) detail: String,
}

/// Patterns that are compiled once for all scopes that have them.
///
/// Copies of one share its program; each has its own caches, so that who uses one never waits for
/// who uses another. Each counts in full against the bounds of its scope.
#[derive(Debug, Default)]
pub struct Patterns(HashMap<Fit, HashMap<String, Pattern>>);

/// How a pattern is held against a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Fit {
    /// It is searched anywhere.
    Searched(Flags),
    /// It must fit all of a name.
    Name { ignore_case: bool },
}

impl Patterns {
    /// A pattern, compiled unless it was already.
    pub(super) fn compiled(&mut self, pattern: &str, fit: Fit) -> Result<Pattern, PatternProblem> {
        let known = self.0.entry(fit).or_default();
        if let Some(known) = known.get(pattern) {
            return Ok(known.clone());
        }
        let compiled = match fit {
            Fit::Searched(flags) => compile(pattern, flags),
            Fit::Name { ignore_case } => compile_name(pattern, ignore_case),
        }?;
        known.insert(pattern.to_owned(), compiled.clone());
        Ok(compiled)
    }
}

/// The flags of a pattern.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Flags {
    ignore_case: bool,
    multi_line: bool,
    dot_matches_new_line: bool,
    ignore_whitespace: bool,
}

impl Flags {
    /// Reads `imsx`, in any order.
    pub(super) fn parse(text: &str) -> Result<Self, PatternProblem> {
        let mut flags = Self::default();
        for flag in text.chars() {
            match flag {
                'i' => flags.ignore_case = true,
                'm' => flags.multi_line = true,
                's' => flags.dot_matches_new_line = true,
                'x' => flags.ignore_whitespace = true,
                'g' => return Err(unknown_flag(flag, "; drop it, one match is enough")),
                _ => return Err(unknown_flag(flag, "")),
            }
        }
        Ok(flags)
    }

    /// The pattern with its flags written before it.
    pub(super) fn inline(self, pattern: &str) -> String {
        let set = [
            (self.ignore_case, 'i'),
            (self.multi_line, 'm'),
            (self.dot_matches_new_line, 's'),
            (self.ignore_whitespace, 'x'),
        ];
        let letters: String = set
            .iter()
            .filter(|(on, _)| *on)
            .map(|(_, flag)| *flag)
            .collect();
        if letters.is_empty() {
            pattern.to_owned()
        } else {
            format!("(?{letters}){pattern}")
        }
    }
}

fn unknown_flag(flag: char, advice: &str) -> PatternProblem {
    PatternProblem {
        code: "flag-unknown",
        detail: format!("flag {flag:?} is not one of i, m, s, x{advice}"),
    }
}

/// Compiles a pattern that is searched anywhere in a text.
fn compile(pattern: &str, flags: Flags) -> Result<Pattern, PatternProblem> {
    if pattern.len() > PATTERN_BYTES_MAX {
        return Err(PatternProblem {
            code: "pattern-too-long",
            detail: format!(
                "the pattern has {} bytes; a pattern has at most {PATTERN_BYTES_MAX}",
                pattern.len()
            ),
        });
    }
    let mut builder = RegexBuilder::new(pattern);
    builder
        .case_insensitive(flags.ignore_case)
        .multi_line(flags.multi_line)
        .dot_matches_new_line(flags.dot_matches_new_line)
        .ignore_whitespace(flags.ignore_whitespace)
        .dfa_size_limit(PATTERN_COMPILED_BYTES_MAX);
    build(&mut builder)
}

/// Compiles a pattern that belongs to no rule: one that is searched anywhere in a text, with its
/// flags written before it, and an upper bound of its size in bytes.
///
/// # Errors
/// The problem, at `/pattern` or `/flags`.
pub fn compile_pattern(pattern: &str, flags: &str) -> Result<(Regex, usize), Problem> {
    let at = |pointer: &str, problem: PatternProblem| {
        Problem::new(pointer, problem.code, problem.detail)
    };
    let flags = Flags::parse(flags).map_err(|problem| at("/flags", problem))?;
    // Alone first, for its length and so that faults are told of what was written.
    compile(pattern, flags)
        .and_then(|alone| match flags == Flags::default() {
            true => Ok(alone),
            false => compile_inlined(&flags.inline(pattern)),
        })
        .map(|compiled| (compiled.regex, compiled.bytes_max))
        .map_err(|problem| at("/pattern", problem))
}

fn compile_inlined(pattern: &str) -> Result<Pattern, PatternProblem> {
    build(RegexBuilder::new(pattern).dfa_size_limit(PATTERN_COMPILED_BYTES_MAX))
}

/// Compiles a pattern that must fit a whole name.
fn compile_name(pattern: &str, ignore_case: bool) -> Result<Pattern, PatternProblem> {
    let flags = Flags {
        ignore_case,
        ..Flags::default()
    };
    // Alone first: `a)|(?:b` would be valid between the anchors.
    compile(pattern, flags)?;
    let mut builder = RegexBuilder::new(&format!(r"\A(?:{pattern})\z"));
    builder
        .case_insensitive(ignore_case)
        .dfa_size_limit(PATTERN_COMPILED_BYTES_MAX);
    build(&mut builder)
}

fn build(builder: &mut RegexBuilder) -> Result<Pattern, PatternProblem> {
    let (regex, bytes_max) = pattern_size::compile(builder, PATTERN_COMPILED_BYTES_MAX)
        .map_err(|error| explain(&error))?;
    Ok(Pattern { regex, bytes_max })
}

fn explain(error: &regex::Error) -> PatternProblem {
    let regex::Error::Syntax(text) = error else {
        return PatternProblem {
            code: TOO_LARGE,
            detail: format!(
                "the pattern compiles to more than {PATTERN_COMPILED_BYTES_MAX} bytes; use smaller \
                 repetitions, or ASCII classes such as [0-9A-Za-z_] instead of \\w"
            ),
        };
    };
    // The crate draws the pattern with a marker; its last line says what is wrong.
    let reason = text
        .lines()
        .rev()
        .find(|line| !line.trim().is_empty())
        .unwrap_or_default();
    let reason = reason.trim().trim_start_matches("error: ");
    let not_linear = "it needs backtracking, whose time is not linear in the length of the request";
    let (code, detail) = if reason.contains("look-around") {
        let advice = "write what must not match as a part with presence: absent";
        (
            "pattern-look-around",
            format!("look-around is not supported: {not_linear}; {advice}"),
        )
    } else if reason.contains("backreference") {
        (
            "pattern-backreference",
            format!("back-references are not supported: {not_linear}"),
        )
    } else {
        ("pattern-invalid", format!("not a valid pattern: {reason}"))
    };
    PatternProblem { code, detail }
}

/// Whether a name pattern fits exactly the name that it spells.
pub(super) fn is_literal(pattern: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    !pattern.is_empty() && pattern.bytes().all(plain)
}
