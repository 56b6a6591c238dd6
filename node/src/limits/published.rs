//! What workers see of a meter: what the broker last published of its state.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use proto::meter::Limit;

use super::meter::Meter;
use super::refusal::{MeterStatus, Mode};
use super::view::View;

impl Meter {
    /// What is left of each limit, for headers, metrics and the node list.
    pub fn status(&self, now_ns: u64) -> MeterStatus {
        let view = self.view.load();
        let in_hand = self.in_hand(now_ns);
        let limits = view.limits(in_hand, now_ns);
        MeterStatus {
            id: self.id().to_owned(),
            name: view.spec.name().to_owned(),
            mode: view.mode,
            limits,
        }
    }

    /// The limit of which four fifths or more are used, as last published.
    pub fn near(&self) -> Option<Limit> {
        let at = self.near.load(Ordering::Relaxed).checked_sub(1)?;
        self.view.load().spec.limits().get(at).copied()
    }

    /// What it lets requests pass by while neither its owner nor the store gives tokens; `None`
    /// while one of them does, or nothing passes.
    pub fn passes_by(&self) -> Option<Mode> {
        let alone = self.alone.load(Ordering::Relaxed);
        alone.then(|| self.view.load().mode).filter(passes_alone)
    }

    /// Lets workers see a state.
    pub(super) fn publish(&self, view: View) {
        let near = view.near().map_or(0, |at| at + 1);
        self.near.store(near, Ordering::Relaxed);
        self.alone
            .store(passes_alone(&view.mode), Ordering::Relaxed);
        self.view.store(Arc::new(view));
    }
}

fn passes_alone(mode: &Mode) -> bool {
    matches!(mode, Mode::LocalShare | Mode::Open)
}
