//! What objects need of each other: names that exist, names that are unique, secrets that stay
//! within their hosts, roles that reach.
//!
//! Judged on the finished draft, so the order of a publish's operations does not matter; again on
//! every new head after a lost race, so that no dangling name is ever committed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::operation::{ApplyError, Context};
use super::taken::taken;
use super::{Objects, OrgConfig, credential_in, reach, roles, scopes, target_in};
use crate::checks;
use crate::credential::{AuthType, Credential, CredentialKind, WILDCARD_TOO_WIDE};
use crate::hosts::HostPattern;
use crate::id::{CredentialId, ProxyId};
use crate::object::{Body, Object, ObjectId};
use crate::pattern_size;
use crate::problem::Problem;
use crate::proxy::Proxy;
use crate::regions;
use crate::rule::CHANGE_COMPILED_BYTES_MAX;
use crate::target::Target;

/// Most users that a refusal names.
const USERS_NAMED_MAX: usize = 100;

/// What was found.
#[derive(Default)]
pub(super) struct Judged {
    /// Faults, each with the operation that caused it.
    pub problems: Vec<(usize, Problem)>,
    /// What the role does not reach.
    pub forbidden: Vec<(usize, Problem)>,
    /// The first taken name or object in use.
    pub conflict: Option<ApplyError>,
}

/// Fills what was not given, where it depends on other objects too.
pub(super) fn complete<'a>(objects: &mut Objects, touched: impl Iterator<Item = &'a ObjectId>) {
    for id in touched {
        let Some(object) = objects.get(id) else {
            continue;
        };
        let mut body = object.body.clone();
        match &mut body {
            Body::Org(org) => org.complete(),
            Body::Target(target) => target.complete(),
            Body::Credential(stored) => stored.credential.complete(),
            Body::Proxy(proxy) if proxy.name.is_empty() => {
                let target = target_in(objects, proxy.target_id).map(|target| target.name.clone());
                // Without a target, or with one that is refused for its URL or its name, the proxy
                // is not refused for its own name too.
                let target = target.filter(|name| checks::is_name(name));
                let name = proxy.alias.clone().or(target);
                proxy.name = name.unwrap_or_else(|| "proxy".to_owned());
            }
            Body::Rule(rule) => rule.spec.id = id.to_string(),
            Body::Filter(filter) => filter.spec.id = id.to_string(),
            Body::Meter(meter) => meter.spec.id = id.to_string(),
            Body::Token(_) | Body::Proxy(_) => {}
        }
        if body != object.body {
            let object = Object {
                body,
                ..Object::clone(object)
            };
            objects.insert(*id, Arc::new(object));
        }
    }
}

/// Judges the touched objects of a draft and everything that names them.
pub(super) fn judge(
    parent: &OrgConfig,
    objects: &Objects,
    touched: &BTreeMap<ObjectId, usize>,
    context: &Context<'_>,
    judged: &mut Judged,
) {
    let before = &parent.objects;
    for (id, at) in touched {
        let (old, new) = (before.get(id), objects.get(id));
        let needed = roles::beyond(before, objects, old, new, context.role);
        judged
            .forbidden
            .extend(needed.into_iter().map(|problem| (*at, problem)));
    }
    // Nobody has patterns compiled for what they may not do.
    if !judged.forbidden.is_empty() {
        return;
    }
    let made_before = pattern_size::made_bytes();
    for (id, at) in touched {
        let Some(object) = objects.get(id) else {
            continue;
        };
        if pattern_size::made_bytes().wrapping_sub(made_before) > CHANGE_COMPILED_BYTES_MAX {
            let detail = format!(
                "the patterns of this change compile to more than {CHANGE_COMPILED_BYTES_MAX} \
                 bytes up to here, and what follows was not judged; make it in parts"
            );
            let problem = Problem::new("", "patterns-too-large", detail);
            judged.problems.push((*at, problem));
            return;
        }
        let found = body_problems(parent, objects, &object.body, context);
        let found = found.into_iter().map(|problem| (*at, problem));
        judged.problems.extend(found);
    }
    scopes::judge(objects, touched, parent.org, &mut judged.problems);
    let names = |id: &ObjectId| matches!(id, ObjectId::Target(_) | ObjectId::Credential(_));
    if touched.keys().any(names) {
        for (id, proxy) in objects.proxies() {
            if !touched.contains_key(&ObjectId::Proxy(id)) {
                judge_dependent(objects, touched, id, proxy, judged);
            }
        }
    }
    judged.conflict = taken(objects, touched).or_else(|| in_use(objects, touched));
}

fn body_problems(
    parent: &OrgConfig,
    objects: &Objects,
    body: &Body,
    context: &Context<'_>,
) -> Vec<Problem> {
    let mut problems = body.validate();
    match body {
        Body::Target(target) => {
            problems.extend(context.policy.judge(target));
            for (at, endpoint) in target.endpoints.iter().enumerate() {
                if let Some(region) = &endpoint.region {
                    let pointer = format!("/endpoints/{at}/region");
                    context.policy.judge_region(region, &pointer, &mut problems);
                }
            }
        }
        Body::Proxy(proxy) => {
            problems.extend(proxy_problems(objects, proxy));
            judge_regions(&proxy.regions, context, &mut problems);
            let shared_by = &proxy.limits.shared_by;
            let policy = context.policy;
            policy.judge_shares(shared_by, "/limits", &proxy.regions, &mut problems);
            let home = &parent.head.epoch.region;
            context.policy.judge_residency(proxy, home, &mut problems);
        }
        Body::Credential(stored) => {
            offer_exact(objects, &stored.credential.hosts, &mut problems);
            judge_regions(&stored.credential.regions, context, &mut problems);
        }
        Body::Meter(meter) => {
            let scope = objects.get(&meter.parent).map(|object| &object.body);
            let everywhere = regions::everywhere();
            let served = match scope {
                Some(Body::Proxy(proxy)) => &proxy.regions,
                Some(Body::Credential(stored)) => &stored.credential.regions,
                _ => &everywhere,
            };
            let shared_by = &meter.spec.shared_by;
            let policy = context.policy;
            policy.judge_shares(shared_by, "", served, &mut problems);
        }
        _ => {}
    }
    problems
}

fn judge_regions(listed: &[String], context: &Context<'_>, problems: &mut Vec<Problem>) {
    let named = listed.iter().enumerate();
    for (at, region) in named.filter(|(_, region)| *region != regions::EVERYWHERE) {
        let pointer = format!("/regions/{at}");
        context.policy.judge_region(region, &pointer, problems);
    }
}

/// Most names that are offered in the place of a wildcard.
const OFFERED_MAX: usize = 10;

/// Tells with each wildcard that is too wide which exact names the organisation's targets use.
fn offer_exact(objects: &Objects, hosts: &[HostPattern], problems: &mut [Problem]) {
    for problem in problems.iter_mut().filter(|p| p.code == WILDCARD_TOO_WIDE) {
        let at = problem.pointer.strip_prefix("/hosts/");
        let Some(wide) = at.and_then(|at| hosts.get(at.parse::<usize>().ok()?)) else {
            continue;
        };
        let in_use: BTreeSet<String> = objects
            .values()
            .filter_map(|object| match &object.body {
                Body::Target(target) => Some(target),
                _ => None,
            })
            .flat_map(Target::bases)
            .filter(|(_, base)| wide.covers(&base.origin))
            .map(|(_, base)| HostPattern::exact(base.origin).to_string())
            .take(OFFERED_MAX)
            .collect();
        if !in_use.is_empty() {
            let names: Vec<String> = in_use.iter().map(|name| format!("\"{name}\"")).collect();
            problem
                .detail
                .push_str(&format!("; your targets use [{}]", names.join(", ")));
        }
    }
}

/// Every problem of what a proxy names.
fn proxy_problems(objects: &Objects, proxy: &Proxy) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (at, id) in proxy.proxy_credential_ids.iter().enumerate() {
        let pointer = format!("/proxy_credential_ids/{at}");
        let found = credential_of(objects, *id, CredentialKind::Proxy, pointer, &mut problems);
        if found.is_some_and(|found| found.auth_type == AuthType::None) && !proxy.acknowledge_open {
            let detail = format!("{id} lets anybody call; set `acknowledge_open` if that is meant");
            problems.push(Problem::new("/acknowledge_open", "open-proxy", detail));
        }
    }
    let target = target_in(objects, proxy.target_id);
    if target.is_none() {
        let detail = format!("target {} does not exist", proxy.target_id);
        problems.push(Problem::new("/target_id", "unknown-target", detail));
    }
    if let Some(detail) = reach::outside_endpoints(objects, proxy) {
        for pointer in ["/regions", "/target_id"] {
            problems.push(Problem::new(pointer, "endpoint-region", detail.clone()));
        }
    }
    let Some(id) = proxy.target_credential_id else {
        return problems;
    };
    let pointer = "/target_credential_id".to_owned();
    let kind = CredentialKind::Target;
    let Some(credential) = credential_of(objects, id, kind, pointer, &mut problems) else {
        return problems;
    };
    if let Some((_, outside)) = target.and_then(|target| reach::outside_hosts(target, credential)) {
        let detail = format!(
            "{id} may be sent to {} only, and {} is {outside}",
            reach::hosts(credential),
            proxy.target_id,
        );
        for pointer in ["/target_id", "/target_credential_id"] {
            problems.push(Problem::new(pointer, "credential-host", detail.clone()));
        }
    }
    if reach::outside_regions(proxy, credential) {
        let detail = format!(
            "{id} is kept in {} only; give this proxy no other `regions`",
            credential.regions.join(", ")
        );
        for pointer in ["/regions", "/target_credential_id"] {
            problems.push(Problem::new(pointer, "credential-region", detail.clone()));
        }
    }
    for at in reach::set_by_both(proxy, credential) {
        let detail = format!("target credential {id} sets this header itself");
        let pointer = format!("/forward_caller_headers/{at}");
        problems.push(Problem::new(pointer, "header-injected", detail));
    }
    problems
}

fn credential_of<'a>(
    objects: &'a Objects,
    id: CredentialId,
    kind: CredentialKind,
    pointer: String,
    problems: &mut Vec<Problem>,
) -> Option<&'a Credential> {
    let Some(stored) = credential_in(objects, id) else {
        let detail = format!("credential {id} does not exist");
        problems.push(Problem::new(pointer, "unknown-credential", detail));
        return None;
    };
    if stored.credential.kind != kind {
        let detail = format!(
            "{id} is a {} credential",
            if kind == CredentialKind::Proxy {
                "target"
            } else {
                "proxy"
            }
        );
        problems.push(Problem::new(pointer, "credential-kind", detail));
        return None;
    }
    Some(&stored.credential)
}

/// A proxy that did not change itself, but what it names may have.
fn judge_dependent(
    objects: &Objects,
    touched: &BTreeMap<ObjectId, usize>,
    id: ProxyId,
    proxy: &Proxy,
    judged: &mut Judged,
) {
    let target_at = touched.get(&ObjectId::Target(proxy.target_id));
    if let Some(at) = target_at
        && let Some(detail) = reach::outside_endpoints(objects, proxy)
    {
        let problem = Problem::new("/endpoints", "endpoint-region", format!("{id}: {detail}"));
        judged.problems.push((*at, problem));
    }
    let Some(credential_id) = proxy.target_credential_id else {
        return;
    };
    let credential_at = touched.get(&ObjectId::Credential(credential_id));
    if target_at.is_none() && credential_at.is_none() {
        return;
    }
    let (Some(target), Some(stored)) = (
        target_in(objects, proxy.target_id),
        credential_in(objects, credential_id),
    ) else {
        // Deleted: reported as in use.
        return;
    };
    let credential = &stored.credential;
    if let Some((pointer, outside)) = reach::outside_hosts(target, credential) {
        let detail = format!(
            "proxy {id} would send credential {credential_id} to {outside}; it may be sent to {} \
             only",
            reach::hosts(credential)
        );
        let cause = target_at
            .map(|at| (at, pointer.as_str()))
            .or(credential_at.map(|at| (at, "/hosts")));
        if let Some((at, pointer)) = cause {
            let problem = Problem::new(pointer, "credential-host", detail);
            judged.problems.push((*at, problem));
        }
    }
    if let Some(at) = credential_at.filter(|_| reach::outside_regions(proxy, credential)) {
        let detail = format!(
            "proxy {id} is served in {} and needs it there",
            proxy.regions.join(", ")
        );
        let problem = Problem::new("/regions", "credential-region", detail);
        judged.problems.push((*at, problem));
    }
    if let Some(at) = credential_at.filter(|_| !reach::set_by_both(proxy, credential).is_empty()) {
        let detail = format!("proxy {id} forwards the caller's header of this name");
        judged.problems.push((
            *at,
            Problem::new("/settings/header", "header-injected", detail),
        ));
    }
}

/// The first deleted object that others still name.
fn in_use(objects: &Objects, touched: &BTreeMap<ObjectId, usize>) -> Option<ApplyError> {
    let gone: BTreeSet<ObjectId> = touched
        .keys()
        .filter(|id| !objects.contains_key(id))
        .copied()
        .collect();
    if gone.is_empty() {
        return None;
    }
    let mut users: BTreeMap<ObjectId, Vec<ObjectId>> = BTreeMap::new();
    for (proxy_id, proxy) in objects.proxies() {
        let credentials = proxy
            .proxy_credential_ids
            .iter()
            .chain(&proxy.target_credential_id);
        let mut named: Vec<ObjectId> = credentials.map(|id| ObjectId::Credential(*id)).collect();
        named.push(ObjectId::Target(proxy.target_id));
        for id in named.into_iter().filter(|id| gone.contains(id)) {
            let users = users.entry(id).or_default();
            if users.len() < USERS_NAMED_MAX {
                users.push(ObjectId::Proxy(proxy_id));
            }
        }
    }
    let (id, users) = users.into_iter().next()?;
    Some(ApplyError::InUse { id, users })
}
