//! Writes audit entries, and reads them: what was done or tried that makes no version.
//!
//! All control planes of a region write one chain per organisation, in the store. Each entry is put
//! by a transaction that compares the head of the chain, together with what it tells of, so that
//! neither is without the other. Nothing here deletes but [`drop_oldest`], which leaves an entry
//! that says so.

#[cfg(test)]
pub(crate) mod heard;
pub mod logins;
pub mod stream;
#[cfg(test)]
mod tests;

use jiff::Timestamp;
use proto::audit::verify::Chain;
use proto::audit::{Act, Anchor, Entry, Last, Said, hash};
use proto::id::OrgId;
use proto::keys;
use proto::seal;
use proto::store::{Compare, KeyValue, Op, Range, Store, StoreError, Txn, TxnOutcome, load};

use crate::publish::wait;

/// Entries of an organisation that stay in the store, at most about: some 2 MB.
pub const ENTRIES_MAX: u64 = 5_000;
/// Entries that leave in one transaction.
const DROPPED_AT_ONCE: u64 = 90;
/// A number that no chain comes to, and that JSON has exactly: what says more was put there by
/// hand.
const SEQ_MAX: u64 = 1 << 53;
/// Tries before an entry is given up: that many others wrote meanwhile.
const TRIES: u32 = 20;

/// Appends an entry, and does what it tells of in the same transaction. Gives the entry's number.
///
/// # Errors
/// The store failed: then neither was done, unless the error says that this is unknown.
pub async fn append(
    store: &dyn Store,
    org: OrgId,
    said: Said,
    with: &[Op],
) -> Result<u64, StoreError> {
    let key = keys::audit_head(org);
    let mut found = store.get(&key).await?.value;
    let mut last = last(store, org, found.as_ref()).await?;
    for tries in 1..=TRIES {
        let after = (found.as_ref(), last);
        let seen = match put_next(store, org, after, &said, with.to_vec()).await? {
            (TxnOutcome::Committed(_), seq) => {
                make_room(store, org, seq, said.at).await;
                return Ok(seq);
            }
            (TxnOutcome::Conflict(seen), _) => seen.value.into_iter().next().flatten(),
        };
        last = match seen == found {
            // The head is behind its entries: somebody changed it by hand.
            true => walked(store, org).await?,
            false => self::last(store, org, seen.as_ref()).await?,
        };
        found = seen;
        tokio::time::sleep(wait(tries)).await;
    }
    let why = format!("audit entries of {org} are written faster than this one could be");
    Err(StoreError::Unavailable(why))
}

/// Puts the entry that comes next after a head as it was found, and how far the chain is by that,
/// and tells of it. Gives its number; on a conflict, the head as it is then.
async fn put_next(
    store: &dyn Store,
    org: OrgId,
    (head, last): (Option<&KeyValue>, Option<Last>),
    said: &Said,
    mut ops: Vec<Op>,
) -> Result<(TxnOutcome, u64), StoreError> {
    let key = keys::audit_head(org);
    let (value, next) = Last::next(last, org, said.clone());
    let entry = keys::audit_entry(org, next.seq);
    ops.push(Op::put(entry.clone(), value));
    ops.push(Op::put(key.clone(), json(&next)));
    let txn = Txn {
        compares: vec![unchanged(&key, head), Compare::Absent(entry)],
        ops,
        or_read: vec![key],
    };
    let outcome = store.txn(txn).await;
    match &outcome {
        Ok(TxnOutcome::Committed(_)) => stream::entry(org, &next, said),
        Err(StoreError::OutcomeUnknown(_)) => stream::unsure_entry(org, &next, said),
        Ok(TxnOutcome::Conflict(_)) | Err(_) => {}
    }
    Ok((outcome?, next.seq))
}

/// Now and then, drops what is too much: then nothing else has to, however fast entries come.
async fn make_room(store: &dyn Store, org: OrgId, seq: u64, now: Timestamp) {
    if !seq.is_multiple_of(DROPPED_AT_ONCE) {
        return;
    }
    if let Err(error) = drop_oldest(store, org, ENTRIES_MAX, now).await {
        tracing::warn!(%org, %error, "old audit entries of {org} stay for now: {error}");
    }
}

/// How far the chain is; by its entries where its head cannot be read.
async fn last(
    store: &dyn Store,
    org: OrgId,
    head: Option<&KeyValue>,
) -> Result<Option<Last>, StoreError> {
    match head.map(|head| serde_json::from_slice(&head.value)) {
        None => Ok(None),
        Some(Ok(Last { seq, hash })) if seq < SEQ_MAX => Ok(Some(Last { seq, hash })),
        Some(_) => walked(store, org).await,
    }
}

async fn walked(store: &dyn Store, org: OrgId) -> Result<Option<Last>, StoreError> {
    let chain = chain(store, org).await?;
    let mut entries = chain.entries.range(..SEQ_MAX);
    Ok(entries.next_back().map(|(seq, value)| Last {
        seq: *seq,
        hash: hash(org, value),
    }))
}

fn unchanged(key: &str, found: Option<&KeyValue>) -> Compare {
    match found {
        None => Compare::Absent(key.to_owned()),
        Some(pair) => Compare::ModRevision(key.to_owned(), pair.mod_revision),
    }
}

fn json(last: &Last) -> Vec<u8> {
    // Texts and numbers only: serialising into memory cannot fail.
    serde_json::to_vec(last).unwrap_or_default()
}

/// The salt of a version that is made now: random, and how far the chain of this region is.
///
/// # Errors
/// The store failed.
pub async fn salt(store: &dyn Store, org: OrgId, region: &str) -> Result<String, StoreError> {
    let head = store.get(&keys::audit_head(org)).await?.value;
    let last = last(store, org, head.as_ref()).await?;
    let random = seal::random_name();
    let region = region.to_owned();
    Ok(match last {
        Some(last) => Anchor { region, last }.salt(&random),
        None => random,
    })
}

/// Everything that is kept of a chain, and its head.
///
/// # Errors
/// The store failed.
pub async fn chain(store: &dyn Store, org: OrgId) -> Result<Chain, StoreError> {
    let mut chain = Chain::default();
    let head_key = keys::audit_head(org);
    load::list(store, &keys::audit(org), None, |pair| {
        if pair.key == head_key {
            chain.head = Some(pair.value.to_vec());
        } else if let Some(seq) = keys::parse_audit_entry(&pair.key) {
            chain.entries.insert(seq, pair.value.to_vec());
        }
    })
    .await?;
    Ok(chain)
}

/// Entries of one page, the newest first.
#[derive(Debug, Default)]
pub struct Entries {
    /// Each with its number; `None` where it cannot be read.
    pub items: Vec<(u64, Option<Entry>)>,
    /// The number below which the next page begins, where there are earlier ones.
    pub before: Option<u64>,
}

/// The entries before a number (`None`: the newest), at most `limit`.
///
/// # Errors
/// The store failed.
pub async fn entries(
    store: &dyn Store,
    org: OrgId,
    before: Option<u64>,
    limit: usize,
) -> Result<Entries, StoreError> {
    let before = match before {
        Some(before) => before,
        None => {
            let head = store.get(&keys::audit_head(org)).await?.value;
            let last = last(store, org, head.as_ref()).await?;
            last.map_or(1, |last| last.seq.saturating_add(1))
        }
    };
    let from = before.saturating_sub(limit as u64).max(1);
    let mut found = Entries::default();
    if before <= 1 {
        return Ok(found);
    }
    let range = Range {
        prefix: keys::audit(org),
        after: Some(keys::audit_entry(org, from.saturating_sub(1))),
        limit,
        at: None,
    };
    for pair in store.range(range).await?.items {
        let seq = keys::parse_audit_entry(&pair.key);
        if let Some(seq) = seq.filter(|seq| *seq < before) {
            let entry = serde_json::from_slice(&pair.value).ok();
            found.items.insert(0, (seq, entry));
        }
    }
    let earlier = first(store, org).await?.is_some_and(|first| first < from);
    found.before = earlier.then_some(from);
    Ok(found)
}

/// The first entry that is kept.
async fn first(store: &dyn Store, org: OrgId) -> Result<Option<u64>, StoreError> {
    let range = Range {
        prefix: keys::audit(org),
        after: None,
        limit: 1,
        at: None,
    };
    let page = store.range(range).await?;
    let first = page.items.first();
    Ok(first.and_then(|pair| keys::parse_audit_entry(&pair.key)))
}

/// Drops the oldest entries beyond the newest `keep`, each time with an entry that says until which
/// and with which hash. Gives how many left; somebody who writes meanwhile ends it.
///
/// # Errors
/// The store failed.
pub async fn drop_oldest(
    store: &dyn Store,
    org: OrgId,
    keep: u64,
    now: Timestamp,
) -> Result<u64, StoreError> {
    let key = keys::audit_head(org);
    let mut dropped = 0;
    loop {
        let Some(head) = store.get(&key).await?.value else {
            return Ok(dropped);
        };
        let (Ok(last), Some(first)) = (
            serde_json::from_slice::<Last>(&head.value),
            first(store, org).await?,
        ) else {
            return Ok(dropped);
        };
        let kept = last.seq.saturating_add(1).saturating_sub(first);
        let end = first.saturating_add(DROPPED_AT_ONCE);
        if kept < keep.saturating_add(DROPPED_AT_ONCE) || end > last.seq {
            return Ok(dropped);
        }
        let oldest = Range {
            prefix: keys::audit(org),
            after: None,
            limit: DROPPED_AT_ONCE as usize,
            at: None,
        };
        // Some may have been removed by hand.
        let leaving: Vec<(u64, KeyValue)> = store
            .range(oldest)
            .await?
            .items
            .into_iter()
            .filter_map(|pair| Some((keys::parse_audit_entry(&pair.key)?, pair)))
            .filter(|(seq, _)| *seq < end)
            .collect();
        let Some((until, oldest)) = leaving.last().map(|(seq, pair)| (*seq, pair.clone())) else {
            return Ok(dropped);
        };
        let said = Said {
            at: now,
            actor: "janitor".into(),
            source: None,
            act: Act::EntriesDropped {
                until,
                hash: hash(org, &oldest.value),
            },
        };
        let gone_count = leaving.len() as u64;
        let gone = leaving.into_iter().map(|(_, pair)| Op::Delete(pair.key));
        let after = (Some(&head), Some(last));
        let put = put_next(store, org, after, &said, gone.collect()).await?;
        if let (TxnOutcome::Conflict(_), _) = put {
            return Ok(dropped);
        }
        dropped += gone_count;
    }
}
