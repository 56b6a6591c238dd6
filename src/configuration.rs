//! The configuration side of a process that publishes: the publisher, the followed world, the
//! first token.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use control::archive::Archive;
use control::beat;
use control::janitor::{Janitor, JanitorOptions};
use control::publish::{PublishError, Publisher, PublisherOptions};
use control::regions::Regions;
use jiff::Timestamp;
use proto::health::Health;
use proto::id::OrgId;
use proto::org::DEFAULT;
use proto::restarts;
use proto::seal::{DigestKey, PublicKeyring};
use proto::store::Store;
use proto::store::follow::{Follower, World};
use proto::store::kept::{self, Kept};
use proto::tree::SYSTEM_ORG;
use proto::version::Epoch;
use tokio::runtime::Runtime;
use tokio::sync::{oneshot, watch};
use zeroize::Zeroizing;

use crate::bootstrap::{self, AdminToken};
use crate::keyrings;
use crate::permissions;
use crate::settings::Settings;
use crate::stores::{self, StoreKind};

/// Longest wait for the store and the first configuration at a start.
pub const START_MAX: Duration = Duration::from_secs(10);

/// Longest wait for a store that cannot be reached, where there is a kept copy to start from.
pub const STORE_GRACE: Duration = Duration::from_secs(2);

/// How often the store is asked which region is home, while it does not answer.
const HOME_EVERY: Duration = Duration::from_millis(250);

/// How often it is tried to set a given admin token that could not be set at the start.
const TOKEN_EVERY: Duration = Duration::from_secs(5);

/// What publishes, and what is published.
pub struct Configuration {
    /// Writes configuration.
    pub publisher: Arc<Publisher>,
    /// Versions that have left the store.
    pub archive: Arc<Archive>,
    /// The configuration as the store has it.
    pub worlds: watch::Receiver<Arc<World>>,
    /// Whether the store is reached, and whether this process ends.
    pub health: Health,
    /// The first token, and where a made one is kept; absent in a region that follows, where home's
    /// tokens hold.
    pub token: Option<(AdminToken, PathBuf)>,
    /// Ends, when dropped, the copy of the configuration on disk.
    _keeping: Option<oneshot::Sender<()>>,
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
        let archive = Archive::open(&stores::archive_file(settings));
        let archive = archive.map_err(stores::archive_unusable)?;
        let archive = Arc::new(archive);
        let peers = regions.map_or(&[][..], |regions| &regions.peers);
        let others = peers.iter().map(|peer| peer.public.clone()).collect();
        let digest_key = keys.digest_key.clone();
        let signer = keyrings::signing(settings, &keys)?.map(Arc::new);
        let first_home = regions.map_or(&settings.region, |regions| &regions.home);
        let publisher = publisher(settings, store.clone(), keys)
            .with_archive(archive.clone())
            .with_quota(settings.store.quota_bytes)
            .with_first_home(first_home)
            .with_regions(others)
            .with_signer(signer);
        let publisher = Arc::new(publisher);
        let (mut follower, worlds) = Follower::new(store.clone(), settings.region.clone());
        let health = follower.health();
        if settings.store.kind == StoreKind::Etcd {
            let (store, name) = (store.clone(), settings.name());
            let run = move || beat::run(store.clone(), name.clone());
            background.spawn(restarts::again("beat", health.clone(), run));
        }
        let at = (settings, &store);
        let (kept, begun) = match settings.store.kind {
            StoreKind::Etcd => begin(at, &digest_key, &mut follower).await?,
            // A file that its owner puts back is meant to count.
            StoreKind::Embedded => (None, Begun::default()),
        };
        publisher.remember(worlds.clone());
        let home = match regions {
            Some(regions) if begun.reached => home_at_start(&publisher, regions).await,
            Some(regions) => regions.home.clone(),
            None => settings.region.clone(),
        };
        let mut token = None;
        if home == settings.region {
            let file = settings.data_dir.join("admin-token");
            let first = first_token((&publisher, background), given, &file, begun).await?;
            token = Some((first, file));
        } else if given.is_some() {
            tracing::warn!("the given admin token is not set: tokens come from home region {home}");
        }
        catch_up(&mut follower, begun).await?;
        let keeping = kept.map(|kept| {
            let (stop, stopping) = oneshot::channel();
            let run = kept::run(kept, store, (worlds.clone(), health.clone()), stopping);
            background.spawn(run);
            stop
        });
        watch(&publisher, &health, background);
        background.spawn(follower.run());
        Ok(Self {
            publisher,
            archive,
            worlds,
            health,
            token,
            _keeping: keeping,
        })
    }

    /// The id of the organisation `default`, unless it was deleted.
    pub fn default_org(&self) -> Option<OrgId> {
        let world = self.worlds.borrow();
        world.org(DEFAULT).map(|org| org.config.org)
    }

    /// Waits until the newest version of an organisation has been seen.
    ///
    /// # Errors
    /// It did not appear in time.
    pub async fn caught_up(&mut self, org: OrgId) -> anyhow::Result<()> {
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

/// How a start stands.
#[derive(Clone, Copy, Debug)]
struct Begun {
    /// What was seen before the last end is served, whatever the store holds.
    from_copy: bool,
    /// The store answers.
    reached: bool,
}

impl Default for Begun {
    fn default() -> Self {
        Self {
            from_copy: false,
            reached: true,
        }
    }
}

/// Sees what the store holds. Where that cannot be had, what was kept is served.
async fn catch_up(follower: &mut Follower, begun: Begun) -> anyhow::Result<()> {
    if !begun.reached {
        return Ok(());
    }
    let until = tokio::time::Instant::now() + START_MAX;
    match follower.catch_up(until).await {
        Err(error) if begun.from_copy => {
            tracing::warn!("serving the configuration kept on disk: {error}");
            Ok(())
        }
        Err(error) => Err(stores::cannot_begin(error)),
        Ok(()) => Ok(()),
    }
}

/// The region that is home to `system`: by the store, or by the settings before there was a fact.
async fn home_at_start(publisher: &Publisher, regions: &Regions) -> String {
    let until = tokio::time::Instant::now() + START_MAX;
    let epoch = Epoch {
        counter: 0,
        region: String::new(),
    };
    loop {
        let error = match publisher.home(SYSTEM_ORG, &epoch).await {
            Ok(home) => return home.region,
            Err(error) => error,
        };
        if tokio::time::Instant::now() >= until {
            tracing::error!(%error, "the store does not tell which region is home: {error}");
            return regions.home.clone();
        }
        tokio::time::sleep(HOME_EVERY).await;
    }
}

/// Keeps the publisher informed of what nodes report, and of how full the store is.
fn watch(publisher: &Arc<Publisher>, health: &Health, background: &Runtime) {
    let of = publisher.clone();
    let nodes = move || {
        let publisher = of.clone();
        async move { publisher.watch_nodes().await }
    };
    background.spawn(restarts::again("node-reports", health.clone(), nodes));
    let of = publisher.clone();
    let room = move || {
        let publisher = of.clone();
        async move { publisher.watch_room().await }
    };
    background.spawn(restarts::again("store-size", health.clone(), room));
}

fn publisher(settings: &Settings, store: Arc<dyn Store>, keys: PublicKeyring) -> Publisher {
    Publisher::new(PublisherOptions {
        store,
        public: keys.public,
        digest_key: keys.digest_key,
        policy: permissions::policy(settings),
        epoch: Epoch {
            counter: 1,
            region: settings.region.clone(),
        },
        clock: Arc::new(Timestamp::now),
    })
}

/// Takes over what this process had seen before its last end, however long ago that was, and waits
/// for the store. Where there is something to serve, it begins without the store too.
async fn begin(
    (settings, store): (&Settings, &Arc<dyn Store>),
    digest_key: &DigestKey,
    follower: &mut Follower,
) -> anyhow::Result<(Option<Kept>, Begun)> {
    let mut begun = Begun::default();
    let kept = Kept::new(
        settings.data_dir.join("kept.bin"),
        digest_key,
        &settings.region,
    )?;
    match kept.read(Duration::MAX) {
        Ok(Some((copy, age))) => {
            let read = follower.begin_with(Arc::new(copy), age).await;
            read.context("reading the configuration kept on disk")?;
            begun.from_copy = true;
        }
        Ok(None) => {}
        Err(error) => tracing::warn!("the configuration kept on disk is not used: {error}"),
    }
    let wait = match begun.from_copy {
        true => STORE_GRACE,
        false => START_MAX,
    };
    match stores::reach(store, wait).await {
        Ok(()) => {}
        Err(error) if begun.from_copy => {
            begun.reached = false;
            follower.health().store_reached(false);
            tracing::warn!(
                "the store cannot be reached, serving the configuration kept on disk: {error}"
            );
        }
        Err(error) => return Err(stores::cannot_begin(error)),
    }
    Ok((Some(kept), begun))
}

/// Makes sure of organisations and token. In a store that was restored, wiped or damaged nothing is
/// made: a person decides first, with a token of before. Nor is it in one that is away. A given
/// token is set there once the store takes it.
async fn first_token(
    (publisher, background): (&Arc<Publisher>, &Runtime),
    given: Option<Zeroizing<String>>,
    file: &Path,
    begun: Begun,
) -> anyhow::Result<AdminToken> {
    let later = given.clone();
    let of_before = || {
        if let Some(given) = later {
            let of = (publisher.clone(), file.to_owned());
            background.spawn(bootstrap::set_later(of, given, TOKEN_EVERY));
        }
        bootstrap::of_before(file)
    };
    if !begun.reached {
        return of_before();
    }
    let deadline = tokio::time::Instant::now() + START_MAX;
    match publisher.bootstrap(deadline).await {
        Ok(_) => {
            publisher.settle_homes().await?;
            bootstrap::admin_token(publisher, given, file).await
        }
        Err(error @ PublishError::Regressed { .. }) => {
            tracing::error!(%error, "store-regressed: {error}; see `requestrocket recover`");
            of_before()
        }
        Err(error @ PublishError::Unreadable(_)) if begun.from_copy => {
            tracing::error!(%error, "store-damaged: {error}; see `requestrocket recover`");
            of_before()
        }
        Err(error) => Err(error).context("preparing the store"),
    }
}

/// What keeps the store small, with the store of these settings.
pub fn janitor(
    settings: &Settings,
    configuration: &Configuration,
    listens: Vec<SocketAddr>,
) -> Janitor {
    let history = &settings.history;
    let options = JanitorOptions {
        store_versions: history.store_versions.max(1),
        archive_versions: history.archive_versions,
        archive_age: Duration::from_secs(u64::from(history.archive_days) * 86_400),
        every: Duration::from_secs(history.sweep_s.max(1)),
        compacts: settings.store.kind == StoreKind::Embedded,
    };
    let (publisher, archive) = (&configuration.publisher, &configuration.archive);
    Janitor::new(publisher.clone(), archive.clone(), options).listening_at(listens)
}
