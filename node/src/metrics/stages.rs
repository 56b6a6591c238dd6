//! How long each stage of the pipeline takes of requests.
//!
//! Every request is counted once for each stage that it passes, so the workers do not share these
//! counts: each thread adds to a part of its own, and who reads adds the parts up.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use proto::exposition::{Durations, Families};

use super::Metrics;
use crate::actor::{STAGES, StageKind};

/// Bounds of the buckets, in microseconds: a stage that decides takes a few, one that waits (for a
/// turn at a limit, for the target, for the caller to read) up to minutes.
const STAGE_US: [u64; 10] = [
    5, 20, 100, 500, 2_500, 10_000, 50_000, 250_000, 1_000_000, 10_000_000,
];
/// Parts; beyond so many threads some share one.
const PARTS: usize = 16;

thread_local! {
    /// The part that this thread adds to.
    static PART: Cell<usize> = {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        Cell::new(NEXT.fetch_add(1, Relaxed) % PARTS)
    };
}

/// What one stage took.
#[derive(Debug, Default)]
struct Taken {
    buckets: [AtomicU64; STAGE_US.len() + 1],
    sum_us: AtomicU64,
}

/// What the requests of some threads took in each stage. Aligned: no part shares a line of the
/// processor's cache with another.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Part([Taken; STAGES]);

/// The durations of all stages.
#[derive(Debug, Default)]
pub(super) struct StageDurations([Part; PARTS]);

impl StageDurations {
    fn observe(&self, stage: StageKind, us: u64) {
        let part = PART.try_with(Cell::get).unwrap_or_default();
        let taken = &self.0[part].0[stage as usize];
        let bucket = STAGE_US.iter().position(|bound| us <= *bound);
        taken.buckets[bucket.unwrap_or(STAGE_US.len())].fetch_add(1, Relaxed);
        if us > 0 {
            taken.sum_us.fetch_add(us, Relaxed);
        }
    }

    fn durations(&self, stage: StageKind) -> Durations {
        let mut counts = vec![0; STAGE_US.len() + 1];
        let mut sum_us = 0;
        for part in &self.0 {
            let taken = &part.0[stage as usize];
            for (count, bucket) in counts.iter_mut().zip(&taken.buckets) {
                *count += bucket.load(Relaxed);
            }
            sum_us += taken.sum_us.load(Relaxed);
        }
        Durations {
            bounds_us: &STAGE_US,
            counts,
            sum_us,
            exemplars: Vec::new(),
        }
    }

    pub(super) fn collect(&self, out: &mut Families) {
        let help = "Time of requests in each stage, with all that the stage waited for.";
        let family = out.histogram("requestrocket_stage_duration_seconds", help);
        for stage in StageKind::ALL {
            let durations = self.durations(stage);
            if durations.count() > 0 {
                family.add(vec![("stage", stage.name().into())], durations);
            }
        }
    }
}

impl Metrics {
    /// A request has left stages at these times, in microseconds after its start; 0 for those that
    /// it did not pass. Says when it left the last of them.
    pub fn stages_left(&self, marks: &[u32; STAGES]) -> u32 {
        let mut before = 0;
        for (stage, left) in StageKind::ALL.into_iter().zip(marks) {
            if *left != 0 {
                let us = left.saturating_sub(before);
                self.shared.stages.observe(stage, us.into());
                before = before.max(*left);
            }
        }
        before
    }

    /// Answering a request took so many microseconds, from its answer's head to the last byte.
    pub fn responded(&self, us: u64) {
        self.shared.stages.observe(StageKind::Respond, us);
    }
}

#[cfg(test)]
mod tests {
    use proto::exposition::text::Form;

    use super::*;
    use crate::limits::Stats;

    #[test]
    fn what_many_threads_count_is_read_as_one() {
        let metrics = Metrics::default();
        let mut marks = [0; STAGES];
        marks[StageKind::Receive as usize] = 3;
        // Not authenticated: there is no mark.
        marks[StageKind::Limit as usize] = 3;
        marks[StageKind::Forward as usize] = 1_003;
        std::thread::scope(|scope| {
            for _ in 0..2 * PARTS {
                scope.spawn(|| {
                    assert_eq!(metrics.stages_left(&marks), 1_003);
                    metrics.responded(20_000_000);
                });
            }
        });
        let text = metrics.families(&Stats::default()).text(Form::Prometheus);
        for line in [
            "bucket{stage=\"receive\",le=\"0.000005\"} 32",
            "sum{stage=\"receive\"} 0.000096",
            "bucket{stage=\"limit\",le=\"0.000005\"} 32",
            "sum{stage=\"limit\"} 0",
            "bucket{stage=\"forward\",le=\"0.0005\"} 0",
            "bucket{stage=\"forward\",le=\"0.0025\"} 32",
            "bucket{stage=\"respond\",le=\"10\"} 0",
            "count{stage=\"respond\"} 32",
        ] {
            let line = format!("requestrocket_stage_duration_seconds_{line}");
            assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
        }
        assert!(!text.contains("duration_seconds_count{stage=\"authenticate\"}"));
    }
}
