//! Copies of another region's secrets, which this one keeps since it may become home: when that
//! region seals them anew (`keyring rotate`), they are taken from it again, so that its older key
//! can go. Until then what would come from here, should its store be lost, could not be opened.
//!
//! Which key is the newest is said by the file with the region's keys that the settings name, and
//! the values come from that region alone, so nobody else can replace them.

use std::time::{Duration, Instant};

use proto::id::OrgId;
use proto::keys;
use proto::seal::Sealed;
use proto::store::follow::OrgState;
use proto::store::lacking::SealedName;
use proto::store::{Op, Revision, StoreError, load, over};
use proto::wire::replication::{Answer, Ask, PROTOCOL_SEALED_FOR, SEALED_MAX};
use tracing::info;

use super::apply::Guard;
use super::connection::Connection;
use super::{Broken, Replication};

/// How often the copies are looked through.
const LOOK: Duration = Duration::from_secs(600);
/// The same, while there are some of another key.
const LOOK_SOON: Duration = Duration::from_secs(30);

/// When the copies of one region are looked through again.
pub(super) struct Rotated {
    due: Instant,
}

impl Default for Rotated {
    fn default() -> Self {
        Self {
            due: Instant::now(),
        }
    }
}

/// A copy that is sealed to another key.
type Other = (SealedName, Revision);

impl Replication {
    /// Asks a region for those of its secrets whose copies are sealed to another key than its
    /// newest, when it is time to.
    pub(super) async fn fetch_rotated(
        &self,
        connection: &Connection,
        guard: &Guard,
        rotated: &mut Rotated,
    ) -> Result<(), Broken> {
        let peer = self.regions.peer(connection.peer());
        let Some(peer) = peer.filter(|_| connection.protocol() >= PROTOCOL_SEALED_FOR) else {
            return Ok(());
        };
        if Instant::now() < rotated.due {
            return Ok(());
        }
        let (newest, mut left) = (&peer.public.key_id, 0);
        let world = self.worlds.borrow().clone();
        for (org, state) in &world.orgs {
            if !self.kept_regions(state).contains(&peer.name.as_str()) {
                continue;
            }
            let others = self.others(*org, state, (&peer.name, newest)).await?;
            let (count, asked) = (others.len() as u64, (*org, newest.as_str()));
            let taken = self.take_rotated(connection, guard, asked, others).await?;
            left += count - taken;
            if taken > 0 {
                let from = &peer.name;
                info!(%org, taken, "{taken} secrets that region {from} sealed anew came from it");
            }
        }
        rotated.due = Instant::now() + if left > 0 { LOOK_SOON } else { LOOK };
        self.status
            .follow(&peer.name, |of| of.sealed_to_other_keys = Some(left));
        Ok(())
    }

    /// The copies of a region's secrets that its credentials name, and that are of another key.
    async fn others(
        &self,
        org: OrgId,
        state: &OrgState,
        (of, newest): (&str, &str),
    ) -> Result<Vec<Other>, StoreError> {
        let mut others = Vec::new();
        load::list(&*self.store, &keys::secrets(org), None, |pair| {
            let named = keys::parse_secret(&pair.key).filter(|(_, _, region)| *region == of);
            let Some((credential, seal_id, _)) = named else {
                return;
            };
            let stored = state.config.credential(credential);
            let is_named = stored
                .and_then(|stored| stored.seal_id())
                .map(String::as_str)
                == Some(seal_id);
            let sealed = serde_json::from_slice::<Sealed>(&pair.value);
            if is_named && sealed.is_ok_and(|sealed| sealed.key_id != newest) {
                let name = SealedName {
                    credential,
                    seal_id: seal_id.to_owned(),
                    region: of.to_owned(),
                };
                others.push((name, pair.mod_revision));
            }
        })
        .await?;
        Ok(others)
    }

    /// Asks for values by name, and writes those of the newest key over the copies; how many.
    async fn take_rotated(
        &self,
        connection: &Connection,
        guard: &Guard,
        (org, newest): (OrgId, &str),
        mut others: Vec<Other>,
    ) -> Result<u64, Broken> {
        let mut taken = 0;
        while !others.is_empty() {
            let asked = others
                .iter()
                .take(SEALED_MAX)
                .map(|(name, _)| (name.credential, name.seal_id.clone(), name.region.clone()));
            let names = asked.collect();
            let ask = Ask::SealedFor { org, names };
            let Answer::Sealed(found) = connection.ask(&ask, Duration::ZERO).await? else {
                return Err(Broken::Protocol);
            };
            if found.is_empty() {
                return Err(Broken::Protocol);
            }
            let count = found.len().min(SEALED_MAX).min(others.len());
            let answered = others.drain(..count).zip(found);
            let newer = answered.filter_map(|((name, revision), values)| {
                let mut values = values.into_iter().map(|(_, value)| value);
                let value = values.find(|value| is_of((&name.region, newest), value))?;
                Some((Op::put(name.key(org), value), revision))
            });
            let came = over::put_over(&*self.store, guard.as_slice(), newer.collect()).await?;
            taken += came;
            // It has not sealed them anew yet.
            if came == 0 {
                break;
            }
        }
        Ok(taken)
    }
}

/// Whether a value is of a region, and of this key.
fn is_of((region, key_id): (&str, &str), value: &[u8]) -> bool {
    let sealed = serde_json::from_slice::<Sealed>(value);
    sealed.is_ok_and(|sealed| sealed.region == region && sealed.key_id == key_id)
}
