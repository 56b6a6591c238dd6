//! What node and control share: the model, wire messages and the store contract.

pub mod event_stream;
pub mod filter;
pub mod json_path;
pub mod json_text;
pub mod problem;
pub mod store;
