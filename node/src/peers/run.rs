//! Keeps a link to every known node: dials with backoff, listens, calls back who knocked.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tracing::{debug, info, warn};

use super::greet::{self, Spoken};
use super::wire::PROTOCOL;
use super::{Identity, Known, Peers, Tls, node_number};

/// First wait after a failed attempt; it doubles up to [`BACKOFF_MAX`], each with jitter.
const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// How often a node that is to be called looks whether it was.
const KNOCK: Duration = Duration::from_secs(5);
/// How long a node that knocked is known before the list of nodes must have it.
const HEARD: Duration = Duration::from_secs(30);
/// Most connections that come and are not greeted yet.
const GREETINGS_MAX: usize = 256;
/// Knocks that wait to be answered.
const KNOCKS: usize = 64;

/// Serves the links until it is dropped. `known` are the other nodes that may be dialled.
pub async fn run(
    peers: Peers,
    me: Identity,
    tls: Tls,
    listener: TcpListener,
    mut known: watch::Receiver<Vec<Known>>,
) {
    let context = Arc::new(Context { peers, me, tls });
    let (knocked, mut knocks) = mpsc::channel(KNOCKS);
    let mut tasks = JoinSet::new();
    tasks.spawn(listen(Arc::clone(&context), listener, knocked));
    let mut dialling: HashMap<Known, AbortHandle> = HashMap::new();
    let mut heard: HashMap<Known, Instant> = HashMap::new();
    loop {
        while tasks.try_join_next().is_some() {}
        heard.retain(|_, at| at.elapsed() < HEARD);
        let listed = known.borrow_and_update().clone();
        let mut wanted: HashSet<Known> = listed.into_iter().collect();
        wanted.extend(heard.keys().cloned());
        wanted.retain(|node| node.node != context.me.node);
        // Who is not known any more is not dialled again, nor where a node was before; a link that
        // stands stays.
        dialling.retain(|node, task| {
            let moved = wanted.iter().any(|known| known.node == node.node);
            let linked = context.peers.is_linked(context.number(&node.node));
            let keep = wanted.contains(node) || (linked && !moved);
            if !keep {
                task.abort();
                context.peers.unreachable(&node.node, false);
            }
            keep
        });
        for node in wanted {
            let dial = || tasks.spawn(keep(Arc::clone(&context), node.clone()));
            dialling.entry(node.clone()).or_insert_with(dial);
        }
        tokio::select! {
            changed = known.changed() => {
                if changed.is_err() {
                    // Nobody lists nodes any more: the process ends.
                    return;
                }
            }
            Some(node) = knocks.recv() => {
                heard.insert(node, Instant::now());
            }
            () = tokio::time::sleep(KNOCK) => {}
        }
    }
}

struct Context {
    peers: Peers,
    me: Identity,
    tls: Tls,
}

impl Context {
    fn number(&self, node: &str) -> u64 {
        node_number(&self.me.region, node)
    }
}

/// Keeps the link to a node, or knocks until it keeps one to us.
async fn keep(context: Arc<Context>, node: Known) {
    let mut backoff = BACKOFF_MIN;
    loop {
        if context.peers.is_linked(context.number(&node.node)) {
            tokio::time::sleep(KNOCK).await;
            continue;
        }
        let dialled = greet::dial(&node.address, &node.node, &context.me, &context.tls).await;
        context.peers.unreachable(&node.node, dialled.is_err());
        match dialled {
            Ok(Some((stream, spoken))) => {
                backoff = BACKOFF_MIN;
                attend(&context, stream, &node.node, spoken).await;
            }
            Ok(None) => {
                tokio::time::sleep(KNOCK).await;
                continue;
            }
            Err(error) => {
                let Known { node, address } = &node;
                if backoff == BACKOFF_MIN {
                    warn!(%error, "no link to node {node} at {address}: {error}");
                } else {
                    debug!(%error, "still no link to node {node} at {address}: {error}");
                }
            }
        }
        tokio::time::sleep(jittered(backoff)).await;
        backoff = backoff.saturating_mul(2).min(BACKOFF_MAX);
    }
}

async fn attend(context: &Context, stream: greet::Stream, node: &str, mut spoken: Spoken) {
    // What it says of itself counts as far as its certificate names it.
    spoken.peer.node = context.number(node);
    info!(node, "linked with node {node}");
    match context.peers.carry(stream, spoken).await {
        Ok(()) => info!(node, "the link with node {node} was replaced"),
        Err(error) => info!(node, "the link with node {node} ended: {error}"),
    }
}

async fn listen(context: Arc<Context>, listener: TcpListener, knocked: mpsc::Sender<Known>) {
    let greetings = Arc::new(Semaphore::new(GREETINGS_MAX));
    let mut links = JoinSet::new();
    loop {
        while links.try_join_next().is_some() {}
        let Ok(greeting) = Arc::clone(&greetings).acquire_owned().await else {
            return;
        };
        let (tcp, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, mostly: others must close first.
                warn!(%error, "no connection of a peer can be taken: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (context, knocked) = (Arc::clone(&context), knocked.clone());
        links.spawn(async move {
            let greeted = greet::accept(tcp, &context.me, &context.tls).await;
            drop(greeting);
            match greeted {
                Ok((hello, Some(stream))) => {
                    let spoken = Spoken {
                        peer: hello.incarnation,
                        protocol: hello.protocol.min(PROTOCOL),
                    };
                    attend(&context, stream, &hello.node, spoken).await;
                }
                Ok((hello, None)) => {
                    let (node, address) = (hello.node, hello.address);
                    // With too many knocks at once the next one comes again.
                    let _ = knocked.try_send(Known { node, address });
                }
                Err(error) => {
                    let stats = &context.peers.shared.stats;
                    stats.refused.fetch_add(1, Ordering::Relaxed);
                    warn!(%from, "a connection of a peer from {from} failed: {error}");
                }
            }
        });
    }
}

/// Between half of it and all of it: nodes that lost each other together come back apart.
fn jittered(wait: Duration) -> Duration {
    wait.mul_f64(0.5 + rand::random::<f64>() / 2.0)
}
