//! The compiled rules of one scope.
//!
//! Few rules are tried one after the other. Many path patterns share one [`RegexSet`], which reads
//! the path once for all of them and leaves only the rules that can match; many rules that ask for
//! a field are found by the fields that the request has ([`FieldSet`]). Methods are a bit mask, so
//! a request whose method no path rule covers does not run the set of paths.

use regex::{RegexSet, RegexSetBuilder, SetMatches};

use super::compile::{CompiledRule, Compiler, PathPattern, patterns_too_large};
use super::field_set::FieldSet;
use super::parts::Methods;
use super::pattern::{Flags, Patterns};
use super::{COMPILED_BYTES_MAX, Effect, PathPart, Presence, RULES_MAX, Rule};
use crate::problem::Problem;

/// From so many patterns on one set is cheaper than one pattern after the other.
pub(super) const SET_FROM: usize = 16;
/// Memory for the set's lazily built automaton, for each thread that uses it at once.
pub(super) const SET_CACHE_BYTES: usize = 4 * 1024 * 1024;

/// The compiled rules of one scope.
#[derive(Clone, Debug)]
pub struct RuleSet {
    pub(super) rules: Vec<CompiledRule>,
    pub(super) default_effect: Effect,
    pub(super) path_set: Option<PathSet>,
    pub(super) field_set: Option<FieldSet>,
    /// The places of the rules that neither set tells anything of, in order.
    pub(super) unfiltered: Vec<usize>,
    compiled_bytes_max: usize,
}

/// All path patterns of a scope as one automaton.
#[derive(Clone, Debug)]
pub(super) struct PathSet {
    pub(super) set: RegexSet,
    /// The methods of the rules with a path part; `None`: one of them covers every method.
    pub(super) methods: Option<Methods>,
    /// The place of each pattern's rule in the scope.
    rule_places: Vec<usize>,
}

impl PathSet {
    /// Marks the places of the rules that can match, given what was found in each reading.
    ///
    /// The others of the set ask for a pattern that was found in none.
    pub(super) fn mark_found(&self, readings: &[SetMatches], places: &mut [bool]) {
        let found = readings.iter().flat_map(SetMatches::iter);
        let found = found.filter_map(|number| self.rule_places.get(number));
        found.for_each(|place| mark(places, *place));
    }
}

/// The rule in this place can match.
pub(super) fn mark(places: &mut [bool], place: usize) {
    if let Some(can_match) = places.get_mut(place) {
        *can_match = true;
    }
}

impl RuleSet {
    /// Compiles the rules of one scope.
    ///
    /// # Errors
    /// Every problem of every rule; pointers begin with the rule's place (`/3/path/pattern`).
    pub fn compile(rules: &[Rule], default_effect: Effect) -> Result<Self, Vec<Problem>> {
        Self::sharing(rules, default_effect, &mut Patterns::default())
    }

    /// The same with patterns that other scopes may have, too.
    ///
    /// # Errors
    /// As for [`RuleSet::compile`].
    pub fn sharing(
        rules: &[Rule],
        default_effect: Effect,
        patterns: &mut Patterns,
    ) -> Result<Self, Vec<Problem>> {
        if rules.len() > RULES_MAX {
            let detail = format!(
                "a scope has at most {RULES_MAX} rules, this has {}",
                rules.len()
            );
            return Err(vec![Problem::new("", "rules-too-many", detail)]);
        }
        let mut compiler = Compiler::new(patterns);
        compiler.check_ids(rules);
        let mut compiled = Vec::with_capacity(rules.len());
        for (place, rule) in rules.iter().enumerate() {
            compiled.push(compiler.rule(rule, &format!("/{place}")));
        }
        let compiled_bytes_max = compiler.finish()?;
        let path_set = share_paths(&mut compiled, rules)?;
        let in_set = |rule: &CompiledRule| {
            let path = rule
                .path
                .as_ref()
                .filter(|path| path.presence == Presence::Present);
            path.is_some_and(|path| matches!(path.pattern, PathPattern::InSet(_)))
        };
        let places = compiled
            .iter()
            .enumerate()
            .filter(|(_, rule)| !in_set(rule));
        let mut unfiltered = places.map(|(place, _)| place).collect();
        let field_set = FieldSet::of(&mut unfiltered, &compiled, rules);
        Ok(Self {
            rules: compiled,
            default_effect,
            path_set,
            field_set,
            unfiltered,
            compiled_bytes_max,
        })
    }

    /// How many rules the scope has.
    pub fn len(&self) -> usize {
        self.rules.len()
    }

    /// Whether the scope has no rule, so that its default decides.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// An upper bound of the memory of the compiled patterns, for a limit over several scopes.
    pub fn compiled_bytes_max(&self) -> usize {
        self.compiled_bytes_max
    }
}

/// Moves the path patterns of a large scope into one set.
fn share_paths(
    compiled: &mut [CompiledRule],
    rules: &[Rule],
) -> Result<Option<PathSet>, Vec<Problem>> {
    let with_path = || rules.iter().filter_map(|rule| rule.path.as_ref());
    if with_path().count() < SET_FROM {
        return Ok(None);
    }
    // Each pattern and its flags were compiled alone, so neither can fail here.
    let inline = |part: &PathPart| {
        Flags::parse(&part.flags)
            .unwrap_or_default()
            .inline(&part.pattern)
    };
    let set = RegexSetBuilder::new(with_path().map(inline))
        .size_limit(COMPILED_BYTES_MAX)
        .dfa_size_limit(SET_CACHE_BYTES)
        .build()
        .map_err(|_| vec![patterns_too_large()])?;
    let mut paths = PathSet {
        set,
        methods: Some(Methods::default()),
        rule_places: vec![],
    };
    for (place, rule) in compiled.iter_mut().enumerate() {
        let Some(path) = &mut rule.path else {
            continue;
        };
        path.pattern = PathPattern::InSet(paths.rule_places.len());
        paths.rule_places.push(place);
        paths.methods = match (paths.methods, &rule.methods) {
            (Some(all), Some(these)) => Some(all.with(these)),
            _ => None,
        };
    }
    Ok(Some(paths))
}
