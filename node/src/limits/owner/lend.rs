//! Tokens for peers: who asks, who gets how many of a block, what they are told.

use std::collections::HashMap;
use std::sync::atomic::Ordering;

use super::divide::{Party, divide};
use super::{Around, Owner, Part, SCARCE, Verdict};
use crate::limits::block::Opener;
use crate::limits::cell::Span;
use crate::limits::exchange::{Answer, Ask, Grant, Reply, Report, Seen, Word};

/// A part with less life than this is not worth the way.
const LIFE_MIN_NS: u64 = 20_000_000;
/// How long a peer is taken to wait for an answer.
const PENDING_NS: u64 = 2_000_000_000;
/// For so long after a relayed ask this node takes from the store, whoever owns the key.
const RELAYED_NS: u64 = 1_000_000_000;
/// Asks for callers that are held wait for tokens that come so soon.
const QUEUED_NS: u64 = 1_000_000_000;
/// Who waits so is told again after this time that it still does.
const STILL_NS: u64 = 100_000_000;
/// Starts of nodes whose newest ask is known; beyond it all are forgotten.
const ASKERS_MAX: usize = 1_024;

/// What peers have of this node.
#[derive(Debug, Default)]
pub(super) struct Lending {
    /// One of each peer.
    pending: Vec<Pending>,
    /// Newest ask of each: an ask that comes twice is granted once.
    newest: HashMap<Opener, u64>,
    words: Vec<(Opener, Word)>,
    relayed_until_ns: u64,
    /// Tokens lent so far.
    pub(super) lent: u64,
    /// What the last look decided.
    pub(super) verdict: Option<Verdict>,
}

#[derive(Clone, Copy, Debug)]
struct Pending {
    from: Opener,
    id: u64,
    wanted: u64,
    /// Others wait for the asker: it is not for this node to ask anybody further.
    relayed: bool,
    received_ns: u64,
    /// When it was last told to wait.
    told_ns: Option<u64>,
}

impl Lending {
    /// Whether nobody waits and nothing is to be said.
    pub(super) fn is_empty(&self) -> bool {
        self.pending.is_empty() && self.words.is_empty()
    }

    /// Peers that have been told to wait.
    pub(super) fn waiting(&self) -> Vec<Opener> {
        self.pending.iter().map(|pending| pending.from).collect()
    }

    /// Tokens that peers wait for.
    pub(super) fn wanted(&self) -> u64 {
        let wanted = self.pending.iter().map(|pending| pending.wanted);
        wanted.fold(0, u64::saturating_add)
    }

    /// When the oldest wait is over, or who waits is to be told that it still does.
    pub(super) fn expires_ns(&self, holds: bool) -> Option<u64> {
        let held = self.pending.iter().filter(|_| holds);
        let again = held.filter_map(|pending| pending.told_ns);
        let again = again.map(|told_ns| told_ns.saturating_add(STILL_NS));
        let all = self.pending.iter();
        let over = all.map(|pending| pending.received_ns.saturating_add(PENDING_NS));
        again.chain(over).min()
    }
}

impl Owner {
    /// A peer asks. An ask that is not newer than all of its earlier ones came twice or late.
    pub fn asked(&mut self, from: Opener, ask: &Ask, now_ns: u64) {
        let lending = &mut self.lending;
        if lending
            .newest
            .get(&from)
            .is_some_and(|newest| ask.id <= *newest)
        {
            return;
        }
        if lending.newest.len() >= ASKERS_MAX {
            lending.newest.clear();
        }
        lending.newest.insert(from, ask.id);
        lending.pending.retain(|pending| pending.from != from);
        lending.pending.push(Pending {
            from,
            id: ask.id,
            wanted: ask.wanted,
            relayed: ask.relayed,
            received_ns: now_ns,
            told_ns: None,
        });
        if ask.relayed {
            lending.relayed_until_ns = now_ns.saturating_add(RELAYED_NS);
        }
        self.used_ns = now_ns;
    }

    /// A peer says what became of a part. It is heard even where nothing is known of the part.
    pub fn reported(&mut self, from: Opener, report: Report) {
        for part in &mut self.parts {
            if part.take_report(from, report) {
                break;
            }
        }
        let word = Word::Heard { part: report.part };
        self.lending.words.push((from, word));
    }

    /// Where somebody has relayed an ask to this node it takes from the store itself; a node that
    /// cannot says so at once, and goes on asking for what it wants itself. (It may well be the
    /// asker that it asks: whoever is cut from the store is still the first owner for its peers.)
    pub(super) fn take_relayed(&mut self, around: &mut Around<'_>) {
        if around.now.boot_ns >= self.lending.relayed_until_ns {
            return;
        }
        if around.has_store() {
            around.supplier = None;
            return;
        }
        let pending = std::mem::take(&mut self.lending.pending);
        let (relayed, rest): (Vec<_>, Vec<_>) = pending.into_iter().partition(|p| p.relayed);
        self.lending.pending = rest;
        for pending in relayed {
            self.lending.say(pending, Reply::NoStore);
        }
    }

    /// Lends of a block that nobody has yet: to each who waits, our own included, what it wants
    /// or its share of what there is.
    pub(super) fn lend_of_new(&mut self, part: &mut Part, now_ns: u64) {
        let waiting = self.meter.waiting.load(Ordering::Relaxed);
        // As peers reckon what they want when there is little; what nobody gets is ours anyway.
        let expected = self.local.expected() / SCARCE;
        let own = waiting.max(expected.saturating_add(expected / 4));
        let since_ns = self.loss.dry_since_ns().unwrap_or(u64::MAX);
        let ours = Party::held(&self.held_here(), own, since_ns);
        let theirs = self.lending.pending.iter();
        let theirs = theirs.map(|p| self.held.party(p.from, p.wanted, p.received_ns, now_ns));
        let parties: Vec<Party> = theirs.chain([ours]).collect();
        let shares = divide(part.block.amount, self.meter.estimate(), &parties);
        let pending = std::mem::take(&mut self.lending.pending);
        for (pending, share) in pending.into_iter().zip(shares) {
            match share {
                0 => self.lending.pending.push(pending),
                share => self.lend(part, pending, share),
            }
        }
    }

    /// Lends of a part's tokens, which are out of its cell.
    fn lend(&mut self, part: &mut Part, pending: Pending, amount: u64) {
        self.lending.lent = self.lending.lent.saturating_add(amount);
        let own = part.block.span;
        let sub_ns = own.sub_ns.max(1);
        let life_ns = own.end_ns.saturating_sub(pending.received_ns);
        let phase_ns = pending.received_ns.saturating_sub(own.origin_ns) % sub_ns;
        part.lent.push(super::Lent {
            to: pending.from,
            id: pending.id,
            amount,
            span: Span::new(pending.received_ns, own.end_ns, sub_ns, phase_ns),
            report: None,
        });
        let reply = Reply::Granted(Grant {
            amount,
            life_ns,
            sub_ns,
            phase_ns,
        });
        self.lending.say(pending, reply);
    }

    /// Answers who can be answered now: with tokens at hand, or why there are none.
    pub(super) fn answer_asks(&mut self, around: &mut Around<'_>) {
        let now_ns = around.now.boot_ns;
        self.lend_at_hand(now_ns);
        let reply = self.reply_without(around);
        let holds = self.spec.hold().is_some();
        let waits = |p: &Pending| now_ns < p.received_ns.saturating_add(PENDING_NS);
        let mut pending = std::mem::take(&mut self.lending.pending);
        pending.retain(waits);
        for mut pending in pending {
            match reply {
                // It asks anew: what it is told to wait for comes in its own time.
                Reply::Later if holds && now_ns >= pending.received_ns + PENDING_NS / 2 => {
                    self.lending.say(pending, Reply::Refused { in_ns: 0 });
                }
                Reply::Later => {
                    let due = pending
                        .told_ns
                        .is_none_or(|told_ns| holds && now_ns >= told_ns.saturating_add(STILL_NS));
                    if due {
                        pending.told_ns = Some(now_ns);
                        self.lending.say(pending, reply);
                    }
                    self.lending.pending.push(pending);
                }
                _ => self.lending.say(pending, reply),
            }
        }
        self.lending.verdict = None;
        let seen = self.seen();
        let own = self.held_here();
        for (to, mut word) in std::mem::take(&mut self.lending.words) {
            if let Word::Answer(answer) = &mut word {
                answer.at_ns = now_ns;
            }
            if let Word::Answer(answer) = &mut word
                && matches!(answer.reply, Reply::Granted(_) | Reply::Refused { .. })
            {
                answer.seen.clone_from(&seen);
            }
            let answers = matches!(word, Word::Answer(_));
            around.out.words.push((to, word));
            if answers {
                self.tell_elsewhere(to, around, &own);
            }
        }
        self.tell_elsewhere_again(around, &own);
    }

    /// At most half of each part, so that something is left for the next who asks; and nothing to
    /// whose callers came after one of ours that waits: the token at hand is on its way to that.
    fn lend_at_hand(&mut self, now_ns: u64) {
        if self.lending.pending.is_empty() {
            return;
        }
        let mut parts = std::mem::take(&mut self.parts);
        parts.sort_by_key(|part| std::cmp::Reverse(part.block.span.end_ns));
        let worth_ns = now_ns.saturating_add(LIFE_MIN_NS);
        let pending = std::mem::take(&mut self.lending.pending).into_iter();
        let ranked = pending.map(|p| (self.held.first(p.from, p.received_ns, now_ns), p));
        let mut pending: Vec<_> = ranked.collect();
        pending.sort_by_key(|(first, _)| *first);
        let ours = self.held_here();
        let ours = ours.first().map(|first| (first.behind, first.since_ns));
        for (first, pending) in pending {
            if ours.is_some_and(|ours| ours < first) {
                self.lending.pending.push(pending);
                continue;
            }
            let worth =
                |part: &&mut Part| part.closed.is_none() && part.block.span.end_ns > worth_ns;
            let taken = parts.iter_mut().filter(worth).find_map(|part| {
                let cell = self.meter.cells.get(part.cell)?;
                let half = cell.count(now_ns).div_ceil(2);
                let wanted = pending.wanted.min(half);
                // Less than one request takes is of no use there.
                let enough = wanted >= self.meter.estimate().min(pending.wanted);
                let taken = cell.take(if enough { wanted } else { 0 }, now_ns);
                (taken > 0).then_some((part, taken))
            });
            match taken {
                Some((part, taken)) => self.lend(part, pending, taken),
                None => self.lending.pending.push(pending),
            }
        }
        self.parts = parts;
    }

    fn reply_without(&self, around: &Around<'_>) -> Reply {
        let now_ns = around.now.boot_ns;
        let until = |until_ns: u64| Reply::Refused {
            in_ns: until_ns.saturating_sub(now_ns),
        };
        if around.leaving {
            return Reply::NoStore;
        }
        if around.supplier.is_some() {
            let until_ns = self.borrowing.refused_until_ns();
            return match now_ns < until_ns {
                true => until(until_ns),
                false => Reply::Later,
            };
        }
        if !around.store_up || around.late || now_ns < self.blocked_until_ns {
            return Reply::NoStore;
        }
        match self.lending.verdict {
            _ if self.attempt.is_some() => Reply::Later,
            // Who is held waits here for its turn, as our own callers do.
            Some(Verdict::Refuse { until_ns, .. })
                if self.spec.hold().is_some() && until_ns <= now_ns.saturating_add(QUEUED_NS) =>
            {
                Reply::Later
            }
            Some(Verdict::Refuse { until_ns, .. }) if until_ns > now_ns => until(until_ns),
            _ => Reply::Later,
        }
    }

    /// What is used, as the last look published it.
    fn seen(&self) -> Option<Seen> {
        let view = self.meter.view.load();
        let revision = self.expects().map_or(0, |revision| revision.0);
        (view.answered_ns > 0).then(|| Seen {
            state: view.state.clone(),
            revision,
        })
    }
}

impl Lending {
    /// Says something else to a peer.
    pub(super) fn tell(&mut self, to: Opener, word: Word) {
        self.words.push((to, word));
    }

    fn say(&mut self, pending: Pending, reply: Reply) {
        let answer = Answer {
            ask: pending.id,
            reply,
            seen: None,
            at_ns: 0,
        };
        self.words.push((pending.from, Word::Answer(answer)));
    }
}
