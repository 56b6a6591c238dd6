//! A store that went back to an earlier state of itself: who finds it tells the others.

use std::sync::atomic::Ordering;

use proto::store::Revision;
use tracing::warn;

use super::{Broker, count};
use crate::limits::block::Opener;
use crate::limits::exchange::{Item, Word};
use crate::limits::revision_clock::Asking;

/// So often it is told again: a full queue may lose it.
const AGAIN_NS: u64 = 1_000_000_000;
/// And for so long; whoever is linked later hears it then.
const TOLD_FOR_NS: u64 = 10_000_000_000;

impl Broker {
    /// Notes the revision of an answer. Whether it may be of a state that is no more: what it says
    /// was not known when that was found, and has to be remembered as well.
    pub(super) fn note_revision(
        &mut self,
        asking: Asking,
        revision: Revision,
        now_ns: u64,
    ) -> bool {
        let of_before = self.proofs.is_of_before(asking);
        if self.proofs.answered(asking, now_ns, revision) {
            self.store_went_back(now_ns);
        }
        of_before
    }

    /// The store has answered with a revision lower than one it had: it was restored from a
    /// backup, or wiped.
    pub(super) fn store_went_back(&mut self, now_ns: u64) {
        count(&self.shared.stats.store_returns);
        warn!(
            "etcd went back to an earlier state: what was used of limits since that is not known \
             there. Until one window has passed limits by the second, minute and hour give \
             nothing; those by day and month count what this node remembers"
        );
        self.forget_base(now_ns);
        self.return_told_ns = Some(now_ns);
        self.tell_return_again(now_ns);
    }

    /// Tells all others what was found, until they must have heard it.
    pub(super) fn tell_return_again(&mut self, now_ns: u64) {
        let Some(due_ns) = self.return_told_ns.filter(|due_ns| now_ns >= *due_ns) else {
            return;
        };
        let ago_ns = self.proofs.went_back_ago_ns(now_ns);
        let more = ago_ns.is_some_and(|ago_ns| ago_ns < TOLD_FOR_NS);
        self.return_told_ns = more.then_some(due_ns.saturating_add(AGAIN_NS));
        for peer in self.roster.linked() {
            self.tell_return(peer, now_ns);
        }
    }

    /// A peer has found it.
    pub(super) fn told_of_return(&mut self, ago_ns: u64, now_ns: u64) {
        if self.proofs.told_of_return(now_ns.saturating_sub(ago_ns)) {
            warn!("another node has found that etcd went back to an earlier state");
            self.forget_base(now_ns);
        }
    }

    /// Tells a peer that may not have asked the store since.
    pub(super) fn tell_return(&mut self, peer: Opener, now_ns: u64) {
        if let Some(ago_ns) = self.proofs.went_back_ago_ns(now_ns) {
            let (key, word) = (String::new(), Word::StoreReturned { ago_ns });
            self.outgoing.push((peer, Item { key, word }));
        }
    }

    fn forget_base(&mut self, now_ns: u64) {
        let ago_ns = self.proofs.went_back_ago_ns(now_ns).unwrap_or(0);
        let at_ns = now_ns.saturating_sub(ago_ns).max(1);
        self.shared.returned_ns.store(at_ns, Ordering::Relaxed);
        let slots: Vec<_> = self.owners.keys().copied().collect();
        for slot in slots {
            if let Some(owner) = self.owners.get_mut(&slot) {
                owner.store_went_back();
            }
            self.schedule(slot, now_ns);
        }
    }
}
