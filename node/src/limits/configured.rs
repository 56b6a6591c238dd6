//! Which configuration a meter goes by: the newest that this node has, or that a peer has told of.
//!
//! A peer says what bounds a meter, and neither how its callers wait nor how they are refused. So
//! this node's own configuration of the same version takes the place of what was told, and until
//! it is there the meter goes on with what it knew of these.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use proto::meter::MeterSpec;

use super::meter::Meter;
use super::shared::Shared;

/// Where the configuration of a meter comes from.
#[derive(Debug, Default)]
pub(super) struct Taken {
    /// Whether it is by the word of a peer.
    told: AtomicBool,
    /// Held while another one is taken: seldom, and never by a request that finds none.
    changes: Mutex<()>,
}

impl Meter {
    /// A meter by the word of a peer.
    pub(super) fn told(store_key: String, spec: Arc<MeterSpec>, shared: Arc<Shared>) -> Self {
        let meter = Self::new(store_key, spec, shared);
        meter.taken.told.store(true, Ordering::Relaxed);
        meter
    }

    /// Takes the limits of a newer configuration, or of the same one where a peer told of it first;
    /// the broker is told and drops the old tokens.
    pub(super) fn respec(self: &Arc<Self>, spec: &Arc<MeterSpec>) {
        if !self.is_outdone_by(spec) {
            return;
        }
        let _changes = self
            .taken
            .changes
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if self.is_outdone_by(spec) {
            self.taken.told.store(false, Ordering::Relaxed);
            self.take(spec);
        }
    }

    fn is_outdone_by(&self, spec: &MeterSpec) -> bool {
        let (known, new) = (self.spec.load().version(), spec.version());
        new > known || (new == known && self.taken.told.load(Ordering::Relaxed))
    }

    /// Takes the limits of a newer configuration by the word of a peer. What it does not say stays
    /// as it is.
    pub(super) fn respec_told(self: &Arc<Self>, spec: MeterSpec) {
        let _changes = self
            .taken
            .changes
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let known = self.configured();
        if spec.version() > known.version() {
            self.taken.told.store(true, Ordering::Relaxed);
            let spec = spec.holding(known.hold()).answering(known.answer());
            self.take(&Arc::new(spec));
        }
    }

    fn take(self: &Arc<Self>, spec: &Arc<MeterSpec>) {
        self.observes
            .store(spec.limits().is_empty(), Ordering::Release);
        self.holds.store(spec.hold().is_some(), Ordering::Release);
        self.estimates.respec(spec);
        self.configure(spec);
        self.publish(self.view.load().renewed(&self.spec.load_full()));
        // Told, but not asked for a token: a new version of the configuration is no demand.
        self.shared.ask(Arc::clone(self));
    }
}

#[cfg(test)]
mod tests {
    use proto::meter::{Hold, Limit, Window};

    use super::*;
    use crate::limits::{Limits, MeterKey, Opener, Settings, SystemClock};

    fn spec(version: u64, limit: u64) -> MeterSpec {
        let limit = Limit::new(limit, Window::Minute).unwrap();
        MeterSpec::new("", version, vec![limit]).unwrap()
    }

    fn held(spec: MeterSpec, max_wait_ms: u64) -> Arc<MeterSpec> {
        let max_waiting = 9;
        Arc::new(spec.holding(Some(Hold {
            max_wait_ms,
            max_waiting,
        })))
    }

    /// (limit, longest wait).
    fn of(meter: &Meter) -> (u64, Option<u64>) {
        let spec = meter.configured();
        let wait_ms = spec.hold().map(|hold| hold.max_wait_ms);
        (spec.limits()[0].limit(), wait_ms)
    }

    fn limits() -> Arc<Limits> {
        let settings = Settings::single_node(Opener { node: 1, boot: 1 });
        Limits::unserved(&settings, Arc::new(SystemClock)).0
    }

    #[test]
    fn what_a_peer_does_not_say_stays_until_the_configuration_says_it() {
        let limits = limits();
        let meter = limits.meter(MeterKey::whole("m"), held(spec(5, 10), 100));
        meter.respec_told(spec(5, 11));
        assert_eq!(of(&meter), (10, Some(100)), "nothing new");
        meter.respec_told(spec(6, 20));
        assert_eq!(of(&meter), (20, Some(100)));
        meter.respec(&held(spec(5, 10), 100));
        assert_eq!(
            of(&meter),
            (20, Some(100)),
            "an earlier one changes nothing"
        );
        meter.respec(&held(spec(6, 20), 200));
        assert_eq!(of(&meter), (20, Some(200)));
        meter.respec(&Arc::new(spec(6, 30)));
        assert_eq!(of(&meter), (20, Some(200)), "it is there already");
    }

    #[test]
    fn who_is_asked_by_a_peer_first_holds_callers_as_configured() {
        let limits = limits();
        let (key, shared) = (MeterKey::whole("m"), Arc::clone(&limits.shared));
        let new = || Meter::told(key.store_key(), Arc::new(spec(5, 10)), Arc::clone(&shared));
        let told = shared.meter(&key.store_key(), new);
        assert_eq!(of(&told), (10, None));
        let meter = limits.meter(key, held(spec(5, 10), 100));
        assert!(Arc::ptr_eq(&meter, &told));
        assert_eq!(of(&meter), (10, Some(100)));
    }
}
