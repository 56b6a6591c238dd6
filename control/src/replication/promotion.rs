//! The unplanned move: home cannot be reached, and a person makes this region home.
//!
//! Every region is asked first, and the longest branch of the highest epoch among those that
//! answer is taken. Stores that do not reach each other cannot fence each other: a home that is
//! only cut off goes on committing in its own region until it hears of the higher epoch, and what
//! it made is then set aside there.
//!
//! What other regions keep alone is copied first. Where no region that answers has it, this one is
//! not made home, unless a person forces it: then it is carried on by hash, unchanged, and frozen
//! until it comes.

use std::collections::BTreeSet;

use proto::home::{Home, Lies, Seal};
use proto::id::OrgId;
use proto::tree::regions_of;
use proto::version::Epoch;
use proto::wire::replication::Position;

use super::apply::{ApplyError, Local};
use super::asking::{Asked, counters};
use super::completing::{Unhad, Whole};
use super::takeover::ask_home;
use super::{Broken, Replication};
use crate::publish::homes;

/// Tries at an organisation that moves meanwhile.
pub(super) const TRIES: usize = 5;

/// What a promotion led to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Promotion {
    /// Organisations whose home this region now is.
    pub promoted: Vec<Promoted>,
    /// Organisations that were left where they are, and why: something of them would be lost, or
    /// may not be here.
    pub left: Vec<(OrgId, String)>,
    /// Regions that did not answer: what only they have is not in what counts now.
    pub not_asked: Vec<String>,
}

impl Promotion {
    /// The same, where anything was promoted; else why not, which is `nothing` where nothing stood
    /// against it.
    pub(super) fn unless_nothing(self, nothing: PromoteError) -> Result<Self, PromoteError> {
        if !self.promoted.is_empty() {
            return Ok(self);
        }
        let left = self.left.into_iter().map(|(_, why)| why);
        let left: Vec<String> = left.collect();
        Err(match left.is_empty() {
            true => nothing,
            false => PromoteError::Left(left),
        })
    }
}

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Promoted {
    /// The organisation.
    pub org: OrgId,
    /// The region whose branch was taken.
    pub from: String,
    /// The first version of the new epoch.
    pub first: Position,
    /// Regions of which what they alone keep is not here: it stays as it is until it comes.
    pub frozen: Vec<String>,
}

impl Promoted {
    pub(super) fn of(org: OrgId, from: String, first: Position, whole: &Whole) -> Self {
        let frozen = whole.frozen.iter().map(|set| regions_of(set).to_owned());
        let frozen: BTreeSet<String> = frozen.collect();
        Self {
            org,
            from,
            first,
            frozen: frozen.into_iter().collect(),
        }
    }
}

/// Why this region was not made home, or not of everything.
#[derive(Debug, thiserror::Error)]
pub enum PromoteError {
    /// Too few regions answered for a decision that nobody forced.
    #[error(
        "only {asked} of {all} regions can be asked, no majority; not asked: {}. `--force` does \
         without them", .not_asked.join(", ")
    )]
    NoMajority {
        /// Regions that answered, this one included.
        asked: usize,
        /// All regions.
        all: usize,
        /// Those that did not answer.
        not_asked: Vec<String>,
    },
    /// Everything has a home that answers.
    #[error(
        "every organisation has a home that answers ({}): hand over instead", .0.join(", ")
    )]
    Homed(Vec<String>),
    /// No region that answers has another history of anything.
    #[error(
        "of no organisation does a region that answers have another history than its home; where \
         home does not answer, promote without `--diverged`"
    )]
    Agreed,
    /// No organisation can have its home here.
    #[error("{}", .0.join("; "))]
    Left(Vec<String>),
    /// The exchange with the store or with a region failed.
    #[error("{0}")]
    Broken(String),
}

impl From<Broken> for PromoteError {
    fn from(error: Broken) -> Self {
        Self::Broken(error.to_string())
    }
}

/// Where the branch that counts is to be had.
pub(super) struct Best {
    /// Which of the regions that were asked; none for this one.
    pub at: Option<usize>,
    position: Position,
}

impl Replication {
    /// Makes this region home to every organisation whose home does not answer.
    ///
    /// # Errors
    /// [`PromoteError`]; what was promoted before it stays so, and a second call does the rest.
    pub async fn promote(&self, force: bool) -> Result<Promotion, PromoteError> {
        let (mut asked, not_asked) = self.ask_all(force).await?;
        self.promote_with(&mut asked, not_asked, force).await
    }

    async fn promote_with(
        &self,
        asked: &mut [Asked<'_>],
        not_asked: Vec<String>,
        force: bool,
    ) -> Result<Promotion, PromoteError> {
        let orgs = self.orgs_of(asked).await?;
        let mut promotion = Promotion {
            not_asked,
            ..Promotion::default()
        };
        let mut homed = BTreeSet::new();
        // In the order of the ids `system` comes first: it names the others.
        for org in orgs {
            let promoted = match self.answering_home(org, asked, force).await {
                Ok(Some(home)) => {
                    homed.insert(home);
                    continue;
                }
                Ok(None) => self.promote_one(org, asked, force).await,
                Err(Broken::Apply(error)) if error.is_of_one() => Err(error.into()),
                Err(error) => return Err(error.into()),
            };
            match promoted {
                Ok(promoted) => promotion.promoted.push(promoted),
                Err(error) => {
                    let why = error.to_string();
                    tracing::error!(%org, "this region is not made home of {org}: {why}");
                    promotion.left.push((org, why));
                }
            }
        }
        promotion.unless_nothing(PromoteError::Homed(homed.into_iter().collect()))
    }

    /// Everything that is here or in a region that was asked.
    pub(super) async fn orgs_of(&self, asked: &[Asked<'_>]) -> Result<BTreeSet<OrgId>, Broken> {
        let mut orgs: BTreeSet<OrgId> = self.orgs().await?.into_iter().collect();
        let there = asked.iter().flat_map(|asked| asked.standing.keys());
        orgs.extend(there.copied());
        Ok(orgs)
    }

    /// The region that is home by the highest fact anybody knows, if versions can be made there.
    pub(super) async fn answering_home(
        &self,
        org: OrgId,
        asked: &[Asked<'_>],
        force: bool,
    ) -> Result<Option<String>, Broken> {
        let own = &self.regions.own;
        let stored = homes::stored(&*self.store, org).await;
        let stored = stored.map_err(ApplyError::from)?;
        let mut highest: Option<(Epoch, String)> = None;
        for moved in asked.iter().filter_map(|asked| asked.standing.get(&org)) {
            if let Some(home) = &moved.home
                && highest
                    .as_ref()
                    .is_none_or(|(epoch, _)| home.epoch > *epoch)
            {
                highest = Some((home.epoch.clone(), home.region.clone()));
            }
        }
        if let Some((home, _)) = stored
            && highest
                .as_ref()
                .is_none_or(|(epoch, _)| home.epoch >= *epoch)
        {
            let answers = |seal: Seal| {
                let mut asked = asked.iter();
                asked
                    .any(|asked| asked.peer.name == seal.to)
                    .then_some(seal.to)
            };
            if home.region == *own {
                return Ok(match home.sealed {
                    None => Some(home.region),
                    // It opens in a moment, or is gone, or cannot and a person says so.
                    Some(seal) => answers(seal).filter(|_| !force),
                });
            }
            highest = Some((home.epoch, home.region));
        }
        let answers = |region: &String| asked.iter().any(|asked| asked.peer.name == *region);
        let home = highest.map(|(_, region)| region).filter(answers);
        match home {
            // It goes on from what it has, where a person says so.
            Some(home) if force && self.is_given_none(org, &home, asked).await? => Ok(None),
            home => Ok(home),
        }
    }

    async fn promote_one(
        &self,
        org: OrgId,
        asked: &mut [Asked<'_>],
        force: bool,
    ) -> Result<Promoted, Broken> {
        let (mut tries, mut passed_over) = (0, BTreeSet::new());
        // What is here may lie aside of the line of a branch that is then passed over.
        let before = Local::read(&*self.store, org, None).await?.home().cloned();
        loop {
            tries += 1;
            let (best, local) = self.best(org, asked, &passed_over).await?;
            let lines = [local.home().cloned(), before.clone()];
            match self.promote_from((org, force), asked, (&best, lines)).await {
                Err(Broken::Apply(ApplyError::Moved(_))) if tries < TRIES => {}
                // Longer, and nobody can go on from it: a person says to go on without.
                Err(Broken::Apply(ApplyError::Refused { why, .. }))
                    if force && best.at.is_some() =>
                {
                    tracing::warn!(%org, "a longer branch is passed over: {why}");
                    passed_over.extend(best.at);
                }
                promoted => return promoted,
            }
        }
    }

    /// Whose branch counts, and what is here.
    pub(super) async fn best(
        &self,
        org: OrgId,
        asked: &[Asked<'_>],
        passed_over: &BTreeSet<usize>,
    ) -> Result<(Best, Local), Broken> {
        let local = Local::read(&*self.store, org, None).await?;
        let standings = asked.iter().enumerate().map(|(at, asked)| {
            let moved = asked.standing.get(&org);
            moved.filter(|_| !passed_over.contains(&at))
        });
        let positions: Vec<_> = standings
            .map(|moved| moved.map(|moved| moved.position.clone()))
            .collect();
        let best = best(local.position(), &positions);
        Ok((best.ok_or(ApplyError::Moved(org))?, local))
    }

    async fn promote_from(
        &self,
        (org, force): (OrgId, bool),
        asked: &mut [Asked<'_>],
        (best, lines): (&Best, [Option<Home>; 2]),
    ) -> Result<Promoted, Broken> {
        let known = counters(org, lines[0].as_ref(), asked);
        let (line, from) = match best.at {
            None => {
                let first = || Home::first(best.position.epoch.clone(), &self.regions.own);
                let is_on = |line: &Home| line.lies(&best.position) != Lies::Aside;
                let line = match lines.iter().all(Option::is_none) {
                    true => first(),
                    false => lines
                        .into_iter()
                        .flatten()
                        .find(is_on)
                        .ok_or(ApplyError::Moved(org))?,
                };
                (line, self.regions.own.clone())
            }
            Some(at) => {
                let source = &mut asked[at];
                let connection = &source.connection;
                let told = ask_home(connection, org).await?.ok_or(Broken::Protocol)?;
                let fact = (org, told.clone());
                let known = self.adopt(connection.peer(), Vec::new(), fact).await?;
                let line = known.unwrap_or(told);
                let mut from = source.peer.name.clone();
                match self.sync(connection, &None, org, &line).await {
                    // What nobody can show to have made is no branch that could count.
                    Err(Broken::Apply(error @ ApplyError::Unverified { .. })) => {
                        let region = &source.peer.name;
                        tracing::error!(%org, region, "region {region} is passed over: {error}");
                        source.standing.remove(&org);
                        return Err(ApplyError::Moved(org).into());
                    }
                    // Of two histories of one epoch that of the promoted region counts.
                    synced => {
                        if synced?.is_none() {
                            from.clone_from(&self.regions.own);
                        }
                    }
                }
                (line, from)
            }
        };
        let answering = asked.iter().map(|asked| &asked.connection);
        let answering: Vec<_> = answering.collect();
        let whole = self.complete(&answering, org, Unhad::of(force)).await?;
        let reached = Local::read(&*self.store, org, None).await?.position();
        let base = reached.ok_or(ApplyError::Moved(org))?;
        let first = self
            .open(&None, org, &line, (&base, &known, &whole), "promotion")
            .await?;
        Ok(Promoted::of(org, from, first, &whole))
    }
}

/// The longest branch of the highest epoch.
fn best(own: Option<Position>, others: &[Option<Position>]) -> Option<Best> {
    let others = others.iter().enumerate();
    let others = others.filter_map(|(at, position)| Some((Some(at), position.clone()?)));
    let own = own.map(|position| (None, position));
    let mut best: Option<Best> = None;
    // Of equals the first one, which is this region.
    for (at, position) in own.into_iter().chain(others) {
        let length = |position: &Position| (position.epoch.clone(), position.n);
        if best
            .as_ref()
            .is_none_or(|best| length(&position) > length(&best.position))
        {
            best = Some(Best { at, position });
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::tree::Hash;

    #[test]
    fn the_longest_branch_of_the_highest_epoch_counts() {
        let at = |counter, region: &str, n| {
            let epoch = Epoch {
                counter,
                region: region.into(),
            };
            let hash = Hash::of(b"x");
            Some(Position { epoch, n, hash })
        };
        for (own, others, expected) in [
            (at(1, "us", 9), vec![at(1, "us", 10), None], Some(Some(0))),
            (at(1, "us", 9), vec![at(1, "us", 9)], Some(None)),
            (at(1, "us", 99), vec![None, at(2, "ap", 3)], Some(Some(1))),
            (at(2, "eu", 3), vec![at(2, "ap", 9)], Some(None)),
            (None, vec![None, at(1, "us", 1)], Some(Some(1))),
            (None, vec![None], None),
        ] {
            let found = best(own, &others).map(|best| best.at);
            assert_eq!(found, expected);
        }
    }
}
