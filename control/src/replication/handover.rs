//! The planned move: this region ends its time as home, and another opens on exactly its last
//! version. Nothing is lost; writes wait for as long as it takes.
//!
//! Organisations move in waves, so that each is sealed for a few round trips however many there
//! are. Where a wave is late nothing further is sealed: the rest stays at home here, and the next
//! hand-over goes on with it.

use std::fmt;
use std::time::Duration;

use futures_util::future::join_all;
use proto::id::OrgId;
use proto::tree::{SYSTEM_ORG, is_kept_in};
use tokio::time::Instant;

use super::takeover::{Standing, ask_home, standing};
use super::{Broken, Replication};
use crate::publish::{PublishError, homes};
use crate::regions::Peer;

/// A region that lacks more versions than this of an organisation is not handed anything.
const LAG_MAX: u64 = 64;
/// Organisations of one wave: the most that are sealed at one time.
pub(super) const WAVE: usize = 8;
/// How long the other region may take to open a wave.
const OPEN_MAX: Duration = Duration::from_secs(10);
/// How often it is asked whether it has.
const LOOK: Duration = Duration::from_millis(20);

/// Why home was not handed over, or not all of it.
#[derive(Debug, thiserror::Error)]
pub enum HandOverError {
    /// There is no other region of this name.
    #[error("`{0}` is no other region")]
    Unknown(String),
    /// The region cannot take it over now. Nothing was done.
    #[error("region {region} cannot take over now: {why}; nothing was done")]
    Unfit {
        /// The region.
        region: String,
        /// Why.
        why: String,
    },
    /// The region is this one, and has sealed something that no other one has opened yet.
    #[error(
        "region {region} is home already, and has sealed for another region what that one has not \
         opened yet: it does when it can, or {region} takes it back by a promotion \
         (`requestrocket regions promote {region} --force`): {}", ids(.sealed)
    )]
    Own {
        /// The region.
        region: String,
        /// Organisations that are sealed and have no home.
        sealed: Vec<OrgId>,
    },
    /// This region is home to nothing.
    #[error("this region is home to nothing that could be handed over")]
    Nothing,
    /// The other region has not opened a wave in time; it still may. Nothing further was sealed.
    #[error(
        "region {region} has not opened what is sealed for it: it does when it can; where it is \
         gone for good, promote a region, and where it cannot (its log says why), promote this one \
         with `--force`. {so_far}"
    )]
    Waiting {
        /// The region.
        region: String,
        /// What was done.
        so_far: Box<SoFar>,
    },
    /// What this region is home to cannot be told, after something was moved.
    #[error("what this region is home to still cannot be read: {why}. {so_far}")]
    Unread {
        /// Why.
        why: String,
        /// What was done.
        so_far: Box<SoFar>,
    },
    /// An organisation could not be sealed. Nothing further was.
    #[error("{error}. {so_far}")]
    Stopped {
        /// Why.
        error: PublishError,
        /// What was done.
        so_far: Box<SoFar>,
    },
}

/// How far a hand-over came that has ended early.
#[derive(Debug, Default)]
pub struct SoFar {
    /// Organisations that have the other region as home.
    pub moved: Vec<OrgId>,
    /// Organisations that are sealed and have no home until the other region opens them.
    pub sealed: Vec<OrgId>,
    /// How many stay at home here, where that is known.
    pub left: Option<usize>,
}

fn ids(orgs: &[OrgId]) -> String {
    let ids: Vec<String> = orgs.iter().map(OrgId::to_string).collect();
    match ids.is_empty() {
        true => "nothing is sealed".to_owned(),
        false => ids.join(", "),
    }
}

impl fmt::Display for SoFar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let moved = self.moved.len();
        write!(f, "Organisations: {moved} were handed over")?;
        if !self.sealed.is_empty() {
            write!(f, ", sealed until they are opened: {}", ids(&self.sealed))?;
        }
        let rest = "at home here and go on; the next hand-over takes them up";
        match self.left {
            Some(left) => write!(f, ", {left} stay {rest}"),
            None => write!(f, ", all others stay {rest}"),
        }
    }
}

impl Replication {
    /// Hands over everything that this region is home to, `system` last. Gives the organisations;
    /// none where the region is home already.
    ///
    /// # Errors
    /// [`HandOverError`]; what was sealed before it is opened by the other region all the same.
    pub async fn hand_over(&self, to: &str) -> Result<Vec<OrgId>, HandOverError> {
        let own = &self.regions.own;
        if to == own && self.homes.region_of(SYSTEM_ORG) == *own {
            let (region, sealed) = (to.to_owned(), self.sealed());
            return match sealed.is_empty() {
                // It is home already.
                true => Ok(Vec::new()),
                false => Err(HandOverError::Own { region, sealed }),
            };
        }
        let unknown = || HandOverError::Unknown(to.to_owned());
        let peer = self.regions.peer(to).ok_or_else(unknown)?;
        let unfit = |error: Broken| HandOverError::Unfit {
            region: to.to_owned(),
            why: error.to_string(),
        };
        let standing = self.fit(peer).await.map_err(unfit)?;
        let mut orgs = self.homed().await.map_err(unfit)?;
        if orgs.is_empty() {
            return Err(HandOverError::Nothing);
        }
        self.refuse_lag(peer, &standing, &orgs)?;
        self.refuse_diverged(peer, &standing, &orgs).await?;
        self.refuse_unfit(to, &orgs)?;
        let mut so_far = SoFar::default();
        // Again, for what was created meanwhile: once `system` is sealed nothing is.
        while !orgs.is_empty() {
            for wave in waves(&orgs) {
                self.move_wave(to, wave, &mut so_far).await?;
            }
            orgs = match self.homed().await {
                Ok(orgs) => orgs,
                Err(error) => {
                    return Err(HandOverError::Unread {
                        why: error.to_string(),
                        so_far: Box::new(so_far),
                    });
                }
            };
        }
        Ok(so_far.moved)
    }

    /// What this region has sealed and no other one has opened.
    fn sealed(&self) -> Vec<OrgId> {
        let facts = self.homes.facts();
        let facts = facts.borrow();
        let sealed = facts
            .iter()
            .filter(|(_, home)| home.region == self.regions.own && home.sealed.is_some());
        sealed.map(|(org, _)| *org).collect()
    }

    /// What this region is home to, in the order in which it moves: `system` is the last to be
    /// sealed as it is the last to be opened.
    async fn homed(&self) -> Result<Vec<OrgId>, Broken> {
        let own = &self.regions.own;
        let mut orgs = self.orgs().await?;
        orgs.retain(|org| self.homes.region_of(*org) == *own);
        orgs.sort_by_key(|org| *org == SYSTEM_ORG);
        Ok(orgs)
    }

    /// Seals a wave and waits until it is opened.
    async fn move_wave(
        &self,
        to: &str,
        wave: &[OrgId],
        so_far: &mut SoFar,
    ) -> Result<(), HandOverError> {
        let seals = wave.iter().map(|org| self.publisher.seal_home(*org, to));
        let mut failed = None;
        let mut sealed = Vec::new();
        for (org, seal) in wave.iter().zip(join_all(seals).await) {
            match seal {
                Ok(_) => sealed.push(*org),
                Err(error) => failed = Some(error),
            }
        }
        let left = self.opened(&sealed).await;
        so_far
            .moved
            .extend(sealed.iter().filter(|org| !left.contains(org)));
        if failed.is_none() && left.is_empty() {
            return Ok(());
        }
        let all = self.homed().await.ok().map(|homed| homed.len());
        let so_far = Box::new(SoFar {
            left: all.map(|all| all.saturating_sub(left.len())),
            sealed: left,
            moved: std::mem::take(&mut so_far.moved),
        });
        let region = to.to_owned();
        Err(match failed {
            Some(error) => HandOverError::Stopped { error, so_far },
            None => HandOverError::Waiting { region, so_far },
        })
    }

    /// What a region has, if its store answers now.
    async fn fit(&self, peer: &Peer) -> Result<Standing, Broken> {
        let connection = self.reach(peer).await?;
        let standing = standing(&connection).await?;
        ask_home(&connection, SYSTEM_ORG).await?;
        Ok(standing)
    }

    fn refuse_lag(
        &self,
        peer: &Peer,
        standing: &Standing,
        orgs: &[OrgId],
    ) -> Result<(), HandOverError> {
        let world = self.worlds.borrow().clone();
        for org in orgs {
            let config = world.orgs.get(org).map(|state| &state.config);
            let here = config.map_or(0, |config| config.head.n);
            let there = standing.get(org).map_or(0, |moved| moved.position.n);
            let mut lacking = config.into_iter().flat_map(|config| config.withheld());
            // It would be given none of what is here no more than there.
            let lag_max = match lacking.any(|set| is_kept_in(set, &peer.name)) {
                true => 0,
                false => LAG_MAX,
            };
            if here.saturating_sub(there) > lag_max {
                let region = peer.name.clone();
                let why = format!("of {org} it has version {there} of {here}");
                return Err(HandOverError::Unfit { region, why });
            }
        }
        Ok(())
    }

    /// Refuses a region that could not open what is sealed for it: it has another history.
    async fn refuse_diverged(
        &self,
        peer: &Peer,
        standing: &Standing,
        orgs: &[OrgId],
    ) -> Result<(), HandOverError> {
        for org in orgs {
            let Some(moved) = standing.get(org) else {
                continue;
            };
            let diverged = self.leaves_out(*org, &moved.position).await;
            let (own, region) = (&self.regions.own, peer.name.clone());
            let why = match diverged {
                Ok(false) => continue,
                Ok(true) => format!(
                    "its history of {org} is not that of region {own}: decide first whose counts, \
                     by `requestrocket regions promote {region} --diverged`, or the same with {own}"
                ),
                Err(error) => error.to_string(),
            };
            return Err(HandOverError::Unfit { region, why });
        }
        Ok(())
    }

    /// Refuses before the first organisation is sealed what would be refused at one of them.
    fn refuse_unfit(&self, to: &str, orgs: &[OrgId]) -> Result<(), HandOverError> {
        let world = self.worlds.borrow().clone();
        for org in orgs {
            let state = world.orgs.get(org);
            let unfit = state.and_then(|state| homes::refuses_to_move(&state.config, to));
            if let Some(error) = unfit {
                return Err(HandOverError::Stopped {
                    error,
                    so_far: Box::new(SoFar {
                        left: Some(orgs.len()),
                        ..SoFar::default()
                    }),
                });
            }
        }
        Ok(())
    }

    /// Waits until the other region's facts are known here; gives those of which they are not in
    /// time.
    async fn opened(&self, orgs: &[OrgId]) -> Vec<OrgId> {
        let until = Instant::now() + OPEN_MAX;
        loop {
            let sealed = |org: &&OrgId| {
                let home = self.homes.of(**org);
                home.is_none_or(|home| home.region == self.regions.own)
            };
            let left: Vec<OrgId> = orgs.iter().filter(sealed).copied().collect();
            if left.is_empty() || Instant::now() >= until {
                return left;
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// Parts of what is handed over that are sealed at one time; `system` alone, and last.
fn waves(orgs: &[OrgId]) -> impl Iterator<Item = &[OrgId]> {
    let (others, system) = match orgs.split_last() {
        Some((last, others)) if *last == SYSTEM_ORG => orgs.split_at(others.len()),
        _ => (orgs, &[][..]),
    };
    others.chunks(WAVE).chain(system.chunks(WAVE))
}
