//! What this region has of limits that regions share: followed in the store, and put on meters.
//!
//! A share that was given away must not be gone by any longer than `proto::shares::known_for`. So
//! it is not enough to watch: twice a second the key that every change of a share writes too is
//! read, and what is known is proven as of then where the watch has shown that revision. A node
//! without a proof gives the floor, which no region gives away.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use proto::keys;
use proto::meter::share::WHOLE;
use proto::meter::{MeterSpec, Share};
use proto::shares::{self, Held};
use proto::store::backoff::backoff;
use proto::store::{Event, Revision, Store, StoreError, load};
use proto::usage::KeyUsage;
use tracing::warn;

use super::Limits;
use super::meter::Meter;
use super::remembered::Remembered;
use super::shared::Shared;

/// How often what is known is proven.
const PROVE: Duration = Duration::from_millis(500);
/// A store that does not answer in this time is asked anew.
const ANSWER_MAX: Duration = Duration::from_secs(2);
/// Proofs that may miss before the watch is given up.
const MISSES_MAX: u32 = 4;

/// The shares of a region, as a process knows them.
#[derive(Debug, Default)]
pub(super) struct Shares {
    /// By the meter's id; what is not there is as at the start, what cannot be read is nothing.
    known: Mutex<HashMap<String, Option<Held>>>,
    /// When what is known was so; 0 for never.
    proven_ns: AtomicU64,
    /// Whether any meter of this process is shared. Until then nothing is followed.
    any: AtomicBool,
}

impl Shares {
    /// What this region has of the limits of a meter now, in millionths.
    fn millionths(&self, id: Option<&str>, share: Share, spec: &MeterSpec, now_ns: u64) -> u64 {
        self.any.store(true, Ordering::Relaxed);
        let proven_ns = self.proven_ns.load(Ordering::Acquire);
        let known_ns = super::nanos(shares::known_for(spec.limits()));
        let floor = shares::floor(&share, spec.limits());
        let Some(id) = id else { return floor };
        let held = match self.known().get(id) {
            None => share.initial,
            Some(held) => held.as_ref().map_or(0, |held| held.fraction(&share)),
        };
        match proven_ns > 0 && now_ns.saturating_sub(proven_ns) <= known_ns {
            true => held,
            false => held.min(floor),
        }
    }

    fn heard(&self, key: &str, value: Option<&[u8]>) {
        hear(&mut self.known(), key, value);
    }

    fn known(&self) -> MutexGuard<'_, HashMap<String, Option<Held>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn hear(known: &mut HashMap<String, Option<Held>>, key: &str, value: Option<&[u8]>) {
    let Some((_, id)) = keys::parse_share(key) else {
        return;
    };
    let Some(value) = value else {
        known.remove(id);
        return;
    };
    let held = serde_json::from_slice::<Held>(value);
    if let Err(error) = &held {
        warn!(%key, "a share that cannot be read counts as nothing: {error}");
    }
    known.insert(id.to_owned(), held.ok());
}

impl Meter {
    /// Takes what the region has now of limits that it shares; whether that is another part.
    pub(super) fn renew_share(&self, now_ns: u64) -> bool {
        let configured = self.configured();
        let Some(share) = configured.share() else {
            return false;
        };
        let shares = &self.shared.shares;
        let millionths = shares.millionths(self.belongs_to(), share, &configured, now_ns);
        self.set_share(millionths)
    }
}

/// Follows the shares in the store, once there is any. Never ends by itself.
pub(super) async fn follow(shared: Arc<Shared>, store: Arc<dyn Store>) {
    let mut failures = 0u32;
    loop {
        let mut proven = false;
        if shared.shares.any.load(Ordering::Relaxed) {
            let error = round(&shared, &*store, &mut proven).await.err();
            let error = error.map(|error| error.to_string()).unwrap_or_default();
            tracing::debug!("the shares of this region are followed again: {error}");
            renew(&shared);
        }
        failures = match proven {
            true => 0,
            false => failures.saturating_add(1).min(4),
        };
        tokio::time::sleep(backoff(failures).min(PROVE)).await;
    }
}

/// One list and the watch after it, until an error; says whether anything was proven.
async fn round(shared: &Shared, store: &dyn Store, proven: &mut bool) -> Result<(), StoreError> {
    let shares = &shared.shares;
    let begun_ns = shared.clock.boot_ns();
    let mut listed = HashMap::new();
    let at = load::list(store, keys::SHARES_WATCHED, None, |item| {
        hear(&mut listed, &item.key, Some(&item.value[..]));
    });
    let at = within(at).await?;
    *shares.known() = listed;
    let mut seen = at;
    let mut watch = within(store.watch(keys::SHARES_WATCHED, at.next())).await?;
    shares.proven_ns.store(begun_ns, Ordering::Release);
    *proven = true;
    renew(shared);
    let mut prove = tokio::time::interval(PROVE);
    prove.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut misses = 0u32;
    loop {
        tokio::select! {
            biased;
            change = watch.next() => {
                let change = change?;
                seen = seen.max(change.revision);
                for event in change.events {
                    match event {
                        Event::Put(item) => shares.heard(&item.key, Some(&item.value[..])),
                        Event::Delete { key, .. } => shares.heard(&key, None),
                    }
                }
                renew(shared);
            }
            _ = prove.tick() => {
                let begun_ns = shared.clock.boot_ns();
                let moved = within(store.get(keys::SHARES_MOVED)).await?.value;
                let moved = moved.map_or(Revision(0), |moved| moved.mod_revision);
                match moved <= seen {
                    true => {
                        misses = 0;
                        shares.proven_ns.store(begun_ns, Ordering::Release);
                        renew(shared);
                    }
                    false => misses += 1,
                }
                if misses > MISSES_MAX {
                    return Err(StoreError::Unavailable("the watch shows nothing".into()));
                }
            }
        }
    }
}

async fn within<T>(call: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
    let late = |_| StoreError::Unavailable(format!("no answer within {ANSWER_MAX:?}"));
    tokio::time::timeout(ANSWER_MAX, call).await.map_err(late)?
}

/// Puts what is known on all meters.
fn renew(shared: &Shared) {
    let now_ns = shared.clock.boot_ns();
    for meter in shared.all() {
        if meter.renew_share(now_ns) {
            // Told, but not asked for a token.
            shared.ask(meter);
        }
    }
}

impl Limits {
    /// How this node uses limits that regions share, by the ids of meters, since it was last asked,
    /// so long ago; none where there are no such meters.
    pub fn demand(&self, elapsed: Duration) -> Option<BTreeMap<String, Use>> {
        if !self.shared.shares.any.load(Ordering::Relaxed) {
            return None;
        }
        let now = self.shared.moment();
        let mut found: BTreeMap<String, Use> = BTreeMap::new();
        for meter in self.registry.all() {
            let configured = meter.configured();
            if configured.share().is_none() {
                continue;
            }
            let refused = meter.restraint.refusals.swap(0, Ordering::Relaxed);
            let Some(usage) = meter.usage(now, &Remembered::default()) else {
                continue;
            };
            let each = meter.estimate().max(1);
            let refused = refused.saturating_mul(each);
            let waiting = (meter.held.len() as u64).saturating_mul(each);
            let of_key = used_of_whole(&configured, &usage, (waiting, refused, elapsed));
            if of_key.wanted() > 0 {
                let known = found.entry(usage.meter_id).or_default();
                // Each key has the same part of the limits: that which wants most counts.
                if of_key.wanted() > known.wanted() {
                    *known = of_key;
                }
            }
        }
        Some(found)
    }
}

/// What more than so many times the whole is refused says nothing more.
const REFUSED_MAX: u64 = 8 * WHOLE;

/// How a node uses limits that regions share, in millionths of the whole of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Use {
    /// What all nodes of the region use in a window of the tightest limit, and what is waited for
    /// at this node.
    pub used: u64,
    /// What this node refuses in a window, at the rate since the last time; of the limit of which
    /// it is least, since one of them refused it, and which one is not known.
    pub refused: u64,
    /// That limit's window.
    pub width_ms: u64,
}

impl Use {
    fn wanted(&self) -> u64 {
        self.used.saturating_add(self.refused)
    }
}

fn used_of_whole(
    configured: &MeterSpec,
    usage: &KeyUsage,
    (waiting, refused, elapsed): (u64, u64, Duration),
) -> Use {
    let mut all = Use {
        refused: u64::MAX,
        ..Use::default()
    };
    for used in &usage.limits {
        let mut limits = configured.limits().iter();
        let Some(whole) = limits.find(|limit| limit.window().name() == used.window) else {
            continue;
        };
        let of = |tokens: u128, whole: u64| {
            let part = tokens * u128::from(WHOLE) / u128::from(whole.max(1));
            u64::try_from(part).unwrap_or(u64::MAX)
        };
        let tokens = u128::from(used.used.saturating_add(waiting));
        all.used = all.used.max(of(tokens, whole.capacity()).min(WHOLE));
        let width_ns = u128::from(whole.window().width_ns());
        let per_window = u128::from(refused) * width_ns / elapsed.as_nanos().max(1_000_000);
        let refused = of(per_window, whole.limit()).min(REFUSED_MAX);
        if refused < all.refused || all.width_ms == 0 {
            all.refused = refused;
            all.width_ms = whole.window().width_ns() / 1_000_000;
        }
    }
    match all.width_ms {
        0 => Use::default(),
        _ => all,
    }
}
