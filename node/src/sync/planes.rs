//! Keeps targets from being at an address of a control plane of the region: where these listen
//! stands in the store, and no setting permits to dial it.
//!
//! A control plane says where it is bound, not how it is reached. What it has bound to loopback, or
//! to all addresses of its machine, is known here where that machine is this one, or is named by
//! `link.endpoints`. Who begins to listen is known within [`LOOK`]; a connection that a target was
//! given before that serves until it is as old as connections become.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use proto::keys;
use proto::listening::Listening;
use proto::store::{Store, StoreError, load};

use crate::upstream::address::Learned;

/// How often it is looked where they are.
const LOOK: Duration = Duration::from_secs(5);
/// More than a region has.
const SOCKETS_MAX: usize = 256;

/// What tells the dial guard.
pub struct Planes {
    /// Where they say it.
    pub store: Arc<dyn Store>,
    /// The addresses of `link.endpoints`.
    pub hosts: Vec<IpAddr>,
    /// Whether an address is one of this machine.
    pub is_ours: fn(IpAddr) -> bool,
    /// What the guard judges by.
    pub learned: Learned,
}

impl Planes {
    /// Runs until it is dropped. While the store is away what it said last holds.
    pub async fn run(&self) {
        loop {
            if let Err(error) = self.look().await {
                tracing::debug!(%error, "where control planes listen was not read: {error}");
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn look(&self) -> Result<(), StoreError> {
        let mut sockets = Vec::new();
        load::list(&*self.store, keys::CONTROLS, None, |pair| {
            let listening = Listening::parse(&pair.value);
            sockets.extend(reached_at(&listening, &self.hosts, &self.is_ours));
        })
        .await?;
        sockets.sort_unstable();
        sockets.dedup();
        sockets.truncate(SOCKETS_MAX);
        self.learned.set(sockets);
        Ok(())
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
        let planes = Planes {
            store: store.clone(),
            hosts: Vec::new(),
            is_ours: |_| false,
            learned: Learned::default(),
        };
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
}
