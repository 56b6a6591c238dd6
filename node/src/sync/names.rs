//! Where the names of our own services lead to, which no target may be at: looked up at the start,
//! and again and again, for a service that is moved (a pod, most of all) gets another address.

use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::{Mutex, MutexGuard, PoisonError};

use futures_util::future::join_all;
use tracing::{debug, warn};

/// Names, host and port each, with the addresses that they had when they resolved last.
#[derive(Debug, Default)]
pub struct Names(Vec<Named>);

#[derive(Debug)]
struct Named {
    name: String,
    addresses: Mutex<Vec<SocketAddr>>,
}

impl Named {
    fn addresses(&self) -> MutexGuard<'_, Vec<SocketAddr>> {
        self.addresses
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// What does not resolve now is where it was.
    async fn look(&self) {
        match tokio::net::lookup_host(self.name.as_str()).await {
            Ok(found) => {
                let found: Vec<SocketAddr> = found.collect();
                if !found.is_empty() {
                    *self.addresses() = found;
                }
            }
            Err(error) => debug!(%error, "{} does not resolve", self.name),
        }
    }
}

impl Names {
    /// These, looked up at once: for a start, since it blocks.
    pub fn of(names: impl Iterator<Item = String>) -> Self {
        let named = names.map(|name| {
            let found = name.to_socket_addrs().map(Iterator::collect);
            let addresses = found.unwrap_or_else(|error| {
                warn!("{name} is not kept from targets until it resolves: {error}");
                Vec::new()
            });
            let addresses = Mutex::new(addresses);
            Named { name, addresses }
        });
        Self(named.collect())
    }

    /// Looks them up again.
    pub async fn look(&self) {
        join_all(self.0.iter().map(Named::look)).await;
    }

    /// Where they are, as far as is known.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        let named = self.0.iter();
        named.flat_map(|named| named.addresses().clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str, address: &str) -> Named {
        Named {
            name: name.to_owned(),
            addresses: Mutex::new(vec![address.parse().unwrap()]),
        }
    }

    #[tokio::test]
    async fn a_name_is_where_it_leads_to_now_or_where_it_was() {
        let names = Names(vec![
            named("127.0.0.9:2379", "127.0.0.8:2379"),
            named("no port", "127.0.0.7:2379"),
        ]);
        names.look().await;
        let expected: [SocketAddr; 2] = [
            "127.0.0.9:2379".parse().unwrap(),
            "127.0.0.7:2379".parse().unwrap(),
        ];
        assert_eq!(names.addresses(), expected);
    }

    #[test]
    fn what_does_not_resolve_at_the_start_is_nowhere() {
        let names = ["no port", "127.0.0.9:2379"].map(str::to_owned);
        let names = Names::of(names.into_iter());
        let expected: [SocketAddr; 1] = ["127.0.0.9:2379".parse().unwrap()];
        assert_eq!(names.addresses(), expected);
    }
}
