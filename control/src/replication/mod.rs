//! Replication between regions: every region pulls from those that are home to something what they
//! are home to, and stores it as it is.
//!
//! `serving` and `source` answer on the link listener, `news` with what has moved, `pages` with
//! versions (`not_given`: what cannot be given is told once); `follower` keeps a connection to
//! every other region (`connection`), `hearing` asks it what has moved there, `taking` takes many
//! organisations at one time in their `turns`; `one` and `sync` take one of them, `apply` writes
//! what came (`content`, `secrets`, `remembered`), verified end to end by hash and by the signature
//! of the region that made it (`verify`), on the same compare on the local head that a publish
//! makes, or says why it does not (`apply_error`); `departed` are organisations that are no more,
//! `resealed` the secrets that nodes of other regions sealed for this one later; `narrowing` tells
//! what is not to be kept here any more, `aside` leaves a branch that is not in force, `diverged`
//! is what a person decides where the same numbers name two branches. `takeover` learns which
//! region is home and opens what was handed over to this one, once it has what other regions keep
//! alone (`completing`; where that was forced without it, `in_part` fetches it later, and
//! `left_to_home` keeps it here until home has it); `facts` brings home what was revoked elsewhere;
//! `shares` moves what regions have of limits that they share (`shared_index` finds these);
//! `handover` and `promotion` are what a person asks for, `asking` asks all regions before, and
//! `foreseeing` tells what a promotion would do. One control plane of a region follows, who has the
//! place for it. Nothing is remembered between attempts but what the local store holds, and since
//! when a share is on its way, so that a cut at any point costs only what
//! was under way.

mod apply;
mod apply_error;
mod aside;
mod asking;
pub mod clocks;
mod completing;
mod connection;
mod content;
mod departed;
mod diverged;
mod facts;
mod follower;
mod foreseeing;
mod handover;
mod hearing;
mod in_part;
mod left_to_home;
mod narrowing;
mod news;
mod not_given;
mod one;
mod pages;
mod promotion;
mod remembered;
mod resealed;
mod rotated;
mod secrets;
mod serving;
mod shared_index;
mod shares;
mod source;
mod sync;
mod takeover;
mod taking;
#[cfg(test)]
mod tests;
mod told;
mod turns;
mod verify;
mod wants;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proto::credential::CredentialKind;
use proto::id::CredentialId;
use proto::retired::Retired;
use proto::store::follow::World;
use proto::store::{Store, StoreError};
use proto::tree::{Hash, OrgConfig};
use tokio::sync::watch;

use self::apply::ApplyError;
pub use self::connection::Dialer;
pub use self::follower::Follower;
pub use self::foreseeing::{Foreseen, Would};
pub use self::handover::HandOverError;
pub use self::not_given::NotGiven;
pub use self::promotion::{PromoteError, Promoted, Promotion};
pub use self::shared_index::SharedIndex;
pub use self::source::{ANSWER_BYTES, Source};
use crate::publish::Publisher;
use crate::regions::{Homes, Regions, Status};

/// What replication works with in this region.
pub struct Replication {
    /// Where versions are stored, and what deletes an organisation there.
    pub publisher: Arc<Publisher>,
    /// The same store.
    pub store: Arc<dyn Store>,
    /// The configuration as this process has seen it.
    pub worlds: watch::Receiver<Arc<World>>,
    /// The directory.
    pub regions: Arc<Regions>,
    /// Which region is home to what.
    pub homes: Homes,
    /// Where it is told how far this region has come.
    pub status: Arc<Status>,
    /// Meters whose limits regions share.
    pub shared: Arc<SharedIndex>,
    /// How other regions are called.
    pub dialer: Dialer,
}

/// Why an exchange with another region broke off; it begins anew.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("the other region: {0}")]
    Link(#[from] std::io::Error),
    #[error("the store: {0}")]
    Store(#[from] StoreError),
    #[error("{0}")]
    Apply(#[from] ApplyError),
    #[error("another control plane replicates now")]
    Deposed,
    #[error("the other region answered what was not asked")]
    Protocol,
}

/// What names a sealed secret: credential and seal id.
type SealName = (CredentialId, String);

/// The sealed secrets that a version names.
fn sealed_names(config: &OrgConfig) -> BTreeSet<SealName> {
    let credentials = config.objects.credentials();
    credentials
        .filter(|(_, stored)| stored.credential.kind == CredentialKind::Target)
        .filter_map(|(id, stored)| Some((id, stored.secret.as_ref()?.seal_id.clone()?)))
        .collect()
}

/// All facts of an organisation by one name.
fn facts_hash(facts: &BTreeMap<CredentialId, Retired>) -> Hash {
    // Texts and numbers always serialise.
    Hash::of(&serde_json::to_vec(facts).unwrap_or_default())
}
