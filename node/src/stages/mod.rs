//! The stages in the order in which a request meets them; file name = stage name = span name.
//!
//! No stage names another one: they meet in `flow.rs`, and `worker.rs` wires them.

pub mod receive;
pub mod authenticate;
pub mod authorize;
pub mod limit;
pub mod prepare;
pub mod inject;
pub mod forward;
pub mod filter;
pub mod record;
pub mod respond;
