//! Passes a request on to the gateway of a region that serves its proxy.
//!
//! It goes as it came, with the caller's key: the region there judges it. Bodies stream both ways.
//! A request of which nothing was written, or an idempotent one that is in memory, goes on to the
//! next region where one is gone; what a gateway answers is the answer, unless it says no more than
//! that the regions do not know the same yet.

use std::cell::Cell;
use std::pin::pin;

use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{HeaderMap, Method, StatusCode};
use proto::outcome::{Code, EarlyEnd};
use tokio::time::Instant;
use tracing::info;

use super::{Elsewhere, PASSED_ON, RegionGateway, Said, said};
use crate::answer::SHOULD_RETRY;
use crate::body::RequestBody;
use crate::failover;
use crate::flow::{Caller, Exchange};
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

/// Why no region served a request.
const NOBODY: &str = "no gateway of the regions that serve this proxy answers";
const STRANGER: &str = "what answers for a region that serves this proxy is no gateway";
const UNKNOWN_KEY: &str = "a region that serves this proxy does not know the caller's key, which \
                           this one does";
const ASTRAY: &str = "a region that is to serve this proxy does not; the regions do not agree on \
                      where it is served";

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
pub type Passed = (Box<Answer>, Result<Option<Bytes>, AnswerError>);

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
) -> Result<Box<Answer>, EarlyEnd> {
    elsewhere.use_gateways();
    let (terms, mut body) = ready(exchange, elsewhere, &crossing.method).await?;
    let mut end = unavailable(NOBODY, false);
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
        let copy = terms.has_alternatives.then(|| body.replay()).flatten();
        let (sent, unsent) = send((upstream, metrics), wanted, gateway, head, body).await;
        let again = match sent {
            Ok(mut answer) => {
                let said = said(&answer.headers);
                let lag = said.as_ref().and_then(|said| lag(exchange, said, &answer));
                if said.is_some() && lag.is_none() {
                    exchange.said = said;
                    return Ok(answer);
                }
                outcomes::answered(exchange, &answer);
                match lag {
                    Some(why) => {
                        end = unavailable(why, maybe_carried_out);
                        copy
                    }
                    None => {
                        maybe_carried_out = true;
                        end = stranger(&crossing.method);
                        answer.again.take().map(|again| again.1)
                    }
                }
            }
            Err(SendError::Gate(stopped)) => {
                outcomes::stopped(exchange, &stopped);
                return Err(stopped.why);
            }
            Err(SendError::Failed(failure)) => {
                let id = exchange.id;
                let (trace_id, span_id) = exchange.trace_ids();
                let region = &gateway.region;
                info!(request = %id, trace_id, span_id, %region, "{id}: {failure}");
                outcomes::unanswered(exchange, metrics, &failure);
                let mut failure = failure.after_others(maybe_carried_out);
                maybe_carried_out = failure.maybe_carried_out;
                end = failed(&failure);
                failure.again.take().map(|again| again.1)
            }
        };
        match again.or(unsent) {
            Some(again) => body = again,
            None => return Err(end),
        }
    }
    Err(end)
}

/// What is sent of a request's body, and on which terms.
async fn ready(
    exchange: &mut Exchange,
    elsewhere: &Elsewhere,
    method: &Method,
) -> Result<(Terms, RequestBody), EarlyEnd> {
    let mut terms = Terms {
        has_alternatives: elsewhere.gateways.len() > 1,
        ..Terms::now()
    };
    let body = match terms.has_alternatives {
        true => failover::body(exchange, method, terms).await?,
        false => exchange.body.take(),
    };
    // The caller's body is not the region's to wait for.
    terms.asked_at = Instant::now();
    Ok((terms, body))
}

/// What a gateway's refusal says of the regions, and not of the request, of which nothing was
/// carried out there: another region may serve it.
fn lag(exchange: &Exchange, said: &Said, answer: &Answer) -> Option<&'static str> {
    let proved = |caller: &Caller| caller.generation.is_some();
    match said.code {
        Code::AccessDenied if answer.status == StatusCode::UNAUTHORIZED => exchange
            .caller
            .as_ref()
            .is_some_and(proved)
            .then_some(UNKNOWN_KEY),
        // One that was called as if by a caller may have passed it on itself.
        Code::RegionUnavailable => {
            let final_word = answer.headers.contains_key(&SHOULD_RETRY);
            (!final_word).then_some(ASTRAY)
        }
        _ => None,
    }
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
    mut head: RequestHead,
    body: RequestBody,
) -> (Sent, Option<RequestBody>) {
    let has_alternatives = head.terms.has_alternatives;
    let copy = (has_alternatives && is_idempotent(&head.method)).then(|| body.replay());
    let (mut body, lent) = lent::lend(body);
    let (attempts, is_gone) = (Cell::new(0), Cell::new(false));
    let mut gate = |attempt: u32, _: &mut RequestHead| {
        attempts.set(attempt);
        Ok(None)
    };
    let since = Instant::now();
    let sending = async {
        tokio::select! {
            biased;
            sent = upstream.send(&to.destination, &mut head, &mut body, &mut gate) => sent,
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
    // What of it nobody has asked for is given back.
    drop(body);
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
        _ => unavailable(NOBODY, failure.maybe_carried_out),
    }
}

/// The end of a request that was answered by what is no gateway: who knows where it went. What may
/// be repeated may be so by the caller too.
fn stranger(method: &Method) -> EarlyEnd {
    let mut end = unavailable(STRANGER, true);
    if is_idempotent(method) {
        end.should_retry = None;
    }
    end
}

/// The end of a request that no region served, whether or not one may have carried it out.
fn unavailable(why: &str, maybe_carried_out: bool) -> EarlyEnd {
    let (carried_out, should_retry) = match maybe_carried_out {
        true => ("may have been", Some(false)),
        false => ("was not", None),
    };
    let detail = format!("{why}; the request {carried_out} carried out");
    let mut end = EarlyEnd::new(Code::RegionUnavailable, detail).header("retry-after", "1");
    end.should_retry = should_retry;
    end
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;
    use std::sync::Arc;
    use std::time::Duration;

    use proto::hosts::Scheme;
    use proto::id::{CredentialId, RequestId};
    use proto::proxy::CrossRegion;
    use proto::seal::DigestKey;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpSocket, TcpStream};
    use tokio::time::timeout;

    use super::*;
    use crate::elsewhere::gateways::KnownGateways;
    use crate::metrics::AddressDurations;
    use crate::request::Request;
    use crate::snapshot::Snapshot;
    use crate::upstream::address::{GuardPolicy, PermitEntry};
    use crate::upstream::tls::{TlsSettings, TlsSpec};
    use crate::upstream::{
        CONNECTIONS_MAX_DEFAULT, Destination, DestinationParts, Host, Timeouts, UpstreamSettings,
    };

    fn gateway(port: u16) -> RegionGateway {
        let loopback = "127.0.0.0/8".parse().unwrap();
        let url = format!("http://127.0.0.1:{port}");
        let host = Host::parse("127.0.0.1").unwrap();
        let parts = DestinationParts {
            tenant: 0,
            scheme: Scheme::Http,
            host: host.clone(),
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
            gateway: KnownGateways::default().at(&host, port),
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

    /// What answers every request so, and how many came.
    async fn answering(status: &str, code: &str) -> (RegionGateway, Rc<Cell<u32>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let to = gateway(listener.local_addr().unwrap().port());
        let code = match code {
            "" => String::new(),
            code => format!("requestrocket-proxy-code: {code}\r\n"),
        };
        let answer = format!("HTTP/1.1 {status}\r\n{code}content-length: 0\r\n\r\n");
        let asked = Rc::new(Cell::new(0));
        let count = Rc::clone(&asked);
        actix_rt::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let (answer, count) = (answer.clone(), Rc::clone(&count));
                actix_rt::spawn(async move {
                    let mut buffer = [0; 4096];
                    // Dials send nothing.
                    while stream.read(&mut buffer).await.is_ok_and(|read| read > 0) {
                        count.set(count.get() + 1);
                        let _ = stream.write_all(answer.as_bytes()).await;
                    }
                });
            }
        });
        (to, asked)
    }

    fn exchange(method: &Method, generation: Option<&str>) -> Exchange {
        let peer = ([127, 0, 0, 1], 1).into();
        let target = Bytes::from_static(b"/api/x");
        let request = Request::new(method.clone(), target, HeaderMap::new(), peer);
        let digest_key = DigestKey::from_bytes([7; 32]);
        let snapshot = Snapshot::new(Default::default(), Default::default(), digest_key);
        Exchange {
            caller: Some(Caller {
                index: 0,
                credential: CredentialId::from_bits(1),
                generation: generation.map(Into::into),
                places: Vec::new(),
                hint: None,
                jwt: None,
            }),
            ..Exchange::arrived(RequestId::new(), None, snapshot.into(), request)
        }
    }

    #[actix_rt::test]
    async fn what_says_nothing_of_the_request_goes_on_to_the_next_region() {
        type Answers = (&'static str, &'static str);
        const SERVED: Answers = ("200 OK", "proxy-access-granted");
        const REFUSED: Answers = ("401 Unauthorized", "proxy-access-denied");
        const FORBIDDEN: Answers = ("403 Forbidden", "proxy-access-denied");
        const LOST: Answers = ("503 Service Unavailable", "region-unavailable");
        const BALANCER: Answers = ("502 Bad Gateway", "");
        let not = "was not carried out";
        let maybe = "may have been carried out";
        let (get, post) = (Method::GET, Method::POST);
        for (method, generation, first, second, expected, asked) in [
            (&post, Some("1"), REFUSED, SERVED, Ok(200), 1),
            (&post, Some("1"), LOST, SERVED, Ok(200), 1),
            (&post, Some("1"), REFUSED, LOST, Err((None, not)), 1),
            (&post, Some("1"), LOST, REFUSED, Err((None, not)), 1),
            // What the region alone decides.
            (&post, Some("1"), FORBIDDEN, SERVED, Ok(403), 0),
            (&post, None, REFUSED, SERVED, Ok(401), 0),
            // What a balancer says is no gateway's word: who knows how far it came.
            (
                &post,
                Some("1"),
                BALANCER,
                SERVED,
                Err((Some(false), maybe)),
                0,
            ),
            (&get, Some("1"), BALANCER, SERVED, Ok(200), 1),
            (&get, Some("1"), BALANCER, BALANCER, Err((None, maybe)), 1),
            (
                &get,
                Some("1"),
                BALANCER,
                REFUSED,
                Err((Some(false), maybe)),
                1,
            ),
        ] {
            let (one, _) = answering(first.0, first.1).await;
            let (other, count) = answering(second.0, second.1).await;
            let elsewhere = Elsewhere {
                cross_region: CrossRegion::Forward,
                own: "us".into(),
                regions: "eu".into(),
                gateways: Box::new([one, other]),
            };
            let crossing = Crossing {
                method: method.clone(),
                rest: Bytes::new(),
                headers: HeaderMap::new(),
            };
            let upstream = Upstream::new(UpstreamSettings::default());
            let (metrics, mut exchange) = (Metrics::default(), exchange(method, generation));
            let came = answer_to(&upstream, &metrics, &mut exchange, &elsewhere, &crossing).await;
            let case = format!("{method} {generation:?} {first:?} {second:?}");
            match (came, expected) {
                (Ok(answer), Ok(status)) => assert_eq!(answer.status.as_u16(), status, "{case}"),
                (Err(end), Err((should_retry, says))) => {
                    assert_eq!(end.code, Code::RegionUnavailable, "{case}");
                    assert_eq!(end.should_retry, should_retry, "{case}");
                    assert!(end.detail.contains(says), "{case}: {}", end.detail);
                }
                (came, _) => panic!("{case}: {:?}", came.map(|answer| answer.status)),
            }
            assert_eq!(count.get(), asked, "{case}");
        }
    }
}
