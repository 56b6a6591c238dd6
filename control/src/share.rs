//! A share for each organisation of what a process does at one time, so that none of them takes it
//! all.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use proto::id::OrgId;

/// Places of which each organisation has as many; clones are the same ones.
#[derive(Clone, Debug)]
pub struct Shares {
    each: usize,
    held: Arc<Mutex<HashMap<OrgId, usize>>>,
}

/// A place that is taken, until it is dropped.
#[derive(Debug)]
pub struct Place {
    of: Shares,
    org: OrgId,
}

impl Shares {
    /// So many places for each organisation.
    pub fn new(each: usize) -> Self {
        let held = Arc::default();
        Self { each, held }
    }

    /// A place of an organisation; `None` while it has all of its own.
    pub fn take(&self, org: OrgId) -> Option<Place> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = held.entry(org).or_default();
        if *taken >= self.each {
            return None;
        }
        *taken += 1;
        let of = self.clone();
        Some(Place { of, org })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut held = self.of.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(taken) = held.get_mut(&self.org) {
            *taken = taken.saturating_sub(1);
            if *taken == 0 {
                held.remove(&self.org);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_organisation_has_its_own_places() {
        let shares = Shares::new(2);
        let (one, other) = (OrgId::from_bits(1), OrgId::from_bits(2));
        let first = shares.take(one);
        let second = shares.take(one);
        assert!(first.is_some() && second.is_some());
        assert!(shares.take(one).is_none());
        assert!(shares.take(other).is_some());
        drop(first);
        assert!(shares.take(one).is_some());
    }
}
