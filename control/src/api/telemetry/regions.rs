//! Counts of several regions together. Each tells its tallies with their sketches, which are
//! merged here; quantiles are taken of the whole.

use futures_util::future::join_all;
use serde_json::{Value, json};

use super::{Names, name, show};
use crate::api::answer::Answer;
use crate::api::call::OrgCall;
use crate::api::error::{Code, Refusal};
use crate::api::records::{blocking, filter};
use crate::records::aggregate::{Aggregates, Question};
use crate::records::carried::Counts;
use crate::records::tally::Dimension;
use crate::regions::ask::{self, Wanted};
use crate::regions::missing::{self, Missing, Reason};

/// What a control plane asks another for: tallies in place of what is shown of them. Earlier
/// releases answer with what they show.
const TALLIES: &str = "application/vnd.requestrocket.tallies.v1+json";
/// Tells such an answer from any other.
const MARK: &str = "tallies";

/// Whether a call asks for tallies.
pub(super) fn asks(call: &OrgCall) -> bool {
    call.request.accept.as_deref() == Some(TALLIES)
}

/// The answer to a call that asks for tallies.
///
/// # Errors
/// Putting it together broke off.
pub(super) async fn tell(
    call: &OrgCall,
    question: &Question,
    found: Aggregates,
) -> Result<Value, Refusal> {
    let names = found.groups.iter();
    let names = names.filter_map(|group| {
        let name = name(call, question.by, &group.value)?;
        Some((group.value.clone(), name))
    });
    let names: Names = names.collect();
    let spans = spans(question);
    let asked = question.clone();
    let tallies = aside(move || Counts::of(&asked, found).to_json()).await?;
    Ok(json!({MARK: tallies, "spans": spans, "names": names}))
}

/// Works through many tallies on a thread that may take its time.
async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Refusal> {
    let worked = tokio::task::spawn_blocking(work).await;
    worked.map_err(|error| {
        let detail = format!("putting counts together broke off: {error}");
        Refusal::new(Code::Internal, detail)
    })
}

/// The spans of time that are counted, which must be the same everywhere.
fn spans(question: &Question) -> Value {
    json!([question.from_s, question.to_s, question.bucket_s])
}

/// The answer of these regions together.
///
/// # Errors
/// Nobody answered, or too much is asked at once.
pub(super) async fn together(
    call: &OrgCall,
    wanted: &Wanted,
    question: &Question,
) -> Result<Answer, Refusal> {
    let turn = ask::turn(call, wanted).await?;
    let wider = question.wider();
    let query = passed_on(call, &wider)?;
    let peers = wanted.peers.iter();
    let peers = join_all(peers.map(|region| of_peer(call, region, &query, &wider)));
    let own = async {
        let region = wanted.own.clone()?;
        let asked = wider.clone();
        let held = turn.clone();
        let counted = blocking(call, move |records| {
            // Reading goes on where nobody waits for it any more.
            let _held = held;
            let found = records.aggregate(&asked)?;
            Ok(located(&asked, Counts::of(&asked, found), &region))
        });
        let counts = ask::own(wanted, counted).await;
        Some(counts.map(|counts| (counts, Names::new())))
    };
    let (own, peers) = tokio::join!(own, peers);
    let found = ask::gathered(wanted, own, peers)?;
    let (counts, names): (Vec<Counts>, Vec<Names>) = found.parts.into_iter().unzip();
    let names = names.into_iter().flatten().collect();
    let is_approximate = counts.len() > 1 && counts.iter().any(Counts::has_rest);
    let asked = question.clone();
    let all = aside(move || asked.together(counts)).await?;
    let mut shown = show(call, question, &all, &names);
    shown["approximate"] = json!(is_approximate);
    missing::say(&mut shown, &found.answered, &found.missing);
    Ok(Answer::json(shown))
}

/// The query that other regions are asked.
fn passed_on(call: &OrgCall, wider: &Question) -> Result<Vec<(String, String)>, Refusal> {
    let mut filter = filter::filter(call)?;
    let second = |at_s: i64| at_s.saturating_mul(1_000_000);
    filter.from_us = Some(second(wider.from_s));
    // The end of the last span lies behind it: the instant before is in it.
    filter.to_us = Some(second(wider.to_s) - 1);
    let mut query = ask::conditions(call, &filter);
    query.retain(|(name, _)| name != "groups");
    query.push(("groups".into(), wider.limit.to_string()));
    Ok(query)
}

async fn of_peer(
    call: &OrgCall,
    region: &str,
    query: &[(String, String)],
    wider: &Question,
) -> Result<(Counts, Names), Missing> {
    let mut found = ask::ask(call, region, ("/telemetry", query), TALLIES).await?;
    let Some(told) = found.get_mut(MARK).map(Value::take) else {
        let detail = "its control plane is of an earlier release, which does not tell what \
                      counts of several regions are made of; update it";
        return Err(Missing::new(region, Reason::TooOld, detail));
    };
    if found.get("spans") != Some(&spans(wider)) {
        let detail = "its control plane counts other spans of time, of another release";
        return Err(Missing::new(region, Reason::TooOld, detail));
    }
    let names = found.get("names").cloned().unwrap_or_default();
    let names = serde_json::from_value(names).unwrap_or_default();
    let (asked, at) = (wider.clone(), region.to_owned());
    let counts = aside(move || {
        let counts = Counts::from_json(&asked, &told)?;
        Some(located(&asked, counts, &at))
    });
    let counts = counts.await.ok().flatten();
    let counts = counts.ok_or_else(|| Missing::unreadable(region))?;
    Ok((counts, names))
}

/// Two regions may each have a node of one name.
fn located(question: &Question, counts: Counts, region: &str) -> Counts {
    match question.by {
        Dimension::Node => counts.within(region),
        _ => counts,
    }
}
