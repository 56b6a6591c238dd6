//! What was found in bodies: personal data that was redacted, and what broke a schema.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use proto::filter::Redactions;

use super::head;
use crate::validating::{MODES, Side, Violations};

/// What filters and schemas found.
#[derive(Debug, Default)]
pub struct Bodies {
    redactions: [AtomicU64; Redactions::KINDS],
    violations: [[AtomicU64; 2]; 2],
}

impl Bodies {
    /// So often something was redacted.
    pub fn redacted(&self, redactions: &Redactions) {
        for (count, more) in self.redactions.iter().zip(redactions.counts()) {
            if more > 0 {
                count.fetch_add(more.into(), Relaxed);
            }
        }
    }

    /// So many bodies broke a schema.
    pub fn violated(&self, violations: &Violations) {
        let counts = self.violations.iter().flatten();
        for (count, more) in counts.zip(violations.0.iter().flatten()) {
            if *more > 0 {
                count.fetch_add(u64::from(*more), Relaxed);
            }
        }
    }

    pub(super) fn render(&self, out: &mut String) {
        let name = "requestrocket_redactions_total";
        let help = "Marks put into bodies in the place of what `redact` found, by what it was.";
        head(name, help, "counter", out);
        for (what, count) in Redactions::names().zip(&self.redactions) {
            let _ = writeln!(out, "{name}{{found=\"{what}\"}} {}", count.load(Relaxed));
        }
        let name = "requestrocket_validation_failures_total";
        let help = "Bodies, and documents of streams, that broke a proxy's schema.";
        head(name, help, "counter", out);
        for (side, counts) in Side::ALL.iter().zip(&self.violations) {
            for ((_, mode), count) in MODES.iter().zip(counts) {
                let (side, count) = (side.as_str(), count.load(Relaxed));
                let _ = writeln!(out, "{name}{{body=\"{side}\",mode=\"{mode}\"}} {count}");
            }
        }
    }
}
