//! Stage 4: spend tokens of every meter that applies.
//!
//! A token is drawn here and becomes *sent* in `forward`, in the same poll as the first write.
//! Where the request still has to wait for something else (a body that request filters need
//! whole), nothing is drawn yet: this stage refuses only when a meter is known to be empty, and
//! `forward` draws.

use std::time::Duration;

use proto::outcome::{Code, EarlyEnd, Extra, MeterState};
use tracing::Span;

use crate::actor::{Next, Stage, StageKind};
use crate::flow::Exchange;
use crate::inbound;
use crate::limits::{
    self, Cause, Clock, DrawAll, MeterSet, Refusal, SystemClock, Tokens, WaitingAll,
};

/// The stage.
pub struct Limit;

impl Stage for Limit {
    const KIND: StageKind = StageKind::Limit;

    fn span(parent: &Span) -> Span {
        tracing::info_span!(parent: parent, "limit")
    }

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

/// Spends drawn tokens at this instant; tokens whose block has ended meanwhile are drawn anew.
///
/// # Errors
/// 429 or 503 when no token is at hand.
pub fn spend(tokens: Option<Tokens>, meters: &MeterSet) -> Result<(), EarlyEnd> {
    let Some(tokens) = tokens else {
        return Ok(());
    };
    let now_ns = SystemClock.boot_ns();
    if tokens.send(now_ns).is_ok() {
        return Ok(());
    }
    match meters.draw(now_ns) {
        DrawAll::Drawn(tokens) => tokens.send(now_ns).map(drop).map_err(|_| late()),
        DrawAll::Refused(refusal) => Err(refused(&refusal)),
        // The write is due in this very poll, so it cannot wait for the broker.
        DrawAll::Wait(_) => Err(late()),
    }
}

fn late() -> EarlyEnd {
    EarlyEnd::new(
        Code::RateLimited,
        "the connection to the target took longer than the token for this request lives; try again",
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
