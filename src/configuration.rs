//! The configuration side of a process that publishes: the publisher, the followed world, the
//! first token.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use control::publish::{Publisher, PublisherOptions};
use jiff::Timestamp;
use proto::health::Health;
use proto::id::OrgId;
use proto::org::DEFAULT;
use proto::seal::PublicKeyring;
use proto::store::Store;
use proto::store::follow::{Follower, World};
use proto::version::Epoch;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use zeroize::Zeroizing;

use crate::bootstrap::{self, AdminToken};
use crate::permissions;
use crate::settings::Settings;

/// Longest wait for the store and the first configuration at a start.
pub const START_MAX: Duration = Duration::from_secs(10);

/// What publishes, and what is published.
pub struct Configuration {
    /// Writes configuration.
    pub publisher: Arc<Publisher>,
    /// The configuration as the store has it.
    pub worlds: watch::Receiver<Arc<World>>,
    /// Whether the store is reached, and whether this process ends.
    pub health: Health,
    /// The first token.
    pub token: AdminToken,
    /// Where a made one is kept.
    pub token_file: PathBuf,
    /// The organisation `default`.
    pub org: OrgId,
}

impl Configuration {
    /// Makes sure of organisations and token, and follows the store from here on.
    ///
    /// # Errors
    /// The store cannot be reached in time, or refuses.
    pub async fn open(
        settings: &Settings,
        store: Arc<dyn Store>,
        keys: PublicKeyring,
        given: Option<Zeroizing<String>>,
        background: &Runtime,
    ) -> anyhow::Result<Self> {
        let publisher = Arc::new(Publisher::new(PublisherOptions {
            store: store.clone(),
            public: keys.public,
            digest_key: keys.digest_key,
            policy: permissions::policy(settings),
            epoch: Epoch {
                counter: 1,
                region: settings.region.clone(),
            },
            clock: Arc::new(Timestamp::now),
        }));
        let deadline = tokio::time::Instant::now() + START_MAX;
        publisher
            .bootstrap(deadline)
            .await
            .context("preparing the store")?;
        let token_file = settings.data_dir.join("admin-token");
        let token = bootstrap::admin_token(&publisher, given, &token_file).await?;
        let (follower, mut worlds) = Follower::new(store, settings.region.clone());
        let health = follower.health();
        background.spawn(follower.run());
        let org = default_org(&mut worlds).await?;
        Ok(Self {
            publisher,
            worlds,
            health,
            token,
            token_file,
            org,
        })
    }

    /// Waits until the newest version of the organisation `default` has been seen.
    ///
    /// # Errors
    /// It did not appear in time.
    pub async fn caught_up(&mut self) -> anyhow::Result<()> {
        let (org, newest) = (self.org, self.publisher.load(self.org).await?.head.n);
        let found = self.worlds.wait_for(|world| {
            let state = world.orgs.get(&org);
            state.is_some_and(|state| state.config.head.n >= newest)
        });
        tokio::time::timeout(START_MAX, found)
            .await
            .context("the newest configuration did not appear in time")??;
        Ok(())
    }
}

/// The id of the organisation `default`, once the follower has seen it.
async fn default_org(worlds: &mut watch::Receiver<Arc<World>>) -> anyhow::Result<OrgId> {
    let found = worlds.wait_for(|world| world.org(DEFAULT).is_some());
    let world = tokio::time::timeout(START_MAX, found)
        .await
        .context("the store's configuration did not appear in time")??;
    let org = world
        .org(DEFAULT)
        .context("organisation `default` is missing")?;
    Ok(org.config.org)
}
