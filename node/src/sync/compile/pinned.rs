//! Forms that were replaced and that requests under way may still have: what is revoked is over
//! there as well, however many forms came between, and a target's secret that was replaced is the
//! new one.

use std::sync::{Arc, Weak};

use jiff::Timestamp;
use proto::id::OrgId;
use proto::seal::Keyring;
use proto::store::follow::OrgState;

use super::credentials::target_credential;
use crate::snapshot::{CompiledProxy, TargetCredential};

/// Forms that no snapshot has any more.
#[derive(Default)]
pub(super) struct Pinned(Vec<Weak<CompiledProxy>>);

impl Pinned {
    /// Adds forms that were replaced.
    pub(super) fn add<'f>(&mut self, gone: impl Iterator<Item = &'f Arc<CompiledProxy>>) {
        self.0.retain(|form| form.strong_count() > 0);
        self.0.extend(gone.map(Arc::downgrade));
    }

    /// Tells them which secrets of their organisations are over; with its organisation a form is
    /// over itself.
    pub(super) fn tell<'s>(
        &self,
        keyring: &Arc<Keyring>,
        now: impl Fn(&OrgId) -> Option<&'s OrgState>,
    ) {
        for form in self.0.iter().filter_map(Weak::upgrade) {
            let Some(state) = now(&form.org) else {
                form.end.comes(Timestamp::MIN);
                continue;
            };
            if let Some(credential) = &form.target_credential {
                replace(credential, state, keyring);
            }
            // After what takes its place: who finds that it ends finds that too.
            form.revoke(&state.retired);
        }
    }
}

/// Puts what an organisation has now in the place of a credential whose secret is over.
fn replace(pinned: &TargetCredential, state: &OrgState, keyring: &Arc<Keyring>) {
    if !pinned.is_over(&state.retired, Timestamp::MAX) {
        return;
    }
    let known = pinned.newest();
    let stands = known.as_deref().unwrap_or(pinned);
    let Some(newest) = target_credential(state, pinned.id, keyring, Arc::clone(&pinned.rules))
    else {
        return;
    };
    if newest.generation.is_some() && newest.generation != stands.generation {
        pinned.is_replaced_by(Arc::new(newest));
    }
}
