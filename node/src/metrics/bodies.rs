//! What was found in bodies: personal data that was redacted, and what broke a schema.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use proto::exposition::Families;
use proto::filter::Redactions;

use crate::validating::{MODES, Side, Violations};

/// What filters and schemas found.
#[derive(Debug, Default)]
pub struct Bodies {
    redactions: [AtomicU64; Redactions::KINDS],
    violations: [[AtomicU64; 2]; 2],
}

impl Bodies {
    /// So often something was redacted, and so many bodies broke a schema.
    pub fn seen(&self, redactions: &Redactions, violations: &Violations) {
        self.redacted(redactions);
        self.violated(violations);
    }

    fn redacted(&self, redactions: &Redactions) {
        for (count, more) in self.redactions.iter().zip(redactions.counts()) {
            if more > 0 {
                count.fetch_add(more.into(), Relaxed);
            }
        }
    }

    fn violated(&self, violations: &Violations) {
        let counts = self.violations.iter().flatten();
        for (count, more) in counts.zip(violations.0.iter().flatten()) {
            if *more > 0 {
                count.fetch_add(u64::from(*more), Relaxed);
            }
        }
    }

    pub(super) fn collect(&self, out: &mut Families) {
        let name = "requestrocket_redactions_total";
        let help = "Marks put into bodies in the place of what `redact` found, by what it was.";
        let family = out.counter(name, help);
        for (what, count) in Redactions::names().zip(&self.redactions) {
            family.with([("found", what.into())], count.load(Relaxed));
        }
        let name = "requestrocket_validation_failures_total";
        let help = "Bodies, and documents of streams, that broke a proxy's schema.";
        let family = out.counter(name, help);
        for (side, counts) in Side::ALL.iter().zip(&self.violations) {
            for ((_, mode), count) in MODES.iter().zip(counts) {
                let labels = [("body", side.as_str().into()), ("mode", (*mode).into())];
                family.with(labels, count.load(Relaxed));
            }
        }
    }
}
