//! What has moved in this region since a follower was last told: it asks, and is answered when
//! there is something to tell.

use std::sync::Arc;
use std::time::Duration;

use proto::id::OrgId;
use proto::keys;
use proto::store::Op;
use proto::store::follow::World;
use proto::wire::replication::{Answer, HomeAt, Moved, Position};
use tokio::sync::watch;

use super::facts_hash;
use super::source::{Session, SourceError};
use crate::regions::Facts;

/// What news are told of.
#[derive(Clone, Default)]
pub(super) struct Seen {
    world: Arc<World>,
    homes: Facts,
}

impl Session<'_> {
    /// What has moved since the last time; waits for something to.
    pub(super) async fn news(&self, wait: Duration) -> Result<Answer, SourceError> {
        let mut reported = self.reported.lock().await;
        let found = tokio::time::timeout(wait, self.unreported(reported.as_ref())).await;
        let seen = match found {
            Ok(seen) => seen,
            Err(_) if reported.is_none() => return Err(SourceError::Blind),
            Err(_) => {
                return Ok(Answer::News {
                    whole: false,
                    moved: Vec::new(),
                    gone: Vec::new(),
                });
            }
        };
        let none = Seen::default();
        let old = reported.as_ref().unwrap_or(&none);
        let answer = Answer::News {
            whole: reported.is_none(),
            moved: moved(old, &seen).collect(),
            gone: gone(old, &seen).collect(),
        };
        let forgotten = gone(old, &seen).map(|org| keys::replicated(&self.region, org));
        self.write(forgotten.map(Op::Delete).collect()).await?;
        *reported = Some(seen);
        Ok(answer)
    }

    /// Waits for a state that holds news; without any before, for one that was seen at all.
    async fn unreported(&self, reported: Option<&Seen>) -> Seen {
        let (mut worlds, mut homes) = (self.source.worlds.clone(), self.source.homes.facts());
        loop {
            let seen = Seen {
                world: worlds.borrow_and_update().clone(),
                homes: homes.borrow_and_update().clone(),
            };
            let is_news = match reported {
                None => seen.world.revision.0 > 0,
                Some(old) => {
                    moved(old, &seen).next().is_some() || gone(old, &seen).next().is_some()
                }
            };
            if is_news {
                return seen;
            }
            tokio::select! {
                () = change(&mut worlds) => {}
                () = change(&mut homes) => {}
            }
        }
    }
}

/// Waits for a change; for ever where nobody is left to make one.
async fn change<T>(receiver: &mut watch::Receiver<T>) {
    if receiver.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Organisations whose version, home or facts are not those of `old`.
fn moved<'w>(old: &'w Seen, new: &'w Seen) -> impl Iterator<Item = Moved> + 'w {
    let changed = new.world.orgs.iter().filter(|(id, state)| {
        let before = old.world.orgs.get(*id);
        let same = before.is_some_and(|before| {
            Arc::ptr_eq(before, state)
                || (before.config.head == state.config.head && before.retired == state.retired)
        });
        !same || old.homes.get(*id) != new.homes.get(*id)
    });
    changed.map(|(id, state)| Moved {
        org: *id,
        position: Position::from(&state.config.head),
        facts: facts_hash(&state.retired),
        home: new.homes.get(id).map(HomeAt::from),
    })
}

/// Organisations of `old` that are no more.
fn gone<'w>(old: &'w Seen, new: &'w Seen) -> impl Iterator<Item = OrgId> + 'w {
    let ids = old.world.orgs.keys().copied();
    ids.filter(|id| !new.world.orgs.contains_key(id))
}
