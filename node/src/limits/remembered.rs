//! What the store knows of keys that no request has used since this process began, so that a
//! restart does not make meters look unused. It is read once for each key and written never; no
//! time is proven to have passed before it was read, so that what is told is the most that can be
//! used, as it is for the first request.
//!
//! Only keys that configuration names are known here before a request comes: those that count
//! everything together, or by ids of ours. What requests bring is a hash in the store.

use std::collections::HashMap;

use tracing::debug;

use super::Limits;
use super::clock::Moment;
use super::codec;
use super::key::Digest;
use super::state::State;

/// Most keys that are read at a time.
const READ_MAX: usize = 50;
/// Most keys that are read in all: those that are told of are fewer by far.
const KEYS_MAX: usize = 2_000;

/// What was read.
#[derive(Default)]
pub struct Remembered {
    states: HashMap<Digest, Option<(State, Moment)>>,
}

impl Remembered {
    /// The state of a key, and when it was read.
    pub(super) fn state(&self, key: &Digest) -> Option<&(State, Moment)> {
        self.states.get(key)?.as_ref()
    }
}

/// A key of which nothing was read.
pub struct Unread {
    digest: Digest,
    /// Where it is in the store.
    pub store_key: String,
}

impl Limits {
    /// Some of the keys that no request has used and of which nothing was read.
    pub fn unread(&self, known: &Remembered) -> Vec<Unread> {
        let room = KEYS_MAX.saturating_sub(known.states.len()).min(READ_MAX);
        let all = self.registry.all().into_iter();
        let unread = all.filter_map(|meter| {
            let digest = meter.key()?.digest();
            // What requests bring is not configured, and what only observes is not in the store.
            let is_counted = meter.brought.get().is_none() && !meter.observes();
            let is_new = meter.was_never_used() && !known.states.contains_key(&digest);
            (is_counted && is_new).then(|| Unread {
                digest,
                store_key: meter.store_key.clone(),
            })
        });
        unread.take(room).collect()
    }

    /// Takes what was read of a key.
    pub fn remember(&self, known: &mut Remembered, key: Unread, bytes: Option<&[u8]>) {
        let state = bytes.and_then(|bytes| match codec::decode(bytes) {
            Ok(state) => Some((state, self.shared.moment())),
            Err(error) => {
                debug!(
                    key = key.store_key,
                    "{} is not told of: {error}", key.store_key
                );
                None
            }
        });
        known.states.insert(key.digest, state);
    }
}
