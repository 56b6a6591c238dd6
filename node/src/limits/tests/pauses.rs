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
    assert_eq!(a.pause(&of_a, None, Duration::from_secs(2)), 1);
    assert_eq!(
        a.pause(&of_a, None, Duration::from_secs(1)),
        0,
        "it waits already"
    );
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

#[actix_rt::test]
async fn what_the_target_counts_elsewhere_does_not_wait() {
    let dir = tempfile::tempdir().unwrap();
    let store: Arc<dyn Store> = Embedded::open(&dir.path().join("store.sqlite")).unwrap();
    let ((a, of_a), (b, of_b)) = (node(1, &store), node(2, &store));
    for (limits, meter) in [(&a, &of_a), (&b, &of_b)] {
        limits.note_route(meter, b"search", b"search");
        limits.note_route(meter, b"repos", b"core");
    }
    assert_eq!(a.pause(&of_a, Some(b"search"), Duration::from_secs(60)), 1);
    let waits = |meter: &Arc<Meter>, route: &[u8]| {
        meter.route_paused(route, SystemClock.boot_ns()).is_some()
    };
    until("the other node waits", || waits(&of_b, b"search")).await;
    for meter in [&of_a, &of_b] {
        assert!(waits(meter, b"search") && !waits(meter, b"repos") && !waits(meter, b"gists"));
        assert!(!is_paused(meter));
    }
}

fn limit_of(meter: &Arc<Meter>) -> u64 {
    meter.spec.load().limits()[0].limit()
}

#[actix_rt::test]
async fn a_slowed_key_gives_less_on_all_nodes_until_the_target_answers_well() {
    let dir = tempfile::tempdir().unwrap();
    let store: Arc<dyn Store> = Embedded::open(&dir.path().join("store.sqlite")).unwrap();
    let ((a, _), (b, _)) = (node(1, &store), node(2, &store));
    let limit = proto::meter::Limit::new(95, proto::meter::Window::Hour).unwrap();
    let spec = Arc::new(MeterSpec::new("", 1, vec![limit]).unwrap());
    let of = |limits: &Limits| limits.meter(MeterKey::whole("slow"), Arc::clone(&spec));
    let (of_a, of_b) = (of(&a), of(&b));
    a.slow(&of_a, 3, Duration::from_secs(60));
    assert_eq!(limit_of(&of_a), 29);
    until("the other gives less", || limit_of(&of_b) == 29).await;
    assert_eq!(of_b.configured().limits()[0].limit(), 95);
    // Whoever comes later gives less as well.
    let (c, _) = node(3, &store);
    until("a third one", || limit_of(&of(&c)) == 29).await;
    b.go_on(&of_b);
    assert_eq!(limit_of(&of_b), 95);
    until("all of it again", || limit_of(&of_a) == 95).await;
    // By itself it ends even when the store says nothing.
    of_a.slow(1, SystemClock.boot_ns());
    assert_eq!(limit_of(&of_a), 10);
    of_a.end_slow(SystemClock.boot_ns());
    assert_eq!(limit_of(&of_a), 95);
}

#[actix_rt::test]
async fn a_good_answer_to_what_was_sent_during_a_pause_ends_it() {
    let dir = tempfile::tempdir().unwrap();
    let store: Arc<dyn Store> = Embedded::open(&dir.path().join("store.sqlite")).unwrap();
    let ((a, of_a), (_b, of_b)) = (node(1, &store), node(2, &store));
    let before_ns = SystemClock.boot_ns();
    a.pause(&of_a, None, Duration::from_secs(60));
    until("the other waits", || of_b.paused_until_ns() > 0).await;
    a.answered_well(&of_a, before_ns);
    assert!(of_a.paused_until_ns() > 0, "it was sent before");
    a.answered_well(&of_a, SystemClock.boot_ns());
    assert_eq!(of_a.paused_until_ns(), 0);
    until("the other goes on", || of_b.paused_until_ns() == 0).await;
    assert_eq!(
        a.pause(&of_a, None, Duration::from_secs(1)),
        1,
        "the first in a row"
    );
}

#[actix_rt::test]
async fn a_short_pause_does_not_undo_a_long_one_that_was_not_heard_of() {
    let dir = tempfile::tempdir().unwrap();
    let store: Arc<dyn Store> = Embedded::open(&dir.path().join("store.sqlite")).unwrap();
    let ((a, of_a), (b, of_b)) = (node(1, &store), node(2, &store));
    let left_s = |meter: &Arc<Meter>| {
        let now_ns = SystemClock.boot_ns();
        meter.paused_until_ns().saturating_sub(now_ns) / 1_000_000_000
    };
    // Both at once: neither has heard of the other's.
    a.pause(&of_a, None, Duration::from_secs(600));
    b.pause(&of_b, None, Duration::from_secs(30));
    until("both keep to the longer one", || {
        left_s(&of_a) > 500 && left_s(&of_b) > 500
    })
    .await;
    // A longer one replaces it.
    b.pause(&of_b, None, Duration::from_secs(900));
    until("the first waits longer too", || left_s(&of_a) > 800).await;
}
