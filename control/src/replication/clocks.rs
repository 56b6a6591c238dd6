//! The clocks of two regions, compared while one follows the other. Shown and logged; nothing is
//! decided by it: versions are ordered by number and epoch.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use proto::beat::SKEW_MAX;
use proto::wire::replication::{Answer, Ask, PROTOCOL_CLOCK};
use tracing::{error, info};

use super::connection::Connection;
use super::{Broken, Replication};

/// How often they are compared.
const EVERY: Duration = Duration::from_secs(10);

/// When the clock of a region is to be asked for next.
#[derive(Debug, Default)]
pub(super) struct Comparing(Option<Instant>);

impl Replication {
    /// Compares the clock here with that of the region which is asked, where it is time for it.
    ///
    /// # Errors
    /// The connection broke.
    pub(super) async fn compare_clocks(
        &self,
        connection: &mut Connection,
        comparing: &mut Comparing,
    ) -> Result<(), Broken> {
        let is_due = comparing.0.is_none_or(|last| last.elapsed() >= EVERY);
        if !is_due || connection.protocol() < PROTOCOL_CLOCK {
            return Ok(());
        }
        comparing.0 = Some(Instant::now());
        let (asked, begun) = (Timestamp::now(), Instant::now());
        let Answer::Clock { unix_us } = connection.ask(&Ask::Clock, Duration::ZERO).await? else {
            return Err(Broken::Protocol);
        };
        let ahead_ms = ahead_ms(unix_us, asked, begun.elapsed());
        let region = connection.peer();
        let mut before = None;
        self.status.follow(region, |of| {
            before = of.clock_ahead_ms.replace(ahead_ms);
        });
        let (was, is) = (before.is_some_and(is_skewed), is_skewed(ahead_ms));
        if is && !was {
            error!(
                region,
                ahead_ms,
                "the clock of region {region} is {ahead_ms} ms ahead of that of this machine: set \
                 both by NTP; until then keys expire and days begin at different times"
            );
        } else if was && !is {
            info!(
                region,
                ahead_ms, "the clocks of region {region} and here agree again"
            );
        }
        Ok(())
    }
}

/// By how many milliseconds a clock is ahead that told `unix_us` somewhere on the way of an ask
/// which took so long: it is taken to be half of it, as NTP does (RFC 5905 §8).
fn ahead_ms(unix_us: i64, asked: Timestamp, took: Duration) -> i64 {
    let half_us = i64::try_from(took.as_micros() / 2).unwrap_or(i64::MAX);
    let here_us = asked.as_microsecond().saturating_add(half_us);
    unix_us.saturating_sub(here_us) / 1_000
}

/// Whether clocks are so far apart that it is told.
pub fn is_skewed(ahead_ms: i64) -> bool {
    u128::from(ahead_ms.unsigned_abs()) > SKEW_MAX.as_millis()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_the_way_is_there() {
        let asked = Timestamp::from_microsecond(10_000_000).unwrap();
        for (told_us, took_ms, expected) in [
            (10_050_000, 100, 0),
            (310_050_000, 100, 300_000),
            (10_050_000 - 300_000_000, 100, -300_000),
            (i64::MAX, 0, (i64::MAX - 10_000_000) / 1_000),
            (i64::MIN, 100, i64::MIN / 1_000),
        ] {
            let found = ahead_ms(told_us, asked, Duration::from_millis(took_ms));
            assert_eq!(found, expected, "{told_us} {took_ms}");
        }
        assert!(is_skewed(-2_001) && !is_skewed(2_000) && is_skewed(i64::MIN));
    }
}
