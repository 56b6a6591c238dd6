//! Sealed secrets that came after the version which names them: nodes of a region that can open
//! one seal it for a region that was added later, and write that to their own region's store.
//!
//! So every region asks each other one, on the connection that it follows by, for the values that
//! it should have and does not: its own, and as far as it keeps those of others, since it may
//! become home. What nobody made yet is asked for again, less and less often.

use std::time::{Duration, Instant};

use proto::credential::Credential;
use proto::id::OrgId;
use proto::keys;
use proto::seal::{Sealed, is_region_name};
use proto::store::Op;
use proto::store::follow::OrgState;
use proto::store::lacking::{self, Lacking, SealedName};
use proto::store::load::LoadError;
use proto::wire::replication::{Answer, Ask, PROTOCOL_SEALED_FOR, SEALED_MAX};
use tracing::{info, warn};

use super::apply::Guard;
use super::connection::Connection;
use super::source::{Session, SourceError, is_seal_id};
use super::{Broken, Replication};

/// First and longest wait until what is lacking is asked for again.
const WAIT_MIN: Duration = Duration::from_secs(2);
const WAIT_MAX: Duration = Duration::from_secs(30);
/// How often everything is looked for again, in case the store lost what it had.
const LOOK_AGAIN: Duration = Duration::from_secs(600);

/// What is asked of one region, and when.
pub(super) struct Wanting {
    lacking: Lacking,
    begun: Instant,
    due: Instant,
    wait: Duration,
    /// How much was lacking.
    count: usize,
}

impl Default for Wanting {
    fn default() -> Self {
        let now = Instant::now();
        Self {
            lacking: Lacking::default(),
            begun: now,
            due: now,
            wait: WAIT_MIN,
            count: 0,
        }
    }
}

impl Wanting {
    /// Settles when to ask again: soon while something comes or more is lacking than was.
    fn again(&mut self, (count, came): (usize, usize), now: Instant) {
        let stuck = count > 0 && came == 0 && count <= self.count;
        self.wait = match stuck {
            true => (self.wait * 2).min(WAIT_MAX),
            false => WAIT_MIN,
        };
        self.count = count - came;
        self.due = now + self.wait;
    }
}

impl Replication {
    /// Asks a region for the values that are lacking here, when it is time to.
    pub(super) async fn fetch_sealed(
        &self,
        connection: &Connection,
        guard: &Guard,
        wanting: &mut Wanting,
    ) -> Result<(), Broken> {
        let now = Instant::now();
        if connection.protocol() < PROTOCOL_SEALED_FOR || now < wanting.due {
            return Ok(());
        }
        if now.duration_since(wanting.begun) > LOOK_AGAIN {
            (wanting.lacking, wanting.begun) = (Lacking::default(), now);
        }
        let world = self.worlds.borrow().clone();
        wanting.lacking.retain(|org| world.orgs.contains_key(&org));
        let (mut count, mut came) = (0, 0);
        for (org, state) in &world.orgs {
            let regions = self.kept_regions(state);
            let among = |credential: &Credential| {
                let is_for = |region: &&str| credential.is_for_region(region);
                regions.iter().copied().filter(is_for).collect()
            };
            let look = wanting.lacking.look(&*self.store, &state.config, among);
            let names: Vec<SealedName> = look.await?.iter().cloned().collect();
            count += names.len();
            let stored = self.fetch_names(connection, guard, state, names).await?;
            came += stored;
            if stored > 0 {
                let from = connection.peer();
                info!(%org, stored, "{stored} secrets that were sealed later came from {from}");
            }
        }
        wanting.again((count, came), Instant::now());
        Ok(())
    }

    /// The regions whose values are kept here of an organisation.
    pub(super) fn kept_regions(&self, state: &OrgState) -> Vec<&str> {
        let org = state.config.org;
        let all = !state.config.head.is_cut() || self.homes.region_of(org) == self.regions.own;
        self.regions
            .names()
            .take(if all { usize::MAX } else { 1 })
            .collect()
    }

    /// Asks for values by name and stores those that come; tells how many.
    async fn fetch_names(
        &self,
        connection: &Connection,
        guard: &Guard,
        state: &OrgState,
        mut names: Vec<SealedName>,
    ) -> Result<usize, Broken> {
        let org = state.config.org;
        let mut stored = 0;
        while !names.is_empty() {
            let part = &names[..names.len().min(SEALED_MAX)];
            let named =
                |name: &SealedName| (name.credential, name.seal_id.clone(), name.region.clone());
            let names_asked = part.iter().map(named).collect();
            let ask = Ask::SealedFor {
                org,
                names: names_asked,
            };
            let Answer::Sealed(found) = connection.ask(&ask, Duration::ZERO).await? else {
                return Err(Broken::Protocol);
            };
            if found.is_empty() {
                return Err(Broken::Protocol);
            }
            let found: Vec<_> = names
                .drain(..found.len().min(part.len()))
                .zip(found)
                .collect();
            let mut ops = Vec::new();
            for (name, values) in found {
                for (_, value) in values
                    .into_iter()
                    .filter(|(region, _)| *region == name.region)
                {
                    match is_of(&value, &name) {
                        true => ops.push(Op::put(name.key(org), value)),
                        false => warn!(
                            %org,
                            "region {} gave what is no secret of {} for {}",
                            connection.peer(), name.credential, name.region
                        ),
                    }
                }
            }
            stored += self.store_values(guard, state, ops).await?;
        }
        Ok(stored)
    }

    /// Stores values while the version that asked for them is in force; tells how many.
    async fn store_values(
        &self,
        guard: &Guard,
        state: &OrgState,
        ops: Vec<Op>,
    ) -> Result<usize, Broken> {
        match lacking::fill(&*self.store, &state.config, guard.as_slice(), ops).await {
            Err(LoadError::Store(error)) => Err(error.into()),
            // Following it tells what is wrong with its head.
            Err(_) => Ok(0),
            Ok(stored) => Ok(stored),
        }
    }
}

/// Whether a value is of the region that it is said to be of.
fn is_of(value: &[u8], name: &SealedName) -> bool {
    let sealed = serde_json::from_slice::<Sealed>(value);
    sealed.is_ok_and(|sealed| sealed.region == name.region)
}

impl Session<'_> {
    /// The values of single regions, as many as fit.
    pub(super) async fn sealed_for(
        &self,
        org: OrgId,
        names: Vec<(proto::id::CredentialId, String, String)>,
    ) -> Result<Answer, SourceError> {
        // They become parts of keys.
        if !names
            .iter()
            .all(|(_, seal, region)| is_seal_id(seal) && is_region_name(region))
        {
            return Err(SourceError::TooMuch);
        }
        let key = |(id, seal, region): &(_, String, String)| keys::secret(org, *id, seal, region);
        let values = self.values(names.iter().map(key).collect()).await?;
        let found = names
            .into_iter()
            .zip(values)
            .map(|((_, _, region), value)| {
                let some = (!value.is_empty()).then_some((region, value));
                some.into_iter().collect()
            });
        Ok(Answer::Sealed(found.collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_come_is_asked_for_less_and_less() {
        let now = Instant::now();
        let mut wanting = Wanting::default();
        let mut waits = |count, came| {
            wanting.again((count, came), now);
            (wanting.due - now).as_secs()
        };
        assert_eq!(waits(0, 0), 2, "nothing is lacking");
        let stuck: Vec<u64> = (0..7).map(|_| waits(3, 0)).collect();
        assert_eq!(stuck, [2, 4, 8, 16, 30, 30, 30]);
        assert_eq!(waits(4, 0), 2, "one more");
        assert_eq!(waits(4, 0), 4);
        assert_eq!(waits(4, 2), 2, "some came");
        assert_eq!(waits(2, 0), 4, "the others did not");
    }
}
