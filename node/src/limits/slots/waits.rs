//! Callers that wait for a slot.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{SlotRefusal, SlotToken, Slots};

/// Calls that may wait for one key.
const WAITING_MAX: u64 = 4_096;

/// What came of waiting.
pub type Outcome = Result<SlotToken, Box<SlotRefusal>>;

/// One caller among those who wait; leaves when it is dropped.
#[derive(Debug)]
pub struct Waits {
    slots: Arc<Slots>,
    since_ns: u64,
}

impl Waits {
    /// One that waits from now on; none where too many do.
    pub fn new(slots: &Arc<Slots>, since_ns: u64) -> Option<Self> {
        let before = slots.waiting.fetch_add(1, Ordering::AcqRel);
        let waits = Self {
            slots: Arc::clone(slots),
            since_ns,
        };
        (before < WAITING_MAX).then_some(waits)
    }

    /// A slot or a refusal, where there is one by now; else the taker is asked.
    pub fn look(&self, now_ns: u64) -> Option<Outcome> {
        if let Some(token) = self.slots.try_take(now_ns) {
            return Some(Ok(token));
        }
        if now_ns < self.slots.refused_until_ns.load(Ordering::Acquire) {
            return Some(Err(Box::new(self.slots.refusal())));
        }
        self.slots.ask();
        None
    }

    /// What becomes of it when it has waited for as long as it may.
    pub fn over(&self) -> Outcome {
        // Others may have been faster each time; then the store is not lost.
        if self.slots.heard_ns.load(Ordering::Acquire) < self.since_ns {
            self.slots.lost.store(true, Ordering::Release);
        }
        let passed = self.slots.pass();
        passed.ok_or_else(|| Box::new(self.slots.refusal()))
    }
}

impl Drop for Waits {
    fn drop(&mut self) {
        self.slots.waiting.fetch_sub(1, Ordering::AcqRel);
    }
}
