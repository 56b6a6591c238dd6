//! How two versions differ, and what makes the newer one like the older one again. Pure.

use std::sync::Arc;

use super::{Objects, Operation};
use crate::object::{Object, ObjectId};

/// One object that is not the same in two versions.
#[derive(Clone, Debug, PartialEq)]
pub struct Difference {
    /// The object.
    pub id: ObjectId,
    /// Its form in the first version; absent where it is not there.
    pub before: Option<Arc<Object>>,
    /// Its form in the second version.
    pub after: Option<Arc<Object>>,
}

/// The objects that differ between two versions, by id.
pub fn diff(from: &Objects, to: &Objects) -> Vec<Difference> {
    let differing = from.differing(to).into_iter();
    let bodies_differ = |forms: &[Option<&Arc<Object>>; 2]| match forms {
        [Some(before), Some(after)] => before.body != after.body,
        _ => true,
    };
    differing
        .filter(|(_, forms)| bodies_differ(forms))
        .map(|(id, [before, after])| Difference {
            id,
            before: before.cloned(),
            after: after.cloned(),
        })
        .collect()
}

/// The operations that give `current` the content of `old`.
///
/// API tokens and organisations stay as they are: a token that was revoked is a fact. So are
/// secrets, see [`Operation::Restore`].
pub fn restore(current: &Objects, old: &Objects) -> Vec<Operation> {
    let configures = |id: &ObjectId| !matches!(id, ObjectId::Token(_) | ObjectId::Org(_));
    let goes = |id: &ObjectId| current.contains_key(id) && !old.contains_key(id);
    diff(current, old)
        .into_iter()
        .filter(|difference| configures(&difference.id))
        .filter_map(|Difference { id, before, after }| match (before, after) {
            (_, Some(after)) => Some(Operation::Restore {
                id,
                body: after.body.clone(),
            }),
            // What hangs on an object goes with it.
            (Some(before), None) if before.body.parent().is_some_and(|on| goes(&on)) => None,
            _ => Some(Operation::Delete {
                id,
                precondition: None,
            }),
        })
        .collect()
}
