//! Versions as an answer holds them: those after the follower's, or the newest alone.

use std::collections::BTreeSet;

use futures_util::stream::{StreamExt, TryStreamExt};
use proto::id::{CredentialId, OrgId};
use proto::keys;
use proto::object::StoredCredential;
use proto::store::ancestry;
use proto::store::load::{self, LoadError};
use proto::tree::{self, Hash, OrgConfig, Root, VersionRecord, is_kept_in};
use proto::wire::replication::{Answer, Position, SEALED_MAX, SealedPart, VersionParts, Versions};

use super::content::kept;
use super::source::{READS_MAX, Session, SourceError};
use super::{SealName, sealed_names};

/// Versions in one answer.
const VERSIONS_MAX: u64 = 64;

/// How a follower's version lies to those of this store.
pub(super) enum Steps {
    /// These follow it.
    Versions(Versions),
    /// Those between are not kept any more.
    Gap,
    /// It is on another branch.
    Fork,
}

impl Session<'_> {
    /// The versions after one, if this store still knows it.
    pub(super) async fn steps(
        &self,
        after: &Position,
        newest: &OrgConfig,
    ) -> Result<Steps, SourceError> {
        let org = newest.org;
        let Some((_, base)) = self.record(org, after.n).await? else {
            // What is ahead of this store never came from it, nor what had another name in it.
            let is_fork = after.n > newest.head.n || {
                let lineage = ancestry::lineage(&*self.source.store, org).await?;
                lineage.names_another(after.n, &after.hash)
            };
            return Ok(if is_fork { Steps::Fork } else { Steps::Gap });
        };
        if base.head.hash != after.hash {
            return Ok(Steps::Fork);
        }
        let last = newest.head.n.min(after.n.saturating_add(VERSIONS_MAX));
        let numbers = futures_util::stream::iter(after.n.saturating_add(1)..=last);
        let records: Vec<_> = numbers
            .map(|n| self.record(org, n))
            .buffered(READS_MAX)
            .try_collect()
            .await?;
        let Some(records) = records.into_iter().collect::<Option<Vec<_>>>() else {
            return Ok(Steps::Gap);
        };
        if records.is_empty() {
            return Ok(Steps::Versions(Versions::default()));
        }
        let loaded = load::version(&*self.source.store, org, base.head, Some(newest)).await;
        match loaded {
            Ok(old) => self.pages(&old.config, records, newest).await,
            Err(LoadError::Missing(_)) => Ok(Steps::Gap),
            Err(error) => Err(error.into()),
        }
    }

    /// As many versions with their content as fit one answer.
    async fn pages(
        &self,
        old: &OrgConfig,
        records: Vec<(Vec<u8>, VersionRecord)>,
        newest: &OrgConfig,
    ) -> Result<Steps, SourceError> {
        let (org, mut bytes) = (newest.org, 0);
        let mut held: BTreeSet<Hash> = old.reaches_in(&self.region).collect();
        // The follower has its own sets of the version that it stands at, also where they are not
        // here.
        held.extend(kept(&old.head, &self.region));
        let mut answer = Versions::default();
        let mut last = None;
        for (json, record) in records {
            let Some(leaves) = self.content(newest, &record, &held).await? else {
                return Ok(Steps::Gap);
            };
            let size: usize = leaves.iter().map(|(_, packed)| packed.len()).sum();
            if bytes + size > self.source.answer_bytes && !answer.versions.is_empty() {
                break;
            }
            bytes += size;
            held.extend(leaves.iter().map(|(hash, _)| *hash));
            let fits = size <= self.source.answer_bytes;
            answer.versions.push(VersionParts {
                record: json,
                leaves: if fits { leaves } else { Vec::new() },
            });
            last = Some(record.head);
        }
        let Some(last) = last else {
            return Ok(Steps::Versions(answer));
        };
        answer.more = last != newest.head;
        let loaded;
        let new = match answer.more {
            false => newest,
            true => {
                let store = &*self.source.store;
                match load::version(store, org, last, Some(newest)).await {
                    Ok(version) => loaded = version.config,
                    Err(LoadError::Missing(_)) => return Ok(Steps::Gap),
                    Err(error) => return Err(error.into()),
                }
                &loaded
            }
        };
        answer.sealed = self.sealed(Some(old), new, bytes).await?;
        // One that tells of what other regions keep alone is not given.
        if !answer.more && !newest.head.is_cut() && !old.head.is_cut() {
            answer.delta = self.delta(newest).await?;
        }
        Ok(Steps::Versions(answer))
    }

    /// An answer with the signatures of its versions.
    pub(super) async fn signed(&self, org: OrgId, answer: Answer) -> Result<Answer, SourceError> {
        let Answer::Versions(versions) = answer else {
            return Ok(answer);
        };
        let mut keys = Vec::new();
        for VersionParts { record, .. } in &versions.versions {
            let record: VersionRecord = serde_json::from_slice(record)
                .map_err(|error| SourceError::Record(keys::versions(org), error))?;
            keys.push(keys::signature(org, record.head.n));
        }
        let signatures = self.all_values(keys).await?;
        Ok(Answer::SignedVersions {
            versions,
            signatures,
        })
    }

    /// The newest version alone, with as much content as fits.
    pub(super) async fn snapshot(&self, newest: &OrgConfig) -> Result<Versions, SourceError> {
        let record = self.record(newest.org, newest.head.n).await?;
        let Some((json, record)) = record.filter(|(_, record)| record.head == newest.head) else {
            // It has just been followed by the next.
            return Err(LoadError::Missing(newest.head.hash).into());
        };
        let content = self.content(newest, &record, &BTreeSet::new()).await?;
        let mut leaves = content.ok_or(LoadError::Missing(newest.head.hash))?;
        let mut bytes: usize = leaves.iter().map(|(_, packed)| packed.len()).sum();
        if bytes > self.source.answer_bytes {
            (leaves, bytes) = (Vec::new(), 0);
        }
        Ok(Versions {
            snapshot: true,
            versions: vec![VersionParts {
                record: json,
                leaves,
            }],
            sealed: self.sealed(None, newest, bytes).await?,
            ..Versions::default()
        })
    }

    async fn record(
        &self,
        org: OrgId,
        n: u64,
    ) -> Result<Option<(Vec<u8>, VersionRecord)>, SourceError> {
        let key = keys::version(org, n);
        let Some(pair) = self.source.store.get(&key).await?.value else {
            return Ok(None);
        };
        let record = serde_json::from_slice(&pair.value);
        let record = record.map_err(|error| SourceError::Record(key, error))?;
        Ok(Some((pair.value.to_vec(), record)))
    }

    /// The roots and the leaves of a version that the follower keeps and that are not among `held`;
    /// `None` when one of them is not kept here any more. A set that the newest version carries on
    /// by hash is left out: the follower, whose it is, has it, or waits for who has.
    async fn content(
        &self,
        newest: &OrgConfig,
        record: &VersionRecord,
        held: &BTreeSet<Hash>,
    ) -> Result<Option<Vec<(Hash, Vec<u8>)>>, SourceError> {
        let (org, mut content) = (newest.org, Vec::new());
        let is_home = newest.head.epoch.region == self.source.regions.own;
        let is_carried = |set: &str, root: &Hash| {
            let is_same = newest.head.roots.get(set) == Some(root);
            is_home && is_same && !newest.holds(set)
        };
        let roots = record.head.roots.iter();
        let roots = roots.filter(|(set, _)| is_kept_in(set, &self.region));
        for (set, hash) in roots.filter(|(_, hash)| !held.contains(hash)) {
            let [packed] = &self.values(vec![keys::leaf(org, hash)]).await?[..] else {
                return Ok(None);
            };
            if packed.is_empty() {
                match is_carried(set, hash) {
                    true => continue,
                    false => return Ok(None),
                }
            }
            let root = Root::parse(&tree::unpack(*hash, packed)?)?;
            let missing: BTreeSet<Hash> = root.leaves.values().copied().collect();
            let missing: Vec<Hash> = missing.difference(held).copied().collect();
            let keys = missing.iter().map(|hash| keys::leaf(org, hash)).collect();
            let packs = self.all_values(keys).await?;
            if packs.iter().any(Vec::is_empty) {
                return Ok(None);
            }
            content.push((*hash, packed.clone()));
            content.extend(missing.into_iter().zip(packs));
        }
        Ok(Some(content))
    }

    /// Secrets that `new` names and `old` does not, as many as fit.
    async fn sealed(
        &self,
        old: Option<&OrgConfig>,
        new: &OrgConfig,
        bytes: usize,
    ) -> Result<Vec<SealedPart>, SourceError> {
        let known = old.map(sealed_names).unwrap_or_default();
        let kept = |(credential, _): &&SealName| {
            let stored = new.credential(*credential);
            let here = |stored: &StoredCredential| stored.credential.is_for_region(&self.region);
            !new.head.is_cut() || stored.is_some_and(here)
        };
        let names = sealed_names(new);
        let names: Vec<_> = names.difference(&known).filter(kept).cloned().collect();
        let names = &names[..names.len().min(SEALED_MAX)];
        let room = self.source.answer_bytes.saturating_sub(bytes);
        let values = self.sealed_values(new.org, names, room).await?;
        let mut parts = Vec::new();
        for ((credential, seal_id), values) in names.iter().zip(values) {
            parts.extend(values.into_iter().map(|(region, value)| SealedPart {
                credential: *credential,
                seal_id: seal_id.clone(),
                region,
                value,
            }));
        }
        Ok(parts)
    }

    /// The first of these sealed secrets that fit, of every region; at least one, so that whoever
    /// asks for the rest gets on.
    pub(super) async fn sealed_values(
        &self,
        org: OrgId,
        names: &[(CredentialId, String)],
        room: usize,
    ) -> Result<Vec<Vec<(String, Vec<u8>)>>, SourceError> {
        let reads = names.iter().map(async |(credential, seal)| {
            let prefix = keys::secret(org, *credential, seal, "");
            let mut values = Vec::new();
            load::list(&*self.source.store, &prefix, None, |pair| {
                if let Some(region) = pair.key.strip_prefix(&prefix) {
                    values.push((region.to_owned(), pair.value.to_vec()));
                }
            })
            .await?;
            Ok::<_, SourceError>(values)
        });
        let reads: Vec<_> = reads.collect();
        let mut reads = futures_util::stream::iter(reads).buffered(READS_MAX);
        let (mut found, mut bytes) = (Vec::new(), 0);
        while let Some(values) = reads.try_next().await? {
            bytes += values.iter().map(|(_, value)| value.len()).sum::<usize>();
            if bytes > room && !found.is_empty() {
                break;
            }
            found.push(values);
        }
        Ok(found)
    }

    /// The delta that leads to a version, while it is the newest.
    async fn delta(&self, newest: &OrgConfig) -> Result<Option<Vec<u8>>, SourceError> {
        let key = keys::delta(newest.org);
        let pair = self.source.store.get(&key).await?.value;
        let delta = pair.map(|pair| pair.value.to_vec());
        Ok(delta.filter(|json| {
            let delta = serde_json::from_slice::<tree::Delta>(json);
            delta.is_ok_and(|delta| delta.to == newest.head.hash)
        }))
    }
}
