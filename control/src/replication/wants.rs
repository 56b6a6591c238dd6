//! What other regions have and want of limits that regions share, as they have told this process.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use proto::shares;

use super::shares::Name;

/// For how long counts what a region has told that it wants.
const TOLD_LATELY: Duration = Duration::from_secs(10);

/// What a region has and wants, and when it told that.
type ByRegion = BTreeMap<String, (shares::Region, Instant)>;

/// What other regions have told that they want, of each meter.
#[derive(Debug, Default)]
pub(super) struct Wants {
    told: Mutex<HashMap<Name, ByRegion>>,
    /// What is on its way here, by the region that gave it.
    coming: Mutex<HashMap<Name, BTreeMap<String, u64>>>,
}

impl Wants {
    /// Notes what comes from a region; gives what comes from all.
    pub(super) fn coming(&self, name: &Name, from: &str, fraction: u64) -> u64 {
        let mut coming = self.coming.lock().unwrap_or_else(PoisonError::into_inner);
        if fraction == 0 && !coming.contains_key(name) {
            return 0;
        }
        let known = coming.entry(name.clone()).or_default();
        match fraction {
            0 => known.remove(from),
            _ => known.insert(from.to_owned(), fraction),
        };
        let all = known.values().sum();
        if all == 0 {
            coming.remove(name);
        }
        all
    }

    /// Notes what a region has and wants; gives what further ones have told of lately.
    pub(super) fn told(
        &self,
        name: &Name,
        region: &str,
        of: shares::Region,
        now: Instant,
    ) -> Vec<shares::Region> {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new = |at: Instant| now.saturating_duration_since(at) < TOLD_LATELY;
        if !told.contains_key(name) {
            told.retain(|_, regions| regions.values().any(|(_, at)| is_new(*at)));
        }
        let of_meter = told.entry(name.clone()).or_default();
        of_meter.insert(region.to_owned(), (of, now));
        let others = of_meter.iter();
        let others = others.filter(|(other, (_, at))| *other != region && is_new(*at));
        others.map(|(_, (of, _))| *of).collect()
    }
}
