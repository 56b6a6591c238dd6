//! Stage 7: send the armed request, wait for the answer's head.
//!
//! The token check and the first write happen in the same poll: what a meter counts is what is
//! sent. A caller that leaves cancels the upstream call, unless its proxy says `finish`.

use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use http::uri::PathAndQuery;
use proto::meter::value::ValueSet;
use proto::outcome::{Code, EarlyEnd};
use proto::proxy::OnClientAbort;
use tokio::time::Instant;

use crate::actor::{Next, Stage, StageKind};
use crate::body::RequestBody;
use crate::credentials::live::Whose;
use crate::elsewhere::passing;
use crate::events::Noting;
use crate::failover;
use crate::flow::{Answer, Exchange, Outbound};
use crate::inbound;
use crate::learner::{self, Learner};
use crate::limits::{Meter, Reserved, Tokens};
use crate::metering::Applied;
use crate::metrics::Metrics;
use crate::outbound;
use crate::outcomes;
use crate::payload;
use crate::rearming::Rearming;
use crate::reflected;
use crate::refused;
use crate::settling::Settling;
use crate::snapshot::CompiledProxy;
use crate::spending::{self, Attempts};
use crate::unanswered;
use crate::upstream::{self, AnswerError, RequestHead, SendError, Terms, Upstream};
use crate::upstream_ids;

/// The stage.
pub struct Forward {
    /// This worker's client.
    pub upstream: Rc<Upstream>,
    /// Counts answers and replays.
    pub metrics: Metrics,
}

impl Stage for Forward {
    const KIND: StageKind = StageKind::Forward;

    fn decide(&mut self, _: &mut Exchange) -> Next {
        let upstream = self.upstream.clone();
        let metrics = self.metrics.clone();
        Next::Wait(Box::new(move |mut exchange| {
            Box::pin(async move {
                let end = forward(&upstream, &metrics, &mut exchange).await.err();
                (exchange, end.map(Box::new))
            })
        }))
    }
}

async fn forward(
    upstream: &Upstream,
    metrics: &Metrics,
    exchange: &mut Exchange,
) -> Result<(), EarlyEnd> {
    let Some(proxy) = exchange.proxy.clone() else {
        return Err(unarmed());
    };
    match &proxy.elsewhere {
        None => to_target(upstream, metrics, exchange, &proxy).await,
        Some(there) => {
            let armed = exchange.armed.take().ok_or_else(unarmed)?;
            let passing = passing::pass_on(upstream, metrics, exchange, there, armed);
            // Boxed: it is rare, and the future of every request would have room for it.
            let (answer, whole) = Box::pin(passing).await?;
            answered(exchange, metrics, answer, whole)
        }
    }
}

fn unarmed() -> EarlyEnd {
    EarlyEnd::new(Code::InternalError, "forward met no armed request")
}

async fn to_target(
    upstream: &Upstream,
    metrics: &Metrics,
    exchange: &mut Exchange,
    proxy: &CompiledProxy,
) -> Result<(), EarlyEnd> {
    let picked = proxy.target.endpoints.first()?;
    let mut head = request_head(exchange, proxy)?;
    payload::watch_request(exchange, &head.headers);
    // What is rare is boxed: the future of every request would have room for it.
    let mut body = match head.terms.has_alternatives {
        true => Box::pin(body_of(exchange, &mut head)).await?,
        false => exchange.body.take(),
    };
    let applied = exchange.applied.take();
    let tokens = match &applied {
        Some(applied) if !exchange.drawn => {
            Box::pin(draw(exchange, applied, &mut head.terms)).await?
        }
        _ => exchange.tokens.take(),
    };
    tell_of(applied.as_deref(), exchange);
    let noted = (exchange.notes.spends.clone(), exchange.started);
    let mut attempts = Attempts::new(applied.clone(), tokens, noted);
    let destination = proxy.destinations.get(picked.at);
    let destination = destination.ok_or_else(failover::unlisted)?;
    outcomes::begins(exchange);
    let sent = {
        let mut rearming = Rearming {
            proxy,
            caller: exchange.caller.as_ref(),
            successor: &mut exchange.successor,
            notes: &mut exchange.notes,
            started: exchange.started,
            metrics,
        };
        let mut gate =
            |attempt: u32, head: &mut RequestHead| rearming.admit(&mut attempts, (attempt, head));
        // Pinned where it is made: it is large, and each move would copy it.
        let sending = pin!(upstream.send(destination, &mut head, &mut body, &mut gate));
        let cancels = proxy.on_client_abort == OnClientAbort::Cancel;
        let reply = exchange.reply.as_mut().filter(|_| cancels);
        inbound::while_wanted((reply, &exchange.slots), metrics.cut(), sending).await
    };
    let sent = outcomes::ended(sent, attempts.passed());
    let sent = match failover::is_due(proxy, &sent) {
        false => outcomes::settle(exchange, proxy, picked, sent),
        true => {
            let (met, spent) = ((picked, sent), &mut attempts);
            let next = failover::run(upstream, metrics, exchange, proxy, met, spent);
            Box::pin(next).await
        }
    };
    exchange.notes.events.join(attempts.take_events());
    let mut answer = sent.map_err(|missed| unanswered(exchange, metrics, proxy, missed))?;
    if let Some(applied) = applied.as_ref().filter(|of| !of.learning.is_empty()) {
        learn(exchange, proxy, &applied.learning, &answer);
    }
    // Most small answers are there whole; one that is broken already never begins.
    let mut whole = answer.body.whole().await;
    if let Some(applied) = applied.as_ref().filter(|of| !of.values.is_empty()) {
        let reserved = attempts.into_reserved();
        let values = &applied.values;
        settle(exchange, proxy, reserved, values, &mut answer, &mut whole);
    }
    reflected::scrub_head(exchange, metrics, proxy, &mut answer.headers);
    answered(exchange, metrics, answer, whole)
}

/// The body of a request that may go to another endpoint: read, where it is small. The caller's
/// time for that is not the target's.
async fn body_of(exchange: &mut Exchange, head: &mut RequestHead) -> Result<RequestBody, EarlyEnd> {
    let body = failover::body(exchange, &head.method, head.terms).await?;
    head.terms.asked_at = Instant::now();
    Ok(body)
}

/// Warns the caller of what its meters say, and notes where they are spent of without the store.
fn tell_of(applied: Option<&Applied>, exchange: &mut Exchange) {
    let Some(applied) = applied else { return };
    let alone = refused::alone(applied);
    for warning in refused::warnings(applied, alone) {
        exchange.notes.warn(warning);
    }
    if let Some((meter, mode)) = alone {
        exchange.noting(StageKind::Forward).spent_alone(meter, mode);
    }
}

/// The end of a request that no answer came to.
fn unanswered(
    exchange: &mut Exchange,
    metrics: &Metrics,
    proxy: &CompiledProxy,
    missed: SendError<EarlyEnd>,
) -> EarlyEnd {
    match missed {
        SendError::Gate(stopped) => {
            outcomes::stopped(exchange, &stopped);
            stopped.why
        }
        SendError::Failed(failure) => {
            outcomes::unanswered(exchange, metrics, &failure);
            unanswered::end(exchange, proxy, &failure)
        }
    }
}

/// What leaves for the target, but for its body.
fn request_head(exchange: &mut Exchange, proxy: &CompiledProxy) -> Result<RequestHead, EarlyEnd> {
    let armed = exchange.armed.take().ok_or_else(unarmed)?;
    let (method, path_and_query, mut headers) = armed.into_parts();
    if let Some(trace) = &exchange.trace
        && !proxy.request_fields.untraced
    {
        trace.pass_on(&mut headers);
    }
    let target = PathAndQuery::from_maybe_shared(path_and_query).map_err(|_| {
        EarlyEnd::new(
            Code::MalformedRequest,
            "the path and query cannot be sent as they are",
        )
    })?;
    let marker = proxy.target.idempotency_header.as_ref();
    let terms = Terms {
        has_idempotency_key: marker.is_some_and(|name| headers.contains_key(name)),
        has_alternatives: proxy.target.endpoints.are_several(),
        says_sent_at: exchange.says_sent_at,
        ..Terms::now()
    };
    Ok(RequestHead {
        method,
        target,
        headers,
        terms,
    })
}

/// Draws what `limit` left to this stage, for as long as the caller is there. What it waited for, a
/// body included, is not counted as the target's time.
async fn draw(
    exchange: &mut Exchange,
    applied: &Applied,
    terms: &mut Terms,
) -> Result<Option<Tokens>, EarlyEnd> {
    let events = &mut exchange.notes.events;
    let noting = Noting::new(events, StageKind::Forward, exchange.started);
    let drawing = spending::draw(applied, noting);
    let (tokens, slots) = match exchange.reply.as_mut() {
        Some(reply) => tokio::select! {
            biased;
            drawn = drawing => drawn?,
            () = reply.closed() => return Err(inbound::gone()),
        },
        None => drawing.await?,
    };
    exchange.slots = slots;
    terms.asked_at = Instant::now();
    Ok(tokens)
}

/// Reads what an answer has cost, from what is there of it or while it passes.
fn settle(
    exchange: &Exchange,
    proxy: &CompiledProxy,
    reserved: Vec<Reserved>,
    values: &[(Arc<Meter>, Arc<ValueSet>)],
    answer: &mut upstream::Answer,
    whole: &mut Result<Option<Bytes>, AnswerError>,
) {
    // What has a known length cannot be changed any more.
    let injected = exchange.usage_asked && answer.body.remaining().is_none();
    let (headers, bytes_max) = (&answer.headers, proxy.body_buffer_bytes);
    let spends = exchange.notes.spends.clone();
    let settling = Settling::new(reserved, values, headers, bytes_max, injected, spends);
    match (settling, whole) {
        (Some(settling), Ok(Some(body))) => *body = settling.whole(std::mem::take(body)),
        (Some(settling), Ok(None)) => answer.body.watched_by(Box::new(settling)),
        // Cut before it began: what was set aside stays charged.
        (_, _) => {}
    }
}

/// Lets meters learn from an answer.
fn learn(
    exchange: &Exchange,
    proxy: &CompiledProxy,
    learning: &[Learner],
    answer: &upstream::Answer,
) {
    let caller = exchange.caller.as_ref();
    let credential = caller.and_then(|caller| proxy.credentials.get(caller.index));
    if let Some(credential) = credential {
        let limits = credential.metering.limits();
        let path = exchange.request.rest();
        learner::learn(limits, learning, exchange.id, &path, answer);
    }
}

fn answered(
    exchange: &mut Exchange,
    metrics: &Metrics,
    answer: Box<upstream::Answer>,
    whole: Result<Option<Bytes>, AnswerError>,
) -> Result<(), EarlyEnd> {
    let us = u64::try_from(answer.first_byte_time.as_micros()).unwrap_or(u64::MAX);
    metrics.upstream_answered(answer.reused);
    if answer.attempts > 1 {
        metrics.replayed();
    }
    outcomes::answered(exchange, &answer);
    let whose = Whose::of(exchange.proxy.as_ref().map(|proxy| proxy.org));
    let notes = &mut exchange.notes;
    notes.upstream_us = us;
    notes.upstream_status = Some(answer.status.as_u16());
    notes
        .upstream_ids
        .extend(upstream_ids::of(&answer.headers, whose));
    let body = match whole.map_err(|error| outbound::broken(&error))? {
        Some(bytes) => {
            notes.upstream_bytes = bytes.len() as u64;
            Outbound::Full(bytes)
        }
        None => Outbound::Stream(Box::new(answer.body)),
    };
    exchange.answer = Some(Answer {
        status: answer.status,
        headers: answer.headers,
        announced_length: None,
        body,
    });
    Ok(())
}
