//! What a call is told for which there is no slot.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{SlotSpec, Slots};

/// When a refused caller may come again, where only the end of some call can help.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// No slot for this call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotRefusal {
    /// Id of the meter.
    pub meter: String,
    /// Its limit as refused callers see it.
    pub spec: Arc<SlotSpec>,
    /// Whether the store cannot be reached.
    pub lost: bool,
    /// When to come again.
    pub retry_after: Duration,
}

impl Slots {
    /// No slot, as things are now.
    pub(super) fn refusal(&self) -> SlotRefusal {
        self.shared.refused.fetch_add(1, Ordering::Relaxed);
        SlotRefusal {
            meter: self.key.id().to_owned(),
            spec: self.spec.load_full(),
            lost: self.lost.load(Ordering::Acquire),
            retry_after: RETRY_AFTER,
        }
    }
}
