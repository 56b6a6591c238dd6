//! Tells how limits that regions share are used here, so that shares move to where they are missed:
//! under a lease, and only where there are such limits.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use proto::health::Health;
use proto::id::NodeId;
use proto::keys;
use proto::restarts::Restarts;
use proto::shares::{Demand, NodeDemand};
use proto::store::{Store, StoreError};
use tokio::time::Instant;

use super::entry::Entry;
use crate::limits::Limits;

/// How often it is told.
const PERIOD: Duration = Duration::from_millis(500);
/// How often the lease is renewed where nothing changes.
const RENEW: Duration = Duration::from_secs(4);
/// What was used lately counts, less with each period: a pause of a moment gives nothing away.
const FADE_PERCENT: u64 = 50;

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
    lately: BTreeMap<String, u64>,
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

/// What is used now or was a moment ago.
fn fade(lately: &mut BTreeMap<String, u64>, now: NodeDemand) -> NodeDemand {
    let mut demand = now;
    for (id, used) in std::mem::take(lately) {
        let faded = used * FADE_PERCENT / 100;
        // Less than a thousandth is nothing.
        if faded >= 1_000 {
            let known = demand.meters.entry(id).or_default();
            known.used = known.used.max(faded);
        }
    }
    let used = demand.meters.iter();
    *lately = used
        .map(|(id, of): (_, &Demand)| (id.clone(), of.used))
        .collect();
    demand
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_used_a_moment_ago_still_counts() {
        let one = |used, hungry| NodeDemand {
            meters: BTreeMap::from([("m".to_owned(), Demand { used, hungry })]),
        };
        let mut lately = BTreeMap::new();
        assert_eq!(fade(&mut lately, one(800_000, true)), one(800_000, true));
        assert_eq!(
            fade(&mut lately, NodeDemand::default()),
            one(400_000, false)
        );
        assert_eq!(fade(&mut lately, one(300_000, false)), one(300_000, false));
        let mut rounds = 0;
        while fade(&mut lately, NodeDemand::default()) != NodeDemand::default() {
            rounds += 1;
        }
        assert!((5..20).contains(&rounds), "{rounds}");
    }
}
