//! A proxy's scopes, compiled once for all of its callers.

use std::sync::Arc;

use proto::filter::Filter;
use proto::id::{CredentialId, ProxyId};
use proto::meter::Meter;
use proto::object::{Body, ObjectId, StoredCredential};
use proto::proxy::Proxy;
use proto::rule::Scope;
use proto::target::Target;
use proto::tree::Objects;

use super::elsewhere::Here;
use super::judge::Judged;
use super::scope::Scoped;

/// A proxy with the scopes that all of its callers share, compiled once.
pub struct Base<'a> {
    objects: &'a Objects,
    here: &'a Here,
    id: ProxyId,
    proxy: &'a Proxy,
    target: &'a Target,
    injected: Option<(CredentialId, &'a StoredCredential)>,
    scopes: Vec<Arc<Scoped<'a>>>,
}

impl<'a> Base<'a> {
    /// As the nodes of a region serve it; `None` when the configuration lacks the proxy or what it
    /// names.
    pub fn new(objects: &'a Objects, id: ProxyId, here: &'a Here) -> Option<Self> {
        let Body::Proxy(proxy) = &objects.get(&ObjectId::Proxy(id))?.body else {
            return None;
        };
        let Body::Target(target) = &objects.get(&ObjectId::Target(proxy.target_id))?.body else {
            return None;
        };
        let injected = proxy
            .target_credential_id
            .and_then(|id| credential(objects, id));
        let on_target = ObjectId::Target(proxy.target_id);
        let places = [
            injected.map(|(id, stored)| {
                let default = stored.credential.default_rule_effect;
                (Scope::TargetCredential, ObjectId::Credential(id), default)
            }),
            Some((Scope::Proxy, ObjectId::Proxy(id), proxy.default_rule_effect)),
            Some((Scope::Target, on_target, target.default_rule_effect)),
        ];
        let scopes = places.into_iter().flatten();
        let scopes = scopes
            .map(|(scope, on, default)| Scoped::new(objects, scope, on, default).map(Arc::new));
        Some(Self {
            objects,
            here,
            id,
            proxy,
            target,
            injected,
            scopes: scopes.collect::<Option<_>>()?,
        })
    }

    /// The proxy as `caller` meets it; without one, as its first credential does.
    pub fn met_by(&self, caller: Option<CredentialId>) -> Option<Judged<'a>> {
        let caller = caller.or(self.proxy.proxy_credential_ids.first().copied());
        let caller = caller.and_then(|id| credential(self.objects, id));
        let own = match caller {
            Some((id, stored)) => {
                let (on, default) = (
                    ObjectId::Credential(id),
                    stored.credential.default_rule_effect,
                );
                Some(Scoped::new(
                    self.objects,
                    Scope::ProxyCredential,
                    on,
                    default,
                )?)
            }
            None => None,
        };
        // The order in which the pipeline judges and explains.
        let scopes = own
            .map(Arc::new)
            .into_iter()
            .chain(self.scopes.iter().cloned());
        // The order in which the answer is filtered.
        let filtering = [
            (
                Scope::TargetCredential,
                self.injected.map(|(id, _)| ObjectId::Credential(id)),
            ),
            (Scope::Target, Some(ObjectId::Target(self.proxy.target_id))),
            (
                Scope::ProxyCredential,
                caller.map(|(id, _)| ObjectId::Credential(id)),
            ),
            (Scope::Proxy, Some(ObjectId::Proxy(self.id))),
        ];
        let mut filters: Vec<(Scope, &Filter)> = Vec::new();
        for (scope, on) in filtering {
            filters.extend(
                self.objects
                    .values()
                    .filter_map(|object| match &object.body {
                        Body::Filter(filter) if Some(filter.parent) == on => {
                            Some((scope, &filter.spec))
                        }
                        _ => None,
                    }),
            );
        }
        let meters = self.meters(filtering.map(|(_, on)| on));
        Some(Judged {
            here: self.here,
            id: self.id,
            proxy: self.proxy,
            target: self.target,
            caller,
            injected: self.injected,
            scopes: scopes.collect(),
            filters,
            meters,
        })
    }

    /// The meters that hang on the organisation or on one of these.
    fn meters(&self, on: [Option<ObjectId>; 4]) -> Vec<(ObjectId, &'a Meter)> {
        let hanging = self
            .objects
            .attached()
            .filter_map(|(_, object)| match &object.body {
                Body::Meter(meter) => {
                    let parent = meter.parent;
                    let counts = matches!(parent, ObjectId::Org(_)) || on.contains(&Some(parent));
                    counts.then_some((parent, &meter.spec))
                }
                _ => None,
            });
        hanging.collect()
    }
}

fn credential(objects: &Objects, id: CredentialId) -> Option<(CredentialId, &StoredCredential)> {
    match &objects.get(&ObjectId::Credential(id))?.body {
        Body::Credential(stored) => Some((id, stored)),
        _ => None,
    }
}
