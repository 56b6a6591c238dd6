//! Records of requests: found by any of their fields, newest first; followed while they come;
//! taken as a file; and one of them as a trace.

pub mod filter;
mod regions;
mod stream;
pub mod trace;

use std::sync::Arc;

use jiff::Timestamp;
use proto::audit::Act;
use proto::id::RequestId;
use proto::org::Role;
use proto::record::Record;
use serde_json::{Value, json};

use super::answer::Answer;
use super::call::OrgCall;
use super::error::{Code, Refusal, broke_off};
use super::page;
use crate::records::{Records, RecordsError};
use crate::regions::ask::{self, REGIONS};
use crate::route::{Gives, Need, Parameter, Route, Verb};
use crate::trace_file;

/// When a caller may try again, in seconds.
const RETRY_S: u64 = 5;

/// How one record is looked for.
const OF_ONE: &[Parameter] = &[(
    REGIONS.0,
    "Regions that are asked where this one has it not, as in `eu,us`, or `all`",
)];

/// The forms of a trace.
const FORMAT: Parameter = (
    "format",
    "`spans` (the default): for people and dashboards; `otlp`: a file for trace viewers, an \
     `ExportTraceServiceRequest` in the JSON form of OTLP",
);

/// How the trace of one record is looked for.
const OF_TRACE: &[Parameter] = &[OF_ONE[0], FORMAT];

/// The parameters of a list of several regions.
fn parameters() -> &'static [Parameter] {
    static ALL: std::sync::OnceLock<Vec<Parameter>> = std::sync::OnceLock::new();
    ALL.get_or_init(|| {
        let own = std::iter::once(&REGIONS);
        own.chain(filter::parameters()).copied().collect()
    })
}

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
        .parameters(parameters()),
        Route::org(
            Verb::Get,
            "/orgs/{org}/records/{id}",
            ("get_record", "Read the record of one request"),
            viewer,
            get,
        )
        .gives(Gives::One("Record"))
        .parameters(OF_ONE),
        Route::org(
            Verb::Get,
            "/orgs/{org}/records/{id}/trace",
            (
                "get_record_trace",
                "Read one request as spans: stages, attempts, and what each decided",
            ),
            viewer,
            trace_of,
        )
        .gives(Gives::Either("RecordTrace", "TraceFile"))
        .parameters(OF_TRACE),
        Route::org(
            Verb::Get,
            "/orgs/{org}/records/follow",
            (
                "follow_records",
                "Follow requests as server-sent events: `record` for each, `missed` with a count \
                 where the follower was too slow. With `Last-Event-ID` (the id of the last \
                 `record`) those that began after it come first; the count is null where \
                 only the newest of them do, and where that cannot be told",
            ),
            viewer,
            stream::follow,
        )
        .gives(Gives::Stream("text/event-stream"))
        .parameters(filter::parameters()),
        Route::org(
            Verb::Get,
            "/orgs/{org}/records/export",
            (
                "export_records",
                "Take requests as a file, one JSON record on each line, newest first",
            ),
            viewer,
            stream::export,
        )
        .gives(Gives::Stream("application/x-ndjson"))
        .parameters(parameters()),
    ]
}

async fn list(call: OrgCall) -> Result<Answer, Refusal> {
    if let Some(wanted) = ask::wanted(&call)? {
        return regions::list(&call, &wanted).await;
    }
    let page = call.request.page()?;
    let mut filter = filter::filter(&call)?;
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
    let payload = |record: &Record| {
        let payload = record.payload.as_ref().filter(|_| call.role >= Role::Admin);
        payload.map(|payload| json!(payload))
    };
    // Whoever reads bodies stands in the audit before.
    let act = |record: &Record| {
        payload(record).map(|_| Act::PayloadRead {
            request_id: record.request_id,
        })
    };
    one(&call, Form("", &[]), act, |record| {
        let mut shown = show(record);
        if let Some(payload) = payload(record) {
            shown["payload"] = payload;
        }
        shown
    })
    .await
}

async fn trace_of(call: OrgCall) -> Result<Answer, Refusal> {
    match call.request.query.get(FORMAT.0) {
        None | Some("spans") => one(&call, Form("/trace", &[]), |_| None, trace::trace).await,
        Some("otlp") => {
            let config = call.config()?;
            let gateway = &call.control.settings.gateway_url;
            let scheme = gateway.split("://").next().unwrap_or_default();
            let file = |record: &Record| {
                let target = trace_file::target(&config, record);
                (call.control.trace_file)(&trace_file::Told {
                    record,
                    target,
                    scheme,
                })
            };
            one(&call, Form("/trace", &[(FORMAT.0, "otlp")]), |_| None, file).await
        }
        Some(_) => Err(Refusal::parameter(FORMAT.0, "must be `spans` or `otlp`")),
    }
}

/// What of a record is asked for: the path behind its own, and the query.
#[derive(Clone, Copy)]
pub(super) struct Form(
    pub &'static str,
    pub &'static [(&'static str, &'static str)],
);

/// What is shown of the record that the path names, or what another region shows at the same path.
async fn one(
    call: &OrgCall,
    form: Form,
    act: impl FnOnce(&Record) -> Option<Act>,
    shown: impl FnOnce(&Record) -> Value,
) -> Result<Answer, Refusal> {
    call.of_operators()?;
    let id: RequestId = call.request.id("id")?;
    let wanted = ask::wanted(call)?;
    let org = call.org_id();
    let found = blocking(call, move |records| records.get(org, id));
    let Some(wanted) = wanted else {
        let record = found.await?.ok_or_else(Refusal::not_found)?;
        return told(call, &record, act, shown).await;
    };
    let own = match ask::own(&wanted, found).await {
        Ok(Some(record)) => return told(call, &record, act, shown).await,
        Ok(None) => None,
        Err(refusal) => Some(refusal),
    };
    regions::elsewhere(call, &wanted, (id, form), own).await
}

/// A record that is here, after what the audit is to hold of it.
async fn told(
    call: &OrgCall,
    record: &Record,
    act: impl FnOnce(&Record) -> Option<Act>,
    shown: impl FnOnce(&Record) -> Value,
) -> Result<Answer, Refusal> {
    if let Some(act) = act(record) {
        call.audited(act).await?;
    }
    Ok(Answer::json(shown(record)))
}

/// A record as the API shows it: with an id like every other object, and its time in words.
/// Bodies are not for everybody who reads records.
pub fn show(record: &Record) -> Value {
    // A record of plain fields always serialises.
    let mut shown = serde_json::to_value(record).unwrap_or_default();
    if let Some(fields) = shown.as_object_mut() {
        fields.shift_remove("payload");
    }
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
    of_store(call.control.records.clone(), run).await
}

/// The same for a call that is of no organisation.
///
/// # Errors
/// The store failed.
pub async fn of_store<T: Send + 'static>(
    records: Arc<Records>,
    run: impl FnOnce(&Records) -> Result<T, RecordsError> + Send + 'static,
) -> Result<T, Refusal> {
    let ran = tokio::task::spawn_blocking(move || run(&records)).await;
    let ran = ran.map_err(|error| broke_off("reading records", &error))?;
    ran.map_err(not_answered)
}

/// The answer to a question about records that has none.
fn not_answered(error: RecordsError) -> Refusal {
    let why = match error {
        RecordsError::Unavailable(_) => "ClickHouse did not answer",
        RecordsError::Away(_) => "files of records cannot be seen",
        _ if error.is_of_disk() => "the disk of the records is full or fails",
        error => return Refusal::new(Code::Internal, error.to_string()),
    };
    // What ClickHouse says, and where files are, is the operator's to know.
    tracing::warn!("a question about records was not answered: {error}");
    let detail = format!("{why}; the log of this control plane says more");
    Refusal::new(Code::RecordsUnavailable, detail).retry_after_s(RETRY_S)
}

#[cfg(test)]
mod tests {
    use rusqlite::ffi;

    use super::*;

    #[test]
    fn a_disk_that_is_full_or_fails_is_said_to_be_and_may_do_better_later() {
        let failed = |code| {
            let error = rusqlite::Error::SqliteFailure(ffi::Error::new(code), None);
            not_answered(error.into())
        };
        for code in [
            ffi::SQLITE_FULL,
            ffi::SQLITE_IOERR,
            ffi::SQLITE_IOERR_SHMSIZE,
        ] {
            let refusal = failed(code);
            assert_eq!(refusal.code, Code::RecordsUnavailable, "{code}");
            let told = format!("{refusal:?}");
            assert!(told.contains("full or fails"), "{told}");
        }
        assert_eq!(failed(ffi::SQLITE_CORRUPT).code, Code::Internal);
    }
}
