//! Which meters go without their owner and the store now. Each is told in the log once when it
//! begins and once when it ends, however many of its keys do, and however often one of them is
//! forgotten meanwhile because nobody asks for it.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use proto::meter::StoreLoss;
use tracing::{info, warn};

use super::credit::Loss;
use super::meter::Meter;
use super::shared::{Shared, name_of};

/// The meters of a process that do, by their id. A plain mutex: taken when a key begins or ends.
#[derive(Debug, Default)]
pub(super) struct Without(Mutex<HashMap<String, Going>>);

#[derive(Debug)]
struct Going {
    /// Those that are looked at; with none it goes on until the store answers.
    keys: u64,
    since_ns: u64,
}

/// One key that does, until it is dropped.
#[derive(Debug)]
pub(super) struct Alone {
    id: String,
    shared: Arc<Shared>,
    since_ns: u64,
    /// Whether it still did when it was looked at last.
    lost: bool,
}

impl Alone {
    fn begin(meter: &Meter, does: StoreLoss) -> Self {
        let (id, shared) = (meter.id().to_owned(), Arc::clone(&meter.shared));
        let since_ns = shared.clock.boot_ns();
        if shared.without.enter(&id, since_ns) {
            shared.stats.alone.fetch_add(1, Ordering::Relaxed);
            let does = name_of(does);
            warn!(
                meter = id,
                on_store_loss = does,
                "neither the node that keeps meter {id} nor the store gives tokens: it goes by \
                 {does}"
            );
        }
        Self {
            id,
            shared,
            since_ns,
            lost: true,
        }
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        let ended = self.shared.without.leave(&self.id, self.lost);
        if let Some(since_ns) = ended {
            self.shared.tell_again(&self.id, since_ns);
        }
    }
}

impl Without {
    /// Takes a key in; whether its meter begins with it.
    fn enter(&self, id: &str, now_ns: u64) -> bool {
        let mut meters = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let begins = !meters.contains_key(id);
        let new = || Going {
            keys: 0,
            since_ns: now_ns,
        };
        meters.entry(id.to_owned()).or_insert_with(new).keys += 1;
        begins
    }

    /// Lets a key go, of which nothing more is known where it is still `lost`; since when its meter
    /// went without, if that is over.
    fn leave(&self, id: &str, lost: bool) -> Option<u64> {
        let mut meters = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let going = meters.get_mut(id)?;
        going.keys = going.keys.saturating_sub(1);
        let ends = going.keys == 0 && !lost;
        ends.then(|| meters.remove(id))
            .flatten()
            .map(|going| going.since_ns)
    }

    /// Ends those meters of which no key is looked at, or that one alone, if it was heard since.
    fn end(&self, of: Option<(&str, u64)>) -> Vec<(String, u64)> {
        let mut meters = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let over = |id: &String, going: &mut Going| {
            let meant = of.is_none_or(|(only, at_ns)| only == id && at_ns > going.since_ns);
            going.keys == 0 && meant
        };
        let over = meters.extract_if(over);
        over.map(|(id, going)| (id, going.since_ns)).collect()
    }
}

impl Shared {
    /// The store answers again: what nobody asked for since is not known to go without it.
    pub(super) fn store_answers(&self) {
        self.end_without(None);
    }

    fn end_without(&self, of: Option<(&str, u64)>) {
        if self.stats.alone.load(Ordering::Relaxed) == 0 {
            return;
        }
        for (id, since_ns) in self.without.end(of) {
            self.tell_again(&id, since_ns);
        }
    }

    fn tell_again(&self, id: &str, since_ns: u64) {
        self.stats.alone.fetch_sub(1, Ordering::Relaxed);
        let for_ns = self.clock.boot_ns().saturating_sub(since_ns);
        let for_s = for_ns.div_ceil(1_000_000_000);
        info!(
            meter = id,
            "meter {id} gets its tokens again, after {for_s} s"
        );
    }
}

impl Loss {
    /// Lets it be known whether this key of a meter goes without the store, of which something was
    /// heard last at `heard_ns`.
    pub fn tell(&mut self, meter: &Meter, does: StoreLoss, heard_ns: u64) {
        let lost = self.is_lost();
        match &mut self.told {
            None if lost => self.told = Some(Alone::begin(meter, does)),
            None => meter.shared.end_without(Some((meter.id(), heard_ns))),
            Some(alone) => {
                alone.lost = lost;
                if !lost && heard_ns >= alone.since_ns {
                    self.told = None;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_meter_goes_without_from_its_first_key_until_the_last_is_served() {
        let without = Without::default();
        assert!(without.enter("m", 5) && without.enter("n", 6));
        assert!(!without.enter("m", 7));
        assert_eq!(without.leave("m", false), None);
        assert_eq!(without.leave("m", false), Some(5));
        assert_eq!(without.leave("n", false), Some(6));
        assert!(without.enter("m", 8));
    }

    #[test]
    fn a_key_that_is_forgotten_ends_nothing_before_the_store_or_its_owner_is_heard() {
        let without = Without::default();
        assert!(without.enter("m", 5));
        assert_eq!(without.leave("m", true), None);
        assert!(!without.enter("m", 9), "it was told");
        assert_eq!(without.end(None), [], "it is looked at");
        assert_eq!(without.leave("m", true), None);
        for early in [Some(("m", 5)), Some(("n", 99))] {
            assert_eq!(without.end(early), []);
        }
        assert_eq!(without.end(Some(("m", 6))), [("m".to_owned(), 5)]);
        assert!(without.enter("m", 10));
        assert_eq!(without.leave("m", true), None);
        assert_eq!(without.end(None), [("m".to_owned(), 10)]);
    }
}
