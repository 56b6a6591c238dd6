//! Settings of traces.

use node::traces::{Incoming, Sampling};
use serde::{Deserialize, Serialize};

/// Traces.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TraceSettings {
    /// Whether they are exported, where there is a collector.
    pub export: bool,
    /// Their collector, where it is another one than that of all signals.
    pub endpoint: Option<String>,
    /// How long finished requests are gathered before they are sent, in milliseconds.
    pub batch_ms: u64,
    /// What is done with the `traceparent` of callers: `trust`, `join` or `ignore`.
    pub incoming: Incoming,
    /// The share of requests that is exported, 0 to 1.
    pub ratio: f64,
    /// Requests that take at least so long are exported in any case, in milliseconds.
    pub slow_ms: u64,
    /// Requests that end with a 5xx, without an answer or with one that broke off are exported in
    /// any case.
    pub errors: bool,
    /// Requests that rules, limits or authentication refuse are exported in any case.
    pub refused: bool,
}

impl Default for TraceSettings {
    fn default() -> Self {
        Self {
            export: true,
            endpoint: None,
            batch_ms: 1_000,
            incoming: Incoming::Trust,
            ratio: 1.0,
            slow_ms: 5_000,
            errors: true,
            refused: true,
        }
    }
}

impl TraceSettings {
    /// Which traces are kept.
    ///
    /// # Errors
    /// A setting that has a range is outside.
    pub fn sampling(&self) -> anyhow::Result<Sampling> {
        if !(0.0..=1.0).contains(&self.ratio) {
            anyhow::bail!("`traces.ratio` must be 0 to 1, not {}", self.ratio);
        }
        Ok(Sampling {
            incoming: self.incoming,
            ratio: self.ratio,
            slow_us: self.slow_ms.saturating_mul(1_000),
            errors: self.errors,
            refused: self.refused,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_is_a_share() {
        for (ratio, fine) in [
            (0.0, true),
            (0.01, true),
            (1.0, true),
            (1.5, false),
            (f64::NAN, false),
        ] {
            let settings = TraceSettings {
                ratio,
                ..TraceSettings::default()
            };
            assert_eq!(settings.sampling().is_ok(), fine, "{ratio}");
        }
    }
}
