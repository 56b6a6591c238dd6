//! One entry of the document: of which list it is, and what it says.

use std::sync::Arc;

use proto::credential::Credential;
use proto::object::{Body, ObjectId};
use proto::proxy::Proxy;
use proto::target::Target;
use proto::tree::Change;
use serde_json::{Map, Value};

use super::stored::{Kind, Stored};
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

/// What tells entries without an id from each other.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// Of a proxy that has one.
    Alias(String),
    /// Of all others, among those of its kind.
    Name(Kind, String),
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

    /// What it is, for looking up others of its kind.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Target(_) => Kind::Target,
            Self::Credential(credential) => Kind::of_credential(credential.kind),
            Self::Proxy(_) => Kind::Proxy,
        }
    }

    /// What no other entry without an id may be: its name, or a proxy's alias.
    pub fn key(&self) -> Key {
        match self {
            Self::Proxy(Proxy {
                alias: Some(alias), ..
            }) => Key::Alias(alias.clone()),
            _ => Key::Name(self.kind(), self.name().to_owned()),
        }
    }

    /// Stored objects that an entry without id may mean.
    pub fn candidates(&self, stored: &Stored<'_>) -> Vec<ObjectId> {
        match self {
            Self::Proxy(Proxy {
                alias: Some(alias),
                name,
                ..
            }) => stored.with_alias(alias, name),
            _ => stored.named(self.kind(), self.name()).to_vec(),
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

/// The id of a new entry of a list.
pub(super) fn fresh(list: List, secret: Option<&Value>) -> ObjectId {
    match list {
        List::Targets => Targets::fresh_id(),
        List::Credentials => Credentials::id_of_new(secret),
        List::Proxies => Proxies::fresh_id(),
    }
}

/// How many objects a document is about, with the policies that hang on each.
pub(super) fn objects(document: &Value) -> usize {
    let length = |of: &Value, list: &str| of[list].as_array().map_or(0, Vec::len);
    let policies = |of: &Value| -> usize {
        let lists = ["rules", "filters", "meters"];
        lists.into_iter().map(|list| length(of, list)).sum()
    };
    let lists = [List::Targets, List::Credentials, List::Proxies];
    let entries = lists.map(|list| document[list.word()].as_array());
    let entries = entries.into_iter().flatten().flatten();
    entries.map(|entry| 1 + policies(entry)).sum::<usize>() + policies(document)
}
