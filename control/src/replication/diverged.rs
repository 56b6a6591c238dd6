//! Two histories under one name: a store that went back goes on in its epoch, so that number and
//! epoch name versions of two branches. Nobody can tell by himself which of them counts, and
//! nothing is taken until a person has said it, in the region whose history is to count: that one
//! then opens a new epoch on what it has, whether it was home or not. Every other region asks it
//! which of its own versions it knows, by hash, and sets what lies beyond the last of these aside.

use std::time::Duration;

use proto::home::Home;
use proto::id::OrgId;
use proto::keys;
use proto::store::{ancestry, load};
use proto::tree::VersionRecord;
use proto::version::Epoch;
use proto::wire::replication::{Answer, Ask, Moved, Position};

use super::apply::{ApplyError, Local};
use super::asking::{Asked, counters};
use super::completing::Unhad;
use super::connection::Connection;
use super::promotion::{PromoteError, Promoted, Promotion, TRIES};
use super::{Broken, Replication};

/// Versions here that another region is asked about, the newest ones.
const KEPT_MAX: usize = 2_000;

impl Replication {
    /// Notes that nothing is taken of an organisation until a person decides. Given are the newest
    /// versions here and there.
    pub(super) fn diverged(&self, peer: &str, org: OrgId, (here, there): (Position, Position)) {
        self.status.follow(peer, |of| {
            if of.diverged.insert(org, here).is_some() {
                return;
            }
            let (own, Position { n, hash, .. }) = (&self.regions.own, there);
            tracing::error!(
                %org,
                "the history of {org} here is not that of region {peer}, whose newest version is \
                 {n} ({hash}); nothing of it is taken until somebody decides whose counts: \
                 `requestrocket regions promote {own} --diverged`, or the same with {peer}"
            );
        });
    }

    /// The newest version of those kept here before a number that the history of another region
    /// leads through, if it leads through one. They are one line: what comes before one that is
    /// known there is known there. Asked over a connection of its own, as what a connection has
    /// told it does not tell again.
    pub(super) async fn common(
        &self,
        peer: &str,
        org: OrgId,
        before: u64,
    ) -> Result<Option<Position>, Broken> {
        let peer = self.regions.peer(peer).ok_or(Broken::Protocol)?;
        let connection = self.reach(peer).await?;
        let kept = self.publisher.versions(org, before, KEPT_MAX).await;
        let kept = kept.map_err(ApplyError::from)?;
        let kept: Vec<Position> = kept
            .iter()
            .map(|kept| Position::from(&kept.record.head))
            .collect();
        let (mut unknown, mut step) = (0, 1);
        let mut known = kept.len();
        // Branches are short more often than not: at first in growing steps from the newest on.
        while unknown < known {
            let at = (unknown + step - 1).min(unknown.midpoint(known));
            match forks(&connection, org, &kept[at]).await? {
                Some(_) => (unknown, step) = (at + 1, step * 2),
                None => known = at,
            }
        }
        Ok(kept.into_iter().nth(known))
    }

    /// Whether the history that is kept here does not lead through a version of another region, and
    /// that one does not go over to it by itself.
    pub(super) async fn leaves_out(&self, org: OrgId, version: &Position) -> Result<bool, Broken> {
        let head = load::head(&*self.store, org).await;
        let Some((head, _)) = head.map_err(ApplyError::from)? else {
            return Ok(false);
        };
        if head.epoch > version.epoch || head.hash == version.hash {
            return Ok(false);
        }
        let record = self.store.get(&keys::version(org, version.n)).await?.value;
        if let Some(record) = record {
            let record = serde_json::from_slice::<VersionRecord>(&record.value);
            return Ok(record.is_ok_and(|record| record.head.hash != version.hash));
        }
        let lineage = ancestry::lineage(&*self.store, org).await?;
        Ok(version.n > head.n || lineage.names_another(version.n, &version.hash))
    }

    /// Lets the history of this region count of every organisation of which a region that answers
    /// has another one: it is home to these from then on.
    ///
    /// # Errors
    /// [`PromoteError`]; what was decided before it stays so, and a second call does the rest.
    pub async fn decide(&self, force: bool) -> Result<Promotion, PromoteError> {
        let (asked, not_asked) = self.ask_all(force).await?;
        let mut decided = Promotion {
            not_asked,
            ..Promotion::default()
        };
        for org in self.orgs().await? {
            let opened = match self.differ(org, &asked) {
                true => self.decide_one((org, force), &asked).await,
                false => Ok(None),
            };
            match opened {
                Ok(None) => {}
                Ok(Some(promoted)) => decided.promoted.push(promoted),
                Err(Broken::Apply(error)) if error.is_of_one() => {
                    let why = error.to_string();
                    tracing::error!(%org, "the history of {org} here is not made to count: {why}");
                    decided.left.push((org, why));
                }
                Err(error) => return Err(error.into()),
            }
        }
        decided.unless_nothing(PromoteError::Agreed)
    }

    /// Whether any region stands elsewhere with an organisation than this process has seen here.
    fn differ(&self, org: OrgId, asked: &[Asked<'_>]) -> bool {
        let world = self.worlds.borrow().clone();
        let here = world.orgs.get(&org);
        let here = here.map(|state| Position::from(&state.config.head));
        let there = |asked: &Asked<'_>| {
            let moved = asked.standing.get(&org);
            moved.map(|moved| moved.position.clone())
        };
        asked.iter().any(|asked| there(asked) != here)
    }

    async fn decide_one(
        &self,
        (org, force): (OrgId, bool),
        asked: &[Asked<'_>],
    ) -> Result<Option<Promoted>, Broken> {
        let mut tries = 0;
        loop {
            tries += 1;
            match self.try_to_decide((org, force), asked).await {
                Err(Broken::Apply(ApplyError::Moved(_))) if tries < TRIES => {}
                decided => return decided,
            }
        }
    }

    async fn try_to_decide(
        &self,
        (org, force): (OrgId, bool),
        asked: &[Asked<'_>],
    ) -> Result<Option<Promoted>, Broken> {
        let local = Local::read(&*self.store, org, None).await?;
        let (Some(here), Some(line)) = (local.position(), local.home().cloned()) else {
            return Ok(None);
        };
        if !self.is_diverged(org, (&here, &line), asked).await? {
            return Ok(None);
        }
        let known = counters(org, Some(&line), asked);
        let answering: Vec<&Connection> = asked.iter().map(|asked| &asked.connection).collect();
        let whole = self.complete(&answering, org, Unhad::of(force)).await?;
        let base = (&here, &*known, &whole);
        let first = self.open(&None, org, &line, base, "promotion").await?;
        let from = self.regions.own.clone();
        Ok(Some(Promoted::of(org, from, first, &whole)))
    }

    /// Whether there are two histories: that of this region and that of home, or of a region that
    /// follows it.
    async fn is_diverged(
        &self,
        org: OrgId,
        (here, line): (&Position, &Home),
        asked: &[Asked<'_>],
    ) -> Result<bool, Broken> {
        let told = standings(org, asked).filter_map(|moved| moved.home.as_ref());
        let told = told.map(|home| (&home.epoch, &home.region));
        let highest = told.chain([(&line.epoch, &line.region)]).max();
        let Some((epoch, home)): Option<(&Epoch, &String)> = highest else {
            return Ok(false);
        };
        if *home == self.regions.own {
            for moved in standings(org, asked) {
                if self.leaves_out(org, &moved.position).await? {
                    return Ok(true);
                }
            }
            return Ok(false);
        }
        // One that is not known here yet is gone over to as soon as it is.
        let home = asked.iter().find(|asked| asked.peer.name == *home);
        let Some(home) = home.filter(|_| *epoch == line.epoch) else {
            return Ok(false);
        };
        if !home.standing.contains_key(&org) {
            // It has lost all of it, or has deleted it: then `system` does not name it for long.
            return Ok(self
                .named()
                .await?
                .is_some_and(|named| named.contains(&org)));
        }
        let newest = forks(&home.connection, org, here).await?;
        Ok(newest.is_some_and(|newest| newest.epoch <= here.epoch))
    }
}

/// Where the regions that were asked stand with an organisation.
fn standings<'a>(org: OrgId, asked: &'a [Asked<'_>]) -> impl Iterator<Item = &'a Moved> {
    asked
        .iter()
        .filter_map(move |asked| asked.standing.get(&org))
}

/// The newest version of a region whose history does not lead through a version; `None` where it
/// does, or does not know any more.
async fn forks(
    connection: &Connection,
    org: OrgId,
    at: &Position,
) -> Result<Option<Position>, Broken> {
    let after = Some(at.clone());
    let ask = Ask::Versions { org, after };
    match connection.ask(&ask, Duration::ZERO).await? {
        Answer::Fork { newest } => Ok(Some(newest)),
        Answer::Versions(_) | Answer::NotHere => Ok(None),
        Answer::Unknown => Err(ApplyError::Moved(org).into()),
        _ => Err(Broken::Protocol),
    }
}
