//! Links over real sockets and certificates: who is let in, what passes, what an end looks like.

use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use proto::health::Health;
use proto::id::{CredentialId, OrgId};
use proto::retired::Retired;
use proto::store::embedded::Embedded;
use proto::store::follow::{OrgState, World};
use proto::store::nearby::Nearby;
use proto::store::{Compare, Op, Revision, Store, Txn, TxnOutcome};
use proto::tree::{Hash, OrgConfig};
use proto::version::{Epoch, Generation};
use rcgen::{CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::*;
use crate::limits::exchange::TokenBatch;
use crate::limits::slots::relayed::SlotPeers;
use crate::limits::slots::state::SlotState;
use crate::limits::{ShiftedClock, SystemClock};

type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority() -> Authority {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// TLS of a node whose certificate, from `own`, names `name`, and that trusts `trusted`.
fn tls(own: &Authority, trusted: &Authority, name: &str) -> Tls {
    let mut params = CertificateParams::new([name.to_owned()]).unwrap();
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    let key = KeyPair::generate().unwrap();
    let chain = vec![CertificateDer::from(
        params.signed_by(&key, own).unwrap().der().to_vec(),
    )];
    let key = || PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let mut roots = RootCertStore::empty();
    let trusted: &rcgen::Certificate = trusted.as_ref();
    roots.add(trusted.der().clone()).unwrap();
    let roots = Arc::new(roots);
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider));
    let server = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier.build().unwrap())
        .with_single_cert(chain.clone(), key())
        .unwrap();
    let client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key())
        .unwrap();
    Tls {
        server: Arc::new(server),
        client: Arc::new(client),
    }
}

struct Node {
    me: Identity,
    peers: Peers,
    events: mpsc::Receiver<PeerEvent>,
    known: watch::Sender<Vec<Known>>,
    running: JoinHandle<()>,
    stats: Arc<PeerStats>,
    leaves: Arc<Leaves>,
    facts: Arc<Facts>,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.running.abort();
    }
}

impl Node {
    async fn start(name: &str, region: &str, tls: Tls) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self::on(listener, name, region, tls, 0)
    }

    /// Its wall clock is ahead by so much.
    fn on(listener: TcpListener, name: &str, region: &str, tls: Tls, ahead_ns: i64) -> Self {
        let (stats, leaves) = (Arc::new(PeerStats::default()), Arc::default());
        let facts: Arc<Facts> = Arc::default();
        let clock = Arc::new(ShiftedClock { ahead_ns });
        let given = (Arc::clone(&stats), Arc::clone(&leaves), Arc::clone(&facts));
        let (peers, events) = Peers::new(clock, given.0, given.1, given.2);
        leaves.linked(peers.clone());
        let me = Identity {
            node: name.into(),
            region: region.into(),
            incarnation: Opener {
                node: node_number(region, name),
                boot: rand::random(),
            },
            address: listener.local_addr().unwrap().to_string(),
        };
        let (known, listed) = watch::channel(Vec::new());
        let running = run::run(peers.clone(), me.clone(), tls, listener, listed);
        Self {
            me,
            peers,
            events,
            known,
            running: tokio::spawn(running),
            stats,
            leaves,
            facts,
        }
    }

    fn knows(&self, others: &[&Node]) {
        let known = others.iter().map(|node| Known {
            node: node.me.node.clone(),
            address: node.me.address.clone(),
        });
        self.known.send_replace(known.collect());
    }

    async fn next(&mut self) -> PeerEvent {
        loop {
            let next = tokio::time::timeout(Duration::from_secs(20), self.events.recv());
            match next.await.expect("an event in time").expect("a service") {
                PeerEvent::Clock(..) => {}
                event => return event,
            }
        }
    }

    /// How far a peer's wall clock is ahead of our boot clock: at least and at most.
    async fn clock(&mut self, of: Opener) -> (i128, i128) {
        loop {
            let next = tokio::time::timeout(Duration::from_secs(20), self.events.recv());
            if let Some(PeerEvent::Clock(peer, sample)) = next.await.expect("in time")
                && peer == of
            {
                let ahead = |boot_ns| i128::from(sample.unix_ns) - i128::from(boot_ns);
                return (ahead(sample.heard_ns), ahead(sample.asked_ns));
            }
        }
    }

    async fn up(&mut self, peer: &Node) {
        let event = self.next().await;
        assert!(
            matches!(event, PeerEvent::Up(up) if up == peer.me.incarnation),
            "{event:?}"
        );
    }
}

/// Two nodes that have a link.
async fn linked_pair() -> (Node, Node) {
    let ca = authority();
    let mut a = Node::start("gw-a", "eu", tls(&ca, &ca, "gw-a")).await;
    let mut b = Node::start("gw-b", "eu", tls(&ca, &ca, "gw-b")).await;
    a.knows(&[&b]);
    a.up(&b).await;
    b.up(&a).await;
    (a, b)
}

async fn until(what: &str, met: impl Fn() -> bool) {
    let met = async {
        while !met() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(20), met).await;
    waited.unwrap_or_else(|_| panic!("{what}"));
}

#[tokio::test]
async fn a_pair_has_one_link_whichever_of_them_knows_of_the_other() {
    let ca = authority();
    for first_knows in [true, false] {
        let mut a = Node::start("gw-a", "eu", tls(&ca, &ca, "gw-a")).await;
        let mut b = Node::start("gw-b", "eu", tls(&ca, &ca, "gw-b")).await;
        match first_knows {
            true => a.knows(&[&b]),
            // It knocks and is called back.
            false => b.knows(&[&a]),
        }
        a.up(&b).await;
        b.up(&a).await;
        let batch = TokenBatch::default();
        let said = PeerMessage::Tokens(batch.clone());
        assert!(a.peers.send(b.me.incarnation, said));
        let event = b.next().await;
        let me = a.me.incarnation;
        assert!(
            matches!(&event, PeerEvent::Said(from, said) if *from == me && *said == batch),
            "{event:?}"
        );
        assert!(a.stats.sent.load(Ordering::Relaxed) >= 1);
        assert_eq!(a.stats.linked.load(Ordering::Relaxed), 1);
        assert_eq!(b.stats.linked.load(Ordering::Relaxed), 1);
        let stranger = Opener { node: 1, boot: 1 };
        assert!(!a.peers.send(stranger, PeerMessage::Beat));
    }
}

#[tokio::test]
async fn a_link_that_ends_is_told_and_comes_back_to_the_next_start_of_the_node() {
    let ca = authority();
    let (tls_a, tls_b) = (tls(&ca, &ca, "gw-a"), tls(&ca, &ca, "gw-b"));
    let mut a = Node::start("gw-a", "eu", tls_a).await;
    let mut b = Node::start("gw-b", "eu", tls_b.clone()).await;
    a.knows(&[&b]);
    a.up(&b).await;
    b.up(&a).await;
    let (address, before) = (b.me.address.clone(), b.me.incarnation);
    drop(b);
    let event = a.next().await;
    assert!(
        matches!(event, PeerEvent::Down(down) if down == before),
        "{event:?}"
    );
    // The port is free once the aborted listener is gone.
    let listener = loop {
        match TcpListener::bind(&address).await {
            Ok(listener) => break listener,
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    };
    let b = Node::on(listener, "gw-b", "eu", tls_b, 0);
    a.up(&b).await;
    assert_ne!(before, b.me.incarnation);
    assert_eq!(before.node, b.me.incarnation.node);
}

#[tokio::test]
async fn who_is_not_the_node_that_it_says_is_not_let_in() {
    let (ca, other) = (authority(), authority());
    let cases = [
        // A certificate of another authority, of another name, of another region, of our name.
        ("gw-a", "eu", tls(&other, &ca, "gw-a")),
        ("gw-a", "eu", tls(&ca, &ca, "gw-x")),
        ("gw-a", "us", tls(&ca, &ca, "gw-a")),
        ("gw-b", "eu", tls(&ca, &ca, "gw-b")),
    ];
    let b = Node::start("gw-b", "eu", tls(&ca, &ca, "gw-b")).await;
    for (at, (name, region, tls)) in cases.into_iter().enumerate() {
        let caller = Identity {
            node: name.into(),
            region: region.into(),
            incarnation: Opener { node: 7, boot: 7 },
            address: "127.0.0.1:1".into(),
        };
        let dialled = greet::dial(&b.me.address, "gw-b", &caller, &tls).await;
        // With TLS 1.3 the refusal of a certificate is read, not met in the handshake.
        assert!(dialled.is_err(), "case {at}");
        until("it was not refused", || {
            b.stats.refused.load(Ordering::Relaxed) == at as u64 + 1
        })
        .await;
    }
    assert_eq!(b.stats.linked.load(Ordering::Relaxed), 0);
    // And a node that is not the one that was dialled is left.
    let a = Node::start("gw-a", "eu", tls(&ca, &ca, "gw-a")).await;
    let dialled = greet::dial(&b.me.address, "gw-c", &a.me, &tls(&ca, &ca, "gw-a")).await;
    assert!(dialled.is_err());
}

#[tokio::test]
async fn what_is_no_frame_ends_the_connection() {
    let ca = authority();
    let b = Node::start("gw-b", "eu", tls(&ca, &ca, "gw-b")).await;
    let tcp = tokio::net::TcpStream::connect(&b.me.address).await.unwrap();
    let client = tls(&ca, &ca, "gw-a").client;
    let connector = tokio_rustls::TlsConnector::from(client);
    let name = rustls::pki_types::ServerName::try_from("gw-b").unwrap();
    let mut stream = connector.connect(name, tcp).await.unwrap();
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    assert!(answer.is_empty());
    until("it was not refused", || {
        b.stats.refused.load(Ordering::Relaxed) == 1
    })
    .await;
}

#[tokio::test]
async fn a_leaf_comes_from_a_peer_that_serves_it_or_has_just_read_it() {
    let (a, b) = linked_pair().await;
    let packed = |content: &[u8]| Bytes::from(zstd::bulk::compress(content, 3).unwrap());
    let (one, other) = (Hash::of(b"one"), Hash::of(b"other"));
    let from = |node: &Node| {
        let (peers, store) = (&node.stats.leaves_from_peers, &node.stats.leaves_from_store);
        (peers.load(Ordering::Relaxed), store.load(Ordering::Relaxed))
    };
    assert_eq!(
        a.leaves.leaf(ORG, one).await,
        None,
        "it says that it has none"
    );
    // It still reads the version, which is not served yet.
    b.leaves.stored(ORG, one, &packed(b"one"));
    assert_eq!(from(&b), (0, 1));
    assert_eq!(a.leaves.leaf(ORG, one).await, Some(b"one".to_vec()));
    assert_eq!(from(&a), (1, 0));
    let held = a.leaves.held(&proto::keys::leaf(ORG, &one));
    assert_eq!(held, Some(packed(b"one").to_vec()), "and gives it on");
    // What has another hash is not taken.
    b.leaves.stored(ORG, other, &packed(b"else"));
    assert_eq!(a.leaves.leaf(ORG, other).await, None);
    assert_eq!(from(&a), (1, 0));
    // With the version in effect what was kept for it goes.
    let (_world, applied) = watch::channel(Arc::default());
    let tidying = tokio::spawn(b.leaves.begin(applied));
    until("it is kept on", || {
        b.leaves.held(&proto::keys::leaf(ORG, &one)).is_none()
    })
    .await;
    tidying.abort();
}

#[tokio::test]
async fn links_are_waited_for_as_long_as_they_can_be_had() {
    let ca = authority();
    let a = Node::start("gw-a", "eu", tls(&ca, &ca, "gw-a")).await;
    let b = Node::start("gw-b", "eu", tls(&ca, &ca, "gw-b")).await;
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let known = |node: &str, address: String| Known {
        node: node.into(),
        address,
    };
    // Nobody listens there any more.
    let freed = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let gone = known("gw-c", freed.local_addr().unwrap().to_string());
    drop(freed);
    let silent_one = known("gw-d", silent.local_addr().unwrap().to_string());
    let there = known("gw-b", b.me.address.clone());
    let others = [there.clone(), gone.clone()];
    a.known.send_replace(others.to_vec());
    let met = tokio::time::timeout(Duration::from_secs(20), a.peers.linked(&others, 2));
    met.await.expect("who is gone is not waited for");
    assert_eq!(a.stats.linked.load(Ordering::Relaxed), 1);
    // Who takes connections may still answer.
    let others = [there, gone, silent_one];
    a.known.send_replace(others.to_vec());
    let accepted = tokio::time::timeout(Duration::from_secs(20), silent.accept());
    let _held = accepted.await.expect("it is dialled").unwrap();
    let met = a.peers.linked(&others, 2).now_or_never();
    assert!(met.is_none());
    assert!(a.peers.linked(&others, 1).now_or_never().is_some());
}

#[tokio::test]
async fn who_gave_the_last_leaf_is_asked_first() {
    let ca = authority();
    let a = Node::start("gw-a", "eu", tls(&ca, &ca, "gw-a")).await;
    let mut others = Vec::new();
    for name in ["gw-b", "gw-c", "gw-d", "gw-e"] {
        others.push(Node::start(name, "eu", tls(&ca, &ca, name)).await);
    }
    a.knows(&others.iter().collect::<Vec<_>>());
    let known = a.known.borrow().clone();
    a.peers.linked(&known, others.len()).await;
    let giver = &others[2];
    let packed = |content: &[u8]| Bytes::from(zstd::bulk::compress(content, 3).unwrap());
    let names: Vec<String> = (0..200).map(|at| at.to_string()).collect();
    for name in &names {
        let hash = Hash::of(name.as_bytes());
        giver.leaves.stored(ORG, hash, &packed(name.as_bytes()));
    }
    let mut given = 0;
    for name in &names {
        let content = a.leaves.leaf(ORG, Hash::of(name.as_bytes())).await;
        // Of four peers two are asked until one has something.
        given += usize::from(content.is_some());
    }
    assert!(given > 150, "{given} of 200");
}

#[tokio::test]
async fn slots_are_written_by_a_peer_that_reaches_the_store() {
    let (a, b) = linked_pair().await;
    let mut state = SlotState::default();
    assert!(state.set(a.me.incarnation, 3, 100));
    let bytes = state.encode().unwrap();
    let write = |key: &str, expected: Option<Revision>, next: Option<Vec<u8>>| Txn {
        compares: vec![match expected {
            Some(revision) => Compare::ModRevision(key.into(), revision),
            None => Compare::Absent(key.into()),
        }],
        ops: vec![match next {
            Some(next) => Op::put(key, next),
            None => Op::Delete(key.into()),
        }],
        or_read: vec![key.into()],
    };
    let first = || write("slots/k", None, Some(bytes.clone()));
    assert_eq!(a.peers.relay(first()).await, None, "b has no store");
    let dir = tempfile::tempdir().unwrap();
    let store: Arc<dyn Store> = Embedded::open(&dir.path().join("store")).unwrap();
    b.peers.write_slots_for_peers(store.clone());
    let Some(TxnOutcome::Committed(at)) = a.peers.relay(first()).await else {
        panic!("it is written");
    };
    let Some(TxnOutcome::Conflict(seen)) = a.peers.relay(first()).await else {
        panic!("it is there already");
    };
    let found = seen.value[0].as_ref().expect("its value");
    assert_eq!((&found.value[..], found.mod_revision), (&bytes[..], at));
    let gone = a.peers.relay(write("slots/k", Some(at), None)).await;
    assert!(matches!(gone, Some(TxnOutcome::Committed(_))), "{gone:?}");
    // Nothing but slots is written for others.
    for (key, next) in [("tokens/k", bytes.clone()), ("slots/k", b"junk".to_vec())] {
        assert_eq!(a.peers.relay(write(key, None, Some(next))).await, None);
        assert_eq!(store.get(key).await.unwrap().value, None);
    }
}

const ORG: OrgId = OrgId::from_bits(5);
const CREDENTIAL: CredentialId = CredentialId::from_bits(6);

/// A world in which of one credential everything below this generation is over.
fn world(lowest: Option<u64>) -> Arc<World> {
    let epoch = Epoch {
        counter: 1,
        region: "eu".into(),
    };
    let fact = |n| Retired {
        lowest: Generation {
            epoch: epoch.clone(),
            n,
        },
        next: None,
    };
    let retired = lowest.map(|n| (CREDENTIAL, fact(n))).into_iter().collect();
    let state = OrgState {
        config: Arc::new(OrgConfig::genesis(ORG, epoch.clone())),
        sealed: Arc::default(),
        sealed_whole: true,
        retired: Arc::new(retired),
    };
    let mut world = World::default();
    world.orgs.insert(ORG, Arc::new(state));
    Arc::new(world)
}

fn lowest(world: &World) -> Option<u64> {
    let fact = world.orgs.get(&ORG)?.retired.get(&CREDENTIAL)?;
    Some(fact.lowest.n)
}

/// A node's facts at work: what the store says, and what the node serves.
struct Told {
    store: watch::Sender<Arc<World>>,
    serves: watch::Receiver<Arc<World>>,
    health: Health,
    tasks: [JoinHandle<()>; 2],
}

impl Drop for Told {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Told {
    fn begin(node: &Node, first: Option<u64>) -> Self {
        let (store, worlds) = watch::channel(world(first));
        let health = Health::default();
        let (serves, merging) = node.facts.begin(worlds, health.clone());
        let announcing = facts::announce(node.peers.clone(), node.facts.clone(), serves.clone());
        let tasks = [tokio::spawn(merging), tokio::spawn(announcing)];
        Self {
            store,
            serves,
            health,
            tasks,
        }
    }

    async fn until(&mut self, wanted: Option<u64>) -> Arc<World> {
        let wait = self.serves.wait_for(|world| lowest(world) == wanted);
        let found = tokio::time::timeout(Duration::from_secs(20), wait).await;
        found.expect("in time").expect("a world").clone()
    }
}

#[tokio::test]
async fn a_node_without_the_store_learns_from_a_peer_which_secrets_are_over() {
    let authority = authority();
    let tls = |name: &str| tls(&authority, &authority, name);
    let mut a = Node::start("a", "eu", tls("a")).await;
    let mut b = Node::start("b", "eu", tls("b")).await;
    let mut at_a = Told::begin(&a, Some(1));
    let mut at_b = Told::begin(&b, Some(1));
    a.knows(&[&b]);
    b.knows(&[&a]);
    a.up(&b).await;
    b.up(&a).await;
    at_a.health.facts_were_whole(Duration::ZERO);
    at_b.health.store_reached(false);
    // A key is revoked; only `a` hears of it from the store.
    at_a.store.send_replace(world(Some(7)));
    at_a.until(Some(7)).await;
    at_b.until(Some(7)).await;
    let known = async {
        while at_b.health.facts_age().is_none() {
            tokio::task::yield_now().await;
        }
    };
    let known = tokio::time::timeout(Duration::from_secs(20), known);
    known
        .await
        .expect("the peer has told how old its facts are");
    // What an old copy of the store says does not take it back.
    at_b.store.send_replace(world(Some(3)));
    at_b.serves.changed().await.unwrap();
    let later = at_b.serves.borrow_and_update().clone();
    assert_eq!(lowest(&later), Some(7));
    // Back at the store, which has gone on.
    at_b.health.store_reached(true);
    at_b.store.send_replace(world(Some(9)));
    at_b.until(Some(9)).await;
}

#[tokio::test]
async fn a_node_with_the_store_asks_nobody_for_facts() {
    let authority = authority();
    let tls = |name: &str| tls(&authority, &authority, name);
    let mut a = Node::start("a", "eu", tls("a")).await;
    let mut b = Node::start("b", "eu", tls("b")).await;
    let _at_a = Told::begin(&a, Some(7));
    let mut at_b = Told::begin(&b, None);
    a.knows(&[&b]);
    b.knows(&[&a]);
    a.up(&b).await;
    b.up(&a).await;
    let heard = b.stats.received.load(Ordering::Relaxed);
    until("a beat or an announcement", || {
        b.stats.received.load(Ordering::Relaxed) > heard + 6
    })
    .await;
    let serves = at_b.until(None).await;
    assert_eq!(lowest(&serves), None);
}

#[tokio::test]
async fn peers_tell_each_other_what_their_wall_clocks_show() {
    const HOUR: i64 = 3_600_000_000_000;
    let ca = authority();
    let mut a = Node::start("gw-a", "eu", tls(&ca, &ca, "gw-a")).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut b = Node::on(listener, "gw-b", "eu", tls(&ca, &ca, "gw-b"), -HOUR);
    a.knows(&[&b]);
    let own = SystemClock.moment();
    let own_ahead = i128::from(own.unix_ns) - i128::from(own.boot_ns);
    let (of_a, of_b) = (a.me.incarnation, b.me.incarnation);
    for (node, peer, off_ns) in [(&mut a, of_b, -HOUR), (&mut b, of_a, 0)] {
        let (least, most) = node.clock(peer).await;
        let expected = own_ahead + i128::from(off_ns);
        // The machine's own clock may be slewed meanwhile.
        let slewed = 5_000_000;
        assert!(
            least <= expected + slewed && expected <= most + slewed,
            "{least} {expected} {most}"
        );
    }
}
