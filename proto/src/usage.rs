//! What a node says of its meters in the store, under a lease: how much of each is used now.
//!
//! Values that requests bring (headers, claims, addresses) are nobody's business in the store: they
//! are named by a hash. Ids of ours stand as they are.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Most keys that a node tells of: those of which most is used.
pub const KEYS_TOLD_MAX: usize = 200;

/// Most meters of which a node tells how many keys it left out.
pub const METERS_LEFT_OUT_MAX: usize = 200;

/// The meters of one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeUsage {
    /// Its name.
    pub node: String,
    /// When this was so.
    pub at: Timestamp,
    /// Keys that were left out.
    pub left_out: u64,
    /// Of them, those of each meter, by its id: at most [`METERS_LEFT_OUT_MAX`].
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub left_out_of: BTreeMap<String, u64>,
    /// One element per key, the most used first.
    pub items: Vec<KeyUsage>,
}

/// One key of a meter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct KeyUsage {
    /// Id of the meter; of the proxy for its own `limits`.
    pub meter_id: String,
    /// Its name.
    pub name: String,
    /// What it counts: an id, or `#` and a hash of what a request brought; absent where it counts
    /// everything together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Whether it is the key that all share for which there was no place.
    #[serde(default)]
    pub overflow: bool,
    /// Who gives the tokens: `store`, `local_share`, or nobody (`store_lost`: nothing passes,
    /// `fail_open`: everything does).
    pub mode: String,
    /// Its limits; none for a meter that only observes.
    pub limits: Vec<LimitUsage>,
    /// Requests that wait at it now.
    pub waiting: u64,
    /// Milliseconds for which its target asked to wait.
    pub paused_ms: u64,
    /// What a request sets aside now, where it counts values of answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub estimate: Option<u64>,
    /// Answers that have not said what they have cost, since the nodes were started: what was set
    /// aside for them stays charged.
    #[serde(default)]
    pub missed: u64,
    /// Whether this is what the store had when a node began, no request having come since: the most
    /// that can be used.
    #[serde(default)]
    pub remembered: bool,
}

/// One limit of a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LimitUsage {
    /// Its window, or `concurrency`.
    pub window: String,
    /// How much may pass.
    pub limit: u64,
    /// How much has, or is set aside for nodes; calls in flight of `concurrency`.
    pub used: u64,
    /// Milliseconds until all of it is back or, where nothing is left, the next of it.
    pub reset_ms: u64,
}

impl KeyUsage {
    /// How much of its tightest limit is used, in millionths.
    pub fn share(&self) -> u64 {
        let share = |limit: &LimitUsage| {
            let share = u128::from(limit.used) * 1_000_000 / u128::from(limit.limit.max(1));
            u64::try_from(share).unwrap_or(u64::MAX)
        };
        self.limits.iter().map(share).max().unwrap_or(0)
    }
}

/// The keys of several nodes as one list, the most used first: windows as the newest report has
/// them, calls in flight and waiting requests added up. What a node has read at its start counts
/// only where no node knows better.
pub fn together(mut nodes: Vec<NodeUsage>) -> Vec<KeyUsage> {
    nodes.sort_by_key(|node| std::cmp::Reverse(node.at));
    let mut keys: Vec<KeyUsage> = Vec::new();
    let mut places = std::collections::HashMap::new();
    let items = nodes.into_iter().flat_map(|node| node.items);
    let (remembered, live): (Vec<_>, Vec<_>) = items.partition(|item| item.remembered);
    for item in live.into_iter().chain(remembered) {
        let name = (item.meter_id.clone(), item.key.clone(), item.overflow);
        let Some(known) = places.get(&name).and_then(|at: &usize| keys.get_mut(*at)) else {
            places.insert(name, keys.len());
            keys.push(item);
            continue;
        };
        known.waiting = known.waiting.saturating_add(item.waiting);
        known.missed = known.missed.saturating_add(item.missed);
        known.paused_ms = known.paused_ms.max(item.paused_ms);
        for limit in item.limits {
            let same = known.limits.iter_mut().find(|l| l.window == limit.window);
            match same {
                Some(same) if limit.window == "concurrency" => {
                    same.used = same.used.saturating_add(limit.used);
                }
                Some(_) => {}
                None => known.limits.push(limit),
            }
        }
    }
    keys.sort_by(|one, other| {
        let by = |key: &KeyUsage| (key.meter_id.clone(), key.key.clone());
        other
            .share()
            .cmp(&one.share())
            .then_with(|| by(one).cmp(&by(other)))
    });
    keys
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(meter: &str, limits: &[(&str, u64, u64)]) -> KeyUsage {
        let limit = |(window, limit, used): &(&str, u64, u64)| LimitUsage {
            window: (*window).to_owned(),
            limit: *limit,
            used: *used,
            reset_ms: 0,
        };
        KeyUsage {
            meter_id: meter.to_owned(),
            name: String::new(),
            key: None,
            overflow: false,
            mode: "store".to_owned(),
            limits: limits.iter().map(limit).collect(),
            waiting: 1,
            paused_ms: 0,
            estimate: None,
            missed: 2,
            remembered: false,
        }
    }

    #[test]
    fn windows_are_those_of_the_newest_and_calls_in_flight_add_up() {
        let node = |second: i64, items: Vec<KeyUsage>| NodeUsage {
            node: format!("n{second}"),
            at: Timestamp::from_second(second).unwrap(),
            left_out: 0,
            left_out_of: BTreeMap::new(),
            items,
        };
        let old = node(
            1,
            vec![key("a", &[("minute", 10, 9), ("concurrency", 5, 1)])],
        );
        let new = node(
            2,
            vec![
                key("a", &[("minute", 10, 2), ("concurrency", 5, 1)]),
                key("b", &[("day", 10, 5)]),
            ],
        );
        let all = together(vec![old, new]);
        let ids: Vec<_> = all.iter().map(|key| key.meter_id.as_str()).collect();
        assert_eq!(ids, ["b", "a"]);
        let used: Vec<_> = all[1].limits.iter().map(|limit| limit.used).collect();
        assert_eq!((used, all[1].waiting), (vec![2, 2], 2));
        assert_eq!(all[1].missed, 4);
    }

    #[test]
    fn what_a_node_read_at_its_start_gives_way_to_what_others_know() {
        let node = |second: i64, remembered: bool, items: &[(&str, u64)]| NodeUsage {
            node: format!("n{second}"),
            at: Timestamp::from_second(second).unwrap(),
            left_out: 0,
            left_out_of: BTreeMap::new(),
            items: items
                .iter()
                .map(|(meter, used)| KeyUsage {
                    remembered,
                    ..key(meter, &[("day", 10, *used)])
                })
                .collect(),
        };
        let live = node(1, false, &[("a", 3)]);
        let started = node(2, true, &[("a", 9), ("b", 5)]);
        let all = together(vec![live, started]);
        let told: Vec<_> = all
            .iter()
            .map(|key| (key.meter_id.as_str(), key.limits[0].used, key.remembered))
            .collect();
        assert_eq!(told, [("b", 5, true), ("a", 3, false)]);
    }
}
