//! Whether a version takes something away from a region that earlier ones had there, so that what
//! the region keeps of those is to go.

use super::OrgConfig;
use super::sets::{is_kept_in, strictly};
use crate::object::{Body, Object};
use crate::regions;

/// Whether `new` leaves something out of a region that `old` had there. Both may be parts, as they
/// are in a region that is not home: there a credential that was deleted cannot be told from one
/// that is now kept elsewhere, and counts where something that is kept elsewhere changed with it.
pub fn narrows(old: &OrgConfig, new: &OrgConfig, region: &str) -> bool {
    let named = new.head.roots.iter();
    let changed = |(set, root): &(_, _)| old.head.roots.get(*set) != Some(*root);
    let elsewhere: Vec<&str> = named
        .filter(|(set, _)| !is_kept_in(set, region))
        .filter(changed)
        .map(|(set, _)| set.as_str())
        .collect();
    if elsewhere.is_empty() {
        return false;
    }
    // What was pinned before stood in the set of all regions.
    if !old.head.is_cut() {
        return true;
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

/// Whether an object of a kind that is pinned is for a region.
fn is_for(object: &Object, region: &str) -> bool {
    match &object.body {
        Body::Proxy(proxy) => regions::include(&proxy.regions, region),
        Body::Credential(stored) => stored.credential.is_for_region(region),
        _ => false,
    }
}
