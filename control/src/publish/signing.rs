//! Signing what was made before this region had a key, or under a key that it has no more.
//!
//! New versions are signed in the transaction that makes them. Older ones are signed once, when a
//! control plane starts: what its own store holds of what it is home to is what it builds on
//! anyway.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use proto::audit::signed::SignedRecord;
use proto::home::Home;
use proto::id::OrgId;
use proto::keys;
use proto::signature::{Signature, Signer};
use proto::store::{Compare, KeyValue, Op, Revision, Txn, TxnOutcome, load};
use proto::tree::{Head, VersionRecord};

use super::homes::stored;
use super::writes::json;
use super::{PublishError, Publisher};

/// Versions signed in one transaction.
const AT_ONCE: usize = 45;
/// Wait after a failure of the store.
const AGAIN: Duration = Duration::from_secs(2);

impl Publisher {
    /// The same publisher, which signs what it makes.
    pub fn with_signer(self, signer: Option<Arc<Signer>>) -> Self {
        Self { signer, ..self }
    }

    /// What signs, where this region has a key.
    pub(crate) fn signer(&self) -> Option<&Signer> {
        self.signer.as_deref()
    }

    /// Does [`Publisher::sign_kept`] until the store has let it.
    pub async fn sign_kept_until_done(&self) {
        while let Err(error) = self.sign_kept().await {
            tracing::warn!(%error, "earlier versions are not signed yet: {error}; trying again");
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// Signs every kept version of this region whose organisation has a newest version that is not
    /// signed with the key in use. Gives how many it signed.
    ///
    /// # Errors
    /// The store did not answer, or what it holds cannot be read.
    pub async fn sign_kept(&self) -> Result<u64, PublishError> {
        let Some(signer) = &self.signer else {
            return Ok(0);
        };
        let mut heads = Vec::new();
        let listed = load::list(&*self.store, keys::HEADS, None, |pair| {
            if let (Some(keys::Live::Head(org)), Ok(head)) =
                (keys::Live::parse(&pair.key), Head::parse(&pair.value))
            {
                heads.push((org, head));
            }
        });
        listed.await?;
        let mut signed = 0;
        for (org, head) in heads {
            let home = stored(&*self.store, org).await?.map(|(home, _)| home);
            let Some(home) = home.filter(|home| home.region == self.region()) else {
                continue;
            };
            if !self.is_signed(signer, org, &head).await? {
                signed += self.sign_versions(signer, org, &home).await?;
            }
        }
        Ok(signed)
    }

    /// The records of the versions of an organisation that the store holds, each with its
    /// signature, in the order of their numbers.
    ///
    /// # Errors
    /// The store did not answer.
    pub async fn signed_records(&self, org: OrgId) -> Result<Vec<SignedRecord>, PublishError> {
        let mut records: BTreeMap<u64, SignedRecord> = BTreeMap::new();
        let prefix = keys::versions(org);
        let listed = load::list(&*self.store, &prefix, None, |pair| {
            if let Some((_, n)) = keys::parse_version(&pair.key) {
                let (record, signature) = (pair.value.to_vec(), Vec::new());
                records.insert(
                    n,
                    SignedRecord {
                        n,
                        record,
                        signature,
                    },
                );
            }
        });
        let at = Some(listed.await?);
        // At the same revision: a version leaves the store together with its signature.
        let prefix = keys::signatures(org);
        let listed = load::list(&*self.store, &prefix, at, |pair| {
            let n = pair.key.strip_prefix(&prefix).and_then(|n| n.parse().ok());
            if let Some(record) = n.and_then(|n: u64| records.get_mut(&n)) {
                record.signature = pair.value.to_vec();
            }
        });
        listed.await?;
        Ok(records.into_values().collect())
    }

    async fn is_signed(
        &self,
        signer: &Signer,
        org: OrgId,
        head: &Head,
    ) -> Result<bool, PublishError> {
        let found = self.store.get(&keys::signature(org, head.n)).await?.value;
        let signature = found.and_then(|pair| Signature::parse(&pair.value).ok());
        Ok(signature.is_some_and(|signature| signature.key_id == signer.public().id))
    }

    async fn sign_versions(
        &self,
        signer: &Signer,
        org: OrgId,
        home: &Home,
    ) -> Result<u64, PublishError> {
        let mut records: Vec<KeyValue> = Vec::new();
        let prefix = keys::versions(org);
        load::list(&*self.store, &prefix, None, |pair| records.push(pair)).await?;
        let mut own: Vec<(u64, KeyValue)> = Vec::new();
        for pair in records {
            let record: VersionRecord = serde_json::from_slice(&pair.value)
                .map_err(|error| PublishError::Unreadable(format!("{}: {error}", pair.key)))?;
            let epoch = record.head.epoch;
            // The first epoch of all may be named after what the region was called then.
            if epoch.region == self.region() || epoch == home.epoch {
                own.push((record.head.n, pair));
            }
        }
        let mut signed = 0;
        for part in own.chunks(AT_ONCE) {
            let unchanged = |(_, pair): &(u64, KeyValue)| {
                let at: Revision = pair.mod_revision;
                Compare::ModRevision(pair.key.clone(), at)
            };
            let put = |(n, pair): &(u64, KeyValue)| {
                let signature = signer.sign(org, &pair.value);
                Op::put(keys::signature(org, *n), json(&signature))
            };
            let txn = Txn {
                compares: part.iter().map(unchanged).collect(),
                ops: part.iter().map(put).collect(),
                or_read: Vec::new(),
            };
            if let TxnOutcome::Conflict(_) = self.store.txn(txn).await? {
                // Archived or set aside meanwhile; the next turn sees what is left.
                return Err(PublishError::Moved);
            }
            signed += part.len() as u64;
        }
        tracing::info!(%org, signed, "{signed} earlier versions of {org} are signed");
        Ok(signed)
    }
}
