//! The part of stage 7 for targets with several endpoints: what may be sent again goes on to the
//! next one.
//!
//! That is a request of which nothing was written, whatever its method, and an idempotent one (or
//! one with the key that the target's `retry.idempotency_header` names) that is in memory: up to
//! 64 KiB. It goes on where no answer came, and where what came is a 502, 503 or 504; when the
//! others have no better answer, that is the caller's. A POST of which bytes were written is never
//! sent again.

use std::pin::pin;
use std::sync::Arc;

use http::Method;
use proto::endpoint::Tried;
use proto::outcome::{Code, EarlyEnd};
use proto::proxy::OnClientAbort;

use crate::body::RequestBody;
use crate::endpoints::Picked;
use crate::flow::{Exchange, Inbound};
use crate::inbound;
use crate::metrics::Metrics;
use crate::outcomes::{self, Sent, settle};
use crate::rearming::Rearming;
use crate::snapshot::{CompiledProxy, TargetCredential};
use crate::spending::Attempts;
use crate::upstream::retry::is_idempotent;
use crate::upstream::{
    Answer, Failure, REPLAY_BYTES_MAX, RequestHead, Resend, SendError, Stopped, Terms, Upstream,
};

/// Most endpoints that one request is sent to: one that all of them fail on is at fault itself.
const ENDPOINTS_ASKED_MAX: usize = 3;

/// Whether the request came back and its target has other endpoints.
pub fn is_due(proxy: &CompiledProxy, sent: &Sent) -> bool {
    let again = match sent {
        Ok(answer) => &answer.again,
        Err(SendError::Failed(failure)) => &failure.again,
        Err(SendError::Gate(_)) => return false,
    };
    again.is_some() && proxy.target.endpoints.are_several()
}

/// Whether a request may have to wait for its body before it is sent: a target has several
/// endpoints, and so much of it comes that it may be kept for another one. The method, which can
/// rule it out, is left open.
pub fn reads_body(are_several: bool, body: &Inbound) -> bool {
    are_several && is_small(body)
}

fn is_small(body: &Inbound) -> bool {
    matches!(
        body,
        Inbound::Stream { length: Some(length), .. } if *length <= REPLAY_BYTES_MAX
    )
}

/// The body of a request to a target with several endpoints: read into memory where it is so small
/// that the request may be sent again with it.
pub async fn body(
    exchange: &mut Exchange,
    method: &Method,
    terms: Terms,
) -> Result<RequestBody, EarlyEnd> {
    let repeatable = terms.has_idempotency_key || is_idempotent(method);
    if repeatable && is_small(&exchange.body) {
        let most = usize::try_from(REPLAY_BYTES_MAX).unwrap_or(usize::MAX);
        inbound::hold(exchange, most).await?;
    }
    Ok(exchange.body.take())
}

/// Sends a request that came back to the endpoints that are left, until one answers.
pub async fn run(
    upstream: &Upstream,
    metrics: &Metrics,
    exchange: &mut Exchange,
    proxy: &CompiledProxy,
    (mut picked, mut sent): (Picked, Sent),
    attempts: &mut Attempts,
) -> Sent {
    let mut tried = Tried::default();
    let mut kept: Option<Kept> = None;
    let mut maybe_carried_out = false;
    loop {
        tried.add(picked.at);
        sent = settle(exchange, proxy, picked, sent);
        sent = after_others(sent, &mut maybe_carried_out);
        let again = taken_back(&mut sent);
        let again = again
            .filter(|again| tried.count() < ENDPOINTS_ASKED_MAX && in_time(again.0.terms, proxy));
        let next = again
            .as_ref()
            .and_then(|_| proxy.target.endpoints.next(tried));
        let (Some(again), Some(next)) = (again, next) else {
            return better(exchange, metrics, kept, sent);
        };
        metrics.failed_over();
        match sent {
            Ok(mut answer) => {
                outcomes::answered(exchange, &answer);
                answer.attempts = 0;
                kept = Some(Kept {
                    answer,
                    endpoint: exchange.notes.endpoint,
                    successor: exchange.successor.clone(),
                });
            }
            Err(SendError::Failed(failure)) => outcomes::unanswered(exchange, metrics, &failure),
            Err(gate) => return Err(gate),
        }
        let Some(destination) = proxy.destinations.get(next.at) else {
            return Err(SendError::Gate(Stopped::after(0, unlisted())));
        };
        let (mut head, mut body) = *again;
        let before = exchange.notes.attempts;
        outcomes::begins(exchange);
        let ended = {
            let mut rearming = Rearming {
                proxy,
                caller: exchange.caller.as_ref(),
                successor: &mut exchange.successor,
                notes: &mut exchange.notes,
                started: exchange.started,
                metrics,
            };
            let mut gate = |attempt: u32, head: &mut RequestHead| {
                rearming.admit(attempts, (before + attempt, head))
            };
            let sending = pin!(upstream.send(destination, &mut head, &mut body, &mut gate));
            let cancels = proxy.on_client_abort == OnClientAbort::Cancel;
            let reply = exchange.reply.as_mut().filter(|_| cancels);
            inbound::while_wanted((reply, &exchange.slots), metrics.cut(), sending).await
        };
        let stopped = ended.is_err();
        sent = outcomes::ended(ended, attempts.passed().saturating_sub(before));
        picked = next;
        if stopped {
            // Whoever would be given the answer that was kept is gone, or the gateway ends.
            return settle(exchange, proxy, picked, sent);
        }
    }
}

/// An answer of 502, 503 or 504 that is given when there is no better one.
struct Kept {
    answer: Box<Answer>,
    endpoint: usize,
    /// The secret that it was asked with, where that is not the pinned one.
    successor: Option<Arc<TargetCredential>>,
}

/// What is said of an endpoint, after others that may have carried it out.
fn after_others(sent: Sent, maybe_carried_out: &mut bool) -> Sent {
    sent.map_err(|missed| match missed {
        SendError::Failed(failure) => {
            *maybe_carried_out |= failure.maybe_carried_out;
            SendError::Failed(failure.after_others(*maybe_carried_out))
        }
        gate => gate,
    })
}

fn taken_back(sent: &mut Sent) -> Option<Resend> {
    match sent {
        Ok(answer) => answer.again.take(),
        Err(SendError::Failed(Failure { again, .. })) => again.take(),
        Err(SendError::Gate(_)) => None,
    }
}

/// Whether `timeouts.total` leaves time for another endpoint.
fn in_time(terms: Terms, proxy: &CompiledProxy) -> bool {
    let destination = proxy.destinations.first();
    let total = destination.and_then(|destination| destination.parts().timeouts.total);
    total.is_none_or(|total| terms.asked_at.elapsed() < total)
}

/// The answer that was kept, where what came since is none.
fn better(exchange: &mut Exchange, metrics: &Metrics, kept: Option<Kept>, sent: Sent) -> Sent {
    match (sent, kept) {
        (Err(missed), Some(kept)) => {
            match &missed {
                SendError::Failed(failure) => outcomes::unanswered(exchange, metrics, failure),
                // A limit had no token for one more attempt.
                SendError::Gate(stopped) => outcomes::stopped(exchange, stopped),
            }
            exchange.notes.endpoint = kept.endpoint;
            // What is given was asked for with this secret, before anybody was refused.
            exchange.successor = kept.successor;
            exchange.notes.refusal = None;
            Ok(kept.answer)
        }
        (sent, _) => sent,
    }
}

/// A list of addresses that does not have the one that was chosen of it.
pub fn unlisted() -> EarlyEnd {
    EarlyEnd::new(Code::InternalError, "the target has no such endpoint")
}
