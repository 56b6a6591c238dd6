//! Traces: who is told of a finished request, and which requests are worth telling of.
//!
//! No span is made while a request runs. Its identity in the trace is fixed at its start (three
//! numbers made from its id); what it consists of is known at its end, from its record; then it is
//! decided whether the trace is kept, and made into spans on a thread of its own. A request that
//! nobody wants to see costs nothing but that decision, and one that ends with an error, a refusal
//! or late is kept whatever share of the others is.

use std::sync::Arc;

use proto::exposition::Exemplar;
use proto::record::Record;
use tokio::sync::mpsc;

use crate::flow::Exchange;
use crate::metrics::{Ending, MethodName, Metrics};
use crate::outcomes;
use crate::snapshot::CompiledProxy;
use crate::telemetry::TraceContext;

/// Most finished requests that wait for the exporter; more are dropped and counted.
pub const QUEUE_MAX: usize = 4_096;

/// What is done with the `traceparent` of a caller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Incoming {
    /// The request joins the caller's trace, and is kept where the caller's is.
    #[default]
    Trust,
    /// It joins the caller's trace; whether it is kept is decided here.
    Join,
    /// It begins a trace of its own, with a link to the caller's.
    Ignore,
}

/// Which traces are kept.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// What is done with a caller's trace.
    pub incoming: Incoming,
    /// The share of requests that is kept, 0 to 1, of those for which no caller decides.
    pub ratio: f64,
    /// Requests that take at least so long are kept, in microseconds.
    pub slow_us: u64,
    /// Requests that end with a 5xx, without an answer or with one that broke off are kept.
    pub errors: bool,
    /// Requests that rules, limits or authentication refuse are kept, and those that the target
    /// answers 429.
    pub refused: bool,
}

impl Sampling {
    /// What is decided at a request's start, for all who take part: the caller's word where it is
    /// trusted, else a share of the trace ids (the last 56 bits of an id are random: W3C Trace
    /// Context level 2).
    pub fn begins(&self, trace_id: u128, callers: Option<bool>) -> bool {
        match callers {
            Some(sampled) if self.incoming == Incoming::Trust => sampled,
            _ => {
                // As many bits as a float holds exactly, or a share of 1 would leave some out.
                let random = (trace_id as u64 >> 3) & ((1 << 53) - 1);
                (random as f64) < self.ratio * (1u64 << 53) as f64
            }
        }
    }

    /// Whether a finished request is kept.
    pub fn keeps(&self, context: &TraceContext, record: &Record) -> bool {
        let error = record.status.is_none() || record.is_error();
        let refused = record.status == Some(429)
            || matches!(
                &*record.code,
                "proxy-access-denied" | "rate-limited" | "budget-exhausted" | "proxy-inactive"
            );
        context.sampled
            || self.errors && error
            || self.refused && refused
            || record.total_us >= self.slow_us
    }
}

/// A request that is kept.
pub struct Finished {
    /// Its place in the trace.
    pub context: TraceContext,
    /// What is known of it, without bodies: no span has them, and they would be held for as long
    /// as the collector takes nothing.
    pub record: Arc<Record>,
    /// The proxy that was called.
    pub proxy: Arc<CompiledProxy>,
}

impl Finished {
    /// Shows the request among the exemplars of its histograms. Only for one whose trace a
    /// collector has taken: an exemplar that leads nowhere is worse than none. So nothing of it is
    /// done, or paid for, while the request runs.
    pub fn exemplify(&self, metrics: &Metrics) {
        let (record, context) = (&self.record, &self.context);
        let shown = |span_id, (from_us, took_us): (u64, u64)| {
            let ended_us = i64::try_from(from_us.saturating_add(took_us)).unwrap_or(i64::MAX);
            Exemplar {
                value_us: took_us,
                at_ms: record.started_at_us.saturating_add(ended_us) / 1_000,
                trace_id: context.trace_id,
                span_id,
            }
        };
        let exemplar = shown(context.span_id, (0, record.total_us));
        metrics.request_exemplified(&Ending::of(record), exemplar);
        let method = MethodName::of(&record.method);
        for (at, attempt) in record.sends.iter().enumerate() {
            if let Some(durations) = outcomes::durations(&self.proxy, record, at) {
                let times = (attempt.started_us.into(), attempt.took_us());
                let id = context.attempt_span(at, record.sends.len());
                durations.exemplify(method, attempt, shown(id, times));
            }
        }
    }
}

/// Takes finished requests; clones share one queue.
#[derive(Clone, Debug)]
pub struct TraceSender {
    queue: mpsc::Sender<Finished>,
    sampling: Sampling,
    metrics: Metrics,
}

/// A queue of finished requests, and the end at which the exporter takes them.
pub fn queue(sampling: Sampling, metrics: Metrics) -> (TraceSender, mpsc::Receiver<Finished>) {
    let (sender, receiver) = mpsc::channel(QUEUE_MAX);
    let sender = TraceSender {
        queue: sender,
        sampling,
        metrics,
    };
    (sender, receiver)
}

impl TraceSender {
    /// Which traces are kept.
    pub fn sampling(&self) -> &Sampling {
        &self.sampling
    }

    /// A request has ended.
    fn ended(&self, context: &TraceContext, record: &Arc<Record>, proxy: &Arc<CompiledProxy>) {
        if !self.sampling.keeps(context, record) {
            return;
        }
        let Ok(place) = self.queue.try_reserve() else {
            self.metrics.traces_dropped(1);
            return;
        };
        place.send(Finished {
            context: *context,
            record: without_bodies(record),
            proxy: proxy.clone(),
        });
    }
}

/// A request whose trace may be kept.
pub struct Traced {
    sender: TraceSender,
    context: TraceContext,
    proxy: Arc<CompiledProxy>,
}

impl Traced {
    /// A request of a proxy, where traces are exported.
    pub fn of(sender: Option<&TraceSender>, exchange: &Exchange) -> Option<Self> {
        Some(Self {
            sender: sender?.clone(),
            context: exchange.trace?,
            proxy: exchange.proxy.clone()?,
        })
    }

    /// It has ended.
    pub fn ended(&self, record: &Arc<Record>) {
        self.sender.ended(&self.context, record, &self.proxy);
    }
}

/// The same record, or a copy where it has bodies.
fn without_bodies(record: &Arc<Record>) -> Arc<Record> {
    match record.payload {
        None => Arc::clone(record),
        Some(_) => Arc::new(record.without_payload()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALWAYS: Sampling = Sampling {
        incoming: Incoming::Trust,
        ratio: 0.0,
        slow_us: 1_000_000,
        errors: true,
        refused: true,
    };

    #[test]
    fn a_share_of_ids_is_kept_unless_a_trusted_caller_decides() {
        let half = Sampling {
            ratio: 0.5,
            ..ALWAYS
        };
        let ids = (0..10_000u64).map(|n| u128::from(n.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
        let kept = ids.filter(|id| half.begins(*id, None)).count();
        assert!((4_800..5_200).contains(&kept), "{kept}");
        for (incoming, callers, expected) in [
            (Incoming::Trust, Some(true), true),
            (Incoming::Trust, Some(false), false),
            (Incoming::Join, Some(true), false),
            (Incoming::Ignore, Some(true), false),
            (Incoming::Trust, None, false),
        ] {
            let sampling = Sampling { incoming, ..ALWAYS };
            assert_eq!(
                sampling.begins(1, callers),
                expected,
                "{incoming:?} {callers:?}"
            );
        }
        let all = Sampling {
            ratio: 1.0,
            ..ALWAYS
        };
        assert!(all.begins(u128::MAX, None) && !ALWAYS.begins(0, None));
    }

    /// A collector that takes nothing: no more than the queue's bound is held, the rest is counted,
    /// and there is room again for as many as are taken.
    #[actix_rt::test]
    async fn beyond_the_bound_requests_are_dropped_and_counted() {
        let metrics = Metrics::default();
        let (sender, mut exporter) = queue(ALWAYS, metrics.clone());
        let proxy = crate::sync::compile::tests::compiled();
        let context = TraceContext::new(1, None, &ALWAYS);
        let mut record = crate::records::tests::record(1);
        (record.code, record.status) = ("rate-limited".into(), Some(429));
        let record = Arc::new(record);
        let dropped = || {
            let families = metrics.families(&Default::default());
            let text = families.text(proto::exposition::text::Form::Prometheus);
            let mut lines = text.lines();
            let count = lines.find_map(|line| {
                let rest = line.strip_prefix("requestrocket_traces_dropped_total ")?;
                rest.parse::<usize>().ok()
            });
            count.unwrap()
        };
        let held = || Arc::strong_count(&record) - 1;
        for _ in 0..QUEUE_MAX {
            sender.ended(&context, &record, &proxy);
        }
        assert_eq!((held(), dropped()), (QUEUE_MAX, 0));
        for _ in 0..3 * QUEUE_MAX {
            sender.clone().ended(&context, &record, &proxy);
        }
        assert_eq!((held(), dropped()), (QUEUE_MAX, 3 * QUEUE_MAX));
        for _ in 0..10 {
            exporter.try_recv().unwrap();
        }
        assert_eq!(held(), QUEUE_MAX - 10);
        for _ in 0..11 {
            sender.ended(&context, &record, &proxy);
        }
        assert_eq!((held(), dropped()), (QUEUE_MAX, 3 * QUEUE_MAX + 1));
    }

    #[test]
    fn bodies_do_not_wait_for_a_collector() {
        let mut record = crate::records::tests::record(1);
        let plain = Arc::new(record.clone());
        assert!(Arc::ptr_eq(&without_bodies(&plain), &plain));
        record.payload = Some(Box::default());
        let waits = without_bodies(&Arc::new(record));
        assert_eq!(waits.payload, None);
        assert_eq!(waits, plain);
    }

    #[test]
    fn errors_refusals_and_slow_requests_are_kept_whatever_the_share() {
        let context = TraceContext::new(1, None, &ALWAYS);
        for (code, status, upstream, total_us, kept) in [
            ("proxy-access-granted", Some(200), Some(200), 5, false),
            ("proxy-access-granted", Some(404), Some(404), 5, false),
            ("proxy-access-granted", Some(429), Some(429), 5, true),
            ("proxy-access-granted", Some(503), Some(503), 5, true),
            ("rate-limited", Some(429), None, 5, true),
            ("budget-exhausted", Some(402), None, 5, true),
            ("proxy-access-denied", Some(400), None, 5, true),
            ("proxy-access-denied", Some(401), None, 5, true),
            ("client-aborted", None, None, 5, true),
            ("client-aborted", Some(200), Some(200), 5, false),
            ("upstream-unreachable", Some(200), Some(200), 5, true),
            ("filter-not-json", Some(200), Some(200), 5, true),
            ("filter-not-json", Some(422), Some(200), 5, false),
            (
                "proxy-access-granted",
                Some(200),
                Some(200),
                1_000_000,
                true,
            ),
        ] {
            let mut record = crate::records::tests::record(1);
            (record.code, record.status) = (code.into(), status);
            (record.upstream_status, record.total_us) = (upstream, total_us);
            assert_eq!(
                ALWAYS.keeps(&context, &record),
                kept,
                "{code} {status:?} {total_us}"
            );
        }
    }
}
