//! How much of each meter is used now, as the nodes tell.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use proto::id::OrgId;
use proto::keys;
use proto::meter::Share;
use proto::meter::share::SharedLimits;
use proto::object::{Body, ObjectId};
use proto::org::Role;
use proto::shares::{Grant, Held, wait};
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
    let shares = Shares::read(&call, config.org).await?;
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
                shown["share"] = shares.shown(&shared, &key.meter_id, region);
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

/// What this region has of limits whose shares move, by the ids of meters.
#[derive(Default)]
struct Shares {
    held: HashMap<String, Held>,
    /// What it has given away and is not known to be taken, and to whom.
    leaving: HashMap<String, Vec<(String, Grant)>>,
}

impl Shares {
    async fn read(call: &OrgCall, org: OrgId) -> Result<Self, Refusal> {
        let mut shares = Self::default();
        let store = call.control.publisher.store();
        let (held, leaving) = (&mut shares.held, &mut shares.leaving);
        let (shares_of, grants_of) = (keys::shares_of(org), keys::grants_of(org));
        let listed = load::list(store, &shares_of, None, |pair| {
            let of = keys::parse_share(&pair.key);
            let value = serde_json::from_slice::<Held>(&pair.value).ok();
            held.extend(of.zip(value).map(|((_, id), held)| (id.to_owned(), held)));
        });
        // Both as they were at one time: what moves between them is told once.
        let at = listed.await.map_err(|error| write::refusal(error.into()))?;
        let listed = load::list(store, &grants_of, Some(at), |pair| {
            let of = keys::parse_grant(&pair.key);
            let value = serde_json::from_slice::<Grant>(&pair.value).ok();
            if let Some(((to, id), grant)) = of.zip(value) {
                let all = leaving.entry(id.to_owned()).or_default();
                all.push((to.to_owned(), grant));
            }
        });
        listed.await.map_err(|error| write::refusal(error.into()))?;
        Ok(shares)
    }

    /// What this region has of limits that regions share, and what of it is on its way.
    fn shown(&self, shared: &SharedLimits<'_>, id: &str, region: &str) -> Value {
        let whole = shared.whole.iter();
        let whole = whole.map(|(window, limit)| json!({"window": window, "limit": limit}));
        let at_first = shared.share(region).map_or(0, |share| share.initial);
        let moving = shared.moving_share(region);
        let moved = moving.zip(self.held.get(id));
        let moved = moved.map(|(share, held)| held.fraction(&share));
        let given = moving.zip(self.leaving.get(id));
        let leaving = given.map_or_else(BTreeMap::new, |(share, grants)| by_region(share, grants));
        let leaving = leaving.into_iter();
        let leaving = leaving.map(|(to, millionths)| json!({"to": to, "millionths": millionths}));
        json!({
            "regions": shared.regions,
            "millionths": moved.unwrap_or(at_first),
            "whole": whole.collect::<Vec<_>>(),
            "leaving": leaving.collect::<Vec<_>>(),
            "moves_in_s": moving.map(|_| wait(&shared.limits).as_secs() + 1),
            "stays_for": shared.stays(),
        })
    }
}

/// How much each region was given. What was agreed among others is worth nothing.
fn by_region(share: Share, grants: &[(String, Grant)]) -> BTreeMap<&str, u64> {
    let mut all = BTreeMap::new();
    let among = grants.iter();
    for (to, grant) in among.filter(|(_, grant)| grant.division == share.division) {
        let sum: &mut u64 = all.entry(to.as_str()).or_default();
        *sum = sum.saturating_add(grant.fraction);
    }
    all
}

#[cfg(test)]
mod tests {
    use proto::object::Attached;

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

    fn meter(text: &str) -> Body {
        Body::Meter(Attached {
            parent: ObjectId::Org(OrgId::from_bits(1)),
            spec: serde_json::from_str(text).unwrap(),
        })
    }

    #[test]
    fn a_share_that_travels_is_told_by_who_gave_it() {
        let text = r#"{"limits": [{"limit": 100, "window": "second"}], "shared_by": ["us", "eu"]}"#;
        let body = meter(text);
        let shared = SharedLimits::of(&body).unwrap();
        let (share, mut held) = (shared.moving_share("us").unwrap(), Held::default());
        let mut give = |fraction| {
            let of = (&share, shared.limits.as_slice());
            let grant = held.give(of, "eu", fraction).unwrap();
            ("eu".to_owned(), grant)
        };
        let mut grants = vec![give(100_000), give(50_000)];
        // Of another list of regions.
        let (to, other) = give(1);
        let division = other.division + 1;
        grants.push((to, Grant { division, ..other }));
        let shares = Shares {
            held: HashMap::from([("mtr_1".to_owned(), held)]),
            leaving: HashMap::from([("mtr_1".to_owned(), grants)]),
        };
        assert_eq!(
            shares.shown(&shared, "mtr_1", "us"),
            json!({
                "regions": ["us", "eu"], "millionths": 349_999,
                "whole": [{"window": "second", "limit": 100}],
                "leaving": [{"to": "eu", "millionths": 150_000}],
                "moves_in_s": 6, "stays_for": null,
            })
        );
        // Of another meter nothing is on its way.
        let other = shares.shown(&shared, "mtr_2", "us");
        assert_eq!(
            (&other["millionths"], &other["leaving"]),
            (&json!(500_000), &json!([]))
        );
    }

    #[test]
    fn a_share_of_a_day_stays_and_says_for_which_limit() {
        let text = r#"{"limits": [{"limit": 100, "window": "day"}], "shared_by": ["us", "eu"]}"#;
        let body = meter(text);
        let shared = SharedLimits::of(&body).unwrap();
        let shown = Shares::default().shown(&shared, "mtr_1", "us");
        assert_eq!(
            (
                &shown["stays_for"],
                &shown["moves_in_s"],
                &shown["millionths"]
            ),
            (&json!("fixed_window"), &Value::Null, &json!(500_000))
        );
    }
}
