//! Tests of slots that look inside: the seeded simulation of several nodes, and single cases.

mod judge;
mod schedules;
mod silent;
mod store;
mod taken;
mod world;

use std::sync::Arc;

use super::{SlotRefusal, SlotToken, Slots};

impl Slots {
    /// A slot, of whose wait nobody is told.
    pub(in crate::limits) async fn taken(self: &Arc<Self>) -> Result<SlotToken, Box<SlotRefusal>> {
        self.take(&mut |_, _| {}).await
    }
}
