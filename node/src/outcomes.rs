//! What is noted of each sending to a target: for the record, for metrics, and for the breaker of
//! the endpoint it went to.

use std::sync::Arc;

use proto::outcome::EarlyEnd;
use proto::record::{Attempt, Record, SpanEventKind};

use crate::actor::StageKind;
use crate::attempts;
use crate::endpoints::Picked;
use crate::flow::Exchange;
use crate::metrics::{AddressDurations, MethodName, Metrics};
use crate::snapshot::CompiledProxy;
use crate::upstream::{Answer, Failure, Fault, SendError, Stopped};

/// What came of asking one endpoint.
pub type Sent = Result<Box<Answer>, SendError<EarlyEnd>>;

/// Tells the endpoint's breaker and counters of an outcome, and notes which endpoint it was.
pub fn settle(exchange: &mut Exchange, proxy: &CompiledProxy, picked: Picked, sent: Sent) -> Sent {
    exchange.notes.endpoint = picked.at;
    if let Some(endpoint) = proxy.target.endpoints.get(picked.at)
        && let Some(counters) = &endpoint.counters
    {
        let stopped = match &sent {
            Err(SendError::Gate(stopped)) => Some(stopped.attempts),
            _ => None,
        };
        // What was held here, or broke off on the caller's side, says nothing of the endpoint.
        match &sent {
            Ok(_) => counters.ended(true),
            Err(SendError::Failed(failure)) if failure.kind.fault() == Fault::Target => {
                counters.ended(false);
            }
            Err(_) => {}
        }
        if endpoint.named && stopped != Some(0) {
            exchange.notes.endpoints.push(Arc::clone(&endpoint.label));
        }
    }
    let opened = match (picked.admitted, &sent) {
        (Some(admitted), Ok(answer)) => admitted.answered(answer.status),
        (Some(admitted), Err(SendError::Failed(failure))) => admitted.failed(failure),
        _ => false,
    };
    if opened {
        let endpoint = proxy.target.endpoints.get(picked.at);
        let label = endpoint.map(|endpoint| Arc::clone(&endpoint.label));
        let mut noting = exchange.noting(StageKind::Forward);
        noting.add(SpanEventKind::BreakerOpened, label);
    }
    sent
}

/// The target is turned to, from now on: what was waited for before, a body or a limit, is none of
/// its time.
pub fn begins(exchange: &mut Exchange) {
    exchange.notes.sending_us = exchange.elapsed_us();
}

/// Notes the attempts that no answer came to.
pub fn unanswered(exchange: &mut Exchange, metrics: &Metrics, failure: &Failure) {
    let begun_us = exchange.notes.sending_us;
    let (now_us, started) = (exchange.elapsed_us(), exchange.started);
    let sends = attempts::failed(failure, begun_us, now_us, started);
    exchange.notes.attempts += failure.attempts;
    note(exchange, sends);
    metrics.upstream_failed(attempts::name(&failure.kind));
}

/// What came of a send, or why it was stopped from this side after so many attempts.
pub fn ended(ended: Result<Sent, EarlyEnd>, attempts: u32) -> Sent {
    ended.unwrap_or_else(|why| Err(SendError::Gate(Stopped::after(attempts, why))))
}

/// Notes what was sent before it was stopped from this side.
pub fn stopped(exchange: &mut Exchange, stopped: &Stopped<EarlyEnd>) {
    if stopped.attempts == 0 {
        return;
    }
    let begun_us = exchange.notes.sending_us;
    let (now_us, started) = (exchange.elapsed_us(), exchange.started);
    let sends = attempts::stopped(stopped, begun_us, now_us, started);
    exchange.notes.attempts += stopped.attempts;
    note(exchange, sends);
}

/// Counts how long the attempts of a request took.
pub fn measure(proxy: &CompiledProxy, record: &Record) {
    if record.sends.is_empty() {
        return;
    }
    let method = MethodName::of(&record.method);
    for (at, attempt) in record.sends.iter().enumerate() {
        if let Some(durations) = durations(proxy, record, at) {
            durations.observe(method, attempt);
        }
    }
}

/// Where it is counted how long the attempt at this place took.
pub fn durations<'p>(
    proxy: &'p CompiledProxy,
    record: &Record,
    at: usize,
) -> Option<&'p AddressDurations> {
    match (&proxy.elsewhere, &record.forwarded_to) {
        (Some(elsewhere), Some(region)) => {
            let mut gateways = elsewhere.gateways.iter();
            let found = gateways.find(|gateway| gateway.region == *region);
            found.map(|gateway| &gateway.durations)
        }
        _ => {
            let asked = proxy.target.endpoints.asked(&record.endpoints, at);
            asked.map(|endpoint| &endpoint.durations)
        }
    }
}

/// The region that a request was passed on to.
pub fn forwarded_to(proxy: &CompiledProxy, attempts: u32, endpoint: usize) -> Option<Arc<str>> {
    let gateway = proxy.elsewhere.as_ref()?.gateways.get(endpoint)?;
    (attempts > 0).then(|| Arc::clone(&gateway.region))
}

/// Adds attempts, all but the last of them to the same endpoint as that.
fn note(exchange: &mut Exchange, sends: Vec<Attempt>) {
    let notes = &mut exchange.notes;
    match notes.sends.is_empty() {
        true => notes.sends = sends,
        false => notes.sends.extend(sends),
    }
    if let Some(last) = notes.endpoints.last().cloned() {
        notes.endpoints.resize(notes.sends.len(), last);
    }
}

/// Notes the attempts of an answer. One that was kept while others were asked is noted already, and
/// has none left.
pub fn answered(exchange: &mut Exchange, answer: &Answer) {
    if answer.attempts > 0 {
        let begun_us = exchange.notes.sending_us;
        let sends = attempts::answered(answer, begun_us, exchange.started);
        note(exchange, sends);
        exchange.notes.attempts += answer.attempts;
    }
}
