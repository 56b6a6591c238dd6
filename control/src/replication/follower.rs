//! The side that asks: a connection to every other region for as long as the process runs.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::select_all;
use jiff::Timestamp;
use proto::id::OrgId;
use proto::keys;
use proto::store::load;
use proto::store::place::Place;
use proto::tree::{Head, SYSTEM_ORG};
use proto::wire::replication::{Answer, Ask, Moved, Position};
use tracing::{info, warn};

use super::apply::{ApplyError, Guard};
use super::clocks::Comparing;
use super::connection::Connection;
use super::resealed::Wanting;
use super::shares::Coming;
use super::takeover::Step;
use super::{Broken, Replication, facts_hash};
use crate::regions::Peer;
use crate::regions::staleness;
use crate::regions::status::Unverified;

/// How long a region may wait until it says that there is nothing new.
const NEWS_WAIT: Duration = Duration::from_secs(1);
/// The same, while there are limits that both share: how often shares are asked for.
const SHARES_EVERY: Duration = Duration::from_millis(400);
/// First and longest wait after a failure.
const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// How often a version is tried again that was not verified.
const UNVERIFIED_EVERY: Duration = Duration::from_secs(5);
/// Failures after which, while no region is reached, another control plane may try.
const FAILURES_MAX: u32 = 4;
/// How long the place is left to others then.
const PAUSE: Duration = Duration::from_millis(1_500);

/// See the module.
pub struct Follower(Arc<Replication>);

impl Follower {
    /// A follower that has not begun.
    pub fn new(replication: Arc<Replication>) -> Self {
        Self(replication)
    }

    /// Follows until it is dropped.
    pub async fn run(self) {
        let status = self.0.status.clone();
        loop {
            let error = match Place::take(&self.0.store, keys::REPLICATION).await {
                Ok(place) => {
                    status.leads(true);
                    self.lead(&place).await
                }
                Err(error) => error.into(),
            };
            status.leads(false);
            status.leave_to_others();
            warn!("replication is left to other control planes for a moment: {error}");
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Follows all regions while this control plane has the place.
    async fn lead(&self, place: &Place) -> Broken {
        let peers = self.0.regions.peers.iter();
        let links: Vec<_> = peers.map(|peer| Box::pin(self.link(place, peer))).collect();
        if links.is_empty() {
            return std::future::pending().await;
        }
        select_all(links).await.0
    }

    /// Follows one region until the place is lost, or is better left to others.
    async fn link(&self, place: &Place, peer: &Peer) -> Broken {
        let status = &self.0.status;
        let (mut at, mut failures) = (0usize, 0u32);
        loop {
            let begun = Instant::now();
            let Err(error) = self.follow(place, peer, at).await;
            status.broke_off(&peer.name, error.to_string());
            let region = &peer.name;
            warn!(region, "the link to region {region} broke off: {error}");
            at = at.wrapping_add(1);
            failures = match begun.elapsed() > BACKOFF_MAX {
                true => 0,
                false => failures.saturating_add(1),
            };
            let hopeless = failures >= FAILURES_MAX && !status.is_connected();
            if hopeless || matches!(error, Broken::Deposed) {
                return error;
            }
            let wait = BACKOFF_MIN.saturating_mul(1 << failures.min(10));
            tokio::time::sleep(wait.min(BACKOFF_MAX)).await;
        }
    }

    async fn follow(
        &self,
        place: &Place,
        peer: &Peer,
        at: usize,
    ) -> Result<std::convert::Infallible, Broken> {
        let mut connection = self.0.connect(peer, at).await?;
        info!(
            region = peer.name,
            "what region {} is home to is taken from it", peer.name
        );
        self.0.status.follow(&peer.name, |of| {
            of.connected = Some(Instant::now());
            of.error = None;
        });
        let (mut applied, guard) = (Vec::new(), Some(place.held()));
        let (mut coming, mut wanting) = (Coming::default(), Wanting::default());
        let mut comparing = Comparing::default();
        loop {
            if place.is_lost() {
                return Err(Broken::Deposed);
            }
            applied = self.0.round(&mut connection, &guard, applied).await?;
            let moving = self.0.move_shares(&mut connection, &guard, &mut coming);
            moving.await?;
            let fetching = self.0.fetch_sealed(&mut connection, &guard, &mut wanting);
            fetching.await?;
            let comparing = self.0.compare_clocks(&mut connection, &mut comparing);
            comparing.await?;
        }
    }
}

impl Replication {
    /// Connects to one of a region's control planes.
    pub(super) async fn connect(&self, peer: &Peer, at: usize) -> Result<Connection, Broken> {
        let at = at.checked_rem(peer.replication.len()).unwrap_or(0);
        let endpoint = peer.replication.get(at).cloned().unwrap_or_default();
        let own = &self.regions.own;
        let opened = self.dialer.dial(&endpoint, (own, &peer.name)).await;
        opened.map_err(|error| {
            std::io::Error::new(error.kind(), format!("{endpoint}: {error}")).into()
        })
    }

    /// Tells a region what was stored of it, hears what has moved, and stores it.
    pub(super) async fn round(
        &self,
        connection: &mut Connection,
        guard: &Guard,
        applied: Vec<(OrgId, Position)>,
    ) -> Result<Vec<(OrgId, Position)>, Broken> {
        let wait = match self.shares_with(connection.peer()) {
            true => SHARES_EVERY,
            false => NEWS_WAIT,
        };
        let ask = Ask::News {
            wait_ms: wait.as_millis() as u32,
            applied,
        };
        let asked = Timestamp::now();
        let news = connection.ask(&ask, wait).await?;
        let Answer::News {
            whole,
            mut moved,
            gone,
        } = news
        else {
            return Err(Broken::Protocol);
        };
        let gone = self
            .departed(connection.peer(), (whole, &moved, gone))
            .await?;
        let again = self.status.again(connection.peer(), UNVERIFIED_EVERY);
        let told: BTreeSet<OrgId> = moved.iter().map(|moved| moved.org).collect();
        let again = again
            .into_iter()
            .filter(|moved| !told.contains(&moved.org) && !gone.contains(&moved.org));
        moved.extend(again);
        let applied = self.take(connection, guard, moved).await;
        // What is refused of one organisation says nothing of the others.
        if matches!(
            applied,
            Ok(_) | Err(Broken::Apply(ApplyError::Refused { .. }))
        ) {
            staleness::note(self, connection.peer(), asked, &gone).await?;
        }
        let applied = applied?;
        for org in gone {
            self.remove(connection.peer(), guard, org).await?;
            self.status.follow(connection.peer(), |of| {
                of.unverified.remove(&org);
            });
        }
        self.status.follow(connection.peer(), |of| {
            if of.diverged.is_empty() && of.unverified.is_empty() {
                of.current_at = Some(Instant::now());
            }
        });
        Ok(applied)
    }

    /// Takes what has moved; gives where it then stands. What is refused of one organisation does
    /// not keep the others waiting.
    async fn take(
        &self,
        connection: &mut Connection,
        guard: &Guard,
        moved: Vec<Moved>,
    ) -> Result<Vec<(OrgId, Position)>, Broken> {
        let peer = connection.peer().to_owned();
        self.measure(&peer, &moved).await?;
        let (mut applied, mut refused) = (Vec::new(), None);
        for moved in in_order(moved) {
            let org = moved.org;
            match self.take_one(connection, guard, moved.clone()).await {
                Ok(stored) => applied.extend(stored.map(|stored| (org, stored))),
                Err(Broken::Apply(error @ ApplyError::Refused { .. })) => {
                    warn!(%org, "{error}");
                    refused = Some(error);
                    continue;
                }
                Err(Broken::Apply(ApplyError::Unverified { at, why, .. })) => {
                    self.leave_unverified(&peer, moved, at, why);
                    continue;
                }
                Err(error) => return Err(error),
            }
            self.status.follow(&peer, |of| {
                of.behind.remove(&org);
                of.unverified.remove(&org);
            });
        }
        match refused {
            None => Ok(applied),
            Some(error) => Err(error.into()),
        }
    }

    /// Tells of a version that is not taken. It does not keep other organisations waiting, and is
    /// tried again.
    fn leave_unverified(&self, peer: &str, moved: Moved, at: Position, why: String) {
        let org = moved.org;
        self.status.follow(peer, |of| {
            let unverified = Unverified {
                at,
                why,
                moved,
                tried: Instant::now(),
            };
            let (n, hash, why) = (unverified.at.n, unverified.at.hash, &unverified.why);
            let known = of.unverified.get(&org);
            if known.is_none_or(|known| known.at != unverified.at || known.why != *why) {
                tracing::error!(
                    %org, region = peer, n,
                    "version {n} ({hash}) of {org} from region {peer} is not taken: {why}"
                );
            }
            of.unverified.insert(org, unverified);
        });
    }

    async fn take_one(
        &self,
        connection: &mut Connection,
        guard: &Guard,
        moved: Moved,
    ) -> Result<Option<Position>, Broken> {
        let org = moved.org;
        let (line, opens) = match self.judge(connection, guard, &moved).await? {
            Step::Pass => return self.take_facts(connection, &moved).await,
            Step::Follow(line) => (line, None),
            Step::TakeOver(line, last) => (line, Some(last)),
        };
        let stored = match self.has(&moved) {
            true => Some(moved.position),
            false => self.sync(connection, guard, org, &line).await?,
        };
        // Only what is here whole tells what it names.
        if org == SYSTEM_ORG && stored.is_some() {
            self.leave_unnamed(guard, &line).await?;
        }
        if let Some(last) = opens {
            let whole = self.complete(&mut [connection], org).await?;
            self.open(guard, org, &line, (&last, &[], whole), "hand-over")
                .await?;
            return Ok(None);
        }
        Ok(stored)
    }

    /// Whether all of it is known to be here.
    fn has(&self, moved: &Moved) -> bool {
        let world = self.worlds.borrow().clone();
        let state = world.orgs.get(&moved.org);
        state.is_some_and(|state| {
            Position::from(&state.config.head) == moved.position
                && facts_hash(&state.retired) == moved.facts
        })
    }

    /// Every organisation that has a version here.
    pub(super) async fn orgs(&self) -> Result<Vec<OrgId>, Broken> {
        let mut orgs = Vec::new();
        let listed = load::list(&*self.store, keys::HEADS, None, |pair| {
            if let Some(keys::Live::Head(org)) = keys::Live::parse(&pair.key) {
                orgs.push(org);
            }
        });
        listed.await?;
        Ok(orgs)
    }

    /// Notes how many versions are to come.
    async fn measure(&self, peer: &str, moved: &[Moved]) -> Result<(), Broken> {
        let mut behind = BTreeMap::new();
        let of_peer = |moved: &&Moved| {
            let home = moved.home.as_ref();
            home.is_some_and(|home| home.region == peer)
        };
        for Moved { org, position, .. } in moved.iter().filter(of_peer) {
            let key = keys::head(*org);
            let local = self.store.get(&key).await?.value;
            let n = local.and_then(|pair| Head::parse(&pair.value).ok());
            let n = n.map_or(0, |head| head.n);
            behind.insert(*org, position.n.saturating_sub(n));
        }
        self.status.follow(peer, |of| of.behind.extend(behind));
        Ok(())
    }
}

/// `system` comes last: what it names is then there.
fn in_order(mut moved: Vec<Moved>) -> Vec<Moved> {
    moved.sort_by_key(|moved| moved.org == SYSTEM_ORG);
    moved
}
