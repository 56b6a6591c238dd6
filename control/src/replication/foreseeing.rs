//! What a promotion would do, asked beforehand: every region is asked as for the promotion itself,
//! nothing is taken, and nothing moves.

use std::collections::BTreeSet;
use std::time::Duration;

use proto::id::OrgId;
use proto::tree::{Head, VersionRecord, is_kept_in, regions_of};
use proto::wire::replication::{Answer, Ask};

use super::apply::{ApplyError, Local};
use super::asking::Asked;
use super::completing::{Had, Unhad, Wanted, may_have, not_had};
use super::connection::Connection;
use super::left_to_home::has;
use super::promotion::{Best, PromoteError};
use super::{Broken, Replication};

/// What a promotion would lead to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Foreseen {
    /// Organisations whose home this region would be.
    pub promoted: Vec<Would>,
    /// Organisations that would be left where they are, and why.
    pub left: Vec<(OrgId, String)>,
    /// Regions that did not answer.
    pub not_asked: Vec<String>,
}

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Would {
    /// The organisation.
    pub org: OrgId,
    /// The region whose branch would be taken.
    pub from: String,
    /// Regions of which what they alone keep would not be here, and be frozen.
    pub frozen: Vec<String>,
}

impl Replication {
    /// Tells what [`Replication::promote`] would do now.
    ///
    /// # Errors
    /// As of that, where it would do nothing at all.
    pub async fn foresee(&self, force: bool) -> Result<Foreseen, PromoteError> {
        let (asked, not_asked) = self.ask_all(force).await?;
        let mut foreseen = Foreseen {
            not_asked,
            ..Foreseen::default()
        };
        for org in self.orgs_of(&asked).await? {
            let would = match self.answering_home(org, &asked, force).await {
                Ok(Some(_)) => continue,
                Ok(None) => self.foresee_one(org, &asked, Unhad::of(force)).await,
                Err(error) => Err(error),
            };
            match would {
                Ok(would) => foreseen.promoted.push(would),
                Err(Broken::Apply(error)) if error.is_of_one() => {
                    foreseen.left.push((org, error.to_string()));
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(foreseen)
    }

    async fn foresee_one(
        &self,
        org: OrgId,
        asked: &[Asked<'_>],
        unhad: Unhad,
    ) -> Result<Would, Broken> {
        let mut passed_over = BTreeSet::new();
        loop {
            let best = self.best(org, asked, &passed_over).await?;
            let at = best.0.at.filter(|_| unhad == Unhad::Freezes);
            match (self.foresee_from(org, asked, best, unhad).await, at) {
                // A branch that this region cannot go on from.
                (
                    Err(Broken::Apply(ApplyError::Refused { .. } | ApplyError::Moved(_))),
                    Some(at),
                ) => {
                    passed_over.insert(at);
                }
                (would, _) => return would,
            }
        }
    }

    async fn foresee_from(
        &self,
        org: OrgId,
        asked: &[Asked<'_>],
        (best, local): (Best, Local),
        unhad: Unhad,
    ) -> Result<Would, Broken> {
        let own = &self.regions.own;
        let (from, head) = match best.at.and_then(|at| asked.get(at)) {
            None => {
                let head = local.config().map(|config| config.head.clone());
                (own.clone(), head)
            }
            Some(of) => (of.peer.name.clone(), newest(&of.connection, org).await?),
        };
        let head = head.ok_or(ApplyError::Moved(org))?;
        let mut frozen = BTreeSet::new();
        for (set, root) in &head.roots {
            let had = self.would_have(org, (set, *root), asked).await?;
            let freezes = unhad == Unhad::Freezes && !is_kept_in(set, own);
            match had {
                Had::Added => {}
                Had::Nowhere if freezes => drop(frozen.insert(regions_of(set).to_owned())),
                had => {
                    let why = not_had((set, own), had, head.n);
                    return Err(ApplyError::Refused { org, why }.into());
                }
            }
        }
        let frozen = frozen.into_iter().collect();
        Ok(Would { org, from, frozen })
    }

    /// Whether a set would come from here or from a region that answers.
    async fn would_have(
        &self,
        org: OrgId,
        (set, root): Wanted<'_>,
        asked: &[Asked<'_>],
    ) -> Result<Had, Broken> {
        if self.has_root(org, root).await? {
            return Ok(Had::Added);
        }
        let mut had = Had::Nowhere;
        let asked = asked.iter().filter(|_| may_have(set, &self.regions.own));
        for Asked {
            peer, connection, ..
        } in asked
        {
            match has(connection, org, root).await? {
                true => return Ok(Had::Added),
                false if is_kept_in(set, &peer.name) => had = Had::Lost,
                false => {}
            }
        }
        Ok(had)
    }
}

/// The newest version of a region, where it gives one.
pub(super) async fn newest(connection: &Connection, org: OrgId) -> Result<Option<Head>, Broken> {
    let ask = Ask::Versions { org, after: None };
    let Answer::Versions(versions) = connection.ask(&ask, Duration::ZERO).await? else {
        return Ok(None);
    };
    let last = versions.versions.last();
    let record = last.and_then(|parts| serde_json::from_slice::<VersionRecord>(&parts.record).ok());
    Ok(record.map(|record| record.head))
}
