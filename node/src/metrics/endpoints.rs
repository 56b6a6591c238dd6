//! Requests by endpoint, for targets that have several or a breaker, with a bound on the number of
//! series.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use proto::exposition::Families;

use super::held::Held;
use super::proxies::OVERFLOW;
use crate::breakers::TargetBreaker;

/// Most endpoints that have series of their own.
const ENDPOINTS_MAX: usize = 1_000;

/// The counters of one endpoint; clones share them.
#[derive(Clone, Debug, Default)]
pub struct EndpointCounters(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    answered: AtomicU64,
    failed: AtomicU64,
    breaker: Mutex<Weak<TargetBreaker>>,
}

impl Counts {
    fn any(&self) -> bool {
        [&self.answered, &self.failed].map(|count| count.load(Relaxed)) != [0, 0]
    }
}

impl EndpointCounters {
    /// It answered a request, or did not.
    pub fn ended(&self, answered: bool) {
        let count = match answered {
            true => &self.0.answered,
            false => &self.0.failed,
        };
        count.fetch_add(1, Relaxed);
    }
}

/// Target and endpoint.
type Key = (Box<str>, Box<str>);

/// The counters of all endpoints.
#[derive(Debug, Default)]
pub(super) struct Endpoints {
    known: Held<Key, Counts>,
    /// Of all others; whether these are left alone has no series, as they do not have one state.
    overflow: EndpointCounters,
    failovers: AtomicU64,
}

impl Endpoints {
    /// A request went on to another endpoint.
    pub(super) fn failed_over(&self) {
        self.failovers.fetch_add(1, Relaxed);
    }

    /// The counters of a target's endpoint.
    pub(super) fn counters(
        &self,
        target: &str,
        address: &str,
        breaker: &Arc<TargetBreaker>,
    ) -> EndpointCounters {
        let key = (Box::from(target), Box::from(address));
        let Some(counts) = self.known.of(key, ENDPOINTS_MAX) else {
            return self.overflow.clone();
        };
        let shown = counts.breaker.lock();
        *shown.unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(breaker);
        EndpointCounters(counts)
    }

    /// Another configuration is in effect.
    pub(super) fn configured(&self) {
        self.known.configured();
    }

    pub(super) fn collect(&self, out: &mut Families) {
        let known = self.known.all();
        let name = "requestrocket_endpoint_requests_total";
        let help = "Requests sent to endpoints of targets with several or a breaker, by outcome.";
        let family = out.counter(name, help);
        let own = known.iter();
        let own = own.map(|((target, address), counts)| ((&**target, &**address), &**counts));
        let others = ((OVERFLOW, OVERFLOW), &*self.overflow.0);
        let others = others.1.any().then_some(others);
        for ((target, address), counts) in own.chain(others) {
            for (outcome, count) in [("answered", &counts.answered), ("failed", &counts.failed)] {
                let labels = [
                    ("target", target.to_owned().into()),
                    ("endpoint", address.to_owned().into()),
                    ("outcome", outcome.into()),
                ];
                family.with(labels, count.load(Relaxed));
            }
        }
        let name = "requestrocket_endpoint_left_alone";
        let help = "Whether an endpoint is left alone because it fails.";
        let family = out.gauge(name, help);
        for ((target, address), counters) in known.iter() {
            let breaker = counters
                .breaker
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            let open = breaker.upgrade().is_some_and(|breaker| breaker.is_open());
            let labels = [
                ("target", target.to_string().into()),
                ("endpoint", address.to_string().into()),
            ];
            family.with(labels, u64::from(open));
        }
        let help = "Requests that went on to another endpoint of their target.";
        let family = out.counter("requestrocket_failovers_total", help);
        family.is(self.failovers.load(Relaxed));
    }
}

#[cfg(test)]
mod tests {
    use proto::breaker::BreakerSettings;
    use proto::exposition::text::Form;
    use proto::id::{OrgId, TargetId};

    use super::*;
    use crate::breakers::Breakers;

    #[test]
    fn beyond_the_bound_all_endpoints_share_one_series() {
        let endpoints = Endpoints::default();
        let settings = BreakerSettings::default();
        let id = (OrgId::from_bits(1), TargetId::from_bits(1));
        let breaker = Breakers::default().of(id, "https://a", &settings);
        let counters = endpoints.counters("tgt_1", "a:443", &breaker);
        counters.ended(true);
        endpoints.counters("tgt_1", "a:443", &breaker).ended(false);
        endpoints.failed_over();
        let held: Vec<_> = (0..2 * ENDPOINTS_MAX)
            .map(|n| endpoints.counters(&format!("tgt_{n}"), "b:443", &breaker))
            .collect();
        for (n, counters) in held.iter().enumerate() {
            counters.ended(n % 2 == 0);
        }
        let mut families = Families::default();
        endpoints.collect(&mut families);
        let text = families.text(Form::Prometheus);
        // One place is taken by the endpoint above.
        let others = ENDPOINTS_MAX.div_ceil(2);
        let shared = |outcome: &str, count: usize| {
            format!(
                "requestrocket_endpoint_requests_total{{target=\"_overflow\",\
                 endpoint=\"_overflow\",outcome=\"{outcome}\"}} {count}"
            )
        };
        for line in [shared("answered", others), shared("failed", others + 1)] {
            assert!(text.lines().any(|found| found == line), "{line}");
        }
        let counted = text.lines().filter(|line| line.contains("requests_total{"));
        assert_eq!(counted.count(), 2 * (ENDPOINTS_MAX + 1));
        for line in [
            "requestrocket_endpoint_requests_total{target=\"tgt_1\",endpoint=\"a:443\",\
             outcome=\"answered\"} 1",
            "requestrocket_endpoint_requests_total{target=\"tgt_1\",endpoint=\"a:443\",\
             outcome=\"failed\"} 1",
            "requestrocket_endpoint_left_alone{target=\"tgt_1\",endpoint=\"a:443\"} 0",
            "requestrocket_failovers_total 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}");
        }
        let series = text
            .lines()
            .filter(|line| line.contains("left_alone{"))
            .count();
        assert_eq!((series, held.len()), (ENDPOINTS_MAX, 2 * ENDPOINTS_MAX));
    }
}
