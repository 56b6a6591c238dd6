//! What has moved in a region is taken: many organisations at one time, each in its order.
//!
//! News are asked for all the while, so that an organisation which takes long keeps no other one
//! waiting. Of each at most one take is under way and one waits, of what was told last; so what is
//! in memory is bounded by the number of organisations, and content by the answers of
//! [`ORGS_AT_ONCE`]. `system` waits for what was told with it or before: what it names is then
//! there.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use futures_util::future::{BoxFuture, FutureExt};
use futures_util::stream::{FuturesUnordered, StreamExt};
use jiff::Timestamp;
use proto::id::OrgId;
use proto::tree::SYSTEM_ORG;
use proto::wire::replication::{Answer, Ask, Moved, PROTOCOL_NUMBERED, Position};
use tracing::warn;

use super::apply::{ApplyError, Guard};
use super::connection::Connection;
use super::hearing::{Asked, News};
use super::{Broken, Replication};
use crate::regions::staleness;

/// Organisations that are taken at one time from a region; one, where that region answers one ask
/// after the other.
pub(super) const ORGS_AT_ONCE: usize = 16;
/// For so long it is waited for what was told before it is noted what is current and what not.
const DONE_MAX: Duration = Duration::from_secs(5);

/// With which news an organisation was first told that is not taken yet.
#[derive(Clone, Copy)]
struct Told {
    news: u64,
    /// When the news before were asked for: of then it is current.
    current: Option<Asked>,
}

/// What ended.
enum Event {
    News(Result<News, Broken>),
    Noted(Result<(), Broken>),
    Taken(Moved, Result<Option<Position>, Broken>),
    Removed(OrgId, Result<(), Broken>),
}

/// What is taken over one connection.
pub(super) struct Taking<'a> {
    replication: &'a Replication,
    connection: &'a Connection,
    guard: &'a Guard,
    /// News heard, and the last of them.
    heard: u64,
    asked: Option<Asked>,
    /// What is to be taken.
    waiting: BTreeMap<OrgId, (Moved, Told)>,
    /// Those of it but `system` that are not under way, in their order.
    queue: VecDeque<OrgId>,
    under_way: BTreeMap<OrgId, Told>,
    /// How many are not taken yet, `system` left out, by the news that first told of them.
    untaken: BTreeMap<u64, (usize, Option<Asked>)>,
    /// What is to be removed, by the news that told so.
    gone: BTreeMap<OrgId, u64>,
    /// What was stored and is not told to the other region.
    applied: Vec<(OrgId, Position)>,
    /// What was refused last: the connection ends when nothing else is to be done.
    refused: Option<ApplyError>,
    /// When it was last noted how current this region is, and of which news on it is next.
    noted: (Instant, u64),
    is_hearing: bool,
    is_telling: bool,
    running: FuturesUnordered<BoxFuture<'a, Event>>,
}

impl<'a> Taking<'a> {
    pub fn new(replication: &'a Replication, connection: &'a Connection, guard: &'a Guard) -> Self {
        Self {
            replication,
            connection,
            guard,
            heard: 0,
            asked: None,
            waiting: BTreeMap::new(),
            queue: VecDeque::new(),
            under_way: BTreeMap::new(),
            untaken: BTreeMap::new(),
            gone: BTreeMap::new(),
            applied: Vec::new(),
            refused: None,
            noted: (Instant::now(), 1),
            is_hearing: false,
            is_telling: false,
            running: FuturesUnordered::new(),
        }
    }

    /// Goes on until something has ended.
    pub async fn go_on(&mut self) -> Result<(), Broken> {
        let many = self.connection.protocol() >= PROTOCOL_NUMBERED;
        if !self.is_hearing && (many || self.is_done()) {
            self.hear();
        }
        if many && !self.is_telling && !self.applied.is_empty() {
            self.tell();
        }
        self.step().await
    }

    /// Hears once and takes everything that it is told; gives what was stored.
    #[cfg(test)]
    pub async fn round(mut self) -> Result<Vec<(OrgId, Position)>, Broken> {
        self.hear();
        while self.is_hearing || !self.is_done() {
            self.step().await?;
        }
        Ok(self.applied)
    }

    /// Whether everything that was told is taken, or refused.
    fn is_done(&self) -> bool {
        self.waiting.is_empty() && self.under_way.is_empty() && self.gone.is_empty()
    }

    /// Tells an earlier program what was stored, and asks for news.
    fn hear(&mut self) {
        let (replication, connection) = (self.replication, self.connection);
        let applied = match connection.protocol() {
            PROTOCOL_NUMBERED.. => Vec::new(),
            _ => std::mem::take(&mut self.applied),
        };
        self.is_hearing = true;
        let news = replication.news(connection, applied).map(Event::News);
        self.running.push(news.boxed());
    }

    /// Tells what was stored; one at a time, so that the last is what stays.
    fn tell(&mut self) {
        let ask = Ask::Applied(std::mem::take(&mut self.applied));
        let connection = self.connection;
        self.is_telling = true;
        let telling = async move {
            match connection.ask(&ask, Duration::ZERO).await? {
                Answer::Noted => Ok(()),
                _ => Err(Broken::Protocol),
            }
        };
        self.running.push(telling.map(Event::Noted).boxed());
    }

    /// Begins what may begin, and waits until something has ended.
    async fn step(&mut self) -> Result<(), Broken> {
        self.start();
        match self.running.next().await {
            Some(Event::News(news)) => {
                self.is_hearing = false;
                self.note(news?);
            }
            Some(Event::Noted(noted)) => {
                self.is_telling = false;
                noted?;
            }
            Some(Event::Taken(moved, taken)) => self.ended(moved, taken)?,
            Some(Event::Removed(org, removed)) => {
                self.under_way.remove(&org);
                self.requeue(org);
                removed?;
                let peer = self.connection.peer();
                self.replication.status.follow(peer, |of| {
                    of.unverified.remove(&org);
                });
            }
            None => {}
        }
        self.settle().await
    }

    /// Notes what was told.
    fn note(&mut self, news: News) {
        self.heard += 1;
        let before = self.asked.replace(news.asked);
        let told = Told {
            news: self.heard,
            current: before,
        };
        let following = self.replication.status.following(self.connection.peer());
        for moved in news.moved {
            let org = moved.org;
            self.gone.remove(&org);
            self.wait(moved, told);
            if following.unverified.contains_key(&org) {
                self.note_stuck(org);
            }
        }
        for moved in news.again {
            let org = moved.org;
            if !self.waiting.contains_key(&org) && !self.under_way.contains_key(&org) {
                self.wait(moved, told);
                self.note_stuck(org);
            }
        }
        self.gone
            .extend(news.gone.into_iter().map(|org| (org, self.heard)));
    }

    /// It could not be taken before: it is no younger for what was told of others since.
    fn note_stuck(&mut self, org: OrgId) {
        if let Some((_, told)) = self.waiting.get_mut(&org) {
            told.current = None;
        }
    }

    fn wait(&mut self, moved: Moved, told: Told) {
        let org = moved.org;
        if let Some((waiting, _)) = self.waiting.get_mut(&org) {
            *waiting = moved;
            return;
        }
        self.waiting.insert(org, (moved, told));
        if org != SYSTEM_ORG {
            self.untaken.entry(told.news).or_insert((0, told.current)).0 += 1;
        }
        self.requeue(org);
    }

    /// Lines up what waits and is not under way.
    fn requeue(&mut self, org: OrgId) {
        let waits = self.waiting.contains_key(&org) && !self.under_way.contains_key(&org);
        if org != SYSTEM_ORG && waits {
            self.queue.push_back(org);
        }
    }

    fn start(&mut self) {
        let at_once = match self.connection.protocol() {
            PROTOCOL_NUMBERED.. => ORGS_AT_ONCE,
            _ => 1,
        };
        let (replication, connection) = (self.replication, self.connection);
        while self.under_way.len() < at_once {
            if let Some((org, (moved, told))) = self.next_moved() {
                self.under_way.insert(org, told);
                let of = moved.clone();
                let taking = replication.take_one(connection, self.guard, moved);
                let taking = taking.map(|taken| Event::Taken(of, taken));
                self.running.push(taking.boxed());
            } else if let Some((org, told)) = self.next_gone() {
                self.under_way.insert(org, told);
                let removing = replication.remove(connection.peer(), self.guard, org);
                let removing = removing.map(move |removed| Event::Removed(org, removed));
                self.running.push(removing.boxed());
            } else {
                return;
            }
        }
    }

    /// The first news of which something is not taken.
    fn oldest(&self) -> Option<u64> {
        let system = self.waiting.get(&SYSTEM_ORG).map(|(_, told)| told);
        let system = system.into_iter().chain(self.under_way.get(&SYSTEM_ORG));
        let others = self.untaken.keys().next().copied();
        system.map(|told| told.news).chain(others).min()
    }

    /// `system` where its turn has come, else who waits longest.
    fn next_moved(&mut self) -> Option<(OrgId, (Moved, Told))> {
        let oldest = self.untaken.keys().next().copied();
        let is_turn = |(_, told): &(Moved, Told)| oldest.is_none_or(|news| news > told.news);
        let system = self.waiting.get(&SYSTEM_ORG).is_some_and(is_turn);
        if system && !self.under_way.contains_key(&SYSTEM_ORG) {
            return self.waiting.remove_entry(&SYSTEM_ORG);
        }
        let org = self.queue.pop_front()?;
        self.waiting.remove_entry(&org)
    }

    /// What is gone, once the `system` is here that was told with it or before.
    fn next_gone(&mut self) -> Option<(OrgId, Told)> {
        let waiting = self.waiting.get(&SYSTEM_ORG).map(|(_, told)| told.news);
        let under_way = self.under_way.get(&SYSTEM_ORG).map(|told| told.news);
        let system = waiting.into_iter().chain(under_way).min();
        let may = |(org, news): &(&OrgId, &u64)| {
            system.is_none_or(|of_system| of_system > **news) && !self.under_way.contains_key(*org)
        };
        let (org, news) = self.gone.iter().find(may)?;
        let (org, news) = (*org, *news);
        self.gone.remove(&org);
        let current = None;
        Some((org, Told { news, current }))
    }

    /// Notes what became of an organisation. What is refused of one does not keep the others
    /// waiting.
    fn ended(
        &mut self,
        moved: Moved,
        taken: Result<Option<Position>, Broken>,
    ) -> Result<(), Broken> {
        let (org, peer) = (moved.org, self.connection.peer());
        if let Some(told) = self.under_way.remove(&org)
            && let Some((count, _)) = self.untaken.get_mut(&told.news)
            && org != SYSTEM_ORG
        {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.untaken.remove(&told.news);
            }
        }
        self.requeue(org);
        match taken {
            Ok(stored) => {
                self.applied
                    .retain(|(told, _)| *told != org || stored.is_none());
                self.applied.extend(stored.map(|stored| (org, stored)));
            }
            Err(Broken::Apply(error @ ApplyError::Refused { .. })) => {
                warn!(%org, "{error}");
                self.refused = Some(error);
                return Ok(());
            }
            Err(Broken::Apply(ApplyError::Unverified { at, why, .. })) => {
                self.replication.leave_unverified(peer, moved, at, why);
                return Ok(());
            }
            Err(error) => return Err(error),
        }
        let waits = self.waiting.contains_key(&org);
        self.replication.status.follow(peer, |of| {
            if !waits {
                of.behind.remove(&org);
            }
            of.unverified.remove(&org);
        });
        Ok(())
    }

    /// Tells how current this region is; ends with what was refused when all else is done.
    async fn settle(&mut self) -> Result<(), Broken> {
        let Some(asked) = self.asked else {
            return Ok(());
        };
        let (replication, peer) = (self.replication, self.connection.peer());
        let (noted, awaited) = self.noted;
        if self.oldest().is_none_or(|news| news > awaited) || noted.elapsed() >= DONE_MAX {
            self.noted = (Instant::now(), self.heard);
            let waiting = self.waiting.iter().map(|(org, (_, told))| (org, told));
            // The take that is under way was told before the one that waits.
            let late = waiting.chain(&self.under_way);
            let late = late.map(|(org, told)| (*org, told.current.map(|asked| asked.at)));
            let late: BTreeMap<OrgId, Option<Timestamp>> = late.collect();
            let gone: Vec<OrgId> = self.gone.keys().copied().collect();
            staleness::note(replication, peer, asked.at, (&gone, &late)).await?;
        }
        if self.is_done()
            && let Some(error) = self.refused.take()
        {
            return Err(error.into());
        }
        if self.refused.is_some() || !self.gone.is_empty() {
            return Ok(());
        }
        let current = match self.untaken.values().next() {
            Some((_, current)) => current.map(|asked| asked.since),
            None => Some(asked.since),
        };
        replication.status.follow(peer, |of| {
            if of.diverged.is_empty() && of.unverified.is_empty() {
                of.current_at = of.current_at.max(current);
            }
        });
        Ok(())
    }
}
