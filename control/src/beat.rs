//! Writes the beat that nodes prove their watches and compare their clocks by.
//!
//! All control planes of a region take part, and who comes first writes: one that sees a newer beat
//! than at its last turn leaves that turn out. So there is one beat every few seconds whoever is
//! there, without a leader.

use std::sync::Arc;

use jiff::Timestamp;
use proto::beat::{self, Beat};
use proto::keys;
use proto::store::{Compare, Op, Revision, Store, StoreError, Txn, TxnOutcome};
use tokio::time::MissedTickBehavior;

/// Writes until it is dropped. `by` names this control plane.
pub async fn run(store: Arc<dyn Store>, by: String) {
    let mut turns = tokio::time::interval(beat::EVERY);
    turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut seen = None;
    loop {
        turns.tick().await;
        match turn(&*store, &by, seen, Timestamp::now()).await {
            Ok(newest) => seen = Some(newest),
            // Without a store there is nothing that a node could miss.
            Err(error) => tracing::debug!(%error, "no beat was written: {error}"),
        }
    }
}

/// Writes a beat unless somebody has since `seen`; gives the revision of the newest one.
async fn turn(
    store: &dyn Store,
    by: &str,
    seen: Option<Revision>,
    now: Timestamp,
) -> Result<Revision, StoreError> {
    let found = store.get(keys::BEAT).await?.value;
    let newest = found.map(|pair| pair.mod_revision);
    if let Some(newest) = newest.filter(|newest| seen.is_none_or(|seen| seen < *newest)) {
        return Ok(newest);
    }
    let beat = Beat {
        at: now,
        by: by.to_owned(),
    };
    let key = keys::BEAT.to_owned();
    let value =
        serde_json::to_vec(&beat).map_err(|error| StoreError::Invalid(error.to_string()))?;
    let txn = Txn {
        compares: vec![match newest {
            Some(newest) => Compare::ModRevision(key.clone(), newest),
            None => Compare::Absent(key.clone()),
        }],
        ops: vec![Op::put(key.clone(), value)],
        or_read: vec![key],
    };
    match store.txn(txn).await? {
        TxnOutcome::Committed(at) => Ok(at),
        TxnOutcome::Conflict(found) => {
            let other = found.value.into_iter().flatten().next();
            Ok(other.map_or(found.revision, |pair| pair.mod_revision))
        }
    }
}

#[cfg(test)]
mod tests {
    use proto::store::embedded::Embedded;

    use super::*;

    async fn written(store: &dyn Store) -> (Beat, Revision) {
        let pair = store.get(keys::BEAT).await.unwrap().value.unwrap();
        let beat = serde_json::from_slice(&pair.value).unwrap();
        (beat, pair.mod_revision)
    }

    #[tokio::test]
    async fn one_of_several_writes_each_beat_and_another_takes_over() {
        let dir = tempfile::tempdir().unwrap();
        let store = Embedded::open(&dir.path().join("store")).unwrap();
        let now = |second| Timestamp::from_second(second).unwrap();
        let a = turn(&*store, "a", None, now(1)).await.unwrap();
        let (beat, revision) = written(&*store).await;
        assert_eq!((beat.by.as_str(), beat.at, revision), ("a", now(1), a));
        // One that has just come only looks.
        let b = turn(&*store, "b", None, now(2)).await.unwrap();
        assert_eq!((b, written(&*store).await.1), (a, a));
        let a = turn(&*store, "a", Some(a), now(6)).await.unwrap();
        assert!(a > b);
        let b = turn(&*store, "b", Some(b), now(7)).await.unwrap();
        assert_eq!((b, written(&*store).await.0.by.as_str()), (a, "a"));
        // `a` has gone.
        let b = turn(&*store, "b", Some(b), now(12)).await.unwrap();
        assert_eq!((written(&*store).await.1, b > a), (b, true));
        assert_eq!(written(&*store).await.0.by, "b");
    }

    #[tokio::test]
    async fn a_store_that_went_back_gets_a_beat_all_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let store = Embedded::open(&dir.path().join("store")).unwrap();
        let now = Timestamp::from_second(1).unwrap();
        let first = turn(&*store, "a", None, now).await.unwrap();
        let far = Revision(first.0 + 1_000);
        let second = turn(&*store, "a", Some(far), now).await.unwrap();
        assert!(second > first);
    }
}
