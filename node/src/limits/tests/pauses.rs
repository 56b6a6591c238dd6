//! Pauses of one node that all others keep.

use std::sync::Arc;
use std::time::Duration;

use proto::meter::MeterSpec;
use proto::store::Store;
use proto::store::embedded::Embedded;

use crate::limits::refusal::Cause;
use crate::limits::{Clock, Draw, Limits, Meter, MeterKey, Opener, Settings, SystemClock};

fn node(node: u64, store: &Arc<dyn Store>) -> (Arc<Limits>, Arc<Meter>) {
    let settings = Settings::single_node(Opener { node, boot: 1 });
    let clock = Arc::new(SystemClock);
    let (limits, broker) = Limits::new(Arc::clone(store), &settings, clock);
    actix_rt::spawn(broker);
    let spec = Arc::new(MeterSpec::new("", 1, Vec::new()).unwrap());
    let meter = limits.meter(MeterKey::whole("m"), spec);
    (limits, meter)
}

fn is_paused(meter: &Arc<Meter>) -> bool {
    match meter.draw(0, SystemClock.boot_ns()) {
        Draw::Drawn(_) => false,
        Draw::Refused(refusal) => {
            assert_eq!(refusal.cause, Cause::Paused);
            assert!(refusal.retry_after <= Duration::from_secs(2), "{refusal:?}");
            true
        }
        Draw::Wait(_) => panic!("nobody waits for a meter that observes"),
    }
}

async fn until(what: &str, met: impl Fn() -> bool) {
    let waiting = async {
        while !met() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(30), waiting).await;
    waited.unwrap_or_else(|_| panic!("{what} in vain"));
}

#[actix_rt::test]
async fn a_pause_on_one_node_is_kept_by_all_and_ends() {
    let dir = tempfile::tempdir().unwrap();
    let store: Arc<dyn Store> = Embedded::open(&dir.path().join("store.sqlite")).unwrap();
    let ((a, of_a), (_b, of_b)) = (node(1, &store), node(2, &store));
    assert!(!is_paused(&of_a) && !is_paused(&of_b));
    a.pause(&of_a, Duration::from_secs(2));
    assert!(is_paused(&of_a), "at once where it was asked for");
    until("the other waits", || is_paused(&of_b)).await;
    // One that starts later finds it.
    let (_c, of_c) = node(3, &store);
    until("a late one waits", || is_paused(&of_c)).await;
    until("all go on", || {
        [&of_a, &of_b, &of_c]
            .into_iter()
            .all(|meter| !is_paused(meter))
    })
    .await;
}
