//! Revocations that reach forms which are in use: the last good one of a proxy that cannot be
//! compiled any more, and those that requests under way have pinned.
//!
//! A fact only ever rises, so an end only ever comes nearer.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use arc_swap::ArcSwapOption;
use jiff::Timestamp;
use proto::id::CredentialId;
use proto::retired::Retired;
use proto::version::Generation;

use super::{CompiledProxy, TargetCredential};

/// When a secret ends; unknown at first.
#[derive(Debug)]
pub struct End {
    /// In microseconds since 1970.
    at_us: AtomicI64,
}

impl End {
    /// At this instant, or not that we know.
    pub fn new(at: Option<Timestamp>) -> Self {
        let at_us = AtomicI64::new(at.map_or(i64::MAX, Timestamp::as_microsecond));
        Self { at_us }
    }

    /// Whether it is over at `now`.
    pub fn is_over(&self, now: Timestamp) -> bool {
        now.as_microsecond() >= self.at_us.load(Ordering::Relaxed)
    }

    /// Whether it is known to end at all.
    pub fn is_known(&self) -> bool {
        self.at_us.load(Ordering::Relaxed) != i64::MAX
    }

    /// It ends at this instant, if not before.
    pub fn comes(&self, at: Timestamp) {
        self.at_us.fetch_min(at.as_microsecond(), Ordering::Relaxed);
    }
}

/// When a secret of this generation ends, by the facts: already, at an overlap's end, or not that
/// we know.
pub fn validity(retired: Option<&Retired>, generation: &Generation) -> Option<Timestamp> {
    retired?.end(generation)
}

/// The same of a generation as a form keeps it.
fn end(retired: &Retired, generation: &str) -> Option<Timestamp> {
    validity(Some(retired), &generation.parse().ok()?)
}

impl CompiledProxy {
    /// Tells its callers' secrets, and its target's, what is known now.
    pub fn revoke(&self, retired: &BTreeMap<CredentialId, Retired>) {
        for credential in &self.credentials {
            let Some(fact) = retired.get(&credential.id) else {
                continue;
            };
            for secret in &credential.secrets {
                if let Some(at) = end(fact, &secret.generation) {
                    secret.end.comes(at);
                }
            }
        }
        if let Some(credential) = &self.target_credential
            && let Some(at) = credential.ends(retired)
        {
            credential.end.comes(at);
        }
    }
}

/// What has taken the place of a target's credential; nothing at first.
#[derive(Default)]
pub struct Successor(ArcSwapOption<TargetCredential>);

impl TargetCredential {
    /// Whether its secret is over by what is known now.
    pub fn is_over(&self, retired: &BTreeMap<CredentialId, Retired>, now: Timestamp) -> bool {
        self.ends(retired).is_some_and(|end| now >= end)
    }

    fn ends(&self, retired: &BTreeMap<CredentialId, Retired>) -> Option<Timestamp> {
        end(retired.get(&self.id)?, self.generation.as_deref()?)
    }

    /// What has taken its place.
    pub fn newest(&self) -> Option<Arc<Self>> {
        self.successor.0.load_full()
    }

    /// From now on requests that have this one send that.
    pub fn is_replaced_by(&self, newest: Arc<Self>) {
        self.successor.0.store(Some(newest));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_only_comes_nearer() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let end = End::new(None);
        assert!(
            !end.is_known() && !end.is_over(Timestamp::MAX - jiff::SignedDuration::from_secs(1))
        );
        end.comes(at(10));
        end.comes(at(20));
        assert!(end.is_known() && end.is_over(at(10)) && !end.is_over(at(9)));
        end.comes(Timestamp::MIN);
        assert!(end.is_over(at(0)));
        assert!(End::new(Some(Timestamp::MIN)).is_over(at(0)));
    }
}
