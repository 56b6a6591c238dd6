//! What is remembered of writes with an `Idempotency-Key` is bounded: their leases end it after a
//! day, and of an organisation that writes very much the oldest go before that. Repeats come within
//! minutes; were writes refused in the place of it, one client could keep an organisation from
//! writing for a day.

use std::collections::BTreeMap;

use proto::id::OrgId;
use proto::keys;
use proto::store::chunks::CHUNK_OPS;
use proto::store::{Compare, Op, Revision, StoreError, Txn, TxnOutcome, load};

use super::Janitor;

/// Outcomes of an organisation that are remembered: as many as a day has seconds, about.
pub(super) const KEPT_MAX: usize = 100_000;

/// When what is remembered of an organisation was stored, by what it is.
type Stored = BTreeMap<(OrgId, keys::Outcome), Vec<Revision>>;

impl Janitor {
    /// Forgets the oldest outcomes of organisations that have more than so many; answers how many.
    ///
    /// # Errors
    /// The store failed; what was forgotten before stays so.
    pub(super) async fn forget_outcomes(&self, kept_max: usize) -> Result<u64, StoreError> {
        let store = self.publisher.store();
        let mut stored = Stored::new();
        load::list(store, keys::IDEMPOTENCY, None, |pair| {
            if let Some(of) = keys::parse_outcome(&pair.key) {
                stored.entry(of).or_default().push(pair.mod_revision);
            }
        })
        .await?;
        let mut forgotten = 0;
        for ((org, outcome), mut revisions) in stored {
            let Some(excess) = revisions.len().checked_sub(kept_max).filter(|n| *n > 0) else {
                continue;
            };
            let (_, last, _) = revisions.select_nth_unstable(excess - 1);
            let last = *last;
            forgotten += self.forget_until((org, outcome), last).await?;
            tracing::info!(
                %org, excess,
                "{org} has more than {kept_max} outcomes of requests with an Idempotency-Key in a \
                 day: the oldest are forgotten"
            );
        }
        Ok(forgotten)
    }

    /// Forgets what was stored until a revision, that included.
    async fn forget_until(
        &self,
        (org, outcome): (OrgId, keys::Outcome),
        last: Revision,
    ) -> Result<u64, StoreError> {
        let store = self.publisher.store();
        let mut old: Vec<(String, Revision)> = Vec::new();
        load::list(store, &keys::idempotency_of(org), None, |pair| {
            let is_it = keys::parse_outcome(&pair.key) == Some((org, outcome));
            if is_it && pair.mod_revision <= last {
                old.push((pair.key, pair.mod_revision));
            }
        })
        .await?;
        let mut forgotten = 0;
        for part in old.chunks(CHUNK_OPS) {
            let compare = |(key, at): &(String, Revision)| Compare::ModRevision(key.clone(), *at);
            let txn = Txn {
                // A key that ended meanwhile may have been used again.
                compares: part.iter().map(compare).collect(),
                ops: part
                    .iter()
                    .map(|(key, _)| Op::Delete(key.clone()))
                    .collect(),
                or_read: vec![],
            };
            // Where one was, the others go the next time.
            if let TxnOutcome::Committed(_) = store.txn(txn).await? {
                forgotten += part.len() as u64;
            }
        }
        Ok(forgotten)
    }
}
