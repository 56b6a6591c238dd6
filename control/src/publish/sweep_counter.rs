//! The counter `gc/{org}`, which a sweep of leaves raises before it deletes: what was written, or
//! found, before a sweep began is told by it from what was after.

use proto::id::OrgId;
use proto::keys;
use proto::store::{Compare, Op, Revision, Store, Txn, TxnOutcome};

use super::PublishError;

/// The counter, and the compare that holds until a sweep begins.
///
/// # Errors
/// The store failed, or what it holds is no number.
pub(crate) async fn read(store: &dyn Store, org: OrgId) -> Result<(u64, Compare), PublishError> {
    let key = keys::gc(org);
    let Some(pair) = store.get(&key).await?.value else {
        return Ok((0, Compare::Absent(key)));
    };
    let text = std::str::from_utf8(&pair.value).ok();
    let counter = text.and_then(|text| text.parse().ok());
    let unreadable = || PublishError::Unreadable(format!("{key} is no number"));
    let counter = counter.ok_or_else(unreadable)?;
    Ok((counter, Compare::ModRevision(key, pair.mod_revision)))
}

/// Raises the counter, which ends every sweep that has begun. Gives the revision of that, and the
/// compare that holds until it is raised again; none where another was faster.
///
/// # Errors
/// As of [`read`].
pub(crate) async fn raise(
    store: &dyn Store,
    org: OrgId,
) -> Result<Option<(Revision, Compare)>, PublishError> {
    let (counter, unchanged) = read(store, org).await?;
    let key = keys::gc(org);
    let raise = Txn {
        compares: vec![unchanged],
        ops: vec![Op::put(key.clone(), counter.saturating_add(1).to_string())],
        or_read: Vec::new(),
    };
    Ok(match store.txn(raise).await? {
        TxnOutcome::Committed(revision) => Some((revision, Compare::ModRevision(key, revision))),
        TxnOutcome::Conflict(_) => None,
    })
}
