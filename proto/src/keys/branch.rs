//! Keys of what was made on branches that are not in force.

use crate::id::OrgId;
use crate::tree::Hash;
use crate::version::Epoch;

/// A version that was made on a branch which is not in force. Where a store went back epoch and
/// number name versions of two branches.
pub fn aside(org: OrgId, epoch: &Epoch, (n, hash): (u64, &Hash)) -> String {
    let Epoch { counter, region } = epoch;
    format!("{ASIDE}{org}/{counter:020}.{region}/{n:020}.{hash}")
}

/// All keys of [`aside`] of an organisation.
pub fn aside_of(org: OrgId) -> String {
    format!("{ASIDE}{org}/")
}

/// All keys of [`aside`].
pub const ASIDE: &str = "aside/";

/// The organisation that a key of [`aside`] names.
pub fn parse_aside(key: &str) -> Option<OrgId> {
    let (org, _) = key.strip_prefix(ASIDE)?.split_once('/')?;
    org.parse().ok()
}

/// The last version of an epoch that this region has in common with the line in force, where the
/// epoch names two branches and this region had the other one.
pub fn parted(org: OrgId, epoch: &Epoch) -> String {
    let Epoch { counter, region } = epoch;
    format!("{PARTED}{org}/{counter:020}.{region}")
}

/// All keys of [`parted`].
pub const PARTED: &str = "parted/";
