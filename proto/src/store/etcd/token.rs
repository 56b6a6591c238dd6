//! The token that a member gave us for our password, and another one when it counts no more.
//!
//! A token ends in ways that the client library does not all know: when its time is over, when the
//! member that gave it was restarted, and, where etcd gives signed ones, as soon as any user or
//! role of the cluster is changed. What is refused for its token was not begun, so it can be made
//! again whatever it is. A stream that is refused says so in its first message, which the library
//! does not look at.

use std::sync::atomic::{AtomicU64, Ordering};

use etcd_client::{Client, Error};
use tokio::sync::Mutex;

/// Counts the tokens of one member's channel.
#[derive(Default)]
pub(super) struct Token {
    /// How many were asked for since the channel was made.
    renewed: AtomicU64,
    /// Held by who asks for one: a member hashes the password each time, slowly on purpose.
    asking: Mutex<()>,
}

impl Token {
    /// Makes a call; once more with another token where it was refused for the one that it had.
    pub(super) async fn with<T, F, R>(&self, client: &Client, make: F) -> Result<T, Error>
    where
        F: Fn(Client) -> R,
        R: Future<Output = Result<T, Error>>,
    {
        let had = self.renewed.load(Ordering::Acquire);
        match make(client.clone()).await {
            Err(error) if is_over(&error) => {
                self.renew(client, had).await?;
                make(client.clone()).await
            }
            made => made,
        }
    }

    /// Asks for another token than the one that a call had, unless somebody did meanwhile.
    async fn renew(&self, client: &Client, had: u64) -> Result<(), Error> {
        let _asking = self.asking.lock().await;
        if self.renewed.load(Ordering::Acquire) == had {
            client.refresh_token().await?;
            self.renewed.store(had.wrapping_add(1), Ordering::Release);
        }
        Ok(())
    }
}

/// What etcd says of a token that does not count (any more).
const OVER: [&str; 2] = ["invalid auth token", "revision of auth store is old"];

/// Whether these are the words of a member that takes another token than it was shown.
pub(super) fn says_over(text: &str) -> bool {
    OVER.into_iter().any(|words| text.contains(words))
}

/// Whether a call was refused for its token, before it was begun.
fn is_over(error: &Error) -> bool {
    match error {
        Error::GRpcStatus(status) => says_over(status.message()),
        Error::WatchError(text) | Error::LeaseKeepAliveError(text) => says_over(text),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_refused_for_its_token_is_made_again() {
        let watch = |text: &str| Error::WatchError(text.to_owned());
        for text in [
            "rpc error: code = Unauthenticated desc = etcdserver: invalid auth token",
            "etcdserver: revision of auth store is old",
        ] {
            assert!(is_over(&watch(text)), "{text}");
        }
        for text in [
            "etcdserver: permission denied",
            "etcdserver: user name is empty",
        ] {
            assert!(!is_over(&watch(text)), "{text}");
        }
    }
}
