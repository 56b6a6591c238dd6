//! Requests by proxy and class of status, with a bound on the number of series.
//!
//! A proxy's counters are looked up when its configuration is compiled, so counting a request is
//! one addition. What callers choose (paths, methods, headers) is never a label; who may create
//! proxies is the only one who can make series, and beyond the bound all share `_overflow`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use proto::exposition::Families;

use super::held::Held;

/// Most proxies that have series of their own.
pub const PROXIES_MAX: usize = 1_000;
/// The label of all others. No proxy has this id.
pub const OVERFLOW: &str = "_overflow";

const CLASSES: [&str; 5] = ["2xx", "3xx", "4xx", "5xx", "none"];

/// The counters of one proxy; clones share them.
#[derive(Clone, Debug, Default)]
pub struct ProxyCounters(Arc<Counts>);

type Counts = [AtomicU64; CLASSES.len()];

impl ProxyCounters {
    /// A request ended with this status, or without one.
    pub fn ended(&self, status: Option<u16>) {
        let class = match status {
            Some(status) => usize::from((status / 100).clamp(2, 5)) - 2,
            None => CLASSES.len() - 1,
        };
        self.0[class].fetch_add(1, Relaxed);
    }
}

/// The counters of all proxies.
#[derive(Debug, Default)]
pub(super) struct Proxies {
    known: Held<Box<str>, Counts>,
    overflow: ProxyCounters,
}

impl Proxies {
    /// The counters of the proxy with this id.
    pub(super) fn counters(&self, id: &str) -> ProxyCounters {
        let found = self.known.of(id.into(), PROXIES_MAX);
        found.map_or_else(|| self.overflow.clone(), ProxyCounters)
    }

    /// Another configuration is in effect.
    pub(super) fn configured(&self) {
        self.known.configured();
    }

    pub(super) fn collect(&self, out: &mut Families) {
        let name = "requestrocket_proxy_requests_total";
        let help = "Requests ended, by proxy and class of status.";
        let family = out.counter(name, help);
        let known = self.known.all();
        let known = known.iter().map(|(id, counts)| (&**id, counts));
        for (id, counts) in known.chain([(OVERFLOW, &self.overflow.0)]) {
            for (class, count) in CLASSES.into_iter().zip(counts.iter()) {
                let count = count.load(Relaxed);
                if count > 0 {
                    let labels = [("proxy", id.to_owned().into()), ("class", class.into())];
                    family.with(labels, count);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proto::exposition::text::Form;

    use super::*;

    fn text(proxies: &Proxies) -> String {
        let mut families = Families::default();
        proxies.collect(&mut families);
        families.text(Form::Prometheus)
    }

    #[test]
    fn beyond_the_bound_all_share_one_series() {
        let proxies = Proxies::default();
        let first: Vec<_> = (0..PROXIES_MAX)
            .map(|n| proxies.counters(&format!("prx_{n}")))
            .collect();
        for counters in &first {
            counters.ended(Some(200));
        }
        for n in 0..100_000 {
            proxies.counters(&format!("more_{n}")).ended(Some(503));
        }
        let text = text(&proxies);
        assert!(text.contains("{proxy=\"_overflow\",class=\"5xx\"} 100000"));
        assert_eq!(text.lines().count(), 2 + PROXIES_MAX + 1);
        assert!(text.contains("{proxy=\"prx_7\",class=\"2xx\"} 1"));
    }

    #[test]
    fn proxies_that_are_gone_make_room() {
        let proxies = Proxies::default();
        for n in 0..3 * PROXIES_MAX {
            drop(proxies.counters(&format!("prx_{n}")));
        }
        proxies.counters("prx_new").ended(None);
        let text = text(&proxies);
        assert!(
            text.contains("{proxy=\"prx_new\",class=\"none\"} 1"),
            "{text}"
        );
    }

    #[test]
    fn classes() {
        let counters = ProxyCounters::default();
        for status in [Some(101), Some(200), Some(404), Some(599), Some(999), None] {
            counters.ended(status);
        }
        let counts: Vec<u64> = counters.0.iter().map(|count| count.load(Relaxed)).collect();
        assert_eq!(counts, [2, 0, 1, 2, 1]);
    }
}
