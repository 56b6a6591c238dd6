//! An organisation's configuration as a numbered, immutable, content-addressed version.
//!
//! Objects are packed into *leaves* by the hash of their id; a *root* lists the leaves of what all
//! regions keep, or of what one of them keeps besides (`sets`); the *head* names the roots and the
//! version before it. [`apply`] turns a version and operations into the
//! objects of the next one or into every problem at once; [`Draft::commit`] packs it. Nothing
//! here does IO: reading is `store::load`, writing is control's `publish`.

mod aliases;
mod apply;
mod diff;
mod draft;
mod hash;
mod held;
mod lineage;
mod narrowing;
mod objects;
mod operation;
mod pack;
mod reach;
mod read;
mod references;
mod roles;
mod scopes;
mod secrets;
mod sets;
mod taken;
mod told;
mod withheld;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use self::apply::{OBJECT_BYTES_MAX, OBJECTS_MAX, apply};
pub use self::diff::{Difference, diff, restore};
pub use self::draft::{Delta, Draft, Packed, Retirement, apply_delta};
pub use self::hash::{Hash, HashError};
pub use self::held::HeldLeaf;
pub use self::lineage::{Ancestry, Lineage};
pub use self::narrowing::{changes_elsewhere, narrows};
pub use self::objects::{Differing, Objects};
pub use self::operation::{ApplyError, Change, Context, Operation, SecretChange};
pub use self::pack::{LEAF_BYTES_MAX, Leaf, Root, TreeError, unpack};
pub use self::read::{ReadLeaf, ReadSet, assemble, parse_line};
pub use self::sets::{is_kept_in, is_strict, regions_of};
use crate::audit::Anchor;
use crate::id::{CredentialId, OrgId, ProxyId, TargetId};
use crate::object::{Body, Object, ObjectId, StoredCredential};
use crate::proxy::Proxy;
use crate::target::Target;
use crate::version::{Epoch, Generation};

/// The organisation `system` has a fixed id: two controls that start at once, or two regions,
/// must not make two of them.
pub const SYSTEM_ORG: OrgId = OrgId::from_bits(0);

/// The root of what all regions keep.
pub const EVERYWHERE: &str = "*";

/// A head's largest size in the store, in bytes: less than 1 KiB but for the roots of what some
/// regions keep alone.
pub const HEAD_BYTES_MAX: usize = 8 * 1024;

/// What names a version: where its content is and which version it follows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    /// The history that the version belongs to.
    pub epoch: Epoch,
    /// Its number, one more than its parent's.
    pub n: u64,
    /// Its name: the hash of every other field.
    pub hash: Hash,
    /// The version it was made from; absent for the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<Hash>,
    /// The sweep counter (`gc/{org}`) that the publisher saw.
    pub gc: u64,
    /// Random, so that two publishers never make the same version of the same content; and behind
    /// that how far the audit was ([`Anchor::salt`]).
    pub salt: String,
    /// The hash of the root of each region.
    pub roots: BTreeMap<String, Hash>,
}

impl Head {
    fn expected_hash(&self) -> Hash {
        let mut content = b"requestrocket version 1\n".to_vec();
        let parent = self.parent.map(|hash| hash.to_string()).unwrap_or_default();
        let Epoch { counter, region } = &self.epoch;
        for part in [
            counter.to_string(),
            region.clone(),
            self.n.to_string(),
            parent,
            self.gc.to_string(),
            self.salt.clone(),
        ]
        .into_iter()
        .chain(
            self.roots
                .iter()
                .flat_map(|(region, hash)| [region.clone(), hash.to_string()]),
        ) {
            content.extend_from_slice(&(part.len() as u64).to_be_bytes());
            content.extend_from_slice(part.as_bytes());
        }
        Hash::of(&content)
    }

    /// The head of a version with the same content that follows this one under a higher epoch: a
    /// person has decided that this content counts.
    pub fn reopened(&self, epoch: Epoch, n: u64, salt: String) -> Self {
        let mut head = Self {
            epoch,
            n,
            parent: Some(self.hash),
            salt,
            ..self.clone()
        };
        head.hash = head.expected_hash();
        head
    }

    /// How far the audit was when it was made; `None` where that had no entry.
    pub fn audit(&self) -> Option<Anchor> {
        Anchor::of_salt(&self.salt)
    }

    /// Whether something of it is kept by some regions alone.
    pub fn is_cut(&self) -> bool {
        self.roots.len() > 1
    }

    /// Whether a region keeps a set of it. The one that made it is home, and has everything.
    pub fn is_kept(&self, set: &str, region: &str) -> bool {
        is_kept_in(set, region) || self.epoch.region == region
    }

    /// Regions, without this one, that something of it may not leave: this one cannot be home.
    pub fn stays_in(&self, region: &str) -> Option<&str> {
        let mut others = self.roots.keys().filter(|set| !is_kept_in(set, region));
        others.find_map(|set| sets::strictly(set))
    }

    /// Whether the hash is that of the other fields.
    pub fn is_genuine(&self) -> bool {
        self.hash == self.expected_hash()
    }

    /// The version as the name of a secret that it sets.
    pub fn generation(&self) -> Generation {
        Generation {
            epoch: self.epoch.clone(),
            n: self.n,
        }
    }

    /// The head as the store holds it.
    pub fn to_json(&self) -> Vec<u8> {
        // Texts and numbers only: serialising into memory cannot fail.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// A head as read from the store.
    ///
    /// # Errors
    /// It is not a head, or its hash is not that of its fields.
    pub fn parse(json: &[u8]) -> Result<Self, TreeError> {
        let head: Self = serde_json::from_slice(json)
            .map_err(|error| TreeError::Malformed("head", error.to_string()))?;
        if head.is_genuine() {
            Ok(head)
        } else {
            Err(TreeError::WrongHash("head", head.hash))
        }
    }
}

/// What a version's record (`versions/{org}/{n}`) keeps of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VersionRecord {
    /// The version.
    pub head: Head,
    /// When it was published.
    pub at: jiff::Timestamp,
    /// Who published it: an API token's id, or a word such as `bootstrap`.
    pub author: String,
    /// The address that the request came from, as the control plane saw it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<std::net::IpAddr>,
    /// How many objects it created, changed or deleted.
    pub changes: u64,
    /// The first of them (at most [`VERSION_CHANGED_MAX`]).
    pub changed: Vec<ObjectId>,
}

impl VersionRecord {
    /// Whether [`VersionRecord::changed`] lists all that it changed.
    pub fn names_all_changed(&self) -> bool {
        self.changed.len() as u64 >= self.changes
    }
}

/// Most ids that a version's record lists.
pub const VERSION_CHANGED_MAX: usize = 100;

/// One version of an organisation's configuration, whole.
#[derive(Clone, Debug)]
pub struct OrgConfig {
    /// The organisation.
    pub org: OrgId,
    /// The version.
    pub head: Head,
    /// Its objects. An object that did not change is the same `Arc` as in the version before.
    pub objects: Objects,
    /// Which regions keep it, and where each object stands in the tree.
    sets: sets::Sets,
}

impl OrgConfig {
    /// An object by id.
    pub fn object(&self, id: ObjectId) -> Option<&Arc<Object>> {
        self.objects.get(&id)
    }

    /// A target by id.
    pub fn target(&self, id: TargetId) -> Option<&Target> {
        target_in(&self.objects, id)
    }

    /// A credential by id.
    pub fn credential(&self, id: CredentialId) -> Option<&StoredCredential> {
        credential_in(&self.objects, id)
    }

    /// A proxy by id.
    pub fn proxy(&self, id: ProxyId) -> Option<&Proxy> {
        match &self.objects.get(&ObjectId::Proxy(id))?.body {
            Body::Proxy(proxy) => Some(proxy),
            _ => None,
        }
    }
}

fn target_in(objects: &Objects, id: TargetId) -> Option<&Target> {
    match &objects.get(&ObjectId::Target(id))?.body {
        Body::Target(target) => Some(target),
        _ => None,
    }
}

fn credential_in(objects: &Objects, id: CredentialId) -> Option<&StoredCredential> {
    match &objects.get(&ObjectId::Credential(id))?.body {
        Body::Credential(stored) => Some(stored),
        _ => None,
    }
}

#[cfg(test)]
mod carried;
#[cfg(test)]
mod cuts;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
