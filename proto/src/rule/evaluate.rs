//! One scope's rules against one request.
//!
//! The decision on a request that is allowed allocates nothing (in a scope of few rules):
//! explanations are built only for denials, by a second pass. `trace` tells for every rule what it
//! said, which is what `explain` shows.

use regex::SetMatches;

use super::compile::{CompiledRule, PathMatcher, PathPattern};
use super::evaluation::{
    AllowedBy, Evaluation, MatchedRule, Outcome, Part, RuleTrace, TraceResult,
};
use super::facts::{BodyFacts, Facts, FormOverride};
use super::parts::{MethodName, Methods};
use super::set::{RuleSet, mark};
use super::{Effect, Mode, OnUnreadable, Presence};
use crate::body_view::Unreadable;

/// The path patterns of a set that were found, reading by reading.
enum PathHits {
    /// The scope has no set.
    NoSet,
    /// No rule with a path part covers the method.
    Nowhere,
    Found(Vec<SetMatches>),
}

impl RuleSet {
    /// Decides on a request.
    pub fn evaluate<'s>(&'s self, facts: &Facts<'_>) -> Evaluation<'s> {
        let hits = self.path_hits(facts);
        let mut tally = Tally::default();
        let mut add = |rule: &'s CompiledRule| tally.add(rule, rule.result(facts, &hits));
        match self.candidates(facts, &hits) {
            Some(places) => {
                let rules = self.rules.iter().zip(places);
                let can_match = rules.filter(|(_, can_match)| *can_match);
                can_match.for_each(|(rule, _)| add(rule));
            }
            None => self.rules.iter().for_each(&mut add),
        }
        let shadow = std::mem::take(&mut tally.shadow);
        let outcome = match tally.decide(self.default_effect) {
            Decision::Allowed(by) => Outcome::Allowed { by },
            Decision::NeedsBody => Outcome::NeedsBody,
            Decision::Denied { default } => self.explain_denial(default, facts, &hits),
        };
        Evaluation { outcome, shadow }
    }

    /// What every rule says of a request, in the order of the scope.
    pub fn trace<'s>(&'s self, facts: &Facts<'_>) -> Vec<RuleTrace<'s>> {
        let hits = self.path_hits(facts);
        let trace = |rule: &'s CompiledRule| RuleTrace {
            id: &rule.id,
            effect: rule.effect,
            mode: rule.mode,
            result: rule.result(facts, &hits),
        };
        self.rules.iter().map(trace).collect()
    }

    /// Of each rule whether it can match; `None` in a small scope.
    fn candidates(&self, facts: &Facts<'_>, hits: &PathHits) -> Option<Vec<bool>> {
        if self.path_set.is_none() && self.field_set.is_none() {
            return None;
        }
        let mut places = vec![false; self.rules.len()];
        for place in &self.unfiltered {
            mark(&mut places, *place);
        }
        if let (Some(paths), PathHits::Found(readings)) = (&self.path_set, hits) {
            paths.mark_found(readings, &mut places);
        }
        if let Some(fields) = &self.field_set {
            fields.mark_found(facts, &mut places);
        }
        Some(places)
    }

    fn path_hits(&self, facts: &Facts<'_>) -> PathHits {
        let Some(paths) = &self.path_set else {
            return PathHits::NoSet;
        };
        // A form that was not read, or cannot be, may name any method.
        let covered = facts.form_override != FormOverride::Known
            || paths
                .methods
                .as_ref()
                .is_none_or(|all| facts.methods().any(|m| all.cover(m)));
        if !covered {
            return PathHits::Nowhere;
        }
        PathHits::Found(
            facts
                .path_texts()
                .map(|text| paths.set.matches(text))
                .collect(),
        )
    }

    fn explain_denial<'s>(
        &'s self,
        default: bool,
        facts: &Facts<'_>,
        hits: &PathHits,
    ) -> Outcome<'s> {
        let enforced = || self.rules.iter().filter(|rule| rule.mode == Mode::Enforce);
        let mut rules: Vec<_> = enforced()
            .filter_map(|rule| match rule.result(facts, hits) {
                TraceResult::Yes(unreadable) => Some(rule.matched(unreadable)),
                _ => None,
            })
            .collect();
        rules.sort_by(|a, b| b.priority.cmp(&a.priority).then_with(|| a.id.cmp(b.id)));
        let readings_differ = default && enforced().any(|rule| rule.fits_raw_only(facts, hits));
        Outcome::Denied {
            default,
            rules,
            readings_differ,
        }
    }
}

/// What the rules of a scope said, summed up.
#[derive(Default)]
struct Tally<'s> {
    denied: bool,
    allowed: Option<MatchedRule<'s>>,
    deny_waits: bool,
    allow_waits: bool,
    shadow: Vec<MatchedRule<'s>>,
}

enum Decision<'s> {
    Allowed(AllowedBy<'s>),
    Denied { default: bool },
    NeedsBody,
}

impl<'s> Tally<'s> {
    fn add(&mut self, rule: &'s CompiledRule, result: TraceResult) {
        match (result, rule.mode, rule.effect) {
            (TraceResult::No(_), _, _) => {}
            (TraceResult::Yes(unreadable), Mode::Shadow, _) => {
                self.shadow.push(rule.matched(unreadable));
            }
            (TraceResult::Yes(_), Mode::Enforce, Effect::Deny) => self.denied = true,
            (TraceResult::Yes(unreadable), Mode::Enforce, Effect::Allow) => {
                if self
                    .allowed
                    .is_none_or(|best| best.priority < rule.priority)
                {
                    self.allowed = Some(rule.matched(unreadable));
                }
            }
            (TraceResult::UnknownNeedsBody, _, Effect::Deny) => self.deny_waits = true,
            (TraceResult::UnknownNeedsBody, _, Effect::Allow) => self.allow_waits = true,
        }
    }

    /// Any deny denies, else any allow allows, else the default decides; a rule that waits for the
    /// body is waited for only where it could turn that.
    fn decide(self, default_effect: Effect) -> Decision<'s> {
        if self.denied {
            return Decision::Denied { default: false };
        }
        let passes = self.allowed.is_some() || default_effect == Effect::Allow;
        // What passes can only be turned by a deny, what does not only by an allow.
        let needs_body = if passes {
            self.deny_waits
        } else {
            self.allow_waits
        };
        if needs_body {
            return Decision::NeedsBody;
        }
        match self.allowed {
            Some(rule) => Decision::Allowed(AllowedBy::Rule(rule)),
            None if passes => Decision::Allowed(AllowedBy::Default),
            None => Decision::Denied { default: true },
        }
    }
}

impl CompiledRule {
    fn matched(&self, unreadable: Option<Unreadable>) -> MatchedRule<'_> {
        MatchedRule {
            id: &self.id,
            effect: self.effect,
            priority: self.priority,
            message: self.message.as_deref(),
            unreadable,
        }
    }

    /// Whether all parts match: the cheap ones first, the body last.
    fn result(&self, facts: &Facts<'_>, hits: &PathHits) -> TraceResult {
        let methods = self.methods_match(facts);
        if methods == Knowledge::No {
            return TraceResult::No(Part::Methods);
        }
        if self
            .path
            .as_ref()
            .is_some_and(|path| !self.path_matches(path, facts, hits))
        {
            return TraceResult::No(Part::Path);
        }
        if !self.source.is_empty() && !self.source.iter().any(|net| net.contains(&facts.source)) {
            return TraceResult::No(Part::Source);
        }
        let header = |part: &super::parts::HeaderMatcher| part.matches(self.effect, facts.headers);
        if let Some(place) = self.headers.iter().position(|part| !header(part)) {
            return TraceResult::No(Part::Headers(place));
        }
        let query = |part: &super::parts::QueryMatcher| part.matches(self.effect, facts.query);
        if let Some(place) = self.query.iter().position(|part| !query(part)) {
            return TraceResult::No(Part::Query(place));
        }
        match (methods, self.body_result(facts)) {
            (_, TraceResult::No(part)) => TraceResult::No(part),
            (Knowledge::NeedsBody, _) | (_, TraceResult::UnknownNeedsBody) => {
                TraceResult::UnknownNeedsBody
            }
            (Knowledge::Unreadable(reason), TraceResult::Yes(_)) => TraceResult::Yes(Some(reason)),
            (_, body) => body,
        }
    }

    /// Whether the method, and all that overrides it, fit.
    fn methods_match(&self, facts: &Facts<'_>) -> Knowledge {
        let Some(methods) = &self.methods else {
            return Knowledge::Yes;
        };
        if self.effect == Effect::Deny && any_covered(methods, facts) {
            return Knowledge::Yes;
        }
        if self.effect == Effect::Allow && !facts.methods().all(|method| methods.cover(method)) {
            return Knowledge::No;
        }
        match (facts.form_override, self.effect) {
            (FormOverride::Known, Effect::Deny) => Knowledge::No,
            (FormOverride::Known, Effect::Allow) => Knowledge::Yes,
            (FormOverride::NotRead, _) => Knowledge::NeedsBody,
            (FormOverride::Unreadable(reason), _) => self.unreadable(reason),
        }
    }

    /// What an unreadable body means for this rule.
    fn unreadable(&self, reason: Unreadable) -> Knowledge {
        if self.effect == Effect::Deny && self.on_unreadable == OnUnreadable::Deny {
            Knowledge::Unreadable(reason)
        } else {
            Knowledge::No
        }
    }

    fn path_matches(&self, path: &PathMatcher, facts: &Facts<'_>, hits: &PathHits) -> bool {
        let fits = |found: bool| found == (path.presence == Presence::Present);
        let both = |mut found: &mut dyn Iterator<Item = bool>| match self.effect {
            Effect::Deny => (&mut found).any(fits),
            Effect::Allow => (&mut found).all(fits),
        };
        match (&path.pattern, hits) {
            // The usual case, which the chains of iterators would take several times as long for.
            (PathPattern::Alone(regex), _) => match facts.only_path_text() {
                Some(text) => fits(regex.is_match(text)),
                None => both(&mut facts.path_texts().map(|text| regex.is_match(text))),
            },
            (PathPattern::InSet(number), PathHits::Found(readings)) => {
                both(&mut readings.iter().map(|reading| reading.matched(*number)))
            }
            // No rule with a path covers the method, so this one does not match.
            (PathPattern::InSet(_), PathHits::NoSet | PathHits::Nowhere) => false,
        }
    }

    /// Whether this allow rule fits the path as sent, and would fit if that were all.
    fn fits_raw_only(&self, facts: &Facts<'_>, hits: &PathHits) -> bool {
        let Some(path) = self.path.as_ref().filter(|_| self.effect == Effect::Allow) else {
            return false;
        };
        let (raw, canonical) = facts.path.judged();
        let found_in_raw = match (&path.pattern, hits) {
            (PathPattern::Alone(regex), _) => regex.is_match(raw),
            (PathPattern::InSet(number), PathHits::Found(readings)) => readings
                .first()
                .is_some_and(|reading| reading.matched(*number)),
            (PathPattern::InSet(_), PathHits::NoSet | PathHits::Nowhere) => return false,
        };
        canonical.is_some()
            && found_in_raw == (path.presence == Presence::Present)
            && self.result(facts, hits) == TraceResult::No(Part::Path)
    }

    fn body_result(&self, facts: &Facts<'_>) -> TraceResult {
        if self.body.is_empty() {
            return TraceResult::Yes(None);
        }
        let view = match facts.body {
            BodyFacts::NotRead => return TraceResult::UnknownNeedsBody,
            BodyFacts::View(view) => view,
            BodyFacts::Unreadable(reason) => {
                return match self.unreadable(reason) {
                    Knowledge::Unreadable(reason) => TraceResult::Yes(Some(reason)),
                    _ => TraceResult::No(Part::Body(0)),
                };
            }
        };
        let mut because = None;
        for (place, part) in self.body.iter().enumerate() {
            match part.matches(self.effect, view) {
                Ok(true) => {}
                Ok(false) => return TraceResult::No(Part::Body(place)),
                Err(reason) => match self.unreadable(reason) {
                    Knowledge::Unreadable(reason) => because = Some(reason),
                    _ => return TraceResult::No(Part::Body(place)),
                },
            }
        }
        TraceResult::Yes(because)
    }
}

/// What is known of a part that the body may decide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Knowledge {
    Yes,
    No,
    NeedsBody,
    /// It counts as a match because the body cannot be read.
    Unreadable(Unreadable),
}

fn any_covered(methods: &Methods, facts: &Facts<'_>) -> bool {
    facts
        .methods()
        .any(|method: &MethodName<'_>| methods.cover(method))
}
