//! Trying to publish on the newest head, again and again until the deadline.

use std::sync::Arc;

use proto::tree::{Hash, Operation};
use tokio::time::Instant;

use super::attempt::Outcome;
use super::idempotency::{self, Recalled};
use super::recognising::{Attempt, tell_unsure};
use super::turn::Turn;
use super::{Publish, PublishError, Published, Publisher, wait};

impl Publisher {
    /// Tries until a version stands, or until the deadline.
    pub(super) async fn until_done(
        &self,
        (publish, operations): (&Publish, &Arc<[Operation]>),
        onto: Option<Hash>,
        turn: &mut Turn,
    ) -> Result<Published, PublishError> {
        // Versions whose fate the store did not tell.
        let mut unsure: Vec<Attempt> = Vec::new();
        let mut tries = 0u32;
        loop {
            let tried = self.try_once((publish, operations), (onto, &*turn), &mut unsure);
            let tried = tokio::select! {
                tried = tried => tried,
                never = turn.keep(&*self.store, publish.deadline) => match never {},
            };
            let passing = match tried {
                Ok(Outcome::Done(published)) => return Ok(published),
                // Either to somebody else, or to what an earlier version left to be done.
                Ok(Outcome::Lost) => match self.finish_retiring(publish.org).await {
                    Ok(()) => {
                        turn.lost(&*self.store, publish.org).await;
                        PublishError::Contended
                    }
                    Err(error) if error.may_pass() => error,
                    Err(error) => return Err(unsure_or(publish, &unsure, error)),
                },
                Err(error) if error.may_pass() => {
                    tracing::warn!(org = %publish.org, %error, "publishing failed; trying again");
                    error
                }
                Err(error) => return Err(unsure_or(publish, &unsure, error)),
            };
            // Whose turn it is need not get out of anybody's way.
            tries = if turn.is_held() {
                0
            } else {
                tries.saturating_add(1)
            };
            let next = Instant::now() + wait(tries);
            if next >= publish.deadline {
                return Err(unsure_or(publish, &unsure, passing));
            }
            tokio::time::sleep_until(next).await;
        }
    }

    /// One try on the newest head.
    async fn try_once(
        &self,
        (publish, operations): (&Publish, &Arc<[Operation]>),
        (onto, turn): (Option<Hash>, &Turn),
        unsure: &mut Vec<Attempt>,
    ) -> Result<Outcome, PublishError> {
        let parent = self.parent(publish.org).await?;
        if let Some(published) = self.recognise(unsure, &parent.config).await? {
            self.retire_now(publish.org).await;
            return Ok(Outcome::Done(published));
        }
        let mut free = None;
        if let Some(idempotency) = &publish.idempotency {
            match idempotency::recall(&*self.store, idempotency, &parent.config).await? {
                Recalled::Done(published) => return Ok(Outcome::Done(published)),
                Recalled::Free(compare) => free = Some(compare),
            }
        }
        if onto.is_some_and(|hash| hash != parent.config.head.hash) {
            return Err(PublishError::Moved);
        }
        self.refuse_regressed(publish.org, parent.config.head.n)?;
        self.refuse_full()?;
        let draft = self.judged(
            (&parent.config, Arc::clone(operations)),
            (&publish.author, publish.deadline),
        );
        let draft = draft.await?;
        let publish = (publish, free, turn);
        self.attempt(&parent, draft, publish, unsure).await
    }
}

/// While a version's fate is open, no other error tells the truth.
fn unsure_or(publish: &Publish, unsure: &[Attempt], error: PublishError) -> PublishError {
    tell_unsure(publish, unsure);
    match unsure.last() {
        Some(attempt) => {
            let head = &attempt.config.head;
            PublishError::OutcomeUnknown {
                n: head.n,
                hash: head.hash,
            }
        }
        None => error,
    }
}
