//! Organisations that cannot be given to a region: each is logged once, and not at each try of it.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use proto::id::OrgId;

/// By region and organisation, why. Of regions in the directory and organisations that are here,
/// so it is bounded by these.
#[derive(Debug, Default)]
pub struct NotGiven(Mutex<BTreeMap<(String, OrgId), String>>);

impl NotGiven {
    /// An organisation cannot be given. True where that was not known, or had another reason.
    pub fn note(&self, region: &str, org: OrgId, why: &str) -> bool {
        let why = why.to_owned();
        let before = self.lock().insert((region.to_owned(), org), why.clone());
        before != Some(why)
    }

    /// It was given. True where it could not be before.
    pub fn given(&self, region: &str, org: OrgId) -> bool {
        let mut all = self.lock();
        // Mostly there is nothing, and no key is to be made then.
        !all.is_empty() && all.remove(&(region.to_owned(), org)).is_some()
    }

    // A poisoned map is whole: each entry stands for itself.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<(String, OrgId), String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_news_once_and_again_after_it_was_given() {
        let (all, org) = (NotGiven::default(), OrgId::from_bits(1));
        assert!(!all.given("eu", org));
        assert!(all.note("eu", org, "a leaf is missing"));
        assert!(!all.note("eu", org, "a leaf is missing"));
        assert!(all.note("ap", org, "a leaf is missing"), "another region");
        assert!(all.note("eu", org, "a record cannot be read"));
        assert!(all.given("eu", org));
        assert!(!all.given("eu", org));
        assert!(all.note("eu", org, "a record cannot be read"));
    }
}
