//! The gateway as its users meet it: the real binary on free ports, real upstreams, raw callers.

#[path = "../harness/mod.rs"]
mod harness;

mod abort;
mod add;
mod aliases;
mod api;
mod clickhouse;
mod clocks;
mod cluster;
mod credentials;
mod endpoints;
mod explained;
mod fault;
mod filters;
mod handover;
mod health_checks;
mod learning;
mod meters;
mod overload;
mod payload;
mod pinned;
mod poison;
mod process;
mod proxy_test;
mod publishers;
mod raw_store;
mod redactions;
mod reflected;
mod region_moves;
mod regions;
mod regression;
mod requests;
mod residency;
mod rules;
mod secrecy;
mod signed;
mod start;
mod stored;
mod tls;
mod tokens;
mod unauthorized;
mod upstreams;
mod validation;
mod values;
mod versions;
