//! The stages in the order in which a request meets them; file name = stage name = span name.
//!
//! No stage names another one: they meet in `flow.rs`, and `worker.rs` wires them.

pub mod authenticate;
pub mod authorize;
pub mod filter;
pub mod forward;
pub mod inject;
pub mod limit;
pub mod prepare;
pub mod receive;
pub mod record;
pub mod respond;
