//! Links between the nodes of a region: one mutually authenticated connection per pair.
//!
//! ```text
//! membership ── known nodes ──▶ run ── dial, with backoff ──▶ greet ── TLS, names ──▶ link
//!                                └──── listen ──────────────▶ greet ─────────────────▶ link
//! Peers::send ── bounded queue ─────────────────────────────────────────────────────▶ link
//! link ── events, bounded: a slow taker slows the sender ──▶ whoever asked for them
//! ```
//!
//! Of a pair the node whose name sorts first dials. The other one, when it comes new, knocks and is
//! called back: so a link is there at once and never twice. A peer is who its certificate names;
//! nothing that it sends is decoded before that is known. Without `peers.listen` nothing here runs.

pub mod facts;
mod greet;
pub mod leaves;
mod link;
mod met;
pub mod run;
mod slots;
pub mod wire;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustls::{ClientConfig, ServerConfig};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};

use crate::limits::{Clock, ClockSample, Opener, PeerEvent};
use facts::Facts;
use leaves::Leaves;
use met::Met;
use wire::PeerMessage;

/// Events that wait to be taken; a link reads no further while there is no room.
const EVENTS: usize = 4_096;

/// Who this node is to its peers.
#[derive(Clone, Debug)]
pub struct Identity {
    /// `node_name`; its certificate names it.
    pub node: String,
    /// Its region.
    pub region: String,
    /// This start of it.
    pub incarnation: Opener,
    /// Where it can be dialled, `host:port`.
    pub address: String,
}

/// Our certificate and whom we trust, for either side of a connection.
#[derive(Clone, Debug)]
pub struct Tls {
    /// For connections that come.
    pub server: Arc<ServerConfig>,
    /// For connections that we make.
    pub client: Arc<ClientConfig>,
}

/// A node that may be dialled.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Known {
    /// Its name.
    pub node: String,
    /// `host:port`.
    pub address: String,
}

/// Counts since the start of the process.
#[derive(Debug, Default)]
pub struct PeerStats {
    /// Links now.
    pub linked: AtomicU64,
    /// Messages to peers.
    pub sent: AtomicU64,
    /// Messages that found a peer's queue full.
    pub dropped: AtomicU64,
    /// Messages from peers.
    pub received: AtomicU64,
    /// Leaves of configurations that peers gave.
    pub leaves_from_peers: AtomicU64,
    /// Leaves that came from the store although there was a peer to ask.
    pub leaves_from_store: AtomicU64,
    /// Connections that came and were sent away, or failed before the peer was known.
    pub refused: AtomicU64,
}

/// The links of this node; clones share them.
#[derive(Clone, Debug)]
pub struct Peers {
    shared: Arc<Shared>,
}

struct Shared {
    clock: Arc<dyn Clock>,
    links: Mutex<HashMap<Opener, Link>>,
    events: mpsc::Sender<PeerEvent>,
    met: watch::Sender<Met>,
    stats: Arc<PeerStats>,
    serial: AtomicU64,
    leaves: Arc<Leaves>,
    facts: Arc<Facts>,
    relay: slots::Relay,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared")
            .field("stats", &self.stats)
            .finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Link {
    serial: u64,
    /// The protocol that both speak.
    protocol: u16,
    queue: mpsc::Sender<PeerMessage>,
}

impl Peers {
    /// No links yet, and what will happen on them. `clock` is compared with those of peers,
    /// `leaves` gives and takes configuration, `facts` what is known of secrets that are over.
    pub fn new(
        clock: Arc<dyn Clock>,
        stats: Arc<PeerStats>,
        leaves: Arc<Leaves>,
        facts: Arc<Facts>,
    ) -> (Self, mpsc::Receiver<PeerEvent>) {
        let (events, taken) = mpsc::channel(EVENTS);
        let shared = Arc::new(Shared {
            clock,
            links: Mutex::default(),
            events,
            met: watch::Sender::default(),
            stats,
            serial: AtomicU64::new(0),
            leaves,
            facts,
            relay: slots::Relay::default(),
        });
        (Self { shared }, taken)
    }

    /// Puts a message into a peer's queue. Never waits; false when it is not linked or its queue
    /// is full, and nothing of it is sent then.
    pub fn send(&self, to: Opener, message: PeerMessage) -> bool {
        let links = self.links();
        let sent = links.get(&to).is_some_and(|link| {
            let message = match message {
                PeerMessage::Tokens(batch) if link.protocol < wire::HELD_PROTOCOL => {
                    PeerMessage::Tokens(batch.before_protocol_3())
                }
                message => message,
            };
            let queued = link.queue.try_send(message);
            if let Err(mpsc::error::TrySendError::Full(_)) = queued {
                self.shared.stats.dropped.fetch_add(1, Ordering::Relaxed);
            }
            queued.is_ok()
        });
        if sent {
            self.shared.stats.sent.fetch_add(1, Ordering::Relaxed);
        }
        sent
    }

    /// Puts a message into the queue of every peer that speaks this protocol or a later one.
    pub fn broadcast(&self, protocol: u16, message: &PeerMessage) {
        let links = self.links();
        let speaking = links.iter().filter(|(_, link)| link.protocol >= protocol);
        let all: Vec<Opener> = speaking.map(|(peer, _)| *peer).collect();
        drop(links);
        for peer in all {
            self.send(peer, message.clone());
        }
    }

    /// Up to `count` peers that are linked, beginning anywhere.
    fn some(&self, count: usize) -> Vec<Opener> {
        let links = self.links();
        let first = rand::random_range(0..links.len().max(1));
        let round = links
            .keys()
            .cycle()
            .skip(first)
            .take(count.min(links.len()));
        round.copied().collect()
    }

    /// Up to `count` peers that speak this protocol or a later one, beginning anywhere.
    fn speaking(&self, protocol: u16, count: usize) -> Vec<Opener> {
        let all = self.some(usize::MAX);
        let links = self.links();
        let speaks = |peer: &Opener| {
            links
                .get(peer)
                .is_some_and(|link| link.protocol >= protocol)
        };
        all.into_iter().filter(speaks).take(count).collect()
    }

    /// Whether this start of a node is linked.
    fn has(&self, peer: Opener) -> bool {
        self.links().contains_key(&peer)
    }

    /// Whether any peer is linked.
    fn are_any(&self) -> bool {
        !self.links().is_empty()
    }

    /// Whether a node is linked, whichever start of it.
    fn is_linked(&self, node: u64) -> bool {
        self.links().keys().any(|linked| linked.node == node)
    }

    /// Carries a link of `peer` until it ends; an earlier link of that node ends now.
    async fn carry(&self, stream: greet::Stream, spoken: greet::Spoken) -> std::io::Result<()> {
        let greet::Spoken { peer, protocol } = spoken;
        let (queue, outgoing) = mpsc::channel(link::QUEUE);
        let serial = self.shared.serial.fetch_add(1, Ordering::Relaxed);
        let before: Vec<Opener> = {
            let mut links = self.links();
            let before = links.keys().filter(|linked| linked.node == peer.node);
            let before: Vec<Opener> = before.copied().collect();
            for earlier in &before {
                links.remove(earlier);
            }
            let link = Link {
                serial,
                protocol,
                queue,
            };
            links.insert(peer, link);
            self.count(&links);
            before
        };
        let listed = Listed {
            peers: self,
            peer,
            serial,
        };
        for earlier in before {
            self.tell(PeerEvent::Down(earlier)).await;
        }
        self.tell(PeerEvent::Up(peer)).await;
        let ended = link::carry(stream, outgoing, self, spoken).await;
        if listed.take_off() {
            self.tell(PeerEvent::Down(peer)).await;
        }
        ended
    }

    /// Takes what a peer said; waits where it comes faster than it is dealt with. False when
    /// nobody deals with it any more: the process ends.
    async fn take(&self, peer: Opener, message: PeerMessage) -> bool {
        self.shared.stats.received.fetch_add(1, Ordering::Relaxed);
        match message {
            PeerMessage::Beat => !self.shared.events.is_closed(),
            PeerMessage::Tokens(batch) => self.tell(PeerEvent::Said(peer, batch)).await,
            PeerMessage::WantLeaf { ask, key } => {
                let packed = self.shared.leaves.held(&key);
                self.send(peer, PeerMessage::Leaf { ask, packed });
                true
            }
            PeerMessage::Leaf { ask, packed } => {
                self.shared.leaves.answered(ask, packed);
                true
            }
            PeerMessage::HoldFacts { digest, age_ms } => {
                self.shared.facts.told(self, peer, digest, age_ms);
                true
            }
            PeerMessage::WantFacts { after } => {
                self.send(peer, self.shared.facts.page(after.as_deref()));
                true
            }
            PeerMessage::AskTime { asked_ns } => {
                let unix_ns = self.shared.clock.moment().unix_ns;
                self.send(peer, PeerMessage::Time { asked_ns, unix_ns });
                true
            }
            PeerMessage::Time { asked_ns, unix_ns } => {
                let sample = ClockSample {
                    asked_ns,
                    heard_ns: self.shared.clock.boot_ns(),
                    unix_ns,
                };
                self.tell(PeerEvent::Clock(peer, sample)).await
            }
            PeerMessage::WriteSlots {
                ask,
                key,
                expected,
                next,
            } => {
                let write = slots::Write {
                    ask,
                    key,
                    expected,
                    next,
                };
                self.shared.relay.write(self, peer, write);
                true
            }
            PeerMessage::SlotsWritten { ask, written } => {
                self.shared.relay.answered(ask, written);
                true
            }
            PeerMessage::Facts(page) => {
                self.shared.facts.learn(self, peer, page);
                true
            }
        }
    }

    async fn tell(&self, event: PeerEvent) -> bool {
        self.shared.events.send(event).await.is_ok()
    }

    fn count(&self, links: &HashMap<Opener, Link>) {
        let linked = links.len() as u64;
        self.shared.stats.linked.store(linked, Ordering::Relaxed);
        self.shared.met.send_modify(|met| met.linked = links.len());
    }

    fn links(&self) -> std::sync::MutexGuard<'_, HashMap<Opener, Link>> {
        let links = self.shared.links.lock();
        links.unwrap_or_else(PoisonError::into_inner)
    }
}

/// A link on the list, taken off however its task ends.
struct Listed<'a> {
    peers: &'a Peers,
    peer: Opener,
    serial: u64,
}

impl Listed<'_> {
    /// True when it was on the list, and no later link had taken its place.
    fn take_off(&self) -> bool {
        let mut links = self.peers.links();
        let link = links.get(&self.peer);
        let ours = link.is_some_and(|link| link.serial == self.serial);
        if ours {
            links.remove(&self.peer);
        }
        self.peers.count(&links);
        ours
    }
}

impl Drop for Listed<'_> {
    fn drop(&mut self) {
        if self.take_off() {
            // Cut off in between. A broker that does not learn of it notices the silence.
            let down = PeerEvent::Down(self.peer);
            let _ = self.peers.shared.events.try_send(down);
        }
    }
}

/// The number of a node, the same at each of its starts.
pub fn node_number(region: &str, node: &str) -> u64 {
    let mut hash = blake3::Hasher::new();
    hash.update(&(region.len() as u64).to_le_bytes());
    hash.update(region.as_bytes());
    hash.update(node.as_bytes());
    let mut number = [0; 8];
    hash.finalize_xof().fill(&mut number);
    u64::from_le_bytes(number)
}

#[cfg(test)]
mod tests;
