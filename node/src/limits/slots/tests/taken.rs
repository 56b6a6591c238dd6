//! What one taker makes of a state in which others have what was its own.

use std::sync::Arc;
use std::time::Duration;

use proto::meter::{LimitAnswer, StoreLoss};
use proto::store::Revision;

use crate::limits::revision_clock::RevisionClock;
use crate::limits::slots::state::SlotState;
use crate::limits::slots::taker::{SlotWrite, Taker};
use crate::limits::slots::waits::Waits;
use crate::limits::slots::{SLOT_TTL, SlotShared, SlotSpec, Slots};
use crate::limits::{MeterKey, Opener, SystemClock};

const MS: u64 = 1_000_000;
const ME: Opener = Opener { node: 1, boot: 1 };
const OTHER: Opener = Opener { node: 2, boot: 1 };
const TTL_NS: u64 = SLOT_TTL.as_nanos() as u64;

struct One {
    slots: Arc<Slots>,
    taker: Taker,
    proofs: RevisionClock,
}

impl One {
    /// A node without slots, of two that there are.
    fn new(on_store_loss: StoreLoss) -> Self {
        let grace = Duration::from_millis(300);
        let shared = SlotShared::new(Arc::new(SystemClock), grace, Arc::default(), Arc::default());
        let spec = SlotSpec {
            name: String::new(),
            version: 1,
            limit: 2,
            on_store_loss,
            cancels_lost: false,
            answer: LimitAnswer::default(),
        };
        let slots = Arc::new(Slots::new(MeterKey::whole("m"), spec, Arc::new(shared)));
        Self {
            taker: Taker::new(Arc::clone(&slots), ME, MS),
            slots,
            proofs: RevisionClock::default(),
        }
    }

    fn look(&mut self, now_ns: u64) -> Option<SlotWrite> {
        self.taker.look(&self.proofs, (now_ns, now_ns), false)
    }

    /// What is written for one that waits.
    fn asked(&mut self, now_ns: u64) -> SlotWrite {
        let waits = Waits::new(&self.slots, now_ns).expect("a place");
        let write = self.look(now_ns).expect("a write");
        drop(waits);
        write
    }
}

/// All slots are another node's.
fn of_other() -> Option<(SlotState, Revision)> {
    let mut state = SlotState::default();
    assert!(state.set(OTHER, 2, TTL_NS));
    Some((state, Revision(9)))
}

#[test]
fn where_all_have_too_many_no_call_begins_for_one_that_ends() {
    for on_store_loss in [StoreLoss::FailClosed, StoreLoss::LocalShare] {
        let mut one = One::new(on_store_loss);
        one.asked(MS);
        one.taker.committed(Revision(2), 2 * MS);
        let call = one.slots.try_take(3 * MS).expect("a slot");
        // It did not reach the store for longer than its slots are kept.
        let back_ns = 3 * TTL_NS;
        one.look(back_ns).expect("its slots are renewed");
        one.taker.conflicted(of_other(), back_ns + MS);
        let kept = one.look(back_ns + 2 * MS).expect("what it has goes on");
        assert_eq!(
            kept.next.map(|next| (next.of(ME), next.of(OTHER))),
            Some((1, 2))
        );
        one.taker.committed(Revision(10), back_ns + 3 * MS);
        drop(call);
        assert!(
            one.slots.try_take(back_ns + 4 * MS).is_none(),
            "{on_store_loss:?}"
        );
    }
}

#[test]
fn what_others_have_by_now_is_not_used_without_the_store() {
    let mut one = One::new(StoreLoss::LocalShare);
    one.asked(MS);
    one.taker.committed(Revision(2), 2 * MS);
    drop(one.slots.try_take(3 * MS).expect("a slot"));
    let cut_ns = 2 * TTL_NS;
    assert!(one.slots.try_take(cut_ns).is_some(), "it has nobody to ask");
    one.asked(cut_ns);
    one.taker.conflicted(of_other(), cut_ns + MS);
    assert!(one.slots.try_take(cut_ns + 2 * MS).is_none(), "it knows");
}

#[test]
fn what_a_write_of_long_ago_has_left_is_not_taken_for_that_of_now() {
    let mut one = One::new(StoreLoss::FailClosed);
    let lost = one.asked(MS).next.expect("a state");
    one.taker.failed(2 * MS);
    // The store got it all the same, and the next one finds it there; others count from then on.
    let now_ns = TTL_NS / 2 + 7;
    one.asked(now_ns);
    one.taker.conflicted(Some((lost, Revision(2))), now_ns + MS);
    assert!(
        one.slots.try_take(now_ns + MS).is_none(),
        "it is not known until when"
    );
    let renewed = one.asked(now_ns + 2 * MS);
    assert_eq!(renewed.expected, Some(Revision(2)));
    one.taker.committed(Revision(3), now_ns + 3 * MS);
    assert!(one.slots.try_take(now_ns + 4 * MS).is_some());
}

/// The same write through a peer is: one of two copies finds the other.
#[test]
fn a_copy_of_a_write_is_that_write() {
    let mut one = One::new(StoreLoss::FailClosed);
    let copy = one.asked(MS + 7).next.expect("a state");
    one.taker.conflicted(Some((copy, Revision(2))), 2 * MS);
    assert!(one.slots.try_take(3 * MS).is_some());
}
