//! Policy as a whole: what the rules and filters of one scope may be together.

use std::collections::BTreeMap;

use super::Objects;
use crate::filter::FILTERS_PER_SCOPE_MAX;
use crate::object::{Body, ObjectId};
use crate::problem::Problem;
use crate::rule::{ORG_COMPILED_BYTES_MAX, Rule, RuleSet};
use crate::target::Effect;

/// Judges every scope that has a touched rule or filter; each problem with the operation that
/// caused it.
pub(super) fn judge(
    objects: &Objects,
    touched: &BTreeMap<ObjectId, usize>,
    problems: &mut Vec<(usize, Problem)>,
) {
    let mut scopes: BTreeMap<ObjectId, usize> = BTreeMap::new();
    for (id, at) in touched {
        if let Some(parent) = objects.get(id).and_then(|object| object.body.parent()) {
            scopes.insert(parent, *at);
        }
    }
    if let Some(at) = touched_rule(objects, touched) {
        let rules = objects.values().filter_map(|object| match &object.body {
            Body::Rule(rule) => Some(rule.spec.compiled_bytes_max()),
            _ => None,
        });
        if rules.sum::<usize>() > ORG_COMPILED_BYTES_MAX {
            let detail = format!(
                "the patterns of all rules of the organisation compile to more than \
                 {ORG_COMPILED_BYTES_MAX} bytes; use ASCII classes such as [0-9A-Za-z_] instead \
                 of \\w, smaller repetitions, or fewer rules"
            );
            problems.push((at, Problem::new("", "patterns-too-large", detail)));
        }
    }
    let mut policies: BTreeMap<ObjectId, Vec<&Body>> = BTreeMap::new();
    for object in objects.values() {
        if let Some(parent) = object.body.parent().filter(|on| scopes.contains_key(on)) {
            policies.entry(parent).or_default().push(&object.body);
        }
    }
    for (parent, at) in &scopes {
        if !is_scope(objects, *parent) {
            let detail = format!("{parent} is no target, credential or proxy of this organisation");
            problems.push((*at, Problem::new("/parent", "unknown-parent", detail)));
            continue;
        }
        let found = together(policies.get(parent).map_or(&[], Vec::as_slice));
        problems.extend(found.into_iter().map(|problem| (*at, problem)));
    }
}

/// The operation that touched a rule which is still there.
fn touched_rule(objects: &Objects, touched: &BTreeMap<ObjectId, usize>) -> Option<usize> {
    let rules = touched
        .iter()
        .filter(|(id, _)| matches!(id, ObjectId::Rule(_)));
    rules
        .filter(|(id, _)| objects.contains_key(id))
        .map(|(_, at)| *at)
        .next()
}

/// What is wrong with a scope's policy although each part of it is right. Faults of single rules
/// and filters are told with themselves.
fn together(policies: &[&Body]) -> Vec<Problem> {
    let (mut rules, mut filters): (Vec<Rule>, usize) = (Vec::new(), 0);
    for body in policies {
        match body {
            Body::Rule(rule) => rules.push(rule.spec.clone()),
            Body::Filter(_) => filters += 1,
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
    problems
}

fn is_scope(objects: &Objects, id: ObjectId) -> bool {
    let body = objects.get(&id).map(|object| &object.body);
    matches!(
        body,
        Some(Body::Target(_) | Body::Credential(_) | Body::Proxy(_))
    )
}
