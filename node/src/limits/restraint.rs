//! What a target has asked of a meter: to send nothing for a while, or less.
//!
//! A pause stops the key, or, where the target names which of its limits is used up, the requests
//! that were last counted there. A slowed key gives a part of its limits, in tenths, never less
//! than one. Both end by themselves, and earlier when the target answers well.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use proto::meter::{Limit, MeterSpec};

use super::meter::Meter;
use super::refusal::{Cause, Refusal};

/// All of a limit, in tenths.
pub const TENTHS: u64 = 10;
/// The same in thousandths.
const ALL: u64 = TENTHS * 100;
/// Routes of one key whose limit at the target is known; beyond it all are forgotten.
const ROUTES_MAX: usize = 256;

/// What one of the target's own limits is known by: a hash of its name.
pub type Bucket = u64;

/// What a target has asked of one key.
#[derive(Debug)]
pub(super) struct Restraint {
    /// Nothing is given before this instant.
    paused_until_ns: AtomicU64,
    /// When that was learned.
    paused_since_ns: AtomicU64,
    /// Pauses that this node has begun, since the target answered well.
    in_a_row: AtomicU32,
    tenths: AtomicU64,
    slow_until_ns: AtomicU64,
    /// What is given of all of it, in percent, by the word of a person.
    percent: AtomicU64,
    raised_until_ns: AtomicU64,
    /// What the region has of limits that regions share, in millionths.
    share: AtomicU64,
    /// Refusals for want of tokens since somebody looked.
    pub refusals: AtomicU64,
    /// The limits of the configuration.
    configured: ArcSwap<MeterSpec>,
    routes: Mutex<Routes>,
    /// Held while the limits in force are worked out.
    forcing: Mutex<()>,
}

/// Which of the target's limits requests are counted at.
#[derive(Debug, Default)]
struct Routes {
    buckets: HashMap<Box<[u8]>, Bucket>,
    paused: HashMap<Bucket, u64>,
}

impl Restraint {
    pub fn none(spec: Arc<MeterSpec>) -> Self {
        Self {
            paused_until_ns: AtomicU64::new(0),
            paused_since_ns: AtomicU64::new(0),
            in_a_row: AtomicU32::new(0),
            tenths: AtomicU64::new(TENTHS),
            slow_until_ns: AtomicU64::new(0),
            percent: AtomicU64::new(100),
            raised_until_ns: AtomicU64::new(0),
            // Nothing, until it is known what the region has.
            share: AtomicU64::new(0),
            refusals: AtomicU64::new(0),
            configured: ArcSwap::new(spec),
            routes: Mutex::default(),
            forcing: Mutex::default(),
        }
    }

    /// What a meter of these limits gives before it is known what the region has of them.
    pub fn at_first(&self, spec: &Arc<MeterSpec>) -> Arc<MeterSpec> {
        match spec.share() {
            None => Arc::clone(spec),
            Some(_) => Arc::new(spec.shared(self.share.load(Ordering::Relaxed))),
        }
    }

    /// Counts a refusal that more of a limit that regions share would help.
    pub fn note_refusal(&self, cause: Cause) {
        if matches!(cause, Cause::Empty | Cause::Crowded) {
            self.refusals.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn routes(&self) -> MutexGuard<'_, Routes> {
        self.routes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Meter {
    /// Gives nothing before this instant; 0 ends a pause.
    pub(super) fn pause(&self, until_ns: u64, now_ns: u64) {
        let restraint = &self.restraint;
        if restraint.paused_until_ns.load(Ordering::Relaxed) <= now_ns {
            restraint.paused_since_ns.store(now_ns, Ordering::Relaxed);
        }
        restraint.paused_until_ns.store(until_ns, Ordering::Release);
        self.answered.notify_waiters();
    }

    /// Lets requests of one of the target's limits wait; 0 ends it.
    pub(super) fn pause_bucket(&self, bucket: Bucket, until_ns: u64) {
        let mut routes = self.restraint.routes();
        routes
            .paused
            .retain(|other, known_ns| *other != bucket && *known_ns > 0);
        if until_ns > 0 && routes.paused.len() < ROUTES_MAX {
            routes.paused.insert(bucket, until_ns);
        }
    }

    /// When its pause ends.
    pub(super) fn paused_until_ns(&self) -> u64 {
        self.restraint.paused_until_ns.load(Ordering::Relaxed)
    }

    /// Whether a request that was sent then has been sent during a pause that lasts.
    pub(super) fn was_paused(&self, sent_ns: u64, now_ns: u64) -> bool {
        let since_ns = self.restraint.paused_since_ns.load(Ordering::Relaxed);
        self.paused_until_ns() > now_ns && sent_ns > since_ns
    }

    /// Counts a pause that this node begins; how many there were in a row.
    pub(super) fn count_pause(&self) -> u32 {
        let before = self.restraint.in_a_row.fetch_add(1, Ordering::Relaxed);
        before.saturating_add(1)
    }

    /// The target has answered well.
    pub(super) fn answered_well(&self) {
        if self.restraint.in_a_row.load(Ordering::Relaxed) > 0 {
            self.restraint.in_a_row.store(0, Ordering::Relaxed);
        }
    }

    /// The target counts a route at one of its limits.
    pub(super) fn note_route(&self, route: &[u8], bucket: Bucket) {
        let mut routes = self.restraint.routes();
        if routes.buckets.get(route) == Some(&bucket) {
            return;
        }
        if routes.buckets.len() >= ROUTES_MAX {
            routes.buckets.clear();
        }
        routes.buckets.insert(route.into(), bucket);
    }

    /// The refusal of a route whose limit at the target is used up.
    pub fn route_paused(&self, route: &[u8], now_ns: u64) -> Option<Refusal> {
        let until_ns = {
            let routes = self.restraint.routes();
            let bucket = routes.buckets.get(route)?;
            *routes.paused.get(bucket)?
        };
        self.paused_for(until_ns, now_ns)
    }

    /// The refusal of a paused meter.
    pub(super) fn paused(&self, now_ns: u64) -> Option<Refusal> {
        self.paused_for(self.paused_until_ns(), now_ns)
    }

    fn paused_for(&self, until_ns: u64, now_ns: u64) -> Option<Refusal> {
        let left_ns = until_ns.checked_sub(now_ns).filter(|ns| *ns > 0)?;
        let left = Duration::from_nanos(left_ns);
        let mut refusal = self.refusal(Cause::Paused, 1, now_ns);
        refusal.retry_after = refusal.retry_after.max(left);
        Some(refusal)
    }

    /// The limits of the configuration, whatever the target has asked for.
    pub fn configured(&self) -> Arc<MeterSpec> {
        self.restraint.configured.load_full()
    }

    /// Takes those of a newer configuration.
    pub(super) fn configure(&self, spec: &Arc<MeterSpec>) {
        self.restraint.configured.store(Arc::clone(spec));
        self.renew_share(self.shared.clock.boot_ns());
        self.put_in_force();
    }

    /// How much of its limits it gives, in tenths.
    pub fn slowed_to(&self) -> u64 {
        self.restraint.tenths.load(Ordering::Relaxed)
    }

    /// Gives so many tenths of its limits until then.
    pub(super) fn slow(self: &Arc<Self>, tenths: u64, until_ns: u64) {
        let tenths = tenths.clamp(1, TENTHS);
        self.restraint
            .slow_until_ns
            .store(until_ns, Ordering::Relaxed);
        if self.restraint.tenths.swap(tenths, Ordering::Relaxed) != tenths {
            self.put_in_force();
            self.shared.ask(Arc::clone(self));
        }
    }

    /// Gives so many percent of its limits until then.
    pub(super) fn raise(self: &Arc<Self>, percent: u64, until_ns: u64) {
        self.restraint
            .raised_until_ns
            .store(until_ns, Ordering::Relaxed);
        if self.restraint.percent.swap(percent, Ordering::Relaxed) != percent {
            self.put_in_force();
            self.shared.ask(Arc::clone(self));
        }
    }

    /// Ends what has not been ended by the store.
    pub(super) fn end_slow(&self, now_ns: u64) {
        let restraint = &self.restraint;
        let over = |until_ns: &AtomicU64| now_ns >= until_ns.load(Ordering::Relaxed);
        let slow = self.slowed_to() < TENTHS && over(&restraint.slow_until_ns);
        let raised = self.percent() != 100 && over(&restraint.raised_until_ns);
        if slow {
            restraint.tenths.store(TENTHS, Ordering::Relaxed);
        }
        if raised {
            restraint.percent.store(100, Ordering::Relaxed);
        }
        if slow || raised {
            self.put_in_force();
        }
    }

    fn percent(&self) -> u64 {
        self.restraint.percent.load(Ordering::Relaxed)
    }

    /// Gives so many millionths of its limits, where regions share them; whether that is new.
    pub(super) fn set_share(&self, millionths: u64) -> bool {
        let before = self.restraint.share.swap(millionths, Ordering::Relaxed);
        if before != millionths {
            self.put_in_force();
        }
        before != millionths
    }

    /// Works out the limits in force anew. One at a time: of two threads that change different
    /// things the one that began first must not have the last word with what it knew.
    fn put_in_force(&self) {
        let forcing = self.restraint.forcing.lock();
        let _forcing = forcing.unwrap_or_else(PoisonError::into_inner);
        let mut spec = self.configured();
        if spec.share().is_some() {
            spec = Arc::new(spec.shared(self.restraint.share.load(Ordering::Relaxed)));
        }
        let thousandths = self.slowed_to() * self.percent();
        if thousandths != ALL {
            spec = Arc::new(spec.scaled(thousandths, ALL));
        }
        self.estimates.fit(&spec);
        self.spec.store(spec);
    }
}

/// How many tenths of a meter's limits let no more pass than the target says is left.
pub fn tenths_of(limits: &[Limit], remaining: u64, reset: Duration) -> u64 {
    let reset_ns = reset.as_nanos();
    let tenths = limits.iter().map(|limit| {
        let width_ns = u128::from(limit.window().width_ns());
        let allowed = u128::from(limit.limit()) * reset_ns.min(width_ns) / width_ns.max(1);
        match u128::from(remaining) >= allowed {
            true => u128::from(TENTHS),
            false => (u128::from(remaining) * u128::from(TENTHS))
                .div_ceil(allowed)
                .max(1),
        }
    });
    let least = tenths.min().unwrap_or(u128::from(TENTHS));
    u64::try_from(least).unwrap_or(TENTHS)
}

#[cfg(test)]
mod tests {
    use proto::meter::Window;

    use super::*;

    #[test]
    fn a_limit_shrinks_to_what_is_left_and_never_below_a_tenth() {
        let limits = [
            Limit::new(100, Window::Minute).unwrap(),
            Limit::new(5_000, Window::Hour).unwrap(),
        ];
        let tenths =
            |remaining, seconds| tenths_of(&limits, remaining, Duration::from_secs(seconds));
        assert_eq!(tenths(5_000, 3_600), 10);
        assert_eq!(tenths(5_000, 60), 10);
        assert_eq!(tenths(50, 60), 5);
        assert_eq!(tenths(51, 60), 6);
        assert_eq!(tenths(50, 30), 10, "in half a minute fifty are allowed");
        assert_eq!(tenths(2_500, 3_600), 5);
        assert_eq!(tenths(0, 3_600), 1);
        assert_eq!(tenths(0, 0), 10, "all of it is back");
        assert_eq!(tenths_of(&[], 0, Duration::from_secs(9)), 10);
    }
}
