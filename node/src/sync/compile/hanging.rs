//! What hangs on what: the rules, filters and meters of an organisation, found by that which they
//! hang on, and the proxies, found by their parts; without looking at all of them.

use std::collections::HashMap;

use proto::id::ProxyId;
use proto::object::{Body, Object, ObjectId};
use proto::tree::{Differing, Objects};

use super::touched::parts;

/// The ids of what hangs on each object, in their order.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Hanging {
    attached: Many<ObjectId>,
    /// Proxies by their parts.
    proxies: Many<ProxyId>,
}

impl Hanging {
    /// What hangs on what in a version.
    pub(super) fn of(objects: &Objects) -> Self {
        let mut hanging = Self::default();
        for (id, object) in objects.attached() {
            hanging.put(*id, object);
        }
        for (id, proxy) in objects.proxies() {
            for part in parts(proxy) {
                hanging.proxies.put(part, id);
            }
        }
        hanging
    }

    /// Goes on to another version by what differs.
    pub(super) fn follow(&mut self, differing: &[Differing<'_>]) {
        for (id, [before, after]) in differing {
            if let Some(before) = before {
                self.take(*id, before);
            }
            if let Some(after) = after {
                self.put(*id, after);
            }
        }
    }

    /// What hangs on an object.
    pub(super) fn on(&self, parent: &ObjectId) -> &[ObjectId] {
        self.attached.of(parent)
    }

    /// The proxies that have an object for a part.
    pub(super) fn proxies(&self, of: &ObjectId) -> &[ProxyId] {
        self.proxies.of(of)
    }

    fn put(&mut self, id: ObjectId, object: &Object) {
        if let Some(parent) = object.body.parent() {
            self.attached.put(parent, id);
        }
        if let (ObjectId::Proxy(id), Body::Proxy(proxy)) = (id, &object.body) {
            parts(proxy).for_each(|part| self.proxies.put(part, id));
        }
    }

    fn take(&mut self, id: ObjectId, object: &Object) {
        if let Some(parent) = object.body.parent() {
            self.attached.take(&parent, id);
        }
        if let (ObjectId::Proxy(id), Body::Proxy(proxy)) = (id, &object.body) {
            parts(proxy).for_each(|part| self.proxies.take(&part, id));
        }
    }
}

/// Several ids for each object.
#[derive(Debug, PartialEq, Eq)]
struct Many<T>(HashMap<ObjectId, Vec<T>>);

impl<T> Default for Many<T> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<T: Copy + Ord> Many<T> {
    fn of(&self, object: &ObjectId) -> &[T] {
        self.0.get(object).map_or(&[], Vec::as_slice)
    }

    fn put(&mut self, object: ObjectId, id: T) {
        let ids = self.0.entry(object).or_default();
        if let Err(place) = ids.binary_search(&id) {
            ids.insert(place, id);
        }
    }

    fn take(&mut self, object: &ObjectId, id: T) {
        if let Some(ids) = self.0.get_mut(object) {
            if let Ok(place) = ids.binary_search(&id) {
                ids.remove(place);
            }
            if ids.is_empty() {
                self.0.remove(object);
            }
        }
    }
}
