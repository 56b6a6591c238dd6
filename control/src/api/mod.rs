//! The REST API by resource, and what all resources share: the call, the answer, errors, paging,
//! preconditions, merge patches, the shape of documents, idempotency.

pub mod answer;
pub mod attached;
pub mod audit;
pub mod batch;
pub mod body;
pub mod call;
pub mod changes;
pub mod config;
pub mod credentials;
pub mod error;
pub mod explain;
pub mod filters;
pub mod health;
pub mod idempotency;
pub mod me;
pub mod nodes;
pub mod objects;
pub mod orgs;
pub mod page;
pub mod patch;
pub mod precondition;
pub mod proxies;
pub mod records;
pub mod regions;
pub mod rules;
pub mod schemas;
pub mod secret;
pub mod shape;
pub mod targets;
pub mod tokens;
pub mod versions;
pub mod write;

#[cfg(test)]
mod tests;
