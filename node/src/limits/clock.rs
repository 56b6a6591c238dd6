//! The two clocks of the limits, as values: everything below takes them as arguments.

use proto::boot_instant::BootInstant;

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
        BootInstant::now().as_ns()
    }

    fn moment(&self) -> Moment {
        Moment {
            boot_ns: self.boot_ns(),
            unix_ns: unix_ns(),
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

/// The wall clock; 0 before 1970.
fn unix_ns() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| {
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    })
}
