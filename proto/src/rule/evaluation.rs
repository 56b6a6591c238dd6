//! What a scope's rules say of a request: the decision, its reasons, and the trace for `explain`.

use serde::Serialize;

use super::{Effect, Mode};
use crate::body_view::Unreadable;

/// What a scope says of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evaluation<'s> {
    /// The decision.
    pub outcome: Outcome<'s>,
    /// Shadow rules that match: recorded, without influence on the outcome. Those that wait for the
    /// body are missing when the outcome does not need it.
    pub shadow: Vec<MatchedRule<'s>>,
}

/// A scope's decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome<'s> {
    /// The request may pass this scope.
    Allowed {
        /// By what.
        by: AllowedBy<'s>,
    },
    /// The request is refused.
    Denied {
        /// No rule denied it: nothing allowed it, and the scope denies by default.
        default: bool,
        /// All matching rules of the scope (whose parts are known), highest priority first.
        rules: Vec<MatchedRule<'s>>,
        /// An allow rule fits the path as sent, but not its canonical reading.
        readings_differ: bool,
    },
    /// A rule whose other parts all match, and which could change the outcome, waits for the body:
    /// buffer it, and evaluate again with what reading it gave ([`super::BodyFacts`]).
    ///
    /// A shadow rule asks as if it were enforced; it could not be judged otherwise.
    NeedsBody,
}

/// What allowed a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AllowedBy<'s> {
    /// The scope's default.
    Default,
    /// The matching allow rule of the highest priority.
    Rule(MatchedRule<'s>),
}

/// A rule that matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MatchedRule<'s> {
    /// Its id.
    pub id: &'s str,
    /// What it says.
    pub effect: Effect,
    /// Its place in explanations.
    pub priority: i32,
    /// Its public message.
    pub message: Option<&'s str>,
    /// It matches because the body cannot be read exactly one way.
    pub unreadable: Option<Unreadable>,
}

/// A part of a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// `methods`
    Methods,
    /// `path`
    Path,
    /// `source`
    Source,
    /// The element of `headers`.
    Headers(usize),
    /// The element of `query`.
    Query(usize),
    /// The element of `body`.
    Body(usize),
}

/// What a rule said of a request, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RuleTrace<'s> {
    /// The rule's id.
    pub id: &'s str,
    /// What the rule says when it matches.
    pub effect: Effect,
    /// Whether it decides.
    pub mode: Mode,
    /// Whether it matches.
    pub result: TraceResult,
}

/// Whether a rule matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TraceResult {
    /// All its parts match; with an unreadable body, that is the reason why.
    Yes(Option<Unreadable>),
    /// This part, the first of them, does not match.
    No(Part),
    /// All its other parts match; the body was not read.
    UnknownNeedsBody,
}
