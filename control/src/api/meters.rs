//! Meters of targets, credentials, proxies and the organisation itself.

use proto::credential::{AuthType, CredentialKind};
use proto::id::MeterId;
use proto::meter::{KeySource, Meter};
use proto::object::{Attached, Body, ObjectId};
use proto::org::Role;
use proto::problem::Problem;
use proto::tree::OrgConfig;

use super::attached::{self, Holder, Policies, Policy, place, places};
use super::call::OrgCall;
use super::error::Refusal;
use crate::route::{Need, Route};

/// The resource.
pub type Meters = Policies<MeterKind>;

/// What is a meter's own.
pub enum MeterKind {}

impl Policy for MeterKind {
    type Model = Meter;
    const COLLECTION: &'static str = "meters";
    const SCHEMA: &'static str = "Meter";
    const PART: &'static str = "meter_id";

    fn id(bits: u128) -> ObjectId {
        ObjectId::Meter(MeterId::from_bits(bits))
    }

    fn fresh_id() -> ObjectId {
        ObjectId::Meter(MeterId::new())
    }

    fn of(body: &Body) -> Option<&Attached<Meter>> {
        match body {
            Body::Meter(meter) => Some(meter),
            _ => None,
        }
    }

    fn body(attached: Attached<Meter>) -> Body {
        Body::Meter(attached)
    }

    fn validate(model: &Meter) -> Vec<Problem> {
        model.validate()
    }

    /// A meter that counts by a claim of tokens that nobody presents counts all under one key.
    fn warnings(model: &Meter, on: Option<&Body>, config: &OrgConfig) -> Vec<Problem> {
        if model.key.by != KeySource::Claim {
            return Vec::new();
        }
        let callers = match on {
            Some(Body::Proxy(proxy)) => {
                let ids = proxy.proxy_credential_ids.iter();
                let found = ids.filter_map(|id| config.credential(*id));
                found.map(|stored| stored.credential.auth_type).collect()
            }
            Some(Body::Credential(stored)) if stored.credential.kind == CredentialKind::Proxy => {
                vec![stored.credential.auth_type]
            }
            _ => Vec::new(),
        };
        if callers.is_empty() || callers.contains(&AuthType::Jwt) {
            return Vec::new();
        }
        let detail = "counts by a claim, and no caller here presents a JWT: no proxy credential is \
                      of type jwt, so that all requests count under one key; use `caller` or \
                      another key, or a credential of type jwt";
        vec![Problem::new("/key/by", "claim-without-jwt", detail)]
    }

    /// What was forgotten by hand stays forgotten.
    fn carry(before: &Meter, after: &mut Meter) {
        after.resets = after.resets.max(before.resets);
    }
}

/// Refuses the name of a proxy, which is what its own limits go by in answers and lists, where an
/// act on a meter is asked for.
///
/// # Errors
/// 422, saying what can be done instead.
pub(super) fn refuse_proxy(config: &OrgConfig, name: &str) -> Result<(), Refusal> {
    let proxy = name.parse().ok().map(ObjectId::Proxy);
    let Some(id) = proxy.filter(|id| config.object(*id).is_some()) else {
        return Ok(());
    };
    let detail = format!(
        "{id} is a proxy, and its own limits are no meter: change `limits` on the proxy, or give \
         it a meter (`POST …/proxies/{id}/meters`) in their place"
    );
    Err(Refusal::invalid(vec![Problem::new("", "no-meter", detail)]))
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
    let organisation = place!("/orgs/{org}", "meter", "org", "the organisation");
    let mut rows = attached::everywhere::<MeterKind>(places!("meter"));
    let admin = Need::Role(Role::Admin);
    rows.extend(attached::rows::<MeterKind, Organisation>(
        organisation,
        admin,
    ));
    rows
}
