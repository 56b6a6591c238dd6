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
/// An exchange that took longer says too little: the clock may have been told anywhere within.
const TOOK_MAX: Duration = Duration::from_secs(1);
/// A skew that was logged ends here, below where it begins, so that clocks about there are not
/// logged every ten seconds.
const SKEW_END: Duration = Duration::from_millis(1_500);

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
        connection: &Connection,
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
        let Some(ahead_ms) = sample(unix_us, asked, begun.elapsed()) else {
            return Ok(());
        };
        let region = connection.peer();
        let (mut was, mut is) = (false, false);
        self.status.follow(region, |of| {
            of.clock_ahead_ms = Some(ahead_ms);
            was = of.clock_skewed;
            is = stays_skewed(was, ahead_ms);
            of.clock_skewed = is;
        });
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

/// What an exchange says that took so long; nothing where that was too long.
fn sample(unix_us: i64, asked: Timestamp, took: Duration) -> Option<i64> {
    (took <= TOOK_MAX).then(|| ahead_ms(unix_us, asked, took))
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
    is_beyond(ahead_ms, SKEW_MAX)
}

/// The same for the log, where they `were` before.
fn stays_skewed(were: bool, ahead_ms: i64) -> bool {
    match were {
        true => is_beyond(ahead_ms, SKEW_END),
        false => is_skewed(ahead_ms),
    }
}

fn is_beyond(ahead_ms: i64, most: Duration) -> bool {
    u128::from(ahead_ms.unsigned_abs()) > most.as_millis()
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

    #[test]
    fn a_long_exchange_says_nothing() {
        let asked = Timestamp::from_microsecond(10_000_000).unwrap();
        let told = |took_ms| sample(10_500_000, asked, Duration::from_millis(took_ms));
        assert_eq!(told(1_000), Some(0));
        assert_eq!(told(1_001), None);
    }

    #[test]
    fn a_skew_that_is_logged_ends_below_where_it_begins() {
        let mut skewed = false;
        for (ahead_ms, expected) in [
            (1_990, false),
            (2_010, true),
            (1_990, true),
            (-1_501, true),
            (-1_500, false),
            (-1_990, false),
        ] {
            skewed = stays_skewed(skewed, ahead_ms);
            assert_eq!(skewed, expected, "{ahead_ms}");
        }
    }
}
