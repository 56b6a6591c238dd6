//! What was answered to requests with an `Idempotency-Key` goes with the versions that they made: a
//! client that repeats one where home is now is answered as before, and nothing is done twice.
//!
//! What is remembered of versions that are set aside is forgotten with them: they were not carried
//! out on the line in force.

use std::collections::BTreeMap;

use proto::id::OrgId;
use proto::keys;
use proto::store::{LeaseId, Op, Store, StoreError};
use proto::tree::VersionRecord;
use proto::wire::replication::Answer;

use super::apply::Local;
use super::source::{Session, SourceError};
use crate::publish::idempotency;

impl Local {
    /// What stores the outcomes of an answer's versions, and drops those of a branch that is left.
    pub(super) async fn remembered(
        &self,
        store: &dyn Store,
        records: &[VersionRecord],
        (told, lease): (&[Vec<u8>], Option<LeaseId>),
    ) -> Result<Vec<Op>, StoreError> {
        // By key: a request of the branch may have been repeated on the line.
        let mut ops = BTreeMap::new();
        for n in &self.branch.numbers {
            for key in idempotency::keys_of(store, self.org, *n).await? {
                ops.insert(key.clone(), Op::Delete(key));
            }
        }
        let Some(lease) = lease else {
            return Ok(ops.into_values().collect());
        };
        for (told, record) in told.iter().zip(records) {
            let version = (record.head.n, record.head.hash);
            let puts = idempotency::puts_of_other(self.org, version, told, lease);
            for put in puts.into_iter().flatten() {
                ops.insert(put.key().to_owned(), put);
            }
        }
        Ok(ops.into_values().collect())
    }
}

impl Session<'_> {
    /// The same versions, with what is remembered of the requests that made them.
    pub(super) async fn with_remembered(
        &self,
        org: OrgId,
        answer: Answer,
    ) -> Result<Answer, SourceError> {
        let Answer::SignedVersions {
            versions,
            signatures,
        } = answer
        else {
            return Ok(answer);
        };
        let mut keys = Vec::new();
        for parts in &versions.versions {
            let record: VersionRecord = serde_json::from_slice(&parts.record)
                .map_err(|error| SourceError::Record(keys::versions(org), error))?;
            keys.push(keys::remembered(org, record.head.n));
        }
        let remembered = self.all_values(keys).await?;
        Ok(Answer::RememberedVersions {
            versions,
            signatures,
            remembered,
        })
    }
}
