//! The versions of one organisation: asked for and stored until there are no more.

use std::time::Duration;

use proto::home::{Home, Lies};
use proto::id::OrgId;
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
        connection: &mut Connection,
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
            let given = match connection.ask(&ask, Duration::ZERO).await? {
                Answer::Versions(versions) => Given::unsigned(versions),
                Answer::SignedVersions {
                    versions,
                    signatures,
                } => Given {
                    versions,
                    signatures,
                },
                Answer::Fork { newest } => {
                    warn!(
                        %org,
                        "the history of {org} here is not that of region {peer}, whose newest \
                         version is {} ({}); nothing of it is taken", newest.n, newest.hash
                    );
                    let here = after.unwrap_or(newest);
                    status.follow(&peer, |of| drop(of.diverged.insert(org, here)));
                    return Ok(None);
                }
                // Deleted since; the next news says so.
                Answer::Unknown => return Ok(None),
                Answer::NotHere => return Err(not_there(org, &peer).into()),
                _ => return Err(Broken::Protocol),
            };
            let more = given.versions.more;
            let stored = local
                .store(store, (connection, &self.regions), (guard, line), given)
                .await?;
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
}

fn not_there(org: OrgId, peer: &str) -> ApplyError {
    let why = format!(
        "region {peer} does not have what this region alone keeps of its newest version; promoted \
         by `--force` this region goes on from its own"
    );
    ApplyError::Refused { org, why }
}
