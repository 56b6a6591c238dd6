//! Connections kept for the next request: which may be shared, how many there are, how they age.
//!
//! One pool per [`PoolKey`]: connections never mix TLS identities, guard policies or protocols.
//! Within a pool the connection that was used last is used next, so that the others age and close.
//! A bound of connections per target holds back one slow target from taking the worker's sockets;
//! who finds it reached waits, in order, no longer than the connect timeout.
//!
//! Everything here is one worker's: no locks. A [`Slot`] is one place under the bound, held by its
//! connection; dropping it hands the place on. Values with such a drop are never dropped while a
//! cell is borrowed.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::rc::{Rc, Weak};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use super::conn::{Connected, Http1Conn, Http2Conn, connect};
use super::destination::{Destination, PoolKey};
use super::dial::dial;
use super::error::FailureKind;
use super::resolve::Resolver;
use super::timer::due;

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
    /// A new one: a replay must not meet the same stale peer again.
    New,
}

/// All pools of one worker.
pub(super) struct Pools {
    settings: PoolSettings,
    resolver: Resolver,
    by_key: RefCell<HashMap<PoolKey, Rc<TargetPool>>>,
    open: Rc<Cell<usize>>,
    reaping: Cell<bool>,
}

/// The connections that may serve one kind of destination.
pub(super) struct TargetPool {
    settings: PoolSettings,
    /// The one used last is the last.
    idle: RefCell<Vec<Box<Http1Conn>>>,
    shared: RefCell<Vec<Rc<Http2Conn>>>,
    waiters: RefCell<VecDeque<oneshot::Sender<Offer>>>,
    open: Cell<usize>,
    open_in_worker: Rc<Cell<usize>>,
    dialling: Cell<usize>,
    /// What the target chose when it was dialled last.
    speaks_http2: Cell<Option<bool>>,
    /// The worker is stopping: nothing is kept any more.
    closed: Cell<bool>,
}

/// What a waiting request is given.
enum Offer {
    Connection(Box<Http1Conn>),
    Place(Slot),
    LookAgain(Nudge),
}

/// One place under the bound of a pool and of the worker.
pub(super) struct Slot(Rc<TargetPool>);

impl Drop for Slot {
    fn drop(&mut self) {
        let pool = &self.0;
        pool.open.set(pool.open.get().saturating_sub(1));
        pool.open_in_worker.set(pool.open_in_worker.get().saturating_sub(1));
        if !pool.waiters.borrow().is_empty() {
            pool.offer(Offer::Place(pool.occupy()));
        }
    }
}

/// "Something changed, look again." Passed on if whoever got it is gone.
struct Nudge(Option<Rc<TargetPool>>);

impl Drop for Nudge {
    fn drop(&mut self) {
        if let Some(pool) = self.0.take() {
            pool.nudge();
        }
    }
}

/// A connection in use for one exchange.
pub(super) enum Lease {
    /// Alone.
    Http1 { conn: Box<Http1Conn>, pool: Rc<TargetPool>, reused: bool },
    /// One stream of a shared connection.
    Http2 { stream: StreamLease, reused: bool },
}

/// One stream's place on a shared connection.
pub(super) struct StreamLease {
    pub(super) conn: Rc<Http2Conn>,
    pool: Rc<TargetPool>,
}

impl Drop for StreamLease {
    fn drop(&mut self) {
        self.conn.streams.set(self.conn.streams.get().saturating_sub(1));
        self.conn.stale_at.set(due(Instant::now(), self.pool.settings.idle_age_max));
        self.pool.nudge();
    }
}

impl Pools {
    pub(super) fn new(settings: PoolSettings, resolver: Resolver) -> Rc<Self> {
        Rc::new(Self {
            settings,
            resolver,
            by_key: RefCell::default(),
            open: Rc::default(),
            reaping: Cell::new(false),
        })
    }

    /// A connection to `destination` before `deadline`.
    pub(super) async fn acquire(
        self: &Rc<Self>,
        destination: &Destination,
        wanted: Wanted,
        deadline: Instant,
    ) -> Result<Lease, FailureKind> {
        let pool = self.pool(destination.key);
        loop {
            if wanted == Wanted::Any
                && let Some(lease) = pool.take(Instant::now())
            {
                return Ok(lease);
            }
            let place = if pool.should_wait_for_dial(destination) {
                None
            } else {
                self.place(&pool, destination.parts.connections_max)?
            };
            let offer = match place {
                Some(slot) => Offer::Place(slot),
                None => pool.wait(deadline).await?,
            };
            match offer {
                Offer::Place(slot) => return self.dial(&pool, destination, slot, deadline).await,
                Offer::Connection(conn) if wanted == Wanted::Any && conn.sender.is_ready() => {
                    return Ok(pool.lease(conn, true));
                }
                // Dropping it gives its place to whoever is first in line; that may be us.
                Offer::Connection(conn) => drop(conn),
                Offer::LookAgain(mut nudge) => drop(nudge.0.take()),
            }
        }
    }

    fn pool(self: &Rc<Self>, key: PoolKey) -> Rc<TargetPool> {
        if let Some(pool) = self.by_key.borrow().get(&key) {
            return pool.clone();
        }
        let pool = Rc::new(TargetPool {
            settings: self.settings.clone(),
            idle: RefCell::default(),
            shared: RefCell::default(),
            waiters: RefCell::default(),
            open: Cell::new(0),
            open_in_worker: self.open.clone(),
            dialling: Cell::new(0),
            speaks_http2: Cell::new(None),
            closed: Cell::new(false),
        });
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
        if pool.open.get() >= connections_max {
            // A replay wants a new connection though idle ones are left: one of them makes room.
            drop(pool.pop_oldest_idle());
        }
        if pool.open.get() >= connections_max {
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
        let idle_since =
            |pool: &&Rc<TargetPool>| pool.idle.borrow().first().map(|conn| conn.stale_at);
        by_key
            .values()
            .filter(|pool| !pool.idle.borrow().is_empty())
            .min_by_key(idle_since)
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
        pool.speaks_http2.set(Some(matches!(connected, Connected::Http2(_))));
        let lease = match connected {
            Connected::Http1(conn) => pool.lease(conn, false),
            Connected::Http2(conn) => {
                pool.shared.borrow_mut().push(conn.clone());
                pool.stream(conn, false)
            }
        };
        drop(dialling);
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
            pool.closed.set(true);
            let (idle, shared) = (pool.idle.take(), pool.shared.take());
            drop((idle, shared));
        }
    }
}

/// Counts a dial under way, and tells those who wait for its outcome.
struct Dialling(Rc<TargetPool>);

impl Dialling {
    fn new(pool: &Rc<TargetPool>) -> Self {
        pool.dialling.set(pool.dialling.get() + 1);
        Self(pool.clone())
    }
}

impl Drop for Dialling {
    fn drop(&mut self) {
        let pool = &self.0;
        pool.dialling.set(pool.dialling.get().saturating_sub(1));
        let waiting = pool.waiters.borrow().len();
        for _ in 0..waiting {
            pool.nudge();
        }
    }
}

impl TargetPool {
    fn occupy(self: &Rc<Self>) -> Slot {
        self.open.set(self.open.get() + 1);
        self.open_in_worker.set(self.open_in_worker.get() + 1);
        Slot(self.clone())
    }

    /// While nobody knows whether the target speaks HTTP/2, one dial finds out for all.
    fn should_wait_for_dial(&self, destination: &Destination) -> bool {
        destination.parts.http2
            && self.dialling.get() > 0
            && self.speaks_http2.get() != Some(false)
    }

    /// A usable connection, the one used last first.
    fn take(self: &Rc<Self>, now: Instant) -> Option<Lease> {
        if let Some(conn) = self.take_idle(now) {
            return Some(self.lease(conn, true));
        }
        let shared = self.shared.borrow();
        let usable = shared.iter().find(|conn| {
            conn.sender.is_ready()
                && conn.streams.get() < self.settings.streams_max.max(1)
                && now < due(conn.born, self.settings.age_max)
        });
        usable.map(|conn| self.stream(conn.clone(), true))
    }

    fn take_idle(&self, now: Instant) -> Option<Box<Http1Conn>> {
        loop {
            let conn = {
                let mut idle = self.idle.borrow_mut();
                // One that is not ready yet is still flushing its last request: left where it is.
                let index = idle
                    .iter()
                    .rposition(|conn| conn.sender.is_ready() || conn.sender.is_closed())?;
                idle.remove(index)
            };
            if !conn.sender.is_closed() && now < conn.stale_at {
                return Some(conn);
            }
        }
    }

    fn lease(self: &Rc<Self>, mut conn: Box<Http1Conn>, reused: bool) -> Lease {
        conn.busy = true;
        Lease::Http1 { conn, pool: self.clone(), reused }
    }

    fn stream(self: &Rc<Self>, conn: Rc<Http2Conn>, reused: bool) -> Lease {
        conn.streams.set(conn.streams.get() + 1);
        Lease::Http2 { stream: StreamLease { conn, pool: self.clone() }, reused }
    }

    /// Takes a connection back after an exchange that left nothing on it.
    ///
    /// `keep_alive` is the target's own limit: we stop using the connection a second before it, so
    /// that a request and the target's close do not cross.
    pub(super) fn release(
        self: &Rc<Self>,
        mut conn: Box<Http1Conn>,
        keep_alive: Option<Duration>,
        now: Instant,
    ) {
        let idle_age = keep_alive.map_or(self.settings.idle_age_max, |limit| {
            limit.saturating_sub(Duration::from_secs(1)).min(self.settings.idle_age_max)
        });
        conn.busy = false;
        conn.stale_at = due(now, idle_age).min(due(conn.born, self.settings.age_max));
        if conn.sender.is_closed() || conn.stale_at <= now || self.closed.get() {
            return;
        }
        if !self.waiters.borrow().is_empty() {
            self.offer(Offer::Connection(conn));
            return;
        }
        self.keep(conn);
    }

    fn keep(&self, conn: Box<Http1Conn>) {
        let surplus = {
            let mut idle = self.idle.borrow_mut();
            idle.push(conn);
            (idle.len() > self.settings.idle_max).then(|| idle.remove(0))
        };
        drop(surplus);
    }

    fn pop_oldest_idle(&self) -> Option<Box<Http1Conn>> {
        let mut idle = self.idle.borrow_mut();
        (!idle.is_empty()).then(|| idle.remove(0))
    }

    /// Hands something to the first who still waits.
    fn offer(&self, mut offer: Offer) {
        loop {
            let waiter = self.waiters.borrow_mut().pop_front();
            let Some(waiter) = waiter else { break };
            match waiter.send(offer) {
                Ok(()) => return,
                Err(back) => offer = back,
            }
        }
        match offer {
            Offer::Connection(conn) => self.keep(conn),
            Offer::Place(slot) => drop(slot),
            Offer::LookAgain(mut nudge) => drop(nudge.0.take()),
        }
    }

    fn nudge(self: &Rc<Self>) {
        if !self.waiters.borrow().is_empty() {
            self.offer(Offer::LookAgain(Nudge(Some(self.clone()))));
        }
    }

    async fn wait(&self, deadline: Instant) -> Result<Offer, FailureKind> {
        let receiver = {
            let mut waiters = self.waiters.borrow_mut();
            if waiters.len() >= self.settings.waiters_max {
                waiters.retain(|waiter| !waiter.is_closed());
            }
            if waiters.len() >= self.settings.waiters_max {
                return Err(FailureKind::PoolExhausted);
            }
            let (sender, receiver) = oneshot::channel();
            waiters.push_back(sender);
            receiver
        };
        match timeout_at(deadline, receiver).await {
            Ok(Ok(offer)) => Ok(offer),
            _ => Err(FailureKind::PoolExhausted),
        }
    }

    fn reap(&self, now: Instant) {
        let stale = |conn: &Box<Http1Conn>| conn.sender.is_closed() || now >= conn.stale_at;
        let old: Vec<_> = self.idle.borrow_mut().extract_if(.., |conn| stale(conn)).collect();
        let done = |conn: &Rc<Http2Conn>| {
            let aged = now >= conn.stale_at.get() || now >= due(conn.born, self.settings.age_max);
            !conn.sender.is_ready() || (conn.streams.get() == 0 && aged)
        };
        let shared: Vec<_> = self.shared.borrow_mut().extract_if(.., |conn| done(conn)).collect();
        self.waiters.borrow_mut().retain(|waiter| !waiter.is_closed());
        drop((old, shared));
    }
}
