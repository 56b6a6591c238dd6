//! The addresses of a target that has several: one for each region it answers in, or several in
//! one. Which of them a request goes to is decided here, from what is known of their health. Pure.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::checks;
use crate::problem::Problem;
use crate::seal::is_region_name;
use crate::target::BaseUrl;

/// Most endpoints of a target; [`Tried`] has a bit for each.
pub const ENDPOINTS_MAX: usize = 16;
/// Largest weight.
const WEIGHT_MAX: u32 = 1_000;
/// The whole of an endpoint's share.
pub const WHOLE: u32 = 1_000;

/// One address of a target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Endpoint {
    /// The region whose nodes call it first; absent for one that is near to all of them. Calls of
    /// a proxy, or with a secret, that is for other regions never go there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// Scheme, host, optional port, and the path of the target's `base_url`.
    pub base_url: String,
    /// Its part of the requests beside others of its region, 1 to 1,000. Default 1.
    #[serde(default = "one")]
    pub weight: u32,
}

fn one() -> u32 {
    1
}

/// Reports what is wrong with a target's endpoints, which share the path of its base URL.
pub fn check(endpoints: &[Endpoint], base: Option<&BaseUrl>, problems: &mut Vec<Problem>) {
    if endpoints.len() > ENDPOINTS_MAX {
        let detail = format!("at most {ENDPOINTS_MAX} endpoints");
        problems.push(Problem::new("/endpoints", "too-many", detail));
        return;
    }
    let mut seen = BTreeSet::new();
    for (at, endpoint) in endpoints.iter().enumerate() {
        let pointer = |field: &str| format!("/endpoints/{at}/{field}");
        if endpoint
            .region
            .as_ref()
            .is_some_and(|region| !is_region_name(region))
        {
            let detail = "is no name of a region: 1 to 40 characters of a-z, 0-9 and `-`";
            problems.push(Problem::new(pointer("region"), "region", detail));
        }
        let weight = Some(u64::from(endpoint.weight));
        let weights = 1..=u64::from(WEIGHT_MAX);
        checks::range(weight, weights, &pointer("weight"), problems);
        match BaseUrl::parse(&endpoint.base_url) {
            Err(detail) => {
                problems.push(Problem::new(pointer("base_url"), "base-url", detail));
            }
            Ok(own) if base.is_some_and(|base| base.path != own.path) => {
                let detail = "must have the path of the target's `base_url`";
                problems.push(Problem::new(pointer("base_url"), "endpoint-path", detail));
            }
            Ok(own) => {
                if !seen.insert(own.origin.to_string()) {
                    let detail = format!("{} is listed twice", own.origin);
                    problems.push(Problem::new(pointer("base_url"), "duplicate", detail));
                }
            }
        }
    }
    let listed = base.is_none_or(|base| seen.contains(&base.origin.to_string()));
    if !endpoints.is_empty() && !listed && seen.len() == endpoints.len() {
        let detail = "must be that of one of the `endpoints`, which requests go to";
        problems.push(Problem::new("/base_url", "endpoint-missing", detail));
    }
}

/// How near each endpoint is to the nodes of a region: 0 for its own and those near to all, then
/// the other regions in the order in which they are first listed.
pub fn distances(endpoints: &[Endpoint], own: &str) -> Vec<u8> {
    let mut others: Vec<&str> = Vec::new();
    let mut distances = Vec::with_capacity(endpoints.len());
    for endpoint in endpoints {
        let distance = match endpoint.region.as_deref() {
            None => 0,
            Some(region) if region == own => 0,
            Some(region) => {
                let known = others.iter().position(|other| *other == region);
                known.unwrap_or_else(|| {
                    others.push(region);
                    others.len() - 1
                }) + 1
            }
        };
        distances.push(u8::try_from(distance).unwrap_or(u8::MAX));
    }
    distances
}

/// Endpoints that are out of the question, by their place in the list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tried(u16);

impl Tried {
    /// Adds one.
    pub fn add(&mut self, at: usize) {
        self.0 |= 1 << at.min(15);
    }

    /// Whether one is among them.
    pub fn has(self, at: usize) -> bool {
        self.0 & (1 << at.min(15)) != 0
    }

    /// How many there are.
    pub fn count(self) -> usize {
        self.0.count_ones() as usize
    }
}

/// An endpoint as the choice sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// See [`distances`].
    pub distance: u8,
    /// Its weight.
    pub weight: u32,
    /// How much of what falls to it it may have, in thousandths: 0 while it is left alone, less
    /// than [`WHOLE`] while it has just come back.
    pub share: u32,
}

/// The endpoint of a request: of the nearest that may have it, one by weight. `draw` is a random
/// number. `None` where each is left alone or was tried.
///
/// One that has just come back passes on what is beyond its share, so that it is not met by all at
/// once; where there is nobody to pass it on to it takes it.
pub fn choose(candidates: &[Candidate], tried: Tried, draw: u64) -> Option<usize> {
    let mut out = tried;
    let mut spared = None;
    let mut draw = draw;
    loop {
        let may = |(at, candidate): &(usize, &Candidate)| candidate.share > 0 && !out.has(*at);
        let nearest = candidates.iter().enumerate().filter(may);
        let Some(nearest) = nearest.map(|(_, candidate)| candidate.distance).min() else {
            return spared;
        };
        let beside = candidates.iter().enumerate().filter(may);
        let beside = beside.filter(|(_, candidate)| candidate.distance == nearest);
        let total: u64 = beside
            .clone()
            .map(|(_, c)| u64::from(c.weight.max(1)))
            .sum();
        draw = mixed(draw);
        let mut left = draw % total;
        let mut chosen = None;
        for (at, candidate) in beside {
            let weight = u64::from(candidate.weight.max(1));
            if left < weight {
                chosen = Some((at, candidate.share));
                break;
            }
            left -= weight;
        }
        let (at, share) = chosen?;
        draw = mixed(draw);
        if draw % u64::from(WHOLE) < u64::from(share) {
            return Some(at);
        }
        spared = spared.or(Some(at));
        out.add(at);
    }
}

/// The next of a row of numbers that look random (SplitMix64, Steele, Lea and Flood 2014).
pub fn mixed(number: u64) -> u64 {
    let number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(region: Option<&str>, base_url: &str) -> Endpoint {
        Endpoint {
            region: region.map(str::to_owned),
            base_url: base_url.into(),
            weight: 1,
        }
    }

    #[test]
    fn the_own_region_is_nearest_then_the_given_order() {
        let list = [
            endpoint(Some("us"), "https://a.example"),
            endpoint(Some("ap"), "https://b.example"),
            endpoint(Some("eu"), "https://c.example"),
            endpoint(None, "https://d.example"),
            endpoint(Some("ap"), "https://e.example"),
        ];
        assert_eq!(distances(&list, "eu"), [1, 2, 0, 0, 2]);
        assert_eq!(distances(&list, "us"), [0, 1, 2, 0, 1]);
        assert_eq!(distances(&list, "sa"), [1, 2, 3, 0, 2]);
    }

    #[test]
    fn every_fault_is_named() {
        let base = BaseUrl::parse("https://a.example/v1").unwrap();
        let pointers = |list: &[Endpoint]| {
            let mut problems = Vec::new();
            check(list, Some(&base), &mut problems);
            let shown = |p: Problem| (p.pointer, p.code);
            problems.into_iter().map(shown).collect::<Vec<_>>()
        };
        let good = [
            endpoint(Some("eu"), "https://b.example/v1/"),
            endpoint(None, "https://a.example/v1"),
        ];
        assert!(pointers(&good).is_empty());
        assert!(pointers(&[]).is_empty());
        let mut heavy = endpoint(Some("No"), "https://a.example/v2");
        heavy.weight = 0;
        let found = pointers(&[
            heavy,
            endpoint(None, "https://a.example/v1"),
            endpoint(None, "https://a.example:443/v1"),
            endpoint(None, "nowhere"),
        ]);
        let pointers_only: Vec<&str> = found.iter().map(|(pointer, _)| pointer.as_str()).collect();
        assert_eq!(
            pointers_only,
            [
                "/endpoints/0/region",
                "/endpoints/0/weight",
                "/endpoints/0/base_url",
                "/endpoints/2/base_url",
                "/endpoints/3/base_url"
            ]
        );
        let found = pointers(&[endpoint(None, "https://b.example/v1")]);
        assert_eq!(found[0].0, "/base_url");
        let many = vec![endpoint(None, "https://b.example/v1"); ENDPOINTS_MAX + 1];
        assert_eq!(pointers(&many).len(), 1);
    }

    /// How many of 10,000 requests each endpoint gets.
    fn spread(candidates: &[Candidate], tried: Tried) -> Vec<u32> {
        let mut counts = vec![0; candidates.len()];
        for draw in 0..10_000 {
            if let Some(at) = choose(candidates, tried, draw) {
                counts[at] += 1;
            }
        }
        counts
    }

    fn of(distance: u8, weight: u32, share: u32) -> Candidate {
        Candidate {
            distance,
            weight,
            share,
        }
    }

    #[test]
    fn requests_go_to_the_nearest_by_weight() {
        let counts = spread(
            &[of(1, 9, WHOLE), of(0, 3, WHOLE), of(0, 1, WHOLE)],
            Tried::default(),
        );
        assert_eq!(counts[0], 0);
        assert!((7_300..7_700).contains(&counts[1]), "{counts:?}");
        assert_eq!(counts[1] + counts[2], 10_000);
    }

    #[test]
    fn what_is_left_alone_or_was_tried_is_passed_over() {
        let all = [of(0, 1, 0), of(1, 1, WHOLE), of(2, 1, WHOLE)];
        assert_eq!(spread(&all, Tried::default()), [0, 10_000, 0]);
        let mut tried = Tried::default();
        tried.add(1);
        assert_eq!(spread(&all, tried), [0, 0, 10_000]);
        tried.add(2);
        assert_eq!(choose(&all, tried, 7), None);
        assert_eq!(tried.count(), 2);
        assert_eq!(choose(&[], Tried::default(), 7), None);
    }

    #[test]
    fn one_that_has_just_come_back_gets_its_share_only() {
        let counts = spread(&[of(0, 1, 100), of(1, 1, WHOLE)], Tried::default());
        assert!((900..1_100).contains(&counts[0]), "{counts:?}");
        assert_eq!(counts[0] + counts[1], 10_000);
        let alone = spread(&[of(0, 1, 100), of(1, 1, 0)], Tried::default());
        assert_eq!(alone, [10_000, 0], "there is nobody to pass it on to");
    }
}
