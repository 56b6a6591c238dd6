//! One channel for each endpoint, and the choice among them.
//!
//! The client's own balancing keeps choosing dead endpoints and repeats nothing, so every channel
//! is built from exactly one endpoint and the choice is ours: stay with the one that works, go to
//! the next when it fails, repeat what is known not to have been carried out.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use etcd_client::{Client, ConnectOptions, Error};
use tokio::sync::OnceCell;
use tokio::time::error::Elapsed;
use tokio::time::timeout;

use super::failure::{Call, Failure, failure, lost, not_connected, refused};
use super::token::Token;
use super::version;
use crate::store::{LeaseId, StoreError};

/// The endpoints of one etcd cluster.
pub(super) struct Endpoints {
    endpoints: Vec<Endpoint>,
    /// Where calls begin; counts up, taken modulo the number of endpoints.
    preferred: AtomicUsize,
    options: ConnectOptions,
}

/// How long an attempt at one endpoint may take.
#[derive(Clone, Copy)]
struct Shares {
    /// To connect.
    connect: Duration,
    /// In all.
    whole: Duration,
}

struct Endpoint {
    url: String,
    client: OnceCell<Client>,
    token: Token,
}

impl Endpoints {
    /// Endpoints by URL, at least one. Nothing is connected until the first call.
    pub(super) fn new(urls: Vec<String>, options: ConnectOptions) -> Self {
        let endpoint = |url| Endpoint {
            url,
            client: OnceCell::new(),
            token: Token::default(),
        };
        let endpoints = urls.into_iter().map(endpoint).collect();
        Self {
            endpoints,
            preferred: AtomicUsize::new(0),
            options,
        }
    }

    /// Makes the call at the preferred endpoint, and at the others where that is allowed.
    ///
    /// The time left until `deadline` belongs to one attempt for what can be done only once, and is
    /// shared out among the endpoints for the rest: one that hangs leaves time to ask another.
    pub(super) async fn call<T, F, R>(
        &self,
        deadline: Instant,
        call: Call,
        lease: LeaseId,
        make: F,
    ) -> Result<T, StoreError>
    where
        F: Fn(Client) -> R,
        R: Future<Output = Result<T, Error>>,
    {
        let first = self.place();
        let mut last = StoreError::Unavailable("no time was left to call etcd".into());
        for turn in 0..self.endpoints.len() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let place = first.wrapping_add(turn);
            let Some(endpoint) = self.endpoints.get(place % self.endpoints.len()) else {
                break;
            };
            let part = left / divisor(self.endpoints.len() - turn);
            // Connecting can be repeated whatever the call is.
            let shares = match call {
                Call::Once => Shares {
                    connect: part,
                    whole: left,
                },
                Call::Repeatable => Shares {
                    connect: part,
                    whole: part,
                },
            };
            match endpoint
                .attempt(&self.options, shares, call, lease, &make)
                .await
            {
                Ok(answer) => return Ok(answer),
                Err(failure) => {
                    if failure.endpoint_failed {
                        self.leave(place);
                    }
                    if !failure.repeat {
                        return Err(failure.error);
                    }
                    // One member with a strange certificate does not speak for the others: only
                    // when all of them have one can the settings not work.
                    if turn == 0 || matches!(last, StoreError::Unusable(_)) {
                        last = failure.error;
                    }
                }
            }
        }
        Err(last)
    }

    /// Makes the call at every endpoint, one after the other, each within `share` and on a channel
    /// of its own: the others give up earlier. Gives the failures; one does not keep the others
    /// from their turn. Each is told how many come after it.
    pub(super) async fn each<F, R>(&self, share: Duration, make: F) -> Vec<StoreError>
    where
        F: Fn(usize, Client) -> R,
        R: Future<Output = Result<(), Error>>,
    {
        let mut failures = Vec::new();
        for (later, endpoint) in (0..self.endpoints.len()).rev().zip(&self.endpoints) {
            let made = |client| make(later, client);
            let failed = match self.alone(endpoint, share, &made).await {
                Ok(Ok(())) => continue,
                Ok(Err(error)) => failure(&error, Call::Repeatable, LeaseId(0)),
                Err(_) => lost("no answer in time".to_owned(), Call::Repeatable),
            };
            failures.push(endpoint.named(failed).error);
        }
        failures
    }

    /// The answers of those endpoints that give one within `share`, by their addresses.
    pub(super) async fn ask_each<T, F, R>(&self, share: Duration, make: F) -> Vec<(String, T)>
    where
        F: Fn(Client) -> R,
        R: Future<Output = Result<T, Error>>,
    {
        let mut answers = Vec::new();
        for endpoint in &self.endpoints {
            if let Ok(Ok(answer)) = self.alone(endpoint, share, &make).await {
                answers.push((endpoint.url.clone(), answer));
            }
        }
        answers
    }

    /// One call at one endpoint, on a channel of its own.
    async fn alone<T, F, R>(
        &self,
        endpoint: &Endpoint,
        share: Duration,
        make: &F,
    ) -> Result<Result<T, Error>, Elapsed>
    where
        F: Fn(Client) -> R,
        R: Future<Output = Result<T, Error>>,
    {
        let options = self.options.clone().with_timeout(share);
        let made = async { make(Client::connect([&endpoint.url], Some(options)).await?).await };
        timeout(share, made).await
    }

    /// Where calls begin now.
    pub(super) fn place(&self) -> usize {
        self.preferred.load(Ordering::Relaxed)
    }

    /// Lets calls begin at the next endpoint. Only the first of many that fail at a place moves on
    /// from it.
    pub(super) fn leave(&self, place: usize) {
        let (next, order) = (place.wrapping_add(1), Ordering::Relaxed);
        // Lost against another call: then the preference has moved already.
        let _ = self.preferred.compare_exchange(place, next, order, order);
    }
}

fn divisor(endpoints: usize) -> u32 {
    u32::try_from(endpoints).unwrap_or(u32::MAX).max(1)
}

impl Endpoint {
    async fn attempt<T, F, R>(
        &self,
        options: &ConnectOptions,
        shares: Shares,
        call: Call,
        lease: LeaseId,
        make: &F,
    ) -> Result<T, Failure>
    where
        F: Fn(Client) -> R,
        R: Future<Output = Result<T, Error>>,
    {
        let begun = Instant::now();
        let late = |share: Duration, call| {
            lost(format!("no answer within {} ms", share.as_millis()), call)
        };
        // Making the channel asks for a token when a user is set, which can be repeated at will.
        let connect = || self.connect(options);
        let client = match timeout(shares.connect, self.client.get_or_try_init(connect)).await {
            Ok(Ok(client)) => client.clone(),
            Ok(Err(failure)) => return Err(self.named(failure)),
            Err(_) => return Err(self.named(late(shares.connect, Call::Repeatable))),
        };
        let left = shares.whole.saturating_sub(begun.elapsed());
        match timeout(left, self.token.with(&client, make)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(self.named(failure(&error, call, lease))),
            Err(_) => Err(self.named(late(shares.whole, call))),
        }
    }

    /// Makes the channel and asks which etcd is there, so that a release without what the store
    /// relies on is refused by name, not by what goes wrong later.
    async fn connect(&self, options: &ConnectOptions) -> Result<Client, Failure> {
        let failed = |error: Error| not_connected(&error, self.is_tls());
        let client = Client::connect([&self.url], Some(options.clone()));
        let client = client.await.map_err(failed)?;
        let status = client.maintenance_client().status().await.map_err(failed)?;
        if let Some(why) = version::refusal(status.version()) {
            return Err(refused(StoreError::Unusable(why)));
        }
        if let Some(why) = version::warning(status.version()) {
            tracing::warn!(endpoint = %self.url, "{why}");
        }
        Ok(client)
    }

    fn is_tls(&self) -> bool {
        self.url.starts_with("https:")
    }

    fn named(&self, failure: Failure) -> Failure {
        let at = |text: String| format!("etcd {}: {text}", self.url);
        let error = match failure.error {
            StoreError::Unavailable(text) => StoreError::Unavailable(at(text)),
            StoreError::OutcomeUnknown(text) => StoreError::OutcomeUnknown(at(text)),
            StoreError::Full(text) => StoreError::Full(at(text)),
            StoreError::Unusable(text) => StoreError::Unusable(at(text)),
            StoreError::Invalid(text) => StoreError::Invalid(at(text)),
            other => other,
        };
        Failure { error, ..failure }
    }
}
