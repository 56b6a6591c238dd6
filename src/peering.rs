//! The links between nodes, from settings to what runs.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use node::limits::{Clock, Links, Opener, PeerEvent};
use node::peers::facts::{self, Facts};
use node::peers::leaves::Leaves;
use node::peers::wire::PeerMessage;
use node::peers::{Identity, Known, Peers, Tls, node_number, run};
use node::stages::record::Origin;
use node::worker::Shared;
use proto::health::Health;
use proto::restarts;
use proto::store::Store;
use proto::store::follow::World;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};
use tracing::error;

use crate::known_nodes::KnownNodes;
use crate::link_tls;
use crate::serve::CannotStart;
use crate::settings::Settings;

/// What a node needs to have links.
pub struct Peering {
    listener: TcpListener,
    tls: Tls,
    /// Where the other nodes dial this one, `host:port`.
    pub address: String,
    /// What nodes give each other of configurations.
    pub leaves: Arc<Leaves>,
    /// What they tell each other of secrets that are over.
    pub facts: Arc<Facts>,
    kept: KnownNodes,
}

impl Peering {
    /// Reads the certificates; `None` where nothing listens for peers.
    ///
    /// # Errors
    /// [`CannotStart`]: a certificate is missing or faulty, or nobody could dial the address.
    pub fn new(
        settings: &Settings,
        leaves: &Arc<Leaves>,
        listener: Option<TcpListener>,
    ) -> anyhow::Result<Option<Self>> {
        let Some(listener) = listener else {
            return Ok(None);
        };
        let address = match &settings.peers.advertise {
            Some(address) => address.clone(),
            None => dialled(listener.local_addr()?)?,
        };
        let tls = Tls {
            server: link_tls::server(&settings.link)?,
            client: link_tls::client(&settings.link)?,
        };
        Ok(Some(Self {
            listener,
            tls,
            address,
            leaves: leaves.clone(),
            facts: Arc::default(),
            kept: KnownNodes::of(&settings.data_dir),
        }))
    }

    /// Starts the links. `clock` is compared with those of the others.
    ///
    /// # Errors
    /// The listening socket cannot be used.
    pub fn start(
        self,
        (shared, store): (&Shared, Arc<dyn Store>),
        (incarnation, clock): (Opener, Arc<dyn Clock>),
        (health, background): (&Health, &Runtime),
    ) -> anyhow::Result<Peered> {
        let address = self.address.clone();
        let (origin, stats) = (&shared.origin, shared.metrics.peers());
        let me = Identity {
            node: origin.node.to_string(),
            region: origin.region.to_string(),
            incarnation,
            address: self.address,
        };
        self.listener.set_nonblocking(true)?;
        let (peers, events) = Peers::new(clock, stats, self.leaves.clone(), self.facts.clone());
        self.leaves.linked(peers.clone());
        peers.write_slots_for_peers(store);
        let before = self.kept.read();
        let nodes = (!before.is_empty()).then(|| before.len() as u64 + 1);
        let (known, listed) = watch::channel(before);
        let keep = {
            let (kept, listed) = (Arc::new(self.kept), listed.clone());
            move || kept.clone().keep(listed.clone())
        };
        background.spawn(restarts::again("known-nodes", health.clone(), keep));
        let (listener, tls, running) = (self.listener, self.tls, peers.clone());
        let linking = async move {
            match tokio::net::TcpListener::from_std(listener) {
                Ok(listener) => run::run(running, me, tls, listener, listed).await,
                Err(error) => error!(%error, "peers cannot be listened for: {error}"),
            }
        };
        background.spawn(restarts::once("peers", health.clone(), linking));
        Ok(Peered {
            links: links(&peers, events),
            nodes,
            linked: Linked {
                address,
                known,
                peers,
                facts: self.facts,
            },
        })
    }
}

/// Links that have been started.
pub struct Peered {
    /// How the limits use them.
    pub links: Links,
    /// How many nodes there were when the store was last reached, this one included; `None` where
    /// no others are known: nobody knows then that there are none.
    pub nodes: Option<u64>,
    /// The rest.
    pub linked: Linked,
}

/// The links of a node.
pub struct Linked {
    /// Where the other nodes dial this one, `host:port`.
    pub address: String,
    /// Where known nodes are told.
    pub known: watch::Sender<Vec<Known>>,
    /// The links themselves.
    pub peers: Peers,
    facts: Arc<Facts>,
}

impl Linked {
    /// From now on peers are told which secrets are over, by these worlds.
    pub fn announce(
        &self,
        worlds: watch::Receiver<Arc<World>>,
        health: &Health,
        background: &Runtime,
    ) {
        let (peers, facts) = (self.peers.clone(), self.facts.clone());
        let announce = move || facts::announce(peers.clone(), facts.clone(), worlds.clone());
        background.spawn(restarts::again("announce", health.clone(), announce));
    }
}

/// Tells which nodes are known; nobody is woken where they are the same.
pub fn tell(known: &watch::Sender<Vec<Known>>, others: Vec<Known>) {
    known.send_if_modified(|before| {
        let changed = *before != others;
        *before = others;
        changed
    });
}

fn links(peers: &Peers, events: mpsc::Receiver<PeerEvent>) -> Links {
    let slots = Arc::new(peers.clone());
    let peers = peers.clone();
    Links {
        slots,
        send: Box::new(move |to, batch| {
            // What a peer does not get is asked, or told, again.
            peers.send(to, PeerMessage::Tokens(batch));
        }),
        events,
    }
}

/// This start of a node: blocks that an earlier one left open are not its own.
pub fn incarnation(origin: &Origin) -> Opener {
    Opener {
        node: node_number(&origin.region, &origin.node),
        boot: uuid::Uuid::new_v4().as_u128() as u64,
    }
}

fn dialled(bound: SocketAddr) -> Result<String, CannotStart> {
    if bound.ip().is_unspecified() {
        return Err(CannotStart(format!(
            "`peers.listen` {bound} is no address that other nodes can dial: say in \
             `peers.advertise` where they reach this one, host:port"
        )));
    }
    Ok(bound.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_nobody_can_dial_is_refused() {
        assert_eq!(
            dialled("10.0.0.1:8083".parse().unwrap()).unwrap(),
            "10.0.0.1:8083"
        );
        let error = dialled("0.0.0.0:8083".parse().unwrap()).unwrap_err();
        assert!(error.to_string().contains("`peers.advertise`"), "{error}");
        assert!(dialled("[::]:8083".parse().unwrap()).is_err());
    }
}
