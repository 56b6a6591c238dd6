//! The export of traces over OTLP: finished requests are taken from the workers' queue, made into
//! spans and sent in batches, all on a thread that no request waits for.
//!
//! A collector that is gone or slow costs memory up to the queue's bound and nothing else: what
//! finds no room is dropped and counted, and a batch that is refused is tried again a few times.

pub mod attributes;
mod encode;
mod events;
pub mod file;
mod settings;
mod spans;

use std::time::Duration;

use bytes::Bytes;
use node::metrics::Metrics;
use node::traces::{Finished, Sampling, TraceSender};

use crate::otlp::batches::{self, Batches, Gather};
use crate::otlp::{self, Collector, Export, Signal};
use crate::settings::Settings;
pub use settings::TraceSettings;
use spans::Spans;

/// Most requests in a batch.
const BATCH_REQUESTS_MAX: usize = 256;
/// Largest export whose memory is used again.
const KEPT_BYTES_MAX: usize = 2 * 1024 * 1024;

/// Where traces go, and of which requests; none where the settings name no collector.
fn plan(settings: &Settings) -> anyhow::Result<Option<(Collector, Sampling)>> {
    let own = &settings.traces;
    let sampling = own.sampling()?;
    let endpoint = (own.export, own.endpoint.as_deref());
    let collector = settings
        .otlp
        .collector(Signal::Traces, endpoint, otlp::variable)?;
    Ok(collector.map(|collector| (collector, sampling)))
}

/// Looks whether the export could be started.
///
/// # Errors
/// As for [`start`].
pub fn check(settings: &Settings) -> anyhow::Result<()> {
    match plan(settings)? {
        Some((collector, _)) => otlp::check(&collector),
        None => Ok(()),
    }
}

/// Starts the export where the settings name a collector.
///
/// # Errors
/// A setting is faulty, or a certificate cannot be read.
pub fn start(
    settings: &Settings,
    metrics: &Metrics,
) -> anyhow::Result<Option<(TraceSender, Export)>> {
    let own = &settings.traces;
    let Some((collector, sampling)) = plan(settings)? else {
        return Ok(None);
    };
    let (sender, queue) = node::traces::queue(sampling, metrics.clone());
    let spans = Spans::new(&otlp::resource(settings), metrics.scheme());
    let gather = Gather {
        most: BATCH_REQUESTS_MAX,
        longest: Duration::from_millis(own.batch_ms.max(1)),
    };
    let metrics = metrics.clone();
    let export = Export::start(&collector, move |transport, stopping| {
        let last = Bytes::new();
        let exports = Exports {
            spans,
            metrics,
            last,
        };
        batches::send(Signal::Traces, transport, exports, gather, queue, stopping)
    })?;
    Ok(Some((sender, export)))
}

/// Makes exports of finished requests.
struct Exports {
    spans: Spans,
    metrics: Metrics,
    /// The export before: its memory is used again, since fresh memory of this size costs more
    /// than what is written to it.
    last: Bytes,
}

impl Exports {
    fn room(&mut self) -> Vec<u8> {
        // A transport that still sends it keeps it.
        match std::mem::take(&mut self.last).try_into_mut() {
            Ok(mut room) => {
                room.clear();
                Vec::from(room)
            }
            Err(_) => Vec::new(),
        }
    }
}

impl Batches for Exports {
    type Item = Finished;

    fn export(&mut self, finished: &mut Vec<Finished>) -> Bytes {
        let room = self.room();
        let export = Bytes::from(self.spans.export(finished, room));
        if export.len() <= KEPT_BYTES_MAX {
            self.last = export.clone();
        }
        export
    }

    fn taken(&self, count: u64, finished: &[Finished]) {
        self.metrics.traces_exported(count);
        for request in finished {
            request.exemplify(&self.metrics);
        }
    }

    fn failed(&self) {
        self.metrics.trace_export_failed();
    }

    fn dropped(&self, count: u64) {
        self.metrics.traces_dropped(count);
    }
}
