//! The first version of `system`: the organisations `system` and `default`.

use std::sync::Arc;

use proto::id::OrgId;
use proto::keys;
use proto::object::{Body, ObjectId};
use proto::org::{DEFAULT, Org, Role, SYSTEM};
use proto::store::Compare;
use proto::tree::{Operation, OrgConfig, SYSTEM_ORG};
use tokio::time::Instant;

use super::attempt::Outcome;
use super::cache::Parent;
use super::recognising::{Attempt, tell_unsure};
use super::turn::Turn;
use super::{Author, Publish, PublishError, Publisher, wait};
use crate::audit::stream;

impl Publisher {
    /// Creates `system` and `default` when the store is fresh; does nothing otherwise. Several
    /// controls may start at once: the compare on `system`'s head lets one of them do it.
    ///
    /// Answers whether this call did it.
    ///
    /// # Errors
    /// The store did not answer until the deadline, or its content cannot be read.
    pub async fn bootstrap(&self, deadline: Instant) -> Result<bool, PublishError> {
        let create = |id: OrgId, slug: &str| Operation::Create {
            id: ObjectId::Org(id),
            body: Body::Org(Org {
                slug: slug.to_owned(),
                name: String::new(),
                default_limits: None,
            }),
            secret: None,
        };
        let publish = Publish {
            org: SYSTEM_ORG,
            operations: vec![create(SYSTEM_ORG, SYSTEM), create(OrgId::new(), DEFAULT)],
            author: Author {
                name: "bootstrap".to_owned(),
                role: Role::Owner,
                source: None,
            },
            deadline,
            idempotency: None,
        };
        let parent = Parent {
            config: Arc::new(OrgConfig::genesis(SYSTEM_ORG, self.epoch.clone())),
            unchanged: Compare::Absent(keys::head(SYSTEM_ORG)),
        };
        let operations: Arc<[Operation]> = publish.operations.clone().into();
        let mut unsure: Vec<Attempt> = Vec::new();
        let mut tries = 0u32;
        loop {
            let error = match self.load(SYSTEM_ORG).await {
                Ok(system) => {
                    let hash = system.head.hash;
                    let mut ours = unsure.iter();
                    let ours = ours.find(|attempt| attempt.config.head.hash == hash);
                    if let Some(attempt) = ours {
                        stream::version(SYSTEM_ORG, &publish.author, &attempt.stands());
                    }
                    return Ok(ours.is_some());
                }
                Err(PublishError::OrgUnknown(_)) => {
                    let by = (&publish.author, deadline);
                    let draft = self.judged((&parent.config, operations.clone()), by);
                    let tried = async {
                        let draft = draft.await?;
                        let by = (&publish, None, &Turn::default());
                        self.attempt(&parent, draft, by, &mut unsure).await
                    };
                    match tried.await {
                        Ok(Outcome::Done(published)) => {
                            stream::version(SYSTEM_ORG, &publish.author, &published);
                            return Ok(true);
                        }
                        Ok(Outcome::Lost) => PublishError::Contended,
                        Err(error) => error,
                    }
                }
                Err(error) => error,
            };
            tries = tries.saturating_add(1);
            let next = Instant::now() + wait(tries);
            if !error.may_pass() || next >= deadline {
                tell_unsure(&publish, &unsure);
                return Err(error);
            }
            tokio::time::sleep_until(next).await;
        }
    }
}
