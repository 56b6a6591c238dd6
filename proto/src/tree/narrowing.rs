//! Whether a version takes something away from a region that earlier ones had there, so that what
//! the region keeps of those is to go.

use super::sets::{is_kept_in, strictly};
use super::{Head, OrgConfig};
use crate::object::{Body, Object};
use crate::regions;

/// The sets of which a region keeps nothing and that differ in the later version.
fn elsewhere<'h>(old: &'h Head, new: &'h Head, region: &'h str) -> impl Iterator<Item = &'h str> {
    let foreign = new.roots.iter();
    let foreign = foreign.filter(move |(set, _)| !is_kept_in(set, region));
    let changed = foreign.filter(move |(set, root)| old.roots.get(*set) != Some(*root));
    changed.map(|(set, _)| set.as_str())
}

/// Whether something changed that a region does not keep: where not, nothing was taken from it.
pub fn changes_elsewhere(old: &Head, new: &Head, region: &str) -> bool {
    elsewhere(old, new, region).next().is_some()
}

/// Whether `new` leaves something out of a region that `old` had there. Both may be parts, as they
/// are in a region that is not home: there a credential that was deleted cannot be told from one
/// that is now kept elsewhere, and counts where something that is kept elsewhere changed with it.
pub fn narrows(old: &OrgConfig, new: &OrgConfig, region: &str) -> bool {
    let elsewhere: Vec<&str> = elsewhere(&old.head, &new.head, region).collect();
    if elsewhere.is_empty() {
        return false;
    }
    // What was pinned before stood in the set of all regions.
    if !old.head.is_cut() {
        let mut listed = old.objects.regional();
        if listed.any(|(_, listed)| !regions::include(listed, region)) {
            return true;
        }
    }
    let is_part = new.withheld().next().is_some();
    let may_be_elsewhere = |gone: &Object| match &gone.body {
        // It leaves a stub, unless it is to be unknown.
        Body::Proxy(_) => is_part && elsewhere.iter().any(|set| strictly(set).is_some()),
        _ => is_part,
    };
    let differing = old.objects.differing(&new.objects);
    differing.into_iter().any(|(_, [before, after])| {
        let was_here = before.filter(|before| is_for(before, region));
        was_here.is_some_and(|before| match after {
            Some(after) => !is_for(after, region),
            None => may_be_elsewhere(before),
        })
    })
}

/// Whether an object of a kind that lists regions is for one.
fn is_for(object: &Object, region: &str) -> bool {
    let listed = object.body.regions();
    listed.is_some_and(|listed| regions::include(listed, region))
}
