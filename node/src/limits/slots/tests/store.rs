//! The store of the simulation: writes that are lost, late or unanswered, straight or relayed by a
//! peer.

use proto::store::{At, KeyValue, Revision, StoreError, Txn, TxnOutcome};

use super::world::{MS, Mutant, SECOND, World};
use crate::limits::Opener;
use crate::limits::revision_clock::Asking;
use crate::limits::slots::run;
use crate::limits::slots::state::SlotState;
use crate::limits::tests::memory::Memory;

/// A call to the store ends after this time.
const TIMEOUT_NS: u64 = SECOND;
/// A peer is asked as well when the store takes so long.
const LATE_NS: u64 = 100 * MS;

/// The store, and what is on its way to it.
pub struct Shared {
    memory: Memory,
    executions: Vec<Execution>,
    pub gone_until_ns: u64,
    writes: u64,
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            memory: Memory::new(),
            executions: Vec::new(),
            gone_until_ns: 0,
            writes: 0,
        }
    }
}

/// How a node reaches the store.
#[derive(Default)]
pub struct Link {
    pub cut_until_ns: u64,
    /// Until when it reaches no peer either.
    pub alone_until_ns: u64,
    /// The write that it waits for, and how many copies of it have not failed.
    pending: Option<(u64, u8)>,
}

struct Execution {
    at_ns: u64,
    txn: Txn,
    by: Opener,
    write: u64,
    asking: Asking,
    /// When the caller hears; `None`: never.
    answer_ns: Option<u64>,
}

/// What a node hears of a write.
pub struct Answer {
    pub at_ns: u64,
    write: u64,
    asking: Asking,
    txn: Txn,
    result: Result<TxnOutcome, StoreError>,
}

impl Shared {
    pub fn next_ns(&self) -> u64 {
        let due = self.executions.iter().map(|execution| execution.at_ns);
        due.min().unwrap_or(u64::MAX)
    }
}

impl World {
    /// Sends a write of a node, and another copy through a peer where the store is late.
    pub fn send(&mut self, at: usize, txn: Txn) {
        let now_ns = self.now_ns;
        self.store.writes += 1;
        let write = self.store.writes;
        let relays = self.plan.linked
            && self.plan.nodes > 1
            && now_ns >= self.nodes[at].link.alone_until_ns
            && !self.chance.percent(self.plan.faults.peer_lost);
        let straight_ns = self.copy(at, &txn, write, 0);
        let mut copies = 1;
        if relays && straight_ns > now_ns + LATE_NS {
            copies = 2;
            self.copy(at, &txn, write, LATE_NS);
        }
        self.nodes[at].link.pending = Some((write, copies));
    }

    /// One copy of a write; a relayed one leaves later. When its answer comes.
    fn copy(&mut self, at: usize, txn: &Txn, write: u64, later_ns: u64) -> u64 {
        let (now_ns, faults) = (self.now_ns + later_ns, self.plan.faults);
        let node = &self.nodes[at];
        let (by, asking) = (node.me, node.proofs.asking());
        let cut = later_ns == 0 && now_ns < node.link.cut_until_ns;
        let trip_ns = self
            .chance
            .within(self.plan.trip_ns / 10, self.plan.trip_ns);
        let back_ns = match self.chance.percent(faults.late) {
            true => self.chance.within(0, 900 * MS),
            false => trip_ns,
        };
        let roll = self.chance.within(0, 100);
        let (lost, unanswered, late) = (faults.lost, faults.unanswered, faults.late);
        let mut execution = Execution {
            at_ns: now_ns + trip_ns,
            txn: txn.clone(),
            by,
            write,
            asking,
            answer_ns: Some(now_ns + trip_ns + back_ns),
        };
        if cut || now_ns < self.store.gone_until_ns || roll < lost {
            self.unknown(at, &execution, now_ns + TIMEOUT_NS);
            return now_ns + TIMEOUT_NS;
        }
        if roll < lost + unanswered {
            execution.answer_ns = None;
            self.unknown(at, &execution, now_ns + TIMEOUT_NS);
        } else if roll < lost + unanswered + late {
            // It is carried out after the caller gave up.
            execution.answer_ns = None;
            execution.at_ns = now_ns + self.chance.within(500 * MS, 12 * SECOND);
            self.unknown(at, &execution, now_ns + TIMEOUT_NS);
        }
        let answer_ns = execution.answer_ns.unwrap_or(now_ns + TIMEOUT_NS);
        self.store.executions.push(execution);
        answer_ns
    }

    fn unknown(&mut self, at: usize, execution: &Execution, at_ns: u64) {
        let result = Err(StoreError::OutcomeUnknown("no answer".into()));
        self.nodes[at].answers.push(Answer {
            at_ns,
            write: execution.write,
            asking: execution.asking,
            txn: execution.txn.clone(),
            result,
        });
    }

    /// Carries out what has reached the store.
    pub fn execute(&mut self) {
        let now_ns = self.now_ns;
        let due = self
            .store
            .executions
            .extract_if(.., |it| it.at_ns <= now_ns);
        let mut due: Vec<_> = due.collect();
        due.sort_by_key(|execution| execution.at_ns);
        for execution in due {
            let outcome = self.store.memory.txn(&execution.txn);
            if matches!(outcome, TxnOutcome::Committed(_)) {
                self.judge.renewed(execution.by, now_ns);
            }
            let node = self.nodes.iter_mut().find(|node| node.me == execution.by);
            if let (Some(node), Some(at_ns)) = (node, execution.answer_ns) {
                node.answers.push(Answer {
                    at_ns,
                    write: execution.write,
                    asking: execution.asking,
                    txn: execution.txn,
                    result: Ok(outcome),
                });
            }
        }
    }

    /// Gives a node the answers that have come: of a write the first good one, or the last bad one.
    pub fn hear(&mut self, at: usize) {
        let now_ns = self.now_ns;
        let node = &mut self.nodes[at];
        let come = node.answers.extract_if(.., |it| it.at_ns <= now_ns);
        let mut come: Vec<_> = come.collect();
        come.sort_by_key(|answer| answer.at_ns);
        for answer in come {
            let Some((write, copies)) = self.nodes[at].link.pending else {
                continue;
            };
            if write != answer.write {
                continue;
            }
            if answer.result.is_err() && copies > 1 {
                self.nodes[at].link.pending = Some((write, copies - 1));
                continue;
            }
            self.nodes[at].link.pending = None;
            self.told(at, answer);
        }
    }

    fn told(&mut self, at: usize, answer: Answer) {
        let mut result = answer.result;
        if result.is_err() {
            result = match self.plan.mutant {
                Some(Mutant::BlindOutcome) => {
                    Ok(TxnOutcome::Committed(Revision(self.store.memory.revision)))
                }
                Some(Mutant::RetriedBlindly) => {
                    let again = Txn {
                        compares: Vec::new(),
                        ..answer.txn
                    };
                    Ok(self.store.memory.txn(&again))
                }
                _ => result,
            };
        }
        if self.plan.mutant == Some(Mutant::WallClock)
            && let Ok(TxnOutcome::Conflict(seen)) = &mut result
        {
            let ahead_ns = self.chance.within(0, 9 * SECOND);
            make_old(seen, self.nodes[at].me, ahead_ns);
        }
        let node = &mut self.nodes[at];
        let own_ns = self.now_ns + node.offset_ns;
        let revision = result.as_ref().ok().map(TxnOutcome::revision);
        if let Some(revision) = revision {
            node.proofs.answered(answer.asking, own_ns, revision);
        }
        let Some(taker) = &mut node.taker else { return };
        run::answer(taker, result, own_ns);
        node.reschedule();
    }
}

/// Makes what others hold look older than it is.
fn make_old(seen: &mut At<Vec<Option<KeyValue>>>, me: Opener, ahead_ns: u64) {
    for pair in seen.value.iter_mut().flatten() {
        let mut state = SlotState::decode(&pair.value).expect("a state of ours");
        state.pass(ahead_ns, me);
        pair.value = state.encode().expect("a small state").into();
    }
}
