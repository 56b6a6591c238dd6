//! Writes values over those that they were made of, and over no others.

use std::collections::BTreeMap;

use super::chunks::chunks;
use super::{Compare, Op, Revision, Store, StoreError, Txn, TxnOutcome};

/// Writes each value while the one that it takes the place of is still of this revision, and while
/// `guard` holds; how many were written. Of some that are written together none is where one has
/// changed: whoever looks again finds the others as they were.
///
/// # Errors
/// The store failed; what was written stays.
pub async fn put_over(
    store: &dyn Store,
    guard: &[Compare],
    values: Vec<(Op, Revision)>,
) -> Result<u64, StoreError> {
    let made_of: BTreeMap<String, Revision> = values
        .iter()
        .map(|(op, revision)| (op.key().to_owned(), *revision))
        .collect();
    let mut written = 0;
    for ops in chunks(values.into_iter().map(|(op, _)| op).collect()) {
        let unchanged = ops.iter().filter_map(|op| {
            let revision = made_of.get(op.key())?;
            Some(Compare::ModRevision(op.key().to_owned(), *revision))
        });
        let count = ops.len() as u64;
        let txn = Txn {
            compares: unchanged.chain(guard.iter().cloned()).collect(),
            ops,
            or_read: Vec::new(),
        };
        if let TxnOutcome::Committed(_) = store.txn(txn).await? {
            written += count;
        }
    }
    Ok(written)
}
