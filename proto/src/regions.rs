//! The regions of an installation as nodes know them: which there are, and under which URL callers
//! reach each.
//!
//! Written by control planes from their settings; a node learns from it where a proxy that it does
//! not serve is served.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::problem::Problem;
use crate::seal::is_region_name;

/// What stands for all regions in the `regions` of an object.
pub const EVERYWHERE: &str = "*";

/// Most regions that an object lists.
const REGIONS_MAX: usize = 32;

/// All regions: what an object lists that says nothing.
pub fn everywhere() -> Vec<String> {
    vec![EVERYWHERE.to_owned()]
}

/// Whether a list stands for all regions. Such a list is not written, so that earlier releases read
/// the object.
pub fn is_everywhere(regions: &[String]) -> bool {
    matches!(regions, [all] if all == EVERYWHERE)
}

/// What regions that an object is not for keep of it, where content is kept by region.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Residency {
    /// Home keeps all of it, whichever region that is; others keep what tells a call of it from
    /// one of nothing.
    #[default]
    Standard,
    /// Nothing: its regions alone know of it, and home is one of them, and stays so.
    Strict,
}

impl Residency {
    /// Whether it is as ever: that is not written, so that earlier releases read the object.
    pub fn is_standard(&self) -> bool {
        *self == Self::Standard
    }
}

/// The gateways of all regions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gateways {
    /// Base URL without a slash at its end, by region.
    pub urls: BTreeMap<String, String>,
}

/// Whether a list of regions holds one.
pub fn include(regions: &[String], region: &str) -> bool {
    regions
        .iter()
        .any(|listed| listed == EVERYWHERE || listed == region)
}

/// Whether a list of regions lies within another.
pub fn are_within(inner: &[String], outer: &[String]) -> bool {
    inner.iter().all(|region| include(outer, region))
}

/// Whether two lists of regions have one in common.
pub fn overlap(one: &[String], other: &[String]) -> bool {
    one.iter().any(|region| include(other, region))
        || include(one, EVERYWHERE)
        || include(other, EVERYWHERE)
}

/// Every problem of an object's `regions`; whether they exist is judged by the operator's policy.
pub fn check(listed: &[String], problems: &mut Vec<Problem>) {
    let all = listed.iter().any(|region| region == EVERYWHERE);
    if listed.is_empty() || listed.len() > REGIONS_MAX || (all && listed.len() > 1) {
        let detail = format!("must be [\"*\"] or 1 to {REGIONS_MAX} regions");
        problems.push(Problem::new("/regions", "regions", detail));
    }
    for (at, region) in listed.iter().enumerate() {
        let pointer = format!("/regions/{at}");
        if listed[..at].contains(region) {
            let detail = format!("{region} is listed twice");
            problems.push(Problem::new(pointer, "duplicate", detail));
        } else if !all && !is_region_name(region) {
            let detail = "is no name of a region: 1 to 40 characters of a-z, 0-9 and `-`";
            problems.push(Problem::new(pointer, "region", detail));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_regions_lie_within_each_other() {
        let list = |regions: &[&str]| regions.iter().map(|r| (*r).to_owned()).collect::<Vec<_>>();
        for (inner, outer, expected) in [
            (&["eu"][..], &["eu", "us"][..], true),
            (&["eu"], &["*"], true),
            (&["*"], &["*"], true),
            (&["*"], &["eu", "us"], false),
            (&["eu", "ap"], &["eu", "us"], false),
        ] {
            assert_eq!(
                are_within(&list(inner), &list(outer)),
                expected,
                "{inner:?} {outer:?}"
            );
        }
    }

    #[test]
    fn lists_of_regions_have_some_in_common_or_none() {
        let list = |regions: &[&str]| regions.iter().map(|r| (*r).to_owned()).collect::<Vec<_>>();
        for (one, other, expected) in [
            (&["eu", "us"][..], &["us", "ap"][..], true),
            (&["eu"], &["*"], true),
            (&["*"], &["*"], true),
            (&["eu", "us"], &["ap"], false),
        ] {
            let (one, other) = (list(one), list(other));
            assert_eq!(overlap(&one, &other), expected, "{one:?} {other:?}");
            assert_eq!(overlap(&other, &one), expected, "{other:?} {one:?}");
        }
    }
}
