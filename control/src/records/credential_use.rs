//! How a credential was used of late, as the records of a region tell: what whoever ends it wants
//! to know.

use proto::id::{CredentialId, OrgId};

use super::aggregate::{Order, Question};
use super::tally::Dimension;
use super::{RecordFilter, Records, RecordsError};

/// The span in which requests are counted, in seconds: a day.
const SPAN_S: i64 = 86_400;
/// Most addresses of one answer.
pub const SOURCES_MAX: usize = 100;

/// How a credential, on either side, was used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CredentialUse {
    /// When the newest request with it began, in microseconds since the Unix epoch; `None` where
    /// no record is found.
    pub last_used_us: Option<i64>,
    /// Requests of the last 24 hours.
    pub used_24h: u64,
    /// The different addresses that they came from, as records keep them, those with most requests
    /// first; at most [`SOURCES_MAX`].
    pub sources: Vec<String>,
    /// Whether there are more.
    pub sources_cut: bool,
    /// Whether all was read that is kept of the day; if not, there may be more of all. Records that
    /// retention dropped are not known of.
    pub complete: bool,
}

/// The newest request with a credential.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LastUse {
    /// When it began, in microseconds since the Unix epoch; `None` where no record is found.
    pub at_us: Option<i64>,
    /// Whether all records were looked at, or one was found.
    pub complete: bool,
}

impl Records {
    /// How a credential was used up to `now_us`, in microseconds since the Unix epoch.
    ///
    /// # Errors
    /// The store failed or what it holds is damaged.
    pub fn credential_use(
        &self,
        org: OrgId,
        credential: CredentialId,
        now_us: i64,
    ) -> Result<CredentialUse, RecordsError> {
        let last = self.last_use(org, credential)?;
        self.day_of_use(org, credential, last, now_us)
    }

    /// When a credential was used last: the quick part of the answer.
    ///
    /// # Errors
    /// The store failed or what it holds is damaged.
    pub fn last_use(&self, org: OrgId, credential: CredentialId) -> Result<LastUse, RecordsError> {
        let (newest, more) = self.list(org, &with(credential), 1)?;
        let at_us = newest.first().map(|record| record.started_at_us);
        Ok(LastUse {
            at_us,
            // A search that ended early and found nothing has not seen all.
            complete: at_us.is_some() || more.is_none(),
        })
    }

    /// The rest of it: requests of the day before `now_us`.
    ///
    /// # Errors
    /// The store failed or what it holds is damaged.
    pub fn day_of_use(
        &self,
        org: OrgId,
        credential: CredentialId,
        last: LastUse,
        now_us: i64,
    ) -> Result<CredentialUse, RecordsError> {
        let to_s = now_us.div_euclid(1_000_000).saturating_add(1);
        let from_s = to_s.saturating_sub(SPAN_S);
        let found = self.aggregate(&Question {
            org,
            by: Dimension::Source,
            from_s,
            to_s,
            bucket_s: None,
            filter: with(credential),
            order: Order::Count,
            limit: SOURCES_MAX,
        })?;
        let groups = found.groups.iter().chain(&found.rest);
        let used_24h = groups.map(|group| group.total.count).sum();
        // Where records keep no address there is none to tell.
        let named = found.groups.iter().filter(|group| !group.value.is_empty());
        Ok(CredentialUse {
            last_used_us: last.at_us,
            used_24h,
            sources: named.map(|group| group.value.clone()).collect(),
            sources_cut: found.rest.is_some(),
            complete: found.complete_from_s <= from_s && last.complete,
        })
    }
}

/// Requests with this credential on either side.
fn with(credential: CredentialId) -> RecordFilter {
    RecordFilter {
        credential: Some(credential),
        ..RecordFilter::default()
    }
}
