//! Counts, sums and sketches of durations, made by ClickHouse.
//!
//! A row holds the number of its duration's bucket, so the sum of many rows' buckets *is* the
//! sketch that SQLite keeps: both stores give the same quantiles to the microsecond.

use ::clickhouse::Row;
use proto::outcome::Code;
use proto::record::BREAKING;
use serde::Deserialize;

use super::ClickHouse;
use super::search::conditions;
use super::sql::{Sql, Value};
use crate::records::RecordsError;
use crate::records::aggregate::{Aggregates, Groups, Order, Question};
use crate::records::query::RecordFilter;
use crate::records::sketch::Sketch;
use crate::records::tally::{Dimension, REFUSED, Tally};

/// Counts of durations by their bucket: a sketch.
const SKETCH: &str = "sumMap([duration_bucket], [toUInt64(1)])";

#[derive(Row, Deserialize)]
struct Largest {
    value: String,
}

#[derive(Row, Deserialize)]
struct Cell {
    shown: u8,
    value: String,
    start_s: i64,
    count: u64,
    errors: u64,
    refused: u64,
    aborted: u64,
    attempts: u64,
    request_bytes: u64,
    response_bytes: u64,
    total_us: u64,
    durations: (Vec<u16>, Vec<u64>),
    meters: (Vec<String>, Vec<u64>),
}

impl ClickHouse {
    /// Answers a question.
    pub(in crate::records) fn aggregate(
        &self,
        question: &Question,
    ) -> Result<Aggregates, RecordsError> {
        let largest: Vec<Largest> = self.ask(largest(question, question.shown()))?;
        let shown = largest.into_iter().map(|group| group.value).collect();
        let cells: Vec<Cell> = self.ask(cells(question, shown))?;
        let (mut groups, mut rest) = (Groups::new(), Groups::new());
        for cell in cells {
            let groups = if cell.shown == 1 {
                &mut groups
            } else {
                &mut rest
            };
            groups.insert((cell.value.clone(), cell.start_s), cell.tally());
        }
        Ok(question.arrange(groups, rest, question.from_s))
    }
}

impl Cell {
    fn tally(self) -> Tally {
        Tally {
            count: self.count,
            errors: self.errors,
            refused: self.refused,
            aborted: self.aborted,
            attempts: self.attempts,
            request_bytes: self.request_bytes,
            response_bytes: self.response_bytes,
            total_us: self.total_us,
            durations: Sketch::of_counts(self.durations.0.into_iter().zip(self.durations.1)),
            meters: self.meters.0.into_iter().zip(self.meters.1).collect(),
        }
    }
}

/// The largest groups.
fn largest(question: &Question, limit: usize) -> Sql {
    let order = order(question.order);
    Sql::from(
        format!(
            "SELECT {} AS value FROM requests FINAL WHERE",
            value(question.by)
        )
        .as_str(),
    )
    .then(asked(question))
    .then(Sql::new(
        &format!("GROUP BY value ORDER BY {order} DESC, value LIMIT ?"),
        [Value::Unsigned(limit as u64)],
    ))
}

/// The cells of these groups, and those of all others together.
fn cells(question: &Question, shown: Vec<String>) -> Sql {
    let start_s = match question.bucket_s {
        None => format!("toInt64({})", question.from_s),
        Some(width_s) => format!(
            "toInt64(intDiv(toUnixTimestamp64Micro(started_at), {}) * {width_s})",
            width_s.saturating_mul(1_000_000)
        ),
    };
    let refused = REFUSED.map(|code| format!("'{code}'")).join(", ");
    let (value, errors) = (value(question.by), errors());
    let cells = Sql::new(
        &format!(
            "SELECT has(?, {value}) AS shown, if(shown, {value}, '') AS value,
                {start_s} AS start_s, count() AS count, {errors} AS errors,
                countIf(code IN ({refused})) AS refused, countIf(client_aborted) AS aborted,
                sum(attempts) AS attempts, sum(request_bytes) AS request_bytes,
                sum(response_bytes) AS response_bytes, sum(total_us) AS total_us,
                {SKETCH} AS durations, sumMap(meter_ids, meter_tokens) AS meters
             FROM (SELECT * FROM requests FINAL WHERE"
        ),
        [Value::Texts(shown)],
    );
    cells
        .then(asked(question))
        .then(Sql::from(") GROUP BY shown, value, start_s"))
}

fn asked(question: &Question) -> Sql {
    let filter = RecordFilter {
        from_us: Some(question.from_s.saturating_mul(1_000_000)),
        to_us: Some(question.to_s.saturating_mul(1_000_000)),
        ..question.filter.clone()
    };
    conditions(question.org, &filter)
}

/// How many are errors, the same as [`proto::record::is_error`] says.
fn errors() -> String {
    let broken = BREAKING.map(|code| format!("('{code}', {})", code.facts().status));
    let codes = BREAKING.map(|code| format!("'{code}'")).join(", ");
    let own = broken.join(", ");
    format!(
        "countIf(if(status = 0, code != '{}', status >= 500
            OR code IN ({codes}) AND (code, status) NOT IN ({own})))",
        Code::ClientAborted
    )
}

/// What groups are sorted by, the same as [`Order`] of a tally.
fn order(order: Order) -> String {
    match order {
        Order::Count => "count()".into(),
        Order::Errors => errors(),
        Order::ErrorRate => format!("intDiv({} * 1000000, count())", errors()),
        Order::Refused => {
            let refused = REFUSED.map(|code| format!("'{code}'")).join(", ");
            format!("countIf(code IN ({refused}))")
        }
        // The bucket in which the rank of the quantile lies.
        Order::P99 => format!(
            "({SKETCH} AS sketch).1[arrayFirstIndex(
                below -> below >= greatest(ceil(count() * 0.99), 1),
                arrayCumSum(sketch.2))]"
        ),
        Order::ResponseBytes => "sum(response_bytes)".into(),
        Order::RequestBytes => "sum(request_bytes)".into(),
    }
}

/// The value of a dimension as text; empty where a record has none.
fn value(by: Dimension) -> String {
    let text = |column: &str| format!("toString({column})");
    let status = |column: &str| format!("if({column} = 0, '', toString({column}))");
    match by {
        Dimension::All => "''".into(),
        Dimension::Proxy => text("proxy_id"),
        Dimension::ProxyCredential => text("proxy_credential_id"),
        Dimension::TargetCredential => text("target_credential_id"),
        Dimension::Status => status("status"),
        Dimension::Code => text("code"),
        Dimension::Node => text("node"),
        Dimension::Version => text("config_version"),
        Dimension::Method => text("method"),
        Dimension::Path => text("path"),
        Dimension::Source => text("source"),
        Dimension::UserAgent => text("user_agent"),
        Dimension::UpstreamStatus => status("upstream_status"),
        Dimension::AuthFailure => text("auth_failure"),
    }
}
