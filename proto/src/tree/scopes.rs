//! Policy as a whole: what the rules of one scope may be together.

use std::collections::BTreeMap;

use super::Objects;
use crate::filter::FILTERS_PER_SCOPE_MAX;
use crate::object::{Body, ObjectId};
use crate::problem::Problem;
use crate::rule::{Rule, RuleSet};
use crate::target::Effect;

/// Judges every scope that has a touched rule; each problem with the operation that caused it.
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
    for (parent, at) in &scopes {
        if !is_scope(objects, *parent) {
            let detail = format!("{parent} is no target, credential or proxy of this organisation");
            problems.push((*at, Problem::new("/parent", "unknown-parent", detail)));
            continue;
        }
        let filters = filters(objects, *parent);
        if filters > FILTERS_PER_SCOPE_MAX {
            let detail = format!("a scope has at most {FILTERS_PER_SCOPE_MAX} filters, this has {filters}");
            problems.push((*at, Problem::new("", "filters-too-many", detail)));
        }
        let mine = rules(objects, *parent);
        let specs: Vec<Rule> = mine.iter().map(|(_, rule)| Rule::clone(rule)).collect();
        // Faults of single rules are told with the rules themselves; here only what they are
        // together, which has no place in any of them.
        let Err(found) = RuleSet::compile(&specs, Effect::Allow) else {
            continue;
        };
        let together = found
            .into_iter()
            .filter(|problem| problem.pointer.is_empty());
        problems.extend(together.map(|problem| (*at, problem)));
    }
}

fn is_scope(objects: &Objects, id: ObjectId) -> bool {
    let body = objects.get(&id).map(|object| &object.body);
    matches!(
        body,
        Some(Body::Target(_) | Body::Credential(_) | Body::Proxy(_))
    )
}

fn filters(objects: &Objects, parent: ObjectId) -> usize {
    let hangs_here =
        |body: &Body| matches!(body, Body::Filter(filter) if filter.parent == parent);
    objects.values().filter(|object| hangs_here(&object.body)).count()
}

fn rules(objects: &Objects, parent: ObjectId) -> Vec<(ObjectId, &Rule)> {
    let all = objects.iter();
    let mine = all.filter_map(|(id, object)| match &object.body {
        Body::Rule(rule) if rule.parent == parent => Some((*id, &rule.spec)),
        _ => None,
    });
    mine.collect()
}
