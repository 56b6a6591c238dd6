//! The versions of one organisation: asked for and stored until there are no more.

use std::time::Duration;

use proto::home::{Home, Lies};
use proto::id::OrgId;
use proto::store::{LeaseId, StoreError};
use proto::wire::replication::{Answer, Position};

use super::apply::{ApplyError, Guard, Local, Stored};
use super::aside::Parting;
use super::connection::Connection;
use super::secrets::are_many;
use super::verify::{self, Given};
use super::{Broken, Replication};

impl Replication {
    /// Takes every version on a line that the other region has; gives where it then stands. What
    /// lies here on another branch is set aside.
    pub(super) async fn sync(
        &self,
        connection: &Connection,
        guard: &Guard,
        org: OrgId,
        line: &Home,
    ) -> Result<Option<Position>, Broken> {
        let (store, status) = (&self.store, &self.status);
        let peer = connection.peer().to_owned();
        let mut newest = None;
        loop {
            let world = self.worlds.borrow().clone();
            let seen = newest.take().or_else(|| {
                let state = world.orgs.get(&org);
                state.map(|state| state.config.clone())
            });
            let local = Local::read(&**store, org, seen).await?;
            local.refuse_higher(line)?;
            let (local, answered) = self.ask_after(connection, guard, (line, local)).await?;
            let given = match answered {
                Answered::With(given) => given,
                Answered::Fork(newest) => {
                    let here = local.position().unwrap_or_else(|| newest.clone());
                    self.diverged(&peer, org, (here, newest));
                    return Ok(None);
                }
                // Deleted since; the next news says so.
                Answered::Unknown => return Ok(None),
                Answered::NotHere => return Err(not_there(org, &peer).into()),
            };
            let (more, retires) = (given.versions.more, are_many(&given.versions));
            if retires {
                self.retire(org).await?;
            }
            let lease = self.remembering(&given).await?;
            let regions = (connection, &*self.regions);
            let stored = local.store((store, lease), regions, (guard, line), given);
            let stored = self.unless_forgotten(stored.await).await?;
            if retires {
                self.retire(org).await?;
            }
            status.agrees(org);
            status.follow(&peer, |of| {
                of.applied += stored.count;
                let behind = of.behind.entry(org).or_default();
                *behind = behind.saturating_sub(stored.count);
            });
            let Stored {
                position, config, ..
            } = stored;
            if !more {
                return Ok(position);
            }
            newest = config;
        }
    }

    /// Asks for what follows the version here. What lies here on another branch than the line is
    /// left; also where only the region that is asked can tell, since a store that went back has
    /// given numbers of one epoch to two branches, and a higher epoch has been opened since.
    async fn ask_after(
        &self,
        connection: &Connection,
        guard: &Guard,
        (line, mut local): (&Home, Local),
    ) -> Result<(Local, Answered), Broken> {
        let store = &*self.store;
        let ask = async |local: &Local| {
            let ask = verify::ask(connection.protocol(), local.org, local.position());
            answered(connection.ask(&ask, Duration::ZERO).await?)
        };
        let is_aside = |at: &Position| line.lies(at) == Lies::Aside;
        if let Some(here) = local.position().filter(is_aside) {
            let (org, seen) = (local.org, local.config.clone());
            let parting = (line, &Parting::Opening);
            local = local.leave_branch(store, parting, guard).await?;
            if local.position().is_none() {
                // The branch is longer than what the store keeps. In an epoch that names two
                // branches the openings do not tell which archived versions are of this one.
                let common = self.common(connection.peer(), org, here.n).await;
                let common = unless_unreachable(org, connection.peer(), common)?;
                if let Some(common) = common.filter(|common| !is_aside(common)) {
                    local = Local::read(store, org, seen).await?;
                    let parting = (line, &Parting::After(Some(common)));
                    local = local.leave_branch(store, parting, guard).await?;
                }
            }
        }
        let answered = ask(&local).await?;
        let (Answered::Fork(newest), Some(here)) = (&answered, local.position()) else {
            return Ok((local, answered));
        };
        if newest.epoch <= here.epoch {
            return Ok((local, answered));
        }
        let common = self.common(connection.peer(), local.org, here.n).await?;
        let parting = (line, &Parting::After(common));
        local = local.leave_branch(store, parting, guard).await?;
        match ask(&local).await? {
            Answered::Fork(_) => Err(ApplyError::Moved(local.org).into()),
            answered => Ok((local, answered)),
        }
    }

    /// A lease for what is remembered of an answer's versions, if anything is.
    async fn remembering(&self, given: &Given) -> Result<Option<LeaseId>, StoreError> {
        match given.remembered.iter().all(Vec::is_empty) {
            true => Ok(None),
            false => self.publisher.remembering().await.map(Some),
        }
    }

    /// The same outcome; a lease that the store has no more is not used again.
    async fn unless_forgotten<T>(&self, stored: Result<T, ApplyError>) -> Result<T, ApplyError> {
        if let Err(ApplyError::Store(StoreError::LeaseNotFound(_))) = &stored {
            self.publisher.remembering_is_gone().await;
        }
        stored
    }
}

/// The same; nothing where the region could not be asked over a connection of its own, which keeps
/// nobody from going on by the openings alone.
fn unless_unreachable(
    org: OrgId,
    peer: &str,
    common: Result<Option<Position>, Broken>,
) -> Result<Option<Position>, Broken> {
    match common {
        Err(error @ (Broken::Link(_) | Broken::Protocol)) => {
            tracing::warn!(
                %org, peer, %error,
                "region {peer} could not be asked where the branch of {org} begins: {error}; \
                 archived versions of the branch may still be listed in its history"
            );
            Ok(None)
        }
        common => common,
    }
}

/// What another region said of an organisation's versions.
enum Answered {
    With(Given),
    Fork(Position),
    Unknown,
    NotHere,
}

fn answered(answer: Answer) -> Result<Answered, Broken> {
    Ok(match answer {
        Answer::Versions(versions) => Answered::With(Given::unsigned(versions)),
        Answer::SignedVersions {
            versions,
            signatures,
        } => Answered::With(Given {
            versions,
            signatures,
            remembered: Vec::new(),
        }),
        Answer::RememberedVersions {
            versions,
            signatures,
            remembered,
        } => Answered::With(Given {
            versions,
            signatures,
            remembered,
        }),
        Answer::Fork { newest } => Answered::Fork(newest),
        Answer::Unknown => Answered::Unknown,
        Answer::NotHere => Answered::NotHere,
        _ => return Err(Broken::Protocol),
    })
}

/// Why nothing is taken of an organisation whose home lacks what this region is to have of it.
pub(super) fn not_there(org: OrgId, peer: &str) -> ApplyError {
    let why = format!(
        "region {peer} does not have all of its newest version: what this region alone keeps of it \
         (promoted by `--force` this region goes on from its own), or what is damaged there, which \
         its log names"
    );
    ApplyError::Refused { org, why }
}
