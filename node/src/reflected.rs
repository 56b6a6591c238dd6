//! Answers that quote the request, and with it the secret that was injected: heads and bodies are
//! searched for it on their way to the caller (design §8).
//!
//! A net, not the boundary: that is the credential's `hosts`. It looks into what can be read as it
//! comes; a body in a content coding passes, and its record says so.

use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use http::{HeaderMap, Method, StatusCode};
use proto::id::{ProxyId, RequestId};
use proto::record::ScrubState;
use tracing::warn;

use crate::credentials::scrub::{Overwritten, Scrub, Tail};
use crate::flow::{Answer, Exchange, Outbound};
use crate::metrics::Metrics;
use crate::snapshot::{CompiledProxy, TargetCredential};
use crate::upstream::AnswerError;

/// The search for the secret that a request was sent with; none where there is nothing to search.
pub fn scrub_of(exchange: &Exchange) -> Option<Arc<Scrub>> {
    let credential = exchange.proxy.as_ref()?.target_credential.as_ref()?;
    credential.secret.scrub().cloned()
}

/// Overwrites the secret in the fields of an answer's head, before anything else reads them.
pub fn scrub_head(
    exchange: &mut Exchange,
    metrics: &Metrics,
    proxy: &CompiledProxy,
    headers: &mut HeaderMap,
) {
    let Some(credential) = proxy.target_credential.as_ref() else {
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
        tell(metrics, exchange.id, proxy.id, credential);
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
        event = "secret-reflected",
        %request,
        %proxy,
        credential = %credential.id,
        "{request}: the target's answer held the secret of credential {}, which was overwritten",
        credential.id
    );
}

/// Overwrites the secret in the body of an answer: at once where it is in memory, else while it
/// streams.
pub fn scrub_body(
    exchange: &mut Exchange,
    metrics: &Metrics,
    proxy: &CompiledProxy,
    answer: &mut Answer,
) {
    let Some(credential) = proxy.target_credential.as_ref() else {
        return;
    };
    let Some(scrub) = credential.secret.scrub() else {
        return;
    };
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
    match std::mem::replace(&mut answer.body, Outbound::Empty) {
        Outbound::Full(bytes) => {
            answer.body = Outbound::Full(match scrub.overwrite(&bytes) {
                None => bytes,
                Some(Overwritten { text, times }) => {
                    forget_digests(&mut answer.headers);
                    exchange.notes.scrubbed += times;
                    tell(metrics, exchange.id, proxy.id, credential);
                    text.into()
                }
            });
        }
        source @ (Outbound::Stream(_) | Outbound::Events(_)) => {
            answer.body = Outbound::Scrubbed(Box::new(ScrubbedBody {
                source,
                tail: Tail::default(),
                times: 0,
                request: exchange.id,
                proxy: proxy.id,
                credential: credential.clone(),
                metrics: metrics.clone(),
            }));
        }
        other => answer.body = other,
    }
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
    for name in ["content-md5", "content-digest", "repr-digest", "digest"] {
        headers.remove(name);
    }
    headers.remove(header::ETAG);
}

/// A body that is searched while it streams. Only what may be the beginning of a secret waits for
/// what follows it.
pub struct ScrubbedBody {
    source: Outbound,
    tail: Tail,
    times: u32,
    request: RequestId,
    proxy: ProxyId,
    credential: Arc<TargetCredential>,
    metrics: Metrics,
}

impl ScrubbedBody {
    /// The next piece that may go on.
    pub fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, AnswerError>>> {
        loop {
            let next = match &mut self.source {
                Outbound::Stream(body) => ready!(body.poll_piece(cx)),
                Outbound::Events(body) => ready!(body.poll_piece(cx)),
                Outbound::Empty | Outbound::Full(_) | Outbound::Scrubbed(_) => None,
            };
            let (piece, last) = match next {
                Some(Ok(piece)) => (piece, self.source_ended()),
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

    fn source_ended(&self) -> bool {
        match &self.source {
            Outbound::Stream(body) => body.is_ended(),
            Outbound::Events(body) => body.is_ended(),
            Outbound::Empty | Outbound::Full(_) | Outbound::Scrubbed(_) => true,
        }
    }

    /// Bytes still to come, where the target announced it.
    pub fn remaining(&self) -> Option<u64> {
        match &self.source {
            Outbound::Stream(body) => body.remaining()?.checked_add(self.tail.waiting() as u64),
            _ => None,
        }
    }

    /// How often the secret was found so far.
    pub fn times(&self) -> u32 {
        self.times
    }

    /// What is searched, as far as it was not taken.
    pub fn into_source(self) -> Outbound {
        self.source
    }
}
