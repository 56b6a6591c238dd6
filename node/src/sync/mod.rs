//! From the store's world to the snapshot that requests use.

pub mod compile;
pub mod demand;
mod entry;
pub mod guard;
pub mod membership;
pub mod names;
pub mod planes;
pub mod recovery;
pub mod resealing;
pub mod roster;
pub mod rotation;
#[cfg(test)]
mod sealed_scene;
pub mod test_requests;
pub mod usage;

use std::sync::Arc;

use arc_swap::ArcSwap;
use proto::health::Health;
use proto::restarts::Restarts;
use proto::store::follow::World;
use proto::store::load::Fault;
use tokio::sync::watch;
use tracing::info;

use crate::snapshot::Snapshot;
use compile::Compiler;

/// Swaps in a new snapshot whenever the world changes; ends when its sender is gone.
///
/// `applied` tells which world requests see: a control plane in the same process answers a write
/// when callers can use what was written.
///
/// Runs away from the workers: compiling patterns takes its time and requests go on meanwhile.
pub async fn run(
    mut worlds: watch::Receiver<Arc<World>>,
    mut compiler: Compiler,
    current: Arc<ArcSwap<Snapshot>>,
    applied: watch::Sender<Arc<World>>,
    health: Health,
) {
    let mut restarts = Restarts::of("compile", health);
    loop {
        let world = worlds.borrow_and_update().clone();
        let begun = std::time::Instant::now();
        let Some(compiled) = restarts.run(async { compiler.compile(&world) }).await else {
            // The snapshot before it stays; a newer world may compile.
            compiler.forget();
            continue;
        };
        restarts.went_well();
        info!(
            revision = %world.revision,
            names = compiled.snapshot.names(),
            "configuration of revision {} is in effect",
            world.revision
        );
        current.store(Arc::new(compiled.snapshot));
        let now_ms = jiff::Timestamp::now().as_millisecond();
        let (took, faults) = (begun.elapsed(), compiled.faults.len());
        compiler
            .metrics()
            .configured(world.revision.0, now_ms, took, faults);
        applied.send_replace(with_faults(world, compiled.faults));
        if worlds.changed().await.is_err() {
            return;
        }
    }
}

/// The world together with what of it could not be compiled, for those who report it.
fn with_faults(world: Arc<World>, faults: Vec<Fault>) -> Arc<World> {
    if faults.is_empty() {
        return world;
    }
    let mut reported = World::clone(&world);
    reported.faults.extend(faults);
    Arc::new(reported)
}
