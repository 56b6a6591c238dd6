//! How much of each meter is used now, as the nodes tell.

use std::collections::{BTreeSet, HashMap};

use proto::id::OrgId;
use proto::keys;
use proto::meter::share::SharedLimits;
use proto::object::{Body, ObjectId};
use proto::org::Role;
use proto::shares::Held;
use proto::store::load;
use proto::usage::{self, KeyUsage, NodeUsage};
use serde_json::{Value, json};

use super::answer::Answer;
use super::call::OrgCall;
use super::error::Refusal;
use super::write;
use crate::route::{Gives, Need, Parameter, Route, Verb};

/// Keys of one answer, where nothing else is asked for.
const LIMIT_DEFAULT: usize = 100;
/// Most keys of one answer.
const LIMIT_MAX: usize = 1_000;

const PARAMETERS: &[Parameter] = &[
    (
        "meter",
        "Only keys of this meter, or of this proxy's `limits`",
    ),
    (
        "top",
        "At most so many keys, the most used first: 1 to 1,000, default 100",
    ),
];

/// Rows of the routing table.
pub fn routes() -> Vec<Route> {
    vec![
        Route::org(
            Verb::Get,
            "/orgs/{org}/meters/usage",
            ("list_meter_usage", "See how much of each meter is used now"),
            Need::Role(Role::Viewer),
            list,
        )
        .gives(Gives::One("MeterUsage"))
        .parameters(PARAMETERS),
    ]
}

async fn list(call: OrgCall) -> Result<Answer, Refusal> {
    let top: Option<usize> = call.request.query.parsed("top", "a number")?;
    let top = top.unwrap_or(LIMIT_DEFAULT);
    if top == 0 || top > LIMIT_MAX {
        return Err(Refusal::parameter("top", "is 1 to 1,000"));
    }
    let wanted: Option<String> = call.request.query.parsed("meter", "an id")?;
    let config = call.config()?;
    let counts = |body: &Body| match body {
        Body::Meter(_) => true,
        Body::Proxy(proxy) => proxy.limits != Default::default(),
        _ => false,
    };
    let own: BTreeSet<String> = config
        .objects
        .values()
        .filter(|object| counts(&object.body))
        .map(|object| object.id.to_string())
        .collect();
    let mut nodes: Vec<NodeUsage> = Vec::new();
    let listed = load::list(call.control.publisher.store(), keys::USAGE, None, |pair| {
        // One of another release that cannot be read is not worth failing for.
        nodes.extend(serde_json::from_slice::<NodeUsage>(&pair.value).ok());
    });
    listed.await.map_err(|error| write::refusal(error.into()))?;
    let left_out = left_out(&nodes, |id| own.contains(id));
    let at = nodes.iter().map(|node| node.at).max();
    let mine = |key: &KeyUsage| {
        own.contains(&key.meter_id) && wanted.as_ref().is_none_or(|id| *id == key.meter_id)
    };
    let all = usage::together(nodes).into_iter().filter(mine);
    let held = held(&call, config.org).await?;
    let items: Vec<Value> = all
        .take(top)
        .map(|key| {
            // Texts and numbers always serialise.
            let mut shown = serde_json::to_value(&key).unwrap_or_default();
            let id: Option<ObjectId> = key.meter_id.parse().ok();
            let object = id.and_then(|id| config.object(id));
            let parent = object.and_then(|object| object.body.parent());
            shown["parent_id"] = json!(parent);
            let shared = object.and_then(|object| SharedLimits::of(&object.body));
            if let Some(shared) = shared {
                let region = call.control.publisher.region();
                shown["share"] = share(&shared, held.get(&key.meter_id), region);
            }
            shown
        })
        .collect();
    Ok(Answer::json(json!({
        "items": items, "at": at.map(|at| at.to_string()), "keys_left_out": left_out,
    })))
}

/// Keys of the organisation's own meters that nodes left out.
fn left_out(nodes: &[NodeUsage], is_own: impl Fn(&String) -> bool) -> u64 {
    let of_meters = nodes.iter().flat_map(|node| &node.left_out_of);
    let own = of_meters.filter(|(id, _)| is_own(id));
    own.map(|(_, count)| count).sum()
}

/// What this region has of limits whose shares have moved, by the ids of meters.
async fn held(call: &OrgCall, org: OrgId) -> Result<HashMap<String, Held>, Refusal> {
    let mut held = HashMap::new();
    let store = call.control.publisher.store();
    let prefix = keys::shares_of(org);
    let listed = load::list(store, &prefix, None, |pair| {
        let of = keys::parse_share(&pair.key);
        let value = serde_json::from_slice::<Held>(&pair.value).ok();
        held.extend(of.zip(value).map(|((_, id), held)| (id.to_owned(), held)));
    });
    listed.await.map_err(|error| write::refusal(error.into()))?;
    Ok(held)
}

/// What this region has of limits that regions share.
fn share(shared: &SharedLimits<'_>, held: Option<&Held>, region: &str) -> Value {
    let whole = shared.whole.iter();
    let whole = whole.map(|(window, limit)| json!({"window": window, "limit": limit}));
    let at_first = shared.share(region).map_or(0, |share| share.initial);
    let moved = shared.moving_share(region).zip(held);
    let moved = moved.map(|(share, held)| held.fraction(&share));
    json!({
        "regions": shared.regions,
        "millionths": moved.unwrap_or(at_first),
        "whole": whole.collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_of_others_is_not_told() {
        let node = |of: &[(&str, u64)]| NodeUsage {
            node: "n".into(),
            at: jiff::Timestamp::UNIX_EPOCH,
            left_out: 100,
            left_out_of: of
                .iter()
                .map(|(id, count)| ((*id).to_owned(), *count))
                .collect(),
            items: Vec::new(),
        };
        let nodes = [node(&[("mine", 2), ("theirs", 90)]), node(&[("mine", 3)])];
        assert_eq!(left_out(&nodes, |id| id == "mine"), 5);
    }
}
