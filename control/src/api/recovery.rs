//! Recovery of a store that was restored from an older backup, or wiped: what it lacks, and what a
//! person decides.

use std::time::Duration;

use proto::audit::Act;
use proto::checks;
use proto::problem::Problem;
use proto::store::StoreError;
use proto::tree::SYSTEM_ORG;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::answer::Answer;
use super::call::Call;
use super::error::{Code, Refusal};
use super::{page, write};
use crate::publish::{Author, RecoverError, Recovered, Recovery, Regressed, Source};
use crate::route::{Gives, Route, Takes, Verb};

/// How long the node that is asked may take to write back what it has.
const ANSWER_MAX: Duration = Duration::from_secs(45);
/// How long it is looked for what the store has lost.
const LOOK_MAX: Duration = Duration::from_secs(10);
/// Organisations that were not looked at of which the answer has the names.
const UNCHECKED_MAX: usize = 100;

/// Rows of the routing table.
pub fn routes() -> Vec<Route> {
    vec![
        Route::operator(
            Verb::Get,
            "/recovery",
            (
                "list_regressions",
                "List organisations of which the store holds less than was seen before",
            ),
            list,
        )
        .gives(Gives::List("Regression"))
        .by_local_operator(),
        Route::operator(
            Verb::Post,
            "/recovery",
            (
                "recover_store",
                "Decide what counts after the store was restored or wiped",
            ),
            recover,
        )
        .takes(Takes::Body("Recovery"))
        .gives(Gives::One("Recovered"))
        .local()
        .by_local_operator(),
    ]
}

/// The decision: one of them.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Decision {
    from_node: Option<String>,
    #[serde(default)]
    accept_store: bool,
    #[serde(default)]
    reclaim_space: bool,
}

async fn list(call: Call) -> Result<Answer, Refusal> {
    let page = call.request.page()?;
    let deadline = Instant::now() + LOOK_MAX;
    let missing = call.control.publisher.regressed_or_lost(deadline).await;
    let missing = missing.map_err(write::refusal)?;
    let items = missing.found.iter();
    let items = items.map(|found| (found.org.to_string(), regression(&call, found)));
    let mut shown = page::cut(items.collect(), &page);
    let unchecked = missing.unchecked.iter().take(UNCHECKED_MAX);
    let unchecked = unchecked.map(|(org, why)| {
        let slug = org.and_then(|org| call.control.slug_of(org));
        json!({"org": org, "slug": slug, "why": why})
    });
    shown["unchecked"] = unchecked.collect();
    shown["unchecked_count"] = missing.unchecked.len().into();
    Ok(Answer::json(shown))
}

async fn recover(call: Call) -> Result<Answer, Refusal> {
    let invalid = |detail: String| Refusal::invalid(vec![Problem::new("", "recovery", detail)]);
    let decision = serde_json::from_value(call.request.body.clone());
    let decision: Decision = decision.map_err(|error| invalid(error.to_string()))?;
    let Decision {
        from_node,
        accept_store,
        reclaim_space,
    } = decision;
    let act = Act::RecoveryDecided {
        from_node: from_node.as_deref().map(checks::printable),
        accept_store,
        reclaim_space,
    };
    let source = match (from_node, accept_store, reclaim_space) {
        (Some(node), false, false) => Source::Node(node),
        (None, true, false) => Source::Store,
        (None, false, true) => {
            let reclaimed = call.control.publisher.reclaim_space().await;
            // A full store takes no entry before; one with a member away takes it all the same.
            let told = call.audited(SYSTEM_ORG, act).await;
            reclaimed.map_err(not_reclaimed)?;
            told?;
            return Ok(Answer::json(done(&call, &Recovery::default())));
        }
        _ => {
            let one = "takes one of `from_node`, `accept_store`: true, `reclaim_space`: true";
            return Err(invalid(one.into()));
        }
    };
    call.audited(SYSTEM_ORG, act).await?;
    let author = Author {
        name: call.caller.token_id.to_string(),
        role: call.caller.token.role,
        source: call.request.source,
    };
    let deadline = Instant::now() + ANSWER_MAX;
    let recovered = call.control.publisher.recover(&source, &author, deadline);
    let recovery = recovered.await.map_err(refusal)?;
    for one in &recovery.recovered {
        call.control.see_version(one.org, one.n).await;
    }
    Ok(Answer::json(done(&call, &recovery)))
}

fn done(call: &Call, recovery: &Recovery) -> Value {
    let orgs = recovery.recovered.iter().map(|one| shown(call, one));
    json!({
        "recovered": orgs.collect::<Vec<_>>(),
        "leaves_written": recovery.leaves_written,
    })
}

/// Some of it may have been done: what is said of writes does not hold.
fn not_reclaimed(error: StoreError) -> Refusal {
    match error {
        StoreError::Full(_) | StoreError::OutcomeUnknown(_) => write::refusal(error.into()),
        StoreError::Invalid(words) => Refusal::new(Code::Conflict, words),
        StoreError::Unavailable(words) => Refusal::new(Code::StoreUnavailable, words),
        error => Refusal::new(Code::StoreUnavailable, error.to_string()),
    }
}

fn refusal(error: RecoverError) -> Refusal {
    let words = error.to_string();
    match error {
        RecoverError::Publish(error) => write::refusal(error),
        RecoverError::WriteBack(_) => Refusal::new(Code::StoreUnavailable, words),
        RecoverError::Nothing | RecoverError::Silent(_) | RecoverError::Absent(_) => {
            Refusal::new(Code::Conflict, words)
        }
    }
}

fn regression(call: &Call, found: &Regressed) -> Value {
    json!({
        "org": found.org,
        "slug": call.control.slug_of(found.org),
        "seen": found.seen,
        "stored": found.stored,
        "leaves_lost": found.leaves,
        "witness": found.witness,
    })
}

fn shown(call: &Call, one: &Recovered) -> Value {
    json!({
        "org": one.org,
        "slug": call.control.slug_of(one.org),
        "from": one.from,
        "n": one.n,
        "epoch": one.epoch.counter,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_that_gives_space_back_by_itself_is_not_called_full() {
        let refusal = not_reclaimed(StoreError::Invalid("there is nothing to do".into()));
        assert_eq!(refusal.code, Code::Conflict);
        assert_eq!(refusal.detail, "there is nothing to do");
        let full = not_reclaimed(StoreError::Full("16 GiB".into()));
        assert_eq!(full.code, Code::StoreFull);
    }
}
