//! What the newest version holds, by name, alias and what it hangs on: looked up once per entry.

use std::collections::BTreeMap;

use proto::credential::CredentialKind;
use proto::object::{Body, Object, ObjectId};
use proto::tree::OrgConfig;

/// The kinds of things that have names of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Target,
    ProxyCredential,
    TargetCredential,
    Proxy,
}

impl Kind {
    /// Of a stored object; policy has no name.
    pub fn of(body: &Body) -> Option<Self> {
        match body {
            Body::Target(_) => Some(Self::Target),
            Body::Credential(stored) => Some(Self::of_credential(stored.credential.kind)),
            Body::Proxy(_) => Some(Self::Proxy),
            Body::Org(_) | Body::Token(_) | Body::Rule(_) | Body::Filter(_) | Body::Meter(_) => {
                None
            }
        }
    }

    /// Of a credential.
    pub fn of_credential(kind: CredentialKind) -> Self {
        match kind {
            CredentialKind::Proxy => Self::ProxyCredential,
            CredentialKind::Target => Self::TargetCredential,
        }
    }

    /// Whether an id is of such a thing, as far as it tells.
    pub fn has(self, id: ObjectId) -> bool {
        match self {
            Self::Target => matches!(id, ObjectId::Target(_)),
            Self::ProxyCredential | Self::TargetCredential => {
                matches!(id, ObjectId::Credential(_))
            }
            Self::Proxy => matches!(id, ObjectId::Proxy(_)),
        }
    }

    /// In the plural, for people.
    pub fn words(self) -> &'static str {
        match self {
            Self::Target => "targets",
            Self::ProxyCredential => "proxy credentials",
            Self::TargetCredential => "target credentials",
            Self::Proxy => "proxies",
        }
    }
}

/// A version's objects, ordered for looking up.
pub(super) struct Stored<'a> {
    names: BTreeMap<Kind, BTreeMap<&'a str, Vec<ObjectId>>>,
    /// Proxies without an alias, by name.
    without_alias: BTreeMap<&'a str, Vec<ObjectId>>,
    aliases: BTreeMap<&'a str, ObjectId>,
    policies: BTreeMap<ObjectId, Vec<&'a Object>>,
}

impl<'a> Stored<'a> {
    /// Orders a version.
    pub fn of(config: &'a OrgConfig) -> Self {
        let mut stored = Self {
            names: BTreeMap::new(),
            without_alias: BTreeMap::new(),
            aliases: BTreeMap::new(),
            policies: BTreeMap::new(),
        };
        for (id, object) in &config.objects {
            if let Some(parent) = object.body.parent() {
                stored.policies.entry(parent).or_default().push(object);
            }
            let name: &str = match &object.body {
                Body::Target(target) => &target.name,
                Body::Credential(stored) => &stored.credential.name,
                Body::Proxy(proxy) => &proxy.name,
                _ => continue,
            };
            if let Body::Proxy(proxy) = &object.body {
                match &proxy.alias {
                    Some(alias) => drop(stored.aliases.insert(alias, *id)),
                    None => stored.without_alias.entry(name).or_default().push(*id),
                }
            }
            if let Some(kind) = Kind::of(&object.body) {
                let names = stored.names.entry(kind).or_default();
                names.entry(name).or_default().push(*id);
            }
        }
        stored
    }

    /// Objects of a kind with this name.
    pub fn named(&self, kind: Kind, name: &str) -> &[ObjectId] {
        let named = self.names.get(&kind).and_then(|names| names.get(name));
        named.map_or(&[], Vec::as_slice)
    }

    /// Proxies that an entry with this alias may mean: the one that has it, or else those of its
    /// name that have none.
    pub fn with_alias(&self, alias: &str, name: &str) -> Vec<ObjectId> {
        match self.aliases.get(alias) {
            Some(id) => vec![*id],
            None => self.without_alias.get(name).cloned().unwrap_or_default(),
        }
    }

    /// Rules, filters and meters that hang on an object.
    pub fn policies(&self, parent: ObjectId) -> &[&'a Object] {
        self.policies.get(&parent).map_or(&[], Vec::as_slice)
    }
}
