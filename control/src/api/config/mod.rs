//! An organisation's configuration as one document: exported, and applied.
//!
//! The document names things by their names, so that it can be kept in a repository and applied to
//! another organisation; an `id` is given only where a name alone would not tell which is meant,
//! and one of another installation is issued anew where that is asked for (`identity`). A document
//! that is applied twice changes nothing the second time. Secrets are never exported; a credential
//! without `secret` keeps the one that it has.

mod apply;
mod entry;
mod export;
mod identity;
mod kept;
mod names;
pub mod schemas;
mod stored;

use proto::object::{Object, ObjectId};
use proto::org::Role;
use proto::tree::OrgConfig;

use self::apply::apply;
use self::export::export;
use super::batch;
use super::objects::Resource;
use crate::route::{Gives, Need, Parameter, Route, Takes, Verb};

/// What `format` says.
pub const FORMAT: &str = "requestrocket/1";

const PATH: &str = "/orgs/{org}/config";
const APPLY: &[Parameter] = &[
    batch::DRY_RUN,
    (
        "import",
        "`true`: the document is of another installation; an `id` that nothing has here is issued \
         anew. Without it such an `id` is refused: it may be mistyped",
    ),
    (
        "prune",
        "`true`: delete targets, credentials and proxies that the document does not name",
    ),
];

/// Rows of the routing table.
pub fn routes() -> Vec<Route> {
    vec![
        Route::org(
            Verb::Get,
            PATH,
            (
                "export_config",
                "Export targets, credentials, proxies and their policy, without secrets",
            ),
            Need::Role(Role::Member),
            export,
        )
        .gives(Gives::One("Config"))
        .of_configuration(),
        Route::org(
            Verb::Put,
            PATH,
            (
                "apply_config",
                "Make the configuration what the document says, as one version",
            ),
            Need::Role(Role::Admin),
            apply,
        )
        .takes(Takes::Large("Config"))
        .gives(Gives::One("Changed"))
        .given_secrets(apply::given)
        .parameters(APPLY),
    ]
}

/// The stored objects of a kind, by id.
fn all<R: Resource>(config: &OrgConfig) -> impl Iterator<Item = (&ObjectId, &R::Model, &Object)> {
    let objects = config.objects.range(R::span());
    objects.filter_map(|(id, object)| Some((id, R::model(&object.body)?, &**object)))
}
