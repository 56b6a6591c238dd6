//! Begins what seals secrets of this region for others, and its own anew, by the key ring file of
//! its nodes.

use std::sync::Arc;

use node::sync::resealing::Resealing;
use node::sync::rotation::Rotation;
use proto::restarts;
use tokio::runtime::Runtime;

use crate::data_plane::DataPlaneParts;
use crate::keyrings;
use crate::settings::Settings;

/// Runs as long as the process does.
pub fn begin(settings: &Settings, parts: &DataPlaneParts, background: &Runtime) {
    let resealing = Arc::new(Resealing {
        store: parts.store.clone(),
        worlds: parts.worlds.clone(),
        keyring: parts.keyring.clone(),
        trusted: keyrings::trusted(settings),
    });
    let run = move || {
        let resealing = resealing.clone();
        async move { resealing.run().await }
    };
    background.spawn(restarts::again("resealing", parts.health.clone(), run));
    let rotation = Arc::new(Rotation {
        store: parts.store.clone(),
        worlds: parts.worlds.clone(),
        keyring: parts.keyring.clone(),
    });
    let run = move || {
        let rotation = rotation.clone();
        async move { rotation.run().await }
    };
    background.spawn(restarts::again("rotation", parts.health.clone(), run));
}
