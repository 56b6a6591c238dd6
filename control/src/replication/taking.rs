//! What has moved in a region is taken: many organisations at one time, each in its order.
//!
//! News are asked for all the while, so that an organisation which takes long keeps no other one
//! waiting, and neither does one that cannot be taken. Whose turn it is tells [`Turns`]; what is in
//! memory is bounded by the number of organisations, and content by the answers of those that are
//! taken at one time.

use std::time::{Duration, Instant};

use futures_util::future::{BoxFuture, FutureExt};
use futures_util::stream::{FuturesUnordered, StreamExt};
use proto::id::OrgId;
use proto::wire::replication::{Answer, Ask, PROTOCOL_NUMBERED, Position};

use super::apply::{ApplyError, Guard};
use super::connection::Connection;
use super::hearing::{Asked, News};
use super::turns::{AGAIN_MAX, Told, Turn, Turns};
use super::{Broken, Replication};
use crate::regions::staleness;

/// For so long it is waited for what was told before it is noted what is current and what not.
const DONE_MAX: Duration = Duration::from_secs(5);

/// What ended.
enum Event {
    News(Result<News, Broken>),
    Noted(Result<(), Broken>),
    /// Where an organisation then stands here, if it was taken.
    Ended(Box<Turn>, Result<Option<Position>, Broken>),
    /// Something is to be tried again.
    Due,
}

/// What is taken over one connection.
pub(super) struct Taking<'a> {
    replication: &'a Replication,
    connection: &'a Connection,
    guard: &'a Guard,
    /// News heard, and the last of them.
    heard: u64,
    asked: Option<Asked>,
    turns: Turns,
    /// What was stored and is not told to the other region.
    applied: Vec<(OrgId, Position)>,
    /// When it was last noted how current this region is, and of which news on it is next.
    noted: (Instant, u64),
    is_hearing: bool,
    is_telling: bool,
    running: FuturesUnordered<BoxFuture<'a, Event>>,
}

impl<'a> Taking<'a> {
    pub fn new(replication: &'a Replication, connection: &'a Connection, guard: &'a Guard) -> Self {
        let many = connection.protocol() >= PROTOCOL_NUMBERED;
        Self {
            replication,
            connection,
            guard,
            heard: 0,
            asked: None,
            turns: Turns::new(&replication.regions.own, many),
            applied: Vec::new(),
            noted: (Instant::now(), 1),
            is_hearing: false,
            is_telling: false,
            running: FuturesUnordered::new(),
        }
    }

    /// Goes on until something has ended.
    pub async fn go_on(&mut self) -> Result<(), Broken> {
        let many = self.connection.protocol() >= PROTOCOL_NUMBERED;
        if !self.is_hearing && (many || self.turns.is_done()) {
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
        while self.is_hearing || !self.turns.is_done() {
            self.step().await?;
        }
        Ok(self.applied)
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
        match self.event().await {
            Event::News(news) => {
                self.is_hearing = false;
                self.note(news?);
            }
            Event::Noted(noted) => {
                self.is_telling = false;
                noted?;
            }
            Event::Ended(turn, ended) => self.ended(*turn, ended)?,
            Event::Due => self.turns.line_up_due(self.heard, Instant::now().into()),
        }
        self.settle().await
    }

    /// Waits until something has ended, or is to be tried again.
    async fn event(&mut self) -> Event {
        let due = self.turns.due();
        let due = async {
            match due {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            Some(event) = self.running.next() => event,
            () = due => Event::Due,
        }
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
            self.turns.wait(moved, told);
            if following.is_stuck(org) {
                self.turns.note_stuck(org);
            }
        }
        for org in news.gone {
            self.turns.remove(org, self.heard);
        }
        if self.connection.protocol() < PROTOCOL_NUMBERED {
            self.turns.line_up_due(self.heard, Instant::now().into());
        }
    }

    fn start(&mut self) {
        let (replication, connection) = (self.replication, self.connection);
        while let Some(turn) = self.turns.next() {
            let of = Box::new(turn.clone());
            let guard = self.guard;
            let doing = async move {
                match turn {
                    Turn::Take(moved) => replication.take_one(connection, guard, moved).await,
                    Turn::Remove(org) => {
                        let removed = replication.remove(connection.peer(), guard, org).await;
                        removed.map(|()| None)
                    }
                }
            };
            let doing = doing.map(|ended| Event::Ended(of, ended));
            self.running.push(doing.boxed());
        }
    }

    /// Notes what became of an organisation. One that cannot be taken does not keep the others
    /// waiting, and is tried again.
    fn ended(&mut self, turn: Turn, ended: Result<Option<Position>, Broken>) -> Result<(), Broken> {
        let (org, peer) = (turn.org(), self.connection.peer());
        self.turns.ended(&turn);
        match ended {
            Ok(stored) => {
                self.applied
                    .retain(|(told, _)| *told != org || stored.is_none());
                self.applied.extend(stored.map(|stored| (org, stored)));
            }
            Err(Broken::Apply(ApplyError::Unverified { at, why, .. })) => {
                self.replication.leave_unverified(peer, org, at, why);
                self.turns.note_stuck(org);
                self.turns.again(turn, AGAIN_MAX, Instant::now().into());
                return Ok(());
            }
            Err(Broken::Apply(error)) if error.is_of_one() => {
                self.replication.leave_untaken(peer, org, error.to_string());
                self.turns.note_stuck(org);
                self.turns
                    .again(turn, Duration::ZERO, Instant::now().into());
                return Ok(());
            }
            Err(error) => return Err(error),
        }
        self.turns.done(org);
        let is_behind = self.turns.waits(org) || matches!(turn, Turn::Remove(_));
        self.replication.status.follow(peer, |of| {
            if !is_behind {
                of.behind.remove(&org);
            }
            of.unverified.remove(&org);
            of.untaken.remove(&org);
            if let Turn::Remove(_) = turn {
                of.diverged.remove(&org);
            }
        });
        Ok(())
    }

    /// Tells how current this region is.
    async fn settle(&mut self) -> Result<(), Broken> {
        let Some(asked) = self.asked else {
            return Ok(());
        };
        let (replication, peer) = (self.replication, self.connection.peer());
        let (noted, awaited) = self.noted;
        let oldest = self.turns.oldest();
        if oldest.is_none_or(|told| told.news > awaited) || noted.elapsed() >= DONE_MAX {
            self.noted = (Instant::now(), self.heard);
            let (gone, late) = (self.turns.gone(), self.turns.late());
            staleness::note(replication, peer, asked.at, (&gone, &late)).await?;
        }
        if self.turns.is_removing() {
            return Ok(());
        }
        let current = match oldest {
            Some(told) => told.current.map(|asked| asked.since),
            None => Some(asked.since),
        };
        replication.status.follow(peer, |of| {
            if of.diverged.is_empty() && of.unverified.is_empty() && of.untaken.is_empty() {
                of.current_at = of.current_at.max(current);
            }
        });
        Ok(())
    }
}
