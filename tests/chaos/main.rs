//! What works when something is gone: a whole cluster of real processes, each on a host of its own,
//! under a steady load, while processes are killed and links are cut.
//!
//! The hosts are network namespaces, which takes root and `ip` (iproute2). Where they cannot be
//! made the tests fail; `REQUESTROCKET_CHAOS=skip` says that they may be left out. etcd is without
//! a quorum for 60 s, other outages last 10 s; `REQUESTROCKET_CHAOS_OUTAGE_S` says for how long
//! all of them do.

#[path = "../harness/mod.rs"]
mod harness;

mod asked;
mod between_regions;
mod cluster;
mod cuts;
mod full_disk;
mod held;
mod limits;
mod load;
mod midnight;
mod moving_homes;
mod network;
mod quorum;
mod records;
mod rotation;
mod shared;
mod space;
mod steady;
mod wide;
