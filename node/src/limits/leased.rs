//! Following keys that live under leases: a list, then the changes.

use proto::store::{Event, Range, Revision, Store, StoreError};

/// Keys of one page of a list.
const PAGE: usize = 500;

/// Tells `each` key below a prefix and its value, and from then on every change; no value: it is
/// gone. Ends with the watch.
///
/// # Errors
/// Whatever ends it; it is to be followed again.
pub(super) async fn follow(
    store: &dyn Store,
    prefix: &str,
    mut each: impl FnMut(&str, Option<&[u8]>),
) -> Result<(), StoreError> {
    let mut range = Range {
        prefix: prefix.to_owned(),
        after: None,
        limit: PAGE,
        at: None,
    };
    loop {
        let page = store.range(range.clone()).await?;
        for item in &page.items {
            each(&item.key, Some(&item.value[..]));
        }
        range.at = Some(page.revision);
        range.after = page.items.last().map(|item| item.key.clone());
        if !page.more {
            break;
        }
    }
    let from = Revision(range.at.map_or(0, |revision| revision.0).saturating_add(1));
    let mut watch = store.watch(prefix, from).await?;
    loop {
        for event in watch.next().await?.events {
            match event {
                Event::Put(item) => each(&item.key, Some(&item.value[..])),
                Event::Delete { key, .. } => each(&key, None),
            }
        }
    }
}
