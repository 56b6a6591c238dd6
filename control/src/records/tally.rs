//! What is kept of many requests together: counts, sums, and a sketch of their durations. Pure.

use std::collections::BTreeMap;

use proto::record::is_error;
use proto::wire::StoredRecord;

use super::counted::Counted;
use super::sketch::{Sketch, put, take};

/// Requests of one group in one span of time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// How many.
    pub count: u64,
    /// Of them, those that ended with a 5xx, or with an answer that broke off.
    pub errors: u64,
    /// Of them, those that rules, limits or authentication refused.
    pub refused: u64,
    /// Of them, those whose caller left early.
    pub aborted: u64,
    /// Attempts towards targets.
    pub attempts: u64,
    /// Body bytes received from callers.
    pub request_bytes: u64,
    /// Body bytes sent to callers.
    pub response_bytes: u64,
    /// Sum of their durations, in microseconds.
    pub total_us: u64,
    /// Their durations.
    pub durations: Sketch,
    /// Tokens that they have spent, by meter.
    pub meters: BTreeMap<String, u64>,
}

impl Tally {
    /// Counts a record.
    pub(super) fn add(&mut self, record: &Counted<'_>) {
        self.count += 1;
        self.errors += u64::from(is_error(record.status, record.code));
        self.refused += u64::from(REFUSED.contains(&record.code));
        self.aborted += u64::from(record.client_aborted);
        self.attempts += u64::from(record.attempts);
        self.request_bytes = self.request_bytes.saturating_add(record.request_bytes);
        self.response_bytes = self.response_bytes.saturating_add(record.response_bytes);
        self.total_us = self.total_us.saturating_add(record.total_us);
        self.durations.add(record.total_us);
        for spend in record.meters {
            self.spend(&spend.meter, spend.tokens);
        }
    }

    fn spend(&mut self, meter: &str, tokens: u64) {
        match self.meters.get_mut(meter) {
            Some(sum) => *sum = sum.saturating_add(tokens),
            None if tokens > 0 => {
                self.meters.insert(meter.to_owned(), tokens);
            }
            None => {}
        }
    }

    /// Counts what another has counted.
    pub fn merge(&mut self, other: &Self) {
        let mine = self.numbers_mut();
        for (mine, other) in mine.into_iter().zip(other.numbers()) {
            *mine = mine.saturating_add(other);
        }
        self.durations.merge(&other.durations);
        for (meter, tokens) in &other.meters {
            self.spend(meter, *tokens);
        }
    }

    fn numbers(&self) -> [u64; 8] {
        [
            self.count,
            self.errors,
            self.refused,
            self.aborted,
            self.attempts,
            self.request_bytes,
            self.response_bytes,
            self.total_us,
        ]
    }

    fn numbers_mut(&mut self) -> [&mut u64; 8] {
        [
            &mut self.count,
            &mut self.errors,
            &mut self.refused,
            &mut self.aborted,
            &mut self.attempts,
            &mut self.request_bytes,
            &mut self.response_bytes,
            &mut self.total_us,
        ]
    }

    /// Its bytes in the file.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64);
        self.numbers()
            .into_iter()
            .for_each(|number| put(&mut out, number));
        self.durations.encode(&mut out);
        for (meter, tokens) in &self.meters {
            put(&mut out, meter.len() as u64);
            out.extend_from_slice(meter.as_bytes());
            put(&mut out, *tokens);
        }
        out
    }

    /// From its bytes; `None` where they are damaged.
    pub(super) fn decode(mut bytes: &[u8]) -> Option<Self> {
        let mut tally = Self::default();
        for number in tally.numbers_mut() {
            *number = take(&mut bytes)?;
        }
        tally.durations = Sketch::decode(&mut bytes)?;
        // Tallies of files of layout 4 end here.
        while !bytes.is_empty() {
            let length = usize::try_from(take(&mut bytes)?).ok()?;
            let (meter, rest) = bytes.split_at_checked(length)?;
            bytes = rest;
            let tokens = take(&mut bytes)?;
            tally
                .meters
                .insert(str::from_utf8(meter).ok()?.to_owned(), tokens);
        }
        Some(tally)
    }
}

/// Codes of requests that rules, limits or authentication refused.
pub(super) const REFUSED: [&str; 5] = [
    "proxy-access-denied",
    "rate-limited",
    "budget-exhausted",
    "limit-unavailable",
    "proxy-inactive",
];

/// What requests are grouped by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Dimension {
    /// All together.
    All,
    /// The proxy that was called.
    Proxy,
    /// The credential that the caller proved.
    ProxyCredential,
    /// The credential that was injected.
    TargetCredential,
    /// The status that the caller got.
    Status,
    /// The outcome's code.
    Code,
    /// The node that served it.
    Node,
    /// The configuration version that decided.
    Version,
    /// The method.
    Method,
    /// The path behind the proxy.
    Path,
    /// The caller's address.
    Source,
    /// The caller's program.
    UserAgent,
    /// The target's status.
    UpstreamStatus,
    /// Why the caller was answered 401.
    AuthFailure,
}

impl Dimension {
    /// Those of which tallies are kept by the minute and hour: their values are bounded by the
    /// configuration, not by what callers send. The others are read from records.
    pub const KEPT: [Self; 8] = [
        Self::All,
        Self::Proxy,
        Self::ProxyCredential,
        Self::TargetCredential,
        Self::Status,
        Self::Code,
        Self::Node,
        Self::Version,
    ];

    /// Every dimension by its name in the API, but for [`Dimension::All`].
    pub const NAMES: [(&'static str, Self); 13] = [
        ("proxy", Self::Proxy),
        ("proxy_credential", Self::ProxyCredential),
        ("target_credential", Self::TargetCredential),
        ("status", Self::Status),
        ("code", Self::Code),
        ("node", Self::Node),
        ("version", Self::Version),
        ("method", Self::Method),
        ("path", Self::Path),
        ("source", Self::Source),
        ("user_agent", Self::UserAgent),
        ("upstream_status", Self::UpstreamStatus),
        ("auth_failure", Self::AuthFailure),
    ];

    /// Whether tallies of it are kept.
    pub fn is_kept(self) -> bool {
        Self::KEPT.contains(&self)
    }

    /// Its number in the file, which stays as it is.
    pub(super) fn number(self) -> i64 {
        self as i64
    }

    /// The value of a record; empty where it has none.
    pub fn value(self, record: &StoredRecord<'_>) -> String {
        let id =
            |id: Option<proto::id::CredentialId>| id.map_or_else(String::new, |id| id.to_string());
        let status = |status: Option<u16>| status.map_or_else(String::new, |s| s.to_string());
        match self {
            Self::All => String::new(),
            Self::Proxy => record.proxy_id().to_string(),
            Self::ProxyCredential => id(record.proxy_credential_id()),
            Self::TargetCredential => id(record.target_credential_id()),
            Self::Status => status(record.status),
            Self::Code => record.code.to_owned(),
            Self::Node => record.node.to_owned(),
            Self::Version => record.config_version.to_string(),
            Self::Method => record.method.to_owned(),
            Self::Path => record.path.to_owned(),
            Self::Source => record.source_address.unwrap_or_default().to_owned(),
            Self::UserAgent => record.user_agent.unwrap_or_default().to_owned(),
            Self::UpstreamStatus => status(record.upstream_status),
            Self::AuthFailure => record
                .auth_failure
                .map_or_else(String::new, |why| why.as_str().to_owned()),
        }
    }
}

/// Seconds of a short span.
pub const MINUTE_S: i64 = 60;
/// How long tallies by the minute are kept, in seconds: 7 days. Those by the hour are kept as long
/// as records are.
pub const MINUTES_KEPT_S: i64 = 7 * 86_400;
/// Seconds of a long span.
pub const HOUR_S: i64 = 3_600;

/// The start of the span in which an instant lies.
pub(super) fn span_start(at_us: i64, width_s: i64) -> i64 {
    at_us.div_euclid(1_000_000).div_euclid(width_s) * width_s
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_comes_back_from_its_bytes_and_damage_is_seen() {
        let mut tally = Tally {
            count: 3,
            errors: 1,
            response_bytes: u64::MAX,
            ..Tally::default()
        };
        tally.durations.add(1_000);
        let bytes = tally.encode();
        assert_eq!(Tally::decode(&bytes).as_ref(), Some(&tally));
        for at in 0..bytes.len() {
            assert_eq!(Tally::decode(&bytes[..at]), None);
        }
        assert_eq!(Tally::decode(&[&bytes[..], &[0]].concat()), None);
        tally.meters = [("mtr_1".into(), 7), ("mtr_2".into(), u64::MAX)].into();
        let metered = tally.encode();
        assert!(metered.starts_with(&bytes));
        assert_eq!(Tally::decode(&metered), Some(tally));
        for at in bytes.len() + 1..metered.len() {
            let cut = Tally::decode(&metered[..at]);
            assert!(cut.is_none_or(|cut| cut.meters.len() == 1), "{at}");
        }
    }

    #[test]
    fn spans_begin_before_what_lies_in_them() {
        for (at_us, width_s, start_s) in [
            (0, 60, 0),
            (59_999_999, 60, 0),
            (60_000_000, 60, 60),
            (-1, 60, -60),
            (7_200_000_001, 3_600, 7_200),
        ] {
            assert_eq!(span_start(at_us, width_s), start_s, "{at_us}");
        }
    }
}
