//! Connections kept for the next request: which may be shared, how many there are, how they age.
//!
//! One pool per `PoolKey` (`destination.rs`): connections never mix TLS identities, guard policies
//! or protocols.
//! Within a pool the connection that was used last is used next, so that the others age and close.
//! A bound of connections per target holds back one slow target from taking the worker's sockets;
//! who finds it reached waits, in order, no longer than the connect timeout.
//!
//! Everything here is one worker's: no locks. A [`Slot`] is one place under the bound, held by its
//! connection; dropping it hands the place on. Values with such a drop are never dropped while a
//! cell is borrowed.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use super::acquire::PoolSettings;
use super::conn::{Http1Conn, Http2Conn};
use super::destination::Destination;
use super::error::FailureKind;
use super::lease::{Lease, StreamLease};
use super::timer::due;

/// The connections that may serve one kind of destination.
pub(super) struct TargetPool {
    settings: PoolSettings,
    /// The one used last is the last.
    #[expect(
        clippy::vec_box,
        reason = "a connection moves between pool and exchange for every request"
    )]
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
pub(super) enum Offer {
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
        pool.open_in_worker
            .set(pool.open_in_worker.get().saturating_sub(1));
        if !pool.waiters.borrow().is_empty() {
            pool.offer(Offer::Place(pool.occupy()));
        }
    }
}

/// "Something changed, look again." Passed on if whoever got it is gone.
pub(super) struct Nudge(Option<Rc<TargetPool>>);

impl Nudge {
    /// It arrived: nobody else has to be told.
    pub(super) fn taken(mut self) {
        drop(self.0.take());
    }
}

impl Drop for Nudge {
    fn drop(&mut self) {
        if let Some(pool) = self.0.take() {
            pool.nudge();
        }
    }
}

impl TargetPool {
    /// An empty pool; `open_in_worker` counts the connections of all pools.
    pub(super) fn new(settings: PoolSettings, open_in_worker: Rc<Cell<usize>>) -> Rc<Self> {
        Rc::new(Self {
            settings,
            idle: RefCell::default(),
            shared: RefCell::default(),
            waiters: RefCell::default(),
            open: Cell::new(0),
            open_in_worker,
            dialling: Cell::new(0),
            speaks_http2: Cell::new(None),
            closed: Cell::new(false),
        })
    }

    /// Connections that are open or being opened.
    pub(super) fn open(&self) -> usize {
        self.open.get()
    }

    /// Those of them that no request uses.
    pub(super) fn idle(&self) -> usize {
        let shared = self.shared.borrow();
        let unused = shared.iter().filter(|conn| conn.streams.get() == 0);
        self.idle.borrow().len() + unused.count()
    }

    /// A dial begins that will find out which protocol the target speaks.
    pub(super) fn dial_begins(&self) {
        self.dialling.set(self.dialling.get() + 1);
    }

    /// That dial has ended, well or not: whoever waits for it looks again.
    pub(super) fn dial_ends(self: &Rc<Self>) {
        self.dialling.set(self.dialling.get().saturating_sub(1));
        let waiting = self.waiters.borrow().len();
        for _ in 0..waiting {
            self.nudge();
        }
    }

    /// The first lease of a new HTTP/1.1 connection.
    pub(super) fn adopt(self: &Rc<Self>, conn: Box<Http1Conn>) -> Lease {
        self.speaks_http2.set(Some(false));
        self.lease(conn, false)
    }

    /// The first stream of a new HTTP/2 connection, which others may share from now on.
    pub(super) fn adopt_shared(self: &Rc<Self>, conn: Rc<Http2Conn>) -> Lease {
        self.speaks_http2.set(Some(true));
        self.shared.borrow_mut().push(conn.clone());
        self.stream(conn, false)
    }

    /// Closes what is idle, and keeps nothing that comes back.
    pub(super) fn close(&self) {
        self.closed.set(true);
        let (idle, shared) = (self.idle.take(), self.shared.take());
        drop((idle, shared));
    }

    /// When the connection that is oldest in idleness is no longer used; `None` without one.
    pub(super) fn oldest_stale_at(&self) -> Option<Instant> {
        self.idle.borrow().first().map(|conn| conn.stale_at)
    }

    pub(super) fn occupy(self: &Rc<Self>) -> Slot {
        self.open.set(self.open.get() + 1);
        self.open_in_worker.set(self.open_in_worker.get() + 1);
        Slot(self.clone())
    }

    /// While nobody knows whether the target speaks HTTP/2, one dial finds out for all; where it
    /// does, each dial that is under way serves as many as the last connection took.
    pub(super) fn should_wait_for_dial(&self, destination: &Destination) -> bool {
        let dialling = self.dialling.get();
        let is_served = match self.speaks_http2.get() {
            Some(false) => false,
            Some(true) => {
                let waiting = self.waiters.borrow().len();
                waiting < dialling.saturating_mul(self.streams_taken())
            }
            None => true,
        };
        destination.parts.http2 && dialling > 0 && is_served
    }

    /// How many streams the youngest connection takes; all that we give one where none is there.
    fn streams_taken(&self) -> usize {
        let shared = self.shared.borrow();
        let youngest = shared.iter().rev().find(|conn| conn.sender.is_ready());
        let taken = youngest.map_or(usize::MAX, |conn| conn.streams_max());
        taken.clamp(1, self.settings.streams_max.max(1))
    }

    /// A usable connection, the one used last first.
    pub(super) fn take(self: &Rc<Self>, now: Instant) -> Option<Lease> {
        if let Some(conn) = self.take_idle(now) {
            return Some(self.lease(conn, true));
        }
        self.take_shared(now, None)
    }

    /// A stream of a usable connection, of one made after that where it is asked for.
    pub(super) fn take_shared(
        self: &Rc<Self>,
        now: Instant,
        after: Option<Instant>,
    ) -> Option<Lease> {
        let shared = self.shared.borrow();
        let usable = shared.iter().find(|conn| {
            conn.sender.is_ready()
                && after.is_none_or(|after| conn.born > after)
                && conn.streams.get() < self.settings.streams_max.max(1).min(conn.streams_max())
                && now < due(conn.born, self.settings.age_max)
        });
        usable.map(|conn| self.stream(conn.clone(), true))
    }

    fn take_idle(&self, now: Instant) -> Option<Box<Http1Conn>> {
        loop {
            let conn = {
                let mut idle = self.idle.borrow_mut();
                // One that is not ready yet is still flushing its last request: left where it is.
                let index = idle.iter_mut().rposition(|conn| {
                    conn.look();
                    conn.sender.is_ready() || conn.sender.is_closed()
                })?;
                idle.remove(index)
            };
            if !conn.sender.is_closed() && now < conn.stale_at {
                return Some(conn);
            }
        }
    }

    pub(super) fn lease(self: &Rc<Self>, mut conn: Box<Http1Conn>, reused: bool) -> Lease {
        conn.busy = true;
        Lease::Http1 {
            conn,
            pool: self.clone(),
            reused,
        }
    }

    fn stream(self: &Rc<Self>, conn: Rc<Http2Conn>, reused: bool) -> Lease {
        Lease::Http2 {
            stream: StreamLease::new(conn, self.clone()),
            reused,
        }
    }

    /// Takes a stream's place back.
    pub(super) fn release_stream(self: &Rc<Self>, conn: &Http2Conn) {
        conn.streams.set(conn.streams.get().saturating_sub(1));
        let stale_at = due(Instant::now(), self.settings.idle_age_max);
        conn.stale_at.set(stale_at);
        self.nudge();
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
            limit
                .saturating_sub(Duration::from_secs(1))
                .min(self.settings.idle_age_max)
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

    pub(super) fn pop_oldest_idle(&self) -> Option<Box<Http1Conn>> {
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
            Offer::LookAgain(nudge) => nudge.taken(),
        }
    }

    fn nudge(self: &Rc<Self>) {
        if !self.waiters.borrow().is_empty() {
            self.offer(Offer::LookAgain(Nudge(Some(self.clone()))));
        }
    }

    /// Waits for what others give back, and until then at most, after which it is `late`.
    pub(super) async fn wait(
        &self,
        deadline: Instant,
        late: FailureKind,
    ) -> Result<Offer, FailureKind> {
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
            _ => Err(late),
        }
    }

    pub(super) fn reap(&self, now: Instant) {
        let stale = |conn: &mut Http1Conn| {
            conn.look();
            conn.sender.is_closed() || now >= conn.stale_at
        };
        let old: Vec<_> = self
            .idle
            .borrow_mut()
            .extract_if(.., |conn| stale(conn))
            .collect();
        let done = |conn: &Rc<Http2Conn>| {
            let aged = now >= conn.stale_at.get() || now >= due(conn.born, self.settings.age_max);
            !conn.sender.is_ready() || (conn.streams.get() == 0 && aged)
        };
        let shared: Vec<_> = self
            .shared
            .borrow_mut()
            .extract_if(.., |conn| done(conn))
            .collect();
        self.waiters
            .borrow_mut()
            .retain(|waiter| !waiter.is_closed());
        drop((old, shared));
    }
}
