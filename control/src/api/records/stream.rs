//! Records that are sent while they come: to whoever follows them, and as a file of lines.

use std::collections::HashSet;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::unfold;
use jiff::Timestamp;
use proto::id::RequestId;
use proto::record::Record;
use serde_json::json;

use super::{blocking, filter, regions, show};
use crate::api::answer::{Answer, Pieces};
use crate::api::call::{self, OrgCall};
use crate::api::error::{Code, Refusal, broke_off};
use crate::api::page;
use crate::metrics::Connected;
use crate::records::places::Places;
use crate::records::{Following, RecordCursor, RecordFilter, Tail};
use crate::regions::ask::{self, Wanted};
use crate::regions::missing;

/// How often a follower without records hears of us, so that both ends notice a dead connection.
const BEAT: Duration = Duration::from_secs(10);
/// Records that are read at one time for a file.
const EXPORT_PAGE: usize = 2_048;

/// Server-sent events: a `record` for each record that is stored from now on, `missed` where the
/// follower was too slow. With `Last-Event-ID` those first that began after that record.
pub async fn follow(call: OrgCall) -> Result<Answer, Refusal> {
    let filter = filter::filter(&call)?;
    // Followed first, so that nothing is lost between the two.
    let following = call
        .control
        .records
        .follow(call.org_id(), filter.clone())
        .ok_or_else(|| {
            Refusal::new(
                Code::Overloaded,
                "too many follow records here; try again later",
            )
            .retry_after_s(10)
        })?;
    let since = since(&call, filter).await;
    let follower = Follower {
        following,
        told: since.records.iter().map(|one| one.request_id).collect(),
        _counted: call.control.counters.follower(),
        call,
    };
    let first = since.events();
    let events = unfold(
        (follower, Some(first)),
        |(mut follower, first)| async move {
            let event = match first {
                Some(first) => first,
                None => follower.event().await?,
            };
            Some((Ok(event), (follower, None)))
        },
    );
    Ok(Answer::stream("text/event-stream", Pieces::new(events)))
}

/// What a follower that connects again has missed.
#[derive(Default)]
struct Since {
    /// The newest first.
    records: Vec<Record>,
    /// Whether there are older ones that are not told, or may be.
    cut: bool,
}

/// The records that began after the one that the follower got last. Where that one is not known, or
/// the store does not answer, the follower hears that it may have missed some: it goes on with what
/// comes, which no store has to be asked for.
async fn since(call: &OrgCall, filter: RecordFilter) -> Since {
    let Some(last) = call.request.last_event.as_deref() else {
        return Since::default();
    };
    let Ok(last) = last.parse::<RequestId>() else {
        return Since::of(Ok(None));
    };
    let org = call.org_id();
    let found = blocking(call, move |records| {
        let Some(last) = records.get(org, last)? else {
            return Ok(None);
        };
        let place = RecordCursor::of(&last);
        let filter = RecordFilter {
            from_us: filter.from_us.max(Some(place.started_at_us())),
            ..filter
        };
        let (mut found, next) = records.list(org, &filter, EXPORT_PAGE)?;
        found.retain(|record| RecordCursor::of(record) > place);
        Ok(Some(Since {
            records: found,
            cut: next.is_some(),
        }))
    });
    Since::of(found.await)
}

impl Since {
    /// What was found behind the last record; `None` where that one is not known.
    fn of(found: Result<Option<Self>, Refusal>) -> Self {
        match found {
            Ok(Some(since)) => since,
            Ok(None) => Self {
                cut: true,
                ..Self::default()
            },
            Err(refusal) => {
                let why = refusal.detail;
                tracing::warn!("who follows again is not told what came meanwhile: {why}");
                Self::of(Ok(None))
            }
        }
    }

    /// What the follower gets at once: that it has begun, and these.
    fn events(&self) -> Bytes {
        let mut events = b": following\n\n".to_vec();
        if self.cut {
            events.extend(missed_event(None));
        }
        let records = self.records.iter().rev();
        records.for_each(|record| events.extend(record_event(record)));
        events.into()
    }
}

/// Whoever follows.
struct Follower {
    call: OrgCall,
    following: Following,
    /// Records that were told at once, which may come once more.
    told: HashSet<RequestId>,
    _counted: Connected,
}

impl Follower {
    /// The next event; `None` when the caller may follow no more, or when this process ends:
    /// whoever follows connects again, to the next one.
    async fn event(&mut self) -> Option<Bytes> {
        loop {
            let next = tokio::select! {
                next = tokio::time::timeout(BEAT, self.following.next()) => next,
                () = self.call.control.ending() => return None,
            };
            still_allowed(&self.call).ok()?;
            return match next {
                Ok(Some(Tail::Record(record))) if self.told.remove(&record.request_id) => continue,
                Ok(Some(Tail::Record(record))) => Some(record_event(&record)),
                Ok(Some(Tail::Missed(count))) => Some(missed_event(Some(count))),
                Ok(None) => None,
                Err(_) => Some(Bytes::from_static(b": still here\n\n")),
            };
        }
    }
}

fn missed_event(count: Option<u64>) -> Bytes {
    let data = json!({"count": count});
    Bytes::from(format!("event: missed\ndata: {data}\n\n"))
}

/// Refuses a caller whose token was revoked, has ended, or lost its role here, since its answer
/// began.
fn still_allowed(call: &OrgCall) -> Result<(), Refusal> {
    let Some(caller) = call.control.anew(&call.caller, Timestamp::now()) else {
        let detail = "the token is no longer in force";
        return Err(Refusal::new(Code::Unauthenticated, detail));
    };
    let role = caller.role_in(call.org_id());
    call::of_operators(call.org_id(), role.ok_or_else(Refusal::not_found)?)
}

fn record_event(record: &Record) -> Bytes {
    let (id, shown) = (record.request_id, show(record));
    Bytes::from(format!("event: record\nid: {id}\ndata: {shown}\n\n"))
}

/// One record on each line, newest first. A failure breaks the connection off, so that a file that
/// is cut is not taken for a whole one.
pub async fn export(call: OrgCall) -> Result<Answer, Refusal> {
    if let Some(wanted) = ask::wanted(&call)? {
        return export_of(call, wanted).await;
    }
    let filter = filter::filter(&call)?;
    let lines = unfold(Some((call, filter)), |state| async move {
        let (call, mut filter) = state?;
        let (org, asked) = (call.org_id(), filter.clone());
        let reading = async {
            still_allowed(&call)?;
            blocking(&call, move |records| records.list(org, &asked, EXPORT_PAGE)).await
        };
        let read = reading.await;
        Some(match read {
            Err(refusal) => (Err(refusal), None),
            Ok((records, next)) => {
                let lines: String = records
                    .iter()
                    .map(|record| format!("{}\n", show(record)))
                    .collect();
                let state = next.map(|cursor| {
                    filter.after = Some(cursor);
                    (call, filter)
                });
                (Ok(Bytes::from(lines)), state)
            }
        })
    });
    Ok(Answer::stream("application/x-ndjson", Pieces::new(lines)))
}

/// What is left of a file of several regions.
struct Rest {
    call: OrgCall,
    wanted: Wanted,
    filter: RecordFilter,
    /// What was read and not sent, and where it goes on.
    page: Result<regions::Page, Places>,
}

/// The same of several regions. Those that are missing at the beginning are named in the head of
/// the answer, before any record; one that is missing later breaks it off.
async fn export_of(call: OrgCall, wanted: Wanted) -> Result<Answer, Refusal> {
    let filter = filter::filter(&call)?;
    let limit = page::LIMIT_MAX;
    let turn = ask::turn(&call, &wanted).await?;
    let asked = (&filter, limit);
    let first = regions::read(&call, &wanted, asked, Places::default(), turn).await?;
    let missing = missing::in_head(&first.missing);
    let rest = Rest {
        call,
        wanted: wanted.only(&first.answered),
        filter,
        page: Ok(first),
    };
    let lines = unfold(Some(rest), |rest| async move {
        let Rest {
            call,
            wanted,
            filter,
            page,
        } = rest?;
        let read = match page {
            Ok(page) => Ok(page),
            Err(places) => next_page(&call, &wanted, &filter, places).await,
        };
        Some(match read {
            Err(refusal) => (Err(refusal), None),
            Ok(page) => {
                let lines: String = page.items.iter().map(|item| format!("{item}\n")).collect();
                let rest = page.next.map(|places| Rest {
                    call,
                    wanted,
                    filter,
                    page: Err(places),
                });
                (Ok(Bytes::from(lines)), rest)
            }
        })
    });
    let answer = Answer::stream("application/x-ndjson", Pieces::new(lines));
    Ok(answer.partial(missing))
}

/// A page that all regions answered. It is read by a task of this thread, which what asks other
/// regions does not leave.
async fn next_page(
    call: &OrgCall,
    wanted: &Wanted,
    filter: &RecordFilter,
    places: Places,
) -> Result<regions::Page, Refusal> {
    still_allowed(call)?;
    let (call, wanted, filter) = (call.clone(), wanted.clone(), filter.clone());
    let reading = actix_web::rt::spawn(async move {
        let turn = ask::next_turn(&call, &wanted).await;
        let asked = (&filter, page::LIMIT_MAX);
        regions::read(&call, &wanted, asked, places, turn).await
    });
    let broken = |detail: String| Refusal::new(Code::RecordsUnavailable, detail);
    let page = reading
        .await
        .map_err(|error| broke_off("reading records", &error))??;
    match page.missing.first() {
        None => Ok(page),
        Some(missing) => Err(broken(format!(
            "region {} did not go on: {}",
            missing.region, missing.detail
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_that_does_not_answer_ends_no_follower() {
        let refusal = Refusal::new(Code::RecordsUnavailable, "not now");
        for found in [Err(refusal), Ok(None)] {
            let told = Since::of(found).events();
            let expected = ": following\n\nevent: missed\ndata: {\"count\":null}\n\n";
            assert_eq!(told, expected.as_bytes());
        }
        let all = Since::of(Ok(Some(Since::default()))).events();
        assert_eq!(all, &b": following\n\n"[..]);
    }
}
