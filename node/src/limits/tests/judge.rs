//! The judge of a simulation: true instants of all sends, against the limits.

use std::collections::VecDeque;

use proto::meter::{Algorithm, Limit};

use crate::limits::window::calendar_window;

/// Knows every send of every node on one clock.
#[derive(Debug)]
pub struct Judge {
    limits: Vec<Limit>,
    /// Newest last; as old as the longest sliding window.
    pub sent: VecDeque<u64>,
    pub total: u64,
    /// Sends of the running calendar windows: (limit, window, sends).
    calendar: Vec<(Limit, i64, u64)>,
}

impl Judge {
    pub fn new(limits: &[Limit]) -> Self {
        let fixed = limits
            .iter()
            .filter(|l| l.algorithm() == Algorithm::FixedWindow);
        let calendar = fixed.map(|limit| (*limit, i64::MIN, 0)).collect();
        Self {
            limits: limits.to_vec(),
            sent: VecDeque::new(),
            total: 0,
            calendar,
        }
    }

    /// A send at a true instant: `unix_s` is the true wall clock.
    pub fn sent(&mut self, now_ns: u64, unix_s: i64) -> Result<(), String> {
        self.sent.push_back(now_ns);
        self.total += 1;
        for (limit, window, sends) in &mut self.calendar {
            let current = calendar_window(limit.window(), unix_s);
            if current != *window {
                (*window, *sends) = (current, 0);
            }
            *sends += 1;
            if *sends > limit.limit() {
                return Err(format!("{sends} sends in one {}", limit.window()));
            }
        }
        self.check(now_ns, 0)
    }

    /// In the closed interval of the window's length that ends now: what was sent, and what could
    /// be sent at this very instant, stays within the limit.
    pub fn check(&mut self, now_ns: u64, sendable: u64) -> Result<(), String> {
        let sliding = self
            .limits
            .iter()
            .filter(|l| l.algorithm() == Algorithm::SlidingWindow);
        for limit in sliding.clone() {
            let from_ns = now_ns.saturating_sub(limit.window().width_ns());
            let at = self.sent.partition_point(|sent_ns| *sent_ns < from_ns);
            let sent = (self.sent.len() - at) as u64;
            if sent + sendable > limit.limit() {
                return Err(format!(
                    "{sent} sent and {sendable} at hand within one {} of {} at {now_ns} ns",
                    limit.window(),
                    limit.limit()
                ));
            }
        }
        let longest_ns = sliding
            .map(|limit| limit.window().width_ns())
            .max()
            .unwrap_or(0);
        while self
            .sent
            .front()
            .is_some_and(|sent_ns| now_ns.saturating_sub(*sent_ns) > longest_ns)
        {
            self.sent.pop_front();
        }
        Ok(())
    }
}
