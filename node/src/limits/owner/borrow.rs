//! Tokens from the peer that owns the key: asked for, held, and given back with what became of
//! them.

use std::collections::VecDeque;

use super::{
    Around, Base, Candidate, Cause, LOOK_MIN_NS, Mode, Owner, Part, Source, Verdict, Write,
};
use crate::limits::block::{Opener, life_ns};
use crate::limits::cell::{Span, Spends};
use crate::limits::exchange::{self, Answer, Ask, Grant, Reply, Report, SpecForm, Word};
use crate::limits::state::State;

/// A report that was not heard is said again after this time.
const AGAIN_NS: u64 = 50_000_000;
/// How long after a part's end its report may still be of use.
const USEFUL_NS: u64 = 500_000_000;
/// Asks that were given up and may be granted yet.
const ABANDONED_MAX: usize = 16;

/// What this node has of the key's owner.
#[derive(Debug, Default)]
pub(super) struct Borrowing {
    ask: Option<Outstanding>,
    abandoned: VecDeque<(Opener, u64)>,
    pub(super) refused_until_ns: u64,
    /// When it last refused; 0 for never.
    refused_ns: u64,
    /// The last grant, where it was less than was asked for.
    pub(super) short: Option<u64>,
    pub(super) seen: Option<(State, u64)>,
    unheard: Vec<Unheard>,
    /// Who answered last, when on its clock, and when that was heard.
    answer: Option<(Opener, u64, u64)>,
}

#[derive(Debug)]
struct Outstanding {
    to: Opener,
    id: u64,
    wanted: u64,
    sent_ns: u64,
    due_ns: u64,
}

#[derive(Debug)]
struct Unheard {
    to: Opener,
    report: Report,
    again_ns: u64,
    until_ns: u64,
}

/// What an answer says of the peer that gave it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// It gave or refused tokens.
    Served,
    /// It cannot serve.
    NoStore,
    /// Nothing.
    Nothing,
}

impl Borrowing {
    /// Whether nothing is asked, known or to be told.
    pub(super) fn is_empty(&self) -> bool {
        self.ask.is_none() && self.unheard.is_empty() && self.seen.is_none()
    }

    /// Whether the owner has been asked and has not answered.
    pub(super) fn is_asking(&self) -> bool {
        self.ask.is_some()
    }

    /// Who owes an answer.
    pub(super) fn asked(&self) -> Option<Opener> {
        self.ask.as_ref().map(|ask| ask.to)
    }

    /// An instant on the clock of a peer that has answered last, as of now.
    pub(super) fn told(&self, peer: Opener, now_ns: u64) -> Option<exchange::Told> {
        let (_, at_ns, heard_ns) = self.answer.filter(|(from, ..)| *from == peer)?;
        let since_ns = now_ns.saturating_sub(heard_ns);
        Some(exchange::Told { at_ns, since_ns })
    }

    /// Until when the owner has refused.
    pub(super) fn refused_until_ns(&self) -> u64 {
        self.refused_until_ns
    }

    fn abandon(&mut self) {
        if let Some(ask) = self.ask.take() {
            if self.abandoned.len() >= ABANDONED_MAX {
                self.abandoned.pop_front();
            }
            self.abandoned.push_back((ask.to, ask.id));
        }
    }
}

impl Owner {
    /// A look at a key that a peer owns. What this node still has in the store is settled by it.
    pub(super) fn borrow(
        &mut self,
        around: &mut Around<'_>,
        hungry: bool,
        waiting: u64,
    ) -> Option<Write> {
        let now_ns = around.now.boot_ns;
        let free = self.attempt.is_none() && around.store_up && now_ns >= self.blocked_until_ns;
        let mut write = None;
        self.look_ns = u64::MAX;
        if free && self.owes_store() {
            self.loss
                .over(&self.meter.cells, self.place.me, now_ns, hungry);
            write = self.compose(around, false, 0);
        } else if self.attempt.is_none() && !self.owes_store() {
            // Whoever owns it writes it: what we knew is of the past.
            self.base = Base::Absent;
            self.orphans_due_ns = None;
        }
        self.ask_on(around, hungry, waiting);
        self.publish_borrowed(around);
        self.look_ns = self
            .look_ns
            .min(self.next_borrowing_ns(now_ns, hungry, waiting));
        write
    }

    /// Whether the owner had nothing for us a moment ago.
    pub(super) fn is_scarce(&self, now_ns: u64) -> bool {
        let refused_ns = self.borrowing.refused_ns;
        refused_ns > 0 && now_ns < refused_ns.saturating_add(life_ns(&self.spec))
    }

    fn owes_store(&self) -> bool {
        let stored = self.stored().next().is_some() || self.has_orphan();
        stored || self.loss.has_credit() || self.correcting.owes_peers()
    }

    /// Asks the owner where tokens are wanted and no ask is on its way.
    pub(super) fn ask_on(&mut self, around: &mut Around<'_>, hungry: bool, waiting: u64) {
        let now_ns = around.now.boot_ns;
        let (Some(owner), None) = (around.supplier, &self.borrowing.ask) else {
            self.tell_holding_again(around);
            return;
        };
        // Who was silent just now is not asked again before another one was.
        if now_ns < self.borrowing.refused_until_ns || !around.out.silent.is_empty() {
            return;
        }
        let wanted = self.wanted(hungry, waiting, 1, now_ns);
        if wanted == 0 {
            return;
        }
        let relayed = self.lending.wanted() > 0;
        let id = around.next_id;
        around.next_id += 1;
        let wait_ns = around.answer_within_ns(relayed);
        self.borrowing.ask = Some(Outstanding {
            to: owner,
            id,
            wanted,
            sent_ns: now_ns,
            due_ns: now_ns.saturating_add(wait_ns),
        });
        let configured = self.meter.configured();
        let ask = Ask {
            id,
            spec: SpecForm::from(&*configured).of(self.meter.belongs_to()),
            wanted,
            relayed,
        };
        let word = Word::ask(ask, configured.share());
        around.out.words.push((owner, word));
        self.tell_holding(owner, around);
    }

    /// Gives up an ask that was not answered in time.
    pub(super) fn expire_ask(&mut self, around: &mut Around<'_>) {
        let now_ns = around.now.boot_ns;
        let silent = self.borrowing.ask.as_ref();
        let silent = silent.filter(|ask| now_ns >= ask.due_ns);
        if let Some(silent) = silent.map(|ask| ask.to) {
            self.borrowing.abandon();
            around.out.silent.push(silent);
        }
    }

    /// Takes an answer. One to an ask that was given up brings tokens that go back unused.
    pub fn answered(&mut self, from: Opener, answer: Answer, now_ns: u64) -> Told {
        if answer.at_ns > 0 {
            self.borrowing.answer = Some((from, answer.at_ns, now_ns));
        }
        let asked = self.borrowing.ask.as_ref();
        let asked = asked.filter(|ask| ask.to == from && ask.id == answer.ask);
        let Some((sent_ns, id, wanted)) = asked.map(|ask| (ask.sent_ns, ask.id, ask.wanted)) else {
            self.return_abandoned(from, &answer, now_ns);
            return Told::Nothing;
        };
        if let Some(seen) = answer.seen {
            self.borrowing.seen = Some((seen.state, now_ns));
        }
        match answer.reply {
            Reply::Later => {
                let due_ns = self.later_by_ns(sent_ns, now_ns);
                if let Some(ask) = &mut self.borrowing.ask {
                    ask.due_ns = due_ns;
                }
                return Told::Nothing;
            }
            Reply::NoStore => {
                self.borrowing.ask = None;
                return Told::NoStore;
            }
            Reply::Granted(grant) => {
                self.borrowing.short = Some(grant.amount).filter(|amount| *amount < wanted);
                self.hold(from, id, sent_ns, grant, now_ns);
            }
            Reply::Refused { in_ns } => {
                self.borrowing.refused_until_ns = now_ns.saturating_add(in_ns.max(LOOK_MIN_NS));
                self.borrowing.refused_ns = now_ns;
            }
        }
        self.borrowing.ask = None;
        self.answered_ns = now_ns;
        self.loss.answered();
        let (cells, me) = (&self.meter.cells, self.place.me);
        self.loss.over(cells, me, now_ns, false);
        Told::Served
    }

    /// A peer's link ended: what it was asked may never be answered. Whether it was asked.
    pub fn peer_lost(&mut self, peer: Opener) -> bool {
        let asked = self
            .borrowing
            .ask
            .as_ref()
            .is_some_and(|ask| ask.to == peer);
        if asked {
            self.borrowing.abandon();
        }
        asked
    }

    /// A peer has heard what became of its part.
    pub fn heard(&mut self, from: Opener, part: u64) {
        let unheard = &mut self.borrowing.unheard;
        unheard.retain(|told| !(told.to == from && told.report.part == part));
    }

    /// Puts a part that a peer lent into a free cell; without one it goes back whole.
    fn hold(&mut self, from: Opener, id: u64, sent_ns: u64, grant: Grant, now_ns: u64) {
        let Grant {
            amount,
            life_ns,
            sub_ns,
            phase_ns,
        } = grant;
        let end_ns = sent_ns.saturating_add(life_ns);
        let block = Candidate {
            id,
            amount,
            span: Span::new(sent_ns, end_ns, sub_ns, phase_ns),
            unix_s: 0,
        };
        self.borrowing.refused_until_ns = 0;
        match self.free_cell().filter(|_| now_ns < end_ns) {
            Some(cell) => {
                let mut part = Part::new(block, Source::Peer(from), cell);
                self.lend_of_new(&mut part, now_ns);
                self.fill(part, now_ns);
            }
            None => self.tell_unused(from, id, amount, now_ns),
        }
    }

    fn return_abandoned(&mut self, from: Opener, answer: &Answer, now_ns: u64) {
        let abandoned = &mut self.borrowing.abandoned;
        let at = abandoned
            .iter()
            .position(|known| *known == (from, answer.ask));
        if let (Some(at), Reply::Granted(grant)) = (at, answer.reply) {
            abandoned.remove(at);
            self.tell_unused(from, answer.ask, grant.amount, now_ns);
        }
    }

    fn tell_unused(&mut self, to: Opener, part: u64, rest: u64, now_ns: u64) {
        let report = Report {
            part,
            spends: Spends::default(),
            rest,
        };
        self.borrowing.unheard.push(Unheard {
            to,
            report,
            again_ns: now_ns,
            until_ns: now_ns.saturating_add(USEFUL_NS),
        });
    }

    /// Lets go of borrowed parts that are final, and tells what became of them until it is heard.
    pub(super) fn give_back(&mut self, around: &mut Around<'_>) {
        let now_ns = around.now.boot_ns;
        let cells = &self.meter.cells;
        for part in &self.parts {
            if let (Source::Peer(to), true) = (part.source, part.is_final(now_ns)) {
                part.account(&self.meter.shared.stats);
                let drawn = part.drawn(cells, now_ns);
                self.drawn_before = self.drawn_before.saturating_add(drawn);
                self.borrowing.unheard.push(Unheard {
                    to,
                    report: part.report(cells),
                    again_ns: now_ns,
                    until_ns: part.block.span.end_ns.saturating_add(USEFUL_NS),
                });
            }
        }
        self.parts
            .retain(|part| part.source == Source::Store || !part.is_final(now_ns));
        self.borrowing.unheard.retain(|told| told.until_ns > now_ns);
        for told in &mut self.borrowing.unheard {
            if told.again_ns <= now_ns {
                told.again_ns = now_ns.saturating_add(AGAIN_NS);
                around.out.words.push((told.to, Word::Report(told.report)));
            }
        }
    }

    fn publish_borrowed(&self, around: &Around<'_>) {
        let now_ns = around.now.boot_ns;
        let until_ns = self.borrowing.refused_until_ns;
        let refused = self.meter.in_hand(now_ns) == 0 && now_ns < until_ns;
        let verdict = match refused {
            true => Verdict::Refuse {
                until_ns,
                cause: Cause::Empty,
            },
            false => Verdict::Ask,
        };
        self.publish(&self.last_seen(around), around, verdict, Mode::Store);
    }

    fn next_borrowing_ns(&mut self, now_ns: u64, hungry: bool, waiting: u64) -> u64 {
        let mut looks = vec![u64::MAX];
        let expects = self.is_steady(self.demand.expected());
        for part in &self.parts {
            let end_ns = part.block.span.end_ns;
            looks.push(match part.closed {
                Some(_) => part.final_by_ns(),
                None => end_ns,
            });
            let ahead_ns = end_ns.saturating_sub(life_ns(&self.spec) / 4);
            if part.closed.is_none() && expects && ahead_ns > now_ns {
                looks.push(ahead_ns);
            }
        }
        let wanted = expects || waiting > 0 || self.lending.wanted() > 0;
        if wanted && self.borrowing.ask.is_none() {
            looks.push(self.borrowing.refused_until_ns);
        }
        looks.extend(self.grace_over_ns().filter(|_| hungry));
        if self.borrowing.seen.is_some() {
            let idle_ns = self
                .used_ns
                .saturating_add(self.slowest_ns().saturating_mul(2));
            if now_ns >= idle_ns {
                self.borrowing.seen = None;
            }
            looks.push(idle_ns);
        }
        let later = looks.into_iter().filter(|at_ns| *at_ns > now_ns).min();
        later
            .unwrap_or(u64::MAX)
            .max(now_ns.saturating_add(LOOK_MIN_NS))
    }

    /// When something is to be said to peers again, or should have been answered.
    pub(super) fn next_word_ns(&self, now_ns: u64) -> u64 {
        let again = self.borrowing.unheard.iter().map(|told| told.again_ns);
        let due = self.borrowing.ask.iter().map(|ask| ask.due_ns);
        let next = again
            .chain(due)
            .chain(self.lending.expires_ns(self.spec.hold().is_some()))
            .min();
        next.map_or(u64::MAX, |at_ns| {
            at_ns.max(now_ns.saturating_add(LOOK_MIN_NS))
        })
    }
}
