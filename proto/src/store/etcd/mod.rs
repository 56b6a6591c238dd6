//! The store on an etcd cluster.
//!
//! Tried with etcd 3.4.23, 3.5.16 and 3.5.30, and etcd-client 0.21.1. The client library needs a
//! tokio runtime with IO that outlives each call, and our callers run on many short and
//! single-threaded ones, so the store owns a small runtime: every call runs there and is awaited
//! from anywhere.

mod endpoints;
mod failure;
mod options;
mod space;
mod token;
mod translate;
mod version;
mod watch;

use std::sync::Arc;
use std::time::{Duration, Instant};

use etcd_client::GetOptions;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Semaphore;

use self::endpoints::Endpoints;
use self::failure::Call;
pub use self::options::{EtcdOptions, EtcdTls, EtcdUser};
use self::translate::{Prefix, revision};
use self::watch::EtcdWatch;
use super::limits::{self, PAGE_KEYS_MAX};
use super::{
    At, KeyValue, Lease, LeaseId, MemberSize, Page, Range, Revision, Store, StoreError,
    StoreFuture, Txn, TxnOutcome, Watch,
};

/// Threads of the store's runtime: they only move bytes.
const THREADS: usize = 2;

/// Calls on their way at a time; beyond it callers are told that the store is unavailable.
const CALLS_MAX: usize = 1024;

/// Largest answer of a transaction: every key that it may read at etcd's largest size.
const TXN_ANSWER_BYTES_MAX: usize = 192 << 20;

/// Stands for "no lease" where an error needs the lease it is about.
const NO_LEASE: LeaseId = LeaseId(0);

/// A store in an etcd cluster.
pub struct Etcd {
    shared: Arc<Shared>,
    calls: Arc<Semaphore>,
    // Taken when dropped: a runtime must not be dropped where blocking is not allowed.
    runtime: Option<Runtime>,
}

struct Shared {
    endpoints: Endpoints,
    prefix: Prefix,
    timeout: Duration,
}

impl Etcd {
    /// A store on the cluster that the options name. Connects at the first call, not here: a
    /// process starts while its store is gone.
    ///
    /// # Errors
    /// [`StoreError::Unusable`] when the options cannot work, [`StoreError::Unavailable`] when the
    /// runtime's threads cannot be started.
    pub fn open(options: EtcdOptions) -> Result<Arc<Self>, StoreError> {
        options.check()?;
        let runtime = Builder::new_multi_thread()
            .worker_threads(THREADS)
            .thread_name("store-etcd")
            .enable_all()
            .build()
            .map_err(|error| StoreError::Unavailable(format!("no runtime: {error}")))?;
        let connect = options.connect_options();
        let shared = Arc::new(Shared {
            endpoints: Endpoints::new(options.endpoints, connect),
            prefix: Prefix(options.prefix),
            timeout: options.timeout,
        });
        let calls = Arc::new(Semaphore::new(CALLS_MAX));
        Ok(Arc::new(Self {
            shared,
            calls,
            runtime: Some(runtime),
        }))
    }

    /// Runs a call on the store's runtime. It goes on when its caller leaves, until its deadline.
    async fn run<T, F, R>(&self, call: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(Arc<Shared>, Instant) -> R,
        R: Future<Output = Result<T, StoreError>> + Send + 'static,
    {
        let Some(runtime) = &self.runtime else {
            return Err(StoreError::Unavailable("the store is closed".into()));
        };
        let permit = Arc::clone(&self.calls).try_acquire_owned().map_err(|_| {
            StoreError::Unavailable(format!("{CALLS_MAX} calls are on their way already"))
        })?;
        let work = call(
            Arc::clone(&self.shared),
            Instant::now() + self.shared.timeout,
        );
        let task = runtime.spawn(async move {
            let result = work.await;
            drop(permit);
            result
        });
        // A panic in the client library must not become one of ours.
        task.await
            .unwrap_or_else(|error| Err(StoreError::OutcomeUnknown(error.to_string())))
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Shared {
    async fn get(&self, key: &str, deadline: Instant) -> Result<At<Option<KeyValue>>, StoreError> {
        let key = self.prefix.add(key);
        let answer = self
            .endpoints
            .call(deadline, Call::Repeatable, NO_LEASE, |client| {
                let (mut kv, key) = (client.kv_client(), key.clone());
                async move { kv.get(key, None).await }
            })
            .await?;
        let found = answer.kvs().first();
        let value = found
            .map(|found| self.prefix.key_value(found))
            .transpose()?;
        Ok(At {
            revision: revision(answer.header())?,
            value,
        })
    }

    async fn get_all(
        &self,
        keys: &[String],
        deadline: Instant,
    ) -> Result<Vec<Option<KeyValue>>, StoreError> {
        let request = self.prefix.reads(keys);
        let answer = self
            .send(request, (Call::Repeatable, NO_LEASE), deadline)
            .await?;
        self.prefix.found(&answer)
    }

    /// etcd bounds a page by keys only: one that is too long to decode is asked for in parts.
    async fn range(&self, range: &Range, deadline: Instant) -> Result<Page, StoreError> {
        let mut limit = range.limit.min(PAGE_KEYS_MAX);
        loop {
            match self.page(range, limit, deadline).await {
                Err(StoreError::TooLarge(_)) if limit > 1 => limit = limit.div_ceil(4),
                page => return page,
            }
        }
    }

    async fn page(
        &self,
        range: &Range,
        limit: usize,
        deadline: Instant,
    ) -> Result<Page, StoreError> {
        let span = self.prefix.span(&range.prefix, range.after.as_deref());
        let options = GetOptions::new()
            .with_range(span.end)
            .with_limit(i64::try_from(limit).unwrap_or(i64::MAX))
            .with_revision(range.at.unwrap_or_default().0);
        let answer = self
            .endpoints
            .call(deadline, Call::Repeatable, NO_LEASE, |client| {
                let (mut kv, start) = (client.kv_client(), span.start.clone());
                let options = options.clone();
                async move { kv.get(start, Some(options)).await }
            })
            .await?;
        let items = answer
            .kvs()
            .iter()
            .map(|found| self.prefix.key_value(found));
        Ok(Page {
            revision: range.at.map_or_else(|| revision(answer.header()), Ok)?,
            items: items.collect::<Result<_, _>>()?,
            more: answer.more(),
        })
    }

    async fn txn(&self, txn: &Txn, deadline: Instant) -> Result<TxnOutcome, StoreError> {
        let request = self.prefix.txn(txn);
        // etcd does not say which lease it misses; nearly always a transaction names one only.
        let lease = txn.ops.iter().find_map(|op| match op {
            super::Op::Put { lease, .. } => *lease,
            super::Op::Delete(_) => None,
        });
        let call = (Call::Once, lease.unwrap_or(NO_LEASE));
        let answer = self.send(request, call, deadline).await?;
        self.prefix.outcome(&answer)
    }

    /// Sends a transaction, whose answer may be long.
    async fn send(
        &self,
        request: etcd_client::Txn,
        (call, lease): (Call, LeaseId),
        deadline: Instant,
    ) -> Result<etcd_client::TxnResponse, StoreError> {
        self.endpoints
            .call(deadline, call, lease, |client| {
                let mut kv = client
                    .kv_client()
                    .max_decoding_message_size(TXN_ANSWER_BYTES_MAX);
                let request = request.clone();
                async move { kv.txn(request).await }
            })
            .await
    }

    async fn watch(
        &self,
        prefix: &str,
        from: Revision,
        deadline: Instant,
    ) -> Result<EtcdWatch, StoreError> {
        let span = self.prefix.span(prefix, None);
        let (stream, first) = self
            .endpoints
            .call(deadline, Call::Repeatable, NO_LEASE, |client| {
                watch::register(client, span.clone(), from)
            })
            .await?;
        Ok(EtcdWatch::start(stream, first, self.prefix.clone()))
    }

    async fn grant_lease(&self, ttl: Duration, deadline: Instant) -> Result<Lease, StoreError> {
        // etcd counts whole seconds; a lease lives no shorter than asked for.
        let seconds = ttl
            .as_secs()
            .saturating_add(u64::from(ttl.subsec_nanos() > 0));
        let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
        let answer = self
            .endpoints
            .call(deadline, Call::Once, NO_LEASE, |client| {
                let mut leases = client.lease_client();
                async move { leases.grant(seconds, None).await }
            })
            .await?;
        let ttl = Duration::from_secs(answer.ttl().max(0).unsigned_abs());
        Ok(Lease {
            id: LeaseId(answer.id()),
            ttl,
        })
    }

    async fn keep_alive(&self, lease: LeaseId, deadline: Instant) -> Result<(), StoreError> {
        self.endpoints
            .call(deadline, Call::Repeatable, lease, |client| {
                let mut leases = client.lease_client();
                // Opens a stream and waits for the first answer; the stream ends when dropped.
                async move { leases.keep_alive(lease.0).await.map(|_| ()) }
            })
            .await
    }

    async fn revoke_lease(&self, lease: LeaseId, deadline: Instant) -> Result<(), StoreError> {
        self.endpoints
            .call(deadline, Call::Once, lease, |client| {
                let mut leases = client.lease_client();
                async move { leases.revoke(lease.0).await.map(|_| ()) }
            })
            .await
    }

    async fn compact(&self, revision: Revision, deadline: Instant) -> Result<(), StoreError> {
        let compacted = self
            .endpoints
            .call(deadline, Call::Repeatable, NO_LEASE, |client| {
                let mut kv = client.kv_client();
                async move { kv.compact(revision.0, None).await.map(|_| ()) }
            })
            .await;
        match compacted {
            Err(StoreError::Compacted(_)) => Ok(()),
            other => other,
        }
    }
}

impl Store for Etcd {
    fn get(&self, key: &str) -> StoreFuture<'_, At<Option<KeyValue>>> {
        let key = key.to_owned();
        Box::pin(async move {
            limits::check_key(&key)?;
            self.run(|etcd, by| async move { etcd.get(&key, by).await })
                .await
        })
    }

    fn get_all(&self, keys: Vec<String>) -> StoreFuture<'_, Vec<Option<KeyValue>>> {
        Box::pin(async move {
            limits::check_keys(&keys)?;
            self.run(|etcd, by| async move { etcd.get_all(&keys, by).await })
                .await
        })
    }

    fn range(&self, range: Range) -> StoreFuture<'_, Page> {
        Box::pin(async move {
            limits::check_range(&range)?;
            self.run(|etcd, by| async move { etcd.range(&range, by).await })
                .await
        })
    }

    fn txn(&self, txn: Txn) -> StoreFuture<'_, TxnOutcome> {
        Box::pin(async move {
            limits::check_txn(&txn)?;
            self.run(|etcd, by| async move { etcd.txn(&txn, by).await })
                .await
        })
    }

    fn watch(&self, prefix: &str, from: Revision) -> StoreFuture<'_, Box<dyn Watch>> {
        let prefix = prefix.to_owned();
        Box::pin(async move {
            limits::check_watch(&prefix, from)?;
            let watch = self
                .run(|etcd, by| async move { etcd.watch(&prefix, from, by).await })
                .await?;
            let watch: Box<dyn Watch> = Box::new(watch);
            Ok(watch)
        })
    }

    fn grant_lease(&self, ttl: Duration) -> StoreFuture<'_, Lease> {
        Box::pin(async move {
            limits::check_ttl(ttl)?;
            self.run(|etcd, by| async move { etcd.grant_lease(ttl, by).await })
                .await
        })
    }

    fn keep_alive(&self, lease: LeaseId) -> StoreFuture<'_, ()> {
        Box::pin(async move {
            limits::check_lease(lease)?;
            self.run(|etcd, by| async move { etcd.keep_alive(lease, by).await })
                .await
        })
    }

    fn revoke_lease(&self, lease: LeaseId) -> StoreFuture<'_, ()> {
        Box::pin(async move {
            limits::check_lease(lease)?;
            self.run(|etcd, by| async move { etcd.revoke_lease(lease, by).await })
                .await
        })
    }

    fn compact(&self, revision: Revision) -> StoreFuture<'_, ()> {
        Box::pin(async move {
            limits::check_revision(revision)?;
            self.run(|etcd, by| async move { etcd.compact(revision, by).await })
                .await
        })
    }

    fn reclaim_space(&self) -> StoreFuture<'_, ()> {
        Box::pin(async move {
            self.run(|etcd, by| async move { etcd.reclaim_space(by).await })
                .await
        })
    }

    fn sizes(&self) -> StoreFuture<'_, Vec<MemberSize>> {
        Box::pin(async move {
            self.run(|etcd, _| async move { Ok(etcd.sizes().await) })
                .await
        })
    }

    fn place(&self) -> usize {
        self.shared.endpoints.place()
    }

    fn leave(&self, place: usize) {
        self.shared.endpoints.leave(place);
    }
}
