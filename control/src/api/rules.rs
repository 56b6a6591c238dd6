//! Rules of targets, credentials and proxies.

use proto::id::RuleId;
use proto::object::{Attached, Body, ObjectId};
use proto::problem::Problem;
use proto::rule::Rule;
use proto::tree::OrgConfig;

use super::attached::{self, Policies, Policy, places};
use crate::route::Route;

/// The resource.
pub type Rules = Policies<RuleKind>;

/// What is a rule's own.
pub enum RuleKind {}

impl Policy for RuleKind {
    type Model = Rule;
    const COLLECTION: &'static str = "rules";
    const SCHEMA: &'static str = "Rule";
    const PART: &'static str = "rule_id";

    fn id(bits: u128) -> ObjectId {
        ObjectId::Rule(RuleId::from_bits(bits))
    }

    fn fresh_id() -> ObjectId {
        ObjectId::Rule(RuleId::new())
    }

    fn of(body: &Body) -> Option<&Attached<Rule>> {
        match body {
            Body::Rule(rule) => Some(rule),
            _ => None,
        }
    }

    fn body(attached: Attached<Rule>) -> Body {
        Body::Rule(attached)
    }

    fn validate(model: &Rule) -> Vec<Problem> {
        model.validate()
    }

    fn warnings(model: &Rule, _on: Option<&Body>, _config: &OrgConfig) -> Vec<Problem> {
        model.warnings()
    }
}

/// Rows of the routing table.
pub fn routes() -> Vec<Route> {
    attached::everywhere::<RuleKind>(places!("rule"))
}
