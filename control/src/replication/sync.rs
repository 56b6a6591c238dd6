//! The versions of one organisation: asked for and stored until there are no more.

use std::time::Duration;

use proto::home::{Home, Lies};
use proto::id::OrgId;
use proto::store::{LeaseId, StoreError};
use proto::wire::replication::{Answer, Position};
use tracing::warn;

use super::apply::{ApplyError, Guard, Local, Stored};
use super::connection::Connection;
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
            let mut local = Local::read(&**store, org, seen).await?;
            local.refuse_higher(line)?;
            let mut after = local.position();
            if after
                .as_ref()
                .is_some_and(|at| line.lies(at) == Lies::Aside)
            {
                local = local.leave_branch(&**store, line, guard).await?;
                after = local.position();
            }
            let ask = verify::ask(connection.protocol(), org, after.clone());
            let answer = connection.ask(&ask, Duration::ZERO).await?;
            let given = match answered(answer)? {
                Answered::With(given) => given,
                Answered::Fork(newest) => {
                    let here = after.unwrap_or_else(|| newest.clone());
                    status.follow(&peer, |of| {
                        if of.diverged.insert(org, here).is_none() {
                            let Position { n, hash, .. } = newest;
                            warn!(
                                %org,
                                "the history of {org} here is not that of region {peer}, whose \
                                 newest version is {n} ({hash}); nothing of it is taken"
                            );
                        }
                    });
                    return Ok(None);
                }
                // Deleted since; the next news says so.
                Answered::Unknown => return Ok(None),
                Answered::NotHere => return Err(not_there(org, &peer).into()),
            };
            let more = given.versions.more;
            let lease = self.remembering(&given).await?;
            let regions = (connection, &*self.regions);
            let stored = local.store((store, lease), regions, (guard, line), given);
            let stored = self.unless_forgotten(stored.await).await?;
            status.follow(&peer, |of| {
                of.diverged.remove(&org);
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

fn not_there(org: OrgId, peer: &str) -> ApplyError {
    let why = format!(
        "region {peer} does not have all of its newest version: what this region alone keeps of it \
         (promoted by `--force` this region goes on from its own), or what is damaged there, which \
         its log names"
    );
    ApplyError::Refused { org, why }
}
