//! Answers that quote the request, and with it the secret that was injected: heads and bodies are
//! searched for it on their way to the caller (design §8).
//!
//! A net, not the boundary: that is the credential's `hosts`. It looks into what can be read as it
//! comes; a body in a content coding passes, and its record says so, unless the proxy says
//! `scrub: decode`.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use http::{HeaderMap, Method, StatusCode};
use proto::body_view::Coding;
use proto::id::{ProxyId, RequestId};
use proto::proxy::ScrubBodies;
use proto::record::{ScrubState, SpanEvent, SpanEventKind, Stage};
use tracing::warn;

use crate::credentials::edges::{self, Cut};
use crate::credentials::scrub::{Overwritten, Scrub};
use crate::credentials::words;
use crate::decoded::{self, Decoder};
use crate::flow::{Answer, Exchange, Outbound};
use crate::hygiene::fields::is_digest;
use crate::hygiene::urls;
use crate::metrics::Metrics;
use crate::scrubbed_body::{ScrubbedBody, Source};
use crate::snapshot::{CompiledProxy, TargetCredential};

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
    let in_path = has_secret_in_path(exchange);
    let which = |name: &HeaderName| may_quote(name) && !(in_path && is_mapped(name));
    scrub_fields(exchange, (metrics, Stage::Forward), proxy, headers, which);
}

/// The same of the fields whose references are mapped, once they are, where the secret stands in
/// the path: a reference that holds it in its place is one to the proxy.
pub fn scrub_mapped(
    exchange: &mut Exchange,
    metrics: &Metrics,
    proxy: &CompiledProxy,
    headers: &mut HeaderMap,
) {
    if has_secret_in_path(exchange) {
        scrub_fields(
            exchange,
            (metrics, Stage::Filter),
            proxy,
            headers,
            is_mapped,
        );
    }
}

fn has_secret_in_path(exchange: &Exchange) -> bool {
    let credential = exchange.target_credential();
    credential.is_some_and(|credential| credential.secret.path().is_some())
}

/// Whether a field's references are mapped to the proxy, or its path.
fn is_mapped(name: &HeaderName) -> bool {
    urls::is_mapped(name) || *name == header::SET_COOKIE
}

/// Overwrites the secret of the target in the fields that `which` names.
fn scrub_fields(
    exchange: &mut Exchange,
    (metrics, stage): (&Metrics, Stage),
    proxy: &CompiledProxy,
    headers: &mut HeaderMap,
    which: impl Fn(&HeaderName) -> bool,
) {
    let Some(credential) = exchange.target_credential().cloned() else {
        return;
    };
    let Some(scrub) = credential.secret.scrub() else {
        return;
    };
    exchange.notes.scrub = ScrubState::Searched;
    let mut times = 0;
    for (_, value) in headers.iter_mut().filter(|(name, _)| which(name)) {
        if let Some(found) = scrub.overwrite(value.as_bytes()) {
            // Stars in the place of bytes of a field value make another one.
            if let Ok(scrubbed) = HeaderValue::from_bytes(&found.text) {
                *value = scrubbed;
            }
            times += found.times;
        }
    }
    if times > 0 {
        note(exchange, stage, &credential, times);
        tell(metrics, exchange.id, proxy.id, &credential);
    }
}

/// The record says it: so often, just now, in this stage.
fn note(exchange: &mut Exchange, stage: Stage, credential: &TargetCredential, times: u32) {
    exchange.notes.scrubbed += times;
    let event = event(credential, stage, exchange.elapsed_us(), times);
    exchange.notes.events.add(event);
}

/// A secret that was found so often, the first time then.
pub fn event(credential: &TargetCredential, stage: Stage, at_us: u32, times: u32) -> SpanEvent {
    let event = SpanEvent::new(SpanEventKind::SecretReflected, stage, at_us);
    let id = credential.id.to_string();
    event.of(Some(id.into())).counted(times)
}

/// Whether a field may quote a request: these say when, what and how long.
fn may_quote(name: &HeaderName) -> bool {
    !matches!(
        *name,
        header::DATE | header::CONTENT_TYPE | header::CONTENT_LENGTH
    )
}

/// The operator is told: a target is not careful with what it is given.
pub fn tell(metrics: &Metrics, request: RequestId, proxy: ProxyId, credential: &TargetCredential) {
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

/// Asks for what can be searched for a secret. Of several parts of a body at once none is asked
/// for: their edges are not seen.
///
/// Where the answer is decoded to be searched (`scrub: decode`), asks for what [`scrub_body`] can
/// read: of the content codings those that can be decoded, and never for a part of a body, whose
/// place is counted in coded bytes by some targets.
pub fn ask_for_readable(proxy: &CompiledProxy, headers: &mut HeaderMap) {
    // Whether the secret is long enough to be searched for is known when it is unsealed.
    let credential = proxy.target_credential.as_deref();
    if !credential.is_some_and(TargetCredential::injects) {
        return;
    }
    let decodes = proxy.scrub == ScrubBodies::Decode;
    if decodes || asks_for_several(headers) {
        headers.remove(header::RANGE);
        headers.remove(header::IF_RANGE);
    }
    if !decodes {
        return;
    }
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

/// Whether several parts of a body are asked for.
fn asks_for_several(headers: &HeaderMap) -> bool {
    if !headers.keys().any(|name| *name == header::RANGE) {
        return false;
    }
    let mut ranges = headers.get_all(header::RANGE).iter();
    let first = ranges.next().map(HeaderValue::as_bytes);
    first.is_some_and(|first| first.contains(&b',')) || ranges.next().is_some()
}

/// Overwrites the secret in the body of an answer: at once where it is in memory, else while it
/// streams.
pub fn scrub_body(
    exchange: &mut Exchange,
    metrics: &Metrics,
    proxy: &CompiledProxy,
    answer: &mut Answer,
) {
    let injected = exchange.target_credential();
    let Some(credential) = injected.filter(|one| one.injects()).cloned() else {
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
    let cut = Cut::of(answer.status, &answer.headers);
    match std::mem::replace(&mut answer.body, Outbound::Empty) {
        Outbound::Full(bytes) if coding.is_none() => {
            let found = scrub.map(|scrub| overwritten(scrub, &bytes, cut));
            answer.body = Outbound::Full(match found.filter(|found| found.times > 0) {
                None => bytes,
                Some(Overwritten { text, times }) => {
                    forget_digests(&mut answer.headers);
                    answer.headers.remove(header::ETAG);
                    note(exchange, Stage::Filter, credential, times);
                    tell(metrics, exchange.id, proxy.id, credential);
                    text
                }
            });
        }
        source @ (Outbound::Stream(_) | Outbound::Full(_) | Outbound::Events(_)) => {
            let of = (exchange.id, proxy.id);
            let source = Source::new(source, coding.map(Decoder::new));
            let body = ScrubbedBody::new(of, metrics, credential, source, cut);
            answer.body = Outbound::Scrubbed(Box::new(body));
        }
        other => answer.body = other,
    }
}

/// Takes what stands at an edge out of a part.
type Edge = fn(&Scrub, Bytes) -> Overwritten<Bytes>;

/// A body in memory with every secret overwritten; of a part, pieces of one at its edges as well.
fn overwritten(scrub: &Scrub, bytes: &Bytes, cut: Cut) -> Overwritten<Bytes> {
    let mut found = match scrub.overwrite(bytes) {
        Some(Overwritten { text, times }) => Overwritten {
            text: text.into(),
            times,
        },
        None => Overwritten {
            text: bytes.clone(),
            times: 0,
        },
    };
    let begin = cut.begin.then_some(edges::without_begin as Edge);
    let end = cut.end.then_some(edges::without_end as Edge);
    for edge in [begin, end].into_iter().flatten() {
        let Overwritten { text, times } = edge(scrub, found.text);
        found = Overwritten {
            text,
            times: found.times + times,
        };
    }
    found
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
