//! Getting a connection: the pools of one worker, the dial when they have none, and the reaper.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::{Rc, Weak};
use std::time::Duration;

use tokio::time::Instant;

use super::conn::{Connected, Http1Conn, connect};
use super::counted::{ConnectionCounts, Told};
use super::destination::{Destination, PoolKey};
use super::dial::dial;
use super::error::FailureKind;
use super::lease::Lease;
use super::pool::{Offer, Slot, TargetPool};
use super::resolve::Resolver;

/// The bounds of one worker's pools.
#[derive(Clone, Debug)]
pub struct PoolSettings {
    /// How long an idle connection is kept where the target does not say. Default 30 s.
    pub idle_age_max: Duration,
    /// Idle connections per target. Default 64.
    pub idle_max: usize,
    /// How old a connection may become, so that a change in DNS reaches even a busy target.
    /// Default 10 min.
    pub age_max: Duration,
    /// Connections of this worker to all targets. Default 8192.
    pub connections_max: usize,
    /// Requests that wait for a connection to one target; more are refused. Default 1024.
    pub waiters_max: usize,
    /// Streams on one HTTP/2 connection. Default 100.
    pub streams_max: usize,
    /// How often aged connections are looked for. Default 1 s.
    pub reap_interval: Duration,
}

impl Default for PoolSettings {
    fn default() -> Self {
        Self {
            idle_age_max: Duration::from_secs(30),
            idle_max: 64,
            age_max: Duration::from_secs(600),
            connections_max: 8192,
            waiters_max: 1024,
            streams_max: 100,
            reap_interval: Duration::from_secs(1),
        }
    }
}

/// Which connection will do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// One that is there, or a new one.
    Any,
    /// One made after that, when the attempt that failed was sent: a replay must not meet the same
    /// stale peer again. Where it has streams, all replays share it.
    After(Instant),
}

/// All pools of one worker.
pub(super) struct Pools {
    settings: PoolSettings,
    resolver: Resolver,
    by_key: RefCell<BTreeMap<PoolKey, Rc<TargetPool>>>,
    open: Rc<Cell<usize>>,
    reaping: Cell<bool>,
    told: Told,
}

impl Pools {
    pub(super) fn new(
        settings: PoolSettings,
        resolver: Resolver,
        counts: ConnectionCounts,
    ) -> Rc<Self> {
        Rc::new(Self {
            settings,
            resolver,
            by_key: RefCell::default(),
            open: Rc::default(),
            reaping: Cell::new(false),
            told: Told::new(counts),
        })
    }

    /// A connection to `destination`, asked for at `now`, before `deadline`.
    pub(super) async fn acquire(
        self: &Rc<Self>,
        destination: &Destination,
        wanted: Wanted,
        mut now: Instant,
        deadline: Instant,
    ) -> Result<Lease, FailureKind> {
        let pool = self.pool(destination.key);
        loop {
            let taken = match wanted {
                Wanted::Any => pool.take(now),
                Wanted::After(sent_at) => pool.take_shared(now, Some(sent_at)),
            };
            if let Some(lease) = taken {
                return Ok(lease);
            }
            let is_dialled = pool.should_wait_for_dial(destination);
            let place = match is_dialled {
                true => None,
                false => self.place(&pool, destination.parts.connections_max)?,
            };
            // Who waited for a dial was kept waiting by the target, as whoever dials.
            let late = match is_dialled {
                true => FailureKind::ConnectTimeout,
                false => FailureKind::PoolExhausted,
            };
            let offer = match place {
                Some(slot) => Offer::Place(slot),
                None => pool.wait(deadline, late).await?,
            };
            match offer {
                Offer::Place(slot) => {
                    // Boxed: it is large and rare, and every request would carry its size.
                    return Box::pin(self.dial(&pool, destination, slot, deadline)).await;
                }
                Offer::Connection(conn) if wanted == Wanted::Any && conn.sender.is_ready() => {
                    return Ok(pool.lease(conn, true));
                }
                // Dropping it gives its place to whoever is first in line; that may be us.
                Offer::Connection(conn) => drop(conn),
                Offer::LookAgain(nudge) => nudge.taken(),
            }
            now = Instant::now();
        }
    }

    fn pool(self: &Rc<Self>, key: PoolKey) -> Rc<TargetPool> {
        if let Some(pool) = self.by_key.borrow().get(&key) {
            return pool.clone();
        }
        let pool = TargetPool::new(self.settings.clone(), self.open.clone());
        self.by_key.borrow_mut().insert(key, pool.clone());
        self.start_reaper();
        pool
    }

    /// A place for one more connection, if the bounds leave one.
    fn place(
        &self,
        pool: &Rc<TargetPool>,
        connections_max: usize,
    ) -> Result<Option<Slot>, FailureKind> {
        if pool.open() >= connections_max {
            // A replay wants a new connection though idle ones are left: one of them makes room.
            drop(pool.pop_oldest_idle());
        }
        if pool.open() >= connections_max {
            return Ok(None);
        }
        if self.open.get() >= self.settings.connections_max {
            drop(self.oldest_idle());
        }
        if self.open.get() >= self.settings.connections_max {
            return Err(FailureKind::PoolExhausted);
        }
        Ok(Some(pool.occupy()))
    }

    /// Takes the connection that has been idle longest out of its pool.
    fn oldest_idle(&self) -> Option<Box<Http1Conn>> {
        let by_key = self.by_key.borrow();
        by_key
            .values()
            .filter(|pool| pool.oldest_stale_at().is_some())
            .min_by_key(|pool| pool.oldest_stale_at())
            .and_then(|pool| pool.pop_oldest_idle())
    }

    async fn dial(
        &self,
        pool: &Rc<TargetPool>,
        destination: &Destination,
        slot: Slot,
        deadline: Instant,
    ) -> Result<Lease, FailureKind> {
        // Held to the end: whoever waits to learn the protocol is told, whatever the outcome.
        let dialling = destination.parts.http2.then(|| Dialling::new(pool));
        let transport = dial(destination, &self.resolver, deadline).await?;
        let connected = connect(transport, slot, deadline).await?;
        let lease = match connected {
            Connected::Http1(conn) => pool.adopt(conn),
            Connected::Http2(conn) => pool.adopt_shared(conn),
        };
        drop(dialling);
        self.told.opened();
        Ok(lease)
    }

    fn start_reaper(self: &Rc<Self>) {
        if self.reaping.replace(true) {
            return;
        }
        let (pools, interval) = (Rc::downgrade(self), self.settings.reap_interval);
        tokio::task::spawn_local(async move {
            loop {
                tokio::time::sleep(interval).await;
                match Weak::upgrade(&pools) {
                    Some(pools) if pools.reap(Instant::now()) => {}
                    _ => return,
                }
            }
        });
    }

    /// Closes what is too old and forgets pools without use; `false` when nothing is left.
    fn reap(&self, now: Instant) -> bool {
        let pools: Vec<_> = self.by_key.borrow().values().cloned().collect();
        for pool in &pools {
            pool.reap(now);
        }
        drop(pools);
        let mut by_key = self.by_key.borrow_mut();
        by_key.retain(|_, pool| Rc::strong_count(pool) > 1);
        let idle = by_key.values().map(|pool| pool.idle()).sum();
        self.told.tell(self.open.get(), idle);
        self.reaping.set(!by_key.is_empty());
        self.reaping.get()
    }

    /// Connections of this worker that are open or being opened.
    pub(super) fn open(&self) -> usize {
        self.open.get()
    }
}

impl Drop for Pools {
    /// Idle connections hold their place, and so their pool: without this nothing would be freed.
    fn drop(&mut self) {
        for pool in self.by_key.get_mut().values() {
            pool.close();
        }
    }
}

/// Counts a dial under way, and tells those who wait for its outcome.
struct Dialling(Rc<TargetPool>);

impl Dialling {
    fn new(pool: &Rc<TargetPool>) -> Self {
        pool.dial_begins();
        Self(pool.clone())
    }
}

impl Drop for Dialling {
    fn drop(&mut self) {
        self.0.dial_ends();
    }
}
