//! Meters that give more than their limits for a while: watched, and put on all keys of the meter.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use proto::keys;
use proto::raise::{PERCENT, Raise};
use proto::wire;
use tracing::warn;

use super::meter::Meter;
use super::shared::Shared;

/// Meters that are known to be raised; one more is not learned.
const KNOWN_MAX: usize = 10_000;

/// The raised meters of a process.
pub struct Raises {
    shared: Arc<Shared>,
    /// By the meter's id: percent, and until when.
    known: Mutex<HashMap<String, (u64, u64)>>,
}

impl Raises {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            known: Mutex::default(),
        }
    }

    /// Tells a meter that has just been made, or has just got its name.
    pub(super) fn tell(&self, meter: &Arc<Meter>) {
        let known = self.known();
        if known.is_empty() {
            return;
        }
        let raised = meter.belongs_to().and_then(|id| known.get(id)).copied();
        drop(known);
        if let Some((percent, until_ns)) = raised {
            meter.raise(percent, until_ns);
        }
    }

    /// What the store says of a key.
    pub(super) fn heard(&self, key: &str, value: Option<&[u8]>) {
        let Some(id) = key.strip_prefix(keys::RAISES) else {
            return;
        };
        let now_ns = self.shared.clock.boot_ns();
        let raise = match value.map(wire::decode::<Raise>).transpose() {
            Ok(raise) => raise.filter(|raise| PERCENT.contains(&raise.percent)),
            Err(error) => {
                warn!(%key, "a raise that cannot be read is passed over: {error}");
                return;
            }
        };
        let (percent, until_ns) = match raise {
            Some(Raise { ms, percent }) => {
                let length_ns = super::nanos(Duration::from_millis(ms));
                (percent, now_ns.saturating_add(length_ns))
            }
            None => (100, 0),
        };
        let mut known = self.known();
        known.retain(|_, (_, until_ns)| *until_ns > now_ns);
        known.remove(id);
        if percent > 100 && known.len() < KNOWN_MAX {
            known.insert(id.to_owned(), (percent, until_ns));
        }
        drop(known);
        for meter in self.shared.all() {
            if meter.belongs_to() == Some(id) {
                meter.raise(percent, until_ns);
            }
        }
    }

    fn known(&self) -> MutexGuard<'_, HashMap<String, (u64, u64)>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Raises {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Raises").finish_non_exhaustive()
    }
}
