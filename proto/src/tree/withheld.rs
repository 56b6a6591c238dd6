//! What may be changed of a version of which some sets are not here: a region that was made home by
//! force carries these on by hash, unchanged.
//!
//! What is in such a set cannot be seen, and must be as right after a change as before it. So a
//! change is refused where it would be in the set itself, and where something in the set may name
//! what it changes and could be wrong by it. What is known of a set: credentials, proxies, and the
//! policy of both are pinned, nothing else; a proxy has a stub in the set of all regions, which
//! tells its target, its callers' credentials and its alias, and not its target credential; one
//! with `residency: strict` has none.

use std::collections::BTreeSet;

use super::operation::{ApplyError, Operation};
use super::sets::{forms, strictly};
use super::{Objects, OrgConfig, credential_in, reach, target_in};
use crate::credential::{Credential, CredentialKind};
use crate::id::{CredentialId, TargetId};
use crate::object::{Body, ObjectId};
use crate::problem::Problem;
use crate::proxy::Proxy;
use crate::regions;
use crate::target::Target;

/// Codes of problems with a name of what may be in a set that is not here.
const UNKNOWN: [&str; 2] = ["unknown-credential", "unknown-parent"];

/// A proxy that is not here whole.
#[derive(Clone, Copy)]
enum Hidden<'a> {
    /// Its set, and what is known of it.
    Stub(&'a str, &'a Proxy),
    /// Whatever may be in a set whose proxies leave no stub.
    Strict(&'a str),
}

impl<'a> Hidden<'a> {
    fn set(self) -> &'a str {
        match self {
            Self::Stub(set, _) | Self::Strict(set) => set,
        }
    }

    fn has_target(self, id: TargetId) -> bool {
        match self {
            Self::Stub(_, proxy) => proxy.target_id == id,
            Self::Strict(_) => true,
        }
    }

    fn has_caller(self, id: CredentialId) -> bool {
        match self {
            Self::Stub(_, proxy) => proxy.proxy_credential_ids.contains(&id),
            Self::Strict(_) => true,
        }
    }

    /// Whether it may send this target credential: one that is kept where it is served.
    fn may_send(self, credential: &Credential) -> bool {
        match self {
            Self::Stub(_, proxy) => !reach::outside_regions(proxy, credential),
            Self::Strict(set) => {
                let served: Vec<String> = strictly(set)
                    .into_iter()
                    .flat_map(|listed| listed.split(',').map(str::to_owned))
                    .collect();
                !credential.has_secret() || regions::are_within(&served, &credential.regions)
            }
        }
    }
}

/// A version of which some sets are not here.
pub(super) struct Withheld<'a> {
    parent: &'a OrgConfig,
    sets: BTreeSet<&'a str>,
    hidden: Vec<Hidden<'a>>,
}

impl<'a> Withheld<'a> {
    /// None where everything is here.
    pub fn of(parent: &'a OrgConfig) -> Option<Self> {
        let sets: BTreeSet<&str> = parent.withheld().collect();
        if sets.is_empty() {
            return None;
        }
        let mut hidden: Vec<Hidden<'_>> = Vec::new();
        hidden.extend(
            sets.iter()
                .filter(|set| strictly(set).is_some())
                .map(|set| Hidden::Strict(set)),
        );
        for (_, proxy) in parent.objects.proxies() {
            let its = proxy.regions.iter().map(String::as_str);
            let is_here = its.clone().any(|region| parent.holds(region));
            // Kept here too it is here whole, and judged as everything is.
            if !is_here && proxy.residency.is_standard() {
                let its = its.filter_map(|region| sets.get(region));
                hidden.extend(its.map(|set| Hidden::Stub(set, proxy)));
            }
        }
        Some(Self {
            parent,
            sets,
            hidden,
        })
    }

    fn refusal<'s>(&self, sets: impl IntoIterator<Item = &'s str>, why: String) -> ApplyError {
        let sets: BTreeSet<&str> = sets.into_iter().collect();
        let regions = sets.into_iter().map(super::regions_of).map(str::to_owned);
        ApplyError::Withheld {
            regions: regions.collect(),
            why,
        }
    }

    /// The sets that are not here and that an object is in, in any of these.
    fn sets_of<const N: usize>(&self, id: ObjectId, all: [&Objects; N]) -> BTreeSet<&'a str> {
        let forms = all.map(|objects| forms(objects, id));
        let names = forms.iter().flat_map(|of| of.keys());
        let of = names.filter_map(|name| self.sets.get(name.as_str()));
        of.copied().collect()
    }

    /// The sets that are not here and that an object is in, or may be in where it is unknown.
    fn away(&self, id: ObjectId) -> BTreeSet<&'a str> {
        if self.parent.objects.contains_key(&id) {
            return self.sets_of(id, [&self.parent.objects]);
        }
        let may_have = |set: &&&str| match id {
            ObjectId::Proxy(_) => strictly(set).is_some(),
            ObjectId::Credential(_)
            | ObjectId::Rule(_)
            | ObjectId::Filter(_)
            | ObjectId::Meter(_) => true,
            ObjectId::Org(_) | ObjectId::Token(_) | ObjectId::Target(_) => false,
        };
        self.sets.iter().filter(may_have).copied().collect()
    }

    /// Why an object cannot be changed whatever the change is: it is not here whole, or may be in
    /// what is not here.
    pub fn refuses(&self, operation: &Operation) -> Option<ApplyError> {
        let id = operation.id();
        if matches!(operation, Operation::Create { .. }) {
            return None;
        }
        let of = self.away(id);
        let why = match self.parent.objects.contains_key(&id) {
            true => format!("{id} is kept there"),
            false => format!("{id} is not here, and may be kept there"),
        };
        (!of.is_empty()).then(|| self.refusal(of, why))
    }

    /// Takes out problems with names of what may only be not here; whether there were any.
    pub fn take_unknown(&self, problems: &mut Vec<(usize, Problem)>) -> Option<ApplyError> {
        let is_unknown = |problem: &Problem| UNKNOWN.contains(&problem.code);
        let unknown = problems.iter().find(|(_, problem)| is_unknown(problem));
        let why = unknown.map(|(_, problem)| format!("{}, or is kept there", problem.detail))?;
        problems.retain(|(_, problem)| !is_unknown(problem));
        Some(self.refusal(self.sets.iter().copied(), why))
    }

    /// The first change that would be in a set that is not here, or by which something in it could
    /// be wrong.
    pub fn judge<'i>(
        &self,
        objects: &Objects,
        changed: impl Iterator<Item = &'i ObjectId>,
    ) -> Option<ApplyError> {
        let before = &self.parent.objects;
        for id in changed {
            let of = self.sets_of(*id, [before, objects]);
            if !of.is_empty() {
                return Some(self.refusal(of, format!("{id} is, or would be, kept there")));
            }
            let bodies = [before, objects].map(|of| of.get(id).map(|object| &object.body));
            let [before, after] = bodies;
            let by = self.endangered(*id, (before, after), objects);
            if !by.is_empty() {
                let what = match after {
                    Some(_) => "this change of it",
                    None => "its deletion",
                };
                let why = format!("something there may name {id}, and be wrong by {what}");
                return Some(self.refusal(by.into_iter().map(Hidden::set), why));
            }
        }
        None
    }

    /// What is not here and could be wrong by the change of an object.
    fn endangered(
        &self,
        id: ObjectId,
        (before, after): (Option<&Body>, Option<&Body>),
        objects: &Objects,
    ) -> Vec<Hidden<'a>> {
        let those = |may: &dyn Fn(Hidden<'a>) -> bool| {
            let hidden = self.hidden.iter().copied();
            hidden.filter(|of| may(*of)).collect::<Vec<_>>()
        };
        match (id, before, after) {
            // One that a stub names is refused as in use.
            (ObjectId::Target(_), Some(_), None) => those(&|of| matches!(of, Hidden::Strict(_))),
            (ObjectId::Target(id), Some(Body::Target(before)), Some(Body::Target(after)))
                if addresses(before) != addresses(after) =>
            {
                those(&|of| of.has_target(id))
            }
            (ObjectId::Credential(id), Some(Body::Credential(before)), after) => {
                let before = &before.credential;
                match (before.kind, after) {
                    (CredentialKind::Proxy, Some(_)) => Vec::new(),
                    (CredentialKind::Proxy, None) => {
                        those(&|of| matches!(of, Hidden::Strict(_)) && of.has_caller(id))
                    }
                    (CredentialKind::Target, Some(Body::Credential(after)))
                        if is_as_wide(before, &after.credential) =>
                    {
                        Vec::new()
                    }
                    (CredentialKind::Target, _) => those(&|of| of.may_send(before)),
                }
            }
            (_, before, Some(Body::Proxy(after))) => {
                let had = match before {
                    Some(Body::Proxy(before)) => before.alias.as_ref(),
                    _ => None,
                };
                match after.alias.as_ref() {
                    // No other proxy may have it.
                    Some(alias) if had != Some(alias) => {
                        those(&|of| matches!(of, Hidden::Strict(_)))
                    }
                    _ => Vec::new(),
                }
            }
            // A request has room for so many meters, and those of the proxy are not known.
            (_, None, Some(Body::Meter(meter))) => those(&|of| counts(objects, meter.parent, of)),
            _ => Vec::new(),
        }
    }
}

impl OrgConfig {
    /// The regions that alone keep an object, or may where it is unknown, of those of which what
    /// they keep is not here.
    pub fn away(&self, id: ObjectId) -> Vec<String> {
        let withheld = Withheld::of(self);
        let away = withheld.map(|withheld| withheld.away(id));
        let away = away.into_iter().flatten().map(super::regions_of);
        away.map(str::to_owned).collect()
    }
}

/// Where a target's requests may go, and from where.
fn addresses(target: &Target) -> (&str, Vec<(&str, Option<&str>)>) {
    let endpoints = target.endpoints.iter();
    let endpoints = endpoints.map(|of| (of.base_url.as_str(), of.region.as_deref()));
    (&target.base_url, endpoints.collect())
}

/// Whether what may be sent with a credential may still be after a change of it.
fn is_as_wide(before: &Credential, after: &Credential) -> bool {
    let mut hosts = before.hosts.iter();
    hosts.all(|host| after.hosts.contains(host))
        && regions::are_within(&before.regions, &after.regions)
        && reach::injected_header(before) == reach::injected_header(after)
}

/// Whether a meter on an object may count requests of a proxy.
fn counts(objects: &Objects, on: ObjectId, of: Hidden<'_>) -> bool {
    match on {
        ObjectId::Org(_) => true,
        ObjectId::Target(id) => target_in(objects, id).is_none() || of.has_target(id),
        ObjectId::Credential(id) => match credential_in(objects, id).map(|of| &of.credential) {
            Some(credential) if credential.kind == CredentialKind::Target => {
                of.may_send(credential)
            }
            _ => of.has_caller(id),
        },
        _ => false,
    }
}
