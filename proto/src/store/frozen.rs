//! A store that shows what was kept of one revision, and takes nothing: what a node starts from
//! while the real one cannot be reached.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;

use super::{
    At, KeyValue, Lease, LeaseId, Page, Range, Revision, Store, StoreError, StoreFuture, Txn,
    TxnOutcome, Watch,
};

/// Keys and values as of one revision.
#[derive(Clone, Debug)]
pub struct Frozen {
    revision: Revision,
    pairs: BTreeMap<String, Bytes>,
}

impl Frozen {
    /// A store with these pairs.
    pub fn new(revision: Revision, pairs: BTreeMap<String, Bytes>) -> Self {
        Self { revision, pairs }
    }

    fn shown(&self, key: &str, value: &Bytes) -> KeyValue {
        KeyValue {
            key: key.to_owned(),
            value: value.clone(),
            create_revision: self.revision,
            mod_revision: self.revision,
            version: 1,
            lease: None,
        }
    }
}

fn refused<T: Send + 'static>() -> StoreFuture<'static, T> {
    let why = "a kept copy is served, which takes no calls".to_owned();
    Box::pin(async move { Err(StoreError::Unavailable(why)) })
}

impl Store for Frozen {
    fn get(&self, key: &str) -> StoreFuture<'_, At<Option<KeyValue>>> {
        let value = self.pairs.get(key).map(|value| self.shown(key, value));
        let revision = self.revision;
        Box::pin(async move { Ok(At { revision, value }) })
    }

    fn range(&self, range: Range) -> StoreFuture<'_, Page> {
        let first = range.after.as_deref().unwrap_or_default();
        let mut items: Vec<KeyValue> = self
            .pairs
            .range(range.prefix.clone()..)
            .take_while(|(key, _)| key.starts_with(&range.prefix))
            .filter(|(key, _)| key.as_str() > first)
            .take(range.limit.saturating_add(1))
            .map(|(key, value)| self.shown(key, value))
            .collect();
        let more = items.len() > range.limit;
        items.truncate(range.limit);
        let page = Page {
            revision: self.revision,
            items,
            more,
        };
        Box::pin(async move { Ok(page) })
    }

    fn txn(&self, _: Txn) -> StoreFuture<'_, TxnOutcome> {
        refused()
    }

    fn watch(&self, _: &str, _: Revision) -> StoreFuture<'_, Box<dyn Watch>> {
        refused()
    }

    fn grant_lease(&self, _: Duration) -> StoreFuture<'_, Lease> {
        refused()
    }

    fn keep_alive(&self, _: LeaseId) -> StoreFuture<'_, ()> {
        refused()
    }

    fn revoke_lease(&self, _: LeaseId) -> StoreFuture<'_, ()> {
        refused()
    }

    fn compact(&self, _: Revision) -> StoreFuture<'_, ()> {
        refused()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_kept_is_read_page_by_page_and_nothing_is_taken() {
        let keys = ["a/1", "a/2", "a/3", "b/1"];
        let pairs = keys.map(|key| (key.to_owned(), Bytes::from(key)));
        let store = Frozen::new(Revision(7), pairs.into());
        let found = store.get("a/2").await.unwrap();
        assert_eq!(
            (found.revision, found.value.unwrap().value),
            (Revision(7), "a/2".into())
        );
        assert_eq!(store.get("a").await.unwrap().value, None);
        let mut seen = Vec::new();
        let revision = super::super::load::list(&store, "a/", None, |pair| seen.push(pair.key));
        assert_eq!(revision.await.unwrap(), Revision(7));
        assert_eq!(seen, ["a/1", "a/2", "a/3"]);
        let page = Range {
            prefix: "a/".into(),
            after: Some("a/1".into()),
            limit: 1,
            at: None,
        };
        let page = store.range(page).await.unwrap();
        assert_eq!((page.items.len(), page.more), (1, true));
        assert!(store.txn(Txn::default()).await.is_err());
        assert!(store.watch("a/", Revision(8)).await.is_err());
    }
}
