//! What node and control share. In reading order: the vocabulary (`id`, `version`, `org`, `target`,
//! `endpoint`, `credential`, `proxy`, `object`), what checks it (`checks`, `hosts`, `problem`,
//! `policy`, `regions`), how a request is judged (`path`, `query`, `body_view`, `rule`,
//! `validation`), how
//! secrets are kept (`seal`, `retired`), how a configuration is made of it all (`tree`), where it
//! lives (`keys`, `store`), what nodes are asked to try (`test_request`), what gateways tell each
//! other (`region_link`), who calls through proxies (`forwarded`), and what is told of each request
//! (`record`, `stage`, `attempt`, `wire`).
//!
//! What is done that makes no version is chained in `audit`. What nodes tell of their meters is
//! `usage`; metrics of every process are `exposition`; `visible`
//! is how texts of others are shown.
//!
//! Only `store` does IO; everything else is values and pure functions.

pub mod attempt;
pub mod audit;
pub mod beat;
pub mod body_view;
pub mod boot_instant;
pub mod breaker;
pub mod checks;
pub mod credential;
pub mod endpoint;
pub mod event_stream;
pub mod exposition;
pub mod field_name;
pub mod filter;
pub mod forwarded;
pub mod health;
pub mod health_check;
pub mod home;
pub mod hosts;
pub mod id;
pub mod json_path;
pub mod json_text;
pub mod keys;
pub mod listening;
pub mod member;
pub mod meter;
pub mod object;
pub mod org;
pub mod outcome;
pub mod path;
pub mod pattern_size;
pub mod payload;
pub mod policy;
pub mod private_file;
pub mod problem;
pub mod proxy;
pub mod query;
pub mod raise;
pub mod record;
pub mod region_link;
pub mod regions;
pub mod residence;
pub mod restarts;
pub mod retired;
pub mod rule;
pub mod seal;
pub mod shares;
pub mod signature;
pub mod stage;
pub mod store;
pub mod target;
pub mod test_request;
pub mod tree;
pub mod usage;
pub mod validation;
pub mod version;
pub mod visible;
pub mod wire;
