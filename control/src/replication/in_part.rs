//! A home that was made one by force without what some regions keep alone: it fetches that by
//! itself, over every link that comes up, and has everything from then on.
//!
//! The head stays the same, as it names the set already. It is written again as it is, so that
//! every process of the region looks at the version again.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use proto::id::OrgId;
use proto::keys;
use proto::store::{Compare, Op, Txn};
use proto::tree::{Hash, OrgConfig, regions_of};
use tracing::{info, warn};

use super::apply::{ApplyError, Guard, Local, commit};
use super::asking::Asked;
use super::completing::{Wanted, may_have};
use super::connection::Connection;
use super::content::kept;
use super::foreseeing::newest;
use super::left_to_home::has;
use super::promotion::TRIES;
use super::{Broken, Replication};

/// How long a region is not asked again for what it did not give.
const REST: Duration = Duration::from_secs(5);

/// What was asked for over a connection and did not come, and when.
pub(super) struct AskedFor<K = (OrgId, Hash)>(BTreeMap<K, Instant>);

impl<K> Default for AskedFor<K> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<K: Ord> AskedFor<K> {
    /// Whether it is to be asked for at this time; it then is noted.
    pub fn is_due(&mut self, of: K, now: Instant) -> bool {
        let rests = |at: &Instant| now.saturating_duration_since(*at) < REST;
        if self.0.get(&of).is_some_and(rests) {
            return false;
        }
        self.0.retain(|_, at| rests(at));
        self.0.insert(of, now);
        true
    }
}

impl Replication {
    /// Fetches over a connection what this region lacks of what it is home to.
    pub(super) async fn complete_homes(
        &self,
        connection: &Connection,
        guard: &Guard,
        asked: &mut AskedFor,
    ) -> Result<(), Broken> {
        let world = self.worlds.borrow().clone();
        for (org, state) in &world.orgs {
            let config = &state.config;
            if config.withheld().next().is_none() || self.homes.region_of(*org) != self.regions.own
            {
                continue;
            }
            match self.complete_home(connection, guard, config, asked).await {
                Err(Broken::Apply(error)) if error.is_of_one() => {
                    warn!(%org, "what is lacking of {org} does not come: {error}");
                }
                completed => completed?,
            }
        }
        Ok(())
    }

    async fn complete_home(
        &self,
        connection: &Connection,
        guard: &Guard,
        seen: &OrgConfig,
        asked: &mut AskedFor,
    ) -> Result<(), Broken> {
        let (org, own) = (seen.org, &self.regions.own);
        let lacking = seen.withheld().filter(|set| may_have(set, own));
        let lacking = lacking.map(|set| (set, seen.head.roots[set]));
        let now = Instant::now();
        let due: Vec<(&str, Hash)> = lacking
            .filter(|(_, root)| asked.is_due((org, *root), now))
            .collect();
        let mut is_changed = false;
        for (set, root) in due {
            if !self.is_to_be_had(connection, org, root).await? {
                continue;
            }
            match self.bring(connection, guard, org, (set, root)).await {
                // The next one may come all the same.
                Err(Broken::Apply(error)) if error.is_of_one() => {
                    warn!(%org, "{} of {org} does not come: {error}", regions_of(set));
                }
                brought => {
                    brought?;
                    is_changed = true;
                }
            }
        }
        if is_changed {
            // What it still lacks is asked for at once of whoever has this.
            asked.0.retain(|(of, _), _| *of != org);
        }
        Ok(())
    }

    /// Fetches a set that the region has, where it is not here yet, and shows it.
    async fn bring(
        &self,
        connection: &Connection,
        guard: &Guard,
        org: OrgId,
        (set, root): Wanted<'_>,
    ) -> Result<(), Broken> {
        let unswept = self.unswept(org).await?;
        // Another control plane of this region may have fetched it.
        let local = Local::read(&*self.store, org, None).await?;
        let config = local.config().ok_or(ApplyError::Moved(org))?;
        if config.head.roots.get(set) == Some(&root) && !config.holds(set) {
            let using = (connection, &*self.regions);
            local.add_set(&self.store, using, root, &unswept).await?;
            let (region, peer) = (regions_of(set), connection.peer());
            info!(%org, region, "what region {region} alone keeps of {org} came from {peer}");
        }
        for _ in 0..TRIES {
            let local = Local::read(&*self.store, org, None).await?;
            match self.show(guard, &local, unswept.clone()).await {
                // Somebody published meanwhile.
                Err(Broken::Apply(ApplyError::Moved(_))) => {}
                shown => return shown,
            }
        }
        Err(ApplyError::Moved(org).into())
    }

    /// Whether a set is here, or in the region that is asked.
    async fn is_to_be_had(
        &self,
        connection: &Connection,
        org: OrgId,
        root: Hash,
    ) -> Result<bool, Broken> {
        Ok(self.has_root(org, root).await? || has(connection, org, root).await?)
    }

    /// Whether home carries something on by hash that this region alone is to have, and that is not
    /// here either: nothing of the organisation comes here any more.
    pub(super) async fn is_given_none(
        &self,
        org: OrgId,
        home: &str,
        asked: &[Asked<'_>],
    ) -> Result<bool, Broken> {
        let own = &self.regions.own;
        let world = self.worlds.borrow().clone();
        let is_cut = |org| {
            world
                .orgs
                .get(org)
                .is_some_and(|of| of.config.head.is_cut())
        };
        let home = asked.iter().find(|asked| asked.peer.name == *home);
        let Some(home) = home.filter(|_| is_cut(&org)) else {
            return Ok(false);
        };
        let Some(head) = newest(&home.connection, org).await? else {
            return Ok(false);
        };
        for root in kept(&head, own) {
            if !self.is_to_be_had(&home.connection, org, root).await? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Has every process of this region look at the newest version again, while this one is home
    /// and nothing was swept.
    async fn show(&self, guard: &Guard, local: &Local, unswept: Compare) -> Result<(), Broken> {
        let org = local.org;
        let is_home = local
            .home()
            .is_some_and(|home| home.region == self.regions.own);
        let Some(config) = local.config().filter(|_| is_home) else {
            return Err(ApplyError::Moved(org).into());
        };
        let txn = Txn {
            compares: local.compares(guard).into_iter().chain([unswept]).collect(),
            ops: vec![Op::put(keys::head(org), config.head.to_json())],
            or_read: Vec::new(),
        };
        Ok(commit(&*self.store, org, txn).await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_did_not_come_is_asked_for_again_after_a_while() {
        let (mut asked, at) = (AskedFor::default(), Instant::now());
        let [one, other] = [1, 2].map(|bits| (OrgId::from_bits(bits), Hash::of(b"root")));
        assert!(asked.is_due(one, at));
        assert!(!asked.is_due(one, at + REST / 2));
        assert!(asked.is_due(other, at + REST / 2));
        assert!(asked.is_due(one, at + REST));
    }
}
