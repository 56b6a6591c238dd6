//! What node and control share. In reading order: the vocabulary (`id`, `version`, `org`,
//! `target`, `credential`, `proxy`), what checks it (`checks`, `hosts`, `problem`), how a request
//! is judged (`path`, `query`, `body_view`, `rule`), and where it all lives (`store`).
//!
//! Only `store` does IO; everything else is values and pure functions.

pub mod body_view;
pub mod checks;
pub mod credential;
pub mod hosts;
pub mod id;
pub mod object;
pub mod org;
pub mod path;
pub mod problem;
pub mod proxy;
pub mod query;
pub mod rule;
pub mod store;
pub mod target;
pub mod version;
