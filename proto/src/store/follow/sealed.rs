//! Reads the sealed values that a version names.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::{StreamExt, TryStreamExt};

use super::reader::Reader;
use super::{OrgState, SealedValues};
use crate::credential::CredentialKind;
use crate::id::{CredentialId, OrgId};
use crate::keys;
use crate::object::{ObjectId, StoredCredential};
use crate::seal::Sealed;
use crate::store::StoreError;
use crate::store::load::{self, Fault};
use crate::tree::OrgConfig;

/// Sealed values read at one time.
const SECRETS_AT_ONCE: usize = 16;
/// From so many on they are listed: a page costs the store little more than one value does.
const SECRETS_LISTED: usize = 100;
/// Such lists read at one time.
const LISTS_AT_ONCE: usize = 4;

/// A credential and the name of its sealed value.
type SealName = (CredentialId, String);
/// The same with the value, where there is one.
type Named = (CredentialId, String, Option<Bytes>);

impl Reader<'_> {
    /// Whether a value may be sealed to another key by now.
    fn is_older(self, value: &Sealed) -> bool {
        self.resealed.is_some_and(|key| value.key_id != key)
    }

    /// The sealed values that a version names; those that are known are not read again, unless
    /// they were sealed anew.
    pub(super) async fn sealed(
        self,
        config: &OrgConfig,
        old: Option<&Arc<OrgState>>,
        faults: &mut Vec<Fault>,
    ) -> Result<Arc<SealedValues>, StoreError> {
        let whole = old.filter(|old| {
            let same = old.sealed_whole && same_credentials(&old.config, config);
            same && !old.sealed.values().any(|value| self.is_older(value))
        });
        if let Some(old) = whole {
            return Ok(Arc::clone(&old.sealed));
        }
        let before = |key: &SealName| old.and_then(|old| old.sealed.get(key));
        let known = |key: &SealName| before(key).filter(|value| !self.is_older(value));
        let mut values = SealedValues::new();
        let mut missing = Vec::new();
        for key in sealed_names(config, self.region) {
            match known(&key) {
                Some(value) => {
                    values.insert(key, Arc::clone(value));
                }
                None => missing.push(key),
            }
        }
        let read = match missing.len() >= SECRETS_LISTED {
            true => self.listed(config.org, missing).await?,
            false => self.each(config.org, missing).await?,
        };
        for (credential, seal_id, value) in read {
            let parsed = value.map(|value| serde_json::from_slice::<Sealed>(&value));
            let name = (credential, seal_id);
            if !matches!(parsed, Some(Ok(_)))
                && let Some(value) = before(&name)
            {
                // The one before opens still.
                values.insert(name, Arc::clone(value));
                continue;
            }
            let (code, detail) = match parsed {
                Some(Ok(value)) => {
                    values.insert(name, Arc::new(value));
                    continue;
                }
                Some(Err(error)) => ("secret-unreadable", error.to_string()),
                None => (
                    "secret-missing",
                    "no sealed value in this region".to_owned(),
                ),
            };
            let object = Some(ObjectId::Credential(credential));
            faults.push(Fault {
                org: Some(config.org),
                object,
                code,
                detail,
            });
        }
        match old.filter(|old| *old.sealed == values) {
            Some(old) => Ok(Arc::clone(&old.sealed)),
            None => Ok(Arc::new(values)),
        }
    }

    /// Sealed values, a read for each.
    pub(super) async fn each(
        self,
        org: OrgId,
        names: Vec<SealName>,
    ) -> Result<Vec<Named>, StoreError> {
        futures_util::stream::iter(names)
            .map(|(credential, seal_id)| async move {
                let key = keys::secret(org, credential, &seal_id, self.region);
                let pair = self.store.get(&key).await?.value;
                Ok((credential, seal_id, pair.map(|pair| pair.value)))
            })
            .buffer_unordered(SECRETS_AT_ONCE)
            .try_collect()
            .await
    }

    /// Sealed values, out of lists of all that the organisation has, several of them at one time.
    pub(super) async fn listed(
        self,
        org: OrgId,
        names: Vec<SealName>,
    ) -> Result<Vec<Named>, StoreError> {
        let named = names.into_iter().map(|(credential, seal_id)| {
            let key = keys::secret(org, credential, &seal_id, self.region);
            (key, (credential, seal_id, None))
        });
        let mut named: Vec<(String, Named)> = named.collect();
        named.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        let mut after = None;
        let parts = named.chunks_mut(load::PAGE_KEYS).map(|part| {
            let last = part.last().map(|(last, _)| last.clone());
            let after = std::mem::replace(&mut after, last.clone());
            self.part(org, (after, last), part)
        });
        futures_util::stream::iter(parts.collect::<Vec<_>>())
            .buffer_unordered(LISTS_AT_ONCE)
            .try_collect::<()>()
            .await?;
        Ok(named.into_iter().map(|(_, named)| named).collect())
    }

    /// Sealed values, sorted by their keys, out of one list from after a key to the last of theirs.
    async fn part(
        self,
        org: OrgId,
        (after, last): (Option<String>, Option<String>),
        part: &mut [(String, Named)],
    ) -> Result<(), StoreError> {
        let within = (after.as_deref(), last.as_deref());
        load::list_to(self.store, &keys::secrets(org), within, None, |pair| {
            let found = part.binary_search_by(|(key, _)| key.cmp(&pair.key));
            if let Some((_, (.., value))) = found.ok().and_then(|at| part.get_mut(at)) {
                *value = Some(pair.value);
            }
        })
        .await?;
        Ok(())
    }
}

/// Whether two versions have the same credentials.
fn same_credentials(one: &OrgConfig, other: &OrgConfig) -> bool {
    let differing = one.objects.differing(&other.objects);
    !differing
        .iter()
        .any(|(id, _)| matches!(id, ObjectId::Credential(_)))
}

/// The sealed values that a region has of a version.
fn sealed_names<'c>(
    config: &'c OrgConfig,
    region: &'c str,
) -> impl Iterator<Item = SealName> + use<'c> {
    let credentials = config.objects.credentials();
    let sealed = credentials.filter(|(_, StoredCredential { credential, .. })| {
        credential.kind == CredentialKind::Target && credential.is_for_region(region)
    });
    sealed.filter_map(|(id, stored)| Some((id, stored.secret.as_ref()?.seal_id.clone()?)))
}
