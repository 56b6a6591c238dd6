//! Tests of slots that look inside: the seeded simulation of several nodes, and single cases.

mod judge;
mod schedules;
mod silent;
mod store;
mod taken;
mod world;
