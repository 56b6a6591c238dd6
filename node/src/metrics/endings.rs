//! How requests and attempts end, and how long that took, by what the semantic conventions of
//! OpenTelemetry want to tell apart: method, status, kind of error.
//!
//! A caller cannot make series at will: methods that are not known share one name, and beyond the
//! slots of a table all share its overflow. A table is only added to, so finding a series is a walk
//! over a few numbers, without a lock and without an allocation but for the first request of its
//! kind.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use proto::attempt::{Attempt, AttemptFailure};
use proto::exposition::{Exemplar, Family, Label, LabelValue};
use proto::outcome::Code;
use proto::record::{Record, is_broken};

use super::histogram::{Histogram, REQUEST_US};

/// The methods that the conventions know.
const METHODS: [&str; 9] = [
    "GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "CONNECT", "TRACE",
];

/// A method as metrics and spans name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MethodName(u8);

impl MethodName {
    /// The name of a method.
    pub fn of(method: &str) -> Self {
        let at = METHODS.iter().position(|known| *known == method);
        Self(at.unwrap_or(METHODS.len()) as u8)
    }

    /// Its text: one that the conventions know, or `_OTHER`.
    pub fn as_str(self) -> &'static str {
        METHODS
            .get(usize::from(self.0))
            .copied()
            .unwrap_or("_OTHER")
    }

    /// Whether the conventions know it.
    pub fn is_known(self) -> bool {
        usize::from(self.0) < METHODS.len()
    }
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ending {
    /// Its method.
    pub method: MethodName,
    /// The status that the caller saw, where there was an answer.
    pub status: Option<u16>,
    /// The target's status.
    pub upstream_status: Option<u16>,
    /// Its code.
    pub code: Code,
}

impl Ending {
    /// How the request of a finished record ended.
    pub fn of(record: &Record) -> Self {
        Self {
            method: MethodName::of(&record.method),
            status: record.status,
            upstream_status: record.upstream_status,
            // A record's code is always one of them.
            code: Code::named(&record.code).unwrap_or(Code::InternalError),
        }
    }

    /// `error.type` of the request: 4xx are the caller's and no error of ours, but for an answer
    /// that broke off.
    pub fn error(&self) -> Option<ErrorType> {
        match self.status {
            Some(status) if status < 500 => {
                is_broken(status, self.code).then_some(ErrorType::Code(self.code))
            }
            Some(status) if self.upstream_status == Some(status) => Some(ErrorType::Status),
            _ => Some(ErrorType::Code(self.code)),
        }
    }

    fn key(&self) -> Key {
        let error = match self.error() {
            None => 0,
            Some(ErrorType::Status) => 1,
            Some(ErrorType::Code(code)) => {
                let at = Code::ALL.iter().position(|known| *known == code);
                at.map_or(0, |at| at + 2)
            }
        };
        Key::new(self.method, self.status, error)
    }
}

/// What `error.type` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorType {
    /// The status itself.
    Status,
    /// What the gateway says of it.
    Code(Code),
}

impl ErrorType {
    /// Its text, of an ending with this status.
    pub fn text(self, status: Option<u16>) -> LabelValue {
        match (self, status) {
            (Self::Code(code), _) => code.as_str().into(),
            (Self::Status, status) => status.unwrap_or_default().to_string().into(),
        }
    }
}

/// Method (5 bits), kind of error (9 bits) and status (10 bits), never zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Key(u32);

impl Key {
    fn new(method: MethodName, status: Option<u16>, error: usize) -> Self {
        let status = u32::from(status.unwrap_or_default()) & 0x3ff;
        Self(1 << 31 | u32::from(method.0) << 24 | (error as u32 & 0x1ff) << 12 | status)
    }

    fn method(self) -> MethodName {
        MethodName((self.0 >> 24 & 0x1f) as u8)
    }

    fn error(self) -> usize {
        (self.0 >> 12 & 0x1ff) as usize
    }

    fn status(self) -> Option<u16> {
        Some((self.0 & 0x3ff) as u16).filter(|status| *status > 0)
    }
}

#[derive(Debug, Default)]
struct Slot {
    /// Zero while it is free.
    key: AtomicU32,
    histogram: OnceLock<Box<Histogram>>,
}

/// Histograms by key, at most `N` and one that the rest shares.
#[derive(Debug)]
struct Table<const N: usize> {
    slots: [Slot; N],
    overflow: OnceLock<Box<Histogram>>,
}

impl<const N: usize> Default for Table<N> {
    fn default() -> Self {
        Self {
            slots: std::array::from_fn(|_| Slot::default()),
            overflow: OnceLock::new(),
        }
    }
}

fn made(place: &OnceLock<Box<Histogram>>) -> &Histogram {
    place.get_or_init(|| Box::new(Histogram::new(REQUEST_US)))
}

impl<const N: usize> Table<N> {
    fn at(&self, key: Key) -> &Histogram {
        for slot in &self.slots {
            let mut found = slot.key.load(Ordering::Relaxed);
            if found == 0 {
                let order = Ordering::Relaxed;
                let taken = slot.key.compare_exchange(0, key.0, order, order);
                found = taken.err().unwrap_or(key.0);
            }
            if found == key.0 {
                return made(&slot.histogram);
            }
        }
        made(&self.overflow)
    }

    /// Adds all of them to a family; `labels` are those of a key.
    fn add_to(&self, family: &mut Family, labels: impl Fn(Option<Key>) -> Vec<Label>) {
        for slot in &self.slots {
            if let Some(histogram) = slot.histogram.get() {
                let key = Key(slot.key.load(Ordering::Relaxed));
                family.add(labels(Some(key)), histogram.durations());
            }
        }
        if let Some(histogram) = self.overflow.get() {
            family.add(labels(None), histogram.durations());
        }
    }
}

/// What a series beyond the most is labelled with (specification of the metrics SDK).
pub(super) const OVERFLOW: Label = ("otel.metric.overflow", LabelValue::Flag(true));

fn common(key: Option<Key>) -> Vec<Label> {
    let Some(key) = key else {
        return vec![OVERFLOW];
    };
    let mut labels = vec![("http.request.method", key.method().as_str().into())];
    labels.extend(
        key.status()
            .map(|status| ("http.response.status_code", status.into())),
    );
    labels
}

/// Durations of requests at the gateway.
#[derive(Debug, Default)]
pub(super) struct ServerDurations(Table<128>);

impl ServerDurations {
    pub(super) fn observe(&self, ending: &Ending, us: u64) {
        self.0.at(ending.key()).observe(us);
    }

    pub(super) fn exemplify(&self, ending: &Ending, exemplar: Exemplar) {
        self.0.at(ending.key()).exemplify(exemplar);
    }

    pub(super) fn add_to(&self, family: &mut Family, scheme: &'static str) {
        self.0.add_to(family, |key| {
            let mut labels = common(key);
            labels.push(("url.scheme", scheme.into()));
            let error = key.and_then(|key| match key.error() {
                0 => None,
                1 => Some(ErrorType::Status.text(key.status())),
                at => Code::ALL.get(at - 2).map(|code| code.as_str().into()),
            });
            labels.extend(error.map(|text| ("error.type", text)));
            labels
        });
    }
}

/// Durations of attempts at one address.
#[derive(Debug, Default)]
pub(super) struct AttemptDurations(Table<16>);

impl AttemptDurations {
    fn key(method: MethodName, attempt: &Attempt) -> Key {
        let error = match (attempt.status, attempt.failure) {
            (Some(400..), _) => 1,
            (Some(_), _) => 0,
            (None, failure) => failure.unwrap_or(AttemptFailure::Other) as usize + 2,
        };
        Key::new(method, attempt.status, error)
    }

    pub(super) fn observe(&self, method: MethodName, attempt: &Attempt) {
        self.0
            .at(Self::key(method, attempt))
            .observe(attempt.took_us());
    }

    pub(super) fn exemplify(&self, method: MethodName, attempt: &Attempt, exemplar: Exemplar) {
        self.0.at(Self::key(method, attempt)).exemplify(exemplar);
    }

    pub(super) fn add_to(&self, family: &mut Family, address: &[Label]) {
        self.0.add_to(family, |key| {
            let mut labels = common(key);
            let given = address.iter().filter(|given| !labels.contains(given));
            labels.extend(given.cloned().collect::<Vec<_>>());
            let error = key.and_then(|key| match key.error() {
                0 => None,
                1 => Some(ErrorType::Status.text(key.status())),
                at => AttemptFailure::ALL
                    .get(at - 2)
                    .map(|why| why.as_str().into()),
            });
            labels.extend(error.map(|text| ("error.type", text)));
            labels
        });
    }
}

#[cfg(test)]
mod tests {
    use proto::exposition::Families;
    use proto::exposition::text::Form;

    use super::*;

    fn text(durations: &ServerDurations) -> String {
        let mut families = Families::default();
        let family = families.histogram("http_server_request_duration_seconds", "");
        durations.add_to(family, "https");
        families.text(Form::Prometheus)
    }

    #[test]
    fn endings_are_told_apart_as_the_conventions_say() {
        let durations = ServerDurations::default();
        for (method, status, upstream_status, code, labels) in [
            (
                "GET",
                Some(200),
                Some(200),
                Code::AccessGranted,
                "http_request_method=\"GET\",http_response_status_code=\"200\",url_scheme=\"https\"",
            ),
            (
                "BREW",
                Some(429),
                None,
                Code::RateLimited,
                "http_request_method=\"_OTHER\",http_response_status_code=\"429\",url_scheme=\"https\"",
            ),
            (
                "GET",
                Some(503),
                Some(503),
                Code::AccessGranted,
                "http_request_method=\"GET\",http_response_status_code=\"503\",url_scheme=\"https\",\
              error_type=\"503\"",
            ),
            (
                "GET",
                Some(504),
                None,
                Code::UpstreamTimeout,
                "http_request_method=\"GET\",http_response_status_code=\"504\",url_scheme=\"https\",\
              error_type=\"upstream-timeout\"",
            ),
            (
                "GET",
                Some(200),
                Some(200),
                Code::UpstreamUnreachable,
                "http_request_method=\"GET\",http_response_status_code=\"200\",url_scheme=\"https\",\
              error_type=\"upstream-unreachable\"",
            ),
            (
                "PUT",
                Some(200),
                Some(200),
                Code::ClientAborted,
                "http_request_method=\"PUT\",http_response_status_code=\"200\",url_scheme=\"https\"",
            ),
            (
                "GET",
                None,
                Some(200),
                Code::ClientAborted,
                "http_request_method=\"GET\",url_scheme=\"https\",error_type=\"client-aborted\"",
            ),
        ] {
            let method = MethodName::of(method);
            let ending = Ending {
                method,
                status,
                upstream_status,
                code,
            };
            durations.observe(&ending, 1);
            durations.observe(&ending, 1);
            let line = format!("http_server_request_duration_seconds_count{{{labels}}} 2");
            let text = text(&durations);
            assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
        }
    }

    #[test]
    fn whatever_targets_answer_the_number_of_series_is_bounded() {
        let durations = ServerDurations::default();
        let attempts = AttemptDurations::default();
        for n in 0..100_000_u32 {
            let status = Some((100 + n % 900) as u16);
            let method = MethodName::of(&format!("METHOD{n}"));
            let code = Code::AccessGranted;
            durations.observe(
                &Ending {
                    method,
                    status,
                    upstream_status: status,
                    code,
                },
                1,
            );
            let attempt = Attempt {
                started_us: 0,
                connect_us: 0,
                wait_us: 1,
                reused: false,
                status,
                failure: None,
            };
            attempts.observe(method, &attempt);
        }
        let text = text(&durations);
        let series = || text.lines().filter(|line| line.contains("_count{"));
        assert_eq!(series().count(), 129);
        let all = series().filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok());
        assert_eq!(all.sum::<u64>(), 100_000);
        assert!(text.contains("_count{otel_metric_overflow=\"true\",url_scheme=\"https\"}"));
        let mut families = Families::default();
        attempts.add_to(families.histogram("x_seconds", ""), &[]);
        assert_eq!(families.iter().next().unwrap().points.len(), 17);
    }

    #[test]
    fn every_key_says_what_it_was_made_of() {
        for (method, status, error) in [
            ("GET", Some(999), 1),
            ("X", None, 300),
            ("TRACE", Some(100), 0),
        ] {
            let method = MethodName::of(method);
            let key = Key::new(method, status, error);
            assert_eq!(
                (key.method(), key.status(), key.error()),
                (method, status, error)
            );
        }
    }
}
