//! The meters of a process by key: one for each, however many requests look for it at once.
//!
//! Keys that come from requests are hostile: there may be as many as callers can think of. Their
//! number is bounded in all of the process, in what one organisation takes of that, and in new ones
//! a second of an organisation; who comes too late shares the overflow key of its meter, and is
//! limited with the others there. What neither a configuration, a request nor the broker holds any
//! more is forgotten.
//!
//! An organisation gets another key while it has fewer than eight times as many as are free
//! (dynamic thresholds, Choudhury and Hahne 1998): alone it gets eight ninths of all, and whoever
//! comes after one that took these finds room still.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::key::{Digest, MeterKey};

/// Parts of the map with a lock each, held for one look-up.
const SHARDS: usize = 64;
/// A part with fewer keys is not looked through for what can be forgotten.
const SWEEP_MIN: usize = 64;
/// Shortest time between two searches of the whole map.
const SWEEP_NS: u64 = 1_000_000_000;
/// An organisation has at most so many times as many keys as are free.
const TIMES_FREE: usize = 8;
/// New keys of an organisation per second, over all nodes.
const NEW_PER_SECOND: u64 = 200;

/// The meters of a process, or what else there is one of for each key.
#[derive(Debug)]
pub(super) struct Registry<T> {
    shards: Box<[Mutex<Shard<T>>]>,
    /// Keys that requests may bring.
    keys_max: usize,
    /// Those that they have brought.
    brought: Arc<AtomicUsize>,
    swept_ns: AtomicU64,
}

#[derive(Debug)]
struct Shard<T> {
    meters: HashMap<Digest, Arc<T>, Mixed>,
    sweep_at: usize,
}

impl<T> Default for Shard<T> {
    fn default() -> Self {
        Self {
            meters: HashMap::default(),
            sweep_at: SWEEP_MIN,
        }
    }
}

/// Hashes digests, which are as good as random: they are mixed with a number that nobody knows, so
/// that nobody can look for some that fall on one place.
#[derive(Clone, Debug)]
struct Mixed(u64);

impl Default for Mixed {
    fn default() -> Self {
        Self(RandomState::new().build_hasher().finish() | 1)
    }
}

impl BuildHasher for Mixed {
    type Hasher = Mixing;

    fn build_hasher(&self) -> Mixing {
        Mixing {
            secret: self.0,
            hash: self.0,
        }
    }
}

struct Mixing {
    secret: u64,
    hash: u64,
}

impl Hasher for Mixing {
    fn write(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        let rest = rest
            .iter()
            .fold(0, |word, byte| word << 8 | u64::from(*byte));
        let words = words.iter().map(|word| u64::from_le_bytes(*word));
        for word in words.chain([rest]) {
            let product = u128::from(self.hash ^ word) * u128::from(self.secret);
            self.hash = (product >> 64) as u64 ^ product as u64;
        }
    }

    /// The length, which all have.
    fn write_usize(&mut self, _: usize) {}

    fn finish(&self) -> u64 {
        self.hash
    }
}

/// The keys that requests of an organisation bring.
#[derive(Debug, Default)]
pub struct Newcomers {
    /// How many were met for the first time in this second: the second in the upper bits, the
    /// count in the lower sixteen.
    word: AtomicU64,
    /// How many there are.
    keys: AtomicUsize,
}

/// The place of a key that a request brought, until it is dropped.
#[derive(Debug)]
pub(super) struct Brought {
    newcomers: Arc<Newcomers>,
    all: Arc<AtomicUsize>,
}

impl Brought {
    fn new(newcomers: &Arc<Newcomers>, all: &Arc<AtomicUsize>) -> Self {
        newcomers.keys.fetch_add(1, Ordering::Relaxed);
        all.fetch_add(1, Ordering::Relaxed);
        Self {
            newcomers: Arc::clone(newcomers),
            all: Arc::clone(all),
        }
    }
}

impl Drop for Brought {
    fn drop(&mut self) {
        self.newcomers.keys.fetch_sub(1, Ordering::Relaxed);
        self.all.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Newcomers {
    /// Whether one more may come now, where `nodes` share what an organisation may have.
    fn admit(&self, now_ns: u64, nodes: u64) -> bool {
        let second = (now_ns / 1_000_000_000) << 16;
        let most = (NEW_PER_SECOND / nodes.max(1)).max(1);
        let admitted = self
            .word
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |word| {
                let count = if word & !0xffff == second {
                    word & 0xffff
                } else {
                    0
                };
                (count < most).then_some(second | (count + 1))
            });
        admitted.is_ok()
    }
}

impl<T> Registry<T> {
    pub fn new(keys_max: usize) -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            keys_max,
            brought: Arc::default(),
            swept_ns: AtomicU64::new(0),
        }
    }

    /// The meter of a digest, if there is one.
    pub fn find(&self, digest: &Digest) -> Option<Arc<T>> {
        self.shard(digest).meters.get(digest).cloned()
    }

    /// A place for a key that a request of an organisation brings, one of `nodes` that its callers
    /// may reach; none where there are too many.
    pub fn bring(&self, newcomers: &Arc<Newcomers>, now_ns: u64, nodes: u64) -> Option<Brought> {
        let fits = self.has_room(newcomers, now_ns) && newcomers.admit(now_ns, nodes);
        fits.then(|| Brought::new(newcomers, &self.brought))
    }

    fn has_room(&self, newcomers: &Newcomers, now_ns: u64) -> bool {
        let fits = || {
            let brought = self.brought.load(Ordering::Relaxed);
            let free = self.keys_max.saturating_sub(brought);
            newcomers.keys.load(Ordering::Relaxed) < free.saturating_mul(TIMES_FREE)
        };
        if fits() {
            return true;
        }
        let swept_ns = self.swept_ns.load(Ordering::Relaxed);
        if swept_ns != 0 && now_ns.saturating_sub(swept_ns) < SWEEP_NS {
            return false;
        }
        self.swept_ns.store(now_ns.max(1), Ordering::Relaxed);
        for shard in &self.shards {
            sweep(&mut lock(shard));
        }
        fits()
    }

    /// The meter of a key, made where there is none yet.
    pub fn find_or_make(&self, key: MeterKey, make: impl FnOnce(MeterKey) -> Arc<T>) -> Arc<T> {
        let digest = key.digest();
        let mut shard = self.shard(&digest);
        if let Some(meter) = shard.meters.get(&digest) {
            return Arc::clone(meter);
        }
        if shard.meters.len() >= shard.sweep_at.max(SWEEP_MIN) {
            sweep(&mut shard);
            shard.sweep_at = shard.meters.len().saturating_mul(2);
        }
        let meter = make(key);
        shard.meters.insert(digest, Arc::clone(&meter));
        meter
    }

    /// Every meter, for the few who ask how all are.
    pub fn all(&self) -> Vec<Arc<T>> {
        let mut all = Vec::new();
        for shard in &self.shards {
            all.extend(lock(shard).meters.values().cloned());
        }
        all
    }

    fn shard(&self, digest: &Digest) -> MutexGuard<'_, Shard<T>> {
        let at = usize::from(digest[0]) % SHARDS;
        lock(&self.shards[at])
    }
}

/// Forgets what nobody else holds: nobody can take hold of it while the lock is held.
fn sweep<T>(shard: &mut Shard<T>) {
    shard.meters.retain(|_, meter| Arc::strong_count(meter) > 1);
}

fn lock<T>(shard: &Mutex<Shard<T>>) -> MutexGuard<'_, Shard<T>> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND_NS: u64 = 1_000_000_000;

    /// Other places for each process, and none that many fall on: of digests that differ in one
    /// byte each half of the bits of their hashes is another one.
    #[test]
    fn digests_are_spread_by_what_nobody_knows() {
        let (one, other) = (Mixed::default(), Mixed::default());
        let digests: Vec<Digest> = (0..16)
            .flat_map(|at| {
                (1..=255).map(move |byte| {
                    let mut digest = [7; 16];
                    digest[at] ^= byte;
                    digest
                })
            })
            .collect();
        let places = |mixed: &Mixed| {
            let places = digests.iter().map(|digest| mixed.hash_one(digest) % 4_096);
            places.collect::<Vec<u64>>()
        };
        let (here, there) = (places(&one), places(&other));
        assert_ne!(here, there);
        let mut most = [0_u32; 4_096];
        here.iter().for_each(|at| most[*at as usize] += 1);
        assert!(most.iter().all(|n| *n <= 12), "4,080 on as many places");
    }

    #[test]
    fn so_many_new_keys_come_in_a_second() {
        let newcomers = Newcomers::default();
        let admitted = |now_ns: u64, nodes: u64| {
            (0..1_000)
                .filter(|_| newcomers.admit(now_ns, nodes))
                .count()
        };
        assert_eq!(admitted(5 * SECOND_NS, 1), 200);
        assert_eq!(admitted(5 * SECOND_NS + 1, 1), 0);
        assert_eq!(admitted(6 * SECOND_NS, 1), 200);
        assert_eq!(admitted(7 * SECOND_NS, 4), 50, "its part of four nodes");
        assert_eq!(admitted(8 * SECOND_NS, 1_000), 1);
    }

    fn key(n: u64) -> MeterKey {
        MeterKey::of("mtr_1", n.to_string())
    }

    #[test]
    fn what_nobody_holds_is_forgotten() {
        let registry = Registry::new(1_000_000);
        for n in 0..100_000 {
            drop(registry.find_or_make(key(n), |_| Arc::new(n)));
        }
        assert!(registry.all().len() <= SHARDS * SWEEP_MIN);
        let held = registry.find_or_make(key(7), |_| Arc::new(7));
        for n in 100_000..200_000 {
            drop(registry.find_or_make(key(n), |_| Arc::new(n)));
        }
        let found = registry.find(&key(7).digest()).unwrap();
        assert!(Arc::ptr_eq(&held, &found), "what is held stays");
    }

    /// Brings as many keys as fit; none of them is of the same second as another.
    fn fill(
        registry: &Registry<Brought>,
        newcomers: &Arc<Newcomers>,
        from: u64,
    ) -> Vec<Arc<Brought>> {
        let bring = |n: u64| {
            let brought = registry.bring(newcomers, n * SECOND_NS, 1)?;
            Some(registry.find_or_make(key(n), |_| Arc::new(brought)))
        };
        (from..from + 1_000).map_while(bring).collect()
    }

    #[test]
    fn a_full_map_has_room_again_when_keys_are_let_go() {
        let (registry, org) = (Registry::new(90), Arc::default());
        let held = fill(&registry, &org, 1);
        assert_eq!(held.len(), 80);
        let now_ns = 2_000 * SECOND_NS;
        assert!(registry.bring(&org, now_ns, 1).is_none());
        drop(held);
        let looked = registry.bring(&org, now_ns + 1, 1);
        assert!(looked.is_none(), "it was just looked through");
        assert!(registry.bring(&org, now_ns + 2 * SECOND_NS, 1).is_some());
        assert!(registry.all().is_empty());
    }

    #[test]
    fn an_organisation_leaves_room_for_others() {
        let registry = Registry::new(900);
        let orgs: [Arc<Newcomers>; 3] = Default::default();
        let mut held: Vec<_> = orgs
            .iter()
            .zip([1, 10_000, 20_000])
            .map(|(org, from)| fill(&registry, org, from))
            .collect();
        let counts: Vec<_> = held.iter().map(Vec::len).collect();
        assert_eq!(counts, [800, 89, 10]);
        // Of what the first lets go the others get their part.
        held.remove(0);
        assert_eq!(fill(&registry, &orgs[2], 30_000).len(), 711);
    }
}
