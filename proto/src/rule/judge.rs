//! The decision over all scopes of a request.

use serde::Serialize;

use super::evaluation::{MatchedRule, Outcome};
use super::facts::Facts;
use super::{Effect, RuleSet, Scope};
use crate::body_view::Unreadable;

/// The rules of one scope of a request.
#[derive(Clone, Copy, Debug)]
pub struct ScopedRules<'s> {
    /// The kind of the object that the rules hang on.
    pub scope: Scope,
    /// Its id.
    pub scope_id: &'s str,
    /// Its rules.
    pub rules: &'s RuleSet,
}

/// The decision over all scopes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict<'s> {
    /// Every scope allows.
    Allowed {
        /// Shadow rules that match.
        shadow: Vec<ShadowMatch<'s>>,
    },
    /// At least one scope denies.
    Denied {
        /// Every scope that denies, in the order given.
        denials: Vec<Denial>,
        /// Shadow rules that match.
        shadow: Vec<ShadowMatch<'s>>,
    },
    /// No scope denies on what is known, and at least one must know the body.
    NeedsBody,
}

/// A shadow rule that matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ShadowMatch<'s> {
    /// The kind of the object that the rule hangs on.
    pub scope: Scope,
    /// Its id.
    pub scope_id: &'s str,
    /// The rule's id.
    pub rule_id: &'s str,
    /// What the rule would have said.
    pub effect: Effect,
}

/// A scope that denies, as the caller is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Denial {
    /// The kind of the object that denies.
    pub scope: Scope,
    /// Its id.
    pub scope_id: String,
    /// No rule denied: nothing allowed the request, and the scope denies by default.
    pub default: bool,
    /// The matching rules of the scope, highest priority first.
    pub rules: Vec<DeniedRule>,
    /// What may help.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<DenialHint>,
}

/// A matching rule of a scope that denies, as the caller is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DeniedRule {
    /// The rule's id.
    pub id: String,
    /// What it says.
    pub effect: Effect,
    /// Its place among the others.
    pub priority: i32,
    /// Its public message.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// It matches because the body cannot be read exactly one way, for this reason.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unreadable: Option<Unreadable>,
}

/// What may help a caller whose request was denied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DenialHint {
    /// An allow rule fits the path as sent, but not as an upstream could decode it (`%2F`, `;`,
    /// `//`): send it plain, or set the target's `path: {encoded_slash: opaque}`.
    PathReadingsDiffer,
}

/// Judges a request by all its scopes: every one must allow.
///
/// When a scope denies on what is known, the body is not asked for, since no body could change the
/// outcome: scopes that would have denied only because of the body are then not listed.
pub fn judge<'s>(scopes: &[ScopedRules<'s>], facts: &Facts<'_>) -> Verdict<'s> {
    let mut denials = Vec::new();
    let mut shadow = Vec::new();
    let mut needs_body = false;
    for scoped in scopes {
        let evaluation = scoped.rules.evaluate(facts);
        shadow.extend(evaluation.shadow.iter().map(|rule| ShadowMatch {
            scope: scoped.scope,
            scope_id: scoped.scope_id,
            rule_id: rule.id,
            effect: rule.effect,
        }));
        match evaluation.outcome {
            Outcome::Allowed { .. } => {}
            Outcome::NeedsBody => needs_body = true,
            Outcome::Denied {
                default,
                rules,
                readings_differ,
            } => denials.push(Denial {
                scope: scoped.scope,
                scope_id: scoped.scope_id.to_owned(),
                default,
                rules: rules.iter().map(DeniedRule::from).collect(),
                hint: readings_differ.then_some(DenialHint::PathReadingsDiffer),
            }),
        }
    }
    if !denials.is_empty() {
        return Verdict::Denied { denials, shadow };
    }
    if needs_body {
        Verdict::NeedsBody
    } else {
        Verdict::Allowed { shadow }
    }
}

impl From<&MatchedRule<'_>> for DeniedRule {
    fn from(rule: &MatchedRule<'_>) -> Self {
        Self {
            id: rule.id.to_owned(),
            effect: rule.effect,
            priority: rule.priority,
            message: rule.message.map(str::to_owned),
            unreadable: rule.unreadable,
        }
    }
}
