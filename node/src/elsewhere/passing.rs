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
use crate::lent;
use crate::limits::SlotToken;
use crate::metrics::Metrics;
use crate::outcomes::{self, Sent};
use crate::reply::ReplySender;
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
    let mut maybe_carried_out = false;
    for at in elsewhere.nearest().into_iter().take(GATEWAYS_ASKED_MAX) {
        let Some(gateway) = elsewhere.gateways.get(at) else {
            continue;
        };
        if !gateway.gateway.is_there() {
            continue;
        }
        exchange.notes.endpoint = at;
        let head = head(elsewhere, at, exchange, crossing, terms)?;
        outcomes::begins(exchange);
        let wanted = (exchange.reply.as_mut(), &*exchange.slots);
        let (sent, unsent) = send((upstream, metrics), wanted, gateway, head, body).await;
        let again = match sent {
            Ok(mut answer) => {
                exchange.said = said(&answer.headers);
                if exchange.said.is_some() {
                    return Ok(answer);
                }
                outcomes::answered(exchange, &answer);
                end = unavailable("; what answers there is no gateway");
                maybe_carried_out = true;
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
                let again = failure.again.take();
                let failure = failure.after_others(maybe_carried_out);
                maybe_carried_out = failure.maybe_carried_out;
                end = failed(&failure);
                again
            }
        };
        match again.map(|again| again.1).or(unsent) {
            Some(again) => body = again,
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

/// Sends it, for as long as the caller waits and the region is there. Where that is gone, the body
/// comes back if it may go to another one.
async fn send(
    (upstream, metrics): (&Upstream, &Metrics),
    wanted: (Option<&mut ReplySender>, &[SlotToken]),
    to: &RegionGateway,
    head: RequestHead,
    body: RequestBody,
) -> (Sent, Option<RequestBody>) {
    let has_alternatives = head.terms.has_alternatives;
    let copy = (has_alternatives && is_idempotent(&head.method)).then(|| body.replay());
    let (body, lent) = lent::lend(body);
    let (attempts, is_gone) = (Cell::new(0), Cell::new(false));
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
                is_gone.set(true);
                let begun = attempts.get() > 0;
                Err(SendError::Failed(Failure {
                    kind: match begun {
                        true => FailureKind::Reset("the region is gone".into()),
                        false => FailureKind::ConnectTimeout,
                    },
                    maybe_carried_out: begun,
                    attempts: attempts.get(),
                    earlier: Vec::new(),
                    again: None,
                }))
            }
        }
    };
    let ended = inbound::while_wanted(wanted, metrics.cut(), pin!(sending)).await;
    let unsent = match attempts.get() {
        // No byte of it was asked for.
        0 => lent.take_back(),
        _ => copy.flatten(),
    };
    let unsent = unsent.filter(|_| has_alternatives && is_gone.get());
    (outcomes::ended(ended, attempts.get()), unsent)
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use proto::hosts::Origin;
    use tokio::net::{TcpSocket, TcpStream};
    use tokio::time::timeout;

    use super::*;
    use crate::elsewhere::gateways::KnownGateways;
    use crate::metrics::AddressDurations;
    use crate::upstream::address::{GuardPolicy, PermitEntry};
    use crate::upstream::tls::{TlsSettings, TlsSpec};
    use crate::upstream::{
        CONNECTIONS_MAX_DEFAULT, Destination, DestinationParts, Host, Scheme, Timeouts,
        UpstreamSettings,
    };

    fn gateway(port: u16) -> RegionGateway {
        let loopback = "127.0.0.0/8".parse().unwrap();
        let url = format!("http://127.0.0.1:{port}");
        let origin = Origin::of(&url::Url::parse(&url).unwrap()).unwrap();
        let parts = DestinationParts {
            tenant: 0,
            scheme: Scheme::Http,
            host: Host::parse("127.0.0.1").unwrap(),
            port,
            tls: Arc::new(TlsSettings::new(&TlsSpec::default()).unwrap()),
            http2: false,
            guard: Arc::new(GuardPolicy {
                permit: vec![PermitEntry {
                    network: loopback,
                    ports: vec![1..=u16::MAX],
                }],
                allow_networks: vec![loopback],
                ..GuardPolicy::default()
            }),
            timeouts: Timeouts::default(),
            connections_max: CONNECTIONS_MAX_DEFAULT,
        };
        RegionGateway {
            region: "eu".into(),
            url: url.into(),
            path: "/api/x".into(),
            destination: Arc::new(Destination::new(parts).unwrap()),
            gateway: KnownGateways::default().at(&origin),
            durations: AddressDurations::default(),
        }
    }

    fn post(has_alternatives: bool) -> (RequestHead, RequestBody) {
        let head = RequestHead {
            method: Method::POST,
            target: "/api/x".parse().unwrap(),
            headers: HeaderMap::new(),
            terms: Terms {
                has_alternatives,
                ..Terms::now()
            },
        };
        let pieces = ["ab", "c"].map(|piece| Ok(Bytes::from_static(piece.as_bytes())));
        let body = RequestBody::Stream {
            stream: Box::pin(futures_util::stream::iter(pieces)),
            length: Some(3),
        };
        (head, body)
    }

    /// A region that takes no packet any more: not a byte has left, so any method goes on, with
    /// all of its body.
    #[actix_rt::test]
    async fn what_was_not_sent_to_a_region_comes_back() {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let full = socket.listen(0).unwrap();
        let address = full.local_addr().unwrap();
        let connect = || timeout(Duration::from_millis(100), TcpStream::connect(address));
        let mut queued = Vec::new();
        while let Ok(Ok(stream)) = connect().await {
            queued.push(stream);
        }
        let (to, upstream) = (
            gateway(address.port()),
            Upstream::new(UpstreamSettings::default()),
        );
        for has_alternatives in [true, false] {
            let (head, body) = post(has_alternatives);
            let both = (&upstream, &Metrics::default());
            let (sent, unsent) = send(both, (None, &[]), &to, head, body).await;
            let Err(SendError::Failed(failure)) = sent else {
                panic!("nobody takes connections there");
            };
            let seen = (failure.maybe_carried_out, failure.attempts);
            assert_eq!(seen, (false, 0), "{failure}");
            assert_eq!(unsent.is_some(), has_alternatives);
            if let Some(mut body) = unsent {
                assert_eq!(body.length(), Some(3));
                let RequestBody::Stream { stream, .. } = &mut body else {
                    panic!("it streams");
                };
                let pieces: Vec<_> = futures_util::StreamExt::collect(stream).await;
                assert_eq!(pieces, [Ok(Bytes::from("ab")), Ok(Bytes::from("c"))]);
            }
        }
    }
}
