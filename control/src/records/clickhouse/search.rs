//! Searching records in ClickHouse: each condition as SQL that means the same as
//! [`Condition::holds`](super::super::condition::Condition).

use ::clickhouse::Row;
use proto::id::{OrgId, RequestId};
use proto::record::Record;
use serde::Deserialize;

use super::ClickHouse;
use super::row::{addresses, boolean};
use super::sql::{Sql, Value};
use crate::records::RecordsError;
use crate::records::condition::{Bounds, Condition, Kind};
use crate::records::query::{RecordCursor, RecordFilter, StatusFilter};

/// The instants that a `DateTime64(6)` can have, in microseconds: the years 1900 to 2299.
const INSTANTS_US: (i64, i64) = (-2_208_988_800_000_000, 10_413_791_999_999_999);

#[derive(Row, Deserialize)]
struct Found {
    record: String,
}

#[derive(Row, Deserialize)]
struct Whole {
    record: String,
    payload: String,
}

impl Whole {
    fn record(self) -> Result<Record, RecordsError> {
        let mut record = Found {
            record: self.record,
        }
        .record()?;
        if !self.payload.is_empty() {
            let payload = serde_json::from_str(&self.payload);
            let damaged = |error| RecordsError::Damaged(format!("bodies of a record: {error}"));
            record.payload = Some(payload.map_err(damaged)?);
        }
        Ok(record)
    }
}

impl Found {
    fn record(self) -> Result<Record, RecordsError> {
        serde_json::from_str(&self.record)
            .map_err(|error| RecordsError::Damaged(format!("a record: {error}")))
    }
}

impl ClickHouse {
    /// One record of an organisation.
    pub(in crate::records) fn get(
        &self,
        org: OrgId,
        id: RequestId,
    ) -> Result<Option<Record>, RecordsError> {
        let one = Sql::new(
            "SELECT record, payload FROM requests WHERE org_id = ? AND request_id = ? LIMIT 1",
            [org.to_string().into(), id.to_string().into()],
        );
        let found: Vec<Whole> = self.ask(one)?;
        found.into_iter().next().map(Whole::record).transpose()
    }

    /// Records of an organisation, newest first, and where the next page begins.
    pub(in crate::records) fn list(
        &self,
        org: OrgId,
        filter: &RecordFilter,
        limit: usize,
    ) -> Result<(Vec<Record>, Option<RecordCursor>), RecordsError> {
        // One more than a page has tells that another page follows. Read along the sorting key,
        // so that no more is read than it takes to fill the page.
        let most = Value::Unsigned(limit as u64 + 1);
        let page = Sql::from("SELECT record FROM requests WHERE")
            .then(conditions(org, filter))
            .then(Sql::new(
                "ORDER BY started_at DESC, request_id DESC
                 LIMIT 1 BY started_at, request_id LIMIT ?",
                [most],
            ));
        let found: Vec<Found> = self.ask(page)?;
        let more = found.len() > limit;
        let records = found.into_iter().take(limit).map(Found::record);
        let records = records.collect::<Result<Vec<_>, _>>()?;
        let next = records.last().filter(|_| more).map(RecordCursor::of);
        Ok((records, next))
    }
}

/// What holds of the answers of a search.
pub(super) fn conditions(org: OrgId, filter: &RecordFilter) -> Sql {
    let mut all = vec![Sql::new("org_id = ?", [org.to_string().into()])];
    let at = |text: &str, us: i64| {
        let us = us.clamp(INSTANTS_US.0, INSTANTS_US.1);
        Sql::new(text, [us.into()])
    };
    all.extend(
        filter
            .from_us
            .map(|us| at("started_at >= fromUnixTimestamp64Micro(toInt64(?))", us)),
    );
    all.extend(
        filter
            .to_us
            .map(|us| at("started_at < fromUnixTimestamp64Micro(toInt64(?))", us)),
    );
    if let Some(after) = filter.after {
        let (us, id) = after.place();
        // The first part is what the index of the sorting key knows.
        all.push(at("started_at <= fromUnixTimestamp64Micro(toInt64(?))", us));
        let us = us.clamp(INSTANTS_US.0, INSTANTS_US.1);
        all.push(Sql::new(
            "(started_at, request_id) < (fromUnixTimestamp64Micro(toInt64(?)), ?)",
            [us.into(), id.to_string().into()],
        ));
    }
    let proxy = filter.proxy.map(|id| id.to_string().into());
    all.extend(proxy.map(|id| Sql::new("proxy_id = ?", [id])));
    if let Some(id) = filter.credential {
        let id = Value::from(id.to_string());
        let either = "(proxy_credential_id = ? OR target_credential_id = ?)";
        all.push(Sql::new(either, [id.clone(), id]));
    }
    all.extend(filter.status.map(|status| within_status("status", status)));
    let code = filter.code.as_deref();
    all.extend(code.map(|code| Sql::new("code = ?", [code.into()])));
    all.extend(filter.conditions.iter().map(condition));
    Sql::all(all)
}

fn within_status(column: &str, status: StatusFilter) -> Sql {
    let (first, last) = status.range();
    let values = [first, last].map(|status| Value::Unsigned(status.into()));
    Sql::new(&format!("{column} BETWEEN ? AND ?"), values)
}

fn condition(Condition(kind): &Condition) -> Sql {
    match kind {
        Kind::ProxyCredential(id) => same("proxy_credential_id", &credential(*id)),
        Kind::TargetCredential(id) => same("target_credential_id", &credential(*id)),
        Kind::Generation(text) => Sql::new(
            "? != '' AND ? IN (proxy_credential_generation, target_credential_generation)",
            [text.as_str().into(), text.as_str().into()],
        ),
        Kind::Version(n) => Sql::new("config_version = ?", [(*n).into()]),
        Kind::Node(text) => same("node", text),
        Kind::Region(text) => same("region", text),
        Kind::Method(text) => same("method", text),
        Kind::Path(pattern) => Sql::new("path LIKE ?", [like(pattern).into()]),
        Kind::Query(name) => holds("query_names", name),
        Kind::UpstreamStatus(status) => within_status("upstream_status", *status),
        Kind::AuthFailure(reason) => same("auth_failure", reason.as_str()),
        Kind::KeyPlace(place) => named("key_place", place),
        Kind::KeyHint(hint) => same("key_hint", hint.as_str()),
        Kind::DurationUs(bounds) => between("total_us", *bounds),
        Kind::RequestBytes(bounds) => between("request_bytes", *bounds),
        Kind::ResponseBytes(bounds) => between("response_bytes", *bounds),
        Kind::UpstreamRequestBytes(bounds) => between("upstream_request_bytes", *bounds),
        Kind::UpstreamResponseBytes(bounds) => between("upstream_response_bytes", *bounds),
        Kind::Attempts(bounds) => between("attempts", *bounds),
        Kind::Failure(reason) => holds("failures", reason.as_str()),
        Kind::LimitedBy(window) => holds("limited_by", window),
        Kind::Meter(id) => holds("refusing_meters", id),
        Kind::RefusalCause(cause) => holds("refusal_causes", cause.as_str()),
        Kind::Spent(id) => holds("meter_ids", id),
        Kind::ValueMissing(id) => holds("value_missing", id),
        Kind::DeniedBy(scope) => holds("denying_scopes", scope.as_str()),
        Kind::Rule(id) => holds("rule_ids", &id.to_string()),
        Kind::Filter(id) => holds("filter_ids", &id.to_string()),
        Kind::Source(network) => {
            let (family, first, last) = addresses(network);
            Sql::new(
                "source_family = ? AND source_first >= ? AND source_last <= ?",
                [u64::from(family).into(), first.into(), last.into()],
            )
        }
        Kind::UserAgent(part) => Sql::new(
            "user_agent != '' AND position(user_agent_lower, ?) > 0",
            [part.as_str().into()],
        ),
        Kind::UpstreamId(text) => holds("upstream_ids", text),
        Kind::TraceId(text) => same("trace_id", text),
        Kind::LeftGateway(host) => named("left_gateway", host),
        Kind::Endpoint(name) => holds("endpoints", name),
        Kind::ForwardedTo(region) => named("forwarded_to", region),
        Kind::ForwardedFrom(region) => named("forwarded_from", region),
        Kind::MethodOverridden(wanted) => same("method_overridden", boolean(*wanted)),
        Kind::ClientAborted(wanted) => yes_or_no("client_aborted", *wanted),
        Kind::Scrubbed(wanted) => yes_or_no("scrubbed > 0", *wanted),
        Kind::Scrub(state) => same("scrub", state.as_str()),
        Kind::EndedBy(stage) => same("ended_by", stage.name()),
        Kind::Event(kind) => holds("events", kind.as_str()),
    }
}

fn credential(id: u128) -> String {
    proto::id::CredentialId::from_bits(id).to_string()
}

fn same(column: &str, text: &str) -> Sql {
    Sql::new(&format!("{column} = ?"), [text.into()])
}

/// The same of what may be absent, which the table has as an empty text.
fn named(column: &str, text: &str) -> Sql {
    let both = format!("{column} != '' AND {column} = ?");
    Sql::new(&both, [text.into()])
}

fn holds(column: &str, text: &str) -> Sql {
    Sql::new(&format!("has({column}, ?)"), [text.into()])
}

fn between(column: &str, bounds: Bounds) -> Sql {
    let values = [bounds.0.into(), bounds.1.into()];
    Sql::new(&format!("{column} BETWEEN ? AND ?"), values)
}

fn yes_or_no(expression: &str, wanted: bool) -> Sql {
    let not = if wanted { "" } else { "NOT " };
    Sql::from(format!("{not}({expression})").as_str())
}

/// A pattern in which `*` stands for anything, as one of SQL.
fn like(pattern: &str) -> String {
    let mut like = String::with_capacity(pattern.len() + 8);
    for c in pattern.chars() {
        match c {
            '*' => like.push('%'),
            '%' | '_' | '\\' => like.extend(['\\', c]),
            c => like.push(c),
        }
    }
    like
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_stars_are_wild() {
        for (pattern, expected) in [
            ("/v1/*", "/v1/%"),
            ("*/a_b%*", "%/a\\_b\\%%"),
            ("a\\b", "a\\\\b"),
            ("", ""),
        ] {
            assert_eq!(like(pattern), expected, "{pattern}");
        }
    }
}
