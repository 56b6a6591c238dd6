//! What is asked for, judged on the version that it is to follow.
//!
//! It may take seconds: thousands of objects, and patterns that are compiled. So it is done on
//! threads that may block, by a few at a time, and the threads that serve calls go on. What is only
//! tried waits for others that are only tried: it never keeps a publish waiting.

use std::sync::Arc;

use jiff::Timestamp;
use proto::tree::{Context, Draft, Operation, OrgConfig, apply};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use super::{Author, PublishError, Publisher, retiring};
use crate::audit;

/// Publishes of all organisations that are judged at one time.
const PUBLISHES_MAX: usize = 4;
/// Drafts that are.
const DRAFTS_MAX: usize = 2;

/// Places for what is judged.
pub(super) struct Judging {
    publishes: Arc<Semaphore>,
    drafts: Arc<Semaphore>,
}

impl Default for Judging {
    fn default() -> Self {
        Self {
            publishes: Arc::new(Semaphore::new(PUBLISHES_MAX)),
            drafts: Arc::new(Semaphore::new(DRAFTS_MAX)),
        }
    }
}

type Asked<'a> = (&'a Arc<OrgConfig>, Arc<[Operation]>);

impl Publisher {
    /// The draft of what is to be published, and when it was judged.
    ///
    /// # Errors
    /// What stands against it; or no place became free until the deadline.
    pub(super) async fn judged(
        &self,
        (parent, operations): Asked<'_>,
        by: (&Author, Instant),
    ) -> Result<(Draft, Timestamp), PublishError> {
        let asked = (parent, operations);
        self.judged_at(&self.judging.publishes, asked, by).await
    }

    /// The same of what is only tried.
    ///
    /// # Errors
    /// As for [`Publisher::judged`].
    pub(super) async fn tried(
        &self,
        asked: Asked<'_>,
        by: (&Author, Instant),
    ) -> Result<Draft, PublishError> {
        let parent = Arc::clone(asked.0);
        let (draft, now) = self.judged_at(&self.judging.drafts, asked, by).await?;
        retiring::check(&draft, now)?;
        if draft.changed.is_empty() {
            return Ok(draft);
        }
        let salt = audit::salt(&*self.store, parent.org, self.region()).await?;
        let packing = move || draft.check_size(&parent, salt).map(|()| draft);
        Ok(unblocked(packing).await??)
    }

    async fn judged_at(
        &self,
        places: &Arc<Semaphore>,
        (parent, operations): Asked<'_>,
        (author, until): (&Author, Instant),
    ) -> Result<(Draft, Timestamp), PublishError> {
        let place = timeout_at(until, Arc::clone(places).acquire_owned()).await;
        let Ok(Ok(place)) = place else {
            return Err(PublishError::Contended);
        };
        let (parent, policy) = (Arc::clone(parent), Arc::clone(&self.policy));
        let (now, role) = ((self.clock)(), author.role);
        let draft = unblocked(move || {
            // Kept until it is done, also where nobody waits for it any more.
            let _place = place;
            let policy = &*policy;
            apply(&parent, &operations, &Context { now, policy, role })
        });
        Ok((draft.await??, now))
    }
}

/// What takes long, on a thread that may block.
async fn unblocked<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, PublishError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => Ok(done),
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The process ends.
            Err(_) => Err(PublishError::Contended),
        },
    }
}
