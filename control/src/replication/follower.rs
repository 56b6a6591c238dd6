//! The side that asks: a connection to every other region for as long as the process runs.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::select_all;
use proto::id::OrgId;
use proto::keys;
use proto::store::load;
use proto::store::place::Place;
use tracing::{info, warn};

use super::apply::Guard;
use super::clocks::Comparing;
use super::connection::Connection;
use super::in_part::AskedFor;
use super::left_to_home::Noted;
use super::resealed::Wanting;
use super::rotated::Rotated;
use super::taking::Taking;
use super::{Broken, Replication};
use crate::regions::Peer;

/// How often it is looked whether shares, secrets or the clock are to be asked for, or copies to be
/// looked through.
const EXCHANGE_EVERY: Duration = Duration::from_secs(1);
/// The same, while there are limits that both share: how often shares are asked for.
const SHARES_EVERY: Duration = Duration::from_millis(400);
/// First and longest wait after a failure.
const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
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
        let connection = self.0.connect(peer, at).await?;
        // What this process, or one before it, has stored and not ended.
        self.0.publisher.finish_all_retiring().await?;
        info!(
            region = peer.name,
            "what region {} is home to is taken from it", peer.name
        );
        self.0.status.follow(&peer.name, |of| {
            of.connected = Some(Instant::now());
            of.error = None;
        });
        let guard = Some(place.held());
        let taking = async {
            let mut taking = Taking::new(&self.0, &connection, &guard);
            loop {
                if place.is_lost() {
                    return Err(Broken::Deposed);
                }
                taking.go_on().await?;
            }
        };
        tokio::select! {
            taking = taking => taking,
            exchanging = self.exchange(&connection, &guard) => exchanging,
            renewing = self.renew(&connection, &guard) => renewing,
        }
    }

    /// What is no version goes between regions at its own pace.
    async fn exchange(
        &self,
        connection: &Connection,
        guard: &Guard,
    ) -> Result<std::convert::Infallible, Broken> {
        let (mut wanting, mut comparing) = (Wanting::default(), Comparing::default());
        let (mut asked, mut noted) = (AskedFor::default(), Noted::default());
        loop {
            self.0.complete_homes(connection, guard, &mut asked).await?;
            self.0.leave_to_home(connection, guard, &mut noted).await?;
            self.0.move_shares(connection, guard).await?;
            self.0.fetch_sealed(connection, guard, &mut wanting).await?;
            self.0.compare_clocks(connection, &mut comparing).await?;
            tokio::time::sleep(match self.0.shares_with(connection.peer()) {
                true => SHARES_EVERY,
                false => EXCHANGE_EVERY,
            })
            .await;
        }
    }

    /// Copies of what a region has sealed anew are taken beside the rest: to find them the values
    /// of every organisation are read, for which neither shares nor clocks wait.
    async fn renew(
        &self,
        connection: &Connection,
        guard: &Guard,
    ) -> Result<std::convert::Infallible, Broken> {
        let mut rotated = Rotated::default();
        loop {
            self.0
                .fetch_rotated(connection, guard, &mut rotated)
                .await?;
            tokio::time::sleep(EXCHANGE_EVERY).await;
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
}
