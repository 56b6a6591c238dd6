//! Wrong API tokens, counted until they are written to the audit: a flood of them must neither
//! fill the store nor slow an answer down.
//!
//! What came from one source within a minute is one entry. There is room for so many sources, and
//! for so many entries a day; what is beyond is one entry for all of its sources. What there is no
//! room for at all is counted as dropped.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use proto::audit::{Act, Failure, Said};
use proto::id::{OrgId, TokenId};
use proto::store::Store;

use crate::metrics::Metrics;

/// Requests of one source within this are one entry.
const WINDOW: Duration = Duration::from_secs(60);
/// Sources that are counted each for itself.
const SOURCES_MAX: usize = 64;
/// Organisations for which the others are counted.
const OTHERS_MAX: usize = 64;
/// Entries that can be written at once, and how long it takes until one more can.
const ENTRIES_MAX: u32 = 120;
const ENTRY_EVERY: Duration = Duration::from_secs(600);

/// A wrong token.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Wrong {
    /// The organisation in whose audit it stands.
    pub org: OrgId,
    /// What was wrong.
    pub why: Failure,
    /// The token, where it was one.
    pub token: Option<TokenId>,
    /// The network that it came from.
    pub source: Option<IpAddr>,
}

#[derive(Clone, Copy, Debug)]
struct Counted {
    from: Timestamp,
    until: Timestamp,
    times: u64,
    sources: u64,
}

impl Counted {
    fn add(&mut self, other: Self) {
        self.from = self.from.min(other.from);
        self.until = self.until.max(other.until);
        self.times = self.times.saturating_add(other.times);
        self.sources = self.sources.saturating_add(other.sources);
    }
}

/// What waits to be written.
#[derive(Debug)]
pub struct Waiting {
    sources: BTreeMap<Wrong, Counted>,
    others: BTreeMap<(OrgId, Failure), Counted>,
    room: u32,
    room_since: Option<Instant>,
}

impl Default for Waiting {
    fn default() -> Self {
        Self {
            sources: BTreeMap::new(),
            others: BTreeMap::new(),
            room: ENTRIES_MAX,
            room_since: None,
        }
    }
}

impl Waiting {
    /// Counts a wrong token; false where there is no room.
    pub fn count(&mut self, wrong: Wrong, at: Timestamp) -> bool {
        let counted = Counted {
            from: at,
            until: at,
            times: 1,
            sources: 1,
        };
        self.add(wrong, counted)
    }

    fn add(&mut self, wrong: Wrong, counted: Counted) -> bool {
        if let Some(known) = self.sources.get_mut(&wrong) {
            // It is one source, however often.
            let sources = 0;
            known.add(Counted { sources, ..counted });
            return true;
        }
        if self.sources.len() < SOURCES_MAX {
            self.sources.insert(wrong, counted);
            return true;
        }
        self.add_other((wrong.org, wrong.why), counted)
    }

    fn add_other(&mut self, key: (OrgId, Failure), counted: Counted) -> bool {
        if let Some(known) = self.others.get_mut(&key) {
            known.add(counted);
            return true;
        }
        let fits = self.others.len() < OTHERS_MAX;
        if fits {
            self.others.insert(key, counted);
        }
        fits
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.sources.is_empty() && self.others.is_empty()
    }

    /// What is to be written now, and how many requests there is no room for.
    fn take(&mut self, now: Instant) -> (Vec<Taken>, u64) {
        self.make_room(now);
        let (mut taken, mut lost) = (Vec::new(), 0);
        let sources = std::mem::take(&mut self.sources);
        // The last place is for all those that have none of their own.
        let own = |room: u32, left: usize| room > 1 || (room == 1 && left == 1);
        let mut left = sources.len() + self.others.len();
        for (wrong, counted) in sources {
            if own(self.room, left) {
                self.room -= 1;
                taken.push(Taken { wrong, counted });
            } else if !self.add_other((wrong.org, wrong.why), counted) {
                lost += counted.times;
            }
            left -= 1;
        }
        while self.room > 0
            && let Some(((org, why), counted)) = self.others.pop_first()
        {
            self.room -= 1;
            let (token, source) = (None, None);
            let wrong = Wrong {
                org,
                why,
                token,
                source,
            };
            taken.push(Taken { wrong, counted });
        }
        (taken, lost)
    }

    fn make_room(&mut self, now: Instant) {
        let since = *self.room_since.get_or_insert(now);
        let passed = now.saturating_duration_since(since).as_secs() / ENTRY_EVERY.as_secs();
        let more = u32::try_from(passed).unwrap_or(u32::MAX);
        if more > 0 {
            self.room = self.room.saturating_add(more).min(ENTRIES_MAX);
            self.room_since = Some(now);
        }
    }
}

/// What becomes one entry.
#[derive(Clone, Debug)]
struct Taken {
    wrong: Wrong,
    counted: Counted,
}

impl Taken {
    fn said(&self) -> Said {
        let Counted {
            from,
            until,
            times,
            sources,
        } = self.counted;
        let wrong = &self.wrong;
        let token = wrong.token.map(|token| token.to_string());
        Said {
            at: from,
            actor: token.unwrap_or_else(|| "unknown".into()),
            source: wrong.source,
            act: Act::LoginFailed {
                why: wrong.why,
                times,
                sources: (wrong.source.is_none() && sources > 1).then_some(sources),
                until,
            },
        }
    }
}

/// Wrong tokens of one control plane; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Logins(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    writes: AtomicBool,
}

impl Logins {
    /// Counts a wrong token. Answers true where the caller is to see to it that [`Logins::writing`]
    /// runs.
    pub fn count(&self, wrong: Wrong, counters: &Metrics) -> bool {
        if !self.waiting().count(wrong, Timestamp::now()) {
            counters.audit_dropped(1);
        }
        !self.0.writes.swap(true, Ordering::SeqCst)
    }

    /// Writes what waits, a minute after it began to, until nothing does.
    pub async fn writing(self, store: Arc<dyn Store>, counters: Metrics) {
        let _ends = Ends(&self.0.writes);
        loop {
            tokio::time::sleep(WINDOW).await;
            self.write(&*store, &counters).await;
            if self.waiting().is_empty() {
                return;
            }
        }
    }

    /// Writes what waits. What the store does not take waits on.
    pub async fn write(&self, store: &dyn Store, counters: &Metrics) {
        let (taken, lost) = self.waiting().take(Instant::now());
        counters.audit_dropped(lost);
        let mut failed = None;
        for one in taken {
            if failed.is_none() {
                let written = super::append(store, one.wrong.org, one.said(), &[]).await;
                failed = written.err();
                if failed.is_none() {
                    continue;
                }
            }
            let mut waiting = self.waiting();
            waiting.room = waiting.room.saturating_add(1).min(ENTRIES_MAX);
            let times = one.counted.times;
            if !waiting.add(one.wrong, one.counted) {
                counters.audit_dropped(times);
            }
        }
        if let Some(error) = failed {
            tracing::warn!(%error, "failed logins are not in the audit yet: {error}");
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.0
            .waiting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// However the task ends, the next wrong token begins another one.
struct Ends<'w>(&'w AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(source: u32) -> Wrong {
        Wrong {
            org: OrgId::from_bits(1),
            why: Failure::Unknown,
            token: None,
            source: Some(IpAddr::V4(source.into())),
        }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    /// Source, times, sources of what is taken.
    fn taken(waiting: &mut Waiting, now: Instant) -> Vec<(bool, u64, Option<u64>)> {
        let (taken, lost) = waiting.take(now);
        assert_eq!(lost, 0);
        let told = taken.iter().map(|one| match one.said().act {
            Act::LoginFailed { times, sources, .. } => (one.wrong.source.is_some(), times, sources),
            other => panic!("{other:?}"),
        });
        told.collect()
    }

    #[test]
    fn repeats_of_a_source_are_one_entry() {
        let (mut waiting, now) = (Waiting::default(), Instant::now());
        for second in 0..50 {
            assert!(waiting.count(wrong(1), at(second)));
        }
        waiting.count(wrong(2), at(7));
        let (taken, _) = waiting.take(now);
        let said = taken[0].said();
        assert_eq!(
            (taken.len(), said.at, said.actor.as_str()),
            (2, at(0), "unknown")
        );
        let act = Act::LoginFailed {
            why: Failure::Unknown,
            times: 50,
            sources: None,
            until: at(49),
        };
        assert_eq!(said.act, act);
        assert!(waiting.is_empty());
    }

    #[test]
    fn a_flood_of_sources_is_few_entries_and_no_request_is_forgotten() {
        let (mut waiting, now) = (Waiting::default(), Instant::now());
        for source in 0..1_000 {
            waiting.count(wrong(source), at(0));
        }
        let told = taken(&mut waiting, now);
        assert_eq!(told.len(), SOURCES_MAX + 1);
        assert_eq!(told.last(), Some(&(false, 936, Some(936))));
        let mut entries = told.len();
        let mut times: u64 = told.iter().map(|(_, times, _)| times).sum();
        for minute in 1..100u32 {
            for source in 0..1_000 {
                waiting.count(wrong(source), at(0));
            }
            let told = taken(&mut waiting, now + WINDOW * minute);
            entries += told.len();
            times += told.iter().map(|(_, times, _)| times).sum::<u64>();
        }
        let times_left: u64 = waiting.others.values().map(|counted| counted.times).sum();
        assert_eq!(times + times_left, 100_000);
        assert!(entries <= ENTRIES_MAX as usize + 10, "{entries}");
    }
}
