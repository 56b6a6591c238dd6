//! A body that is searched for the injected secret while it streams to the caller
//! ([`crate::reflected`]).

use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::Bytes;
use proto::id::{ProxyId, RequestId};
use proto::record::{SpanEvent, Stage};

use crate::credentials::edges::{self, Begin, Cut};
use crate::credentials::scrub::{Overwritten, Tail};
use crate::decoded::Decoder;
use crate::flow::Outbound;
use crate::metrics::Metrics;
use crate::reflected;
use crate::snapshot::TargetCredential;
use crate::upstream::AnswerError;

/// A body that is searched while it streams. Only what may be the beginning of a secret waits for
/// what follows it.
pub struct ScrubbedBody {
    source: Source,
    tail: Tail,
    times: u32,
    /// When it was found first.
    found_at: Option<Instant>,
    begin: Begin,
    /// Whether its end may be a piece of a form: it is a part of another body.
    cut_end: bool,
    request: RequestId,
    proxy: ProxyId,
    credential: Arc<TargetCredential>,
    metrics: Metrics,
}

/// Where a body comes from.
pub struct Source {
    source: Outbound,
    /// Where it has a content coding.
    decoder: Option<Decoder>,
}

impl Source {
    /// A body, and what decodes it where it has a content coding.
    pub fn new(source: Outbound, decoder: Option<Decoder>) -> Self {
        Self { source, decoder }
    }

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
    /// The body of the answer to a request of a proxy, which was sent the secret of a credential.
    pub fn new(
        (request, proxy): (RequestId, ProxyId),
        metrics: &Metrics,
        credential: &Arc<TargetCredential>,
        source: Source,
        cut: Cut,
    ) -> Self {
        Self {
            source,
            tail: Tail::default(),
            times: 0,
            found_at: None,
            begin: Begin::of(cut),
            cut_end: cut.end,
            request,
            proxy,
            credential: Arc::clone(credential),
            metrics: metrics.clone(),
        }
    }

    /// The next piece that may go on.
    pub fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, AnswerError>>> {
        loop {
            let (piece, last) = match ready!(self.source.poll_piece(cx)) {
                Some(Ok(piece)) => (piece, self.source.is_ended()),
                None if self.waiting() == 0 => return Poll::Ready(None),
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
        let Overwritten { text, times: begun } = self.begin.push(scrub, piece, last);
        let mut found = match last {
            true => self.tail.finish(scrub, text),
            false => self.tail.push(scrub, text),
        };
        found.times += begun;
        if last && self.cut_end {
            let Overwritten { text, times } = edges::without_end(scrub, found.text);
            found = Overwritten {
                text,
                times: found.times + times,
            };
        }
        let Overwritten { text, times } = found;
        if times > 0 && self.times == 0 {
            self.found_at = Some(Instant::now());
            reflected::tell(&self.metrics, self.request, self.proxy, &self.credential);
        }
        self.times += times;
        text
    }

    /// Bytes that wait for what follows them.
    fn waiting(&self) -> usize {
        self.begin.waiting() + self.tail.waiting()
    }

    /// Bytes still to come, where the target announced it.
    pub fn remaining(&self) -> Option<u64> {
        let remaining = self.source.remaining()?;
        remaining.checked_add(self.waiting() as u64)
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

    /// That it was found, for the record of a request that began then; none where it was not.
    pub fn event(&self, started: Instant) -> Option<SpanEvent> {
        let at = self.found_at?.saturating_duration_since(started);
        let at_us = u32::try_from(at.as_micros()).unwrap_or(u32::MAX);
        let (stage, times) = (Stage::Respond, self.times);
        Some(reflected::event(&self.credential, stage, at_us, times))
    }

    /// What is searched, as far as it was not taken.
    pub fn into_source(self) -> Outbound {
        self.source.source
    }
}
