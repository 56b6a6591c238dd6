//! How much of its quota the store has taken. A store beyond its quota takes no writes at all, and
//! limits need theirs: so configuration stops earlier, and people are told before that.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use proto::exposition::Families;
use proto::store::{Store, StoreError};

use super::{PublishError, Publisher};

/// How often the members are asked: seldom, for etcd that comes back has enough to answer.
const ASK_EVERY: Duration = Duration::from_secs(300);
/// Parts of the quota, in percent, beyond which people are told, and nothing is published.
const TOLD_PERCENT: u64 = 70;
const REFUSED_PERCENT: u64 = 85;
/// Askings between two sizes that are compared: old changes are forgotten more often than that.
const PERIOD: u32 = 2;
/// Periods in which it grew all the time.
const GROWING_MAX: u32 = 3;

/// See the module.
#[derive(Default)]
pub(super) struct Room(Mutex<Known>);

#[derive(Default)]
struct Known {
    quota_bytes: u64,
    /// What each member has taken, by its address.
    members: BTreeMap<String, u64>,
    was_told: bool,
    turns: u32,
    /// The most that a member had taken at the end of the last period, and for how many it grew.
    before: u64,
    growing: u32,
}

impl Known {
    /// The member that has taken most.
    fn fullest(&self) -> Option<(&str, u64)> {
        let most = self.members.iter().max_by_key(|(_, bytes)| **bytes);
        most.map(|(member, bytes)| (member.as_str(), *bytes))
    }

    /// Whether a part of the quota is taken; never where nobody said what the quota is.
    fn is_beyond(&self, bytes: u64, percent: u64) -> bool {
        let part = u128::from(self.quota_bytes) * u128::from(percent);
        self.quota_bytes > 0 && u128::from(bytes) * 100 >= part
    }

    fn learn(&mut self, members: BTreeMap<String, u64>) {
        self.members = members;
        let Some((member, bytes)) = self.fullest() else {
            return;
        };
        let (member, quota) = (member.to_owned(), self.quota_bytes);
        let is_told = self.is_beyond(bytes, TOLD_PERCENT);
        if is_told && !self.was_told {
            tracing::error!(
                member,
                bytes,
                quota,
                "the configuration store ({member}) has taken {bytes} of its {quota} bytes; beyond \
                 {REFUSED_PERCENT} % nothing is published: `requestrocket recover --space`, or \
                 raise `store.quota_bytes`, and before it the quota of etcd"
            );
        }
        self.was_told = is_told;
        self.turns += 1;
        if self.turns < PERIOD {
            return;
        }
        self.growing = if bytes > self.before {
            self.growing + 1
        } else {
            0
        };
        (self.turns, self.before) = (0, bytes);
        if self.growing >= GROWING_MAX && is_told {
            tracing::warn!(
                member,
                bytes,
                "the configuration store ({member}) grows all the time; if it is etcd, is \
                 `--auto-compaction-retention` set?"
            );
        }
    }
}

impl Room {
    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Publisher {
    /// The same publisher, for a store with this quota in bytes.
    pub fn with_quota(self, quota_bytes: u64) -> Self {
        self.room.known().quota_bytes = quota_bytes;
        self
    }

    /// Asks the members of the store how much they have taken, until it is dropped.
    pub async fn watch_room(&self) {
        loop {
            self.ask_room().await;
            tokio::time::sleep(ASK_EVERY).await;
        }
    }

    /// Gives back the space that deleted and earlier content takes, and asks anew how much is
    /// taken, so that what is free counts at once. Other control planes ask within minutes.
    ///
    /// # Errors
    /// As [`Store::reclaim_space`].
    pub async fn reclaim_space(&self) -> Result<(), StoreError> {
        let reclaimed = self.store.reclaim_space().await;
        self.ask_room().await;
        reclaimed
    }

    pub(super) async fn ask_room(&self) {
        match Store::sizes(&*self.store).await {
            Ok(sizes) => {
                let sizes = sizes.into_iter().map(|size| (size.member, size.bytes));
                self.room.known().learn(sizes.collect());
            }
            Err(error) => tracing::debug!(%error, "nobody knows how full the store is: {error}"),
        }
    }

    /// What the members have taken.
    pub fn room_families(&self) -> Families {
        let mut out = Families::default();
        let known = self.room.known();
        if known.members.is_empty() {
            return out;
        }
        let help = "What a member of the store has taken of its quota.";
        let family = out.gauge("requestrocket_store_size_bytes", help);
        for (member, bytes) in &known.members {
            family.with([("member", member.to_string().into())], *bytes);
        }
        let help = "Beyond this a member of the store takes no writes (`store.quota_bytes`).";
        let family = out.gauge("requestrocket_store_quota_bytes", help);
        family.is(known.quota_bytes);
        out
    }

    /// Refuses to publish while little is left.
    pub(crate) fn refuse_full(&self) -> Result<(), PublishError> {
        let known = self.room.known();
        match known.fullest() {
            Some((member, bytes)) if known.is_beyond(bytes, REFUSED_PERCENT) => {
                let quota = known.quota_bytes;
                let why = format!(
                    "{member} has taken {bytes} of its {quota} bytes (`store.quota_bytes`); \
                     the rest is for limits"
                );
                Err(StoreError::Full(why).into())
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_are_told_before_nothing_is_published() {
        const GIB: u64 = 1 << 30;
        for (quota, taken, told, refused) in [
            (8 * GIB, 5 * GIB, false, false),
            (8 * GIB, 6 * GIB, true, false),
            (8 * GIB, 7 * GIB, true, true),
            (8 * GIB, u64::MAX, true, true),
            (0, 7 * GIB, false, false),
        ] {
            let known = Known {
                quota_bytes: quota,
                ..Known::default()
            };
            assert_eq!(
                known.is_beyond(taken, TOLD_PERCENT),
                told,
                "{taken} of {quota}"
            );
            assert_eq!(
                known.is_beyond(taken, REFUSED_PERCENT),
                refused,
                "{taken} of {quota}"
            );
        }
    }

    #[test]
    fn growth_counts_period_by_period() {
        let mut known = Known::default();
        let learn = |known: &mut Known, bytes: u64| {
            for _ in 0..PERIOD {
                known.learn(BTreeMap::from([("m".to_owned(), bytes)]));
            }
            known.growing
        };
        assert_eq!([1, 2, 3].map(|bytes| learn(&mut known, bytes)), [1, 2, 3]);
        assert_eq!(learn(&mut known, 3), 0);
    }
}
