//! Which meters have limits whose shares can move, of all organisations that this process has seen.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use proto::id::OrgId;
use proto::meter::share::SharedLimits;
use proto::meter::{Limit, Share};
use proto::store::follow::World;
use proto::tree::{Hash, OrgConfig};

use super::shares::ComingFrom;
use super::wants::Wants;

/// One meter, or the `limits` of a proxy.
#[derive(Clone, Debug)]
pub(super) struct SharedMeter {
    pub id: String,
    /// What this region has at the start.
    pub share: Share,
    pub regions: Vec<String>,
    pub limits: Vec<Limit>,
}

/// The meters of a version, which its hash names.
type Indexed = (Hash, Arc<Vec<SharedMeter>>);

/// The meters of organisations, looked for once in each version.
#[derive(Debug, Default)]
pub struct SharedIndex {
    known: Mutex<HashMap<OrgId, Indexed>>,
    /// What other regions want of them.
    pub(super) wants: Wants,
    /// What they give to this one.
    pub(super) coming: ComingFrom,
}

impl SharedIndex {
    /// The organisations that have such meters which `own` and `other` share, with these.
    pub(super) fn between(
        &self,
        world: &World,
        (own, other): (&str, &str),
    ) -> Vec<(OrgId, Arc<Vec<SharedMeter>>)> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|org, _| world.orgs.contains_key(org));
        let mut found = Vec::new();
        for (org, state) in &world.orgs {
            let config = &state.config;
            let entry = known
                .entry(*org)
                .and_modify(|(hash, meters)| {
                    if *hash != config.head.hash {
                        (*hash, *meters) = (config.head.hash, meters_of(config, own));
                    }
                })
                .or_insert_with(|| (config.head.hash, meters_of(config, own)));
            if entry.1.iter().any(|meter| meter.is_shared_with(other)) {
                found.push((*org, Arc::clone(&entry.1)));
            }
        }
        found
    }
}

impl SharedMeter {
    pub fn is_shared_with(&self, region: &str) -> bool {
        self.regions.iter().any(|listed| listed == region)
    }
}

fn meters_of(config: &OrgConfig, own: &str) -> Arc<Vec<SharedMeter>> {
    let shared = config.objects.limited().filter_map(|object| {
        let shared = SharedLimits::of(&object.body)?;
        let share = shared.moving_share(own)?;
        Some(SharedMeter {
            id: object.id.to_string(),
            share,
            regions: shared.regions.to_vec(),
            limits: shared.limits,
        })
    });
    Arc::new(shared.collect())
}
