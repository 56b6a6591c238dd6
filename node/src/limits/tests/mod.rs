//! Tests of the limits: tables of the pure parts, whole meters over a store in memory, and the
//! seeded simulation.

mod block;
mod cell;
mod codec;
mod faults;
mod judge;
mod memory;
mod meter;
mod network;
mod schedules;
mod simulation;
