//! One organisation of another region, as it stands there now: judged, taken, and opened where it
//! was handed over to this one.

use std::collections::BTreeMap;

use futures_util::future::try_join;
use proto::home::Home;
use proto::id::OrgId;
use proto::keys;
use proto::tree::{Head, SYSTEM_ORG};
use proto::wire::replication::{Moved, Position};

use super::apply::Guard;
use super::completing::Unhad;
use super::connection::Connection;
use super::takeover::{Step, ask_home};
use super::{Broken, Replication, facts_hash};
use crate::regions::status::Unverified;

impl Replication {
    /// Notes how many versions are to come.
    pub(super) async fn measure(&self, peer: &str, moved: &[Moved]) -> Result<(), Broken> {
        let mut behind = BTreeMap::new();
        let of_peer = |moved: &&Moved| {
            let home = moved.home.as_ref();
            home.is_some_and(|home| home.region == peer)
        };
        for Moved { org, position, .. } in moved.iter().filter(of_peer) {
            let key = keys::head(*org);
            let local = self.store.get(&key).await?.value;
            let n = local.and_then(|pair| Head::parse(&pair.value).ok());
            let n = n.map_or(0, |head| head.n);
            behind.insert(*org, position.n.saturating_sub(n));
        }
        self.status.follow(peer, |of| of.behind.extend(behind));
        Ok(())
    }

    /// Tells of a version that is not taken. It does not keep other organisations waiting, and is
    /// tried again.
    pub(super) fn leave_unverified(&self, peer: &str, org: OrgId, at: Position, why: String) {
        self.status.follow(peer, |of| {
            let unverified = Unverified { at, why };
            let (n, hash, why) = (unverified.at.n, unverified.at.hash, &unverified.why);
            if of.unverified.get(&org) != Some(&unverified) {
                tracing::error!(
                    %org, region = peer, n,
                    "version {n} ({hash}) of {org} from region {peer} is not taken: {why}"
                );
            }
            of.untaken.remove(&org);
            of.unverified.insert(org, unverified);
        });
    }

    /// Tells of an organisation that is not taken for another fault of its own, there or here.
    pub(super) fn leave_untaken(&self, peer: &str, org: OrgId, why: String) {
        self.status.follow(peer, |of| {
            if of.untaken.get(&org) != Some(&why) {
                tracing::warn!(
                    %org, region = peer,
                    "{org} is not taken from region {peer}, and is tried again: {why}"
                );
            }
            of.unverified.remove(&org);
            of.untaken.insert(org, why);
        });
    }

    /// Takes an organisation as it stands now; gives where it then stands here.
    pub(super) async fn take_one(
        &self,
        connection: &Connection,
        guard: &Guard,
        moved: Moved,
    ) -> Result<Option<Position>, Broken> {
        let line = match self.judge(connection, guard, &moved).await? {
            Step::Pass => {
                // What differs from a region that is not home waits for nobody.
                let (peer, org) = (connection.peer(), moved.org);
                self.status
                    .follow(peer, |of| drop(of.diverged.remove(&org)));
                return self.take_facts(connection, &moved).await;
            }
            Step::Follow(line) => line,
            Step::TakeOver(line) => {
                self.take_over(connection, guard, &moved, &line).await?;
                return Ok(None);
            }
        };
        self.take_versions(connection, guard, &moved, &line).await
    }

    async fn take_versions(
        &self,
        connection: &Connection,
        guard: &Guard,
        moved: &Moved,
        line: &Home,
    ) -> Result<Option<Position>, Broken> {
        let org = moved.org;
        // Before `system` is asked for: what is opened here meanwhile is named by a later version.
        let homed = match org == SYSTEM_ORG {
            true => self.homed_here(line).await?,
            false => Vec::new(),
        };
        let stored = match self.has(moved) {
            true => {
                self.status.agrees(org);
                Some(moved.position.clone())
            }
            false => self.sync(connection, guard, org, line).await?,
        };
        // Only what is here whole tells what it names.
        if stored.is_some() {
            self.leave_unnamed(guard, homed).await?;
        }
        Ok(stored)
    }

    /// Opens what was handed over to this region. What it was sealed at is asked for together with
    /// the versions up to there.
    async fn take_over(
        &self,
        connection: &Connection,
        guard: &Guard,
        moved: &Moved,
        line: &Home,
    ) -> Result<(), Broken> {
        let (org, own) = (moved.org, &self.regions.own);
        let taking = self.take_versions(connection, guard, moved, line);
        let (told, stored) = try_join(ask_home(connection, org), taking).await?;
        let told = told.filter(|home| home.epoch == line.epoch);
        let seal = told.and_then(|home| home.sealed);
        let Some(seal) = seal.filter(|seal| seal.to == *own) else {
            return Ok(());
        };
        // Who answered may not have seen the last version yet.
        if stored.as_ref() != Some(&seal.last) {
            self.sync(connection, guard, org, line).await?;
        }
        let whole = self.complete(&[connection], org, Unhad::Refuses).await?;
        let base = (&seal.last, &[][..], &whole);
        self.open(guard, org, line, base, "hand-over").await?;
        Ok(())
    }

    /// Whether all of it is known to be here.
    fn has(&self, moved: &Moved) -> bool {
        let world = self.worlds.borrow().clone();
        let state = world.orgs.get(&moved.org);
        state.is_some_and(|state| {
            Position::from(&state.config.head) == moved.position
                && facts_hash(&state.retired) == moved.facts
        })
    }
}
