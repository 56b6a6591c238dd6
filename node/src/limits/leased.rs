//! Following keys that live under leases: a list, then the changes.

use proto::store::backoff::backoff;
use proto::store::load;
use proto::store::{Event, Store, StoreError};

/// Tells `each` key below a prefix and its value, and from then on every change; no value: it is
/// gone. After an error it lists again, later each time; never ends by itself.
pub(super) async fn follow(
    store: &dyn Store,
    prefix: &str,
    mut each: impl FnMut(&str, Option<&[u8]>),
) {
    let mut failures = 0u32;
    loop {
        let mut listed = false;
        if let Err(error) = round(store, prefix, &mut each, &mut listed).await {
            tracing::debug!("{prefix} is followed again: {error}");
        }
        failures = if listed {
            0
        } else {
            failures.saturating_add(1)
        };
        tokio::time::sleep(backoff(failures)).await;
    }
}

/// One list and the watch after it, until an error; says whether it got as far as the watch.
async fn round(
    store: &dyn Store,
    prefix: &str,
    each: &mut impl FnMut(&str, Option<&[u8]>),
    listed: &mut bool,
) -> Result<(), StoreError> {
    let at = load::list(store, prefix, None, |item| {
        each(&item.key, Some(&item.value[..]));
    })
    .await?;
    let mut watch = store.watch(prefix, at.next()).await?;
    *listed = true;
    loop {
        for event in watch.next().await?.events {
            match event {
                Event::Put(item) => each(&item.key, Some(&item.value[..])),
                Event::Delete { key, .. } => each(&key, None),
            }
        }
    }
}
