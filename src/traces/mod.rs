//! The export of traces over OTLP: finished requests are taken from the workers' queue, made into
//! spans and sent in batches, all on a thread that no request waits for.
//!
//! A collector that is gone or slow costs memory up to the queue's bound and nothing else: what
//! finds no room is dropped and counted, and a batch that is refused is tried again a few times.

pub mod attributes;
mod encode;
mod settings;
mod spans;

use std::time::Duration;

use bytes::Bytes;
use node::metrics::Metrics;
use node::traces::{Finished, TraceSender};
use tokio::sync::mpsc::Receiver;
use tokio::sync::oneshot;

use crate::otlp::{self, Export, Outage, Signal, Transport};
use crate::settings::Settings;
pub use settings::TraceSettings;
use spans::Spans;

/// Most requests in a batch.
const BATCH_REQUESTS_MAX: usize = 256;
/// How often a batch is sent before it is given up, and the pause after the first failure.
const TRIES: u32 = 4;
const PAUSE: Duration = Duration::from_millis(500);

/// Starts the export where the settings name a collector.
///
/// # Errors
/// A setting is faulty, or a certificate cannot be read.
pub fn start(
    settings: &Settings,
    metrics: &Metrics,
) -> anyhow::Result<Option<(TraceSender, Export)>> {
    let own = &settings.traces;
    let sampling = own.sampling()?;
    let endpoint = (own.export, own.endpoint.as_deref());
    let collector = settings
        .otlp
        .collector(Signal::Traces, endpoint, otlp::variable)?;
    let Some(collector) = collector else {
        return Ok(None);
    };
    let (sender, queue) = node::traces::queue(sampling, metrics.clone());
    let spans = Spans::new(&otlp::resource(settings), metrics.scheme());
    let pause = Duration::from_millis(own.batch_ms.max(1));
    let metrics = metrics.clone();
    let export = Export::start(&collector, move |transport, stopping| {
        let run = Run {
            transport,
            spans,
            metrics,
            pause,
            outage: Outage::none(Signal::Traces),
        };
        run.run(queue, stopping)
    })?;
    Ok(Some((sender, export)))
}

struct Run {
    transport: Transport,
    spans: Spans,
    metrics: Metrics,
    pause: Duration,
    outage: Outage,
}

impl Run {
    async fn run(mut self, mut queue: Receiver<Finished>, mut stopping: oneshot::Receiver<()>) {
        let mut waiting = Vec::with_capacity(BATCH_REQUESTS_MAX);
        let mut stopped = false;
        loop {
            let received = tokio::select! {
                count = queue.recv_many(&mut waiting, BATCH_REQUESTS_MAX) => count,
                _ = &mut stopping, if !stopped => {
                    // What is in the queue still comes out of it, then it ends.
                    stopped = true;
                    queue.close();
                    continue;
                }
            };
            if received == 0 {
                return;
            }
            if !stopped {
                // A little later there are more, and one batch is sent for them.
                let max = BATCH_REQUESTS_MAX;
                tokio::select! {
                    () = otlp::filled(&mut queue, &mut waiting, max, self.pause) => {}
                    _ = &mut stopping => {
                        stopped = true;
                        queue.close();
                    }
                }
            }
            let tries = if stopped { 1 } else { TRIES };
            self.send(&waiting, tries).await;
            waiting.clear();
        }
    }

    async fn send(&mut self, finished: &[Finished], tries: u32) {
        let count = finished.len() as u64;
        let export = Bytes::from(self.spans.export(finished));
        let mut pause = PAUSE;
        for left in (0..tries).rev() {
            match self.transport.export(export.clone()).await {
                Ok(()) => {
                    self.metrics.traces_exported(count);
                    for request in finished {
                        request.exemplify(&self.metrics);
                    }
                    self.outage.over();
                    return;
                }
                Err(missed) => {
                    self.metrics.trace_export_failed();
                    self.outage.met(&missed);
                    if !missed.again {
                        break;
                    }
                    if left > 0 {
                        tokio::time::sleep(pause).await;
                        pause *= 2;
                    }
                }
            }
        }
        self.metrics.traces_dropped(count);
    }
}
