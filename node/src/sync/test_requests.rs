//! Takes test requests from the store: the first node that puts its name to one sends it.
//!
//! All nodes see a request at the same time, in the configuration that they follow; each waits a
//! moment of its own, so that of a hundred one asks the store and the others see it taken.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use proto::keys;
use proto::store::follow::World;
use proto::store::{Compare, Op, Store, StoreError, Txn, TxnOutcome};
use proto::test_request::Posted;
use tokio::sync::watch;

use crate::stages::record::Origin;
use crate::test_run::TestQueue;

/// Longest moment that a node waits before it takes a request.
const PAUSE_MAX: Duration = Duration::from_millis(20);

/// Takes test requests until the world's sender is gone.
pub async fn run(
    mut applied: watch::Receiver<Arc<World>>,
    store: Arc<dyn Store>,
    queue: TestQueue,
    origin: Arc<Origin>,
) {
    let mut seen = BTreeSet::new();
    loop {
        let world = applied.borrow_and_update().clone();
        seen.retain(|id| world.tests.contains_key(id));
        for (id, posted) in &world.tests {
            let state = world.orgs.get(&posted.request.org);
            let ready = state.is_some_and(|s| s.config.head.n >= posted.request.version);
            if ready && seen.insert(*id) {
                let (posted, store) = (posted.clone(), store.clone());
                let (queue, origin) = (queue.clone(), origin.clone());
                tokio::spawn(async move {
                    if let Err(error) = take(&posted, &*store, &queue, &origin).await {
                        let id = posted.request.id;
                        tracing::warn!(%id, %error, "test request {id} was not answered: {error}");
                    }
                });
            }
        }
        if applied.changed().await.is_err() {
            return;
        }
    }
}

async fn take(
    posted: &Posted,
    store: &dyn Store,
    queue: &TestQueue,
    origin: &Origin,
) -> Result<(), StoreError> {
    tokio::time::sleep(pause()).await;
    let id = posted.request.id;
    let put = |key: String, value: Vec<u8>| Op::Put {
        key,
        value: value.into(),
        lease: posted.lease,
    };
    let taken = keys::test_taken(id);
    if store.get(&taken).await?.value.is_some() {
        return Ok(());
    }
    let take = Txn {
        compares: vec![
            Compare::Present(keys::test(id)),
            Compare::Absent(taken.clone()),
        ],
        ops: vec![put(taken, origin.node.as_bytes().to_vec())],
        or_read: Vec::new(),
    };
    // Whoever does not learn whether it has it leaves it: no request is sent twice.
    match store.txn(take).await? {
        TxnOutcome::Committed(_) => {}
        TxnOutcome::Conflict(_) => return Ok(()),
    }
    let request = Arc::new(posted.request.clone());
    let Some(outcome) = queue.run(request).await else {
        let detail = "no worker of this node takes it";
        return Err(StoreError::Unavailable(detail.into()));
    };
    // Texts and numbers only: serialising into memory cannot fail.
    let value = serde_json::to_vec(&outcome).unwrap_or_default();
    let tell = Txn {
        compares: vec![Compare::Present(keys::test(id))],
        ops: vec![put(keys::test_outcome(id), value)],
        or_read: Vec::new(),
    };
    store.txn(tell).await.map(drop)
}

/// A random moment.
fn pause() -> Duration {
    let random = proto::seal::random_name();
    let byte = random
        .get(..2)
        .and_then(|hex| u8::from_str_radix(hex, 16).ok());
    PAUSE_MAX.mul_f64(f64::from(byte.unwrap_or_default()) / 255.0)
}

#[cfg(test)]
mod tests {
    use proto::id::{CredentialId, OrgId, ProxyId, RequestId};
    use proto::store::Revision;
    use proto::store::embedded::Embedded;
    use proto::store::follow::OrgState;
    use proto::test_request::{TestOutcome, TestRequest};
    use proto::tree::OrgConfig;
    use proto::version::Epoch;

    use super::*;

    fn request(version: u64) -> TestRequest {
        TestRequest {
            id: RequestId::new(),
            org: OrgId::from_bits(1),
            proxy: ProxyId::from_bits(2),
            version,
            credential: CredentialId::from_bits(3),
            method: "GET".into(),
            path: "/".into(),
            headers: Vec::new(),
            body: String::new(),
            source: [127, 0, 0, 1].into(),
            answer: false,
        }
    }

    fn outcome() -> TestOutcome {
        serde_json::from_value(serde_json::json!({
            "node": "n", "status": 200, "code": "proxy-access-granted", "attempts": 1,
            "total_us": 1, "stages": [],
        }))
        .unwrap()
    }

    /// A world in which an organisation is at a version, with test requests.
    fn world(n: u64, posted: &[Arc<Posted>]) -> Arc<World> {
        let epoch = Epoch {
            counter: 1,
            region: "eu".into(),
        };
        let mut config = OrgConfig::genesis(OrgId::from_bits(1), epoch);
        config.head.n = n;
        let state = OrgState {
            config: Arc::new(config),
            sealed: Arc::default(),
            sealed_whole: true,
            retired: Arc::default(),
        };
        let tests = posted.iter().map(|p| (p.request.id, p.clone()));
        Arc::new(World {
            revision: Revision(i64::try_from(n).unwrap()),
            orgs: [(OrgId::from_bits(1), Arc::new(state))].into(),
            tests: tests.collect(),
            ..World::default()
        })
    }

    #[actix_rt::test]
    async fn one_of_several_nodes_sends_it_once_it_has_the_configuration() {
        let dir = tempfile::tempdir().unwrap();
        let store: Arc<dyn Store> = Embedded::open(&dir.path().join("store.sqlite")).unwrap();
        let lease = store.grant_lease(Duration::from_secs(60)).await.unwrap().id;
        let request = request(7);
        let put = Op::Put {
            key: keys::test(request.id),
            value: serde_json::to_vec(&request).unwrap().into(),
            lease: Some(lease),
        };
        let txn = Txn {
            ops: vec![put],
            ..Txn::default()
        };
        store.txn(txn).await.unwrap();
        let posted = Arc::new(Posted {
            request: request.clone(),
            lease: Some(lease),
        });
        let (told, mut ran) = tokio::sync::mpsc::unbounded_channel();
        let mut nodes = Vec::new();
        for name in ["a", "b", "c"] {
            let (sender, applied) = watch::channel(world(6, std::slice::from_ref(&posted)));
            let (queue, told) = (TestQueue::default(), told.clone());
            let origin = Arc::new(Origin {
                node: name.into(),
                region: "eu".into(),
            });
            let running = run(applied, store.clone(), queue.clone(), origin);
            nodes.push((sender, actix_rt::spawn(running)));
            actix_rt::spawn(async move {
                while let Some(job) = queue.next().await {
                    told.send((name, job.request.id)).unwrap();
                    let _ = job.done.send(outcome());
                }
            });
        }
        let outcome_key = keys::test_outcome(request.id);
        assert_eq!(store.get(&outcome_key).await.unwrap().value, None);
        for (sender, _) in &nodes {
            sender.send_replace(world(7, std::slice::from_ref(&posted)));
        }
        let (name, id) = ran.recv().await.unwrap();
        assert_eq!(id, request.id);
        let found = loop {
            if let Some(pair) = store.get(&outcome_key).await.unwrap().value {
                break pair;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        assert_eq!(found.lease, Some(lease), "it goes with the request");
        let read: TestOutcome = serde_json::from_slice(&found.value).unwrap();
        assert_eq!(read, outcome());
        let taken = store.get(&keys::test_taken(request.id)).await.unwrap();
        assert_eq!(taken.value.unwrap().value, name.as_bytes());
        // A later world with it still there starts nothing anew.
        for (sender, _) in &nodes {
            sender.send_replace(world(8, std::slice::from_ref(&posted)));
        }
        drop(told);
        for (sender, running) in nodes {
            drop(sender);
            running.await.unwrap();
        }
        assert!(ran.try_recv().is_err(), "it was sent once");
    }
}
