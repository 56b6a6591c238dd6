//! What records are asked for, and the SQL that finds them. Pure.

use std::str::FromStr;

use proto::id::{CredentialId, OrgId, ProxyId, RequestId};
use proto::record::Record;
use rusqlite::types::Value;

/// Which records of an organisation; every part that is given must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecordFilter {
    /// Through this proxy.
    pub proxy: Option<ProxyId>,
    /// With this credential on either side.
    pub credential: Option<CredentialId>,
    /// The status that the caller got.
    pub status: Option<StatusFilter>,
    /// The outcome's code.
    pub code: Option<String>,
    /// Started at or after this instant, in microseconds since the Unix epoch.
    pub from_us: Option<i64>,
    /// Started before this instant.
    pub to_us: Option<i64>,
    /// Only what follows this record in the list.
    pub after: Option<RecordCursor>,
}

/// A status or a class of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatusFilter {
    first: u16,
    last: u16,
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

/// A place in the list, which runs from the newest record to the oldest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordCursor {
    started_at_us: i64,
    request_id: RequestId,
}

impl RecordCursor {
    /// The place of this record.
    pub fn of(record: &Record) -> Self {
        Self {
            started_at_us: record.started_at_us,
            request_id: record.request_id,
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

/// The statement for a filter and the values of its parameters.
pub(super) fn select(org: OrgId, filter: &RecordFilter, limit: usize) -> (String, Vec<Value>) {
    let mut values = vec![blob(org.bits())];
    let mut sql = String::from("SELECT record FROM records WHERE org_id = ?1");
    let mut and = |condition: &str, given: Vec<Value>| {
        // Each `?` of the condition is numbered, since `credential` uses one value twice.
        let first = values.len() + 1;
        sql.push_str(" AND ");
        sql.push_str(
            &condition
                .replace("?a", &format!("?{first}"))
                .replace("?b", &format!("?{}", first + 1)),
        );
        values.extend(given);
    };
    if let Some(proxy) = filter.proxy {
        and("proxy_id = ?a", vec![blob(proxy.bits())]);
    }
    if let Some(credential) = filter.credential {
        and(
            "(proxy_credential_id = ?a OR target_credential_id = ?a)",
            vec![blob(credential.bits())],
        );
    }
    if let Some(status) = filter.status {
        let range = vec![
            Value::Integer(status.first.into()),
            Value::Integer(status.last.into()),
        ];
        and("status BETWEEN ?a AND ?b", range);
    }
    if let Some(code) = &filter.code {
        and("code = ?a", vec![Value::Text(code.clone())]);
    }
    if let Some(from) = filter.from_us {
        and("started_at_us >= ?a", vec![Value::Integer(from)]);
    }
    if let Some(to) = filter.to_us {
        and("started_at_us < ?a", vec![Value::Integer(to)]);
    }
    if let Some(after) = filter.after {
        let place = vec![
            Value::Integer(after.started_at_us),
            blob(after.request_id.bits()),
        ];
        and("(started_at_us, request_id) < (?a, ?b)", place);
    }
    sql.push_str(&format!(
        " ORDER BY started_at_us DESC, request_id DESC LIMIT {limit}"
    ));
    (sql, values)
}

fn blob(bits: u128) -> Value {
    Value::Blob(bits.to_be_bytes().to_vec())
}
