//! Sweeping over a store on disk, on a clock that is set by hand.

use std::sync::atomic::AtomicU64;

use proto::meter::{Limit, MeterSpec, Window};
use proto::store::embedded::Embedded;

use super::*;
use crate::limits::block::Opener;
use crate::limits::clock::Moment;
use crate::limits::codec;
use crate::limits::key::MeterKey;
use crate::limits::slots::state::SlotState;
use crate::limits::state::{Instant, State};

const SECOND: u64 = 1_000_000_000;
const SLOTS: &str = "slots/00112233445566778899aabbccddeeff";

struct ByHand(AtomicU64);

impl Clock for ByHand {
    fn boot_ns(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn moment(&self) -> Moment {
        Moment {
            boot_ns: self.boot_ns(),
            unix_ns: 0,
        }
    }
}

struct Place {
    store: Arc<dyn Store>,
    clock: Arc<ByHand>,
    shared: Shared,
    _folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Embedded::open(&folder.path().join("store.sqlite")).unwrap();
        let clock = Arc::new(ByHand(AtomicU64::new(1_000 * SECOND)));
        let grace = Duration::from_millis(300);
        let shared = Shared::new(Arc::clone(&clock) as Arc<dyn Clock>, grace, 1, 1, 0);
        Self {
            store,
            clock,
            shared,
            _folder: folder,
        }
    }

    async fn put(&self, key: &str, value: Vec<u8>) {
        let txn = Txn {
            ops: vec![Op::put(key, value)],
            ..Txn::default()
        };
        let outcome = self.store.txn(txn).await.unwrap();
        assert!(matches!(outcome, TxnOutcome::Committed(_)));
    }

    async fn has(&self, key: &str) -> bool {
        self.store.get(key).await.unwrap().value.is_some()
    }

    /// Lets a time pass, in which nobody does anything.
    fn pass(&self, seconds: u64) {
        self.clock.0.fetch_add(seconds * SECOND, Ordering::Relaxed);
    }

    /// Lets a time pass, in which a node sweeps as it does by itself.
    async fn sweep(&self, sweep: &mut Sweep, seconds: u64) {
        let until_ns = self.clock.boot_ns() + seconds * SECOND;
        while self.clock.boot_ns() < until_ns {
            let pause = sweep.turn(&*self.store, &self.shared).await.unwrap();
            self.pass(pause.as_secs());
        }
    }

    fn swept(&self) -> u64 {
        self.shared.stats.swept.load(Ordering::Relaxed)
    }
}

fn key_of(name: &str) -> String {
    MeterKey::whole(name).store_key()
}

fn used(window: Window) -> Vec<u8> {
    let spec = MeterSpec::new("", 1, vec![Limit::new(10, window).unwrap()]).unwrap();
    let mut state = State::empty(&spec, 0, 0);
    let at = Instant {
        age_ns: 0,
        unix_s: 0,
    };
    state.charge(1, at);
    codec::encode(&state).unwrap()
}

#[actix_rt::test]
async fn what_a_killed_process_left_goes_and_what_moves_or_makes_no_sense_stays() {
    let place = Place::new();
    let mut slots = SlotState::default();
    assert!(slots.set(Opener { node: 1, boot: 1 }, 3, 10 * SECOND));
    place.put(&key_of("left"), used(Window::Second)).await;
    place.put(&key_of("junk"), b"junk".to_vec()).await;
    place.put(&key_of("hour"), used(Window::Hour)).await;
    place.put(SLOTS, slots.encode().unwrap()).await;
    let mut sweep = Sweep::default();
    place.sweep(&mut sweep, 55).await;
    assert_eq!(place.swept(), 0, "too early to tell");
    for _ in 0..10 {
        place.put(&key_of("moves"), used(Window::Second)).await;
        place.sweep(&mut sweep, 30).await;
    }
    assert_eq!(place.swept(), 2);
    assert!(!place.has(&key_of("left")).await && !place.has(SLOTS).await);
    for name in ["moves", "junk", "hour"] {
        assert!(place.has(&key_of(name)).await, "{name}");
    }
    place.sweep(&mut sweep, 2 * 3_600 + 1_200).await;
    assert!(!place.has(&key_of("hour")).await && place.has(&key_of("junk")).await);
}

#[actix_rt::test]
async fn where_there_is_no_key_nothing_is_written() {
    let place = Place::new();
    place.put("live/beat", Vec::new()).await;
    let before = place.store.get(SWEPT).await.unwrap().revision;
    place.sweep(&mut Sweep::default(), 3_600).await;
    let after = place.store.get(SWEPT).await.unwrap();
    assert_eq!((after.revision, after.value), (before, None));
}

#[actix_rt::test]
async fn another_node_waits_and_goes_on_with_what_the_first_has_seen_pass() {
    let place = Place::new();
    place.put(&key_of("hour"), used(Window::Hour)).await;
    let (mut first, mut second) = (Sweep::default(), Sweep::default());
    place.sweep(&mut first, 60).await;
    let of_first = place.store.get(SWEPT).await.unwrap().value.unwrap();
    for _ in 0..110 {
        second.turn(&*place.store, &place.shared).await.unwrap();
        place.sweep(&mut first, 60).await;
    }
    let log = second.log.as_ref().unwrap();
    assert!(!log.ours && log.revision > of_first.mod_revision, "{log:?}");
    drop(first);
    place.sweep(&mut second, 140).await;
    assert!(!second.log.as_ref().unwrap().ours, "the first may be slow");
    place.sweep(&mut second, 600).await;
    assert!(second.log.as_ref().unwrap().ours);
    // Its own hours would end much later.
    place.sweep(&mut second, 600).await;
    assert!(!place.has(&key_of("hour")).await);
}

#[actix_rt::test]
async fn nothing_is_deleted_that_moved_or_by_a_log_that_did() {
    let place = Place::new();
    let key = key_of("left");
    place.put(&key, used(Window::Second)).await;
    let mut sweep = Sweep::default();
    place.sweep(&mut sweep, 1).await;
    let read = place.store.get(&key).await.unwrap().value.unwrap();
    place.put(&key, used(Window::Second)).await;
    assert_eq!(sweep.delete(&*place.store, &[&read]).await.unwrap(), 0);
    let read = place.store.get(&key).await.unwrap().value.unwrap();
    place.put(SWEPT, Ages::default().encode().unwrap()).await;
    assert_eq!(sweep.delete(&*place.store, &[&read]).await.unwrap(), 0);
    assert!(place.has(&key).await);
    // A log that says nothing proves nothing, though this process saw the key long ago.
    sweep.read_log(&*place.store, &*place.clock).await.unwrap();
    assert_eq!(sweep.age_ns(read.mod_revision, place.clock.boot_ns()), 0);
    assert_eq!(sweep.delete(&*place.store, &[&read]).await.unwrap(), 1);
}

#[actix_rt::test]
async fn many_keys_go_page_by_page() {
    let place = Place::new();
    let all = 2 * PAGE_KEYS + 7;
    for part in (0..all).collect::<Vec<_>>().chunks(100) {
        let put = |n: &usize| Op::put(key_of(&n.to_string()), used(Window::Second));
        let txn = Txn {
            ops: part.iter().map(put).collect(),
            ..Txn::default()
        };
        place.store.txn(txn).await.unwrap();
    }
    let mut sweep = Sweep::default();
    sweep.turn(&*place.store, &place.shared).await.unwrap();
    let mut before = 0;
    for _ in 0..12 {
        place.pass(35);
        sweep.turn(&*place.store, &place.shared).await.unwrap();
        assert!(place.swept() - before <= PAGE_KEYS as u64);
        before = place.swept();
    }
    assert_eq!(before, all as u64);
}
