//! Direct access to the store of a cluster, below everything that checks.

use std::sync::Arc;

use proto::store::etcd::{Etcd, EtcdOptions};
use proto::store::{Op, Store, Txn};

use crate::harness::etcd::EtcdServer;

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
        let store = Etcd::open(EtcdOptions::new([server.endpoint()])).expect("a client");
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
