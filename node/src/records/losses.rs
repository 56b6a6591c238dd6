//! Says that records are lost without a line for each batch of them.

use std::time::{Duration, Instant};

/// Shortest time between two lines.
const SILENCE: Duration = Duration::from_secs(60);

/// Records that were lost and that nobody was told of.
#[derive(Debug, Default)]
pub struct Losses {
    untold: u64,
    silent_until: Option<Instant>,
}

impl Losses {
    /// Notes so many lost records. When it is time to say something: how many were lost since
    /// the last time.
    pub fn note(&mut self, records: u64, now: Instant) -> Option<u64> {
        self.untold = self.untold.saturating_add(records);
        if self.silent_until.is_some_and(|until| now < until) {
            return None;
        }
        self.silent_until = Some(now + SILENCE);
        Some(std::mem::take(&mut self.untold))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_loss_is_told_at_once_and_later_ones_together() {
        let begun = Instant::now();
        let mut losses = Losses::default();
        assert_eq!(losses.note(3, begun), Some(3));
        assert_eq!(losses.note(4, begun + SILENCE / 3), None);
        assert_eq!(losses.note(5, begun + SILENCE / 2), None);
        assert_eq!(losses.note(1, begun + SILENCE), Some(10));
        assert_eq!(losses.note(1, begun + SILENCE), None);
    }
}
