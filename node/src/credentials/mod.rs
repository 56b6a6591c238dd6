//! Target credentials on the node: opened here, injected by `stages/inject.rs`, nowhere else.

pub mod vault;
