//! How much of each meter is used now, for those who ask how all are.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use proto::usage::{KEYS_TOLD_MAX, KeyUsage, LimitUsage};

use super::block::Opener;
use super::clock::Moment;
use super::key::{Digest, MeterKey};
use super::meter::Meter;
use super::remembered::Remembered;
use super::slots::Slots;
use super::state::State;

impl Meter {
    /// Its usage now.
    pub(super) fn usage(&self, now: Moment, remembered: &Remembered) -> Option<KeyUsage> {
        // One that only peers ask for is told of by them.
        let key = self.key()?;
        let view = self.view.load();
        let read = remembered.state(&key.digest());
        let read = read.filter(|_| self.was_never_used());
        let (mut state, at) = match read {
            Some((state, at)) => {
                let mut state = state.clone();
                state.adopt(&view.spec, at.unix_ns, at.unix_s());
                (state, *at)
            }
            None => (view.state.clone(), view.at),
        };
        let passed_ns = now.boot_ns.saturating_sub(at.boot_ns);
        state.pass(passed_ns, now.unix_s(), Opener::NOBODY);
        let open = state.open_left().saturating_sub(self.in_hand(now.boot_ns));
        let limit = |usage: &super::state::Usage| {
            let alone = State {
                limits: vec![usage.clone()],
                ..state.clone()
            };
            let used = usage.used().saturating_add(open);
            let wanted = if used < usage.limit { usage.limit } else { 1 };
            let (reset_ns, _) = alone.free_in(wanted, now.unix_ns);
            LimitUsage {
                window: usage.window.name().to_owned(),
                limit: usage.limit,
                used,
                reset_ms: reset_ns.div_ceil(1_000_000),
            }
        };
        let paused_ns = self.paused_until_ns().saturating_sub(now.boot_ns);
        Some(KeyUsage {
            meter_id: key.id().to_owned(),
            name: view.spec.name().to_owned(),
            key: named(key),
            overflow: key.is_overflow(),
            mode: view.mode.name().to_owned(),
            limits: state.limits.iter().map(limit).collect(),
            waiting: self.callers.load(std::sync::atomic::Ordering::Relaxed),
            paused_ms: paused_ns.div_ceil(1_000_000),
            estimate: self.reserves().then(|| self.estimate()),
            missed: self.missed.load(std::sync::atomic::Ordering::Relaxed),
            remembered: read.is_some(),
        })
    }

    /// Whether nothing was heard of it from the store, since no request here has asked.
    pub(super) fn was_never_used(&self) -> bool {
        self.view.load().answered_ns == 0
    }
}

impl Slots {
    fn usage(&self) -> KeyUsage {
        let spec = self.spec();
        KeyUsage {
            meter_id: self.key().id().to_owned(),
            name: spec.name.clone(),
            key: named(self.key()),
            overflow: self.key().is_overflow(),
            mode: "store".to_owned(),
            limits: vec![LimitUsage {
                window: "concurrency".to_owned(),
                limit: spec.limit,
                used: self.used(),
                reset_ms: 0,
            }],
            waiting: self.waiting(),
            paused_ms: 0,
            estimate: None,
            missed: 0,
            remembered: false,
        }
    }
}

/// A key as others may see it: ids of ours as they are, what a request brought by its hash.
fn named(key: &MeterKey) -> Option<String> {
    let value = key.value()?;
    let ours = value.parse::<proto::object::ObjectId>().is_ok();
    Some(match ours {
        true => value.to_owned(),
        false => format!("#{}", hex::encode(&key.digest()[..8])),
    })
}

/// The keys of which most is used, and how many were left out, of each meter.
pub(super) fn of(
    meters: &[Arc<Meter>],
    slots: &[Arc<Slots>],
    (now, remembered): (Moment, &Remembered),
) -> (Vec<KeyUsage>, BTreeMap<String, u64>) {
    let mut all = Vec::with_capacity(meters.len());
    let mut places: HashMap<Digest, usize> = HashMap::with_capacity(meters.len());
    for meter in meters {
        if let (Some(key), Some(usage)) = (meter.key(), meter.usage(now, remembered)) {
            places.insert(key.digest(), all.len());
            all.push(usage);
        }
    }
    for slots in slots {
        let own = slots.usage();
        let known = places.get(&slots.key().digest());
        match known.and_then(|at| all.get_mut(*at)) {
            Some(known) => known.limits.extend(own.limits),
            None => all.push(own),
        }
    }
    // Of what is not in use there is nothing to tell.
    all.retain(|key| key.share() > 0 || key.waiting > 0 || key.paused_ms > 0);
    all.sort_by_key(|key| std::cmp::Reverse(key.share()));
    let mut left_out: BTreeMap<String, u64> = BTreeMap::new();
    for key in all.drain(KEYS_TOLD_MAX.min(all.len())..) {
        *left_out.entry(key.meter_id).or_default() += 1;
    }
    (all, left_out)
}
