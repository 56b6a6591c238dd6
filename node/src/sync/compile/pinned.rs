//! Forms that were replaced and that requests under way may still have: what is revoked is over
//! there as well, however many forms came between.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use proto::id::{CredentialId, OrgId};
use proto::retired::Retired;

use crate::snapshot::CompiledProxy;

/// Forms that no snapshot has any more.
#[derive(Default)]
pub(super) struct Pinned(Vec<Weak<CompiledProxy>>);

impl Pinned {
    /// Adds forms that were replaced.
    pub(super) fn add<'f>(&mut self, gone: impl Iterator<Item = &'f Arc<CompiledProxy>>) {
        self.0.retain(|form| form.strong_count() > 0);
        self.0.extend(gone.map(Arc::downgrade));
    }

    /// Tells them which secrets of their organisations are over.
    pub(super) fn revoke<'s>(
        &self,
        retired: impl Fn(&OrgId) -> Option<&'s BTreeMap<CredentialId, Retired>>,
    ) {
        for form in self.0.iter().filter_map(Weak::upgrade) {
            if let Some(retired) = retired(&form.org) {
                form.revoke(retired);
            }
        }
    }
}
