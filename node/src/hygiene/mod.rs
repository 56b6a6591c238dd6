//! What may travel between caller and target: header fields, URLs and cookies. Pure.

pub mod bytewise;
pub mod cookies;
pub mod fields;
pub mod urls;
