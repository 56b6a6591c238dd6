//! Policy as a whole: what the rules, filters and meters of one scope may be together, and the
//! meters of one request.

use std::collections::BTreeMap;

use super::Objects;
use crate::filter::FILTERS_PER_SCOPE_MAX;
use crate::id::OrgId;
use crate::meter::{METERS_PER_REQUEST_MAX, METERS_PER_SCOPE_MAX};
use crate::object::{Body, ObjectId};
use crate::problem::Problem;
use crate::proxy::Proxy;
use crate::rule::{ORG_COMPILED_BYTES_MAX, Rule, RuleSet};
use crate::target::Effect;

/// Judges every scope that has a touched rule, filter or meter; each problem with the operation
/// that caused it.
pub(super) fn judge(
    objects: &Objects,
    touched: &BTreeMap<ObjectId, usize>,
    org: OrgId,
    problems: &mut Vec<(usize, Problem)>,
) {
    let mut scopes: BTreeMap<ObjectId, usize> = BTreeMap::new();
    for (id, at) in touched {
        if let Some(parent) = objects.get(id).and_then(|object| object.body.parent()) {
            scopes.insert(parent, *at);
        }
    }
    if let Some(at) = touched_pattern(objects, touched) {
        let patterns = objects.values().filter_map(|object| match &object.body {
            Body::Rule(rule) => Some(rule.spec.compiled_bytes_max()),
            Body::Meter(meter) => Some(meter.spec.when.as_ref()?.compiled_bytes_max()),
            Body::Filter(filter) => Some(filter.spec.compiled_bytes_max()),
            Body::Proxy(proxy) => Some(proxy.validation.compiled_bytes_max()),
            _ => None,
        });
        if patterns.sum::<usize>() > ORG_COMPILED_BYTES_MAX {
            let detail = format!(
                "the patterns of all rules, filters, meters and schemas of the organisation \
                 compile to more than {ORG_COMPILED_BYTES_MAX} bytes; use ASCII classes such as \
                 [0-9A-Za-z_] instead of \\w, smaller repetitions, or fewer of them"
            );
            problems.push((at, Problem::new("", "patterns-too-large", detail)));
            return;
        }
    }
    let mut policies: BTreeMap<ObjectId, Vec<&Body>> = BTreeMap::new();
    if !scopes.is_empty() {
        for (_, object) in objects.attached() {
            if let Some(parent) = object.body.parent().filter(|on| scopes.contains_key(on)) {
                policies.entry(parent).or_default().push(&object.body);
            }
        }
    }
    for (parent, at) in &scopes {
        let body = policies.get(parent).map_or(&[][..], Vec::as_slice);
        let meters_only = body.iter().all(|body| matches!(body, Body::Meter(_)));
        let of_org = *parent == ObjectId::Org(org) && meters_only;
        if !of_org && !is_scope(objects, *parent) {
            let detail = format!("{parent} is no target, credential or proxy of this organisation");
            problems.push((*at, Problem::new("/parent", "unknown-parent", detail)));
            continue;
        }
        let found = together(body);
        problems.extend(found.into_iter().map(|problem| (*at, problem)));
    }
    meters_of_requests(objects, touched, org, problems);
}

/// The operation that touched a rule, filter, meter or schema which is still there.
fn touched_pattern(objects: &Objects, touched: &BTreeMap<ObjectId, usize>) -> Option<usize> {
    let has_patterns = |id: &ObjectId| match objects.get(id).map(|object| &object.body) {
        Some(Body::Rule(_) | Body::Filter(_) | Body::Meter(_)) => true,
        Some(Body::Proxy(proxy)) => !proxy.validation.is_empty(),
        _ => false,
    };
    let mut touched = touched.iter().filter(|(id, _)| has_patterns(id));
    touched.next().map(|(_, at)| *at)
}

/// What is wrong with a scope's policy although each part of it is right. Faults of single rules,
/// filters and meters are told with themselves.
fn together(policies: &[&Body]) -> Vec<Problem> {
    let (mut rules, mut filters, mut meters): (Vec<Rule>, usize, usize) = (Vec::new(), 0, 0);
    for body in policies {
        match body {
            Body::Rule(rule) => rules.push(rule.spec.clone()),
            Body::Filter(_) => filters += 1,
            Body::Meter(_) => meters += 1,
            _ => {}
        }
    }
    let mut problems = RuleSet::compile(&rules, Effect::Allow)
        .err()
        .unwrap_or_default();
    problems.retain(|problem| problem.pointer.is_empty());
    if filters > FILTERS_PER_SCOPE_MAX {
        let detail = format!("at most {FILTERS_PER_SCOPE_MAX} filters hang on one object");
        problems.push(Problem::new("", "too-many-filters", detail));
    }
    if meters > METERS_PER_SCOPE_MAX {
        let detail = format!("at most {METERS_PER_SCOPE_MAX} meters hang on one object");
        problems.push(Problem::new("", "too-many-meters", detail));
    }
    problems
}

/// More meters than one request can spend at: the first proxy that a touched object brings there.
fn meters_of_requests(
    objects: &Objects,
    touched: &BTreeMap<ObjectId, usize>,
    org: OrgId,
    problems: &mut Vec<(usize, Problem)>,
) {
    let is_meter = |id: &ObjectId| matches!(id, ObjectId::Meter(_));
    let is_proxy = |id: &ObjectId| matches!(id, ObjectId::Proxy(_));
    let all = touched.keys().any(is_meter);
    if !all && !touched.keys().any(is_proxy) {
        return;
    }
    let mut hanging: BTreeMap<ObjectId, (usize, Option<usize>)> = BTreeMap::new();
    for (id, object) in objects.attached() {
        if let Body::Meter(meter) = &object.body {
            let (count, cause) = hanging.entry(meter.parent).or_default();
            *count += 1;
            *cause = cause.or(touched.get(id).copied());
        }
    }
    if hanging.is_empty() {
        return;
    }
    for (id, proxy) in objects.proxies() {
        let id = &ObjectId::Proxy(id);
        if !all && !touched.contains_key(id) {
            continue;
        }
        let on = |id: ObjectId| hanging.get(&id).copied().unwrap_or_default();
        let credential = |id| on(ObjectId::Credential(id));
        let caller = proxy.proxy_credential_ids.iter().map(|id| credential(*id));
        let scopes = [
            (own_limits(proxy), touched.get(id).copied()),
            on(ObjectId::Org(org)),
            on(ObjectId::Target(proxy.target_id)),
            proxy
                .target_credential_id
                .map(credential)
                .unwrap_or_default(),
            on(*id),
            caller.max_by_key(|(count, _)| *count).unwrap_or_default(),
        ];
        let total: usize = scopes.iter().map(|(count, _)| count).sum();
        let cause = scopes.iter().find_map(|(_, cause)| *cause);
        if let (true, Some(at)) = (total > METERS_PER_REQUEST_MAX, cause) {
            let detail = format!(
                "{total} meters would count one request through {id} (with those of its target, \
                 credentials and organisation); at most {METERS_PER_REQUEST_MAX} may"
            );
            problems.push((at, Problem::new("", "too-many-meters", detail)));
            return;
        }
    }
}

/// `limits` of a proxy are one meter.
fn own_limits(proxy: &Proxy) -> usize {
    usize::from(proxy.limits != Default::default())
}

fn is_scope(objects: &Objects, id: ObjectId) -> bool {
    let body = objects.get(&id).map(|object| &object.body);
    matches!(
        body,
        Some(Body::Target(_) | Body::Credential(_) | Body::Proxy(_))
    )
}
