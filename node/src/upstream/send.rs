//! One exchange with a target: get a connection, send, wait for the head, replay where that is
//! safe.
//!
//! Replayed without asking, once, and on a new connection (`design.md` §3): a request of any
//! method that hyper gives back, because then not a byte of it was written; and an idempotent
//! request whose body is in memory (up to 64 KiB), if the connection had been used before and not
//! one byte of an answer came, because then the likeliest cause is a target that closed an idle
//! connection as we wrote. A POST of which bytes were written is never replayed: a reset does not
//! prove that nothing was done.

use std::cell::Cell;
use std::error::Error as _;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use http::header::{HOST, TRANSFER_ENCODING};
use http::uri::PathAndQuery;
use http::{Method, Request, StatusCode, Uri};
use hyper::client::conn::TrySendError;
use tokio::time::Instant;

use super::acquire::{Pools, Wanted};
use super::answer::{Answer, AnswerBody, Held};
use super::destination::Destination;
use super::error::{Earlier, Failure, FailureKind, SendError, Stopped};
use super::framing::{authenticates_connection, clean_request, frame_request, receive_head};
use super::gate::{self, Gate, Leave};
use super::head::{RequestHead, Resend, Terms};
use super::lease::{Lease, Outcome};
use super::replay::replay_copy;
use super::sent::{Progress, SentBody};
use super::timer::due;
use crate::body::RequestBody;

/// An attempt without an answer.
enum Missed<G> {
    Gate(G),
    Failed(FailureKind, MaybeCarriedOut, Option<Resend>),
    /// Worth a second attempt, with what that needs.
    Again(Resend, FailureKind, MaybeCarriedOut),
}

type MaybeCarriedOut = bool;

/// What all attempts of one exchange share.
struct Exchange<'a> {
    pools: &'a Rc<Pools>,
    destination: &'a Destination,
    total_due: Option<Instant>,
    /// When the last attempt was sent.
    sent_at: Cell<Instant>,
}

/// Sends a request; see [`super::Upstream::send`]. Until it is handed to hyper it stays where it
/// is: each step that it is moved to would copy it.
pub(super) async fn send<G>(
    pools: &Rc<Pools>,
    destination: &Arc<Destination>,
    head: &mut RequestHead,
    body: &mut RequestBody,
    gate: &mut Gate<'_, G>,
) -> Result<Box<Answer>, SendError<G>> {
    let total = destination.parts.timeouts.total;
    let total_due = total.map(|total| due(head.terms.asked_at, total));
    let exchange = Exchange {
        pools,
        destination,
        total_due,
        sent_at: Cell::new(head.terms.asked_at),
    };
    if !is_sendable(head) {
        return Err(Missed::Failed(FailureKind::BadTarget, false, None).into_error(0));
    }
    clean_request(&mut head.headers);
    let mut attempts = 0;
    let first = exchange.attempt((head, body), Wanted::Any, &mut attempts, gate);
    let (mut again, kind, first_maybe_carried_out) = match first.await {
        Ok(answer) => return Ok(answer),
        Err(Missed::Again(again, kind, maybe)) => (again, kind, maybe),
        Err(missed) => return Err(missed.into_error(attempts)),
    };
    let ended = Instant::now().into_std();
    let earlier = vec![Earlier { kind, ended }];
    // Boxed: it is rare, and the future of every request would have room for it.
    let wanted = Wanted::After(exchange.sent_at.get());
    let (head, body) = &mut *again;
    let second = Box::pin(exchange.attempt((head, body), wanted, &mut attempts, gate)).await;
    match second {
        Ok(mut answer) => {
            answer.earlier = earlier;
            Ok(answer)
        }
        Err(missed) => Err(match missed.into_error(attempts) {
            SendError::Failed(failure) => {
                SendError::Failed(failure.after(earlier, first_maybe_carried_out))
            }
            SendError::Gate(stopped) => SendError::Gate(Stopped { earlier, ..stopped }),
        }),
    }
}

/// Origin form only (RFC 9112 §3.2): a full URL in the request line would make a proxy of the
/// target, and `CONNECT` a tunnel.
fn is_sendable(head: &RequestHead) -> bool {
    let target = head.target.as_str();
    head.method != Method::CONNECT
        && (target.starts_with('/') || (target == "*" && head.method == Method::OPTIONS))
}

impl<G> Missed<G> {
    fn into_error(self, attempts: u32) -> SendError<G> {
        let (kind, maybe_carried_out, again) = match self {
            Self::Gate(why) => return SendError::Gate(Stopped::after(attempts, why)),
            Self::Failed(kind, maybe_carried_out, again) => (kind, maybe_carried_out, again),
            Self::Again(again, kind, maybe_carried_out) => (kind, maybe_carried_out, Some(again)),
        };
        SendError::Failed(Failure {
            kind,
            maybe_carried_out,
            attempts,
            earlier: Vec::new(),
            again,
        })
    }
}

impl Exchange<'_> {
    async fn attempt<G>(
        &self,
        (head, body): (&mut RequestHead, &mut RequestBody),
        wanted: Wanted,
        attempts: &mut u32,
        gate: &mut Gate<'_, G>,
    ) -> Result<Box<Answer>, Missed<G>> {
        let timeouts = &self.destination.parts.timeouts;
        let asked_at = Instant::now();
        let connect_due = self.sooner(due(asked_at, timeouts.connect));
        let acquiring = self
            .pools
            .acquire(self.destination, wanted, asked_at, connect_due);
        let lease = match acquiring.await {
            Ok(lease) => lease,
            Err(kind) => return Err(unsent(self.or_total_timeout(kind), head, body)),
        };
        let (method, terms, received) = (head.method.clone(), head.terms, lease.received());
        // From the gate's leave to the send there is no wait: what it counts is what is sent.
        let passing = gate::pass(gate, (&mut *attempts, &mut *head), self.total_due).await;
        let Some(leave) = passing.map_err(Missed::Gate)? else {
            return Err(unsent(FailureKind::Held, head, body));
        };
        let copy = replay_copy(head, body, &lease);
        let is_authenticated = authenticates_connection(&head.headers);
        let sent_at = Instant::now();
        self.sent_at.set(sent_at);
        let (request, progress) = self.request((head, leave), body, &lease, sent_at);
        let (mut lease, outcome) = lease.send(request);
        let outcome = pin!(outcome);
        let outcome = self
            .wait(outcome, &mut lease, progress.as_deref(), sent_at)
            .await;
        let response = match outcome {
            None => return Err(maybe_done(self.silence(progress.as_deref()), copy)),
            Some(Err(error)) => {
                let answered = received != lease.received();
                let here = lease.reused() && !answered;
                return Err(missed(error, terms, (copy, here), progress.as_deref()));
            }
            Some(Ok(response)) => response,
        };
        let (mut parts, incoming) = response.into_parts();
        let framing = receive_head(&method, parts.status, parts.version, &mut parts.headers);
        let mut framing = match framing {
            Ok(framing) => framing,
            Err(why) => return Err(maybe_done(FailureKind::BadHttp(why.into()), copy)),
        };
        framing.reuse &= !is_authenticated;
        let elsewhere = terms.has_alternatives && is_gateways(parts.status);
        let (reused, remote) = (lease.reused(), lease.remote());
        if progress.as_ref().is_some_and(|progress| !progress.ended()) {
            lease.detach();
        }
        let held = Held::new(lease, progress, framing);
        Ok(Box::new(Answer {
            status: parts.status,
            headers: parts.headers,
            version: parts.version,
            body: AnswerBody::new(incoming, held, timeouts.idle, self.total_due),
            attempts: *attempts,
            reused,
            remote,
            connect_time: sent_at - asked_at,
            first_byte_time: sent_at.elapsed(),
            earlier: Vec::new(),
            again: copy.filter(|_| elsewhere).map(Box::new),
        }))
    }

    fn sooner(&self, instant: Instant) -> Instant {
        self.total_due.map_or(instant, |total| total.min(instant))
    }

    /// What it is that no first byte came in time.
    fn silence(&self, progress: Option<&Progress>) -> FailureKind {
        match progress.is_some_and(Progress::is_starved) {
            true => FailureKind::CallerStalled,
            false => self.or_total_timeout(FailureKind::FirstByteTimeout),
        }
    }

    /// A step's own timeout, or the total one if that is what was over.
    fn or_total_timeout(&self, kind: FailureKind) -> FailureKind {
        if self.total_due.is_none_or(|total| Instant::now() < total) {
            return kind;
        }
        match kind {
            FailureKind::ConnectTimeout | FailureKind::FirstByteTimeout => {
                FailureKind::TotalTimeout
            }
            FailureKind::PoolExhausted => FailureKind::Held,
            kind => kind,
        }
    }

    fn request(
        &self,
        (head, leave): (&mut RequestHead, Leave),
        body: &mut RequestBody,
        lease: &Lease,
        now: Instant,
    ) -> (Request<SentBody>, Option<Rc<Progress>>) {
        head.tell_sent_at(leave);
        let uri = match lease {
            Lease::Http1 { .. } => {
                frame_request(&mut head.headers, &head.method, body);
                head.headers
                    .insert(HOST, self.destination.host_header.clone());
                Uri::from(head.take_target())
            }
            Lease::Http2 { .. } => {
                head.headers.remove(TRANSFER_ENCODING);
                head.headers.remove(HOST);
                self.absolute(head.take_target())
            }
        };
        let is_shared = matches!(lease, Lease::Http2 { .. });
        let (body, progress) = SentBody::new(std::mem::take(body), is_shared, now);
        let mut request = Request::new(body);
        *request.method_mut() = std::mem::take(&mut head.method);
        *request.uri_mut() = uri;
        *request.headers_mut() = std::mem::take(&mut head.headers);
        (request, progress)
    }

    /// HTTP/2 names scheme and authority in the request itself (RFC 9113 §8.3.1).
    fn absolute(&self, target: PathAndQuery) -> Uri {
        let mut parts = http::uri::Parts::default();
        parts.scheme = Some(self.destination.uri_scheme());
        parts.authority = Some(self.destination.authority.clone());
        parts.path_and_query = Some(target);
        Uri::from_parts(parts).expect("scheme, authority and path are all there")
    }

    /// The outcome, or `None` when the time for the first byte is over.
    ///
    /// The time counts from the last piece of the request's body, or what was written last of it: a
    /// long upload is not silence. While the caller's next piece is missing it stands still, for
    /// the target has nothing to answer yet; the listener sees to callers that stop.
    async fn wait(
        &self,
        mut outcome: Pin<&mut impl Future<Output = Outcome>>,
        lease: &mut Lease,
        progress: Option<&Progress>,
        sent_at: Instant,
    ) -> Option<Outcome> {
        let first_byte = self.destination.parts.timeouts.first_byte;
        // The first poll writes the request. To ask for the answer then would only have this task
        // wake itself when the answer is there, a second time.
        let mut writes_only = lease.is_held();
        let received = lease.received();
        let (mut written, mut written_at) = (None, sent_at);
        poll_fn(|cx| {
            lease.drive(cx);
            writes_only &= lease.is_held() && lease.received() == received;
            if !std::mem::take(&mut writes_only)
                && let Poll::Ready(outcome) = outcome.as_mut().poll(cx)
            {
                return Poll::Ready(Some(outcome));
            }
            // What the first look finds was written at `sent_at`.
            let count = lease.written();
            if written.replace(count).is_some_and(|before| before != count) {
                written_at = Instant::now();
            }
            let moved = match progress {
                Some(progress) if progress.is_starved() => Instant::now(),
                Some(progress) => progress.moved().max(written_at),
                None => written_at,
            };
            let due = self.sooner(due(moved, first_byte));
            lease.timer().poll(cx, due).map(|()| None)
        })
        .await
    }
}

/// A request for which there was no connection.
fn unsent<G>(kind: FailureKind, head: &mut RequestHead, body: &mut RequestBody) -> Missed<G> {
    let again = match head.terms.has_alternatives {
        true => Some(Box::new((head.take(), std::mem::take(body)))),
        false => None,
    };
    Missed::Failed(kind, false, again)
}

/// An attempt that may have been carried out.
fn maybe_done<G>(kind: FailureKind, copy: Option<(RequestHead, RequestBody)>) -> Missed<G> {
    Missed::Failed(kind, true, copy.map(Box::new))
}

/// Whether a status tells of a server that was not reached behind the one that answered.
fn is_gateways(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT
    )
}

/// Sorts a failed attempt; `copy` is there if the request may be sent a second time, and the flag
/// says whether that may be to the same address.
fn missed<G>(
    mut error: TrySendError<Request<SentBody>>,
    terms: Terms,
    (copy, here): (Option<(RequestHead, RequestBody)>, bool),
    progress: Option<&Progress>,
) -> Missed<G> {
    let unwritten = error.take_message();
    let error = error.into_error();
    if let Some(request) = unwritten {
        let (parts, body) = request.into_parts();
        let kind = FailureKind::Reset(describe(&error).into());
        return match parts.uri.into_parts().path_and_query {
            Some(target) => {
                let head = RequestHead {
                    method: parts.method,
                    target,
                    headers: parts.headers,
                    terms,
                };
                Missed::Again(Box::new((head, body.into_inner())), kind, false)
            }
            None => Missed::Failed(kind, false, None),
        };
    }
    if let Some(failed) = progress.and_then(Progress::failed) {
        return Missed::Failed(FailureKind::BodyFromCaller(failed), true, None);
    }
    if error.is_parse() {
        return maybe_done(FailureKind::BadHttp(describe(&error).into()), copy);
    }
    let kind = FailureKind::Reset(describe(&error).into());
    match copy {
        Some(copy) if here => Missed::Again(Box::new(copy), kind, true),
        copy => maybe_done(kind, copy),
    }
}

/// hyper's error with its cause, which its own text leaves out.
pub(super) fn describe(error: &hyper::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}
