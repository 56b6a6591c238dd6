//! Records of requests: found by proxy, credential, status, code and time; newest first.

use jiff::Timestamp;
use proto::id::RequestId;
use proto::record::Record;
use serde_json::{Value, json};

use super::answer::Answer;
use super::call::{OrgCall, Query};
use super::error::{Code, Refusal};
use super::page;
use crate::records::{RecordFilter, Records, RecordsError};
use crate::route::{Gives, Need, Parameter, Route, Verb};
use proto::org::Role;

const PARAMETERS: &[Parameter] = &[
    ("proxy", "Id of the proxy that was called"),
    ("credential", "Id of a credential on either side"),
    ("status", "A status such as `429`, or a class such as `4xx`"),
    ("code", "The outcome, such as `proxy-access-granted`"),
    ("from", "Started at or after this instant (RFC 3339)"),
    ("to", "Started before this instant (RFC 3339)"),
];

/// Rows of the routing table.
pub fn routes() -> Vec<Route> {
    let viewer = Need::Role(Role::Viewer);
    vec![
        Route::org(
            Verb::Get,
            "/orgs/{org}/records",
            ("list_records", "List requests, newest first"),
            viewer,
            list,
        )
        .gives(Gives::List("Record"))
        .parameters(PARAMETERS),
        Route::org(
            Verb::Get,
            "/orgs/{org}/records/{id}",
            ("get_record", "Read the record of one request"),
            viewer,
            get,
        )
        .gives(Gives::One("Record")),
    ]
}

async fn list(call: OrgCall) -> Result<Answer, Refusal> {
    let page = call.request.page()?;
    let mut filter = filter(&call.request.query)?;
    if let Some(after) = &page.after {
        let cursor = after.parse().map_err(|()| {
            Refusal::parameter(
                "cursor",
                "is not a `next_cursor` of this list; start without it",
            )
        })?;
        filter.after = Some(cursor);
    }
    let org = call.org_id();
    let (records, next) =
        blocking(&call, move |records| records.list(org, &filter, page.limit)).await?;
    let items = records.iter().map(show).collect();
    Ok(Answer::json(page::page(
        items,
        next.map(|cursor| cursor.to_string()),
    )))
}

async fn get(call: OrgCall) -> Result<Answer, Refusal> {
    let id: RequestId = call.request.id("id")?;
    let org = call.org_id();
    let record = blocking(&call, move |records| records.get(org, id)).await?;
    record
        .map(|record| Answer::json(show(&record)))
        .ok_or_else(Refusal::not_found)
}

fn filter(query: &Query) -> Result<RecordFilter, Refusal> {
    let instant = |name: &str| {
        let time: Option<Timestamp> =
            query.parsed(name, "an instant such as 2026-11-25T10:00:00Z")?;
        Ok::<_, Refusal>(time.map(Timestamp::as_microsecond))
    };
    Ok(RecordFilter {
        proxy: query.parsed("proxy", "the id of a proxy, `prx_…`")?,
        credential: query.parsed("credential", "the id of a credential, `crd_…`")?,
        status: query.parsed("status", "a status such as 429, or a class such as 4xx")?,
        code: query.get("code").map(str::to_owned),
        from_us: instant("from")?,
        to_us: instant("to")?,
        after: None,
    })
}

/// A record as the API shows it: with an id like every other object, and its time in words.
pub fn show(record: &Record) -> Value {
    // A record of plain fields always serialises.
    let mut shown = serde_json::to_value(record).unwrap_or_default();
    shown["id"] = json!(record.request_id);
    shown["started_at"] = json!(Timestamp::from_microsecond(record.started_at_us).ok());
    shown
}

/// Runs a call of the records store on a thread that may block.
///
/// # Errors
/// The store failed.
pub async fn blocking<T: Send + 'static>(
    call: &OrgCall,
    run: impl FnOnce(&Records) -> Result<T, RecordsError> + Send + 'static,
) -> Result<T, Refusal> {
    let records = call.control.records.clone();
    let failed = |detail: String| Refusal::new(Code::Internal, detail);
    tokio::task::spawn_blocking(move || run(&records))
        .await
        .map_err(|error| failed(format!("reading records broke off: {error}")))?
        .map_err(|error| failed(error.to_string()))
}
