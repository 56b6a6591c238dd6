//! What is learned of a target: said to the meters of this process and to all other nodes.

use std::time::Duration;

use super::Limits;
use super::key::MeterKey;
use super::meter::Meter;
use super::restraint::Bucket;

impl Limits {
    /// Pauses a meter's key for all nodes, because its target asked to wait, or what the target
    /// counts at one of its limits. The number of pauses in a row when it is a new one, else 0.
    pub fn pause(&self, meter: &Meter, bucket: Option<&[u8]>, wait: Duration) -> u32 {
        let Some(digest) = meter.key().map(MeterKey::digest) else {
            return 0;
        };
        let is_new = match bucket.map(bucket_of) {
            None => self.pauses.begin(digest, wait),
            Some(bucket) => self.pauses.begin_bucket(digest, bucket, wait),
        };
        if is_new { meter.count_pause() } else { 0 }
    }

    /// Lets a meter's key give so many tenths of its limits for a while, on all nodes.
    pub fn slow(&self, meter: &Meter, tenths: u64, wait: Duration) {
        if let Some(key) = meter.key() {
            self.pauses.slow(key.digest(), tenths, wait);
        }
    }

    /// Ends what a target has asked of a meter's key, on all nodes.
    pub fn go_on(&self, meter: &Meter) {
        if let Some(key) = meter.key() {
            self.pauses.end(key.digest());
        }
    }

    /// The target has answered a request well that was sent then: a pause that held already is
    /// over.
    pub fn answered_well(&self, meter: &Meter, sent_ns: u64) {
        meter.answered_well();
        if meter.was_paused(sent_ns, self.shared.clock.boot_ns()) {
            self.go_on(meter);
        }
    }

    /// The target counts what goes this way at one of its limits.
    pub fn note_route(&self, meter: &Meter, route: &[u8], bucket: &[u8]) {
        meter.note_route(route, bucket_of(bucket));
    }
}

/// What one of a target's limits is known by.
fn bucket_of(name: &[u8]) -> Bucket {
    let hash = blake3::hash(name);
    let mut first = [0; 8];
    first.copy_from_slice(&hash.as_bytes()[..8]);
    u64::from_le_bytes(first)
}
