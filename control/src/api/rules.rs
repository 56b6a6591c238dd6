//! Rules of targets, credentials and proxies.

use std::ops::RangeInclusive;

use proto::id::RuleId;
use proto::object::{Attached, Body, Object, ObjectId};
use proto::org::Role;
use proto::problem::Problem;
use proto::rule::Rule;
use serde_json::{Map, Value, json};

use super::attached::{Policy, place, rows};
use super::credentials::Credentials;
use super::objects::{Resource, View};
use super::proxies::Proxies;
use super::targets::Targets;
use crate::route::{Need, Route};

/// The resource.
pub enum Rules {}

impl Resource for Rules {
    type Model = Rule;
    const COLLECTION: &'static str = "rules";
    const SCHEMA: &'static str = "Rule";

    fn fresh_id() -> ObjectId {
        ObjectId::Rule(RuleId::new())
    }

    fn span() -> RangeInclusive<ObjectId> {
        ObjectId::Rule(RuleId::from_bits(0))..=ObjectId::Rule(RuleId::from_bits(u128::MAX))
    }

    fn model(body: &Body) -> Option<&Rule> {
        match body {
            Body::Rule(rule) => Some(&rule.spec),
            _ => None,
        }
    }

    fn with_model(body: &Body, model: Rule) -> Body {
        match body {
            Body::Rule(rule) => Self::attach(rule.parent, model),
            other => other.clone(),
        }
    }

    fn validate(model: &Rule) -> Vec<Problem> {
        model.validate()
    }

    fn decorate(shown: &mut Map<String, Value>, view: &View<'_>, object: &Object) {
        let warnings = Self::model(&object.body).map(Rule::warnings);
        if let Some(warnings) = warnings.filter(|warnings| !warnings.is_empty()) {
            shown.insert("warnings".into(), json!(warnings));
        }
        shown.insert("parent_id".into(), json!(object.body.parent()));
        if view.role < Role::Member {
            shown.shift_remove("notes");
        }
    }

    fn place(body: &Body) -> String {
        place(body.parent(), Self::COLLECTION)
    }
}

impl Policy for Rules {
    const PART: &'static str = "rule_id";

    fn parent(body: &Body) -> Option<ObjectId> {
        body.parent()
    }

    fn attach(parent: ObjectId, model: Rule) -> Body {
        Body::Rule(Attached {
            parent,
            spec: model,
        })
    }
}

/// Rows of the routing table.
pub fn routes() -> Vec<Route> {
    let targets = rows::<Rules, Targets>(
        "/orgs/{org}/targets/{id}/rules",
        "/orgs/{org}/targets/{id}/rules/{rule_id}",
        Need::Role(Role::Admin),
        [
            ("list_target_rules", "List the rules of a target"),
            ("create_target_rule", "Add a rule to a target"),
            ("get_target_rule", "Read a rule of a target"),
            ("update_target_rule", "Change a rule of a target"),
            ("replace_target_rule", "Replace a rule of a target"),
            ("delete_target_rule", "Delete a rule of a target"),
        ],
    );
    let credentials = rows::<Rules, Credentials>(
        "/orgs/{org}/credentials/{id}/rules",
        "/orgs/{org}/credentials/{id}/rules/{rule_id}",
        Need::CredentialKind,
        [
            ("list_credential_rules", "List the rules of a credential"),
            ("create_credential_rule", "Add a rule to a credential"),
            ("get_credential_rule", "Read a rule of a credential"),
            ("update_credential_rule", "Change a rule of a credential"),
            ("replace_credential_rule", "Replace a rule of a credential"),
            ("delete_credential_rule", "Delete a rule of a credential"),
        ],
    );
    let proxies = rows::<Rules, Proxies>(
        "/orgs/{org}/proxies/{id}/rules",
        "/orgs/{org}/proxies/{id}/rules/{rule_id}",
        Need::Role(Role::Member),
        [
            ("list_proxy_rules", "List the rules of a proxy"),
            ("create_proxy_rule", "Add a rule to a proxy"),
            ("get_proxy_rule", "Read a rule of a proxy"),
            ("update_proxy_rule", "Change a rule of a proxy"),
            ("replace_proxy_rule", "Replace a rule of a proxy"),
            ("delete_proxy_rule", "Delete a rule of a proxy"),
        ],
    );
    [targets, credentials, proxies].concat()
}
