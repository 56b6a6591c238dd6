//! A key while nobody gives tokens for it: what its meter does without owner and store.

use std::sync::atomic::Ordering;

use super::{
    Around, Candidate, Cause, LATE_NS, LOOK_MIN_NS, Mode, Owner, Part, Source, State, StoreLoss,
    Verdict, life_now_ns,
};

/// A view older than its node's last contact by more than this is not fresh.
const FRESH_NS: u64 = 1_000_000_000;
/// What is said of a meter without a store holds for so long.
const SAID_LOST_NS: u64 = 100_000_000;

/// What a node gives of its share.
enum OnCredit {
    /// A part of it.
    Given,
    /// There is one, of which the next token comes in this time.
    UsedUp { in_ns: u64 },
    /// It has none, or cannot know what it is.
    Nothing,
}

/// Of a share that has no token left, of a state as it was seen last.
fn used_up(seen: &State, share: &State, unix_ns: u64) -> OnCredit {
    let has_none = share.limits.iter().any(|usage| usage.limit == 0);
    match has_none {
        // Nothing was left for anybody; what it was of comes back by and by.
        true if seen.free() == 0 => OnCredit::UsedUp {
            in_ns: seen.free_in(1, unix_ns).0,
        },
        true => OnCredit::Nothing,
        false => OnCredit::UsedUp {
            in_ns: share.free_in(1, unix_ns).0,
        },
    }
}

impl Owner {
    /// Whether nothing has been heard yet of what the store holds of the key.
    pub fn is_unread(&self) -> bool {
        self.answered_ns == 0
    }

    /// When it was heard last.
    pub fn heard_ns(&self) -> u64 {
        self.answered_ns
    }

    /// The store still held the newest known state at `now_ns`.
    pub fn confirmed(&mut self, now_ns: u64) {
        self.answered_ns = now_ns;
    }

    /// Whether it gives anything without its owner and the store.
    pub(super) fn shares(&self) -> bool {
        self.spec.store_loss() != StoreLoss::FailClosed
    }

    /// Is not looked at before an instant, unless somebody has waited for the whole grace by then.
    pub fn put_off(&mut self, ready_ns: u64, now_ns: u64) {
        let look_ns = self.look_ns.max(ready_ns);
        // Who has nothing to give, or gives it already, has no reason to look.
        let gives = self.shares() && !self.loss.is_lost();
        let over_ns = self.grace_over_ns().filter(|_| gives);
        let over_ns = over_ns.map(|at_ns| at_ns.max(now_ns.saturating_add(LOOK_MIN_NS)));
        self.look_ns = look_ns.min(over_ns.unwrap_or(u64::MAX));
    }

    /// When whoever waits has waited for the whole grace; `None` where nobody waits.
    pub(super) fn grace_over_ns(&self) -> Option<u64> {
        let since_ns = self.loss.dry_since_ns()?;
        Some(since_ns.saturating_add(self.place.grace_ns))
    }

    /// Notes whether tokens are missed, and counts the time without anybody who gives any.
    pub(super) fn note_missed(&mut self, now_ns: u64, missed: bool, in_hand: u64) {
        let grace_ns = self.place.grace_ns;
        let lost_ns = self.loss.note(now_ns, missed, in_hand, grace_ns);
        let does = self.spec.store_loss();
        self.loss.tell(&self.meter, does, self.answered_ns);
        if lost_ns > 0 {
            let degraded = self.meter.shared.stats.degraded_ns(self.spec.store_loss());
            degraded.fetch_add(lost_ns, Ordering::Relaxed);
        }
    }

    /// A look while a write is on its way, or while the store does not answer.
    pub(super) fn without_answer(&mut self, around: &mut Around<'_>, hungry: bool) {
        let now_ns = around.now.boot_ns;
        let mut looks: Vec<u64> = self.live_end_ns().into_iter().collect();
        if self.loss.is_lost() {
            let state = self.last_seen(around);
            let (loss, dry) = (self.spec.store_loss(), self.meter.in_hand(now_ns) == 0);
            let local = loss == StoreLoss::LocalShare && !around.leaving;
            if loss == StoreLoss::FailOpen && !around.leaving && (dry || hungry) {
                self.publish_open(around, state);
            } else if dry {
                match local.then(|| self.give_credit(around, &state)) {
                    Some(OnCredit::Given) => {}
                    Some(OnCredit::UsedUp { in_ns }) => self.publish_used_up(around, state, in_ns),
                    Some(OnCredit::Nothing) | None => self.publish_lost(around, state),
                }
            }
            if self.meter.waiting.load(Ordering::Relaxed) > 0 {
                looks.push(now_ns.saturating_add(SAID_LOST_NS));
            }
            looks.extend(self.live_end_ns());
        } else if let (true, Some(over_ns)) = (hungry, self.grace_over_ns()) {
            looks.push(over_ns);
            looks.push(now_ns.saturating_add(LATE_NS));
        }
        let earliest = looks.into_iter().min().unwrap_or(u64::MAX);
        self.look_ns = earliest.max(now_ns.saturating_add(LOOK_MIN_NS));
    }

    /// Gives a part on credit.
    fn give_credit(&mut self, around: &mut Around<'_>, state: &State) -> OnCredit {
        let now_ns = around.now.boot_ns;
        // Alone, nobody else can have used anything since; else the view must be a fresh one.
        let seen_ns = self.answered_ns;
        let fresh = around.nodes <= 1 || seen_ns.saturating_add(FRESH_NS) >= around.contact_ns;
        let (true, Some(cell)) = (seen_ns > 0 && fresh, self.free_cell()) else {
            return OnCredit::Nothing;
        };
        let me = self.place.me;
        self.loss.pass(now_ns, around.now.unix_s(), me);
        let uncertain = self
            .candidates
            .iter()
            .map(|candidate| candidate.amount)
            .sum();
        let nodes = around.nodes;
        let share = self
            .loss
            .share(state, uncertain, nodes, around.next_id, now_ns);
        around.next_id += 1;
        let Some(share) = share else {
            return OnCredit::Nothing;
        };
        let waiting = self.meter.waiting.load(Ordering::Relaxed);
        let amount = self.wanted(true, waiting, 1, now_ns).min(share.free());
        let life_ns = life_now_ns(&self.spec, around.now, self.place.max_skew_ns, 1);
        if amount == 0 {
            return used_up(state, &share, around.now.unix_ns);
        }
        if life_ns == 0 {
            return OnCredit::Nothing;
        }
        let block = Candidate {
            amount,
            ..self.block(around, state, life_ns)
        };
        around.next_id += 1;
        let part = Part::new(block, Source::Store, cell);
        self.open_cell(&part);
        self.loss.add(part, me, now_ns);
        self.publish(state, around, Verdict::Ask, Mode::LocalShare);
        self.point(now_ns);
        self.meter.answered.notify_waiters();
        OnCredit::Given
    }

    /// What was given on credit is forgotten when its windows have passed, and not before. That the
    /// store is lost is over as soon as it can be asked again.
    pub(super) fn look_for_credit(&mut self, now_ns: u64) {
        let does = self.spec.store_loss();
        self.loss.tell(&self.meter, does, self.answered_ns);
        if self.loss.has_credit() {
            let passed_ns = now_ns.saturating_add(self.slowest_ns().saturating_mul(2));
            self.look_ns = self.look_ns.min(passed_ns);
        }
    }

    fn publish_open(&self, around: &Around<'_>, state: State) {
        let until_ns = around.now.boot_ns.saturating_add(SAID_LOST_NS);
        self.publish(&state, around, Verdict::Pass { until_ns }, Mode::Open);
    }

    /// The limit is used up as far as this node may give of it: that is no fault of the store.
    fn publish_used_up(&self, around: &Around<'_>, state: State, in_ns: u64) {
        let wait_ns = in_ns.clamp(LOOK_MIN_NS, SAID_LOST_NS);
        let verdict = Verdict::Refuse {
            until_ns: around.now.boot_ns.saturating_add(wait_ns),
            cause: Cause::Empty,
        };
        self.publish(&state, around, verdict, Mode::LocalShare);
    }

    pub(super) fn publish_lost(&mut self, around: &Around<'_>, state: State) {
        let until_ns = around.now.boot_ns.saturating_add(SAID_LOST_NS);
        let verdict = Verdict::Refuse {
            until_ns,
            cause: Cause::StoreLost,
        };
        self.publish(&state, around, verdict, Mode::Lost);
    }
}
