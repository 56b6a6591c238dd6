//! A meter that gives more than its configuration says, for a while.
//!
//! It is a key in the store under a lease of its own length, and no part of the configuration: it
//! makes no version, and ends by itself.

use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use crate::wire::{self, Message};

/// How much a meter can give, in percent of its limits.
pub const PERCENT: RangeInclusive<u64> = 101..=1_000;
/// How long, in seconds.
pub const SECONDS: RangeInclusive<u64> = 1..=86_400;

/// The value in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Raise {
    /// Its length in milliseconds, from when it was written.
    pub ms: u64,
    /// What is given, in percent of the limits.
    pub percent: u64,
}

impl Message for Raise {
    const SCHEMA: u16 = wire::SCHEMA_RAISE;
}
