//! A store that answers, but with nothing for this node.

use std::sync::Arc;
use std::time::Duration;

use proto::meter::{LimitAnswer, StoreLoss};

use crate::limits::slots::taker::Taker;
use crate::limits::slots::{SlotShared, SlotSpec, Slots};
use crate::limits::{Clock, MeterKey, Opener, SystemClock};

#[actix_rt::test]
async fn a_store_that_gives_the_slots_to_others_is_not_lost() {
    let shared = SlotShared::new(
        Arc::new(SystemClock),
        Duration::from_millis(50),
        Arc::default(),
        Arc::default(),
    );
    let spec = SlotSpec {
        name: String::new(),
        version: 1,
        limit: 1,
        on_store_loss: StoreLoss::FailOpen,
        cancels_lost: false,
        answer: LimitAnswer::default(),
    };
    let slots = Arc::new(Slots::new(MeterKey::whole("m"), spec, Arc::new(shared)));
    let now_ns = || SystemClock.boot_ns();
    let mut taker = Taker::new(slots.clone(), Opener { node: 1, boot: 1 }, now_ns());
    // Each write meets another one.
    let losing = async {
        loop {
            taker.conflicted(None, now_ns());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let taken = tokio::select! {
        taken = slots.taken() => taken,
        () = losing => unreachable!("it goes on"),
    };
    assert!(!taken.unwrap_err().lost);
    assert!(slots.taken().await.is_ok(), "and silence lets calls pass");
}
