//! Target credentials on the node: opened here, injected by `stages/inject.rs`, nowhere else.

pub mod edges;
pub mod forms;
pub mod issued;
pub mod live;
pub mod scrub;
pub mod shown;
pub mod stale;
pub mod vault;
pub mod words;
