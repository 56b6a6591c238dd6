//! Metrics as values: what every part of a process tells of itself, before it has a form.
//!
//! Each part adds its families here and nowhere else; the Prometheus and OpenMetrics text
//! ([`text`]) and the OTLP form are made of the same list. So a metric cannot exist in one form
//! and not in another, nor have two values.
//!
//! A family is named as in Prometheus (`requestrocket_requests_total`); the OpenTelemetry name
//! follows from that ([`Family::otel_name`]) and leads back to it by the rules of the
//! OpenTelemetry specification ("Prometheus and OpenMetrics Compatibility"), so dashboards and
//! alerts work whichever way a metric has come.

pub mod text;

use std::borrow::Cow;
use std::sync::Arc;

/// Tells the metrics of a process as they are now.
pub type MetricsSource = Arc<dyn Fn() -> Families + Send + Sync>;

/// A label of one point, named as in OpenTelemetry; text forms put `_` for a dot.
pub type Label = (&'static str, LabelValue);

/// What a label says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LabelValue {
    /// A text.
    Text(Cow<'static, str>),
    /// A number, which the semantic conventions want as one (`http.response.status_code`).
    Number(i64),
    /// Yes or no.
    Flag(bool),
}

impl From<&'static str> for LabelValue {
    fn from(text: &'static str) -> Self {
        Self::Text(Cow::Borrowed(text))
    }
}

impl From<String> for LabelValue {
    fn from(text: String) -> Self {
        Self::Text(Cow::Owned(text))
    }
}

impl From<u16> for LabelValue {
    fn from(number: u16) -> Self {
        Self::Number(number.into())
    }
}

/// What a family's values are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows while the process runs.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts of durations by size.
    Histogram,
}

/// One value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A whole number.
    Count(u64),
    /// Any number.
    Level(f64),
    /// Durations.
    Durations(Durations),
}

impl From<u64> for Value {
    fn from(count: u64) -> Self {
        Self::Count(count)
    }
}

impl From<f64> for Value {
    fn from(level: f64) -> Self {
        Self::Level(level)
    }
}

impl From<Durations> for Value {
    fn from(durations: Durations) -> Self {
        Self::Durations(durations)
    }
}

/// Durations by size.
#[derive(Clone, Debug, PartialEq)]
pub struct Durations {
    /// Upper bounds of the buckets but the last, in microseconds, rising.
    pub bounds_us: &'static [u64],
    /// Durations in each bucket alone; one more than bounds.
    pub counts: Vec<u64>,
    /// The sum of all, in microseconds.
    pub sum_us: u64,
    /// Requests to look at, at most one for each bucket, by rising value.
    pub exemplars: Vec<Exemplar>,
}

impl Durations {
    /// How many there are.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }
}

/// A request of which a collector holds the trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exemplar {
    /// How long it took, in microseconds.
    pub value_us: u64,
    /// When it ended, in milliseconds since the Unix epoch.
    pub at_ms: i64,
    /// Its trace.
    pub trace_id: u128,
    /// The span that took so long.
    pub span_id: u64,
}

/// A value with its labels.
#[derive(Clone, Debug, PartialEq)]
pub struct Point {
    /// Its labels.
    pub labels: Vec<Label>,
    /// Its value.
    pub value: Value,
}

/// A metric with all of its points.
#[derive(Clone, Debug, PartialEq)]
pub struct Family {
    /// Its name in Prometheus.
    pub name: &'static str,
    /// What it means, one sentence.
    pub help: &'static str,
    /// What its values are.
    pub kind: Kind,
    /// Its values.
    pub points: Vec<Point>,
}

impl Family {
    /// Adds the value of a family without labels.
    pub fn is(&mut self, value: impl Into<Value>) {
        self.with([], value);
    }

    /// Adds a value with labels.
    pub fn with<const N: usize>(&mut self, labels: [Label; N], value: impl Into<Value>) {
        self.add(labels.into(), value);
    }

    /// The same with as many labels as there are.
    pub fn add(&mut self, labels: Vec<Label>, value: impl Into<Value>) {
        let value = value.into();
        self.points.push(Point { labels, value });
    }

    /// The unit in the name's end, as UCUM writes it: `s`, `By`, or none.
    pub fn unit(&self) -> &'static str {
        self.split().1
    }

    /// The name in OpenTelemetry: without the suffixes that say unit and kind, `requestrocket.` as
    /// the namespace, and that of the semantic conventions where it is one of theirs.
    pub fn otel_name(&self) -> String {
        let stem = self.split().0;
        match stem.strip_prefix("requestrocket_") {
            Some(own) => format!("requestrocket.{own}"),
            None => stem.replace('_', "."),
        }
    }

    fn split(&self) -> (&'static str, &'static str) {
        let stem = self.name.strip_suffix("_total").unwrap_or(self.name);
        for (suffix, unit) in [("_seconds", "s"), ("_bytes", "By")] {
            if let Some(stem) = stem.strip_suffix(suffix) {
                return (stem, unit);
            }
        }
        (stem, "")
    }
}

/// All metrics of a process, or of a part of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Families(Vec<Family>);

impl Families {
    /// A family that only grows; its name ends in `_total`.
    pub fn counter(&mut self, name: &'static str, help: &'static str) -> &mut Family {
        self.family(name, help, Kind::Counter)
    }

    /// A family that goes up and down.
    pub fn gauge(&mut self, name: &'static str, help: &'static str) -> &mut Family {
        self.family(name, help, Kind::Gauge)
    }

    /// A family of durations; its name ends in `_seconds`.
    pub fn histogram(&mut self, name: &'static str, help: &'static str) -> &mut Family {
        self.family(name, help, Kind::Histogram)
    }

    fn family(&mut self, name: &'static str, help: &'static str, kind: Kind) -> &mut Family {
        let family = Family {
            name,
            help,
            kind,
            points: Vec::new(),
        };
        // The one that was just added is there.
        let at = self.0.len();
        self.0.push(family);
        &mut self.0[at]
    }

    /// All of them, in the order in which they were added.
    pub fn iter(&self) -> impl Iterator<Item = &Family> {
        self.0.iter()
    }

    /// Adds those of another part.
    pub fn extend(&mut self, others: Self) {
        self.0.extend(others.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_opentelemetry_follow_from_those_of_prometheus() {
        for (name, kind, otel, unit) in [
            (
                "requestrocket_requests_total",
                Kind::Counter,
                "requestrocket.requests",
                "",
            ),
            (
                "requestrocket_requests_in_flight",
                Kind::Gauge,
                "requestrocket.requests_in_flight",
                "",
            ),
            (
                "requestrocket_store_size_bytes",
                Kind::Gauge,
                "requestrocket.store_size",
                "By",
            ),
            (
                "requestrocket_overhead_seconds",
                Kind::Histogram,
                "requestrocket.overhead",
                "s",
            ),
            (
                "http_server_request_duration_seconds",
                Kind::Histogram,
                "http.server.request.duration",
                "s",
            ),
        ] {
            let mut families = Families::default();
            let family = families.family(name, "", kind);
            assert_eq!((family.otel_name().as_str(), family.unit()), (otel, unit));
        }
    }
}
