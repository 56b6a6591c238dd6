//! Tells the others that this node is there: its state in the store, under a lease.
//!
//! A node that ends takes its entry away; one that dies is gone when its lease ends. While the
//! store cannot be reached the node serves on and tries again.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use proto::health::Health;
use proto::id::NodeId;
use proto::keys;
use proto::member::{FAULTS_MAX, FailingEndpoint, Member, MemberFault, Sealing};
use proto::restarts::Restarts;
use proto::seal::Keyring;
use proto::store::follow::World;
use proto::store::load::Fault;
use proto::store::{Store, StoreError};
use tokio::sync::{oneshot, watch};

use super::entry::Entry;
use super::roster::Roster;
use super::rotation;
use crate::health_checks::Checked;
use crate::metrics::Metrics;
use crate::peers::Known;
use crate::stages::record::Origin;

/// How often the nodes of the region are counted.
const COUNT: Duration = Duration::from_secs(10);
/// Counts with another node of the same name after which that is no node that was restarted.
const NAMESAKES_MAX: u32 = 3;
/// When the entry is written.
const PACE: Pace = Pace {
    renew: Duration::from_secs(5),
    pause: Duration::from_secs(2),
};

/// See [`PACE`].
#[derive(Clone, Copy)]
struct Pace {
    /// How often the lease is renewed.
    renew: Duration,
    /// Shortest time between two writes.
    pause: Duration,
}

/// What is told.
pub struct Membership {
    /// Who it is.
    pub origin: Arc<Origin>,
    /// Where it listens for callers.
    pub address: String,
    /// Where it listens for its peers; `None`: it has no links.
    pub peers: Option<String>,
    /// The version of the program.
    pub program: String,
    /// What requests see.
    pub applied: watch::Receiver<Arc<World>>,
    /// What is going on.
    pub metrics: Metrics,
    /// How many meters go without owner and store.
    pub degraded: Box<dyn Fn() -> u64 + Send + Sync>,
    /// Which tasks of the process panicked.
    pub health: Health,
    /// What opens sealed secrets.
    pub keyring: Arc<Keyring>,
    /// Is told how many nodes the region has, this one included, whenever they were counted, and
    /// which others can be dialled.
    pub counted: Box<dyn Fn(u64, Vec<Known>) + Send + Sync>,
}

/// Keeps the entry until `stop` is sent or dropped, then takes it away.
pub async fn run(membership: Membership, store: Arc<dyn Store>, stop: oneshot::Receiver<()>) {
    run_at(PACE, membership, store, stop).await;
}

async fn run_at(
    pace: Pace,
    membership: Membership,
    store: Arc<dyn Store>,
    mut stop: oneshot::Receiver<()>,
) {
    let id = NodeId::new();
    let mut keeper = Keeper {
        id,
        entry: Entry::new(store.clone(), keys::node(id)),
        started_at: Timestamp::now(),
        membership,
        store,
        pace,
        tried_at: None,
        told: None,
        sealing: None,
        counted_at: None,
        namesakes: 0,
    };
    let mut restarts = Restarts::of("membership", keeper.membership.health.clone());
    loop {
        tokio::select! {
            _ = restarts.run(keeper.keep()) => {}
            _ = &mut stop => return keeper.entry.leave().await,
        }
    }
}

struct Keeper {
    id: NodeId,
    entry: Entry,
    started_at: Timestamp,
    membership: Membership,
    store: Arc<dyn Store>,
    pace: Pace,
    /// When the entry was last looked at, also by a run that panicked.
    tried_at: Option<Instant>,
    told: Option<Member>,
    /// What is sealed to which key in a world, which it does not keep: counted once for each.
    sealing: Option<(Weak<World>, Sealing)>,
    counted_at: Option<Instant>,
    namesakes: u32,
}

impl Keeper {
    async fn keep(&mut self) {
        let Pace { renew, pause } = self.pace;
        loop {
            if let Some(tried_at) = self.tried_at {
                tokio::time::sleep(pause.saturating_sub(tried_at.elapsed())).await;
                let mut applied = self.membership.applied.clone();
                tokio::select! {
                    _ = applied.changed() => {}
                    () = tokio::time::sleep(renew.saturating_sub(pause)) => {}
                }
            }
            self.tried_at = Some(Instant::now());
            if let Err(error) = self.tell().await {
                tracing::debug!(%error, "the node list does not have this node: {error}");
                self.entry.forget();
            } else {
                self.count().await;
            }
        }
    }

    /// Renews the lease, and writes the entry where it has changed.
    async fn tell(&mut self) -> Result<(), StoreError> {
        if self.entry.renew().await? {
            self.told = None;
        }
        let member = self.member();
        if self.told.as_ref() == Some(&member) {
            return Ok(());
        }
        self.entry.put(&member).await?;
        self.told = Some(member);
        Ok(())
    }

    fn member(&mut self) -> Member {
        let world = self.membership.applied.borrow_and_update().clone();
        Member {
            id: self.id,
            name: self.membership.origin.node.to_string(),
            region: self.membership.origin.region.to_string(),
            address: self.membership.address.clone(),
            peers: self.membership.peers.clone(),
            program: self.membership.program.clone(),
            started_at: self.started_at,
            revision: world.revision.0,
            serves: world.fingerprint(),
            in_flight: self.membership.metrics.in_flight(),
            clock_ahead_ms: {
                let skew = self.membership.health.skew_ms();
                skew.map(|offset| offset / 100 * 100)
            },
            meters_degraded: (self.membership.degraded)(),
            restarts: {
                let tasks = self.membership.health.tasks_failed().into_iter();
                let stages = self.membership.metrics.stages_panicked();
                let all = tasks.chain(stages);
                all.map(|(part, count)| (part.to_owned(), count)).collect()
            },
            not_kept: self.membership.health.not_kept(),
            sealing: Some(self.sealing(&world)),
            failing: {
                let failing = self.membership.metrics.failing();
                let shown = failing
                    .iter()
                    .take(FAULTS_MAX)
                    .map(|one| failing_endpoint(one));
                shown.collect()
            },
            faults: faults(&world),
        }
    }

    fn sealing(&mut self, world: &Arc<World>) -> Sealing {
        let counted = self.sealing.take();
        let counted = counted.filter(|(of, _)| std::ptr::eq(of.as_ptr(), Arc::as_ptr(world)));
        let counted = counted.unwrap_or_else(|| {
            let sealing = rotation::sealing(&self.membership.keyring, world);
            (Arc::downgrade(world), sealing)
        });
        self.sealing.insert(counted).1.clone()
    }

    /// Counts the nodes of the region, and warns of one that has the same name.
    async fn count(&mut self) {
        if self.counted_at.is_some_and(|at| at.elapsed() < COUNT) {
            return;
        }
        let origin = &self.membership.origin;
        let Ok(roster) = Roster::read(&*self.store, origin, Some(self.id)).await else {
            return;
        };
        self.counted_at = Some(Instant::now());
        let (nodes, namesake) = (roster.nodes(), roster.namesake().map(str::to_owned));
        (self.membership.counted)(nodes, roster.into_known());
        let Some(place) = namesake else {
            self.namesakes = 0;
            return;
        };
        self.namesakes += 1;
        if self.namesakes == NAMESAKES_MAX {
            let name = &self.membership.origin.node;
            tracing::error!(
                %name,
                place,
                "the node at {place} is named {name} too: give each its own `node_name`, or their \
                 records and their parts of limits mix"
            );
        }
    }
}

/// As many as an entry may name: first those of whole organisations, by which control planes know
/// that their store went back.
fn faults(world: &World) -> Vec<MemberFault> {
    let all = &world.faults;
    let of_orgs = all.iter().filter(|fault| fault.object.is_none());
    let of_objects = all.iter().filter(|fault| fault.object.is_some());
    of_orgs
        .chain(of_objects)
        .take(FAULTS_MAX)
        .map(|fault| member_fault(fault, world))
        .collect()
}

fn failing_endpoint(checked: &Checked) -> FailingEndpoint {
    FailingEndpoint {
        org: checked.org.to_string(),
        target: checked.target.to_string(),
        endpoint: checked.label.to_string(),
        detail: checked.why(),
    }
}

fn member_fault(fault: &Fault, world: &World) -> MemberFault {
    let whole = fault.org.filter(|_| fault.object.is_none());
    let served = whole.and_then(|org| world.orgs.get(&org));
    MemberFault {
        org: fault.org.map(|org| org.to_string()),
        object: fault.object.map(|object| object.to_string()),
        code: fault.code.to_owned(),
        detail: fault.detail.clone(),
        applied: served.map(|state| state.config.head.n),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proto::store::embedded::Embedded;
    use proto::store::{Event, Range, Revision};

    use super::*;

    async fn members(store: &dyn Store) -> Vec<Member> {
        let range = Range {
            prefix: keys::NODES.into(),
            after: None,
            limit: 10,
            at: None,
        };
        let page = store.range(range).await.unwrap();
        let parse = |pair: &proto::store::KeyValue| serde_json::from_slice(&pair.value).unwrap();
        page.items.iter().map(parse).collect()
    }

    async fn until(store: &dyn Store, met: impl Fn(&[Member]) -> bool) -> Vec<Member> {
        loop {
            let found = members(store).await;
            if met(&found) {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Of node `gw-1` in region `eu`.
    fn membership(applied: watch::Receiver<Arc<World>>, health: Health) -> Membership {
        Membership {
            origin: Arc::new(Origin {
                node: "gw-1".into(),
                region: "eu".into(),
            }),
            address: "127.0.0.1:8080".into(),
            peers: None,
            program: "1.2.3".into(),
            applied,
            metrics: Metrics::default(),
            degraded: Box::new(|| 3),
            health,
            keyring: Arc::new(Keyring::generate("eu")),
            counted: Box::new(|_, _| {}),
        }
    }

    #[actix_rt::test]
    async fn a_node_is_listed_while_it_runs_with_what_it_serves() {
        let dir = tempfile::tempdir().unwrap();
        let store: Arc<dyn Store> = Embedded::open(&dir.path().join("store.sqlite")).unwrap();
        let world = |revision, faults| World {
            revision: Revision(revision),
            faults,
            ..World::default()
        };
        let (sender, applied) = watch::channel(Arc::new(world(7, Vec::new())));
        let health = Health::default();
        let membership = membership(applied, health.clone());
        let (stop, stopping) = oneshot::channel();
        let running = actix_rt::spawn(run(membership, store.clone(), stopping));
        let found = until(&*store, |found| !found.is_empty()).await;
        assert_eq!((found[0].name.as_str(), found[0].revision), ("gw-1", 7));
        assert_eq!(found[0].meters_degraded, 3);
        let fault = Fault {
            org: None,
            object: None,
            code: "head-unreadable",
            detail: "x".into(),
        };
        health.task_failed("compile");
        sender.send_replace(Arc::new(world(8, vec![fault])));
        let found = until(&*store, |found| found[0].revision == 8).await;
        assert_eq!(found[0].restarts.get("compile"), Some(&1));
        assert_eq!(found[0].faults[0].code, "head-unreadable");
        stop.send(()).unwrap();
        running.await.unwrap();
        assert_eq!(members(&*store).await, [], "it has taken its entry away");
    }

    #[actix_rt::test]
    async fn an_entry_is_written_at_most_once_in_a_pause_however_often_it_changes() {
        assert_eq!(PACE.pause, Duration::from_secs(2));
        let pace = Pace {
            renew: Duration::from_millis(50),
            pause: Duration::from_millis(20),
        };
        let dir = tempfile::tempdir().unwrap();
        let store: Arc<dyn Store> = Embedded::open(&dir.path().join("store.sqlite")).unwrap();
        let mut watch = store.watch(keys::NODES, Revision(1)).await.unwrap();
        let (sender, applied) = watch::channel(Arc::new(World::default()));
        let (stop, stopping) = oneshot::channel();
        let begun = Instant::now();
        let membership = membership(applied, Health::default());
        let running = actix_rt::spawn(run_at(pace, membership, store.clone(), stopping));
        let (mut revision, mut told) = (0, BTreeSet::new());
        while told.len() < 5 {
            revision += 1;
            sender.send_replace(Arc::new(World {
                revision: Revision(revision),
                ..World::default()
            }));
            told.extend(members(&*store).await.iter().map(|member| member.revision));
        }
        // The last change is told too, and nothing after it.
        until(&*store, |found| found[0].revision == revision).await;
        let paused = begun.elapsed().div_duration_f64(pace.pause);
        stop.send(()).unwrap();
        running.await.unwrap();
        let mut writes = 0;
        let is_put = |event: &Event| matches!(event, Event::Put(_));
        while watch.next().await.unwrap().events.iter().any(is_put) {
            writes += 1;
        }
        let most = 1 + paused as u64;
        assert!(
            (5..=most).contains(&writes),
            "{writes} of {most}, {revision} changes"
        );
    }

    #[actix_rt::test]
    async fn nodes_of_a_region_count_each_other_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let store: Arc<dyn Store> = Embedded::open(&dir.path().join("store.sqlite")).unwrap();
        let mut running = Vec::new();
        let start = |name: &str, region: &str| {
            let (_, applied) = watch::channel(Arc::new(World::default()));
            let (told, seen) = tokio::sync::mpsc::unbounded_channel();
            let membership = Membership {
                origin: Arc::new(Origin {
                    node: name.into(),
                    region: region.into(),
                }),
                address: "127.0.0.1:8080".into(),
                peers: Some(format!("{name}:8083")),
                program: "1.2.3".into(),
                applied,
                metrics: Metrics::default(),
                degraded: Box::new(|| 0),
                health: Health::default(),
                keyring: Arc::new(Keyring::generate(region)),
                counted: Box::new(move |count, known| {
                    told.send((count, known)).expect("a receiver");
                }),
            };
            let (stop, stopping) = oneshot::channel();
            let task = actix_rt::spawn(run(membership, store.clone(), stopping));
            (stop, task, seen)
        };
        for (name, region, expected, others) in [
            ("gw-1", "eu", 1, vec![]),
            ("gw-2", "eu", 2, vec!["gw-1"]),
            ("gw-2", "eu", 2, vec!["gw-1"]),
            ("gw-3", "us", 1, vec![]),
        ] {
            let (stop, task, mut seen) = start(name, region);
            let known = others.into_iter().map(|other: &str| Known {
                node: other.into(),
                address: format!("{other}:8083"),
            });
            let expected = (expected, known.collect());
            assert_eq!(seen.recv().await, Some(expected), "{name} in {region}");
            running.push((stop, task, seen));
        }
    }
}
