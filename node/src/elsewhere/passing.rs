//! Passes a request on to the gateway of a region that serves its proxy.
//!
//! It goes as it came, with the caller's key: the region there judges it. Bodies stream both ways.
//! A request of which nothing was written, or an idempotent one that is in memory, goes on to the
//! next region where one is gone; what a gateway answers is the answer.

use std::cell::Cell;
use std::pin::pin;

use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{HeaderMap, Method};
use proto::outcome::{Code, EarlyEnd};
use tokio::time::Instant;
use tracing::info;

use super::{Elsewhere, PASSED_ON, RegionGateway, said};
use crate::body::RequestBody;
use crate::failover;
use crate::flow::Exchange;
use crate::inbound;
use crate::metrics::Metrics;
use crate::outcomes::{self, Sent};
use crate::stages::inject::Armed;
use crate::upstream::retry::is_idempotent;
use crate::upstream::{
    Answer, AnswerError, Failure, FailureKind, RequestHead, SendError, Terms, Upstream,
};

/// Most gateways that one request is sent to.
const GATEWAYS_ASKED_MAX: usize = 3;

/// A request as it is passed on, but for its body.
struct Crossing {
    method: Method,
    /// The path behind the proxy and the query, byte for byte; may be empty.
    rest: Bytes,
    /// The caller's fields, without those of its connection.
    headers: HeaderMap,
}

/// An answer, and its body where all of it was there at once.
pub type Passed = (Answer, Result<Option<Bytes>, AnswerError>);

/// Sends a request to the nearest gateway that is there, and gives what it answers.
///
/// # Errors
/// 503 `region-unavailable` where none could be reached; the caller left or broke its body off.
pub async fn pass_on(
    upstream: &Upstream,
    metrics: &Metrics,
    exchange: &mut Exchange,
    elsewhere: &Elsewhere,
    armed: Armed,
) -> Result<Passed, EarlyEnd> {
    let (method, rest, mut headers) = armed.into_parts();
    if let Some(trace) = &exchange.trace {
        trace.pass_on(&mut headers);
    }
    let crossing = Crossing {
        method,
        rest,
        headers,
    };
    let mut answer = answer_to(upstream, metrics, exchange, elsewhere, &crossing).await?;
    let whole = answer.body.whole().await;
    Ok((answer, whole))
}

async fn answer_to(
    upstream: &Upstream,
    metrics: &Metrics,
    exchange: &mut Exchange,
    elsewhere: &Elsewhere,
    crossing: &Crossing,
) -> Result<Answer, EarlyEnd> {
    let mut terms = Terms {
        has_alternatives: elsewhere.gateways.len() > 1,
        ..Terms::now()
    };
    elsewhere.use_gateways();
    let mut body = match terms.has_alternatives {
        true => failover::body(exchange, &crossing.method, terms).await?,
        false => exchange.body.take(),
    };
    // The caller's body is not the region's to wait for.
    terms.asked_at = Instant::now();
    let mut end = unavailable("; the request was not carried out");
    for at in elsewhere.nearest().into_iter().take(GATEWAYS_ASKED_MAX) {
        let Some(gateway) = elsewhere.gateways.get(at) else {
            continue;
        };
        if !gateway.gateway.is_there() {
            continue;
        }
        exchange.notes.endpoint = at;
        let head = head(elsewhere, at, exchange, crossing, terms)?;
        let again = match send((upstream, metrics), exchange, gateway, head, body).await {
            Ok(mut answer) => {
                exchange.said = said(&answer.headers);
                if exchange.said.is_some() {
                    return Ok(answer);
                }
                outcomes::answered(exchange, &answer);
                end = unavailable("; what answers there is no gateway");
                answer.again.take()
            }
            Err(SendError::Gate(stopped)) => {
                outcomes::stopped(exchange, &stopped);
                return Err(stopped.why);
            }
            Err(SendError::Failed(mut failure)) => {
                let id = exchange.id;
                let (trace_id, span_id) = exchange.trace_ids();
                let region = &gateway.region;
                info!(request = %id, trace_id, span_id, %region, "{id}: {failure}");
                outcomes::unanswered(exchange, metrics, &failure);
                end = failed(&failure);
                failure.again.take()
            }
        };
        match again {
            Some(again) => body = again.1,
            None => return Err(end),
        }
    }
    Err(end)
}

/// The request's head for the gateway at a place.
fn head(
    elsewhere: &Elsewhere,
    at: usize,
    exchange: &Exchange,
    crossing: &Crossing,
    terms: Terms,
) -> Result<RequestHead, EarlyEnd> {
    let path = elsewhere.gateways.get(at).map_or("", |to| &to.path);
    let target = [path.as_bytes(), &crossing.rest].concat();
    let mut headers = crossing.headers.clone();
    if let Some(value) = elsewhere.passed_on(at, exchange, &target) {
        headers.insert(PASSED_ON, value);
    }
    let target = PathAndQuery::from_maybe_shared(Bytes::from(target)).map_err(|_| {
        let detail = "the path and query cannot be sent as they are";
        EarlyEnd::new(Code::MalformedRequest, detail)
    })?;
    Ok(RequestHead {
        method: crossing.method.clone(),
        target,
        headers,
        terms,
    })
}

/// Sends it, for as long as the caller waits and the region is there.
async fn send(
    (upstream, metrics): (&Upstream, &Metrics),
    exchange: &mut Exchange,
    to: &RegionGateway,
    head: RequestHead,
    body: RequestBody,
) -> Sent {
    let repeatable = head.terms.has_alternatives && is_idempotent(&head.method);
    let copy = repeatable
        .then(|| body.replay())
        .flatten()
        .map(|body| Box::new((head.clone(), body)));
    let attempts = Cell::new(0);
    let mut gate = |attempt: u32, _: &mut RequestHead| {
        attempts.set(attempt);
        Ok(None)
    };
    let since = Instant::now();
    let sending = async {
        tokio::select! {
            biased;
            sent = upstream.send(&to.destination, head, body, &mut gate) => sent,
            () = to.gateway.gone(since) => {
                let begun = attempts.get() > 0;
                Err(SendError::Failed(Failure {
                    kind: match begun {
                        true => FailureKind::Reset("the region is gone".into()),
                        false => FailureKind::ConnectTimeout,
                    },
                    maybe_carried_out: begun,
                    attempts: attempts.get(),
                    earlier: Vec::new(),
                    again: copy,
                }))
            }
        }
    };
    let reply = exchange.reply.as_mut();
    let ended = inbound::while_wanted((reply, &exchange.slots), metrics.cut(), pin!(sending)).await;
    outcomes::ended(ended, attempts.get())
}

/// What a caller is told of a failure.
fn failed(failure: &Failure) -> EarlyEnd {
    match failure.kind {
        FailureKind::BodyFromCaller(error) => inbound::broken(error),
        FailureKind::BadTarget => {
            let detail = "the path and query cannot be sent as they are; percent-encode them";
            EarlyEnd::new(Code::MalformedRequest, detail)
        }
        _ if failure.maybe_carried_out => {
            let mut end = unavailable("; the request may have been carried out");
            end.should_retry = Some(false);
            end
        }
        _ => unavailable("; the request was not carried out"),
    }
}

/// The end of a request that no region could be reached for.
fn unavailable(carried: &str) -> EarlyEnd {
    let detail = format!("no gateway of the regions that serve this proxy answers{carried}");
    EarlyEnd::new(Code::RegionUnavailable, detail).header("retry-after", "1")
}
