//! From the store's world to the snapshot that requests use.

pub mod compile;
pub mod guard;
pub mod kept;
pub mod membership;
pub mod usage;

use std::sync::Arc;

use arc_swap::ArcSwap;
use proto::store::follow::World;
use tokio::sync::watch;
use tracing::{info, warn};

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
) {
    loop {
        let world = worlds.borrow_and_update().clone();
        let compiled = compiler.compile(&world);
        for fault in &compiled.faults {
            warn!("configuration not applied: {fault}");
        }
        info!(
            revision = %world.revision,
            names = compiled.snapshot.names(),
            "configuration of revision {} is in effect",
            world.revision
        );
        current.store(Arc::new(compiled.snapshot));
        applied.send_replace(world);
        if worlds.changed().await.is_err() {
            return;
        }
    }
}
