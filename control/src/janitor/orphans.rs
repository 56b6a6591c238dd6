//! Deletes what is left of organisations that are gone: `system` does not name them, and they have
//! no head. Their ids are never used again.

use std::collections::{BTreeMap, BTreeSet};

use proto::id::OrgId;
use proto::keys;
use proto::object::ObjectId;
use proto::store::{Compare, Op, Range, Store, StoreError, Txn, TxnOutcome, load};
use proto::tree::{Head, SYSTEM_ORG};

use super::archiving::blocking;
use super::{Janitor, JanitorError, Round};

/// Keys deleted in one transaction.
const AT_ONCE: usize = 100;

/// Prefixes of keys that an organisation has one of, beside the counter of sweeps: its id follows.
const SINGLE: [&str; 6] = [
    keys::ARCHIVED,
    keys::LINEAGE,
    keys::HOMES,
    keys::RETIRING,
    keys::KEPT_FROM,
    keys::HOME_HAS,
];

impl Janitor {
    /// Sweeps what is left of organisations that are gone, here and in the archive.
    pub(super) async fn orphans(
        &self,
        heads: &BTreeMap<OrgId, Head>,
        round: &mut Round,
    ) -> Result<(), JanitorError> {
        let (system, _) = self.publisher.newest(SYSTEM_ORG).await?;
        let store = self.publisher.store();
        // What was created on a branch that is not in force has no name and no head, and stays.
        let mut aside = BTreeSet::new();
        load::list(store, keys::ASIDE, None, |pair| {
            aside.extend(keys::parse_aside(&pair.key));
        })
        .await?;
        let gone = |org: &OrgId| {
            !system.objects.contains_key(&ObjectId::Org(*org))
                && !heads.contains_key(org)
                && !aside.contains(org)
        };
        let mut orgs = BTreeSet::new();
        for prefix in keys::OF_ORGS {
            orgs.extend(below(store, prefix).await?);
        }
        for prefix in SINGLE.into_iter().chain([keys::GC]) {
            load::list(store, prefix, None, |pair| {
                let org = pair.key.strip_prefix(prefix);
                orgs.extend(org.and_then(|org| org.parse::<OrgId>().ok()));
            })
            .await?;
        }
        for org in orgs.into_iter().filter(gone) {
            round.swept += delete(store, org).await?;
        }
        let archived = blocking(self.archive.clone(), |archive| archive.orgs()).await?;
        for org in archived.into_iter().filter(gone) {
            blocking(self.archive.clone(), move |archive| archive.forget(org)).await?;
        }
        Ok(())
    }
}

/// The organisations that keys with this prefix belong to, by one read for each.
async fn below(store: &dyn Store, prefix: &str) -> Result<Vec<OrgId>, StoreError> {
    let (mut orgs, mut after) = (Vec::new(), None);
    loop {
        let range = Range {
            prefix: prefix.to_owned(),
            after,
            limit: 1,
            at: None,
        };
        let page = store.range(range).await?;
        let Some(pair) = page.items.into_iter().next() else {
            return Ok(orgs);
        };
        let rest = pair.key.strip_prefix(prefix).unwrap_or_default();
        let part = rest.split('/').next().unwrap_or_default();
        orgs.extend(part.parse::<OrgId>().ok());
        // The last character there is: what follows belongs to another one.
        after = Some(format!("{prefix}{part}/\u{10ffff}"));
    }
}

/// Deletes all of an organisation without a head. It may be arriving: whoever has written its
/// content and not yet its head starts over, since the counter of sweeps is there then. That one
/// goes by itself, the next time.
async fn delete(store: &dyn Store, org: OrgId) -> Result<u64, JanitorError> {
    let mut found = Vec::new();
    for prefix in keys::OF_ORGS {
        load::list(store, &format!("{prefix}{org}/"), None, |pair| {
            found.push(pair.key);
        })
        .await?;
    }
    for key in SINGLE.map(|prefix| format!("{prefix}{org}")) {
        found.extend(store.get(&key).await?.value.map(|pair| pair.key));
    }
    if found.is_empty() {
        without_head(store, org, vec![Op::Delete(keys::gc(org))]).await?;
        return Ok(1);
    }
    without_head(store, org, vec![Op::put(keys::gc(org), "1")]).await?;
    for part in found.chunks(AT_ONCE) {
        without_head(store, org, part.iter().cloned().map(Op::Delete).collect()).await?;
    }
    Ok(found.len() as u64)
}

/// Writes as long as the organisation has no head.
async fn without_head(store: &dyn Store, org: OrgId, ops: Vec<Op>) -> Result<(), JanitorError> {
    let txn = Txn {
        compares: vec![Compare::Absent(keys::head(org))],
        ops,
        or_read: Vec::new(),
    };
    match store.txn(txn).await? {
        TxnOutcome::Committed(_) => Ok(()),
        TxnOutcome::Conflict(_) => Err(JanitorError::Moved),
    }
}
