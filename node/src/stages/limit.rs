//! Stage 4: spend tokens of every meter that applies.
//!
//! A token is drawn here and becomes *sent* in `forward`, in the same poll as the first write.
//! Where the request still has to wait for something else (a body that request filters,
//! validation, a meter's condition or another endpoint need whole), nothing is drawn yet: this
//! stage refuses only when a meter is known to be empty, and `forward` draws.

use std::sync::Arc;

use proto::outcome::{Code, EarlyEnd};

use crate::actor::{Next, Stage, StageKind};
use crate::events::Noting;
use crate::facts::{Read, with_facts};
use crate::failover;
use crate::flow::Exchange;
use crate::inbound;
use crate::learner::route_paused;
use crate::limits::{Clock, DrawAll, SystemClock, Tokens, WaitingAll};
use crate::metering::{Applied, Subject, Unresolved};
use crate::refused::refused;
use crate::snapshot::{CompiledProxy, ProxyCredential};
use crate::spending;

/// The stage.
pub struct Limit;

impl Stage for Limit {
    const KIND: StageKind = StageKind::Limit;

    fn decide(&mut self, exchange: &mut Exchange) -> Next {
        let Some(proxy) = exchange.proxy.clone() else {
            return EarlyEnd::new(Code::InternalError, "limit met no proxy").into();
        };
        let caller = exchange.caller.as_ref().map(|caller| caller.index);
        let Some(credential) = caller.and_then(|index| proxy.credentials.get(index)) else {
            return EarlyEnd::new(Code::InternalError, "limit met no caller").into();
        };
        let applied = match credential.metering.fixed() {
            Some(applied) if applied.is_empty() => return Next::Continue,
            Some(applied) if applied.reads_request() => Err(Unknown::NeedsBody),
            Some(applied) => Ok(applied.clone()),
            None => resolved(exchange, &proxy, credential, &Read::Nothing),
        };
        match applied {
            Ok(applied) => {
                let buffers = credential.request_filters.is_some()
                    || proxy.request_validator.is_some()
                    || failover::reads_body(proxy.target.endpoints.are_several(), &exchange.body);
                admit(exchange, applied, buffers)
            }
            Err(Unknown::Ended(end)) => Next::End(end),
            Err(Unknown::NeedsBody) => after_body(exchange, proxy),
        }
    }
}

/// Why it is not known which meters count a request.
enum Unknown {
    NeedsBody,
    Ended(Box<EarlyEnd>),
}

/// Draws a token of each meter; where the request still has to wait for something else, only
/// looks whether there would be one.
fn admit(exchange: &mut Exchange, applied: Arc<Applied>, waits: bool) -> Next {
    if applied.is_empty() {
        return Next::Continue;
    }
    if let Some(refusal) = route_paused(&applied.learning, &exchange.request.rest()) {
        return refused(&refusal).into();
    }
    let now_ns = SystemClock.boot_ns();
    if waits {
        let refusal = applied.first.check(now_ns);
        exchange.applied = Some(applied);
        return match refusal {
            Some(refusal) => refused(&refusal).into(),
            None => Next::Continue,
        };
    }
    match applied.first.draw(now_ns) {
        DrawAll::Drawn(tokens) if applied.slots.is_empty() => {
            exchange.drawn = true;
            exchange.tokens = Some(tokens);
            exchange.applied = Some(applied);
            Next::Continue
        }
        DrawAll::Drawn(tokens) => wait(applied, Awaited::Slots(tokens)),
        DrawAll::Refused(refusal) => refused(&refusal).into(),
        DrawAll::Wait(waiting) => wait(applied, Awaited::Tokens(waiting)),
    }
}

/// Reads the body, which decides which meters count the request; `forward` draws then.
fn after_body(exchange: &mut Exchange, proxy: Arc<CompiledProxy>) -> Next {
    let look = |exchange: &mut Exchange, proxy: &CompiledProxy, read: &Read| {
        let index = exchange.caller.as_ref().map(|caller| caller.index)?;
        let credential = proxy.credentials.get(index)?;
        match resolved(exchange, proxy, credential, read) {
            Ok(applied) => {
                let refusal = route_paused(&applied.learning, &exchange.request.rest())
                    .or_else(|| applied.first.check(SystemClock.boot_ns()));
                exchange.applied = Some(applied);
                refusal.map(|refusal| refused(&refusal))
            }
            Err(Unknown::Ended(end)) => Some(*end),
            Err(Unknown::NeedsBody) => Some(EarlyEnd::new(
                Code::InternalError,
                "meters asked for a body that was given",
            )),
        }
    };
    let bytes_max = proxy.body_buffer_bytes;
    inbound::look_at_whole(exchange, bytes_max, move |exchange, read| {
        look(exchange, &proxy, read)
    })
}

/// The meters that count a request which has to be looked at.
fn resolved(
    exchange: &Exchange,
    proxy: &CompiledProxy,
    credential: &ProxyCredential,
    read: &Read,
) -> Result<Arc<Applied>, Unknown> {
    let subject = Subject {
        headers: &exchange.request.headers,
        source: exchange.request.peer.ip(),
        jwt: exchange
            .caller
            .as_ref()
            .and_then(|caller| caller.jwt.as_deref()),
    };
    let metering = &credential.metering;
    let ended = |end: EarlyEnd| Unknown::Ended(Box::new(end));
    let applied = if let Some(applied) = metering.fixed() {
        Ok(applied.clone())
    } else if metering.needs_facts() {
        with_facts(&exchange.request, proxy, read, |facts| {
            metering.of(Some(facts), &subject).map(Arc::new)
        })
        .map_err(ended)?
    } else {
        metering.of(None, &subject).map(Arc::new)
    };
    let applied = applied.and_then(|applied| match read {
        _ if !applied.reads_request() => Ok(applied),
        Read::Nothing => Err(Unresolved::NeedsBody),
        Read::Whole(body) => Ok(applied.reserving(body).into()),
        Read::TooLarge => Ok(applied),
    });
    applied.map_err(|unresolved| match unresolved {
        Unresolved::NeedsBody => Unknown::NeedsBody,
        Unresolved::TooMany(error) => ended(EarlyEnd::new(Code::InternalError, error.to_string())),
    })
}

/// What a request waits for before all that it spends is drawn.
enum Awaited {
    /// Tokens, then slots.
    Tokens(Box<WaitingAll>),
    /// Slots; the tokens are there.
    Slots(Tokens),
}

/// Waits for the broker, which has been asked: a first request must not be refused for being
/// first. Bounded by `store_grace`.
fn wait(applied: Arc<Applied>, awaited: Awaited) -> Next {
    Next::Wait(Box::new(move |mut exchange| {
        Box::pin(async move {
            let Some(reply) = exchange.reply.as_mut() else {
                return (exchange, Some(Box::new(inbound::gone())));
            };
            let events = &mut exchange.notes.events;
            let mut noting = Noting::new(events, StageKind::Limit, exchange.started);
            let drawing = async {
                let tokens = match awaited {
                    Awaited::Tokens(waiting) => waiting
                        .granted(applied.priority, |what, meter| noting.hold(what, meter))
                        .await
                        .map_err(|refusal| refused(&refusal))?,
                    Awaited::Slots(tokens) => tokens,
                };
                Ok::<_, EarlyEnd>((tokens, spending::take_slots(&applied, noting).await?))
            };
            let drawn = tokio::select! {
                biased;
                () = reply.closed() => Err(inbound::gone()),
                drawn = drawing => drawn,
            };
            match drawn {
                Ok((tokens, slots)) => {
                    exchange.applied = Some(applied);
                    exchange.drawn = true;
                    exchange.tokens = Some(tokens);
                    exchange.slots = slots;
                    (exchange, None)
                }
                Err(end) => (exchange, Some(Box::new(end))),
            }
        })
    }))
}
