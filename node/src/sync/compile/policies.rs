//! Rules, filters and meters, found by what they hang on.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use proto::filter::{CompiledFilter, Direction, MaskKey};
use proto::meter::Meter;
use proto::object::{Body, ObjectId};
use proto::rule::Rule;
use proto::seal::{DigestKey, Purpose};
use proto::store::follow::OrgState;

use super::hanging::Hanging;
use super::joined;
use super::meters::over_homes;

/// Rules, filters and meters by the object that they hang on.
#[derive(Default)]
pub(super) struct Policies {
    pub(super) rules: HashMap<ObjectId, Vec<Rule>>,
    /// Each compiled once for all proxies that it applies to, or why it does not.
    filters: HashMap<ObjectId, Vec<Result<Arc<CompiledFilter>, String>>>,
    /// Each with the version that last changed it ([`over_homes`]).
    meters: HashMap<ObjectId, Vec<(u64, Meter)>>,
}

impl Policies {
    /// Those of an organisation that hang on `scopes`, of all that is `hanging`.
    pub(super) fn of(
        state: &OrgState,
        hanging: &Hanging,
        scopes: &HashSet<ObjectId>,
        digest_key: &DigestKey,
    ) -> Self {
        let org = state.config.org.to_string();
        let key = MaskKey::from_bytes(digest_key.digest(Purpose::Masks, org.as_bytes()));
        let mut policies = Self::default();
        let ids = scopes.iter().flat_map(|scope| hanging.on(scope));
        for object in ids.filter_map(|id| state.config.objects.get(id)) {
            match &object.body {
                Body::Rule(rule) => {
                    let mut spec = rule.spec.clone();
                    spec.id = object.id.to_string();
                    policies.rules.entry(rule.parent).or_default().push(spec);
                }
                Body::Filter(filter) => {
                    let mut spec = filter.spec.clone();
                    spec.id = object.id.to_string();
                    let compiled = CompiledFilter::new(&spec, &key)
                        .map(Arc::new)
                        .map_err(|problems| format!("filter {}: {}", spec.id, joined(&problems)));
                    let hanging = policies.filters.entry(filter.parent).or_default();
                    hanging.push(compiled);
                }
                Body::Meter(meter) => {
                    let mut spec = meter.spec.clone();
                    spec.id = object.id.to_string();
                    let hanging = policies.meters.entry(meter.parent).or_default();
                    hanging.push((over_homes(&state.config.head, object.version), spec));
                }
                _ => {}
            }
        }
        policies
    }

    pub(super) fn filters(
        &self,
        parent: Option<ObjectId>,
        direction: Direction,
    ) -> Result<Vec<Arc<CompiledFilter>>, String> {
        let all = parent.and_then(|parent| self.filters.get(&parent));
        let wanted = |filter: &&Result<Arc<CompiledFilter>, String>| {
            filter
                .as_ref()
                .map_or(true, |filter| filter.direction == direction)
        };
        all.into_iter().flatten().filter(wanted).cloned().collect()
    }

    pub(super) fn meters(&self, parent: Option<ObjectId>) -> &[(u64, Meter)] {
        let all = parent.and_then(|parent| self.meters.get(&parent));
        all.map_or(&[], Vec::as_slice)
    }
}
