//! Records of several regions: one list of all, and one record wherever it is.

use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use proto::id::RequestId;
use serde_json::Value;

use super::{Form, blocking, filter, show};
use crate::api::answer::Answer;
use crate::api::call::OrgCall;
use crate::api::error::{Code, Refusal};
use crate::api::page::{self, PageRequest};
use crate::records::RecordCursor;
use crate::records::RecordFilter;
use crate::records::places::{Part, Places};
use crate::regions::ask::{self, Turn, Wanted};
use crate::regions::missing::{self, Missing, Reason};

/// Longest cursor that is looked at, in bytes: a place for each region.
const CURSOR_BYTES_MAX: usize = 16 * 1024;
/// What other regions are to answer with.
const JSON: &str = "application/json";

/// A page of the records of these regions, newest first.
pub(super) async fn list(call: &OrgCall, wanted: &Wanted) -> Result<Answer, Refusal> {
    let query = &call.request.query;
    let limit = PageRequest::parse(query.get("limit"), None)?.limit;
    let filter = filter::filter(call)?;
    let places = places(query.get("cursor"), wanted)?;
    let turn = ask::turn(call, wanted).await?;
    let read = read(call, wanted, (&filter, limit), places, turn).await?;
    let next = read.next.map(|places| places.to_string());
    let mut shown = page::page(read.items, next);
    missing::say(&mut shown, &read.answered, &read.missing);
    Ok(Answer::json(shown))
}

/// Where each region is read on.
fn places(cursor: Option<&str>, wanted: &Wanted) -> Result<Places, Refusal> {
    let Some(cursor) = cursor else {
        return Ok(Places::default());
    };
    let places = page::decode_within(cursor, CURSOR_BYTES_MAX)?;
    let places: Option<Places> = places.parse().ok();
    let is_asked = |region: &str| wanted.names().any(|name| name == region);
    let places = places.filter(|places| places.regions().all(is_asked));
    places.ok_or_else(|| {
        let detail = "is not a `next_cursor` of a list of these regions; start without it";
        Refusal::parameter("cursor", detail)
    })
}

/// A page before it is shown.
pub(super) struct Page {
    /// The records, newest first.
    pub(super) items: Vec<Value>,
    /// Where the next page begins, where one follows.
    pub(super) next: Option<Places>,
    /// The regions that have answered.
    pub(super) answered: Vec<String>,
    /// Those that have not.
    pub(super) missing: Vec<Missing>,
}

/// Asks all regions at once of which more may follow.
///
/// # Errors
/// Nobody answered.
pub(super) async fn read(
    call: &OrgCall,
    wanted: &Wanted,
    (filter, limit): (&RecordFilter, usize),
    places: Places,
    turn: Option<Turn>,
) -> Result<Page, Refusal> {
    let conditions = ask::conditions(call, filter);
    let goes_on = |region: &&String| !places.is_at_end(region);
    let peers = wanted.peers.iter().filter(goes_on).map(|region| {
        let place = (places.after(region), limit);
        of_peer(call, region, &conditions, place)
    });
    let own = async {
        let region = wanted.own.as_ref().filter(goes_on)?;
        let asked = RecordFilter {
            after: places.after(region),
            ..filter.clone()
        };
        let found = of_own(call, region, (asked, limit), turn.clone());
        Some(ask::own(wanted, found).await)
    };
    let (own, others) = tokio::join!(own, join_all(peers));
    let found = ask::gathered(wanted, own, others)?;
    let (items, next) = places.merge(found.parts, limit);
    Ok(Page {
        items,
        next,
        answered: found.answered,
        missing: found.missing,
    })
}

async fn of_own(
    call: &OrgCall,
    region: &str,
    (filter, limit): (RecordFilter, usize),
    turn: Option<Turn>,
) -> Result<Part<Value>, Refusal> {
    let org = call.org_id();
    let listed = blocking(call, move |records| {
        // Reading goes on where nobody waits for it any more.
        let _turn = turn;
        records.list(org, &filter, limit)
    });
    let (records, next) = listed.await?;
    let items = records.iter();
    Ok(Part {
        region: region.to_owned(),
        items: items
            .map(|record| (RecordCursor::of(record), show(record)))
            .collect(),
        next,
    })
}

async fn of_peer(
    call: &OrgCall,
    region: &str,
    conditions: &[(String, String)],
    (after, limit): (Option<RecordCursor>, usize),
) -> Result<Part<Value>, Missing> {
    let mut query = conditions.to_vec();
    query.push(("limit".into(), limit.to_string()));
    if let Some(after) = after {
        query.push(("cursor".into(), page::cursor(after.to_string())));
    }
    let found = ask::ask(call, region, ("/records", &query), JSON).await?;
    part(region, found, after).ok_or_else(|| Missing::unreadable(region))
}

/// What another region listed; `None` where it is no list that goes on behind `after`.
fn part(region: &str, mut found: Value, after: Option<RecordCursor>) -> Option<Part<Value>> {
    let follows = |at: &RecordCursor| after.is_none_or(|after| *at < after);
    let next = match found.get("next_cursor")? {
        Value::Null => None,
        cursor => {
            let place = page::decode_within(cursor.as_str()?, CURSOR_BYTES_MAX).ok()?;
            Some(place.parse().ok().filter(follows)?)
        }
    };
    let items = found.get_mut("items")?.as_array_mut()?;
    let items = items.drain(..).map(|item| {
        let id = item.get("request_id")?.as_str()?.parse().ok()?;
        let at = RecordCursor::new(item.get("started_at_us")?.as_i64()?, id);
        let is_next = follows(&at) && next.is_none_or(|next| at >= next);
        is_next.then_some((at, item))
    });
    Some(Part {
        region: region.to_owned(),
        items: items.collect::<Option<_>>()?,
        next,
    })
}

/// What other regions have of a record that is not in this one, or that this one cannot look for.
///
/// # Errors
/// 404: none has it; 503: one that may have it did not answer.
pub(super) async fn elsewhere(
    call: &OrgCall,
    wanted: &Wanted,
    (id, Form(path, query)): (RequestId, Form),
    own: Option<Refusal>,
) -> Result<Answer, Refusal> {
    let _turn = ask::turn(call, wanted).await?;
    let (id, asked) = (id.to_string(), wanted.peers.iter());
    let path = format!("/records/{id}{path}");
    let own_text = |(name, value): &(&str, &str)| (name.to_string(), value.to_string());
    let query: Vec<_> = query.iter().map(own_text).collect();
    // The first that has it ends the search, however long others take.
    let asked = asked.map(|region| ask::ask(call, region, (&path, &query), JSON));
    let mut asked: FuturesUnordered<_> = asked.collect();
    let own = own.map(|refusal| Missing::new("this one", Reason::Failed, refusal.detail));
    let mut missing: Vec<Missing> = own.into_iter().collect();
    while let Some(answer) = asked.next().await {
        match answer {
            Ok(found) if is_of(&found, &id) => {
                return Ok(Answer::json(found));
            }
            Ok(_) => {
                let detail = "its answer is not that of a control plane";
                missing.push(Missing::new("one of them", Reason::Failed, detail));
            }
            Err(away) if away.reason == Reason::Refused(404) => {}
            Err(away) => missing.push(judged(away, !query.is_empty())),
        }
    }
    match missing.is_empty() {
        true => Err(Refusal::not_found()),
        false => Err(nowhere(&missing)),
    }
}

/// Why a region is missing that was asked for a form of a record: this one knows the form, so who
/// does not is of an earlier release.
fn judged(away: Missing, names_form: bool) -> Missing {
    match away.reason {
        Reason::Refused(400) if names_form => {
            let detail = "its control plane is of an earlier release, which does not give this \
                          form of a record; update it";
            Missing::new(&away.region, Reason::TooOld, detail)
        }
        _ => away,
    }
}

/// That a record was not found while regions are missing. Who is of an earlier release will be so
/// in a moment too.
fn nowhere(missing: &[Missing]) -> Refusal {
    let each = |missing: &Missing| format!("{}: {}", missing.region, missing.detail);
    let each: Vec<String> = missing.iter().map(each).collect();
    let detail = format!(
        "it is in none of the regions that answered, and these did not: {}",
        each.join("; ")
    );
    let refusal = Refusal::new(Code::RecordsUnavailable, detail);
    match missing.iter().all(|one| one.reason == Reason::TooOld) {
        true => refusal,
        false => refusal.retry_after_s(super::RETRY_S),
    }
}

/// Whether an answer is of this request: a record or its spans, or a file, whose first span says
/// it.
fn is_of(found: &Value, id: &str) -> bool {
    let span = &found["resourceSpans"][0]["scopeSpans"][0]["spans"][0];
    let attributes = span["attributes"].as_array().into_iter().flatten();
    let mut named = attributes.filter(|one| one["key"] == "requestrocket.request.id");
    found["request_id"] == id || named.any(|one| one["value"]["stringValue"] == id)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn at(us: i64) -> RecordCursor {
        RecordCursor::new(us, RequestId::from_bits(1))
    }

    fn listed(items: &[i64], next: Option<i64>) -> Value {
        let items = items
            .iter()
            .map(|us| json!({"request_id": RequestId::from_bits(1), "started_at_us": us}));
        page::page(items.collect(), next.map(|us| at(us).to_string()))
    }

    #[test]
    fn what_another_region_lists_is_judged() {
        for (items, next, after, good) in [
            (&[9, 8][..], None, None, true),
            (&[9, 8], Some(8), None, true),
            (&[], Some(8), Some(9), true),
            // What was shown already, and a list that does not go on.
            (&[9, 8], None, Some(9), false),
            (&[], Some(9), Some(9), false),
            // What lies behind its own next page.
            (&[9, 8], Some(9), None, false),
        ] {
            let part = part("eu", listed(items, next), after.map(at));
            assert_eq!(part.is_some(), good, "{items:?} {next:?} {after:?}");
        }
        for wrong in [
            json!(null),
            json!({"items": []}),
            json!({"items": 1, "next_cursor": null}),
            json!({"items": [{}], "next_cursor": null}),
            json!({"items": [], "next_cursor": "!"}),
        ] {
            assert!(part("eu", wrong.clone(), None).is_none(), "{wrong}");
        }
    }

    #[test]
    fn a_cursor_is_of_the_regions_that_are_asked() {
        let wanted = |names: &[&str]| Wanted {
            own: None,
            peers: names.iter().map(|name| (*name).to_owned()).collect(),
        };
        let part = Part {
            region: "eu".to_owned(),
            items: vec![(at(9), ())],
            next: Some(at(9)),
        };
        let (_, next) = Places::default().merge(vec![part], 1);
        let cursor = page::cursor(next.unwrap().to_string());
        assert!(places(Some(&cursor), &wanted(&["eu", "us"])).is_ok());
        assert!(places(Some(&cursor), &wanted(&["us"])).is_err());
        // That of a list of one region, and none.
        let single = page::cursor(at(9).to_string());
        assert!(places(Some(&single), &wanted(&["eu"])).is_err());
        assert!(places(Some("!"), &wanted(&["eu"])).is_err());
    }

    #[test]
    fn an_earlier_release_is_not_asked_again_in_a_moment() {
        let refused = |status| Missing::new("us", Reason::Refused(status), "unknown parameter");
        let old = judged(refused(400), true);
        assert_eq!(old.reason, Reason::TooOld);
        assert!(old.detail.contains("of an earlier release"), "{old:?}");
        assert_eq!(judged(refused(400), false), refused(400));
        assert_eq!(judged(refused(403), true), refused(403));
        let said = nowhere(std::slice::from_ref(&old));
        assert_eq!(said.retry_after_s, None);
        assert!(said.detail.contains("us: its control plane"), "{said:?}");
        let late = Missing::new("ap", Reason::Late, "it did not answer in time");
        assert_eq!(
            nowhere(&[old, late]).retry_after_s,
            Some(super::super::RETRY_S)
        );
    }
}
