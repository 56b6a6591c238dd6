//! How a credential was used of late: told by the answer that revokes it, and on its own, for what
//! was rotated or deleted.
//!
//! Whoever ends a credential must not wait for records: the store has [`WAIT_MAX`], then the use is
//! unknown.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use proto::id::{CredentialId, OrgId};
use proto::org::Role;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::answer::Answer;
use super::call::OrgCall;
use super::error::Refusal;
use crate::records::Records;
use crate::records::credential_use::{CredentialUse, SOURCES_MAX};
use crate::route::{Gives, Need, Route, Verb};

/// How long an answer waits for records.
const WAIT_MAX: Duration = Duration::from_secs(2);
/// Questions that are answered at one time, those that nobody waits for any more among them.
static TURNS: Semaphore = Semaphore::const_new(4);

/// Rows of the routing table.
pub fn routes() -> Vec<Route> {
    vec![
        Route::org(
            Verb::Get,
            "/orgs/{org}/credentials/{id}/use",
            (
                "get_credential_use",
                "See when, how often and from where a credential was used of late",
            ),
            Need::Role(Role::Viewer),
            get,
        )
        .gives(Gives::One("CredentialUse")),
    ]
}

async fn get(call: OrgCall) -> Result<Answer, Refusal> {
    // One that was deleted may have records still; of an id that never was there are none.
    let credential: CredentialId = call.request.id("id")?;
    let found = told(&call.control.records, (call.org_id(), credential), WAIT_MAX).await;
    let mut shown = json!({ "credential": credential });
    add(&mut shown, found);
    Ok(Answer::json(shown))
}

/// Adds to an answer how a credential of an organisation was used; waits for that a little.
pub async fn tell(shown: &mut Value, records: &Arc<Records>, of: (OrgId, CredentialId)) {
    add(shown, told(records, of, WAIT_MAX).await);
}

/// What the records tell, or why they tell nothing.
async fn told(
    records: &Arc<Records>,
    (org, credential): (OrgId, CredentialId),
    wait_max: Duration,
) -> Result<CredentialUse, &'static str> {
    let asked = async {
        let turn = TURNS.acquire().await.ok();
        let records = records.clone();
        tokio::task::spawn_blocking(move || {
            let _turn = turn;
            records.credential_use(org, credential, Timestamp::now().as_microsecond())
        })
        .await
    };
    match tokio::time::timeout(wait_max, asked).await {
        Err(_) => Err("the records store did not answer in time"),
        Ok(Ok(Ok(found))) => Ok(found),
        Ok(Ok(Err(error))) => {
            // What the store says is the operator's to know.
            tracing::warn!(%org, %credential, "the use of {credential} is not known: {error}");
            Err("the records store did not answer; the log of this control plane says why")
        }
        Ok(Err(error)) => {
            tracing::warn!(%org, %credential, "reading the use of {credential} broke off: {error}");
            Err("reading records broke off; the log of this control plane says why")
        }
    }
}

fn add(shown: &mut Value, found: Result<CredentialUse, &'static str>) {
    let at = |us: i64| Timestamp::from_microsecond(us).ok();
    let (found, unknown) = match found {
        Ok(found) => (Some(found), None),
        Err(why) => (None, Some(why)),
    };
    let found = found.as_ref();
    shown["last_used_at"] = json!(found.and_then(|found| found.last_used_us).and_then(at));
    shown["used_24h"] = json!(found.map(|found| found.used_24h));
    shown["sources"] = json!(found.map(|found| &found.sources));
    shown["sources_cut"] = json!(found.map(|found| found.sources_cut));
    shown["use_complete"] = json!(found.map(|found| found.complete));
    shown["use_unknown"] = json!(unknown);
}

/// What is told, as properties of a schema.
pub fn properties() -> Value {
    json!({
        "last_used_at": {"type": ["string", "null"], "format": "date-time",
            "description": "When the newest request with it began of which this region has a \
                record"},
        "used_24h": {"type": ["integer", "null"],
            "description": "Requests with it in the last 24 hours, in this region"},
        "sources": {"type": ["array", "null"], "items": {"type": "string"},
            "description": format!("The different addresses that these came from, as records keep \
                them, most requests first; at most {SOURCES_MAX}")},
        "sources_cut": {"type": ["boolean", "null"], "description": "Whether there are more"},
        "use_complete": {"type": ["boolean", "null"],
            "description": "Whether all of the day was read; if not, there may be more of all"},
        "use_unknown": {"type": ["string", "null"],
            "description": "Why nothing is known of its use; the fields of it are null then"}
    })
}

/// The schema of the answer.
pub fn schema() -> Value {
    let mut properties = properties();
    properties["credential"] = json!({"type": "string"});
    json!({"type": "object", "properties": properties})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[actix_web::test]
    async fn a_store_that_does_not_answer_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let records = Arc::new(Records::open(&dir.path().join("records.db")).unwrap());
        let of = (OrgId::from_bits(1), CredentialId::from_bits(2));
        let mut shown = json!({"credential": of.1});
        add(&mut shown, told(&records, of, Duration::MAX).await);
        let none = json!({
            "credential": of.1, "last_used_at": null, "used_24h": 0, "sources": [],
            "sources_cut": false, "use_complete": true, "use_unknown": null,
        });
        assert_eq!(shown, none);
        let mut shown = json!({});
        // All turns are taken by questions that never end.
        let _turns = TURNS.acquire_many(4).await.unwrap();
        add(&mut shown, told(&records, of, Duration::ZERO).await);
        for field in [
            "last_used_at",
            "used_24h",
            "sources",
            "sources_cut",
            "use_complete",
        ] {
            assert_eq!(shown[field], Value::Null, "{field}");
        }
        assert!(shown["use_unknown"].is_string());
    }
}
