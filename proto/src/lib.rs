//! What node and control share: the model, wire messages and the store contract.

pub mod body_view;
pub mod path;
pub mod problem;
pub mod query;
pub mod rule;
pub mod store;
