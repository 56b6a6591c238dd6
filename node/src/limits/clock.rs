//! The two clocks of the limits, as values: everything below takes them as arguments.

/// An instant on both clocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moment {
    /// CLOCK_BOOTTIME in nanoseconds: monotonic, and it counts while the machine sleeps.
    pub boot_ns: u64,
    /// Nanoseconds since 1970-01-01 in UTC; used for calendar windows only.
    pub unix_ns: u64,
}

impl Moment {
    /// The wall clock in whole seconds.
    pub fn unix_s(self) -> i64 {
        i64::try_from(self.unix_ns / 1_000_000_000).unwrap_or(i64::MAX)
    }
}

/// Where the time comes from.
pub trait Clock: Send + Sync + 'static {
    /// CLOCK_BOOTTIME in nanoseconds.
    fn boot_ns(&self) -> u64;

    /// Both clocks.
    fn moment(&self) -> Moment;
}

/// The machine's clocks.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn boot_ns(&self) -> u64 {
        read_ns(rustix::time::ClockId::Boottime)
    }

    fn moment(&self) -> Moment {
        Moment {
            boot_ns: self.boot_ns(),
            unix_ns: read_ns(rustix::time::ClockId::Realtime),
        }
    }
}

/// The machine's clocks, with the wall clock off by so much: a node that is to be tested with it.
#[derive(Clone, Copy, Debug)]
pub struct ShiftedClock {
    /// How far it is ahead, in nanoseconds; negative when it is behind.
    pub ahead_ns: i64,
}

impl Clock for ShiftedClock {
    fn boot_ns(&self) -> u64 {
        SystemClock.boot_ns()
    }

    fn moment(&self) -> Moment {
        let moment = SystemClock.moment();
        Moment {
            unix_ns: moment.unix_ns.saturating_add_signed(self.ahead_ns),
            ..moment
        }
    }
}

fn read_ns(id: rustix::time::ClockId) -> u64 {
    let time = rustix::time::clock_gettime(id);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(time.tv_nsec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(nanos)
}
