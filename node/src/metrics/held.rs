//! What counts for each thing of a configuration, with a bound on their number.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// One for each key, for as long as a configuration holds it and then until room is needed.
#[derive(Debug)]
pub(super) struct Held<K, T> {
    all: Mutex<BTreeMap<K, Arc<T>>>,
    /// Whether there was no room to be made in this configuration: a large one has many that are
    /// new, and each would look for it.
    is_full: AtomicBool,
}

impl<K, T> Default for Held<K, T> {
    fn default() -> Self {
        Self {
            all: Mutex::default(),
            is_full: AtomicBool::default(),
        }
    }
}

impl<K: Ord, T: Default> Held<K, T> {
    /// The one of a key; none where it is new and `most` others are held.
    pub(super) fn of(&self, key: K, most: usize) -> Option<Arc<T>> {
        let mut known = self.all();
        if let Some(found) = known.get(&key) {
            return Some(Arc::clone(found));
        }
        if known.len() >= most && !self.is_full.load(Relaxed) {
            // Those that no configuration holds any more make room.
            known.retain(|_, one| Arc::strong_count(one) > 1);
            self.is_full.store(known.len() >= most, Relaxed);
        }
        if known.len() >= most {
            return None;
        }
        Some(Arc::clone(known.entry(key).or_default()))
    }

    /// Another configuration is in effect, which may hold fewer.
    pub(super) fn configured(&self) {
        self.is_full.store(false, Relaxed);
    }

    /// All that are known, in the order of their keys.
    pub(super) fn all(&self) -> MutexGuard<'_, BTreeMap<K, Arc<T>>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_configuration_lets_go_of_makes_room_in_the_next_one() {
        let held: Held<u32, u64> = Held::default();
        let one = held.of(1, 1);
        assert!(held.of(2, 1).is_none());
        drop(one);
        assert!(held.of(2, 1).is_none(), "not looked for twice");
        held.configured();
        assert!(held.of(2, 1).is_some());
    }
}
