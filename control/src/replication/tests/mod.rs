//! Regions in one process: real stores, publishers and replication over streams that can be cut.

mod at_one_time;
mod by_region;
mod by_region_faults;
mod departed;
mod diverged;
mod frozen;
mod moves;
pub(super) mod net;
mod promoted;
mod pull;
mod random;
mod remembered;
mod resealed;
mod revoked;
mod shares;
mod signed;
mod skew;
mod stuck;
mod waves;
