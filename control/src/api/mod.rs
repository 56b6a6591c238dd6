//! The REST API by resource, and what all resources share: the call, the answer, errors, paging,
//! preconditions, merge patches, the shape of documents, idempotency.

pub mod ahead;
pub mod answer;
pub mod attached;
pub mod audit;
pub mod audit_verification;
pub mod batch;
pub mod body;
pub mod call;
pub mod changes;
pub mod config;
pub mod credential_use;
pub mod credentials;
pub mod error;
pub mod explain;
pub mod filters;
mod former;
pub mod health;
pub mod idempotency;
pub mod inline;
mod invitation_schemas;
pub mod invitations;
mod lacking;
pub mod me;
pub mod meters;
pub mod moves;
mod node_lag;
pub mod node_schemas;
mod nodes;
pub mod objects;
pub mod orgs;
pub mod page;
pub mod patch;
pub mod plan;
pub mod precondition;
pub mod proxies;
pub mod proxy_test;
pub mod raise;
pub mod records;
pub mod recovery;
pub(crate) mod recovery_schemas;
pub mod regions;
pub mod replication;
pub mod reset;
pub mod revocations;
pub mod rules;
pub mod schemas;
pub mod secret;
pub mod shape;
pub mod suggested_rules;
pub mod targets;
pub mod telemetry;
mod test_schemas;
pub mod tokens;
pub mod unmatched;
mod unsealed;
pub mod usage;
pub mod versions;
mod warned;
pub mod write;

use crate::route::Route;

/// Every route, by resource.
pub fn routes() -> Vec<Route> {
    [
        health::routes(),
        me::routes(),
        orgs::routes(),
        tokens::routes(),
        targets::routes(),
        credentials::routes(),
        credential_use::routes(),
        proxies::routes(),
        proxy_test::routes(),
        rules::routes(),
        suggested_rules::routes(),
        filters::routes(),
        meters::routes(),
        raise::routes(),
        reset::routes(),
        usage::routes(),
        changes::routes(),
        explain::routes(),
        config::routes(),
        nodes::routes(),
        recovery::routes(),
        unmatched::routes(),
        regions::routes(),
        replication::routes(),
        moves::routes(),
        invitations::routes(),
        revocations::routes(),
        records::routes(),
        telemetry::routes(),
        versions::routes(),
        audit::routes(),
    ]
    .concat()
}

#[cfg(test)]
mod tests;
