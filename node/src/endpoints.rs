//! The addresses of a target as requests meet them: what is known of their health, and which of
//! them the next request goes to.
//!
//! The choice itself is [`proto::endpoint::choose`]. A target with one address goes through here
//! too, and costs nothing for it but its breaker.
//!
//! Endpoints that the calls of a proxy must not go to ([`proto::residence`]) are not among them:
//! nothing that is chosen here leaves a proxy's regions, whatever fails.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use proto::endpoint::{self, Candidate, ENDPOINTS_MAX, Tried, WHOLE};
use proto::outcome::{Code, EarlyEnd};
use proto::target::BaseUrl;

use crate::breakers::{Admitted, TargetBreaker};
use crate::health_checks::Checked;
use crate::metrics::{AddressDurations, EndpointCounters};

/// One address.
pub struct Endpoint {
    /// Where it is.
    pub base: BaseUrl,
    /// Host and port, as records and metrics name it.
    pub label: Arc<str>,
    /// How near it is; see [`endpoint::distances`].
    pub distance: u8,
    /// Its weight beside others that are as near.
    pub weight: u32,
    /// What leaves it alone while it fails.
    pub breaker: Option<Arc<TargetBreaker>>,
    /// What its health checks say, where it is checked.
    pub checked: Option<Arc<Checked>>,
    /// Whether records name it: the target has several addresses.
    pub named: bool,
    /// Counts its requests, where it has a breaker.
    pub counters: Option<EndpointCounters>,
    /// How long attempts there take.
    pub durations: AddressDurations,
}

/// The addresses of a target that the calls of a proxy may go to.
pub struct Endpoints {
    all: Box<[Endpoint]>,
    slow_start: Duration,
    /// Whether a request is refused while each is left alone; the target's `breaker` asks for it.
    refuses: bool,
    draws: AtomicU64,
}

/// The address of a request.
pub struct Picked {
    /// Its place in the list.
    pub at: usize,
    /// Tells its breaker of the outcome.
    pub admitted: Option<Admitted>,
}

impl Endpoints {
    /// These addresses.
    pub fn new(all: Vec<Endpoint>, slow_start: Duration, refuses: bool) -> Self {
        Self {
            all: all.into(),
            slow_start,
            refuses,
            draws: AtomicU64::new(0),
        }
    }

    /// The address at a place.
    pub fn get(&self, at: usize) -> Option<&Endpoint> {
        self.all.get(at)
    }

    /// All of them, as listed.
    pub fn iter(&self) -> impl Iterator<Item = &Endpoint> {
        self.all.iter()
    }

    /// The address that the attempt at this place went to; `named` are the labels that a record
    /// has of its attempts, none where there is one address.
    pub fn asked(&self, named: &[Arc<str>], at: usize) -> Option<&Endpoint> {
        let label = named.get(at);
        let found = label.and_then(|label| self.iter().find(|one| one.label == *label));
        found.or(self.all.first())
    }

    /// Whether there are none: nothing may be sent.
    pub fn are_none(&self) -> bool {
        self.all.is_empty()
    }

    /// Whether there are several.
    pub fn are_several(&self) -> bool {
        self.all.len() > 1
    }

    /// The address that a request goes to first.
    ///
    /// # Errors
    /// The target has a breaker and is left alone: 503 `circuit-open`. There are none: 502
    /// `upstream-blocked`.
    pub fn first(&self) -> Result<Picked, EarlyEnd> {
        if self.are_none() {
            return Err(outside());
        }
        // One that is left of several has a breaker by which nobody asked for refusals.
        if let [only] = &*self.all
            && (self.refuses || only.breaker.is_none())
        {
            if self.refuses
                && let Some(end) = only.left_alone()
            {
                return Err(end);
            }
            let admitted = only
                .breaker
                .as_ref()
                .map(TargetBreaker::admit)
                .transpose()?;
            return Ok(Picked { at: 0, admitted });
        }
        if let Some(picked) = self.next(Tried::default()) {
            return Ok(picked);
        }
        if self.refuses {
            let ends: Vec<_> = self.all.iter().map(Endpoint::left_alone).collect();
            let Some(at) = ends.iter().position(Option::is_none) else {
                return Err(ends.into_iter().flatten().next().unwrap_or_else(alone));
            };
            if let Some(breaker) = self.all.get(at).and_then(|one| one.breaker.as_ref()) {
                let admitted = Some(breaker.admit()?);
                return Ok(Picked { at, admitted });
            }
        }
        // Nobody asked for requests to be refused: the nearest is as good as any.
        let whole: Vec<Candidate> = self.all.iter().map(|e| e.candidate(WHOLE)).collect();
        let at = endpoint::choose(&whole, Tried::default(), self.draw()).unwrap_or_default();
        Ok(Picked { at, admitted: None })
    }

    /// The address that a request goes to after these; none where all others are left alone.
    pub fn next(&self, mut tried: Tried) -> Option<Picked> {
        let now = Instant::now();
        let none = Candidate {
            distance: 0,
            weight: 0,
            share: 0,
        };
        let mut candidates = [none; ENDPOINTS_MAX];
        for (endpoint, candidate) in self.all.iter().zip(&mut candidates) {
            let breaker = endpoint.breaker.as_ref();
            let share = breaker.map_or(WHOLE, |breaker| breaker.share(now, self.slow_start));
            let checked = endpoint.checked.as_ref();
            let checked = checked.map_or(WHOLE, |checked| checked.share(now, self.slow_start));
            let share = share.min(checked);
            *candidate = endpoint.candidate(share);
        }
        loop {
            let at = endpoint::choose(&candidates, tried, self.draw())?;
            match self.all.get(at)?.breaker.as_ref().map(TargetBreaker::admit) {
                None => return Some(Picked { at, admitted: None }),
                Some(Ok(admitted)) => {
                    let admitted = Some(admitted);
                    return Some(Picked { at, admitted });
                }
                // Another request has just become the probe.
                Some(Err(_)) => tried.add(at),
            }
        }
    }

    fn draw(&self) -> u64 {
        endpoint::mixed(self.draws.fetch_add(1, Ordering::Relaxed))
    }
}

/// How a request ends that may go to none of its target's endpoints.
pub fn outside() -> EarlyEnd {
    EarlyEnd::new(
        Code::UpstreamBlocked,
        "the target has no endpoint in the regions that this proxy and its target credential \
         list (`regions`); saving the proxy again tells which; nothing was sent",
    )
}

fn alone() -> EarlyEnd {
    EarlyEnd::new(
        Code::CircuitOpen,
        "the target fails its health checks and is left alone for a while (`health_check` of the \
         target); the request was not carried out",
    )
}

impl Endpoint {
    /// How a request ends that may only go there, where health checks say that it fails.
    fn left_alone(&self) -> Option<EarlyEnd> {
        let checked = self.checked.as_ref().filter(|checked| checked.fails())?;
        let seconds = checked.interval().as_secs().max(1);
        Some(alone().header("retry-after", seconds.to_string()))
    }

    fn candidate(&self, share: u32) -> Candidate {
        Candidate {
            distance: self.distance,
            weight: self.weight,
            share,
        }
    }
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use proto::breaker::BreakerSettings;
    use proto::id::{OrgId, TargetId};
    use proto::outcome::Code;

    use super::*;
    use crate::breakers::Breakers;

    fn endpoints(distances: &[u8], refuses: bool) -> Endpoints {
        let settings: BreakerSettings =
            serde_json::from_str(r#"{"consecutive_failures": 1, "open_ms": 3600000}"#).unwrap();
        let id = (OrgId::from_bits(1), TargetId::from_bits(1));
        let breakers = Breakers::default();
        let all = distances.iter().enumerate().map(|(at, distance)| {
            let url = format!("https://h{at}.example");
            Endpoint {
                base: BaseUrl::parse(&url).unwrap(),
                label: format!("h{at}.example").into(),
                distance: *distance,
                weight: 1,
                breaker: Some(breakers.of(id, &url, &settings)),
                checked: None,
                named: false,
                counters: None,
                durations: AddressDurations::default(),
            }
        });
        Endpoints::new(all.collect(), Duration::ZERO, refuses)
    }

    fn fail(endpoints: &Endpoints) -> usize {
        let picked = endpoints.first().unwrap();
        picked.admitted.unwrap().answered(StatusCode::BAD_GATEWAY);
        picked.at
    }

    #[test]
    fn a_request_passes_over_what_fails() {
        let endpoints = endpoints(&[2, 0, 1], true);
        let order: Vec<usize> = (0..3).map(|_| fail(&endpoints)).collect();
        assert_eq!(order, [1, 2, 0]);
        let end = endpoints.first().map(|picked| picked.at).unwrap_err();
        assert_eq!(end.code, Code::CircuitOpen);
        assert!(endpoints.next(Tried::default()).is_none());
    }

    #[test]
    fn where_none_is_left_nothing_is_sent() {
        for refuses in [true, false] {
            let none = endpoints(&[], refuses);
            let end = none.first().map(|picked| picked.at).unwrap_err();
            assert_eq!(end.code, Code::UpstreamBlocked);
            assert!(none.next(Tried::default()).is_none());
        }
        // Nor is one that is left of several refused for a breaker that nobody asked for.
        let one = endpoints(&[0], false);
        fail(&one);
        let picked = one.first().unwrap();
        assert_eq!((picked.at, picked.admitted.is_none()), (0, true));
    }

    #[test]
    fn without_a_breaker_of_its_own_a_target_is_never_refused() {
        let endpoints = endpoints(&[1, 0], false);
        fail(&endpoints);
        fail(&endpoints);
        let picked = endpoints.first().unwrap();
        assert_eq!(picked.at, 1, "the nearest");
        assert!(picked.admitted.is_none());
    }

    #[test]
    fn what_was_tried_is_not_next() {
        let endpoints = endpoints(&[0, 0], false);
        let mut tried = Tried::default();
        tried.add(0);
        assert_eq!(endpoints.next(tried).unwrap().at, 1);
        tried.add(1);
        assert!(endpoints.next(tried).is_none());
    }
}
