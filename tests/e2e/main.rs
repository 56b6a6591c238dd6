//! The gateway as its users meet it: the real binary on free ports, real upstreams, raw callers.

#[path = "../harness/mod.rs"]
mod harness;

mod abort;
mod add;
mod api;
mod cluster;
mod credentials;
mod fault;
mod filters;
mod handover;
mod overload;
mod process;
mod regions;
mod rules;
mod start;
mod tls;
mod upstreams;
mod versions;
