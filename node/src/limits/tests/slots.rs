//! Slots of several nodes on one store: never more in flight than the limit, and none lost.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::FutureExt;
use proto::meter::{LimitAnswer, StoreLoss};
use proto::store::Store;
use proto::store::embedded::Embedded;

use crate::limits::{
    Clock, Limits, MeterKey, OnHold, Opener, Settings, SlotSpec, SlotToken, Slots, SystemClock,
};

fn spec(version: u64, limit: u64) -> SlotSpec {
    SlotSpec {
        name: String::new(),
        version,
        limit,
        on_store_loss: StoreLoss::FailClosed,
        cancels_lost: false,
        answer: LimitAnswer::default(),
    }
}

struct Node {
    limits: Arc<Limits>,
    slots: Arc<Slots>,
    held: Vec<SlotToken>,
}

impl Node {
    fn new(node: u64, limit: u64, store: &Arc<dyn Store>) -> Self {
        let settings = Settings::single_node(Opener { node, boot: 1 });
        let clock = Arc::new(SystemClock);
        let (limits, broker) = Limits::new(Arc::clone(store), &settings, clock);
        actix_rt::spawn(broker);
        let slots = limits.slots(MeterKey::whole("m"), &spec(1, limit));
        Self {
            limits,
            slots,
            held: Vec::new(),
        }
    }

    async fn take(&mut self) -> bool {
        match self.slots.taken().await {
            Ok(token) => {
                self.held.push(token);
                true
            }
            Err(refusal) => {
                assert!(!refusal.lost, "{refusal:?}");
                false
            }
        }
    }

    async fn take_in_time(&mut self) {
        let taken = async {
            while !self.take().await {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let taken = tokio::time::timeout(Duration::from_secs(30), taken).await;
        taken.expect("a slot becomes free");
    }
}

#[actix_rt::test]
async fn nodes_share_slots_and_what_ends_on_one_is_free_for_all() {
    let dir = tempfile::tempdir().unwrap();
    let store: Arc<dyn Store> = Embedded::open(&dir.path().join("store.sqlite")).unwrap();
    let (mut a, mut b) = (Node::new(1, 5, &store), Node::new(2, 5, &store));
    for _ in 0..10 {
        a.take().await;
        b.take().await;
        assert!(a.held.len() + b.held.len() <= 5);
    }
    assert_eq!(a.held.len() + b.held.len(), 5);

    // What ends here is free here at once, and there soon.
    let of_a = a.held.len();
    a.held.pop();
    assert!(a.take().await);
    a.held.clear();
    for _ in 0..of_a {
        b.take_in_time().await;
    }
    assert_eq!(b.held.len(), 5);
    assert!(!a.take().await);

    // A limit that falls is kept as calls end, one that rises works at once.
    b.limits.slots(MeterKey::whole("m"), &spec(2, 3));
    b.held.truncate(3);
    let falls = async {
        while b.take().await {
            b.held.truncate(3);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let falls = tokio::time::timeout(Duration::from_secs(30), falls).await;
    falls.expect("the limit falls");
    b.limits.slots(MeterKey::whole("m"), &spec(3, 6));
    b.take_in_time().await;
    assert_eq!(b.held.len(), 4);
}

#[actix_rt::test]
async fn no_slot_is_taken_of_a_store_that_somebody_else_found_to_have_gone_back() {
    let dir = tempfile::tempdir().unwrap();
    let store: Arc<dyn Store> = Embedded::open(&dir.path().join("store.sqlite")).unwrap();
    let (mut a, b) = (Node::new(1, 5, &store), Node::new(2, 5, &store));
    a.take_in_time().await;
    let now_ns = SystemClock.boot_ns();
    b.limits.shared.returned_ns.store(now_ns, Ordering::Relaxed);
    assert!(
        b.slots.taken().await.is_err(),
        "who holds some is not known"
    );
}

#[actix_rt::test]
async fn a_node_that_leaves_gives_its_slots_back() {
    let dir = tempfile::tempdir().unwrap();
    let store: Arc<dyn Store> = Embedded::open(&dir.path().join("store.sqlite")).unwrap();
    let (mut a, mut b) = (Node::new(1, 3, &store), Node::new(2, 3, &store));
    for _ in 0..3 {
        assert!(a.take().await);
    }
    assert!(!b.take().await);
    a.held.clear();
    a.limits.stop();
    for _ in 0..3 {
        b.take_in_time().await;
    }
}

/// Callers of a node that come again and again, each for a moment.
fn crowd(node: &Node, callers: usize, busy: &Rc<Busy>) {
    for _ in 0..callers {
        let (slots, busy) = (Arc::clone(&node.slots), Rc::clone(busy));
        actix_rt::spawn(async move {
            loop {
                let taken = slots.taken().await;
                if let Ok(token) = taken {
                    busy.enter();
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    busy.leave();
                    drop(token);
                } else {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
        });
    }
}

/// Calls in flight on all nodes.
#[derive(Default)]
struct Busy {
    now: Cell<u64>,
    most: Cell<u64>,
}

impl Busy {
    fn enter(&self) {
        self.now.set(self.now.get() + 1);
        self.most.set(self.most.get().max(self.now.get()));
    }

    fn leave(&self) {
        self.now.set(self.now.get() - 1);
    }
}

#[actix_rt::test]
async fn a_node_whose_demand_never_ends_leaves_some_to_one_that_waits() {
    let dir = tempfile::tempdir().unwrap();
    let store: Arc<dyn Store> = Embedded::open(&dir.path().join("store.sqlite")).unwrap();
    let (a, mut b) = (Node::new(1, 20, &store), Node::new(2, 20, &store));
    let busy = Rc::new(Busy::default());
    crowd(&a, 40, &busy);
    let full = async {
        while a.slots.used() < 20 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let full = tokio::time::timeout(Duration::from_secs(30), full).await;
    full.expect("all are in use");
    // As far as an equal part, and no further.
    for _ in 0..10 {
        b.take_in_time().await;
        busy.enter();
    }
    assert_eq!(busy.most.get(), 20);
    assert!(a.slots.used() <= 10 && a.slots.used() + b.slots.used() <= 20);
}

#[actix_rt::test]
async fn two_nodes_take_turns_at_the_only_slot() {
    let dir = tempfile::tempdir().unwrap();
    let store: Arc<dyn Store> = Embedded::open(&dir.path().join("store.sqlite")).unwrap();
    let (a, mut b) = (Node::new(1, 1, &store), Node::new(2, 1, &store));
    let busy = Rc::new(Busy::default());
    crowd(&a, 3, &busy);
    for _ in 0..2 {
        b.take_in_time().await;
        busy.enter();
        busy.leave();
        b.held.clear();
        let again = async {
            while a.slots.used() == 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let again = tokio::time::timeout(Duration::from_secs(30), again).await;
        again.expect("the other's turn");
    }
    assert_eq!(busy.most.get(), 1);
}

/// Nobody answers: what is in flight beyond the limit ends, and counts until it does.
#[actix_rt::test]
async fn a_limit_that_fails_open_admits_calls_while_the_store_is_silent() {
    let mut settings = Settings::single_node(Opener { node: 1, boot: 1 });
    settings.store_grace = Duration::from_millis(20);
    let (limits, _silent) = Limits::unserved(&settings, Arc::new(SystemClock));
    let slots_of = |name: &'static str, on_store_loss| {
        let spec = SlotSpec {
            on_store_loss,
            ..spec(1, 2)
        };
        limits.slots(MeterKey::whole(name), &spec)
    };
    let open = slots_of("open", StoreLoss::FailOpen);
    let mut held = Vec::new();
    for _ in 0..5 {
        held.push(open.taken().await.expect("it fails open"));
    }
    assert_eq!(open.used(), 5);
    held.truncate(1);
    assert_eq!(open.used(), 1);
    for (name, other) in [
        ("closed", StoreLoss::FailClosed),
        ("share", StoreLoss::LocalShare),
    ] {
        let closed = slots_of(name, other);
        let refusal = closed.taken().await.unwrap_err();
        assert!(refusal.lost, "{refusal:?}");
    }
}

/// From then on others may use them, and nothing more is admitted by them.
#[actix_rt::test]
async fn a_slot_that_is_not_renewed_is_lost_when_it_ends() {
    let dir = tempfile::tempdir().unwrap();
    let store: Arc<dyn Store> = Embedded::open(&dir.path().join("store.sqlite")).unwrap();
    let settings = Settings::single_node(Opener { node: 1, boot: 1 });
    let clock = Arc::new(SystemClock);
    let (limits, broker) = Limits::new(store, &settings, clock);
    let serving = actix_rt::spawn(broker);
    let slots_of = |name: &'static str, cancels_lost| {
        let spec = SlotSpec {
            cancels_lost,
            on_store_loss: StoreLoss::LocalShare,
            ..spec(1, 2)
        };
        limits.slots(MeterKey::whole(name), &spec)
    };
    let (cancels, keeps) = (slots_of("cancels", true), slots_of("keeps", false));
    let lost = cancels.taken().await.expect("a slot");
    let kept = keeps.taken().await.expect("a slot");
    assert!(kept.cancelling().is_none());
    let losing = lost.cancelling().expect("it ends with its slot");
    let is_held = losing.lost().now_or_never().is_none();
    assert!(is_held, "its time is not over");
    // Nobody renews them any more.
    serving.abort();
    let over = tokio::time::timeout(Duration::from_secs(30), losing.lost()).await;
    over.expect("it ends");
    drop((lost, kept));
    assert!(cancels.taken().await.is_err());
    assert!(keeps.taken().await.is_ok(), "it goes on with what it had");
}

/// One that finds a slot at hand does not wait, and one that leaves waits no more.
#[actix_rt::test]
async fn who_waits_for_a_slot_is_told_of() {
    let dir = tempfile::tempdir().unwrap();
    let store: Arc<dyn Store> = Embedded::open(&dir.path().join("store.sqlite")).unwrap();
    let (node, other) = (Node::new(1, 4, &store), Node::new(2, 4, &store));
    let waited = |what| (what, Some(Arc::<str>::from("m")));
    let both = [OnHold::Began, OnHold::Ended].map(waited);

    let mut told = Vec::new();
    let taken = node
        .slots
        .take(&mut |what, meter| told.push((what, meter)))
        .await;
    drop(taken.expect("a slot"));
    assert_eq!(told, both);

    let mut told = Vec::new();
    let taken = node
        .slots
        .take(&mut |what, meter| told.push((what, meter)))
        .now_or_never();
    drop(taken.expect("at hand").expect("a slot"));
    assert!(told.is_empty(), "{told:?}");

    let left = other
        .slots
        .take(&mut |what, meter| told.push((what, meter)))
        .now_or_never();
    assert!(left.is_none(), "it waits");
    assert_eq!(told, both);
}
