//! Keeps targets from being at an address of a control plane of the region, or of a member of the
//! store: where control planes listen stands in the store, and no setting permits to dial it. What
//! settings name is looked up again every [`LOOK`].
//!
//! A control plane says where it is bound, not how it is reached. What it has bound to loopback, or
//! to all addresses of its machine, is known here where that machine is this one, or is named by
//! `link.endpoints`. Who begins to listen is known within [`LOOK`]; a connection that a target was
//! given before that serves until it is as old as connections become.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use proto::keys;
use proto::listening::Listening;
use proto::store::{Store, StoreError, load};

use super::names::Names;
use crate::upstream::address::Learned;

/// How often it is looked where they are.
const LOOK: Duration = Duration::from_secs(5);
/// More than a region has.
const SOCKETS_MAX: usize = 256;

/// What tells the dial guard.
pub struct Planes {
    /// Where they say it.
    store: Arc<dyn Store>,
    named: Arc<Endpoints>,
    /// Whether an address is one of this machine.
    is_ours: fn(IpAddr) -> bool,
    /// What the guard judges by.
    learned: Learned,
    /// What they said last.
    said: Mutex<Vec<Listening>>,
}

/// What settings name.
#[derive(Debug, Default)]
pub struct Endpoints {
    /// `link.endpoints`.
    pub links: Names,
    /// The members of the store.
    pub store: Names,
}

impl Endpoints {
    /// Where they are, as far as is known.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        [self.links.addresses(), self.store.addresses()].concat()
    }
}

impl Planes {
    /// By what stands in this store, and by these names; tells it to `learned`.
    pub fn new(
        store: Arc<dyn Store>,
        named: Arc<Endpoints>,
        is_ours: fn(IpAddr) -> bool,
        learned: Learned,
    ) -> Self {
        Self {
            store,
            named,
            is_ours,
            learned,
            said: Mutex::default(),
        }
    }

    /// Runs until it is dropped. While the store is away what it said last holds.
    pub async fn run(&self) {
        // Names that do not resolve may take long to say so.
        tokio::join!(self.keep_looking(), self.keep_looking_up());
    }

    async fn keep_looking(&self) {
        loop {
            if let Err(error) = self.look().await {
                tracing::debug!(%error, "where control planes listen was not read: {error}");
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn keep_looking_up(&self) {
        loop {
            tokio::time::sleep(LOOK).await;
            self.look_up().await;
        }
    }

    async fn look(&self) -> Result<(), StoreError> {
        let mut said = Vec::new();
        load::list(&*self.store, keys::CONTROLS, None, |pair| {
            if said.len() < SOCKETS_MAX {
                said.push(Listening::parse(&pair.value));
            }
        })
        .await?;
        *self.said() = said;
        self.learn();
        Ok(())
    }

    /// Looks up what settings name.
    async fn look_up(&self) {
        tokio::join!(self.named.links.look(), self.named.store.look());
        self.learn();
    }

    fn said(&self) -> MutexGuard<'_, Vec<Listening>> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn learn(&self) {
        let links = self.named.links.addresses();
        let hosts: Vec<IpAddr> = links.iter().map(SocketAddr::ip).collect();
        let mut sockets = Vec::new();
        for listening in self.said().iter() {
            sockets.extend(reached_at(listening, &hosts, &self.is_ours));
        }
        sockets.sort_unstable();
        sockets.dedup();
        sockets.truncate(SOCKETS_MAX);
        sockets.extend(self.named.addresses());
        self.learned.set(sockets);
    }
}

/// The addresses at which a control plane is reached from here.
fn reached_at(
    listening: &Listening,
    hosts: &[IpAddr],
    is_ours: &dyn Fn(IpAddr) -> bool,
) -> Vec<SocketAddr> {
    let bound = listening.listens.iter().map(SocketAddr::ip);
    let named = bound.filter(|ip| !ip.is_unspecified() && !ip.is_loopback());
    let is_here = named.chain(hosts.iter().copied()).any(is_ours);
    let mut reached = Vec::new();
    for socket in &listening.listens {
        if socket.ip().is_unspecified() {
            let everywhere = hosts.iter().map(|ip| SocketAddr::new(*ip, socket.port()));
            reached.extend(everywhere);
        }
        if is_here || !(socket.ip().is_unspecified() || socket.ip().is_loopback()) {
            reached.push(*socket);
        }
    }
    reached
}

#[cfg(test)]
mod tests {
    use proto::store::embedded::Embedded;
    use proto::store::{Op, Txn};

    use super::*;
    use crate::upstream::address::{GuardPolicy, Never, PermitEntry, Refused, judge};

    #[test]
    fn a_control_plane_is_where_it_listens_as_seen_from_here() {
        let check = |listens: &[&str], hosts: &[&str], ours: &'static str, expected: &[&str]| {
            let socket = |text: &&str| text.parse::<SocketAddr>().unwrap();
            let listening = Listening {
                listens: listens.iter().map(socket).collect(),
            };
            let hosts: Vec<IpAddr> = hosts.iter().map(|text| text.parse().unwrap()).collect();
            let is_ours = |ip: IpAddr| ip.to_string() == ours;
            let expected: Vec<SocketAddr> = expected.iter().map(socket).collect();
            let reached = reached_at(&listening, &hosts, &is_ours);
            assert_eq!(reached, expected, "{listens:?} {hosts:?} {ours}");
        };
        let named = ["10.0.0.5:8081", "[fd00::5]:8082"];
        check(&named, &[], "10.0.0.1", &named);
        check(&["127.0.0.1:8081"], &["10.0.0.5"], "10.0.0.1", &[]);
        check(
            &["127.0.0.1:8081"],
            &["10.0.0.5"],
            "10.0.0.5",
            &["127.0.0.1:8081"],
        );
        check(
            &["0.0.0.0:8081"],
            &["10.0.0.5", "10.0.0.6"],
            "10.0.0.1",
            &["10.0.0.5:8081", "10.0.0.6:8081"],
        );
        check(
            &["[::]:8081", "10.0.0.5:8082"],
            &[],
            "10.0.0.5",
            &["[::]:8081", "10.0.0.5:8082"],
        );
    }

    #[tokio::test]
    async fn what_the_store_says_is_never_dialled() {
        let dir = tempfile::tempdir().unwrap();
        let store: Arc<dyn Store> = Embedded::open(&dir.path().join("store")).unwrap();
        let named = Arc::<Endpoints>::default();
        let planes = Planes::new(store.clone(), named, |_| false, Learned::default());
        let permit = PermitEntry::all();
        let policy = GuardPolicy {
            allow_networks: permit.iter().map(|entry| entry.network).collect(),
            permit,
            never: Never {
                learned: planes.learned.clone(),
                ..Never::default()
            },
        };
        let rest: SocketAddr = "10.0.0.5:8081".parse().unwrap();
        let judged = || judge(rest, &policy, &|_| false);
        planes.look().await.unwrap();
        assert!(judged().is_ok(), "nobody is there");
        let listening = Listening {
            listens: vec![rest],
        };
        let put = |name: &str, value: Vec<u8>| Op::put(keys::control(name), value);
        let txn = Txn {
            ops: vec![put("new", listening.to_json()), put("old", b"old".to_vec())],
            ..Txn::default()
        };
        store.txn(txn).await.unwrap();
        planes.look().await.unwrap();
        assert_eq!(judged().unwrap_err(), Refused::Never);
        let txn = Txn {
            ops: vec![Op::Delete(keys::control("new"))],
            ..Txn::default()
        };
        store.txn(txn).await.unwrap();
        planes.look().await.unwrap();
        assert!(judged().is_ok(), "it is gone");
    }

    #[tokio::test]
    async fn what_settings_name_is_never_dialled_where_it_is_now() {
        let dir = tempfile::tempdir().unwrap();
        let store: Arc<dyn Store> = Embedded::open(&dir.path().join("store")).unwrap();
        let names = |name: &str| Names::of([name.to_owned()].into_iter());
        let named = Arc::new(Endpoints {
            links: names("10.0.0.5:8082"),
            store: names("10.0.0.6:2379"),
        });
        let learned = Learned::default();
        let planes = Planes::new(store.clone(), named, |_| false, learned.clone());
        let permit = PermitEntry::all();
        let policy = GuardPolicy {
            allow_networks: permit.iter().map(|entry| entry.network).collect(),
            permit,
            never: Never {
                learned,
                ..Never::default()
            },
        };
        let judged = |socket: &str| {
            let socket: SocketAddr = socket.parse().unwrap();
            judge(socket, &policy, &|_| false)
        };
        let listening = Listening {
            listens: vec!["0.0.0.0:8081".parse().unwrap()],
        };
        let txn = Txn {
            ops: vec![Op::put(keys::control("a"), listening.to_json())],
            ..Txn::default()
        };
        store.txn(txn).await.unwrap();
        planes.look().await.unwrap();
        planes.look_up().await;
        for socket in ["10.0.0.5:8082", "10.0.0.6:2379", "10.0.0.5:8081"] {
            assert_eq!(judged(socket).unwrap_err(), Refused::Never, "{socket}");
        }
        assert!(judged("10.0.0.6:8081").is_ok());
    }
}
