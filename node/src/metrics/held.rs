//! What counts for each thing of a configuration, with a bound on their number.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// One for each key, for as long as a configuration holds it and then until room is needed.
#[derive(Debug)]
pub(super) struct Held<K, T>(Mutex<BTreeMap<K, Arc<T>>>);

impl<K, T> Default for Held<K, T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Ord, T: Default> Held<K, T> {
    /// The one of a key; none where it is new and `most` others are held.
    pub(super) fn of(&self, key: K, most: usize) -> Option<Arc<T>> {
        let mut known = self.all();
        if let Some(found) = known.get(&key) {
            return Some(Arc::clone(found));
        }
        if known.len() >= most {
            // Those that no configuration holds any more make room.
            known.retain(|_, one| Arc::strong_count(one) > 1);
        }
        if known.len() >= most {
            return None;
        }
        Some(Arc::clone(known.entry(key).or_default()))
    }

    /// All that are known, in the order of their keys.
    pub(super) fn all(&self) -> MutexGuard<'_, BTreeMap<K, Arc<T>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
