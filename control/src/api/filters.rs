//! Filters of targets, credentials and proxies.

use std::ops::RangeInclusive;

use proto::filter::Filter;
use proto::id::FilterId;
use proto::object::{Attached, Body, Object, ObjectId};
use proto::org::Role;
use proto::problem::Problem;
use serde_json::{Map, Value, json};

use super::attached::{Policy, place, rows};
use super::credentials::Credentials;
use super::objects::{Resource, View};
use super::proxies::Proxies;
use super::targets::Targets;
use crate::route::{Need, Route};

/// The resource.
pub enum Filters {}

impl Resource for Filters {
    type Model = Filter;
    const COLLECTION: &'static str = "filters";
    const SCHEMA: &'static str = "Filter";

    fn fresh_id() -> ObjectId {
        ObjectId::Filter(FilterId::new())
    }

    fn span() -> RangeInclusive<ObjectId> {
        ObjectId::Filter(FilterId::from_bits(0))..=ObjectId::Filter(FilterId::from_bits(u128::MAX))
    }

    fn model(body: &Body) -> Option<&Filter> {
        match body {
            Body::Filter(filter) => Some(&filter.spec),
            _ => None,
        }
    }

    fn with_model(body: &Body, model: Filter) -> Body {
        match body {
            Body::Filter(filter) => Self::attach(filter.parent, model),
            other => other.clone(),
        }
    }

    fn validate(model: &Filter) -> Vec<Problem> {
        model.validate()
    }

    fn decorate(shown: &mut Map<String, Value>, view: &View<'_>, object: &Object) {
        shown.insert("parent_id".into(), json!(object.body.parent()));
        if view.role < Role::Member {
            shown.shift_remove("notes");
        }
    }

    fn place(body: &Body) -> String {
        place(body.parent(), Self::COLLECTION)
    }
}

impl Policy for Filters {
    const PART: &'static str = "filter_id";

    fn parent(body: &Body) -> Option<ObjectId> {
        body.parent()
    }

    fn attach(parent: ObjectId, model: Filter) -> Body {
        Body::Filter(Attached {
            parent,
            spec: model,
        })
    }
}

/// Rows of the routing table.
pub fn routes() -> Vec<Route> {
    let targets = rows::<Filters, Targets>(
        "/orgs/{org}/targets/{id}/filters",
        "/orgs/{org}/targets/{id}/filters/{filter_id}",
        Need::Role(Role::Admin),
        [
            ("list_target_filters", "List the filters of a target"),
            ("create_target_filter", "Add a filter to a target"),
            ("get_target_filter", "Read a filter of a target"),
            ("update_target_filter", "Change a filter of a target"),
            ("replace_target_filter", "Replace a filter of a target"),
            ("delete_target_filter", "Delete a filter of a target"),
        ],
    );
    let credentials = rows::<Filters, Credentials>(
        "/orgs/{org}/credentials/{id}/filters",
        "/orgs/{org}/credentials/{id}/filters/{filter_id}",
        Need::CredentialKind,
        [
            (
                "list_credential_filters",
                "List the filters of a credential",
            ),
            ("create_credential_filter", "Add a filter to a credential"),
            ("get_credential_filter", "Read a filter of a credential"),
            (
                "update_credential_filter",
                "Change a filter of a credential",
            ),
            (
                "replace_credential_filter",
                "Replace a filter of a credential",
            ),
            (
                "delete_credential_filter",
                "Delete a filter of a credential",
            ),
        ],
    );
    let proxies = rows::<Filters, Proxies>(
        "/orgs/{org}/proxies/{id}/filters",
        "/orgs/{org}/proxies/{id}/filters/{filter_id}",
        Need::Role(Role::Member),
        [
            ("list_proxy_filters", "List the filters of a proxy"),
            ("create_proxy_filter", "Add a filter to a proxy"),
            ("get_proxy_filter", "Read a filter of a proxy"),
            ("update_proxy_filter", "Change a filter of a proxy"),
            ("replace_proxy_filter", "Replace a filter of a proxy"),
            ("delete_proxy_filter", "Delete a filter of a proxy"),
        ],
    );
    [targets, credentials, proxies].concat()
}
