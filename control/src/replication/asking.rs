//! Where the other regions stand, asked before a person's decision is carried out.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::future::join_all;
use proto::home::Home;
use proto::id::OrgId;

use super::connection::Connection;
use super::promotion::PromoteError;
use super::takeover::{Standing, ask_home, standing};
use super::{Broken, Replication};
use crate::regions::Peer;

/// Longest wait for one region.
const ANSWER_MAX: Duration = Duration::from_secs(4);

/// A region that was asked.
pub(super) struct Asked<'p> {
    pub peer: &'p Peer,
    pub connection: Connection,
    pub standing: Standing,
}

impl Replication {
    /// A connection to whichever of a region's control planes answers first in the list.
    pub(super) async fn reach(&self, peer: &Peer) -> Result<Connection, Broken> {
        let mut failed = Broken::Protocol;
        for at in 0..peer.replication.len() {
            match tokio::time::timeout(ANSWER_MAX, self.connect(peer, at)).await {
                Ok(Ok(connection)) => return Ok(connection),
                Ok(Err(error)) => failed = error,
                Err(elapsed) => failed = Broken::Link(elapsed.into()),
            }
        }
        Err(failed)
    }

    /// Asks every region where it stands; gives the names of those that do not answer.
    pub(super) async fn ask_all(
        &self,
        force: bool,
    ) -> Result<(Vec<Asked<'_>>, Vec<String>), PromoteError> {
        self.status.ask_again();
        let peers = &self.regions.peers;
        let asked = join_all(peers.iter().map(|peer| self.ask(peer))).await;
        let asked: Vec<Asked<'_>> = asked.into_iter().flatten().collect();
        let names: BTreeSet<&str> = asked.iter().map(|asked| asked.peer.name.as_str()).collect();
        let not_asked: Vec<String> = peers
            .iter()
            .filter(|peer| !names.contains(peer.name.as_str()))
            .map(|peer| peer.name.clone())
            .collect();
        let all = peers.len() + 1;
        if !force && (asked.len() + 1) * 2 <= all {
            return Err(PromoteError::NoMajority {
                asked: asked.len() + 1,
                all,
                not_asked,
            });
        }
        Ok((asked, not_asked))
    }

    async fn ask<'p>(&self, peer: &'p Peer) -> Option<Asked<'p>> {
        let asking = async {
            let connection = self.reach(peer).await?;
            let standing = standing(&connection).await?;
            // Its store answers too, or it is as good as gone.
            ask_home(&connection, proto::tree::SYSTEM_ORG).await?;
            Ok::<_, Broken>(Asked {
                peer,
                connection,
                standing,
            })
        };
        match tokio::time::timeout(ANSWER_MAX * 2, asking).await {
            Ok(Ok(asked)) => Some(asked),
            Ok(Err(error)) => {
                tracing::warn!("region {} cannot be asked: {error}", peer.name);
                None
            }
            Err(_) => None,
        }
    }
}

/// The counters of every epoch that anybody knows of an organisation.
pub(super) fn counters(org: OrgId, local: Option<&Home>, asked: &[Asked<'_>]) -> Vec<u64> {
    let moved = asked.iter().filter_map(|asked| asked.standing.get(&org));
    let told = moved.flat_map(|moved| {
        let home = moved.home.as_ref().map(|home| home.epoch.counter);
        home.into_iter().chain([moved.position.epoch.counter])
    });
    let local = local.map(|home| home.epoch.counter);
    let known: BTreeMap<u64, ()> = told.chain(local).map(|counter| (counter, ())).collect();
    known.into_keys().collect()
}
