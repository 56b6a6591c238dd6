//! What records are asked for, and which are an answer. Pure.

use std::collections::BTreeMap;
use std::str::FromStr;

use proto::id::{CredentialId, OrgId, ProxyId, RequestId};
use proto::record::Record;
use proto::wire::StoredRecord;

use super::condition::Condition;

/// Which records of an organisation; every part that is given must hold.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RecordFilter {
    /// Through this proxy.
    pub proxy: Option<ProxyId>,
    /// With this credential on either side.
    pub credential: Option<CredentialId>,
    /// The status that the caller got.
    pub status: Option<StatusFilter>,
    /// The outcome's code.
    pub code: Option<String>,
    /// What else must hold.
    pub conditions: Vec<Condition>,
    /// Started at or after this instant, in microseconds since the Unix epoch.
    pub from_us: Option<i64>,
    /// Started before this instant.
    pub to_us: Option<i64>,
    /// Only what follows this record in the list.
    pub after: Option<RecordCursor>,
}

impl RecordFilter {
    /// Whether records that began within these instants may be an answer.
    pub(super) fn overlaps(&self, first_us: i64, last_us: i64) -> bool {
        self.from_us.is_none_or(|from| last_us >= from)
            && self.to_us.is_none_or(|to| first_us < to)
            && self
                .after
                .is_none_or(|after| first_us <= after.started_at_us)
    }

    /// Whether a record is an answer.
    pub fn wants(&self, record: &StoredRecord<'_>) -> bool {
        let at = RecordCursor::of_stored(record);
        self.overlaps(at.started_at_us, at.started_at_us)
            && self.after.is_none_or(|after| at < after)
            && self.proxy.is_none_or(|id| record.proxy_id() == id)
            && self.status.is_none_or(|status| status.holds(record.status))
            && self.code.as_ref().is_none_or(|code| record.code == code)
            && self.credential.is_none_or(|id| {
                [record.proxy_credential_id(), record.target_credential_id()].contains(&Some(id))
            })
            && self
                .conditions
                .iter()
                .all(|condition| condition.holds(record))
    }
}

/// A status or a class of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatusFilter {
    first: u16,
    last: u16,
}

impl StatusFilter {
    /// The first and the last status that it means.
    pub(super) fn range(self) -> (u16, u16) {
        (self.first, self.last)
    }

    /// The one status that it means, unless it is a class.
    pub(super) fn exact(self) -> Option<u16> {
        (self.first == self.last).then_some(self.first)
    }

    pub(super) fn holds(self, status: Option<u16>) -> bool {
        status.is_some_and(|status| (self.first..=self.last).contains(&status))
    }
}

impl FromStr for StatusFilter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = match text.strip_suffix("xx") {
            Some(class) => class
                .parse::<u16>()
                .ok()
                .filter(|class| (1..=5).contains(class))
                .map(|class| Self {
                    first: class * 100,
                    last: class * 100 + 99,
                }),
            None => text
                .parse::<u16>()
                .ok()
                .filter(|status| (100..=599).contains(status))
                .map(|status| Self {
                    first: status,
                    last: status,
                }),
        };
        parsed.ok_or_else(|| "must be a status such as 429, or a class such as 4xx".into())
    }
}

/// A place in the list, which runs from the newest record to the oldest: the largest place first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RecordCursor {
    started_at_us: i64,
    request_id: RequestId,
}

impl RecordCursor {
    /// The first place of those that began at this instant or before.
    pub(super) fn before_all_of(started_at_us: i64) -> Self {
        Self {
            started_at_us,
            request_id: RequestId::from_bits(u128::MAX),
        }
    }

    /// The place of a request that began at this instant, in microseconds since the Unix epoch.
    pub fn new(started_at_us: i64, request_id: RequestId) -> Self {
        Self {
            started_at_us,
            request_id,
        }
    }

    /// When the request at this place began, in microseconds since the Unix epoch.
    pub fn started_at_us(&self) -> i64 {
        self.started_at_us
    }

    /// Its instant in microseconds, and the request.
    pub(super) fn place(&self) -> (i64, RequestId) {
        (self.started_at_us, self.request_id)
    }

    /// The place of this record.
    pub fn of(record: &Record) -> Self {
        Self {
            started_at_us: record.started_at_us,
            request_id: record.request_id,
        }
    }

    fn of_stored(record: &StoredRecord<'_>) -> Self {
        Self {
            started_at_us: record.started_at_us,
            request_id: record.request_id(),
        }
    }
}

impl std::fmt::Display for RecordCursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.started_at_us, self.request_id)
    }
}

impl FromStr for RecordCursor {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (time, id) = text.split_once(':').ok_or(())?;
        Ok(Self {
            started_at_us: time.parse().map_err(|_| ())?,
            request_id: id.parse().map_err(|_| ())?,
        })
    }
}

/// The newest answers so far: one more than a page has, which tells that another page follows.
#[derive(Debug)]
pub(super) struct Page {
    limit: usize,
    found: BTreeMap<RecordCursor, Record>,
}

impl Page {
    /// An empty page for at most `limit` records.
    pub(super) fn new(limit: usize) -> Self {
        Self {
            limit,
            found: BTreeMap::new(),
        }
    }

    fn is_full(&self) -> bool {
        self.found.len() > self.limit
    }

    /// Whether no record that began at `last_us` or before can still come onto the page.
    pub(super) fn is_settled(&self, last_us: i64) -> bool {
        let oldest = self.found.first_key_value();
        self.is_full() && oldest.is_some_and(|(oldest, _)| oldest.started_at_us > last_us)
    }

    /// Puts an answer in its place, unless newer ones fill the page. One that is there already
    /// came in two batches and is shown once.
    pub(super) fn offer(&mut self, org: OrgId, record: &StoredRecord<'_>) {
        let at = RecordCursor::of_stored(record);
        if self.is_full() {
            if self
                .found
                .first_key_value()
                .is_some_and(|(oldest, _)| at <= *oldest)
            {
                return;
            }
            if !self.found.contains_key(&at) {
                self.found.pop_first();
            }
        }
        self.found.insert(at, record.to_listed(org));
    }

    /// What was found before a place at which the search ends for now; the next page begins there.
    pub(super) fn finish_at(mut self, place: RecordCursor) -> (Vec<Record>, Option<RecordCursor>) {
        // Older ones may still be preceded by some that were not looked at.
        self.found = self.found.split_off(&place);
        match self.is_full() {
            true => self.finish(),
            false => (self.found.into_values().rev().collect(), Some(place)),
        }
    }

    /// The records, newest first, and where the next page begins when there is one.
    pub(super) fn finish(self) -> (Vec<Record>, Option<RecordCursor>) {
        let more = self.is_full();
        let records: Vec<_> = self.found.into_values().rev().take(self.limit).collect();
        let next = records.last().filter(|_| more).map(RecordCursor::of);
        (records, next)
    }
}
