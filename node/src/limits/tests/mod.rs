//! Tests of the limits: tables of the pure parts, whole meters over a store in memory, and the
//! seeded simulation.

mod away;
mod block;
mod breakages;
mod bucket;
mod calendar;
mod cell;
mod codec;
mod crowd;
pub(super) mod faults;
mod held;
mod judge;
mod keys;
pub(super) mod memory;
mod meter;
mod network;
mod pauses;
mod periodic;
mod refused_writes;
mod restored;
pub(super) mod schedules;
mod several;
mod shares;
mod silence;
pub(super) mod simulation;
mod slots;
mod slow;
mod swept;
mod values;
mod writes;
