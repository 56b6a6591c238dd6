//! What node and control share. In reading order: the vocabulary (`id`, `version`, `org`,
//! `target`, `credential`, `proxy`), what checks it (`checks`, `hosts`, `problem`), and where it
//! lives (`store`).
//!
//! Only `store` does IO; everything else is values and pure functions.

pub mod checks;
pub mod credential;
pub mod hosts;
pub mod id;
pub mod object;
pub mod org;
pub mod problem;
pub mod proxy;
pub mod record;
pub mod store;
pub mod target;
pub mod version;
pub mod wire;
