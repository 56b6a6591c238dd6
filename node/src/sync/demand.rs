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
/// The rate of refusals is that over a window, or so long.
const COUNTED_MS: std::ops::RangeInclusive<u64> = 1_000..=10_000;

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
        let mut asked: Option<Instant> = None;
        loop {
            let elapsed = asked.replace(Instant::now()).map(|at| at.elapsed());
            if let Some(now) = self.limits.demand(elapsed.unwrap_or(PERIOD)) {
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
    let before = std::mem::take(lately);
    let mut all = now;
    for id in before.keys() {
        all.entry(id.clone()).or_default();
    }
    for (id, of) in &mut all {
        let before = before.get(id).copied().unwrap_or_default();
        of.width_ms = match of.width_ms {
            0 => before.width_ms,
            width_ms => width_ms,
        };
        let counted_ms = counted_ms(of.width_ms);
        of.used = of.used.max(before.used * FADE_PERCENT / 100);
        let kept = before.refused * (counted_ms - period_ms);
        of.refused = (kept + of.refused * period_ms) / counted_ms;
    }
    // Less than a thousandth is nothing.
    all.retain(|_, of| of.used >= WHOLE / 1_000 || of.refused >= WHOLE / 1_000);
    let demand = all.iter().map(|(id, of)| {
        let (used, refused) = (of.used, of.refused);
        (id.clone(), Demand { used, refused })
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
    fn the_rate_of_refusals_is_that_of_a_window_or_of_ten_seconds() {
        for (width_ms, rounds) in [(1_000, 8), (5_000, 40), (60_000, 80)] {
            let mut lately = BTreeMap::new();
            let mut last = 0;
            for _ in 0..rounds {
                last = told(&fade(&mut lately, one(0, 400_000, width_ms))).1;
            }
            assert!((390_000..=400_000).contains(&last), "{width_ms}: {last}");
        }
        // One of 5 a minute, once, as a rate: little at once, and hardly anything a moment later.
        let mut lately = BTreeMap::new();
        let first = told(&fade(&mut lately, one(0, 8 * WHOLE, 60_000))).1;
        assert_eq!(first, 400_000);
        for _ in 0..60 {
            fade(&mut lately, BTreeMap::new());
        }
        assert!(told(&fade(&mut lately, BTreeMap::new())).1 < 20_000);
    }
}
