//! How many records a worker keeps of calls that anybody on the network can make, without a key:
//! those that match no proxy, and those that are refused for their key, of each proxy. Without a
//! bound one caller could fill the store, and what others are to find in it would go.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use proto::id::ProxyId;

/// Most records that a worker keeps of one kind at once.
const BURST: u32 = 100;
/// One more of them each.
const EVERY: Duration = Duration::from_secs(1);
/// Beyond so many proxies those are forgotten whose allowance is whole again.
const PROXIES: usize = 1_024;

/// How many records a worker may still keep of one kind.
#[derive(Debug)]
pub struct Allowance {
    left: u32,
    /// Up to when `left` has been refilled.
    refilled: Instant,
}

impl Allowance {
    /// A full one.
    pub fn new(now: Instant) -> Self {
        Self {
            left: BURST,
            refilled: now,
        }
    }

    /// Whether nothing of it is taken.
    fn is_full(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.refilled) >= EVERY * (BURST - self.left)
    }

    /// Whether one more may be kept.
    pub fn admits(&mut self, now: Instant) -> bool {
        let elapsed = now.saturating_duration_since(self.refilled);
        let earned = elapsed.as_secs() / EVERY.as_secs();
        if earned > 0 {
            self.refilled += EVERY * u32::try_from(earned).unwrap_or(BURST);
            self.left = u32::try_from(earned)
                .map_or(BURST, |earned| self.left.saturating_add(earned))
                .min(BURST);
        }
        let admitted = self.left > 0;
        self.left = self.left.saturating_sub(1);
        admitted
    }
}

/// The allowances of a worker.
#[derive(Debug)]
pub struct Allowances {
    /// Of calls that match no proxy.
    pub unmatched: Allowance,
    /// Of calls that were refused for their key, by the proxy that they name.
    refused: HashMap<ProxyId, Allowance>,
}

impl Allowances {
    /// Full ones.
    pub fn new(now: Instant) -> Self {
        Self {
            unmatched: Allowance::new(now),
            refused: HashMap::new(),
        }
    }

    /// Whether the record of one more call that this proxy refused for its key may be kept.
    pub fn refused(&mut self, proxy: ProxyId, now: Instant) -> bool {
        if self.refused.len() >= PROXIES && !self.refused.contains_key(&proxy) {
            self.refused.retain(|_, allowance| !allowance.is_full(now));
        }
        let allowance = self.refused.entry(proxy);
        allowance.or_insert_with(|| Allowance::new(now)).admits(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_kept_in_part_and_calm_brings_the_rest_back() {
        let start = Instant::now();
        let mut allowance = Allowance::new(start);
        let kept = |allowance: &mut Allowance, at: Instant| {
            (0..1_000).filter(|_| allowance.admits(at)).count()
        };
        assert_eq!(kept(&mut allowance, start), BURST as usize);
        assert_eq!(kept(&mut allowance, start + EVERY / 2), 0);
        assert_eq!(kept(&mut allowance, start + EVERY * 3), 3);
        assert_eq!(kept(&mut allowance, start + EVERY * 3), 0);
        let later = start + Duration::from_secs(86_400 * 365);
        assert_eq!(kept(&mut allowance, later), BURST as usize);
    }

    #[test]
    fn each_proxy_has_its_own_and_is_forgotten_when_it_is_whole_again() {
        let start = Instant::now();
        let mut allowances = Allowances::new(start);
        let kept = |allowances: &mut Allowances, proxy: usize, at: Instant| {
            let proxy = ProxyId::from_bits(proxy as u128);
            (0..1_000).filter(|_| allowances.refused(proxy, at)).count()
        };
        for proxy in 0..PROXIES {
            assert_eq!(kept(&mut allowances, proxy, start), BURST as usize);
        }
        assert_eq!(kept(&mut allowances, 1, start + EVERY), 1);
        let later = start + EVERY * (BURST + 1);
        assert_eq!(kept(&mut allowances, 1, later), BURST as usize);
        assert_eq!(kept(&mut allowances, PROXIES, later), BURST as usize);
        assert_eq!(allowances.refused.len(), 2);
        assert!(allowances.unmatched.admits(start));
    }
}
