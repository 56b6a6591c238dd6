//! Direct access to the store of a cluster, below everything that checks.

use std::sync::Arc;

use proto::store::etcd::{Etcd, EtcdOptions};
use proto::store::{Op, Store, Txn, load};

use crate::harness::etcd::EtcdServer;
use crate::harness::http::SILENCE_MAX;

pub struct RawStore {
    runtime: tokio::runtime::Runtime,
    store: Arc<Etcd>,
}

impl RawStore {
    pub fn new(server: &EtcdServer) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let entered = runtime.enter();
        let mut options = EtcdOptions::new([server.endpoint()]);
        // Longer than the processes wait for it: a busy machine is no fault here.
        options.timeout = SILENCE_MAX;
        let store = Etcd::open(options).expect("a client");
        drop(entered);
        Self { runtime, store }
    }

    /// The value of a key that exists.
    pub fn get(&self, key: &str) -> Vec<u8> {
        self.find(key).expect("a value")
    }

    pub fn find(&self, key: &str) -> Option<Vec<u8>> {
        let found = self.runtime.block_on(self.store.get(key));
        let found = found.expect("etcd answers").value;
        found.map(|pair| pair.value.to_vec())
    }

    /// All keys that begin so, with their values.
    pub fn list(&self, prefix: &str) -> Vec<(String, Vec<u8>)> {
        let mut found = Vec::new();
        let listed = load::list(&*self.store, prefix, None, |pair| {
            found.push((pair.key, pair.value.to_vec()));
        });
        self.runtime.block_on(listed).expect("etcd answers");
        found
    }

    /// For what is not here, with [`RawStore::wait`].
    pub fn store(&self) -> &dyn Store {
        &*self.store
    }

    pub fn wait<F: Future>(&self, future: F) -> F::Output {
        self.runtime.block_on(future)
    }

    /// One transaction.
    pub fn put(&self, ops: Vec<Op>) {
        let txn = Txn {
            ops,
            ..Txn::default()
        };
        let done = self.runtime.block_on(self.store.txn(txn));
        done.expect("etcd takes it");
    }
}
