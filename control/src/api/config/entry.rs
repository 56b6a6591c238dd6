//! One entry of the document: of which list it is, and what it says.

use std::sync::Arc;

use proto::credential::Credential;
use proto::object::{Body, ObjectId};
use proto::proxy::Proxy;
use proto::target::Target;
use proto::tree::{Change, OrgConfig};
use serde_json::{Map, Value};

use super::all;
use crate::api::credentials::Credentials;
use crate::api::objects::{Resource, fields};
use crate::api::proxies::Proxies;
use crate::api::targets::Targets;

/// The three kinds that a document lists.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum List {
    Targets,
    Credentials,
    Proxies,
}

impl List {
    /// Its word in the document.
    pub fn word(self) -> &'static str {
        match self {
            Self::Targets => Targets::COLLECTION,
            Self::Credentials => Credentials::COLLECTION,
            Self::Proxies => Proxies::COLLECTION,
        }
    }
}

/// An entry of the document, read.
pub(super) enum Model {
    Target(Target),
    Credential(Credential),
    Proxy(Proxy),
}

impl Model {
    /// Its name, filled in where it was not given.
    pub fn name(&self) -> &str {
        match self {
            Self::Target(target) => &target.name,
            Self::Credential(credential) => &credential.name,
            Self::Proxy(proxy) => &proxy.name,
        }
    }

    /// Its fields.
    pub fn fields(&self) -> Map<String, Value> {
        match self {
            Self::Target(target) => fields(target),
            Self::Credential(credential) => fields(credential),
            Self::Proxy(proxy) => fields(proxy),
        }
    }

    /// Whether a stored object is of its kind.
    pub fn is_kind_of(&self, body: &Body) -> bool {
        match self {
            Self::Target(_) => Targets::model(body).is_some(),
            Self::Credential(_) => Credentials::model(body).is_some(),
            Self::Proxy(_) => Proxies::model(body).is_some(),
        }
    }

    /// Stored objects that an entry without id may mean: those with its alias, else its name.
    pub fn candidates(&self, config: &OrgConfig) -> Vec<ObjectId> {
        match self {
            Self::Target(target) => {
                by(all::<Targets>(config).map(|(id, t, _)| (id, t.name == target.name)))
            }
            Self::Credential(credential) => by(all::<Credentials>(config)
                .map(|(id, c, _)| (id, c.name == credential.name && c.kind == credential.kind))),
            Self::Proxy(proxy) => {
                let stored = || all::<Proxies>(config);
                let same_alias = |p: &Proxy| p.alias.is_some() && p.alias == proxy.alias;
                let by_alias = by(stored().map(|(id, p, _)| (id, same_alias(p))));
                match by_alias.is_empty() {
                    true => by(stored().map(|(id, p, _)| (id, p.name == proxy.name))),
                    false => by_alias,
                }
            }
        }
    }

    /// The change that puts it in the place of what is stored.
    pub fn change(self) -> Change {
        match self {
            Self::Target(model) => replacing::<Targets>(model),
            Self::Credential(model) => replacing::<Credentials>(model),
            Self::Proxy(model) => replacing::<Proxies>(model),
        }
    }
}

fn replacing<R: Resource>(model: R::Model) -> Change {
    Arc::new(move |body: &Body| Ok(R::with_model(body, model.clone())))
}

/// A fresh id for an entry of a list.
pub(super) fn fresh(list: List) -> ObjectId {
    match list {
        List::Targets => Targets::fresh_id(),
        List::Credentials => Credentials::fresh_id(),
        List::Proxies => Proxies::fresh_id(),
    }
}

/// The ids whose condition holds.
pub(super) fn by<'a>(found: impl Iterator<Item = (&'a ObjectId, bool)>) -> Vec<ObjectId> {
    found.filter(|(_, is)| *is).map(|(id, _)| *id).collect()
}
