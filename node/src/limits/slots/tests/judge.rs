//! The judge: all calls in flight and all that may begin, against the limit.

use std::collections::HashMap;
use std::sync::atomic::Ordering;

use super::world::{Node, Plan, SECOND, TTL_NS};
use crate::limits::Opener;

/// Knows when each incarnation has renewed its slots, on the true clock.
pub struct Judge {
    /// The limit, until it has changed.
    before: u64,
    after: u64,
    /// From then on no call is left of before.
    settled_ns: u64,
    renewed: HashMap<Opener, u64>,
    /// Calls whose slots were lost.
    pub orphans: u64,
}

impl Judge {
    pub fn new(plan: &Plan) -> Self {
        let (at_ns, after) = plan.change.unwrap_or((0, plan.limit));
        let (cut_ns, pause_ns) = (plan.cut_max_ns, plan.faults.pause_max_ns);
        Self {
            before: plan.limit,
            after,
            settled_ns: at_ns + 5 * SECOND + TTL_NS + plan.call_ns + 2 * (cut_ns + pause_ns),
            renewed: HashMap::new(),
            orphans: 0,
        }
    }

    /// The store has taken a write of an incarnation.
    pub fn renewed(&mut self, by: Opener, now_ns: u64) {
        self.renewed.insert(by, now_ns);
    }

    /// Calls in flight, and those that could begin at this very instant, are within the limit.
    pub fn check(&mut self, now_ns: u64, nodes: &mut [Node]) -> Result<(), String> {
        let most = match now_ns < self.settled_ns {
            true => self.before.max(self.after),
            false => self.after,
        };
        let (mut in_flight, mut ready) = (0, 0);
        for node in nodes.iter_mut() {
            let renewed_ns = self.renewed.get(&node.me);
            let over = renewed_ns.is_none_or(|at_ns| now_ns >= at_ns + TTL_NS);
            if over {
                for call in node.calls.iter_mut().filter(|call| !call.orphan) {
                    call.orphan = true;
                    self.orphans += 1;
                }
            }
            let calls = node.calls.iter().filter(|call| !call.orphan).count() as u64;
            in_flight += calls;
            ready += node.ready(now_ns, over);
        }
        if in_flight + ready > most {
            let told: Vec<_> = nodes.iter().map(Node::told).collect();
            return Err(format!(
                "{in_flight} in flight and {ready} at hand of {most} at {now_ns} ns: {told:?}"
            ));
        }
        Ok(())
    }
}

impl Node {
    /// Calls that this node could begin now. Those that it admits when its slots are over, because
    /// its meter says so, are not counted.
    fn ready(&self, now_ns: u64, over: bool) -> u64 {
        let ended = now_ns + self.offset_ns >= self.slots.ends_ns.load(Ordering::Acquire);
        let closed = self.slots.spec.load().is_closed();
        if (closed && ended) || (!closed && over) {
            return 0;
        }
        let most = self.slots.most.load(Ordering::Acquire);
        let granted = self.slots.granted().min(most);
        granted.saturating_sub(self.slots.used())
    }

    fn told(&self) -> String {
        format!(
            "node {} of boot {}: {} calls, {} granted, at most {}",
            self.me.node,
            self.me.boot,
            self.calls.len(),
            self.slots.granted(),
            self.slots.most.load(Ordering::Acquire)
        )
    }
}
