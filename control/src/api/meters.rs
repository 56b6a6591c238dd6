//! Meters of targets, credentials, proxies and the organisation itself.

use std::ops::RangeInclusive;

use proto::id::MeterId;
use proto::meter::Meter;
use proto::object::{Attached, Body, Object, ObjectId};
use proto::org::Role;
use proto::problem::Problem;
use serde_json::{Map, Value, json};

use super::attached::{Holder, Policy, place, rows};
use super::call::OrgCall;
use super::credentials::Credentials;
use super::error::Refusal;
use super::objects::{Resource, View};
use super::proxies::Proxies;
use super::targets::Targets;
use crate::route::{Need, Route};

/// The resource.
pub enum Meters {}

impl Resource for Meters {
    type Model = Meter;
    const COLLECTION: &'static str = "meters";
    const SCHEMA: &'static str = "Meter";

    fn fresh_id() -> ObjectId {
        ObjectId::Meter(MeterId::new())
    }

    fn span() -> RangeInclusive<ObjectId> {
        ObjectId::Meter(MeterId::from_bits(0))..=ObjectId::Meter(MeterId::from_bits(u128::MAX))
    }

    fn model(body: &Body) -> Option<&Meter> {
        match body {
            Body::Meter(meter) => Some(&meter.spec),
            _ => None,
        }
    }

    fn with_model(body: &Body, model: Meter) -> Body {
        match body {
            Body::Meter(meter) => Self::attach(meter.parent, model),
            other => other.clone(),
        }
    }

    fn validate(model: &Meter) -> Vec<Problem> {
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

impl Policy for Meters {
    const PART: &'static str = "meter_id";

    fn parent(body: &Body) -> Option<ObjectId> {
        body.parent()
    }

    fn attach(parent: ObjectId, model: Meter) -> Body {
        Body::Meter(Attached {
            parent,
            spec: model,
        })
    }
}

/// The organisation that the path names, as what meters hang on.
enum Organisation {}

impl Holder for Organisation {
    fn named(call: &OrgCall) -> Result<ObjectId, Refusal> {
        Ok(ObjectId::Org(call.org_id()))
    }
}

/// Rows of the routing table.
pub fn routes() -> Vec<Route> {
    let targets = rows::<Meters, Targets>(
        "/orgs/{org}/targets/{id}/meters",
        "/orgs/{org}/targets/{id}/meters/{meter_id}",
        Need::Role(Role::Admin),
        [
            ("list_target_meters", "List the meters of a target"),
            ("create_target_meter", "Add a meter to a target"),
            ("get_target_meter", "Read a meter of a target"),
            ("update_target_meter", "Change a meter of a target"),
            ("replace_target_meter", "Replace a meter of a target"),
            ("delete_target_meter", "Delete a meter of a target"),
        ],
    );
    let credentials = rows::<Meters, Credentials>(
        "/orgs/{org}/credentials/{id}/meters",
        "/orgs/{org}/credentials/{id}/meters/{meter_id}",
        Need::CredentialKind,
        [
            ("list_credential_meters", "List the meters of a credential"),
            ("create_credential_meter", "Add a meter to a credential"),
            ("get_credential_meter", "Read a meter of a credential"),
            ("update_credential_meter", "Change a meter of a credential"),
            (
                "replace_credential_meter",
                "Replace a meter of a credential",
            ),
            ("delete_credential_meter", "Delete a meter of a credential"),
        ],
    );
    let proxies = rows::<Meters, Proxies>(
        "/orgs/{org}/proxies/{id}/meters",
        "/orgs/{org}/proxies/{id}/meters/{meter_id}",
        Need::Role(Role::Member),
        [
            ("list_proxy_meters", "List the meters of a proxy"),
            ("create_proxy_meter", "Add a meter to a proxy"),
            ("get_proxy_meter", "Read a meter of a proxy"),
            ("update_proxy_meter", "Change a meter of a proxy"),
            ("replace_proxy_meter", "Replace a meter of a proxy"),
            ("delete_proxy_meter", "Delete a meter of a proxy"),
        ],
    );
    let organisation = rows::<Meters, Organisation>(
        "/orgs/{org}/meters",
        "/orgs/{org}/meters/{meter_id}",
        Need::Role(Role::Admin),
        [
            ("list_org_meters", "List the meters of the organisation"),
            ("create_org_meter", "Add a meter to the organisation"),
            ("get_org_meter", "Read a meter of the organisation"),
            ("update_org_meter", "Change a meter of the organisation"),
            ("replace_org_meter", "Replace a meter of the organisation"),
            ("delete_org_meter", "Delete a meter of the organisation"),
        ],
    );
    [targets, credentials, proxies, organisation].concat()
}
