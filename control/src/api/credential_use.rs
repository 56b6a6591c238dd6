//! How a credential was used of late: told by the answer that revokes it, and on its own, for what
//! was rotated.
//!
//! Whoever ends a credential must not wait for records: the store has [`WAIT_MAX`], then what it
//! has not told is unknown. Nor for those who only ask: revocations have turns of their own.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use jiff::Timestamp;
use proto::id::{CredentialId, OrgId};
use proto::org::Role;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::time::sleep;

use super::answer::Answer;
use super::call::OrgCall;
use super::error::Refusal;
use crate::records::credential_use::{CredentialUse, LastUse, SOURCES_MAX};
use crate::records::{Records, RecordsError};
use crate::route::{Gives, Need, Route, Verb};

/// How long an answer waits for records.
const WAIT_MAX: Duration = Duration::from_secs(2);
/// Questions that are answered at one time, those that nobody waits for any more among them.
static TURNS: Semaphore = Semaphore::const_new(4);
/// The same of revocations, whose looks at the use no question takes away.
static REVOCATION_TURNS: Semaphore = Semaphore::const_new(4);

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
    let credential: CredentialId = call.request.id("id")?;
    if call.config()?.credential(credential).is_none() {
        return Err(Refusal::not_found());
    }
    let of = (call.org_id(), credential);
    let look = looking(call.control.records.clone(), of);
    let mut shown = json!({ "credential": credential });
    add(&mut shown, told(&TURNS, of, look, sleep(WAIT_MAX)).await);
    Ok(Answer::json(shown))
}

/// Adds to a revocation's answer how the credential was used; waits for that a little.
pub async fn tell(shown: &mut Value, records: &Arc<Records>, of: (OrgId, CredentialId)) {
    let look = looking(records.clone(), of);
    add(
        shown,
        told(&REVOCATION_TURNS, of, look, sleep(WAIT_MAX)).await,
    );
}

/// When a credential was used last, as soon as that is found.
type Last = OnceLock<LastUse>;

/// What is known of the use.
struct Told {
    /// Found, though the rest may not be.
    last_used_us: Option<i64>,
    /// The rest, or why it is not known.
    all: Result<CredentialUse, &'static str>,
}

/// Reads the use from the records; blocks.
fn looking(
    records: Arc<Records>,
    (org, credential): (OrgId, CredentialId),
) -> impl FnOnce(&Last) -> Result<CredentialUse, RecordsError> + Send + 'static {
    move |last| {
        let found = records.last_use(org, credential)?;
        let found = *last.get_or_init(|| found);
        records.day_of_use(org, credential, found, Timestamp::now().as_microsecond())
    }
}

/// What the look told before it was `late`, and why not all.
async fn told(
    turns: &'static Semaphore,
    (org, credential): (OrgId, CredentialId),
    look: impl FnOnce(&Last) -> Result<CredentialUse, RecordsError> + Send + 'static,
    late: impl Future<Output = ()>,
) -> Told {
    let last = Arc::new(Last::new());
    let looked = async {
        let turn = turns.acquire().await.ok();
        let last = last.clone();
        tokio::task::spawn_blocking(move || {
            let _turn = turn;
            look(&last)
        })
        .await
    };
    let found = tokio::select! {
        biased;
        looked = looked => Some(looked),
        () = late => None,
    };
    let all = match found {
        None => Err("the records store did not answer in time"),
        Some(Ok(Ok(found))) => Ok(found),
        Some(Ok(Err(error))) => {
            // What the store says is the operator's to know.
            tracing::warn!(%org, %credential, "the use of {credential} is not known: {error}");
            Err("the records store did not answer; the log of this control plane says why")
        }
        Some(Err(error)) => {
            tracing::warn!(%org, %credential, "reading the use of {credential} broke off: {error}");
            Err("reading records broke off; the log of this control plane says why")
        }
    };
    Told {
        last_used_us: last.get().and_then(|last| last.at_us),
        all,
    }
}

fn add(shown: &mut Value, told: Told) {
    let at = |us: i64| Timestamp::from_microsecond(us).ok();
    let (found, unknown) = match told.all {
        Ok(found) => (Some(found), None),
        Err(why) => (None, Some(why)),
    };
    let found = found.as_ref();
    shown["last_used_at"] = json!(told.last_used_us.and_then(at));
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
            "description": "When the newest request with it began of which this region still has \
                a record"},
        "used_24h": {"type": ["integer", "null"],
            "description": "Requests with it in the last 24 hours, in this region"},
        "sources": {"type": ["array", "null"], "items": {"type": "string"},
            "description": format!("The different addresses that these came from, as records keep \
                them, most requests first; at most {SOURCES_MAX}")},
        "sources_cut": {"type": ["boolean", "null"], "description": "Whether there are more"},
        "use_complete": {"type": ["boolean", "null"],
            "description": "Whether all records were read that are kept of the day; if not, there \
                may be more of all. Of records that retention dropped nothing is known"},
        "use_unknown": {"type": ["string", "null"],
            "description": "Why not all is known of its use; the other fields are null then, but \
                for `last_used_at` where that was found in time"}
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

    use tokio::sync::oneshot;

    const OF: (OrgId, CredentialId) = (OrgId::from_bits(1), CredentialId::from_bits(2));

    fn records() -> (tempfile::TempDir, Arc<Records>) {
        let dir = tempfile::tempdir().unwrap();
        let records = Arc::new(Records::open(&dir.path().join("records.db")).unwrap());
        (dir, records)
    }

    #[actix_web::test]
    async fn a_store_that_does_not_answer_is_not_waited_for() {
        let (_dir, records) = records();
        let mut shown = json!({"credential": OF.1});
        let never = std::future::pending::<()>;
        let look = || looking(records.clone(), OF);
        add(&mut shown, told(&TURNS, OF, look(), never()).await);
        let none = json!({
            "credential": OF.1, "last_used_at": null, "used_24h": 0, "sources": [],
            "sources_cut": false, "use_complete": true, "use_unknown": null,
        });
        assert_eq!(shown, none);
        // All turns are taken by questions that never end.
        let _turns = TURNS.acquire_many(4).await.unwrap();
        let mut shown = json!({});
        add(&mut shown, told(&TURNS, OF, look(), async {}).await);
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
        // Revocations have others.
        let mut shown = json!({});
        add(
            &mut shown,
            told(&REVOCATION_TURNS, OF, look(), never()).await,
        );
        assert_eq!(shown["used_24h"], 0, "{shown}");
    }

    #[actix_web::test]
    async fn the_last_use_is_told_though_the_count_did_not_come() {
        static ONE: Semaphore = Semaphore::const_new(1);
        let (found, is_found) = oneshot::channel();
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let look = move |last: &Last| {
            let at_us = Some(1_000_000);
            last.set(LastUse {
                at_us,
                complete: true,
            })
            .unwrap();
            found.send(()).unwrap();
            // The count ends when the answer is there.
            let _ = ended.recv();
            Ok(CredentialUse::default())
        };
        let late = async { is_found.await.unwrap() };
        let mut shown = json!({});
        add(&mut shown, told(&ONE, OF, look, late).await);
        drop(end);
        let expected = json!({
            "last_used_at": "1970-01-01T00:00:01Z", "used_24h": null, "sources": null,
            "sources_cut": null, "use_complete": null,
            "use_unknown": "the records store did not answer in time",
        });
        assert_eq!(shown, expected);
    }
}
