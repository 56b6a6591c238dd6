//! Which sets of a version this region keeps: all where it is home, else that of all regions and
//! its own. One that became home by force need not have what other regions keep alone: nothing of
//! the organisation is swept there before that has come, since it could be damage as well.

use std::collections::HashSet;

use proto::home::Home;
use proto::id::OrgId;
use proto::keys;
use proto::store::Store;
use proto::tree::{self, Hash, Head, Root, is_kept_in};

use super::JanitorError;
use crate::publish::Publisher;
use crate::publish::writes::json;

/// What becomes of the sets of other regions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Others {
    /// They are here, or nothing is decided without them.
    Are,
    /// Those that are here stay: a region that became home has them from then on.
    May,
    /// Those that are here stay until home is known to have them: one that was made home by force
    /// may lack them.
    Wait,
    /// They go.
    Go,
}

/// What this region keeps of one organisation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Keeps {
    org: OrgId,
    region: String,
    others: Others,
    /// Whether versions of this installation are cut by region at all.
    cut: bool,
    /// Versions before it hold what is pinned to other regions; 0 where this region keeps that.
    from: u64,
}

impl Keeps {
    /// Of the newest version.
    pub async fn of(
        publisher: &Publisher,
        (org, home): (OrgId, &Home),
        newest: &Head,
    ) -> Result<Self, JanitorError> {
        let region = publisher.region().to_owned();
        let (others, from) = match home.region == region {
            true => (Others::Are, 0),
            // Of an earlier epoch than is in force it may be of a branch, which is to be set aside
            // first, as it is.
            false if newest.epoch != home.epoch => (Others::May, 0),
            false if newest.is_cut() && !home_has(publisher.store(), org, home).await? => {
                (Others::Wait, 0)
            }
            false => (Others::Go, kept_from(publisher.store(), org).await?),
        };
        Ok(Self {
            org,
            region,
            others,
            cut: newest.is_cut() || publisher.cuts_by_region(),
            // The newest itself stays, whatever is said.
            from: from.min(newest.n),
        })
    }

    /// Of versions before it.
    pub fn of_earlier(&self) -> Self {
        let others = match self.others {
            Others::Are => Others::May,
            others => others,
        };
        Self {
            others,
            ..self.clone()
        }
    }

    /// Whether more is to go as soon as home is known to have it, with no version in between.
    pub fn waits(&self) -> bool {
        self.others == Others::Wait
    }

    /// Of versions that are set aside: a person may still need what is there of them.
    pub fn of_branch(&self) -> Self {
        Self {
            others: Others::May,
            ..self.clone()
        }
    }

    /// Whether nothing of a version is kept, whichever sets it has.
    pub fn drops(&self, n: u64) -> bool {
        n < self.from
    }

    /// The first version of which something is kept; 0 where that is so of all.
    pub fn from(&self) -> u64 {
        self.from
    }

    /// Whether there may be something that is to go.
    pub fn purges(&self) -> bool {
        self.cut && self.others == Others::Go
    }

    /// Whether a set is kept where it is here.
    pub fn keeps(&self, set: &str) -> bool {
        is_kept_in(set, &self.region) || self.others != Others::Go
    }

    /// Whether a set that is not here is damage.
    pub fn misses(&self, set: &str) -> bool {
        is_kept_in(set, &self.region) || self.others == Others::Are
    }

    /// Marks what a version reaches that is kept.
    pub async fn mark(
        &self,
        store: &dyn Store,
        head: &Head,
        marked: &mut HashSet<Hash>,
    ) -> Result<(), JanitorError> {
        let org = self.org;
        for (set, root) in head.roots.iter().filter(|(set, _)| self.keeps(set)) {
            if !marked.insert(*root) {
                continue;
            }
            let unreadable = || JanitorError::Unreadable(format!("version {} of {org}", head.n));
            let found = store.get(&keys::leaf(org, root)).await?.value;
            let Some(packed) = found else {
                match self.misses(set) {
                    true => return Err(unreadable()),
                    false => continue,
                }
            };
            let root = tree::unpack(*root, &packed.value).and_then(|content| Root::parse(&content));
            marked.extend(root.map_err(|_| unreadable())?.leaves.into_values());
        }
        Ok(())
    }
}

/// What [`keys::home_has`] says of the home that it has now.
async fn home_has(store: &dyn Store, org: OrgId, home: &Home) -> Result<bool, JanitorError> {
    let known = store.get(&keys::home_has(org)).await?.value;
    Ok(known.is_some_and(|pair| pair.value == json(&home.epoch)))
}

/// What [`keys::kept_from`] says.
async fn kept_from(store: &dyn Store, org: OrgId) -> Result<u64, JanitorError> {
    let key = keys::kept_from(org);
    let Some(pair) = store.get(&key).await?.value else {
        return Ok(0);
    };
    let number = std::str::from_utf8(&pair.value).ok();
    let number = number.and_then(|number| number.parse().ok());
    number.ok_or(JanitorError::Unreadable(key))
}
