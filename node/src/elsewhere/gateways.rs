//! The gateways of other regions: whether they are there, and how far away.
//!
//! A request that is passed on has no time of its own after which a region counts as gone: its
//! answer may take minutes, and a region that vanished without a word keeps its connections open
//! for as long. So while requests are passed on to a gateway, and while one waits for its answer,
//! it is dialled again and again. A request for which no dial has come through since it began is
//! given up after [`GONE_AFTER`]: with four dials or more in that time even a network that loses
//! one packet in a hundred fails it less than once in a million. One that waits for its answer is
//! given up after [`SILENT_AFTER`], for it may have been carried out. What is dialled is given by
//! the operator's directory, and nothing is sent.
//!
//! A call that is redirected waits for nothing, so what is said of a gateway must be known when it
//! comes: one that callers are redirected to is dialled every [`IDLE`] although nobody calls, and
//! as often as for a request once a dial fails.
//!
//! One that is gone stays so, and is sought, until a dial comes through: taken to be there after a
//! while it would be the nearest again, and the next request would be lost on it.

use std::collections::HashMap;
use std::sync::atomic::{
    AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed, Ordering::SeqCst,
};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use futures_util::future::select_ok;
use tokio::net::TcpStream;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout, timeout_at};

use crate::upstream::{Host, Hosts, Resolver};

/// How often a gateway is dialled that did not answer lately.
const EVERY: Duration = Duration::from_millis(150);
/// How long a dial that came through is news.
const FRESH: Duration = Duration::from_millis(450);
/// A request is given up when no dial came through for so long since it began.
pub const GONE_AFTER: Duration = Duration::from_millis(900);
/// A request that waits is given up when no dial came through for so long.
pub const SILENT_AFTER: Duration = Duration::from_secs(3);
/// How long after its last request a gateway is dialled.
const USED_FOR: Duration = Duration::from_secs(30);
/// How often one that nobody uses looks whether anybody holds it, and is dialled where it is kept
/// in view.
const IDLE: Duration = Duration::from_secs(5);
/// How often one that is gone is dialled while nobody uses it.
const SOUGHT_EVERY: Duration = Duration::from_secs(1);
/// Addresses of a gateway that are dialled, side by side.
const ADDRESSES_MAX: usize = 8;
/// Distance of a gateway that was never reached.
const UNMEASURED: u32 = u32::MAX;
/// No dials are going on.
const NOT_DIALLED: u64 = u64::MAX;

/// One gateway; see the module.
#[derive(Debug)]
pub struct Gateway {
    host: Host,
    port: u16,
    /// As requests to it are resolved: the machine's own names are not what they go to.
    resolver: Arc<Resolver>,
    started: Instant,
    /// Milliseconds since `started` at which a request last asked for it; 0 before the first.
    used_ms: AtomicU64,
    /// Requests that wait for its answer.
    waiting: AtomicUsize,
    /// Milliseconds since `started` from which on it has been dialled without a break.
    dialled_ms: AtomicU64,
    /// How long a dial takes, in microseconds, smoothed; 0 before the first.
    rtt_us: AtomicU32,
    used: Notify,
    /// Whether it is dialled although nobody uses it.
    in_view: AtomicBool,
    /// The latest dial that came through.
    reached: watch::Sender<Option<Reached>>,
}

/// A dial that came through.
#[derive(Clone, Copy, Debug)]
struct Reached {
    /// From then on the gateway was there: what it answered before may come later.
    begun: Instant,
    came: Instant,
}

impl Gateway {
    fn new((host, port): (Host, u16), resolver: Arc<Resolver>) -> Self {
        Self {
            host,
            port,
            resolver,
            started: Instant::now(),
            used_ms: AtomicU64::new(0),
            waiting: AtomicUsize::new(0),
            dialled_ms: AtomicU64::new(NOT_DIALLED),
            rtt_us: AtomicU32::new(0),
            used: Notify::new(),
            in_view: AtomicBool::new(false),
            reached: watch::Sender::new(None),
        }
    }

    /// Whether it is there, as far as is known: what is not dialled is taken to be.
    pub fn is_there(&self) -> bool {
        let since = match self.dialled_ms.load(Relaxed) {
            NOT_DIALLED => return true,
            ms => self.started + Duration::from_millis(ms),
        };
        let reached = self
            .reached
            .borrow()
            .map_or(since, |dial| dial.came.max(since));
        reached.elapsed() < GONE_AFTER
    }

    /// How far away it is, in steps of ten milliseconds.
    pub fn distance(&self) -> u32 {
        match self.rtt_us.load(Relaxed) {
            0 => UNMEASURED,
            us => us / 10_000,
        }
    }

    /// A request is passed on to it: it is dialled from now on.
    pub fn use_it(&self) {
        self.used_ms.store(self.now_ms().max(1), SeqCst);
        self.look_soon();
    }

    /// Ends a rest, and the wait for a dial where the last one is no news any more.
    fn look_soon(&self) {
        if !self.is_fresh() || self.dialled_ms.load(SeqCst) == NOT_DIALLED {
            self.used.notify_one();
        }
    }

    /// Callers are redirected to it: from now on it is known at any time whether it is there.
    pub fn keep_in_view(&self) {
        if !self.in_view.swap(true, Relaxed) {
            self.used.notify_one();
        }
    }

    /// Ends when a request that began at `since` is to be given up. It is dialled for as long as
    /// this is waited for.
    pub async fn gone(&self, since: Instant) {
        let _waiting = Waiting::of(self);
        let mut reached = self.reached.subscribe();
        loop {
            let due = match *reached.borrow_and_update() {
                Some(dial) if dial.begun >= since => dial.came + SILENT_AFTER,
                _ => since + GONE_AFTER,
            };
            // The sender lives as long as `self`.
            if timeout_at(due, reached.changed()).await.is_err() {
                return;
            }
        }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn is_fresh(&self) -> bool {
        let reached = self.reached.borrow();
        reached.is_some_and(|dial| dial.came.elapsed() < FRESH)
    }

    fn is_used(&self) -> bool {
        let used_ms = self.used_ms.load(SeqCst);
        let since_ms = self.now_ms().saturating_sub(used_ms);
        let is_waited_for = self.waiting.load(SeqCst) > 0;
        is_waited_for || (used_ms != 0 && u128::from(since_ms) < USED_FOR.as_millis())
    }

    /// Dials it; says whether that came through. The time is for all of it, so that no more than a
    /// few dials are under way where nothing answers, DNS or gateway.
    async fn dial(self: Arc<Self>) -> bool {
        let Ok(Some(begun)) = timeout(GONE_AFTER, self.connect()).await else {
            return false;
        };
        let us = u32::try_from(begun.elapsed().as_micros()).unwrap_or(u32::MAX);
        self.measured(us.max(1));
        let came = Instant::now();
        self.reached.send_replace(Some(Reached { begun, came }));
        true
    }

    /// Connects to whichever of its addresses answers first; gives when that began.
    async fn connect(&self) -> Option<Instant> {
        let addresses = self.resolver.resolve(&self.host).await.ok()?;
        let begun = Instant::now();
        let connect = |address| Box::pin(TcpStream::connect((address, self.port)));
        let dials = addresses.into_iter().take(ADDRESSES_MAX).map(connect);
        select_ok(dials).await.ok()?;
        Some(begun)
    }

    /// A dial took so long.
    pub(crate) fn measured(&self, us: u32) {
        let smoothed = match self.rtt_us.load(Relaxed) {
            0 => us,
            before => before / 4 * 3 + us / 4,
        };
        self.rtt_us.store(smoothed.max(1), Relaxed);
    }

    /// Dials once more and waits until the next is due; says when it comes or goes.
    async fn look(self: Arc<Self>) {
        let was_there = self.is_there();
        if self.dialled_ms.load(Relaxed) == NOT_DIALLED {
            self.dialled_ms.store(self.now_ms(), Relaxed);
        }
        tokio::spawn(Arc::clone(&self).dial());
        tokio::time::sleep(EVERY).await;
        self.tell(was_there);
        if self.is_fresh() {
            let _ = timeout(FRESH, self.used.notified()).await;
        }
    }

    /// Says that it has come or gone.
    fn tell(&self, was_there: bool) {
        let (host, port) = (&self.host, self.port);
        match (was_there, self.is_there()) {
            (true, false) => tracing::warn!("the gateway at {host}:{port} is gone"),
            (false, true) => tracing::info!("the gateway at {host}:{port} is back"),
            _ => {}
        }
    }

    /// Dials one that is gone and that nobody uses, and waits until the next dial is due.
    async fn seek(self: Arc<Self>) {
        if Arc::clone(&self).dial().await {
            self.tell(false);
        } else {
            let _ = timeout(SOUGHT_EVERY, self.used.notified()).await;
        }
    }

    /// Waits while nobody uses it. Where it is kept in view it is dialled then, and looked after
    /// as if it were used when that does not come through: one lost packet does not make it gone.
    async fn rest(self: Arc<Self>) {
        self.dialled_ms.store(NOT_DIALLED, SeqCst);
        if self.is_used() {
            // Somebody came between the look and this word, and did not wake it.
            return;
        }
        if self.in_view.load(Relaxed) && !Arc::clone(&self).dial().await {
            self.use_it();
            return;
        }
        let _ = timeout(IDLE, self.used.notified()).await;
    }
}

/// A request that waits for a gateway's answer.
struct Waiting<'g>(&'g Gateway);

impl<'g> Waiting<'g> {
    fn of(gateway: &'g Gateway) -> Self {
        gateway.waiting.fetch_add(1, SeqCst);
        gateway.look_soon();
        Self(gateway)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Relaxed);
    }
}

/// Dials a gateway once, to know how far it is, and while it is used, gone or kept in view; ends
/// when nobody holds it.
async fn look_after(gateway: Weak<Gateway>) {
    if let Some(held) = gateway.upgrade() {
        held.dial().await;
    }
    while let Some(held) = gateway.upgrade() {
        if held.is_used() {
            held.look().await;
        } else if !held.is_there() {
            held.seek().await;
        } else {
            held.rest().await;
        }
    }
}

/// The gateways in use, found again when a new version is compiled.
#[derive(Debug, Default)]
pub struct KnownGateways {
    known: Mutex<HashMap<(Host, u16), Weak<Gateway>>>,
    resolver: Arc<Resolver>,
}

impl KnownGateways {
    /// None yet. `hosts` are the operator's `dial_guard.hosts_file`.
    pub fn new(hosts: Hosts) -> Self {
        Self {
            known: Mutex::default(),
            resolver: Arc::new(Resolver::new(hosts)),
        }
    }

    /// The gateway at an address.
    pub fn at(&self, host: &Host, port: u16) -> Arc<Gateway> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (host.clone(), port);
        if let Some(gateway) = known.get(&key).and_then(Weak::upgrade) {
            return gateway;
        }
        known.retain(|_, gateway| gateway.strong_count() > 0);
        let gateway = Arc::new(Gateway::new(key.clone(), Arc::clone(&self.resolver)));
        // Compiling happens in a runtime, but for tests of the compiler alone.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(look_after(Arc::downgrade(&gateway)));
        }
        known.insert(key, Arc::downgrade(&gateway));
        gateway
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn until(holds: impl Fn() -> bool) {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn at(known: &KnownGateways, port: u16) -> Arc<Gateway> {
        known.at(&Host::parse("127.0.0.1").unwrap(), port)
    }

    #[tokio::test]
    async fn a_gateway_that_ends_is_gone_and_one_that_begins_is_back() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let known = KnownGateways::default();
        let gateway = at(&known, port);
        assert!(Arc::ptr_eq(&gateway, &at(&known, port)));
        assert_eq!((gateway.is_there(), gateway.distance()), (true, UNMEASURED));
        let mut reached = gateway.reached.subscribe();
        reached.wait_for(Option::is_some).await.unwrap();
        assert_ne!(gateway.distance(), UNMEASURED, "measured before it is used");
        gateway.use_it();
        let began = Instant::now();
        let mut reached = gateway.reached.subscribe();
        let later = reached.wait_for(|dial| dial.is_some_and(|dial| dial.begun >= began));
        later.await.unwrap();
        assert!(gateway.is_there());
        drop(listener);
        // A request that waits is given up later than one that begins now.
        let begins = Instant::now();
        tokio::select! {
            () = gateway.gone(begins) => {}
            () = gateway.gone(began) => panic!("it may have been carried out"),
        }
        until(|| !gateway.is_there()).await;
        let _listener = std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
        gateway.use_it();
        until(|| gateway.is_there()).await;
    }

    #[tokio::test]
    async fn it_is_dialled_where_its_requests_go() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        // One address after the other that does not answer would take all the time.
        let addresses = ["::1", "127.0.0.1"].map(|ip| ip.parse().unwrap());
        let known = KnownGateways::new([("gw.test".to_owned(), addresses.into())].into());
        let gateway = known.at(&Host::parse("gw.test").unwrap(), port);
        let mut reached = gateway.reached.subscribe();
        reached.wait_for(Option::is_some).await.unwrap();
    }

    #[tokio::test]
    async fn it_may_be_at_an_address_of_ipv6() {
        let listener = std::net::TcpListener::bind("[::1]:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let gateway = KnownGateways::default().at(&Host::parse("[::1]").unwrap(), port);
        let mut reached = gateway.reached.subscribe();
        reached.wait_for(Option::is_some).await.unwrap();
    }

    #[tokio::test]
    async fn it_is_dialled_for_as_long_as_a_request_waits_for_it() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let gateway = at(&KnownGateways::default(), port);
        gateway.use_it();
        let began = Instant::now();
        let dialled_since = |since: Instant| {
            let mut reached = gateway.reached.subscribe();
            async move {
                let dial = reached.wait_for(|dial| dial.is_some_and(|dial| dial.begun >= since));
                dial.await.map(|_| ()).unwrap();
            }
        };
        let waits = async {
            // Its last use is long ago, over and over.
            for _ in 0..3 {
                gateway.used_ms.store(0, Relaxed);
                dialled_since(Instant::now()).await;
            }
            assert!(gateway.is_used());
        };
        tokio::select! {
            () = gateway.gone(began) => panic!("it is there"),
            () = waits => {}
        }
        assert!(!gateway.is_used(), "nobody waits any more");
        until(|| gateway.dialled_ms.load(Relaxed) == NOT_DIALLED).await;
        // One that rests is dialled at once, though the last dial is news.
        let began = Instant::now();
        tokio::select! {
            () = gateway.gone(began) => panic!("it is there"),
            () = dialled_since(began) => {}
        }
    }

    #[tokio::test]
    async fn one_that_is_gone_stays_so_until_a_dial_comes_through() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let gateway = at(&KnownGateways::default(), port);
        let mut reached = gateway.reached.subscribe();
        reached.wait_for(Option::is_some).await.unwrap();
        gateway.use_it();
        until(|| gateway.dialled_ms.load(Relaxed) != NOT_DIALLED).await;
        drop(listener);
        until(|| !gateway.is_there()).await;
        // Its last use is long ago: it is sought, and only what is found counts.
        gateway.used_ms.store(0, Relaxed);
        let back = Instant::now();
        let _listener = std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
        until(|| gateway.is_there()).await;
        assert!(
            gateway
                .reached
                .borrow()
                .is_some_and(|dial| dial.came > back)
        );
    }

    #[tokio::test]
    async fn one_that_is_kept_in_view_is_known_to_be_gone_though_nobody_uses_it() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let gateway = at(&KnownGateways::default(), port);
        gateway.keep_in_view();
        let mut reached = gateway.reached.subscribe();
        reached.wait_for(Option::is_some).await.unwrap();
        drop(listener);
        until(|| !gateway.is_there()).await;
        // It is sought as if its last use were long ago.
        gateway.used_ms.store(0, Relaxed);
        assert!(!gateway.is_there());
        let listener = std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
        until(|| gateway.is_there()).await;
        drop(listener);
        until(|| !gateway.is_there()).await;
    }
}
