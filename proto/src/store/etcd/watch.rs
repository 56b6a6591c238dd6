//! A watch on etcd: a stream that is read to its end, which is always an error.
//!
//! etcd cancels a watch without ending its stream, and then is silent for ever, so every message is
//! asked. The stream is read by a task on the store's own runtime and handed over through a small
//! channel: an owner who is slow holds up the stream, and etcd waits.

use etcd_client::{Client, Error, WatchOptions, WatchResponse, WatchStream};
use tokio::sync::mpsc;

use super::token::says_over;
use super::translate::Prefix;
use crate::store::span::Span;
use crate::store::{Change, Revision, StoreError, StoreFuture, Watch};

/// Largest message of a watch. Catching up, etcd puts up to 1000 revisions into one, and only
/// splits it in a way that this client cannot tell from whole revisions.
const MESSAGE_BYTES_MAX: usize = 256 << 20;

/// Changes that wait for the owner of a watch before its stream is held up.
const WAITING_MAX: usize = 16;

/// An open watch on etcd.
pub(super) struct EtcdWatch {
    changes: mpsc::Receiver<Result<Change, StoreError>>,
    ended: Option<StoreError>,
}

/// Opens the stream and waits until the server has registered the watch.
///
/// The first message is returned too: it may already say that the start was compacted.
pub(super) async fn register(
    client: Client,
    span: Span,
    from: Revision,
) -> Result<(WatchStream, WatchResponse), Error> {
    // Without fragments: they would split revisions, and the client does not show where.
    let options = WatchOptions::new()
        .with_range(span.end)
        .with_start_revision(from.0);
    let mut watcher = client
        .watch_client()
        .max_decoding_message_size(MESSAGE_BYTES_MAX);
    let mut stream = watcher.watch(span.start, Some(options)).await?;
    match stream.message().await? {
        Some(first) if says_over(first.cancel_reason()) => {
            Err(Error::WatchError(first.cancel_reason().into()))
        }
        Some(first) if first.created() => Ok((stream, first)),
        _ => Err(Error::WatchError(
            "the server did not register the watch".into(),
        )),
    }
}

impl EtcdWatch {
    /// Starts reading a registered stream. Must be called on the store's runtime.
    pub(super) fn start(stream: WatchStream, first: WatchResponse, prefix: Prefix) -> Self {
        let (sender, changes) = mpsc::channel(WAITING_MAX);
        tokio::spawn(pump(stream, first, prefix, sender));
        Self {
            changes,
            ended: None,
        }
    }
}

async fn pump(
    mut stream: WatchStream,
    first: WatchResponse,
    prefix: Prefix,
    sender: mpsc::Sender<Result<Change, StoreError>>,
) {
    let mut message = Ok(Some(first));
    loop {
        let changes = match read(message, &prefix) {
            Ok(changes) => changes,
            Err(error) => {
                // The owner may have left, which ends the watch as well.
                let _ = sender.send(Err(error)).await;
                return;
            }
        };
        for change in changes {
            if sender.send(Ok(change)).await.is_err() {
                return;
            }
        }
        message = tokio::select! {
            () = sender.closed() => return,
            message = stream.message() => message,
        };
    }
}

fn read(
    message: Result<Option<WatchResponse>, Error>,
    prefix: &Prefix,
) -> Result<Vec<Change>, StoreError> {
    let ended = |text: String| StoreError::Unavailable(format!("the watch ended: {text}"));
    let message = message
        .map_err(|error| ended(error.to_string()))?
        .ok_or_else(|| ended("etcd closed it".into()))?;
    if message.canceled() || message.compact_revision() > 0 {
        return Err(cancelled(
            message.compact_revision(),
            message.cancel_reason(),
        ));
    }
    prefix.changes(message.events())
}

fn cancelled(compact_revision: i64, reason: &str) -> StoreError {
    if compact_revision > 0 {
        StoreError::Compacted(Some(Revision(compact_revision)))
    } else if reason.contains("compacted") {
        StoreError::Compacted(None)
    } else {
        StoreError::Unavailable(format!("etcd cancelled the watch: {reason}"))
    }
}

impl Watch for EtcdWatch {
    fn next(&mut self) -> StoreFuture<'_, Change> {
        Box::pin(async move {
            if let Some(error) = &self.ended {
                return Err(error.clone());
            }
            // The task that reads is gone without a word when the store was dropped.
            let gone = || Err(StoreError::Unavailable("the store is closed".into()));
            let change = self.changes.recv().await.unwrap_or_else(gone);
            self.ended = change.as_ref().err().cloned();
            change
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cancelled_watch_says_whether_to_list_again() {
        let check = |compact_revision, reason: &str, expected: &str| {
            let found = format!("{:?}", cancelled(compact_revision, reason));
            assert!(
                found.starts_with(expected),
                "{compact_revision} {reason:?}: {found}"
            );
        };
        check(25, "", "Compacted(Some(Revision(25)))");
        check(
            0,
            "etcdserver: mvcc: required revision has been compacted",
            "Compacted(None)",
        );
        check(0, "etcdserver: permission denied", "Unavailable");
        check(0, "", "Unavailable");
    }
}
