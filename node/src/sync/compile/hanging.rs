//! What hangs on what: the rules, filters and meters of an organisation, found by that which they
//! hang on without looking at all of them.

use std::collections::HashMap;

use proto::object::{Object, ObjectId};
use proto::tree::{Differing, Objects};

/// The ids of what hangs on each object, in their order.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Hanging(HashMap<ObjectId, Vec<ObjectId>>);

impl Hanging {
    /// What hangs on what in a version.
    pub(super) fn of(objects: &Objects) -> Self {
        let mut hanging = Self::default();
        for (id, object) in objects.attached() {
            hanging.put(*id, object);
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
    pub(super) fn on(&self, parent: &ObjectId) -> impl Iterator<Item = &ObjectId> {
        self.0.get(parent).into_iter().flatten()
    }

    fn put(&mut self, id: ObjectId, object: &Object) {
        let Some(parent) = object.body.parent() else {
            return;
        };
        let ids = self.0.entry(parent).or_default();
        if let Err(place) = ids.binary_search(&id) {
            ids.insert(place, id);
        }
    }

    fn take(&mut self, id: ObjectId, object: &Object) {
        let Some(parent) = object.body.parent() else {
            return;
        };
        if let Some(ids) = self.0.get_mut(&parent) {
            ids.retain(|other| *other != id);
            if ids.is_empty() {
                self.0.remove(&parent);
            }
        }
    }
}
