//! What is to be taken of a region, and whose turn it is.
//!
//! Of each organisation at most one take is under way and one waits, of what was told last.
//! `system` waits for what was told with it or before: what it names is then there. What was handed
//! over to this region has no home until it is opened here: it goes before all others, in places of
//! its own. What could not be taken is tried again by itself, whatever else is to be done.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use jiff::Timestamp;
use proto::id::OrgId;
use proto::tree::SYSTEM_ORG;
use proto::wire::replication::Moved;
use tokio::time::Instant;

use super::handover::WAVE;
use super::hearing::Asked;

/// Organisations that are taken at one time from a region; one, where that region answers one ask
/// after the other.
pub(super) const ORGS_AT_ONCE: usize = 16;
/// Further ones that were handed over to this region: a wave of them.
pub(super) const HANDED_OVER_AT_ONCE: usize = WAVE;
/// First and longest wait until an organisation is tried again.
const AGAIN_MIN: Duration = Duration::from_millis(100);
pub(super) const AGAIN_MAX: Duration = Duration::from_secs(5);

/// With which news an organisation was first told that is not taken yet.
#[derive(Clone, Copy)]
pub(super) struct Told {
    pub news: u64,
    /// When the news before were asked for: of then it is current.
    pub current: Option<Asked>,
}

/// What is to be done about an organisation.
#[derive(Clone)]
pub(super) enum Turn {
    Take(Moved),
    /// Its home has it no more.
    Remove(OrgId),
}

impl Turn {
    pub fn org(&self) -> OrgId {
        match self {
            Self::Take(moved) => moved.org,
            Self::Remove(org) => *org,
        }
    }
}

/// What is under way.
#[derive(Clone, Copy)]
struct UnderWay {
    told: Told,
    /// Whether it has a place of those that are for what was handed over.
    is_in_front: bool,
}

/// What could not be done.
struct Again {
    turn: Turn,
    /// When it is tried again; none while it waits for its turn or is under way.
    at: Option<Instant>,
    wait: Duration,
}

/// See the module.
pub(super) struct Turns {
    own: String,
    /// Whether the other region answers many asks at one time.
    many: bool,
    waiting: BTreeMap<OrgId, (Moved, Told)>,
    /// Those of it but `system` that are not under way, in their order: handed over, and others.
    front: VecDeque<OrgId>,
    queue: VecDeque<OrgId>,
    under_way: BTreeMap<OrgId, UnderWay>,
    /// How many are not taken yet, `system` left out, by the news that first told of them.
    untaken: BTreeMap<u64, (usize, Option<Asked>)>,
    /// What is to be removed, by the news that told so.
    gone: BTreeMap<OrgId, u64>,
    again: BTreeMap<OrgId, Again>,
}

impl Turns {
    /// Nothing to be done yet in the region `own`.
    pub fn new(own: &str, many: bool) -> Self {
        Self {
            own: own.to_owned(),
            many,
            waiting: BTreeMap::new(),
            front: VecDeque::new(),
            queue: VecDeque::new(),
            under_way: BTreeMap::new(),
            untaken: BTreeMap::new(),
            gone: BTreeMap::new(),
            again: BTreeMap::new(),
        }
    }

    /// Whether everything that was told is done, or could not be.
    pub fn is_done(&self) -> bool {
        self.waiting.is_empty() && self.under_way.is_empty() && self.gone.is_empty()
    }

    /// Whether a take waits.
    pub fn waits(&self, org: OrgId) -> bool {
        self.waiting.contains_key(&org)
    }

    /// Whether something is to be removed.
    pub fn is_removing(&self) -> bool {
        !self.gone.is_empty()
    }

    /// Organisations that are to be removed.
    pub fn gone(&self) -> Vec<OrgId> {
        self.gone.keys().copied().collect()
    }

    /// Lines up what moved.
    pub fn wait(&mut self, moved: Moved, told: Told) {
        let org = moved.org;
        self.gone.remove(&org);
        if let Some(again) = self.again.get_mut(&org) {
            again.at = None;
        }
        let is_handed_over = self.is_handed_over(&moved);
        if let Some((waiting, _)) = self.waiting.get_mut(&org) {
            let before = std::mem::replace(waiting, moved);
            if self.is_handed_over(&before) != is_handed_over {
                self.front.retain(|of| *of != org);
                self.queue.retain(|of| *of != org);
                self.requeue(org);
            }
            return;
        }
        self.waiting.insert(org, (moved, told));
        if org != SYSTEM_ORG {
            self.untaken.entry(told.news).or_insert((0, told.current)).0 += 1;
        }
        self.requeue(org);
    }

    /// Lines up what is to be removed.
    pub fn remove(&mut self, org: OrgId, news: u64) {
        if let Some(again) = self.again.get_mut(&org) {
            again.at = None;
        }
        self.gone.insert(org, news);
    }

    /// It could not be taken before: it is no younger for what was told of others since.
    pub fn note_stuck(&mut self, org: OrgId) {
        if let Some((_, told)) = self.waiting.get_mut(&org) {
            told.current = None;
        }
    }

    /// Whether another region has sealed it for this one.
    fn is_handed_over(&self, moved: &Moved) -> bool {
        let sealed_to = moved.home.as_ref().map(|home| home.sealed_to.as_ref());
        sealed_to.flatten() == Some(&self.own)
    }

    /// Lines up what waits and is not under way.
    fn requeue(&mut self, org: OrgId) {
        let Some((moved, _)) = self.waiting.get(&org) else {
            return;
        };
        if org == SYSTEM_ORG || self.under_way.contains_key(&org) {
            return;
        }
        match self.is_handed_over(moved) {
            true => self.front.push_back(org),
            false => self.queue.push_back(org),
        }
    }

    /// What is to be begun, if there is a place for it; it then is under way.
    pub fn next(&mut self) -> Option<Turn> {
        let of_front = self.under_way.values().filter(|of| of.is_in_front).count();
        let others = self.under_way.len() - of_front;
        let (at_once, front_at_once) = match self.many {
            true => (ORGS_AT_ONCE, HANDED_OVER_AT_ONCE),
            false => (1, 0),
        };
        if of_front < front_at_once
            && let Some(org) = self.next_handed_over()
        {
            return self.begin(org, true);
        }
        if others >= at_once {
            return None;
        }
        let moved = self.next_handed_over().or_else(|| self.next_moved());
        match moved {
            Some(org) => self.begin(org, false),
            None => self.next_gone(),
        }
    }

    fn begin(&mut self, org: OrgId, is_in_front: bool) -> Option<Turn> {
        let (moved, told) = self.waiting.remove(&org)?;
        self.under_way.insert(org, UnderWay { told, is_in_front });
        Some(Turn::Take(moved))
    }

    /// `system`, where it waits and its turn has come.
    fn system(&self) -> Option<&Moved> {
        let oldest = self.untaken.keys().next().copied();
        let is_turn = |told: &Told| oldest.is_none_or(|news| news > told.news);
        let (moved, told) = self.waiting.get(&SYSTEM_ORG)?;
        let is_free = !self.under_way.contains_key(&SYSTEM_ORG);
        (is_free && is_turn(told)).then_some(moved)
    }

    fn next_handed_over(&mut self) -> Option<OrgId> {
        match self.system() {
            Some(system) if self.is_handed_over(system) => Some(SYSTEM_ORG),
            _ => self.front.pop_front(),
        }
    }

    /// `system` where its turn has come, else who waits longest.
    fn next_moved(&mut self) -> Option<OrgId> {
        match self.system() {
            Some(_) => Some(SYSTEM_ORG),
            None => self.queue.pop_front(),
        }
    }

    /// What is gone, once the `system` is here that was told with it or before.
    fn next_gone(&mut self) -> Option<Turn> {
        let waiting = self.waiting.get(&SYSTEM_ORG).map(|(_, told)| told.news);
        let under_way = self.under_way.get(&SYSTEM_ORG).map(|of| of.told.news);
        let system = waiting.into_iter().chain(under_way).min();
        let may = |(org, news): &(&OrgId, &u64)| {
            system.is_none_or(|of_system| of_system > **news) && !self.under_way.contains_key(*org)
        };
        let (org, news) = self.gone.iter().find(may)?;
        let (org, news) = (*org, *news);
        self.gone.remove(&org);
        let told = Told {
            news,
            current: None,
        };
        let is_in_front = false;
        self.under_way.insert(org, UnderWay { told, is_in_front });
        Some(Turn::Remove(org))
    }

    /// Notes that what was under way has ended.
    pub fn ended(&mut self, turn: &Turn) {
        let org = turn.org();
        if let Some(UnderWay { told, .. }) = self.under_way.remove(&org)
            && let Turn::Take(_) = turn
            && let Some((count, _)) = self.untaken.get_mut(&told.news)
            && org != SYSTEM_ORG
        {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.untaken.remove(&told.news);
            }
        }
        self.requeue(org);
    }

    /// What has ended is done: it is not tried again.
    pub fn done(&mut self, org: OrgId) {
        self.again.remove(&org);
    }

    /// What has ended by `now` was not done: it is tried again, later each time. `at_least` is the
    /// first wait.
    pub fn again(&mut self, turn: Turn, at_least: Duration, now: Instant) {
        let org = turn.org();
        let before = self.again.get(&org).map(|again| again.wait * 2);
        let wait = before.unwrap_or(AGAIN_MIN).max(at_least).min(AGAIN_MAX);
        // What was told meanwhile has its turn.
        let is_lined_up = self.waiting.contains_key(&org) || self.gone.contains_key(&org);
        let at = (!is_lined_up).then(|| now + wait);
        self.again.insert(org, Again { turn, at, wait });
    }

    /// When something is to be tried again. With a region that answers one ask at a time that is
    /// when news were heard: these must not wait for what is tried again and again.
    pub fn due(&self) -> Option<Instant> {
        if !self.many {
            return None;
        }
        self.again.values().filter_map(|again| again.at).min()
    }

    /// Lines up what is to be tried again by `now`, after so many news.
    pub fn line_up_due(&mut self, news: u64, now: Instant) {
        let due = self.again.values();
        let due = due.filter(|again| again.at.is_some_and(|at| at <= now));
        let due: Vec<Turn> = due.map(|again| again.turn.clone()).collect();
        for turn in due {
            match turn {
                Turn::Take(moved) => {
                    let current = None;
                    self.wait(moved, Told { news, current });
                }
                Turn::Remove(org) => self.remove(org, news),
            }
        }
    }

    /// The first news of which something is not taken.
    pub fn oldest(&self) -> Option<Told> {
        let system = self.waiting.get(&SYSTEM_ORG).map(|(_, told)| *told);
        let under_way = self.under_way.get(&SYSTEM_ORG).map(|of| of.told);
        let others = self.untaken.iter().next();
        let others = others.map(|(news, (_, current))| Told {
            news: *news,
            current: *current,
        });
        let all = system.into_iter().chain(under_way).chain(others);
        all.min_by_key(|told| told.news)
    }

    /// What is not taken yet, and as of when it is current.
    pub fn late(&self) -> BTreeMap<OrgId, Option<Timestamp>> {
        let waiting = self.waiting.iter().map(|(org, (_, told))| (*org, *told));
        // The take that is under way was told before the one that waits.
        let under_way = self.under_way.iter().map(|(org, of)| (*org, of.told));
        let late = waiting.chain(under_way);
        late.map(|(org, told)| (org, told.current.map(|asked| asked.at)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use proto::tree::Hash;
    use proto::version::Epoch;
    use proto::wire::replication::{HomeAt, Position};

    use super::*;

    fn moved(org: OrgId, sealed_to: Option<&str>) -> Moved {
        let epoch = Epoch {
            counter: 1,
            region: "us".into(),
        };
        let hash = Hash::of(b"x");
        Moved {
            org,
            position: Position {
                epoch: epoch.clone(),
                n: 1,
                hash,
            },
            facts: hash,
            home: Some(HomeAt {
                epoch,
                region: "us".into(),
                sealed_to: sealed_to.map(str::to_owned),
            }),
        }
    }

    fn told(news: u64) -> Told {
        let current = Some(Asked {
            at: Timestamp::UNIX_EPOCH,
            since: std::time::Instant::now(),
        });
        Told { news, current }
    }

    /// Turns of `eu` with so many organisations told, each with its number.
    fn turns(many: bool, count: u128) -> Turns {
        let mut turns = Turns::new("eu", many);
        for bits in 1..=count {
            turns.wait(moved(OrgId::from_bits(bits), None), told(1));
        }
        turns
    }

    fn begun(turns: &mut Turns) -> Vec<u128> {
        let begun = std::iter::from_fn(|| turns.next());
        begun.map(|turn| turn.org().bits()).collect()
    }

    fn end(turns: &mut Turns, bits: u128) {
        turns.ended(&Turn::Take(moved(OrgId::from_bits(bits), None)));
    }

    #[test]
    fn what_was_handed_over_has_places_of_its_own_and_is_first_for_others() {
        let mut turns = turns(true, 20);
        assert!(begun(&mut turns).into_iter().eq(1..=16));
        for bits in 100..110 {
            turns.wait(moved(OrgId::from_bits(bits), Some("eu")), told(2));
        }
        // For another region: no haste.
        turns.wait(moved(OrgId::from_bits(200), Some("ap")), told(2));
        assert!(begun(&mut turns).into_iter().eq(100..108));
        end(&mut turns, 1);
        assert_eq!(begun(&mut turns), [108]);
        end(&mut turns, 100);
        assert_eq!(begun(&mut turns), [109]);
        end(&mut turns, 2);
        assert_eq!(begun(&mut turns), [17]);
    }

    #[test]
    fn what_waits_goes_in_front_once_it_is_handed_over_and_back_when_it_is_not() {
        let mut turns = turns(true, 20);
        assert_eq!(begun(&mut turns).len(), ORGS_AT_ONCE);
        let org = OrgId::from_bits(20);
        turns.wait(moved(org, Some("eu")), told(2));
        turns.wait(moved(org, None), told(3));
        assert_eq!(begun(&mut turns), []);
        turns.wait(moved(org, Some("eu")), told(4));
        assert_eq!(begun(&mut turns), [20]);
        // Under way it is told again.
        turns.wait(moved(org, Some("eu")), told(5));
        assert_eq!(begun(&mut turns), []);
        end(&mut turns, 20);
        assert_eq!(begun(&mut turns), [20]);
    }

    #[test]
    fn a_region_of_before_is_asked_for_one_at_a_time_what_it_handed_over_first() {
        let mut turns = turns(false, 3);
        assert_eq!(begun(&mut turns), [1]);
        turns.wait(moved(OrgId::from_bits(9), Some("eu")), told(2));
        assert_eq!(begun(&mut turns), []);
        end(&mut turns, 1);
        assert_eq!(begun(&mut turns), [9]);
    }

    #[test]
    fn system_waits_for_what_was_told_before_also_when_it_is_handed_over() {
        let mut turns = turns(true, 1);
        turns.wait(moved(SYSTEM_ORG, Some("eu")), told(1));
        turns.wait(moved(OrgId::from_bits(2), None), told(2));
        assert_eq!(begun(&mut turns), [1, 2]);
        assert_eq!(turns.oldest().unwrap().news, 1);
        end(&mut turns, 1);
        assert_eq!(turns.oldest().unwrap().news, 1, "system is told of too");
        assert_eq!(begun(&mut turns), [SYSTEM_ORG.bits()]);
        turns.ended(&Turn::Take(moved(SYSTEM_ORG, None)));
        assert_eq!(turns.oldest().unwrap().news, 2);
    }

    #[test]
    fn a_copy_that_is_stuck_is_as_of_no_time() {
        let mut turns = turns(true, 2);
        let [stuck, other] = [1, 2].map(OrgId::from_bits);
        turns.note_stuck(stuck);
        let expected = BTreeMap::from([(stuck, None), (other, Some(Timestamp::UNIX_EPOCH))]);
        assert_eq!(turns.late(), expected);
        assert_eq!(begun(&mut turns), [1, 2]);
        assert_eq!(turns.late(), expected);
    }

    #[test]
    fn what_was_not_done_is_tried_again_later_each_time_while_others_go_on() {
        let mut turns = turns(true, 2);
        assert_eq!(begun(&mut turns), [1, 2]);
        let org = OrgId::from_bits(1);
        let turn = || Turn::Take(moved(org, None));
        let mut now = Instant::now();
        for wait_ms in [100, 200, 400, 800, 1_600, 3_200, 5_000, 5_000] {
            turns.ended(&turn());
            turns.again(turn(), Duration::ZERO, now);
            let due = now + Duration::from_millis(wait_ms);
            assert_eq!(turns.due(), Some(due));
            turns.line_up_due(1, now);
            assert_eq!(begun(&mut turns), []);
            turns.line_up_due(1, due);
            assert_eq!(turns.due(), None, "it is lined up");
            assert_eq!(begun(&mut turns), [1]);
            now = due;
        }
        turns.ended(&turn());
        turns.done(org);
        assert_eq!(turns.due(), None);
        assert!(!turns.is_done(), "the other one is under way still");
    }

    #[test]
    fn what_could_not_be_removed_is_tried_again_unless_it_is_there_again() {
        let mut turns = turns(true, 0);
        let (org, now) = (OrgId::from_bits(1), Instant::now());
        turns.remove(org, 1);
        assert_eq!(begun(&mut turns), [1]);
        turns.ended(&Turn::Remove(org));
        turns.again(Turn::Remove(org), AGAIN_MAX, now);
        turns.line_up_due(1, now + AGAIN_MAX);
        assert!(turns.is_removing());
        turns.wait(moved(org, None), told(2));
        assert!(!turns.is_removing());
        assert!(matches!(turns.next(), Some(Turn::Take(_))));
    }
}
