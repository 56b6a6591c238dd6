//! The time of day, and whether this node may go by its own.

use std::sync::atomic::Ordering;

use tracing::{info, warn};

use super::{Broker, Slot, count};
use crate::limits::Limits;
use crate::limits::block::Opener;
use crate::limits::clock::Moment;
use crate::limits::wall_clocks::{ClockSample, Witness};

/// What the last look at the clocks gave.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Wall {
    /// The own clock is too far from those of the others.
    pub is_wrong: bool,
    /// Another node's clock says the same as the agreed one.
    pub confirmed: bool,
    /// Nothing is known yet of the clocks of others.
    pub is_unknown: bool,
    /// When this node first looked.
    since_ns: Option<u64>,
}

impl Wall {
    /// Whether this node takes nothing of calendar windows itself: by a wrong clock it would open
    /// a day early, or take for the day before what is sent in the next.
    pub(super) fn is_unfit(&self) -> bool {
        self.is_wrong || self.is_unknown
    }
}

/// A node that has started waits for so long for the clocks of all others before it takes of
/// calendar windows by those that it knows; meanwhile it asks others.
const COMPARED_BY_NS: u64 = 5_000_000_000;

impl Limits {
    /// When something is asked for that is answered with what a clock shows, on the own
    /// CLOCK_BOOTTIME in nanoseconds.
    pub fn asked_ns(&self) -> u64 {
        self.shared.clock.boot_ns()
    }

    /// A control plane has told what its wall clock shows. An answer that took longer than clocks
    /// may be apart says nothing: a disk was waited for.
    pub fn control_clock(&self, by: String, asked_ns: u64, unix_ns: u64) {
        let heard_ns = self.shared.clock.boot_ns();
        if heard_ns.saturating_sub(asked_ns) <= self.shared.max_skew_ns {
            let sample = ClockSample {
                asked_ns,
                heard_ns,
                unix_ns,
            };
            self.shared.heard_clock(Witness::Control(by), sample);
        }
    }
}

impl Broker {
    /// A peer has told what its wall clock shows.
    pub fn peer_clock(&mut self, peer: Opener, sample: ClockSample) {
        self.shared.heard_clock(Witness::Node(peer.node), sample);
    }

    /// The moment with the wall clock that the nodes agree on.
    pub(super) fn tell_time(&mut self, own: Moment) -> Moment {
        let agreed = self.shared.agreed(own);
        let stats = &self.shared.stats;
        stats
            .clock_ahead_ns
            .store(agreed.own_ahead_ns, Ordering::Relaxed);
        let off_ms = agreed.own_ahead_ns / 1_000_000;
        // Nobody to ask: without a control plane the own clock is all there is, and with one this
        // node goes by the earlier of the two.
        let is_wrong = !agreed.alone && agreed.own_off_ns() > self.place.max_skew_ns.max(1);
        if is_wrong && !self.wall.is_wrong {
            count(&stats.clock_wrong);
            warn!(
                off_ms,
                "the clock of this machine is {off_ms} ms ahead of those of the other nodes: for \
                 limits by day and month this node asks others until it is set"
            );
        } else if self.wall.is_wrong && !is_wrong {
            info!(
                off_ms,
                "the clock of this machine agrees with those of the other nodes again"
            );
        }
        let was_unfit = self.wall.is_unfit();
        let since_ns = self.wall.since_ns.unwrap_or(own.boot_ns);
        let young = own.boot_ns.saturating_sub(since_ns) < COMPARED_BY_NS;
        self.wall = Wall {
            since_ns: Some(since_ns),
            is_unknown: self.place.clocks_compared && !agreed.compared && young,
            is_wrong,
            confirmed: agreed.confirmed,
        };
        if was_unfit && !self.wall.is_unfit() {
            self.look_at_calendars(own.boot_ns);
        }
        Moment {
            unix_ns: agreed.unix_ns,
            ..own
        }
    }

    /// Looks anew at all keys that go by the calendar: they may be served now.
    pub(super) fn look_at_calendars(&mut self, now_ns: u64) {
        let dated = self.owners.iter().filter(|(_, owner)| owner.has_calendar());
        let slots: Vec<Slot> = dated.map(|(slot, _)| *slot).collect();
        for slot in slots {
            self.schedule(slot, now_ns);
        }
    }
}
