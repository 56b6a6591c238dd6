//! Replication between regions: a follower pulls every version from home and stores it as it is.
//!
//! `source` answers on the link listener, `pages` with versions; `follower` asks; `apply` writes
//! what came (`content`, `secrets`), verified end to end by hash, on the same compare on the local
//! head that a publish makes; `leader` lets one control plane of a region do it. Nothing is
//! remembered between attempts but what the local store holds, so that a cut at any point costs
//! only what was under way.

mod apply;
mod connection;
mod content;
mod follower;
mod leader;
mod pages;
mod secrets;
mod source;

use std::collections::{BTreeMap, BTreeSet};

use proto::credential::CredentialKind;
use proto::id::CredentialId;
use proto::object::{Body, ObjectId};
use proto::retired::Retired;
use proto::tree::{Hash, OrgConfig};

pub use self::follower::{Follower, FollowerOptions};
pub use self::source::{ANSWER_BYTES, Source};

/// What names a sealed secret: credential and seal id.
type SealName = (CredentialId, String);

/// The sealed secrets that a version names.
fn sealed_names(config: &OrgConfig) -> BTreeSet<SealName> {
    let objects = config.objects.iter();
    objects
        .filter_map(|(id, object)| match (id, &object.body) {
            (ObjectId::Credential(id), Body::Credential(stored))
                if stored.credential.kind == CredentialKind::Target =>
            {
                Some((*id, stored.secret.as_ref()?.seal_id.clone()?))
            }
            _ => None,
        })
        .collect()
}

/// All facts of an organisation by one name.
fn facts_hash(facts: &BTreeMap<CredentialId, Retired>) -> Hash {
    // Texts and numbers always serialise.
    Hash::of(&serde_json::to_vec(facts).unwrap_or_default())
}
