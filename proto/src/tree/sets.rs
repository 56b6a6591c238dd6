//! Which regions keep an object: the cut of a version into one set for all regions and one for each
//! region that something is pinned to.
//!
//! What is pinned stands in the sets of its regions alone, with the policy that hangs on it. A
//! pinned proxy leaves a stub in the set of all regions: what they need to tell a call of it from
//! one of nothing, and to pass it on. A version names every set by the hash of its root, so that
//! a region verifies those it keeps and carries the others on unseen.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::pack::{Layout, Leaf, TreeError, repack};
use super::{EVERYWHERE, Hash, Head, Objects, OrgConfig};
use crate::object::{Body, Object, ObjectId};
use crate::proxy::Proxy;
use crate::regions::{self, Residency};

/// The objects of one set, and where they stand.
#[derive(Clone, Debug)]
pub(super) struct Set {
    pub objects: Objects,
    pub layout: Layout,
}

impl Set {
    fn empty() -> Self {
        Self {
            objects: Objects::new(),
            layout: Layout::empty(),
        }
    }
}

/// Sets by region, that of all regions among them.
pub(super) type Sets = BTreeMap<String, Set>;

/// What stands before the regions of a set that no other region may keep, home or not.
const STRICT: &str = "strict/";

/// Whether a region that is not home keeps a set.
pub fn is_kept_in(set: &str, region: &str) -> bool {
    match set.strip_prefix(STRICT) {
        Some(regions) => regions.split(',').any(|listed| listed == region),
        None => set == EVERYWHERE || set == region,
    }
}

/// The regions that a set may not leave; none of one that home may have, whichever region that is.
pub(super) fn strictly(set: &str) -> Option<&str> {
    set.strip_prefix(STRICT)
}

/// Whether no region that is not listed may keep a set, home or not.
pub fn is_strict(set: &str) -> bool {
    strictly(set).is_some()
}

/// The regions of a set, in words.
pub fn regions_of(set: &str) -> &str {
    strictly(set).unwrap_or(set)
}

/// The set of what these regions alone know of.
fn strict_set(regions: &[String]) -> String {
    let sorted: BTreeSet<&str> = regions.iter().map(String::as_str).collect();
    let listed: Vec<&str> = sorted.into_iter().collect();
    format!("{STRICT}{}", listed.join(","))
}

/// The sets before the first version.
pub(super) fn none() -> Sets {
    Sets::from([(EVERYWHERE.to_owned(), Set::empty())])
}

/// The regions that an object itself is pinned to; none for one that is everywhere.
fn pinned(body: &Body) -> &[String] {
    let listed = body.regions().unwrap_or_default();
    match regions::is_everywhere(listed) {
        true => &[],
        false => listed,
    }
}

/// What decides where an object is kept: itself, or the scope of a policy.
fn deciding<'a>(objects: &'a Objects, object: &'a Object) -> &'a Body {
    let scope = object.body.parent().and_then(|scope| objects.get(&scope));
    scope.map_or(&object.body, |scope| &scope.body)
}

/// What regions that do not serve a proxy know of it. That of a stub is the same stub.
fn stub(object: &Object, proxy: &Proxy) -> Object {
    // Whatever is added to proxies is to be decided on here.
    let known = Proxy {
        name: String::new(),
        alias: proxy.alias.clone(),
        former_aliases: proxy.former_aliases.clone(),
        active: proxy.active,
        proxy_credential_ids: proxy.proxy_credential_ids.clone(),
        regions: proxy.regions.clone(),
        cross_region: proxy.cross_region,
        residency: proxy.residency,
        target_id: proxy.target_id,
        target_credential_id: None,
        default_rule_effect: Default::default(),
        limits: Default::default(),
        timeouts: proxy.timeouts,
        body_buffer_bytes: proxy.body_buffer_bytes,
        cookies: None,
        rewrite_urls: Default::default(),
        scrub: Default::default(),
        foreign_urls: Default::default(),
        error_bodies: Default::default(),
        validation: Default::default(),
        on_client_abort: Default::default(),
        forward_caller_headers: Vec::new(),
        record: proxy.record.clone(),
        acknowledge_open: proxy.acknowledge_open,
        labels: BTreeMap::new(),
    };
    Object {
        body: Body::Proxy(known),
        ..object.clone()
    }
}

/// The form of an object in every set that it is in.
pub(super) fn forms(objects: &Objects, id: ObjectId) -> BTreeMap<String, Arc<Object>> {
    let Some(object) = objects.get(&id) else {
        return BTreeMap::new();
    };
    let whole = |set: String| (set, Arc::clone(object));
    let deciding = deciding(objects, object);
    let pinned = pinned(deciding);
    if pinned.is_empty() {
        return BTreeMap::from([whole(EVERYWHERE.to_owned())]);
    }
    if matches!(deciding, Body::Proxy(proxy) if !proxy.residency.is_standard()) {
        return BTreeMap::from([whole(strict_set(pinned))]);
    }
    let mut forms: BTreeMap<_, _> = pinned.iter().cloned().map(whole).collect();
    if let Body::Proxy(proxy) = &object.body {
        forms.insert(EVERYWHERE.to_owned(), Arc::new(stub(object, proxy)));
    }
    forms
}

/// What may have come into another set by a change: what changed, and the policy that hangs on what
/// was pinned otherwise before.
fn moved(parent: &OrgConfig, objects: &Objects, changed: &[ObjectId]) -> BTreeSet<ObjectId> {
    let mut moved: BTreeSet<ObjectId> = changed.iter().copied().collect();
    if !parent.head.is_cut() {
        // It may hold what was pinned before versions were cut.
        let pinned = objects.regional();
        let pinned = pinned.filter(|(_, listed)| !regions::is_everywhere(listed));
        let scopes: BTreeSet<ObjectId> = pinned.map(|(id, _)| id).collect();
        moved.extend(attached_to(objects, &scopes).chain(scopes.iter().copied()));
        return moved;
    }
    let kept = |objects: &Objects, id: &ObjectId| match objects.get(id).map(|object| &object.body) {
        Some(body @ Body::Proxy(proxy)) => (pinned(body).to_vec(), proxy.residency),
        Some(body) => (pinned(body).to_vec(), Residency::Standard),
        None => (Vec::new(), Residency::Standard),
    };
    let differs = |id: &&ObjectId| kept(&parent.objects, id) != kept(objects, id);
    let scopes: BTreeSet<ObjectId> = changed.iter().filter(differs).copied().collect();
    moved.extend(attached_to(objects, &scopes));
    moved
}

/// The policy that hangs on some objects.
fn attached_to<'a>(
    objects: &'a Objects,
    scopes: &'a BTreeSet<ObjectId>,
) -> impl Iterator<Item = ObjectId> + 'a {
    let hangs = |object: &Object| object.body.parent().is_some_and(|on| scopes.contains(&on));
    let attached = (!scopes.is_empty()).then(|| objects.attached());
    let attached = attached.into_iter().flatten();
    attached
        .filter(move |(_, object)| hangs(object))
        .map(|(id, _)| *id)
}

/// The sets of the version that follows `parent`, and the leaves and roots that its sets lack.
/// `by_region` is whether what is pinned stands in the sets of its regions; otherwise everything
/// is in the set of all regions.
pub(super) fn cut(
    parent: &OrgConfig,
    objects: &Objects,
    changed: &[ObjectId],
    by_region: bool,
) -> Result<(Sets, Vec<Leaf>), TreeError> {
    let mut sets = parent.sets.clone();
    let mut rebuilt: BTreeMap<String, Vec<ObjectId>> = BTreeMap::new();
    if by_region {
        for id in moved(parent, objects, changed) {
            let forms = forms(objects, id);
            let names: BTreeSet<String> = forms.keys().chain(sets.keys()).cloned().collect();
            for name in names {
                let form = forms.get(&name);
                let set = sets.entry(name.clone()).or_insert_with(Set::empty);
                if set.objects.get(&id) == form {
                    continue;
                }
                match form {
                    Some(form) => drop(set.objects.insert(id, Arc::clone(form))),
                    None => drop(set.objects.remove(&id)),
                }
                rebuilt.entry(name).or_default().push(id);
            }
        }
    } else {
        let all = sets.entry(EVERYWHERE.to_owned()).or_insert_with(Set::empty);
        all.objects = objects.clone();
        rebuilt.insert(EVERYWHERE.to_owned(), changed.to_vec());
    }
    if parent.head.roots.is_empty() {
        rebuilt.entry(EVERYWHERE.to_owned()).or_default();
    }
    sets.retain(|name, set| name == EVERYWHERE || !set.objects.is_empty());
    let mut fresh: BTreeMap<Hash, Leaf> = BTreeMap::new();
    for (name, ids) in rebuilt {
        // The last object of a set takes it along.
        let Some(set) = sets.get_mut(&name) else {
            continue;
        };
        let (layout, leaves) = repack(&set.layout, &set.objects, &ids)?;
        set.layout = layout;
        // Two sets with the same content share it.
        fresh.extend(leaves.into_iter().map(|leaf| (leaf.hash, leaf)));
    }
    Ok((sets, fresh.into_values().collect()))
}

/// The hash of each set's root.
pub(super) fn roots(sets: &Sets) -> BTreeMap<String, Hash> {
    let roots = sets.iter();
    roots
        .map(|(name, set)| (name.clone(), set.layout.root))
        .collect()
}

/// All objects of some sets, whole where one of them has it so.
pub(super) fn union(sets: &Sets) -> Objects {
    // `*` sorts before every name of a region.
    let mut of_sets = sets.values();
    let mut all = of_sets
        .next()
        .map(|set| set.objects.clone())
        .unwrap_or_default();
    for (id, object) in of_sets.flat_map(|set| set.objects.iter()) {
        all.insert(*id, Arc::clone(object));
    }
    all
}

impl OrgConfig {
    /// The same without what a region does not keep.
    pub fn kept_in(mut self, region: &str) -> Self {
        let head = &self.head;
        if self.sets.keys().all(|set| head.is_kept(set, region)) {
            return self;
        }
        self.sets.retain(|set, _| head.is_kept(set, region));
        self.objects = union(&self.sets);
        self
    }

    /// Whether a set is here.
    pub fn holds(&self, set: &str) -> bool {
        self.sets.contains_key(set)
    }

    /// The sets that the version has and this copy of it does not.
    pub fn withheld(&self) -> impl Iterator<Item = &str> {
        let named = self.head.roots.keys().map(String::as_str);
        named.filter(|set| !self.holds(set))
    }

    /// The same, by their regions, in words.
    pub fn withheld_regions(&self) -> Vec<String> {
        let regions = self.withheld().map(regions_of);
        regions.map(str::to_owned).collect()
    }

    /// The roots of those sets: a version that follows names them as they are.
    pub(super) fn carried(&self) -> BTreeMap<String, Hash> {
        let withheld = self.withheld();
        let named = withheld.filter_map(|set| Some((set.to_owned(), *self.head.roots.get(set)?)));
        named.collect()
    }

    /// Whether a root that the head names is that of a set that is here, or of none that is needed:
    /// the sets of a head that follows this version, of which `sets` were made.
    pub(super) fn kept(&self, head: &Head, mut sets: Sets) -> Option<Sets> {
        let withheld: BTreeSet<&str> = self.withheld().collect();
        sets.retain(|name, _| !withheld.contains(name.as_str()));
        let is_made = |(name, root): (&String, &Hash)| match sets.get(name) {
            Some(set) => set.layout.root == *root,
            None => withheld.contains(name.as_str()),
        };
        let is_whole = head.roots.iter().all(is_made);
        let is_named = sets.keys().all(|name| head.roots.contains_key(name));
        (is_whole && is_named).then_some(sets)
    }
}
