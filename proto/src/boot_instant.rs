//! The one clock for ages that must not stand still: it counts while the machine sleeps too.
//!
//! What a node knows of revoked secrets is as old after a night of sleep as it is. `Instant` would
//! have it as young as it was in the evening, since CLOCK_MONOTONIC stops meanwhile.

use std::time::Duration;

/// An instant on CLOCK_BOOTTIME: it is never set, and counts while the machine sleeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BootInstant {
    ns: u64,
}

impl BootInstant {
    /// Now.
    pub fn now() -> Self {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
        let nanos = u64::try_from(time.tv_nsec).unwrap_or(0);
        let ns = seconds.saturating_mul(1_000_000_000).saturating_add(nanos);
        #[cfg(test)]
        let ns = ns + asleep::SLEPT_NS.get();
        Self { ns }
    }

    /// How long ago it was.
    pub fn elapsed(self) -> Duration {
        Duration::from_nanos(Self::now().ns.saturating_sub(self.ns))
    }

    /// Nanoseconds since the machine was started.
    pub fn as_ns(self) -> u64 {
        self.ns
    }
}

/// A sleep of the machine, as a test has it.
#[cfg(test)]
pub(crate) mod asleep {
    use std::cell::Cell;
    use std::time::Duration;

    thread_local! {
        pub(super) static SLEPT_NS: Cell<u64> = const { Cell::new(0) };
    }

    /// This clock alone goes on by so much, for this thread.
    pub fn sleep(time: Duration) {
        let ns = u64::try_from(time.as_nanos()).unwrap();
        SLEPT_NS.set(SLEPT_NS.get() + ns);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_never_goes_back_and_is_ahead_of_the_clock_that_stops() {
        let monotonic = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let now = BootInstant::now();
        assert!(now.as_ns() / 1_000_000_000 >= u64::try_from(monotonic.tv_sec).unwrap());
        assert!(BootInstant::now() >= now);
        let hour = Duration::from_secs(3_600);
        asleep::sleep(hour);
        assert!(now.elapsed() >= hour);
    }
}
