//! Tells how limits that regions share are used here, so that shares move to where they are missed:
//! under a lease, and only where there are such limits.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use proto::health::Health;
use proto::id::NodeId;
use proto::keys;
use proto::meter::share::WHOLE;
use proto::restarts::Restarts;
use proto::shares::{Demand, NodeDemand};
use proto::store::{Store, StoreError};
use tokio::time::Instant;

use super::entry::Entry;
use crate::limits::{Limits, Use};

/// How often it is told.
const PERIOD: Duration = Duration::from_millis(500);
/// How often the lease is renewed where nothing changes.
const RENEW: Duration = Duration::from_secs(4);
/// What was used lately counts, less with each period: a pause of a moment gives nothing away.
const FADE_PERCENT: u64 = 50;
/// Refusals are counted over a window, or so long.
const COUNTED_MS: std::ops::RangeInclusive<u64> = 1_000..=10_000;
/// What more than so many times the whole is refused says nothing more.
const REFUSED_MAX: u64 = 8 * WHOLE;

/// Tells for as long as it is polled; what was told ends with its lease.
pub async fn run(limits: Arc<Limits>, store: Arc<dyn Store>, health: Health) {
    let mut teller = Teller {
        entry: Entry::new(store, keys::demand(NodeId::new())),
        limits,
        lately: BTreeMap::new(),
        told: NodeDemand::default(),
        renewed: None,
    };
    let mut restarts = Restarts::of("demand", health);
    loop {
        restarts.run(teller.keep()).await;
    }
}

struct Teller {
    entry: Entry,
    limits: Arc<Limits>,
    lately: BTreeMap<String, Use>,
    told: NodeDemand,
    renewed: Option<Instant>,
}

impl Teller {
    async fn keep(&mut self) {
        loop {
            if let Some(now) = self.limits.demand() {
                let demand = fade(&mut self.lately, now);
                if let Err(error) = self.tell(demand).await {
                    tracing::debug!(%error, "nobody is told of the demand: {error}");
                    self.entry.forget();
                    self.renewed = None;
                }
            }
            tokio::time::sleep(PERIOD).await;
        }
    }

    async fn tell(&mut self, demand: NodeDemand) -> Result<(), StoreError> {
        let renewed = self.renewed.is_some_and(|at| at.elapsed() < RENEW);
        if demand == self.told && (renewed || demand.meters.is_empty()) {
            return Ok(());
        }
        if !renewed {
            if self.entry.renew().await? {
                self.told = NodeDemand::default();
            }
            self.renewed = Some(Instant::now());
        }
        if demand != self.told {
            self.entry.put(&demand).await?;
            self.told = demand;
        }
        Ok(())
    }
}

/// What is wanted now or was a moment ago.
fn fade(lately: &mut BTreeMap<String, Use>, now: BTreeMap<String, Use>) -> NodeDemand {
    let period_ms = PERIOD.as_millis() as u64;
    let mut all = now;
    for (id, before) in std::mem::take(lately) {
        let known = all.entry(id).or_default();
        known.width_ms = known.width_ms.max(before.width_ms);
        let counted_ms = counted_ms(known.width_ms);
        known.used = known.used.max(before.used * FADE_PERCENT / 100);
        let refused = before.refused * (counted_ms - period_ms) / counted_ms;
        known.refused = known.refused.saturating_add(refused).min(REFUSED_MAX);
    }
    // Less than a thousandth is nothing.
    all.retain(|_, of| of.used >= WHOLE / 1_000 || of.refused >= WHOLE / 1_000);
    let demand = all.iter().map(|(id, of)| {
        let per_window = u128::from(of.refused) * u128::from(of.width_ms.max(1));
        let per_window = per_window / u128::from(counted_ms(of.width_ms));
        let refused = u64::try_from(per_window).unwrap_or(u64::MAX);
        let demand = Demand {
            used: of.used,
            refused: refused.min(REFUSED_MAX),
        };
        (id.clone(), demand)
    });
    let meters = demand.collect();
    *lately = all;
    NodeDemand { meters }
}

fn counted_ms(width_ms: u64) -> u64 {
    width_ms.clamp(*COUNTED_MS.start(), *COUNTED_MS.end())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(used: u64, refused: u64, width_ms: u64) -> BTreeMap<String, Use> {
        let of = Use {
            used,
            refused,
            width_ms,
        };
        BTreeMap::from([("m".to_owned(), of)])
    }

    fn told(demand: &NodeDemand) -> (u64, u64) {
        let of = demand.meters.get("m").copied().unwrap_or_default();
        (of.used, of.refused)
    }

    #[test]
    fn what_was_used_a_moment_ago_still_counts() {
        let mut lately = BTreeMap::new();
        assert_eq!(
            told(&fade(&mut lately, one(800_000, 0, 1_000))),
            (800_000, 0)
        );
        assert_eq!(told(&fade(&mut lately, BTreeMap::new())), (400_000, 0));
        assert_eq!(
            told(&fade(&mut lately, one(300_000, 0, 1_000))),
            (300_000, 0)
        );
        let mut rounds = 0;
        while fade(&mut lately, BTreeMap::new()) != NodeDemand::default() {
            rounds += 1;
        }
        assert!((5..20).contains(&rounds), "{rounds}");
        assert!(lately.is_empty());
    }

    #[test]
    fn refusals_are_told_as_so_many_a_window() {
        // A tenth of the limit is refused each half second: a fifth a second, 12 limits a minute.
        for (width_ms, expected) in [(1_000, 200_000), (5_000, 1_000_000), (60_000, REFUSED_MAX)] {
            let mut lately = BTreeMap::new();
            let mut last = 0;
            for _ in 0..200 {
                last = told(&fade(&mut lately, one(0, 100_000, width_ms))).1;
            }
            assert!(last.abs_diff(expected) <= 20, "{width_ms}: {last}");
        }
        // One of 5 a minute, once: a moment later it is hardly anything.
        let mut lately = BTreeMap::new();
        let first = told(&fade(&mut lately, one(0, 200_000, 60_000))).1;
        assert_eq!(first, 1_200_000);
        for _ in 0..60 {
            fade(&mut lately, BTreeMap::new());
        }
        assert!(told(&fade(&mut lately, BTreeMap::new())).1 < 60_000);
    }
}
