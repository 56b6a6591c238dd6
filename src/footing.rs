//! What of a data plane stands before its configuration: rate limits, and the links to other nodes,
//! which give the configuration.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use node::limits::{self, Limits, Opener};
use node::metrics::Metrics;
use node::peers::Known;
use node::peers::leaves::Leaves;
use node::records::RecordBatches;
use node::stages::record::Origin;
use node::sync::roster::Roster;
use node::test_run::TestQueue;
use node::upstream::{Hosts, UpstreamSettings};
use node::worker::Shared;
use proto::health::Health;
use proto::restarts;
use proto::seal::Keyring;
use proto::store::Store;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tracing::warn;

use crate::clock;
use crate::hosts_file;
use crate::otlp::Export;
use crate::peering::{self, Linked, Peering, tell};
use crate::serve::CannotStart;
use crate::settings::Settings;
use crate::stores::StoreKind;
use crate::traces;

/// How far the wall clock of a node may be from those of its peers, which are compared; calendar
/// windows reckon with it.
const SKEW_MAX: Duration = Duration::from_millis(250);
/// The same where nobody compares them: no node listens for peers.
const UNKNOWN_SKEW_MAX: Duration = Duration::from_secs(2);

/// Longest wait for links before a node reads its configuration without them. It is over as soon as
/// they stand or cannot be had; only who takes a connection and says nothing is waited for so long.
const LINKED_MAX: Duration = Duration::from_secs(3);
/// Links that are waited for, where there are so many nodes: as many as are asked for a leaf.
const LINKS_AWAITED: usize = 2;
/// How often a node that reads its configuration looks who else is there.
const LOOK: Duration = Duration::from_secs(2);
/// Longest wait for the store when the node leaves.
pub const LEAVE_MAX: Duration = Duration::from_secs(2);

/// What stands.
pub struct Footing {
    /// What the workers share.
    pub shared: Shared,
    /// The rate limits.
    pub limits: Arc<Limits>,
    /// The end of the rate limits.
    pub settling: Settling,
    /// The records of requests.
    pub batches: RecordBatches,
    /// The export of traces, where there is one.
    pub export: Option<Export>,
    /// The links to other nodes, where there are any.
    pub links: Option<Linked>,
    /// What nodes give each other of configurations.
    pub leaves: Arc<Leaves>,
}

impl Footing {
    /// Starts limits and links.
    ///
    /// # Errors
    /// [`CannotStart`]: a setting is faulty.
    pub fn start(
        settings: &Settings,
        (keyring, store): (&Keyring, Arc<dyn Store>),
        (peering, leaves): (Option<Peering>, Arc<Leaves>),
        (health, background): (&Health, &Runtime),
    ) -> anyhow::Result<Self> {
        let (sender, batches) = node::records::queue();
        let sender = sender.keeping(settings.records.enabled);
        let (shared, export) = shared(settings, keyring, sender, health.clone())?;
        let incarnation = peering::incarnation(&shared.origin);
        let clock = clock::of_limits(settings)?;
        let limits = limit_settings(settings, incarnation, peering.is_some());
        let (mut links, mut carrying, mut nodes) = (None, None, Some(1));
        if let Some(peering) = peering {
            let this = (incarnation, clock.clone());
            let of = (&shared, store.clone());
            let peered = peering.start(of, this, (health, background))?;
            (links, carrying, nodes) = (Some(peered.linked), Some(peered.links), peered.nodes);
        }
        let (limits, broker) = Limits::linked(store, &limits, clock, carrying);
        nodes.iter().for_each(|nodes| limits.set_nodes(*nodes));
        let broker = restarts::once("tokens", health.clone(), broker);
        let settling = Settling {
            limits: limits.clone(),
            running: background.spawn(broker),
        };
        Ok(Self {
            shared,
            limits,
            settling,
            batches: batches.logged(settings.log.requests),
            export,
            links,
            leaves,
        })
    }

    /// Of a process that has no other nodes.
    ///
    /// # Errors
    /// As for [`Footing::start`].
    pub fn alone(
        settings: &Settings,
        (keyring, store): (&Keyring, &Arc<dyn Store>),
        running: (&Health, &Runtime),
    ) -> anyhow::Result<Self> {
        let nobody = (None, Arc::default());
        Self::start(settings, (keyring, store.clone()), nobody, running)
    }

    /// Looks who else is there and waits a moment for the first links, so that peers can be asked
    /// for the configuration.
    pub async fn meet(&self, settings: &Settings, store: &dyn Store) {
        let meeting = async {
            let others = self.look(settings, store).await;
            if let Some(links) = &self.links {
                links.peers.linked(&others, LINKS_AWAITED).await;
            }
        };
        if tokio::time::timeout(LINKED_MAX, meeting).await.is_err() {
            warn!("no links to other nodes yet, the configuration is read from the store");
        }
    }

    /// Goes on looking: of nodes that start together the later ones find those that were earlier.
    /// Never ready.
    pub async fn keep_looking(&self, settings: &Settings, store: &dyn Store) -> Infallible {
        loop {
            tokio::time::sleep(LOOK).await;
            self.look(settings, store).await;
        }
    }

    /// The other nodes that the store lists. While it does not tell, those that were known before
    /// are dialled.
    async fn look(&self, settings: &Settings, store: &dyn Store) -> Vec<Known> {
        let Ok(roster) = Roster::read(store, &self.shared.origin, None).await else {
            return Vec::new();
        };
        let least = u64::from(settings.limits.nodes);
        self.leaves.set_nodes(roster.nodes().max(least));
        let listed = roster.into_known();
        if let Some(links) = &self.links {
            // Of nodes that start together none is on the list yet: those of before are tried too.
            let mut others = links.known.borrow().clone();
            others.retain(|node| !listed.iter().any(|other| other.node == node.node));
            others.extend(listed.iter().cloned());
            others.sort();
            tell(&links.known, others);
        }
        listed
    }
}

/// Rate limits that hold tokens.
pub struct Settling {
    limits: Arc<Limits>,
    running: JoinHandle<()>,
}

impl Settling {
    /// Writes to the store what was spent and gives the rest back: what is not settled counts as
    /// spent. To be called when no request is left.
    pub async fn settled(self) {
        self.limits.stop();
        if tokio::time::timeout(LEAVE_MAX, self.running).await.is_err() {
            warn!(
                "tokens in hand were not given back before the process ended: they count as spent"
            );
        }
    }
}

/// `linked`: nodes tell each other what their clocks show.
fn limit_settings(settings: &Settings, incarnation: Opener, linked: bool) -> limits::Settings {
    let alone = limits::Settings {
        key_writes_max: settings.limits.max_key_writes.max(1),
        ..limits::Settings::single_node(incarnation)
    };
    match settings.store.kind {
        StoreKind::Embedded => alone,
        StoreKind::Etcd => limits::Settings {
            nodes: settings.limits.nodes.max(1),
            max_skew: if linked { SKEW_MAX } else { UNKNOWN_SKEW_MAX },
            clocks_compared: linked,
            ..alone
        },
    }
}

/// The names that the operator gives addresses.
///
/// # Errors
/// The file cannot be read.
pub fn hosts(settings: &Settings) -> anyhow::Result<Hosts> {
    match &settings.dial_guard.hosts_file {
        Some(path) => hosts_file::read(path),
        None => Ok(Hosts::default()),
    }
}

fn shared(
    settings: &Settings,
    keyring: &Keyring,
    records: node::records::RecordSender,
    health: Health,
) -> anyhow::Result<(Shared, Option<Export>)> {
    let hosts = hosts(settings)?;
    let metrics = Metrics::default();
    if settings.gateway.tls.cert_file.is_some() {
        metrics.set_https();
    }
    let started =
        traces::start(settings, &metrics).map_err(|error| CannotStart(format!("{error:#}")))?;
    let (traces, export) = started.unzip();
    let shared = Shared {
        snapshot: node::gateway::empty_snapshot(keyring.digest_key.clone()),
        settings: Arc::new(settings.gateway.clone()),
        upstream: UpstreamSettings {
            hosts,
            counts: metrics.connections(),
            ..UpstreamSettings::default()
        },
        metrics,
        records,
        traces,
        origin: Arc::new(Origin {
            node: settings.name().into(),
            region: settings.region.as_str().into(),
        }),
        tests: TestQueue::default(),
        health,
    };
    Ok((shared, export))
}
