//! From the objects of the next version to the version: packed, named, and told apart from its
//! parent by a delta.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::pack::{Leaf, TreeError, line};
use super::sets::{self, Sets};
use super::{HEAD_BYTES_MAX, Hash, Head, Objects, OrgConfig};
use crate::id::CredentialId;
use crate::object::{Object, ObjectId, StoredCredential};
use crate::retired::{NextRetired, Retired};
use crate::seal::NewSecret;
use crate::version::Generation;

/// Largest sum of objects in a delta, in bytes.
const DELTA_BYTES_MAX: usize = 32 * 1024;

/// How far the fact of a credential's retired secrets rises.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retirement {
    /// Generations below this are over now.
    pub(super) floor: Generation,
    /// Generations below that are over from then on.
    pub(super) next: Option<NextRetired>,
}

impl Retirement {
    /// The fact after this, given the fact before.
    pub fn raise(&self, before: Option<Retired>, now: Timestamp) -> Retired {
        let raised = Retired {
            lowest: self.floor.clone(),
            next: self.next.clone(),
        };
        match before {
            Some(before) => before.settled(now).merge(raised),
            None => raised,
        }
    }
}

/// The objects of the next version, not yet packed.
#[derive(Clone, Debug, Default)]
pub struct Draft {
    /// All objects.
    pub(super) objects: Objects,
    /// Objects created, changed or deleted, in the order of their ids.
    pub changed: Vec<ObjectId>,
    /// Credentials whose older secrets are over.
    pub retirements: BTreeMap<CredentialId, Retirement>,
    /// Secrets to be sealed under the new version's hosts.
    pub secrets: BTreeMap<CredentialId, Arc<NewSecret>>,
    /// Sealed values that nothing names any more: credential and seal id.
    pub unsealed: Vec<(CredentialId, String)>,
    /// Secrets that stay and are left out of regions: credential and seal id.
    pub narrowed: Vec<(CredentialId, String)>,
    /// Whether what is pinned to regions stands in their sets alone. A version stays cut so once
    /// one before it was.
    pub(super) by_region: bool,
}

impl Draft {
    /// All objects of the draft.
    pub fn objects(&self) -> &Objects {
        &self.objects
    }

    /// An object of the draft.
    pub fn object(&self, id: ObjectId) -> Option<&Arc<Object>> {
        self.objects.get(&id)
    }

    /// A credential of the draft.
    pub fn credential(&self, id: CredentialId) -> Option<&StoredCredential> {
        super::credential_in(&self.objects, id)
    }
}

/// What changed in a version, for those who hold the one before: `live/delta/{org}`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Delta {
    /// The version before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Hash>,
    /// This version.
    pub to: Hash,
    /// Objects created or changed; absent when they are more than 32 KiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changed: Option<Vec<serde_json::Value>>,
    /// Objects deleted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub deleted: Vec<ObjectId>,
}

/// A version, packed and named, with what must be written for it.
#[derive(Clone, Debug)]
pub struct Packed {
    /// The version.
    pub config: OrgConfig,
    /// Leaves and roots that its parent does not reach.
    pub leaves: Vec<Leaf>,
    /// What changed since its parent.
    pub delta: Delta,
}

impl Draft {
    /// Packs the draft into the version that follows `parent`. Sets that are not here are carried
    /// on by hash, unchanged.
    ///
    /// # Errors
    /// The configuration exceeds a bound, or the draft changes what is not here.
    pub fn commit(self, parent: &OrgConfig, gc: u64, salt: String) -> Result<Packed, TreeError> {
        let (head, sets, leaves) = self.cut(parent, gc, salt)?;
        let delta = delta(&head, &self.objects, &self.changed);
        let config = OrgConfig {
            org: parent.org,
            head,
            objects: self.objects,
            sets,
        };
        Ok(Packed {
            config,
            leaves,
            delta,
        })
    }

    /// Whether [`Draft::commit`] would take it.
    ///
    /// # Errors
    /// The configuration exceeds a bound.
    pub fn check_size(&self, parent: &OrgConfig, salt: String) -> Result<(), TreeError> {
        self.cut(parent, u64::MAX, salt).map(drop)
    }

    /// The head of the version that follows `parent`, its sets, and the leaves that are new.
    fn cut(
        &self,
        parent: &OrgConfig,
        gc: u64,
        salt: String,
    ) -> Result<(Head, Sets, Vec<Leaf>), TreeError> {
        let by_region = self.by_region || parent.head.is_cut();
        let (sets, leaves) = sets::cut(parent, &self.objects, &self.changed, by_region)?;
        let carried = parent.carried();
        let was_there = |set: &String| {
            let mut changed = self.changed.iter();
            changed.any(|id| sets::forms(&parent.objects, *id).contains_key(set))
        };
        let touched = carried.keys();
        let touched = touched.filter(|set| sets.contains_key(*set) || was_there(set));
        let touched: Vec<String> = touched
            .map(|set| sets::regions_of(set).to_owned())
            .collect();
        if !touched.is_empty() {
            return Err(TreeError::Withheld(touched));
        }
        let mut head = Head {
            epoch: parent.head.epoch.clone(),
            n: parent.head.n.saturating_add(1),
            hash: Hash::of(b""),
            parent: (parent.head.n > 0).then_some(parent.head.hash),
            gc,
            salt,
            roots: sets::roots(&sets).into_iter().chain(carried).collect(),
        };
        head.hash = head.expected_hash();
        if head.to_json().len() > HEAD_BYTES_MAX {
            return Err(TreeError::TooLarge("the head is too large".into()));
        }
        Ok((head, sets, leaves))
    }
}

impl Delta {
    /// What leads from a version, or the part of it that is here, to a later one, or the same part.
    pub fn between(from: &OrgConfig, to: &OrgConfig) -> Self {
        let changed = from.objects.differing(&to.objects);
        let changed: Vec<ObjectId> = changed.into_iter().map(|(id, _)| id).collect();
        Self {
            from: Some(from.head.hash),
            ..delta(&to.head, &to.objects, &changed)
        }
    }
}

fn delta(head: &Head, objects: &Objects, changed: &[ObjectId]) -> Delta {
    let whole = Delta {
        from: head.parent,
        to: head.hash,
        changed: None,
        deleted: Vec::new(),
    };
    let (mut bytes, mut values, mut deleted) = (0, Vec::new(), Vec::new());
    for id in changed {
        match objects.get(id) {
            Some(object) => {
                let line = line(object);
                bytes += line.len();
                // What was just written as JSON can be read as JSON.
                values.push(serde_json::from_slice(&line).unwrap_or_default());
            }
            None => {
                bytes += 64;
                deleted.push(*id);
            }
        }
        if bytes > DELTA_BYTES_MAX {
            return whole;
        }
    }
    Delta {
        changed: Some(values),
        deleted,
        ..whole
    }
}

impl Packed {
    /// The same version, made by a publisher that saw this sweep counter.
    pub fn with_gc(mut self, gc: u64) -> Self {
        let head = &mut self.config.head;
        head.gc = gc;
        head.hash = head.expected_hash();
        self.delta.to = head.hash;
        self
    }
}

/// The version that follows `previous` by a delta; `None` when the delta does not lead from the
/// one to `head`, or its objects do not have the hash that the head names (read leaves then).
pub fn apply_delta(previous: &OrgConfig, head: &Head, delta: &Delta) -> Option<OrgConfig> {
    let leads = delta.from == Some(previous.head.hash) && delta.to == head.hash;
    if !leads || previous.is_damaged() {
        return None;
    }
    let mut objects = previous.objects.clone();
    let mut changed = delta.deleted.clone();
    for id in &delta.deleted {
        objects.remove(id);
    }
    for value in delta.changed.as_ref()? {
        let object: Object = serde_json::from_value(value.clone()).ok()?;
        changed.push(object.id);
        objects.insert(object.id, Arc::new(object));
    }
    let by_region = head.is_cut();
    if previous.head.is_cut() && !by_region {
        return None;
    }
    let (sets, _) = sets::cut(previous, &objects, &changed, by_region).ok()?;
    let sets = previous.kept(head, sets)?;
    Some(OrgConfig {
        org: previous.org,
        head: head.clone(),
        objects,
        sets,
    })
}
