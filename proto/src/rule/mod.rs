//! Rules: who may send what.
//!
//! Four scopes are equal gates: each must allow. In a scope any matching deny denies, else any
//! matching allow allows, else the scope's default decides; `priority` orders explanations and
//! nothing else. A rule matches when all its parts match, and a rule without parts always does.
//!
//! **Every reading counts.** Where a request can be read in more than one way (two readings of the
//! path, a method and its override, a repeated parameter, a body that is a form and JSON), a deny
//! rule matches if *any* reading satisfies its part, an allow rule only if *all* do. `presence:
//! absent` turns a part round and keeps that principle: allow + absent needs it absent in every
//! reading.
//!
//! This file is the model, [`validate`](Rule::validate) the check at save, [`RuleSet`] the
//! compiled form of a scope, [`Facts`] what is judged, [`judge`] the decision over all scopes. All
//! of it is pure: the node, `check` and `explain` run the same functions.

mod compile;
mod evaluate;
mod evaluation;
mod facts;
mod field_set;
mod judge;
mod parts;
mod pattern;
mod set;
mod size;
#[cfg(test)]
mod tests;
mod validate;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use crate::target::Effect;
pub use evaluation::{AllowedBy, Evaluation, MatchedRule, Outcome, Part, RuleTrace, TraceResult};
pub use facts::{BodyFacts, Facts, path_overrides};
pub use judge::{Denial, DenialHint, DeniedRule, ScopedRules, ShadowMatch, Verdict, judge};
pub use pattern::{Patterns, TOO_LARGE as PATTERN_TOO_LARGE, compile_pattern};
pub use set::RuleSet;
pub use size::{CHANGE_COMPILED_BYTES_MAX, ORG_COMPILED_BYTES_MAX, remembered as remembered_size};

/// Rules of one scope, at most.
pub const RULES_MAX: usize = 1_000;
/// Bytes of all patterns of one scope, at most.
pub const PATTERNS_BYTES_MAX: usize = 256 * 1024;
/// Bytes of one pattern, at most.
pub const PATTERN_BYTES_MAX: usize = 1024;
/// Bytes that one compiled pattern may take.
pub const PATTERN_COMPILED_BYTES_MAX: usize = 1024 * 1024;
/// Bytes that all compiled patterns of one scope may take.
pub const COMPILED_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Characters of a rule's public message, at most.
pub const MESSAGE_CHARS_MAX: usize = 200;
/// Characters of a rule's notes, at most.
pub const NOTES_CHARS_MAX: usize = 4_096;
/// Elements of one list of a rule (methods, headers, query, body, source), at most.
pub const PARTS_MAX: usize = 64;

/// What a rule hangs on; in the order in which denials are listed.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// The credential that the caller presented.
    ProxyCredential,
    /// The credential that is injected.
    TargetCredential,
    /// The proxy that was called.
    Proxy,
    /// The upstream API.
    Target,
}

/// Whether a rule takes part in decisions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// It decides.
    #[default]
    Enforce,
    /// It is evaluated and recorded, and changes no outcome.
    Shadow,
}

/// Whether a part asks for something to be there or not to be there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Presence {
    /// Something that fits name (or JSONPath) and value is there.
    #[default]
    Present,
    /// Nothing that fits name (or JSONPath) and value is there.
    Absent,
}

/// What a deny rule does about a body that cannot be read exactly one way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnUnreadable {
    /// It matches.
    #[default]
    Deny,
    /// It does not match.
    Skip,
}

/// A rule as it is stored.
///
/// Patterns are regular expressions of linear time (the `regex` crate's syntax), at most
/// 1,024 bytes, with flags out of `imsx`. They are unanchored, but for the names of
/// headers and query parameters, which must fit as a whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// `rul_…`; given by the control plane, so empty in a rule that is not yet stored.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub id: String,
    /// What the rule says when it matches.
    pub effect: Effect,
    /// Orders explanations, highest first. Never decides.
    #[serde(default)]
    pub priority: i32,
    /// Whether the rule decides.
    #[serde(default)]
    pub mode: Mode,
    /// Any of these methods; empty: every method. Compared without case with the method and with
    /// its overrides. `GET` covers HEAD.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<String>,
    /// The path after the proxy's name, without the query.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathPart>,
    /// Header fields; each element must match.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<NamedPart>,
    /// Query parameters, form-decoded; each element must match.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub query: Vec<NamedPart>,
    /// What stands in the body; each element must match.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub body: Vec<BodyPart>,
    /// Any of these networks (CIDR) or addresses holds the caller's address; empty: every address.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub source: Vec<String>,
    /// What a deny rule with a body part does about a body that cannot be read exactly one way.
    #[serde(default)]
    pub on_unreadable: OnUnreadable,
    /// Told to the caller when the rule takes part in a denial; at most 200 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// For those who keep the rules; never leaves the control API.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub notes: Option<String>,
}

/// A condition on the path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PathPart {
    /// Searched in both readings of the path.
    pub pattern: String,
    /// Out of `imsx`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub flags: String,
    /// `absent`: the pattern must not be found.
    #[serde(default)]
    pub presence: Presence,
}

/// A condition on a header field or a query parameter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NamedPart {
    /// Fits the whole name; without case for headers.
    pub name: String,
    /// Searched in each value; without it the name decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// Out of `imsx`, for `value`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub flags: String,
    /// `absent`: nothing that fits name and value is there.
    #[serde(default)]
    pub presence: Presence,
}

/// A condition on the body.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BodyPart {
    /// RFC 9535, of bounded cost (see [`crate::body_view::JsonPath`]).
    pub json_path: String,
    /// Searched in the text of each scalar found, and of each element of an array found; numbers
    /// as they were written. Without it the path decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// Out of `imsx`, for `value`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub flags: String,
    /// `absent`: nothing that fits path and value is there.
    #[serde(default)]
    pub presence: Presence,
}
