//! Wrong tokens are answered slowly in number: so many a minute and address, then 429.
//!
//! A right token always passes. Tokens hold 256 random bits, so no number of guesses finds one;
//! what the limit saves is work and log lines. If it held back right tokens too, one client with
//! an expired token behind a shared address would lock everybody out.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

/// Wrong tokens that one address may present in a [`WINDOW`].
const WRONG_MAX: u32 = 10;
/// The length of a window, which begins with its first wrong token.
const WINDOW: Duration = Duration::from_secs(60);
/// Addresses that are remembered; the one whose window began first is forgotten for a new one.
const ADDRESSES_MAX: usize = 4_096;

/// What a wrong token is answered with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// 401.
    Refuse,
    /// 429: come back after so long.
    TooMany(Duration),
}

/// The wrong tokens of the last minute, by address.
#[derive(Debug, Default)]
pub struct Throttle {
    windows: HashMap<IpAddr, Window>,
}

#[derive(Clone, Copy, Debug)]
struct Window {
    began: Instant,
    wrong: u32,
}

impl Throttle {
    /// Counts a wrong token.
    pub fn wrong(&mut self, address: IpAddr, now: Instant) -> Verdict {
        let source = network(address);
        let expired = |window: &Window| now.saturating_duration_since(window.began) >= WINDOW;
        if self.windows.get(&source).is_none_or(expired) {
            self.make_room(now);
            let window = Window {
                began: now,
                wrong: 1,
            };
            self.windows.insert(source, window);
            return Verdict::Refuse;
        }
        let Some(window) = self.windows.get_mut(&source) else {
            return Verdict::Refuse;
        };
        if window.wrong < WRONG_MAX {
            window.wrong += 1;
            return Verdict::Refuse;
        }
        let age = now.saturating_duration_since(window.began);
        Verdict::TooMany(WINDOW.saturating_sub(age))
    }

    /// For how long nothing more of an address is worth a look.
    pub fn too_many(&self, address: IpAddr, now: Instant) -> Option<Duration> {
        let window = self.windows.get(&network(address))?;
        let left = WINDOW.checked_sub(now.saturating_duration_since(window.began))?;
        (window.wrong >= WRONG_MAX && !left.is_zero()).then_some(left)
    }

    fn make_room(&mut self, now: Instant) {
        if self.windows.len() < ADDRESSES_MAX {
            return;
        }
        self.windows
            .retain(|_, window| now.saturating_duration_since(window.began) < WINDOW);
        if self.windows.len() >= ADDRESSES_MAX {
            let oldest = self.windows.iter().min_by_key(|(_, window)| window.began);
            if let Some(address) = oldest.map(|(address, _)| *address) {
                self.windows.remove(&address);
            }
        }
    }
}

/// What counts as one source: an IPv4 address, or an IPv6 /64, which is what one line gets.
pub fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => IpAddr::V4(v4),
            None => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << 64))),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn the_eleventh_wrong_token_of_a_minute_is_too_many() {
        let mut throttle = Throttle::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        for _ in 0..10 {
            assert_eq!(throttle.wrong(address("192.0.2.1"), at(0)), Verdict::Refuse);
        }
        let wait = |seconds| Verdict::TooMany(Duration::from_secs(seconds));
        let left = |source, second| throttle.too_many(address(source), at(second));
        assert_eq!(left("192.0.2.1", 59), Some(Duration::from_secs(1)));
        assert_eq!((left("192.0.2.1", 60), left("192.0.2.2", 1)), (None, None));
        for (source, second, expected) in [
            ("192.0.2.1", 1, wait(59)),
            ("::ffff:192.0.2.1", 59, wait(1)),
            ("192.0.2.2", 59, Verdict::Refuse),
            ("192.0.2.1", 60, Verdict::Refuse),
        ] {
            assert_eq!(
                throttle.wrong(address(source), at(second)),
                expected,
                "{source}"
            );
        }
    }

    #[test]
    fn an_ipv6_line_is_one_source() {
        let mut throttle = Throttle::default();
        let now = Instant::now();
        for n in 0..10 {
            throttle.wrong(address(&format!("2001:db8::{n:x}")), now);
        }
        assert_ne!(
            throttle.wrong(address("2001:db8::ffff"), now),
            Verdict::Refuse
        );
        assert_eq!(
            throttle.wrong(address("2001:db8:0:1::1"), now),
            Verdict::Refuse
        );
    }

    #[test]
    fn memory_is_bounded() {
        let mut throttle = Throttle::default();
        let now = Instant::now();
        for n in 0..(ADDRESSES_MAX as u32 + 100) {
            throttle.wrong(IpAddr::from(n.to_be_bytes()), now);
        }
        assert_eq!(throttle.windows.len(), ADDRESSES_MAX);
    }
}
