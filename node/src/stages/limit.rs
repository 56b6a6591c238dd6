//! Stage 4: spend tokens of every meter that applies.
//!
//! A token is drawn here and becomes *sent* in `forward`, in the same poll as the first write.
//! Where the request still has to wait for something else (a body that request filters need
//! whole), nothing is drawn yet: this stage refuses only when a meter is known to be empty, and
//! `forward` draws.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use proto::outcome::{Code, EarlyEnd, Extra, MeterState};

use crate::actor::{Next, Stage, StageKind};
use crate::flow::Exchange;
use crate::inbound;
use crate::limits::{
    self, Cause, Clock, DrawAll, MeterSet, Refusal, SystemClock, Tokens, WaitingAll,
};
use crate::upstream::Hold;

/// The stage.
pub struct Limit;

impl Stage for Limit {
    const KIND: StageKind = StageKind::Limit;

    fn decide(&mut self, exchange: &mut Exchange) -> Next {
        let Some(proxy) = exchange.proxy.clone() else {
            return EarlyEnd::new(Code::InternalError, "limit met no proxy").into();
        };
        if proxy.meters.meters().is_empty() {
            return Next::Continue;
        }
        let now_ns = SystemClock.boot_ns();
        let waits = exchange
            .caller
            .as_ref()
            .and_then(|caller| proxy.credentials.get(caller.index))
            .is_some_and(|credential| credential.request_filters.is_some());
        if waits {
            return match proxy.meters.check(now_ns) {
                Some(refusal) => refused(&refusal).into(),
                None => Next::Continue,
            };
        }
        match proxy.meters.draw(now_ns) {
            DrawAll::Drawn(tokens) => {
                exchange.tokens = Some(tokens);
                Next::Continue
            }
            DrawAll::Refused(refusal) => refused(&refusal).into(),
            DrawAll::Wait(waiting) => wait(*waiting),
        }
    }
}

/// Waits for the broker, which has been asked: a first request must not be refused for being
/// first. Bounded by the meter's `store_grace`.
fn wait(waiting: WaitingAll) -> Next {
    Next::Wait(Box::new(move |mut exchange| {
        Box::pin(async move {
            let Some(reply) = exchange.reply.as_mut() else {
                return (exchange, Some(Box::new(inbound::gone())));
            };
            let granted = tokio::select! {
                biased;
                () = reply.closed() => Err(inbound::gone()),
                granted = waiting.granted() => granted.map_err(|refusal| refused(&refusal)),
            };
            match granted {
                Ok(tokens) => {
                    exchange.tokens = Some(tokens);
                    (exchange, None)
                }
                Err(end) => (exchange, Some(Box::new(end))),
            }
        })
    }))
}

/// Draws tokens for a request that had to wait for something else first.
///
/// # Errors
/// 429 or 503 of the meter that refuses.
pub async fn draw(meters: &MeterSet) -> Result<Option<Tokens>, EarlyEnd> {
    if meters.meters().is_empty() {
        return Ok(None);
    }
    let drawn = match meters.draw(SystemClock.boot_ns()) {
        DrawAll::Drawn(tokens) => Ok(tokens),
        DrawAll::Refused(refusal) => Err(refusal),
        DrawAll::Wait(waiting) => waiting.granted().await,
    };
    drawn.map(Some).map_err(|refusal| refused(&refusal))
}

/// Tokens between their draw and the request's first write.
#[derive(Default)]
#[expect(
    clippy::large_enum_variant,
    reason = "lives in the future of one request"
)]
pub enum Spending {
    /// There is nothing to spend, or it is spent.
    #[default]
    Nothing,
    /// Drawn.
    Drawn(Tokens),
    /// Asked for again; they will be here.
    Awaited(Rc<Cell<Option<Tokens>>>),
}

impl From<Option<Tokens>> for Spending {
    fn from(tokens: Option<Tokens>) -> Self {
        tokens.map_or(Self::Nothing, Self::Drawn)
    }
}

impl Spending {
    /// Spends them at this instant. Tokens whose block has ended meanwhile (a connection had to be
    /// made, or the block was about to end) are drawn anew, which may take a moment.
    ///
    /// # Errors
    /// 429 or 503 of the meter that refuses, or what to wait for.
    pub fn spend(&mut self, meters: &MeterSet) -> Result<(), Hold<EarlyEnd>> {
        let tokens = match std::mem::take(self) {
            Self::Nothing => return Ok(()),
            Self::Drawn(tokens) => Some(tokens),
            Self::Awaited(tokens) => tokens.take(),
        };
        let now_ns = SystemClock.boot_ns();
        if tokens.is_some_and(|tokens| tokens.send(now_ns).is_ok()) {
            return Ok(());
        }
        match meters.draw(now_ns) {
            DrawAll::Drawn(tokens) => tokens
                .send(now_ns)
                .map(drop)
                .map_err(|_| Hold::Refused(late())),
            DrawAll::Refused(refusal) => Err(Hold::Refused(refused(&refusal))),
            DrawAll::Wait(waiting) => {
                let place = Rc::new(Cell::new(None));
                *self = Self::Awaited(place.clone());
                Err(Hold::Until(Box::pin(async move {
                    let granted = waiting.granted().await;
                    place.set(Some(granted.map_err(|refusal| refused(&refusal))?));
                    Ok(())
                })))
            }
        }
    }
}

fn late() -> EarlyEnd {
    EarlyEnd::new(
        Code::RateLimited,
        "the tokens of this request ended before it could be sent; try again",
    )
    .header("retry-after", "1")
}

/// The answer to a refused request (draft-ietf-httpapi-ratelimit-headers).
fn refused(refusal: &Refusal) -> EarlyEnd {
    let wait = limits::retry_after(refusal.retry_after);
    let statuses = std::slice::from_ref(&refusal.status);
    let (code, detail) = match refusal.cause {
        Cause::Empty | Cause::Crowded => (Code::RateLimited, rate_limited(refusal, &wait)),
        Cause::StoreLost => (
            Code::LimitUnavailable,
            "the state of this proxy's limits cannot be reached and they fail closed; try again"
                .to_owned(),
        ),
    };
    let mut end = EarlyEnd::new(code, detail)
        .with(Extra::Meters(states(refusal)))
        .header("ratelimit", limits::rate_limit(statuses))
        .header("ratelimit-policy", limits::rate_limit_policy(statuses))
        .header("retry-after", wait);
    if refusal.retry_after > RETRY_HELPS_MAX {
        end.should_retry = Some(false);
    }
    end
}

/// A retry within this time may help; SDKs that retry sooner on their own are told not to.
const RETRY_HELPS_MAX: Duration = Duration::from_secs(60);

fn rate_limited(refusal: &Refusal, wait: &str) -> String {
    match &refusal.limit {
        Some(limit) => format!(
            "the limit of {} requests per {} is used up; try again in {wait} s, or raise `limits` \
             of the proxy",
            limit.limit, limit.window
        ),
        None => format!("too many requests wait for this proxy's limits; try again in {wait} s"),
    }
}

fn states(refusal: &Refusal) -> Vec<MeterState> {
    refusal
        .status
        .limits
        .iter()
        .map(|limit| MeterState {
            name: limit.window.name().to_owned(),
            limit: limit.limit,
            window_s: limit.window.width_ns() / 1_000_000_000,
            remaining: limit.remaining,
            retry_after_s: refusal.retry_after.as_secs().max(1),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proto::meter::{Limit, MeterSpec, Window};
    use proto::store::embedded::Embedded;

    use super::*;
    use crate::limits::{Limits, MeterKey, Opener, Settings};

    /// A block that ends between draw and send costs a moment, not the request.
    #[actix_rt::test]
    async fn tokens_that_ended_before_they_were_sent_are_drawn_again() {
        let dir = tempfile::tempdir().unwrap();
        let store = Embedded::open(&dir.path().join("store.sqlite")).unwrap();
        let settings = Settings::single_node(Opener { node: 1, boot: 1 });
        let (limits, broker) = Limits::new(store, &settings, Arc::new(SystemClock));
        actix_rt::spawn(broker);
        let limit = Limit::new(100, Window::Minute).unwrap();
        let spec = MeterSpec::new("", 1, vec![limit]).unwrap();
        let meter = limits.meter(MeterKey::whole("m"), Arc::new(spec));
        let meters = MeterSet::new(&[meter]).unwrap();
        for _ in 0..3 {
            let tokens = draw(&meters).await.unwrap().unwrap();
            while tokens.are_live(SystemClock.boot_ns()) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            let mut spending = Spending::from(Some(tokens));
            while let Err(hold) = spending.spend(&meters) {
                match hold {
                    Hold::Until(ready) => ready.await.unwrap(),
                    Hold::Refused(end) => panic!("{end:?}"),
                }
            }
            assert!(spending.spend(&meters).is_ok(), "spent once, whoever asks");
        }
    }
}
