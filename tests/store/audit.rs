//! Audit entries: what many control planes write at once is one chain, whose oldest entries leave.

use control::audit;
use jiff::Timestamp;
use proto::audit::verify::verify;
use proto::audit::{Act, Failure, Said};
use proto::id::OrgId;
use proto::keys;
use proto::store::{Op, load};

use crate::AnyStore;
use crate::steps::put;

const ORG: OrgId = OrgId::from_bits(7);

fn said(times: u64) -> Said {
    Said {
        at: Timestamp::UNIX_EPOCH,
        actor: "unknown".into(),
        source: None,
        act: Act::LoginFailed {
            why: Failure::Unknown,
            times,
            sources: None,
            until: Timestamp::UNIX_EPOCH,
        },
    }
}

pub async fn one_chain(store: AnyStore) {
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..4 {
        let store = store.clone();
        writers.spawn(async move {
            for times in 0..10 {
                let with = [Op::put(format!("x/{writer}/{times}"), "y")];
                let written = audit::append(&*store, ORG, said(times), &with).await;
                written.expect("the store");
            }
        });
    }
    writers.join_all().await;
    let mut acts = 0;
    let listed = load::list(&*store, "x/", None, |_| acts += 1).await;
    listed.expect("the store");
    assert_eq!(acts, 40, "what an entry tells of is done with it");
    let chain = audit::chain(&*store, ORG).await.expect("the store");
    let found = verify(ORG, "eu", &chain, &[]);
    assert_eq!((found.entries, found.breaks), (Some((1, 40)), vec![]));
    put(&*store, &keys::audit_entry(ORG, 11), "{}").await;
    let chain = audit::chain(&*store, ORG).await.expect("the store");
    let found = verify(ORG, "eu", &chain, &[]);
    assert_eq!(found.breaks[0].entry, Some(11));
}

pub async fn oldest_leave(store: AnyStore) {
    for times in 0..200 {
        let written = audit::append(&*store, ORG, said(times), &[]).await;
        written.expect("the store");
    }
    let dropped = audit::drop_oldest(&*store, ORG, 50, Timestamp::UNIX_EPOCH).await;
    assert_eq!(dropped, Ok(90));
    let chain = audit::chain(&*store, ORG).await.expect("the store");
    let found = verify(ORG, "eu", &chain, &[]);
    assert_eq!((found.entries, found.breaks), (Some((91, 201)), vec![]));
}
