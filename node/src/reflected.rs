//! Answers that quote the request, and with it the secret that was injected: heads and bodies are
//! searched for it on their way to the caller (design §8).
//!
//! A net, not the boundary: that is the credential's `hosts`. It looks into what can be read as it
//! comes; a body in a content coding passes, and its record says so, unless the proxy says
//! `scrub: decode`.

use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use http::{HeaderMap, Method, StatusCode};
use proto::body_view::Coding;
use proto::id::{ProxyId, RequestId};
use proto::proxy::ScrubBodies;
use proto::record::ScrubState;
use tracing::warn;

use crate::credentials::scrub::{Overwritten, Scrub, Tail};
use crate::credentials::words;
use crate::decoded::{self, Decoder};
use crate::flow::{Answer, Exchange, Outbound};
use crate::hygiene::fields::is_digest;
use crate::metrics::Metrics;
use crate::snapshot::{CompiledProxy, TargetCredential};
use crate::upstream::AnswerError;

/// The search for the secret that a request was sent with; none where there is nothing to search.
pub fn scrub_of(exchange: &Exchange) -> Option<Arc<Scrub>> {
    let credential = exchange.target_credential()?;
    credential.secret.scrub().cloned()
}

/// Overwrites the secret in the fields of an answer's head, before anything else reads them.
pub fn scrub_head(
    exchange: &mut Exchange,
    metrics: &Metrics,
    proxy: &CompiledProxy,
    headers: &mut HeaderMap,
) {
    let Some(credential) = exchange.target_credential().cloned() else {
        return;
    };
    let Some(scrub) = credential.secret.scrub() else {
        return;
    };
    exchange.notes.scrub = ScrubState::Searched;
    let mut times = 0;
    for (_, value) in headers.iter_mut().filter(|(name, _)| may_quote(name)) {
        if let Some(found) = scrub.overwrite(value.as_bytes()) {
            // Stars in the place of bytes of a field value make another one.
            if let Ok(scrubbed) = HeaderValue::from_bytes(&found.text) {
                *value = scrubbed;
            }
            times += found.times;
        }
    }
    if times > 0 {
        exchange.notes.scrubbed += times;
        tell(metrics, exchange.id, proxy.id, &credential);
    }
}

/// Whether a field may quote a request: these say when, what and how long.
fn may_quote(name: &HeaderName) -> bool {
    !matches!(
        *name,
        header::DATE | header::CONTENT_TYPE | header::CONTENT_LENGTH
    )
}

/// The operator is told: a target is not careful with what it is given.
fn tell(metrics: &Metrics, request: RequestId, proxy: ProxyId, credential: &TargetCredential) {
    metrics.secret_reflected();
    warn!(
        event = words::SECRET_REFLECTED,
        %request,
        %proxy,
        credential = %credential.id,
        "{request}: the target's answer held the secret of credential {}, which was overwritten",
        credential.id
    );
}

/// Where the answer is decoded to be searched (`scrub: decode`), asks for what [`scrub_body`] can
/// read: of the content codings those that can be decoded, and never for a part of a body, whose
/// place is counted in coded bytes by some targets.
pub fn ask_for_readable(proxy: &CompiledProxy, headers: &mut HeaderMap) {
    // Whether the secret is long enough to be searched for is known when it is unsealed.
    if proxy.scrub != ScrubBodies::Decode || proxy.target_credential.is_none() {
        return;
    }
    headers.remove(header::RANGE);
    headers.remove(header::IF_RANGE);
    match headers.get(header::ACCEPT_ENCODING) {
        // A target that is not asked for a coding uses none, as a rule.
        None => {}
        Some(taken)
            if taken
                .as_bytes()
                .trim_ascii()
                .eq_ignore_ascii_case(b"identity") => {}
        Some(_) => {
            let readable = HeaderValue::from_static("gzip, br, zstd");
            headers.insert(header::ACCEPT_ENCODING, readable);
        }
    }
}

/// Overwrites the secret in the body of an answer: at once where it is in memory, else while it
/// streams.
pub fn scrub_body(
    exchange: &mut Exchange,
    metrics: &Metrics,
    proxy: &CompiledProxy,
    answer: &mut Answer,
) {
    let Some(credential) = exchange.target_credential().cloned() else {
        return;
    };
    let credential = &credential;
    let (scrub, coding) = (credential.secret.scrub(), decodable(proxy, answer));
    if scrub.is_none() && coding.is_none() {
        return;
    }
    if coding.is_some() {
        describe_decoded(answer);
    }
    let bodyless = exchange.request.method == Method::HEAD
        || matches!(
            answer.status,
            StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED
        );
    if bodyless || matches!(answer.body, Outbound::Empty) {
        return;
    }
    if is_coded(&answer.headers) {
        exchange.notes.scrub = ScrubState::Skipped;
        return;
    }
    let (of, decoder) = ((exchange.id, proxy.id), coding.map(Decoder::new));
    match std::mem::replace(&mut answer.body, Outbound::Empty) {
        source @ (Outbound::Stream(_) | Outbound::Full(_)) if decoder.is_some() => {
            answer.body = scrubbed(of, metrics, credential, Source { source, decoder });
        }
        Outbound::Full(bytes) => {
            let found = scrub.and_then(|scrub| scrub.overwrite(&bytes));
            answer.body = Outbound::Full(match found {
                None => bytes,
                Some(Overwritten { text, times }) => {
                    forget_digests(&mut answer.headers);
                    answer.headers.remove(header::ETAG);
                    exchange.notes.scrubbed += times;
                    tell(metrics, exchange.id, proxy.id, credential);
                    text.into()
                }
            });
        }
        source @ (Outbound::Stream(_) | Outbound::Events(_)) => {
            answer.body = scrubbed(of, metrics, credential, Source { source, decoder });
        }
        other => answer.body = other,
    }
}

/// A body that is searched while it comes from `source`.
fn scrubbed(
    (request, proxy): (RequestId, ProxyId),
    metrics: &Metrics,
    credential: &Arc<TargetCredential>,
    source: Source,
) -> Outbound {
    Outbound::Scrubbed(Box::new(ScrubbedBody {
        source,
        tail: Tail::default(),
        times: 0,
        request,
        proxy,
        credential: credential.clone(),
        metrics: metrics.clone(),
    }))
}

/// The coding of an answer that is decoded to be searched. A part of a coded body is no body.
fn decodable(proxy: &CompiledProxy, answer: &Answer) -> Option<Coding> {
    let decodes = proxy.scrub == ScrubBodies::Decode;
    let is_part = answer.status == StatusCode::PARTIAL_CONTENT;
    (decodes && !is_part && is_coded(&answer.headers))
        .then(|| decoded::coding_of(&answer.headers))
        .flatten()
}

/// Makes the head of a coded answer that of the decoded one, also where no body follows it. Its
/// `ETag` stays: the caller's later conditions are the target's to judge, and parts are not asked
/// for.
fn describe_decoded(answer: &mut Answer) {
    let headers = &mut answer.headers;
    for name in [
        header::CONTENT_ENCODING,
        header::CONTENT_LENGTH,
        header::ACCEPT_RANGES,
    ] {
        headers.remove(name);
    }
    forget_digests(headers);
    answer.announced_length = None;
}

/// Whether the body must be decoded before it can be read.
fn is_coded(headers: &HeaderMap) -> bool {
    if !headers.keys().any(|name| *name == header::CONTENT_ENCODING) {
        return false;
    }
    let values = headers.get_all(header::CONTENT_ENCODING).iter();
    let mut codings = values.flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    codings.any(|coding| {
        let coding = coding.trim_ascii();
        !coding.is_empty() && !coding.eq_ignore_ascii_case(b"identity")
    })
}

/// Drops what would prove that the body is not the target's any more.
fn forget_digests(headers: &mut HeaderMap) {
    let digests = headers.keys().filter(|name| is_digest(name.as_str()));
    for name in digests.cloned().collect::<Vec<_>>() {
        headers.remove(name);
    }
}

/// A body that is searched while it streams. Only what may be the beginning of a secret waits for
/// what follows it.
pub struct ScrubbedBody {
    source: Source,
    tail: Tail,
    times: u32,
    request: RequestId,
    proxy: ProxyId,
    credential: Arc<TargetCredential>,
    metrics: Metrics,
}

/// Where a body comes from.
struct Source {
    source: Outbound,
    /// Where it has a content coding.
    decoder: Option<Decoder>,
}

impl Source {
    /// The next piece that can be read.
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, AnswerError>>> {
        loop {
            if let Some(decoder) = &mut self.decoder {
                match decoder.piece() {
                    Ok(None) => {}
                    Ok(Some(piece)) => return Poll::Ready(Some(Ok(piece))),
                    Err(error) => return Poll::Ready(Some(Err(undecodable(&error)))),
                }
            }
            let next = match &mut self.source {
                Outbound::Stream(body) => ready!(body.poll_piece(cx)),
                Outbound::Events(body) => ready!(body.poll_piece(cx)),
                Outbound::Full(bytes) if !bytes.is_empty() => Some(Ok(std::mem::take(bytes))),
                Outbound::Empty | Outbound::Full(_) | Outbound::Scrubbed(_) => None,
            };
            let Some(decoder) = &mut self.decoder else {
                return Poll::Ready(next);
            };
            match next {
                Some(Ok(coded)) => decoder.push(coded),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => {
                    let cut = decoder.ended().err();
                    return Poll::Ready(cut.map(|error| Err(undecodable(&error))));
                }
            }
        }
    }

    /// Whether no piece follows, as far as is known.
    fn is_ended(&self) -> bool {
        match &self.source {
            _ if self.decoder.is_some() => false,
            Outbound::Stream(body) => body.is_ended(),
            Outbound::Events(body) => body.is_ended(),
            Outbound::Empty | Outbound::Full(_) | Outbound::Scrubbed(_) => true,
        }
    }

    /// Bytes still to come, where the target announced it.
    fn remaining(&self) -> Option<u64> {
        match &self.source {
            Outbound::Stream(body) if self.decoder.is_none() => body.remaining(),
            _ => None,
        }
    }
}

/// How a body ends that is not what its `Content-Encoding` says.
fn undecodable(error: &std::io::Error) -> AnswerError {
    AnswerError::Broken(format!("it cannot be decoded (`scrub: decode`): {error}"))
}

impl ScrubbedBody {
    /// The next piece that may go on.
    pub fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, AnswerError>>> {
        loop {
            let (piece, last) = match ready!(self.source.poll_piece(cx)) {
                Some(Ok(piece)) => (piece, self.source.is_ended()),
                None if self.tail.waiting() == 0 => return Poll::Ready(None),
                None => (Bytes::new(), true),
                // What waits is not sent: the stream breaks here in any case.
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
            };
            let passed = self.search(piece, last);
            if !passed.is_empty() {
                return Poll::Ready(Some(Ok(passed)));
            }
        }
    }

    fn search(&mut self, piece: Bytes, last: bool) -> Bytes {
        let Some(scrub) = self.credential.secret.scrub() else {
            return piece;
        };
        let Overwritten { text, times } = match last {
            true => self.tail.finish(scrub, piece),
            false => self.tail.push(scrub, piece),
        };
        if times > 0 && self.times == 0 {
            tell(&self.metrics, self.request, self.proxy, &self.credential);
        }
        self.times += times;
        text
    }

    /// Bytes still to come, where the target announced it.
    pub fn remaining(&self) -> Option<u64> {
        let remaining = self.source.remaining()?;
        remaining.checked_add(self.tail.waiting() as u64)
    }

    /// Coded bytes that the target sent so far, where the body is decoded; then it is at its end
    /// when its last piece was taken, and only then.
    pub fn coded_bytes(&self) -> Option<u64> {
        self.source.decoder.as_ref().map(Decoder::taken)
    }

    /// How often the secret was found so far.
    pub fn times(&self) -> u32 {
        self.times
    }

    /// What is searched, as far as it was not taken.
    pub fn into_source(self) -> Outbound {
        self.source.source
    }
}
