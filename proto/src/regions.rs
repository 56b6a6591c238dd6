//! The regions of an installation as nodes know them: which there are, and under which URL callers
//! reach each.
//!
//! Written by control planes from their settings; a node learns from it where a proxy that it does
//! not serve is served.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What stands for all regions in the `regions` of an object.
pub const EVERYWHERE: &str = "*";

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
