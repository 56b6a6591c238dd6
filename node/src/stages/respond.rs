//! Stage 10: the last touches on an answer's head. Never ends a request.
//!
//! The shell behind the last stage builds the reply (`answer.rs`) from what the exchange holds, an
//! answer or an early end, and gives it to whoever waits for it.

use http::{StatusCode, header};

use crate::actor::{Next, Stage, StageKind};
use crate::flow::Exchange;

/// The stage.
pub struct Respond;

impl Stage for Respond {
    const KIND: StageKind = StageKind::Respond;

    fn decide(&mut self, exchange: &mut Exchange) -> Next {
        if let Some(answer) = &mut exchange.answer
            && answer.status == StatusCode::NOT_MODIFIED
            && let Some(length) = answer.announced_length.take()
        {
            // The length that a GET would have had (RFC 9110 §8.6); there is no body to count.
            answer.headers.insert(header::CONTENT_LENGTH, length);
        }
        Next::Continue
    }
}
