//! What a region was asked for in vain, so that whoever is stuck on it does not ask at each try.
//!
//! It is asked anew after a minute, and at once when the region is connected again.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use proto::id::OrgId;
use proto::tree::Hash;

/// How long it is not asked again.
const REST: Duration = Duration::from_secs(60);

/// Of one region.
#[derive(Clone, Debug, Default)]
pub struct AskedInVain {
    /// Content that it did not have, and when.
    lacks: BTreeMap<(OrgId, Hash), Instant>,
    /// When it did not answer.
    unreached_at: Option<Instant>,
}

impl AskedInVain {
    /// It did not answer.
    pub fn not_reached(&mut self, now: Instant) {
        self.unreached_at = Some(now);
    }

    /// It does not have the content of this name.
    pub fn lacks(&mut self, of: (OrgId, Hash), now: Instant) {
        self.lacks
            .retain(|_, at| now.saturating_duration_since(*at) < REST);
        self.lacks.insert(of, now);
    }

    /// Whether there is no point in asking it; `connected` since then it answers another link.
    pub fn is_pointless(
        &self,
        of: (OrgId, Hash),
        connected: Option<Instant>,
        now: Instant,
    ) -> bool {
        let rests = |at: Instant| now.saturating_duration_since(at) < REST;
        let was_there = |at: &Instant| connected.is_none_or(|since| since < *at);
        let lacks = self.lacks.get(&of).filter(|at| was_there(at));
        let unreached = self.unreached_at.filter(|_| connected.is_none());
        lacks.copied().is_some_and(rests) || unreached.is_some_and(rests)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn who_lacks_something_is_asked_for_it_again_later_or_when_it_is_back() {
        let (mut vain, at) = (AskedInVain::default(), Instant::now());
        let [one, other] = [1, 2].map(|bits| (OrgId::from_bits(bits), Hash::of(b"root")));
        vain.lacks(one, at + S);
        let pointless = |of, connected, now| vain.is_pointless(of, connected, now);
        assert!(pointless(one, None, at + 2 * S));
        assert!(pointless(one, Some(at), at + 2 * S));
        assert!(!pointless(other, Some(at), at + 2 * S));
        assert!(!pointless(one, Some(at + 2 * S), at + 2 * S), "it is back");
        assert!(!pointless(one, Some(at), at + S + REST));
    }

    #[test]
    fn who_is_gone_is_asked_for_nothing_until_it_is_connected() {
        let (mut vain, at) = (AskedInVain::default(), Instant::now());
        let of = (OrgId::from_bits(1), Hash::of(b"root"));
        assert!(!vain.is_pointless(of, None, at));
        vain.not_reached(at);
        assert!(vain.is_pointless(of, None, at + S));
        assert!(!vain.is_pointless(of, Some(at), at + S));
        assert!(!vain.is_pointless(of, None, at + REST));
    }
}
