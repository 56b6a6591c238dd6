//! A version that was handed to the store, recognised where that did not say whether it took it.

use std::sync::Arc;

use proto::id::OrgId;
use proto::keys;
use proto::object::ObjectId;
use proto::store::ancestry::ancestry;
use proto::tree::{Ancestry, Head, OrgConfig, VersionRecord};

use super::{Publish, PublishError, Published, Publisher, organisations};
use crate::audit::stream;

/// A version that was handed to the store.
pub(super) struct Attempt {
    pub config: Arc<OrgConfig>,
    pub changed: Vec<ObjectId>,
    /// The first versions of organisations, in the same transaction.
    pub firsts: Vec<(OrgId, Head)>,
}

impl Attempt {
    /// The store has it: that the organisations began which came with it is told here, once.
    pub(super) fn stands(&self) -> Published {
        for (org, head) in &self.firsts {
            stream::first_version(*org, organisations::AUTHOR, head);
        }
        let head = &self.config.head;
        Published {
            n: head.n,
            hash: head.hash,
            config: Arc::clone(&self.config),
            changed: self.changed.clone(),
            replayed: false,
        }
    }
}

/// Tells the audit of versions whose fate stays open: the store may hold one of them.
pub(super) fn tell_unsure(publish: &Publish, unsure: &[Attempt]) {
    for attempt in unsure {
        stream::unsure_version(publish.org, &publish.author, &attempt.config.head);
    }
}

impl Publisher {
    /// The version among `unsure` that the store did take. A version's record is written with its
    /// head and never again, so it tells even when others have built on it since. Of those that
    /// another version has taken the place of the fate is known, and they are left out.
    pub(super) async fn recognise(
        &self,
        unsure: &mut Vec<Attempt>,
        newest: &Arc<OrgConfig>,
    ) -> Result<Option<Published>, PublishError> {
        let mut open = Vec::new();
        for attempt in unsure.drain(..) {
            let head = &attempt.config.head;
            if newest.head.n < head.n {
                open.push(attempt);
                continue;
            }
            let key = keys::version(attempt.config.org, head.n);
            let record = self.store.get(&key).await?.value;
            let record =
                record.and_then(|pair| serde_json::from_slice::<VersionRecord>(&pair.value).ok());
            let taken = match record {
                Some(record) if record.head.hash == head.hash => true,
                // Another one has this number.
                Some(_) => continue,
                // The record has left the store already; its name has not.
                None if newest.head.epoch == head.epoch => {
                    let org = attempt.config.org;
                    let found = ancestry(&*self.store, org, head, &newest.head).await?;
                    found == Ancestry::Descends
                }
                None => false,
            };
            if taken {
                return Ok(Some(attempt.stands()));
            }
            open.push(attempt);
        }
        *unsure = open;
        Ok(None)
    }
}
