//! From a rule as it is stored to one that can be evaluated, or to all that is wrong with it.
//!
//! Saving a rule and loading one run this code, so that neither accepts what the other refuses.

use http::header::HeaderName;
use ipnet::IpNet;
use regex::Regex;

use super::parts::{BodyMatcher, HeaderMatcher, Methods, NameMatcher, QueryMatcher, parse_network};
use super::pattern::{self, Fit, Flags, Patterns, TOO_LARGE};
use super::{
    BodyPart, COMPILED_BYTES_MAX, Effect, MESSAGE_CHARS_MAX, Mode, NOTES_CHARS_MAX, NamedPart,
    OnUnreadable, PARTS_MAX, PATTERN_COMPILED_BYTES_MAX, PATTERNS_BYTES_MAX, PathPart, Presence,
    Rule,
};
use crate::body_view::JsonPath;
use crate::pattern_size;
use crate::problem::Problem;

/// A rule that can be evaluated.
#[derive(Clone, Debug)]
pub(super) struct CompiledRule {
    pub(super) id: String,
    pub(super) effect: Effect,
    pub(super) priority: i32,
    pub(super) mode: Mode,
    pub(super) message: Option<String>,
    pub(super) on_unreadable: OnUnreadable,
    pub(super) methods: Option<Methods>,
    pub(super) path: Option<PathMatcher>,
    pub(super) source: Vec<IpNet>,
    pub(super) headers: Vec<HeaderMatcher>,
    pub(super) query: Vec<QueryMatcher>,
    pub(super) body: Vec<BodyMatcher>,
}

/// A compiled path part.
#[derive(Clone, Debug)]
pub(super) struct PathMatcher {
    pub(super) pattern: PathPattern,
    pub(super) presence: Presence,
}

/// Where a path part's pattern is.
#[derive(Clone, Debug)]
pub(super) enum PathPattern {
    /// On its own.
    Alone(Regex),
    /// The set's pattern of this number.
    InSet(usize),
}

/// Compiles rules and collects what is wrong with them.
pub(super) struct Compiler<'p> {
    patterns: &'p mut Patterns,
    problems: Vec<Problem>,
    pattern_bytes: usize,
    compiled_bytes_max: usize,
}

impl<'p> Compiler<'p> {
    /// One that has compiled nothing yet but the patterns that others have, too.
    pub(super) fn new(patterns: &'p mut Patterns) -> Self {
        Self {
            patterns,
            problems: Vec::new(),
            pattern_bytes: 0,
            compiled_bytes_max: 0,
        }
    }

    /// Compiles one rule; what could not be compiled is missing, and `problems` says why.
    pub(super) fn rule(&mut self, rule: &Rule, at: &str) -> CompiledRule {
        self.check_texts(rule, at);
        self.check_lengths(rule, at);
        CompiledRule {
            id: rule.id.clone(),
            effect: rule.effect,
            priority: rule.priority,
            mode: rule.mode,
            message: rule.message.clone(),
            on_unreadable: rule.on_unreadable,
            methods: self.methods(&rule.methods, at),
            path: rule.path.as_ref().and_then(|part| self.path(part, at)),
            source: self.source(&rule.source, at),
            headers: self.parts(&rule.headers, at, "headers", Self::header),
            query: self.parts(&rule.query, at, "query", Self::parameter),
            body: self.parts(&rule.body, at, "body", Self::body),
        }
    }

    fn report(&mut self, pointer: String, code: &'static str, detail: impl Into<String>) {
        self.problems.push(Problem::new(pointer, code, detail));
    }

    /// In a scope every rule has an id and no two have the same: denials name rules by it.
    pub(super) fn check_ids(&mut self, rules: &[Rule]) {
        let mut known = std::collections::HashSet::new();
        for (place, rule) in rules.iter().enumerate() {
            if rule.id.is_empty() {
                self.report(
                    format!("/{place}/id"),
                    "id-missing",
                    "a stored rule has an id",
                );
            } else if !known.insert(&rule.id) {
                let detail = format!("another rule of the scope has the id {:?}", rule.id);
                self.report(format!("/{place}/id"), "id-not-unique", detail);
            }
        }
    }

    /// The size of the compiled patterns, if nothing is wrong.
    pub(super) fn finish(mut self) -> Result<usize, Vec<Problem>> {
        self.check_sizes();
        if self.problems.is_empty() {
            Ok(self.compiled_bytes_max)
        } else {
            Err(self.problems)
        }
    }

    fn check_sizes(&mut self) {
        if self.pattern_bytes > PATTERNS_BYTES_MAX {
            let detail = format!(
                "the patterns of a scope have at most {PATTERNS_BYTES_MAX} bytes, these have {}",
                self.pattern_bytes
            );
            self.report(String::new(), "patterns-too-long", detail);
        }
        if self.compiled_bytes_max > COMPILED_BYTES_MAX {
            self.problems.push(patterns_too_large());
        }
    }

    fn check_texts(&mut self, rule: &Rule, at: &str) {
        let message = rule.message.as_deref().unwrap_or_default();
        let length = message.chars().count();
        if length > MESSAGE_CHARS_MAX {
            let detail = format!(
                "a message has at most {MESSAGE_CHARS_MAX} characters, this one has {length}"
            );
            self.report(format!("{at}/message"), "message-too-long", detail);
        }
        if message.chars().any(char::is_control) {
            let detail = "a message may not hold control characters: it is sent to callers";
            self.report(format!("{at}/message"), "message-control-character", detail);
        }
        let length = rule.notes.as_deref().unwrap_or_default().chars().count();
        if length > NOTES_CHARS_MAX {
            let detail =
                format!("notes have at most {NOTES_CHARS_MAX} characters, these have {length}");
            self.report(format!("{at}/notes"), "notes-too-long", detail);
        }
    }

    fn check_lengths(&mut self, rule: &Rule, at: &str) {
        let lists = [
            ("methods", rule.methods.len()),
            ("headers", rule.headers.len()),
            ("query", rule.query.len()),
            ("body", rule.body.len()),
            ("source", rule.source.len()),
        ];
        for (name, length) in lists.into_iter().filter(|(_, length)| *length > PARTS_MAX) {
            let detail = format!("{name} has at most {PARTS_MAX} elements, this one has {length}");
            self.report(format!("{at}/{name}"), "parts-too-many", detail);
        }
    }

    fn methods(&mut self, names: &[String], at: &str) -> Option<Methods> {
        let mut methods = Methods::default();
        for (place, name) in names.iter().enumerate() {
            // RFC 9110, section 9.1: a method is a token.
            if http::Method::from_bytes(name.as_bytes()).is_err() {
                let detail = format!("{name:?} is not a method name");
                self.report(format!("{at}/methods/{place}"), "method-invalid", detail);
            }
            methods.add(name);
        }
        (!names.is_empty()).then_some(methods)
    }

    fn source(&mut self, networks: &[String], at: &str) -> Vec<IpNet> {
        let mut parsed = Vec::with_capacity(networks.len());
        for (place, network) in networks.iter().enumerate() {
            match parse_network(network) {
                Some(network) => parsed.push(network),
                None => {
                    let detail = format!(
                        "{network:?} is neither a network such as 10.0.0.0/8 nor an address"
                    );
                    self.report(format!("{at}/source/{place}"), "source-invalid", detail);
                }
            }
        }
        parsed
    }

    fn path(&mut self, part: &PathPart, at: &str) -> Option<PathMatcher> {
        let pattern_at = format!("{at}/path/pattern");
        let flags_at = format!("{at}/path/flags");
        let regex = self.pattern(&part.pattern, &part.flags, pattern_at, flags_at)?;
        Some(PathMatcher {
            pattern: PathPattern::Alone(regex),
            presence: part.presence,
        })
    }

    /// Compiles a list of parts, each at its own pointer.
    fn parts<P, M>(
        &mut self,
        parts: &[P],
        at: &str,
        list: &str,
        compile: fn(&mut Self, &P, &str) -> Option<M>,
    ) -> Vec<M> {
        let places = parts.iter().enumerate();
        places
            .filter_map(|(place, part)| compile(self, part, &format!("{at}/{list}/{place}")))
            .collect()
    }

    fn header(&mut self, part: &NamedPart, at: &str) -> Option<HeaderMatcher> {
        let exact = pattern::is_literal(&part.name).then(|| part.name.parse::<HeaderName>());
        let name = match exact {
            Some(Ok(name)) => Some(NameMatcher::Exact(name)),
            _ => self.name(&part.name, true, at).map(NameMatcher::Pattern),
        };
        let value = self.value(part.value.as_deref(), &part.flags, at);
        Some(HeaderMatcher {
            name: name?,
            value: value?,
            presence: part.presence,
        })
    }

    fn parameter(&mut self, part: &NamedPart, at: &str) -> Option<QueryMatcher> {
        let name = if pattern::is_literal(&part.name) {
            Some(NameMatcher::Exact(part.name.as_bytes().to_vec()))
        } else {
            self.name(&part.name, false, at).map(NameMatcher::Pattern)
        };
        let value = self.value(part.value.as_deref(), &part.flags, at);
        Some(QueryMatcher {
            name: name?,
            value: value?,
            presence: part.presence,
        })
    }

    fn body(&mut self, part: &BodyPart, at: &str) -> Option<BodyMatcher> {
        self.pattern_bytes = self.pattern_bytes.saturating_add(part.json_path.len());
        if self.is_over() {
            return None;
        }
        let before = pattern_size::made_bytes();
        let parsed = JsonPath::parse_told(&part.json_path);
        self.compiled_bytes_max += pattern_size::made_bytes().wrapping_sub(before);
        let path = match parsed {
            Ok(path) => Some(path),
            Err(problem) => {
                let pointer = format!("{at}/json_path");
                self.report(pointer, "json-path-invalid", problem);
                None
            }
        };
        let value = self.value(part.value.as_deref(), &part.flags, at);
        Some(BodyMatcher {
            path: path?,
            value: value?,
            presence: part.presence,
        })
    }

    /// Compiles the optional value pattern of a part.
    #[expect(
        clippy::option_option,
        reason = "outer: compiled or reported, inner: given or not"
    )]
    fn value(&mut self, value: Option<&str>, flags: &str, at: &str) -> Option<Option<Regex>> {
        let flags_at = format!("{at}/flags");
        let Some(value) = value else {
            if !flags.is_empty() {
                self.report(
                    flags_at,
                    "flags-without-value",
                    "flags belong to a value pattern",
                );
            }
            return Some(None);
        };
        self.pattern(value, flags, format!("{at}/value"), flags_at)
            .map(Some)
    }

    fn pattern(
        &mut self,
        pattern: &str,
        flags: &str,
        pattern_at: String,
        flags_at: String,
    ) -> Option<Regex> {
        let flags = match Flags::parse(flags) {
            Ok(flags) => Some(flags),
            Err(problem) => {
                self.report(flags_at, problem.code, problem.detail);
                None
            }
        };
        let fit = Fit::Searched(flags.unwrap_or_default());
        let regex = self.charge(pattern, fit, pattern_at)?;
        flags.map(|_| regex)
    }

    fn name(&mut self, name: &str, ignore_case: bool, at: &str) -> Option<Regex> {
        let pointer = format!("{at}/name");
        if name.is_empty() {
            self.report(pointer, "name-missing", "an empty name fits nothing");
            return None;
        }
        self.charge(name, Fit::Name { ignore_case }, pointer)
    }

    fn is_over(&self) -> bool {
        self.compiled_bytes_max > COMPILED_BYTES_MAX || self.pattern_bytes > PATTERNS_BYTES_MAX
    }

    /// Compiles a pattern and counts it against the scope's limits, or reports it.
    ///
    /// Over a limit nothing is compiled any more: large patterns take tens of milliseconds each,
    /// and the scope is refused anyway.
    fn charge(&mut self, source: &str, fit: Fit, pointer: String) -> Option<Regex> {
        self.pattern_bytes = self.pattern_bytes.saturating_add(source.len());
        if self.is_over() {
            return None;
        }
        match self.patterns.compiled(source, fit) {
            Ok(pattern) => {
                self.compiled_bytes_max += pattern.bytes_max;
                Some(pattern.regex)
            }
            Err(problem) => {
                if problem.code == TOO_LARGE {
                    self.compiled_bytes_max += PATTERN_COMPILED_BYTES_MAX;
                }
                self.report(pointer, problem.code, problem.detail);
                None
            }
        }
    }
}

pub(super) fn patterns_too_large() -> Problem {
    let detail = format!(
        "the patterns of the scope compile to more than {COMPILED_BYTES_MAX} bytes; use ASCII \
         classes such as [0-9A-Za-z_] instead of \\w, or fewer rules"
    );
    Problem::new("", "patterns-too-large", detail)
}
