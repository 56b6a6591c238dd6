//! The configuration side of a process that publishes: the publisher, the followed world, the
//! first token.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use control::publish::{Publisher, PublisherOptions};
use control::regions::Regions;
use jiff::Timestamp;
use proto::health::Health;
use proto::id::OrgId;
use proto::org::DEFAULT;
use proto::policy::Policy;
use proto::seal::PublicKeyring;
use proto::store::Store;
use proto::store::follow::{Follower, World};
use proto::version::Epoch;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use zeroize::Zeroizing;

use crate::bootstrap::{self, AdminToken};
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
    /// The first token, and where a made one is kept; absent in a region that follows, where home's
    /// tokens hold.
    pub token: Option<(AdminToken, PathBuf)>,
}

impl Configuration {
    /// Makes sure of organisations and token, and follows the store from here on. In a region that
    /// follows another, both come from there.
    ///
    /// # Errors
    /// The store cannot be reached in time, or refuses.
    pub async fn open(
        settings: &Settings,
        store: Arc<dyn Store>,
        keys: PublicKeyring,
        given: Option<Zeroizing<String>>,
        regions: Option<&Regions>,
        background: &Runtime,
    ) -> anyhow::Result<Self> {
        if let Some(regions) = regions {
            return Self::of_region(settings, store, keys, given, regions, background).await;
        }
        let publisher = Arc::new(publisher(settings, store.clone(), keys));
        Self::begin(settings, store, publisher, given, background).await
    }

    async fn of_region(
        settings: &Settings,
        store: Arc<dyn Store>,
        keys: PublicKeyring,
        given: Option<Zeroizing<String>>,
        regions: &Regions,
        background: &Runtime,
    ) -> anyhow::Result<Self> {
        let others = regions.peers.iter().map(|peer| peer.public.clone());
        let publisher = publisher(settings, store.clone(), keys).with_regions(others.collect());
        let publisher = Arc::new(publisher);
        if regions.is_home() {
            return Self::begin(settings, store, publisher, given, background).await;
        }
        if given.is_some() {
            tracing::warn!(
                "the given admin token is not set: tokens come from home region {}",
                regions.home
            );
        }
        let (follower, worlds) = Follower::new(store, settings.region.clone());
        let health = follower.health();
        background.spawn(follower.run());
        Ok(Self {
            publisher,
            worlds,
            health,
            token: None,
        })
    }

    async fn begin(
        settings: &Settings,
        store: Arc<dyn Store>,
        publisher: Arc<Publisher>,
        given: Option<Zeroizing<String>>,
        background: &Runtime,
    ) -> anyhow::Result<Self> {
        let deadline = tokio::time::Instant::now() + START_MAX;
        publisher
            .bootstrap(deadline)
            .await
            .context("preparing the store")?;
        let token_file = settings.data_dir.join("admin-token");
        let token = bootstrap::admin_token(&publisher, given, &token_file).await?;
        let (follower, worlds) = Follower::new(store, settings.region.clone());
        let health = follower.health();
        background.spawn(follower.run());
        Ok(Self {
            publisher,
            worlds,
            health,
            token: Some((token, token_file)),
        })
    }

    /// The id of the organisation `default`.
    ///
    /// # Errors
    /// It did not appear in time.
    pub async fn org(&mut self) -> anyhow::Result<OrgId> {
        default_org(&mut self.worlds).await
    }

    /// Waits until the newest version of the organisation `default` has been seen.
    ///
    /// # Errors
    /// It did not appear in time.
    pub async fn caught_up(&mut self) -> anyhow::Result<()> {
        let org = self.org().await?;
        let newest = self.publisher.load(org).await?.head.n;
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

fn publisher(settings: &Settings, store: Arc<dyn Store>, keys: PublicKeyring) -> Publisher {
    Publisher::new(PublisherOptions {
        store,
        public: keys.public,
        digest_key: keys.digest_key,
        policy: policy(settings),
        epoch: Epoch {
            counter: 1,
            region: settings.region.clone(),
        },
        clock: Arc::new(Timestamp::now),
    })
}

/// What tenants may ask for at all.
pub fn policy(settings: &Settings) -> Policy {
    Policy {
        allow_http: settings.policy.allow_http,
        allow_insecure_tls: settings.policy.allow_insecure_tls,
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
