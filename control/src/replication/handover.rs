//! The planned move: this region ends its time as home, and another opens on exactly its last
//! version. Nothing is lost; writes wait for as long as it takes.

use std::time::Duration;

use futures_util::stream::{StreamExt, TryStreamExt};
use proto::id::OrgId;
use proto::tree::SYSTEM_ORG;
use tokio::time::Instant;

use super::takeover::{Standing, ask_home, standing};
use super::{Broken, Replication};
use crate::publish::PublishError;
use crate::regions::Peer;

/// A region that lacks more versions than this of an organisation is not handed anything.
const LAG_MAX: u64 = 64;
/// Organisations sealed at one time.
const SEALS_MAX: usize = 8;
/// How long the other region may take to open.
const OPEN_MAX: Duration = Duration::from_secs(10);
/// How often it is asked whether it has.
const LOOK: Duration = Duration::from_millis(20);

/// Why home was not handed over, or not all of it.
#[derive(Debug, thiserror::Error)]
pub enum HandOverError {
    /// There is no other region of this name.
    #[error("`{0}` is no other region")]
    Unknown(String),
    /// The region cannot take it over now. Nothing was done.
    #[error("region {region} cannot take over now: {why}; nothing was done")]
    Unfit {
        /// The region.
        region: String,
        /// Why.
        why: String,
    },
    /// This region is home to nothing.
    #[error("this region is home to nothing that could be handed over")]
    Nothing,
    /// The other region has not opened in time; it still may.
    #[error(
        "{left} organisations are sealed and region {region} has not opened them: it does when it \
         can; where it is gone for good, promote a region, and where it cannot (its log says why), \
         promote this one with `--force`"
    )]
    Waiting {
        /// The region.
        region: String,
        /// Organisations without a home.
        left: usize,
    },
    /// The store failed, or what it holds cannot be read.
    #[error(transparent)]
    Publish(#[from] PublishError),
}

impl Replication {
    /// Hands over everything that this region is home to. Gives the organisations.
    ///
    /// # Errors
    /// [`HandOverError`]; what was sealed before it is opened by the other region all the same.
    pub async fn hand_over(&self, to: &str) -> Result<Vec<OrgId>, HandOverError> {
        let unknown = || HandOverError::Unknown(to.to_owned());
        let peer = self.regions.peer(to).ok_or_else(unknown)?;
        let unfit = |error: Broken| HandOverError::Unfit {
            region: to.to_owned(),
            why: error.to_string(),
        };
        let standing = self.fit(peer).await.map_err(unfit)?;
        let own = &self.regions.own;
        let mut orgs = self.orgs().await.map_err(unfit)?;
        orgs.retain(|org| self.homes.region_of(*org) == *own);
        if orgs.is_empty() {
            return Err(HandOverError::Nothing);
        }
        self.refuse_lag(peer, &standing, &orgs)?;
        self.refuse_strict(to, &orgs)?;
        // First `system`: while it is sealed no organisation is created.
        orgs.sort_by_key(|org| *org != SYSTEM_ORG);
        for org in orgs.iter().take(1) {
            self.publisher.seal_home(*org, to).await?;
        }
        let seals = orgs
            .iter()
            .skip(1)
            .map(|org| self.publisher.seal_home(*org, to));
        let sealed = futures_util::stream::iter(seals).buffer_unordered(SEALS_MAX);
        sealed.try_for_each(|_| std::future::ready(Ok(()))).await?;
        self.opened(to, &orgs).await?;
        Ok(orgs)
    }

    /// What a region has, if its store answers now.
    async fn fit(&self, peer: &Peer) -> Result<Standing, Broken> {
        let mut connection = self.reach(peer).await?;
        let standing = standing(&mut connection).await?;
        ask_home(&mut connection, SYSTEM_ORG).await?;
        Ok(standing)
    }

    fn refuse_lag(
        &self,
        peer: &Peer,
        standing: &Standing,
        orgs: &[OrgId],
    ) -> Result<(), HandOverError> {
        let world = self.worlds.borrow().clone();
        for org in orgs {
            let here = world.orgs.get(org).map_or(0, |state| state.config.head.n);
            let there = standing.get(org).map_or(0, |moved| moved.position.n);
            if here.saturating_sub(there) > LAG_MAX {
                let region = peer.name.clone();
                let why = format!("of {org} it has version {there} of {here}");
                return Err(HandOverError::Unfit { region, why });
            }
        }
        Ok(())
    }

    /// Refuses before the first organisation is sealed what would be refused at one of them.
    fn refuse_strict(&self, to: &str, orgs: &[OrgId]) -> Result<(), HandOverError> {
        let world = self.worlds.borrow().clone();
        for org in orgs {
            let head = world.orgs.get(org).map(|state| &state.config.head);
            if let Some(regions) = head.and_then(|head| head.stays_in(to)) {
                let (org, regions, to) = (*org, regions.to_owned(), to.to_owned());
                return Err(PublishError::Stays { org, regions, to }.into());
            }
        }
        Ok(())
    }

    /// Waits until the other region's facts are known here.
    async fn opened(&self, to: &str, orgs: &[OrgId]) -> Result<(), HandOverError> {
        let until = Instant::now() + OPEN_MAX;
        loop {
            let sealed = |org: &&OrgId| {
                let home = self.homes.of(**org);
                home.is_none_or(|home| home.region == self.regions.own)
            };
            let left = orgs.iter().filter(sealed).count();
            if left == 0 {
                return Ok(());
            }
            if Instant::now() >= until {
                let region = to.to_owned();
                return Err(HandOverError::Waiting { region, left });
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}
