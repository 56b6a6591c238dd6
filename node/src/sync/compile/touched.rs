//! What differs between two states of an organisation, told as the objects proxies are made of.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use proto::id::ProxyId;
use proto::object::{Body, ObjectId};
use proto::proxy::Proxy;
use proto::store::follow::OrgState;
use proto::tree::Differing;

/// Objects that changed, or that something hangs on that changed.
pub(super) struct Touched(HashSet<ObjectId>);

impl Touched {
    /// What differs between two states, whose objects are `differing`; `None` when it may concern
    /// every proxy.
    pub(super) fn between(
        (old, new): (&OrgState, &OrgState),
        objects: &[Differing<'_>],
    ) -> Option<Self> {
        let mut touched = HashSet::new();
        for (id, forms) in objects {
            for object in forms.iter().flatten() {
                touched.insert(match &object.body {
                    Body::Target(_) | Body::Credential(_) | Body::Proxy(_) => *id,
                    Body::Rule(_) | Body::Filter(_) | Body::Meter(_) => {
                        match object.body.parent()? {
                            // It counts the requests of all proxies.
                            ObjectId::Org(_) => return None,
                            parent => parent,
                        }
                    }
                    // No proxy is made of the others yet; one that will be is not forgotten here.
                    Body::Org(_) | Body::Token(_) => return None,
                });
            }
        }
        if !Arc::ptr_eq(&old.sealed, &new.sealed) {
            let values = differing(&old.sealed, &new.sealed, Arc::ptr_eq);
            touched.extend(
                values
                    .into_iter()
                    .map(|(key, _)| ObjectId::Credential(key.0)),
            );
        }
        if !Arc::ptr_eq(&old.retired, &new.retired) {
            let facts = differing(&old.retired, &new.retired, PartialEq::eq);
            touched.extend(facts.into_iter().map(|(id, _)| ObjectId::Credential(*id)));
        }
        Some(Self(touched))
    }

    /// All of it.
    pub(super) fn all(&self) -> impl Iterator<Item = &ObjectId> {
        self.0.iter()
    }

    /// The proxies among it.
    pub(super) fn proxies(&self) -> impl Iterator<Item = ProxyId> {
        self.0.iter().filter_map(|id| match id {
            ObjectId::Proxy(id) => Some(*id),
            _ => None,
        })
    }
}

/// What a proxy is made of: its target, its credentials.
pub(super) fn parts(proxy: &Proxy) -> impl Iterator<Item = ObjectId> + '_ {
    let credentials = proxy.proxy_credential_ids.iter();
    let credentials = credentials.chain(&proxy.target_credential_id);
    [ObjectId::Target(proxy.target_id)]
        .into_iter()
        .chain(credentials.map(|id| ObjectId::Credential(*id)))
}

/// A proxy and its parts: policies hang on one of these.
pub(super) fn scopes(id: ProxyId, proxy: &Proxy) -> impl Iterator<Item = ObjectId> + '_ {
    [ObjectId::Proxy(id)].into_iter().chain(parts(proxy))
}

/// A key that two maps do not have the same of, with its values in the old and the new one.
type Difference<'a, K, V> = (&'a K, [Option<&'a V>; 2]);

fn differing<'a, K: Ord, V>(
    old: &'a BTreeMap<K, V>,
    new: &'a BTreeMap<K, V>,
    same: impl Fn(&V, &V) -> bool,
) -> Vec<Difference<'a, K, V>> {
    let (mut old, mut new) = (old.iter().peekable(), new.iter().peekable());
    let mut found = Vec::new();
    loop {
        let order = match (old.peek(), new.peek()) {
            (None, None) => return found,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some((old, _)), Some((new, _))) => old.cmp(new),
        };
        let before = (order != Ordering::Greater).then(|| old.next()).flatten();
        let after = (order != Ordering::Less).then(|| new.next()).flatten();
        match (before, after) {
            (Some((_, before)), Some((_, after))) if same(before, after) => {}
            (before, after) => {
                let values = [before, after].map(|pair| pair.map(|(_, value)| value));
                let key = before.or(after).map(|(key, _)| key);
                found.extend(key.map(|key| (key, values)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_two_maps_do_not_have_the_same_of_are_found() {
        let map = |pairs: &[(u8, u8)]| -> BTreeMap<u8, u8> { pairs.iter().copied().collect() };
        let check = |old: &[(u8, u8)], new: &[(u8, u8)], expected: &[u8]| {
            let (old, new) = (map(old), map(new));
            let found = differing(&old, &new, PartialEq::eq);
            let keys: Vec<u8> = found.iter().map(|(key, _)| **key).collect();
            assert_eq!(keys, expected, "{old:?} {new:?}");
            for (key, values) in found {
                assert_eq!(values, [old.get(key), new.get(key)]);
            }
        };
        check(&[], &[], &[]);
        check(&[(1, 1), (2, 2)], &[(1, 1), (2, 2)], &[]);
        check(&[(1, 1), (2, 2)], &[(1, 1), (2, 3)], &[2]);
        check(&[(1, 1), (3, 3)], &[(2, 2), (3, 3)], &[1, 2]);
        check(&[], &[(7, 7)], &[7]);
        check(&[(7, 7), (9, 9)], &[], &[7, 9]);
    }
}
