//! What node and control share: the model, wire messages and the store contract.

pub mod meter;
pub mod store;
