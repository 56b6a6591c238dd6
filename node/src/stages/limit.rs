//! Stage 4: spend tokens of every meter that applies.
//!
//! A token is drawn here and becomes *sent* in `forward`, in the same poll as the first write.
//! Where the request still has to wait for something else (a body that request filters need
//! whole), nothing is drawn yet: this stage refuses only when a meter is known to be empty, and
//! `forward` draws.

use std::sync::Arc;
use std::time::Instant;

use proto::id::ProxyId;
use proto::outcome::{Code, EarlyEnd, Extra, MeterState};
use tracing::Span;

use crate::actor::{Next, Stage, StageKind};
use crate::flow::Exchange;
use crate::inbound;
use crate::limits::{self, Draw, Meter, Refusal, Token};

/// The stage.
pub struct Limit;

impl Stage for Limit {
    const KIND: StageKind = StageKind::Limit;

    fn span(parent: &Span) -> Span {
        tracing::info_span!(parent: parent, "limit")
    }

    fn decide(&mut self, exchange: &mut Exchange, _: Instant) -> Next {
        let Some(proxy) = exchange.proxy.clone() else {
            return EarlyEnd::new(Code::InternalError, "limit met no proxy").into();
        };
        if proxy.meters.is_empty() {
            return Next::Continue;
        }
        match limits::draw_all(&proxy.meters) {
            Draw::Refused(refusal) => refused(&[refusal], proxy.id).into(),
            Draw::Drawn(tokens) => {
                let waits = exchange.caller.as_ref().is_some_and(|caller| {
                    proxy.credentials[caller.index].request_filters.is_some()
                });
                if !waits {
                    exchange.tokens = tokens;
                }
                Next::Continue
            }
            Draw::Wait(_) => Next::Wait(Box::new(move |mut exchange| {
                Box::pin(async move {
                    let drawn = match exchange.reply.as_mut() {
                        Some(reply) => tokio::select! {
                            biased;
                            () = reply.closed() => Err(inbound::gone()),
                            drawn = draw(&proxy.meters, proxy.id) => drawn,
                        },
                        None => Err(inbound::gone()),
                    };
                    match drawn {
                        Ok(tokens) => {
                            exchange.tokens = tokens;
                            (exchange, None)
                        }
                        Err(end) => (exchange, Some(Box::new(end))),
                    }
                })
            })),
        }
    }
}
