//! `POST …/proxies/{id}/test`: a request through the whole pipeline, sent by a node.
//!
//! Control opens no secrets and dials no tenant's address. It puts the request into the store under
//! a lease, waits for the outcome that a node puts beside it, and takes all of it away.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use proto::audit::Act;
use proto::id::{CredentialId, RequestId};
use proto::keys;
use proto::object::{Body, ObjectId};
use proto::org::Role;
use proto::problem::Problem;
use proto::store::{Compare, Event, LeaseId, Op, Revision, Store, StoreError, Txn, TxnOutcome};
use proto::test_request::{TestOutcome, TestRequest};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::answer::Answer;
use super::call::OrgCall;
use super::error::{Code, Refusal};
use super::explain::described::{Described, RequestInput};
use super::objects;
use super::proxies::Proxies;
use super::{shape, write};
use crate::openapi::schemas;
use crate::publish::PublishError;
use crate::route::{Gives, Need, Route, Takes, Verb};

/// How long the request and all about it stay in the store where nobody takes it away.
const LEASE: Duration = Duration::from_secs(20);
/// Largest body of a test request, and the largest of all of it, in bytes.
const BODY_BYTES_MAX: usize = 64 * 1024;
const WHOLE_BYTES_MAX: usize = 128 * 1024;
/// Test requests of one organisation at one time.
pub const AT_ONE_TIME_MAX: usize = 4;

/// Rows of the routing table.
pub fn routes() -> Vec<Route> {
    vec![
        Route::org(
            Verb::Post,
            "/orgs/{org}/proxies/{id}/test",
            (
                "test_proxy",
                "Send a request through a proxy, as a caller would, and say what became of it",
            ),
            Need::Role(Role::Member),
            test,
        )
        .takes(Takes::Optional("TestInput"))
        .gives(Gives::One("TestOutcome"))
        .local(),
    ]
}

#[derive(Deserialize)]
struct Input {
    request: Option<RequestInput>,
    credential: Option<CredentialId>,
    #[serde(default)]
    answer: bool,
}

async fn test(call: OrgCall) -> Result<Answer, Refusal> {
    let document = match &call.request.body {
        Value::Null => json!({}),
        document => document.clone(),
    };
    if document.pointer("/request/source").is_some() {
        // It is a request like any other, and rules on addresses judge it.
        let detail = "a test comes from the address of whoever asks for it; `explain` takes \
                      another one";
        return Err(fault("/request/source", "not-applicable", detail));
    }
    let input: Input = shape::parse(schemas(), "TestInput", document).map_err(Refusal::invalid)?;
    if input.answer {
        call.require(Role::Admin, "the answer of the target")?;
    }
    let request = posted(&call, &input)?;
    let Some(_place) = call.control.tests.take(call.org_id()) else {
        let detail =
            format!("{AT_ONE_TIME_MAX} test requests of this organisation are under way already");
        return Err(Refusal::new(Code::Overloaded, detail).retry_after_s(1));
    };
    call.control
        .publisher
        .refuse_full()
        .map_err(write::refusal)?;
    call.audited(Act::TestSent {
        request_id: request.id,
        proxy_id: request.proxy,
        credential_id: request.credential,
    })
    .await?;
    let outcome = sent(&call, &request).await?;
    let mut shown = serde_json::to_value(&outcome).unwrap_or_default();
    shown["request_id"] = json!(request.id);
    Ok(Answer::json(shown))
}

/// What is put into the store.
fn posted(call: &OrgCall, input: &Input) -> Result<TestRequest, Refusal> {
    let config = call.config()?;
    let not_here = |refusal: Refusal| match refusal.code {
        Code::NotFound => objects::not_here(&config),
        _ => refusal,
    };
    let object = objects::find::<Proxies>(call, &config).map_err(not_here)?;
    let (ObjectId::Proxy(id), Body::Proxy(proxy)) = (object.id, &object.body) else {
        return Err(Refusal::not_found());
    };
    let credential = match input.credential {
        None => proxy.proxy_credential_ids.first().copied(),
        given => given.filter(|id| proxy.proxy_credential_ids.contains(id)),
    };
    let credential = credential.ok_or_else(|| {
        let detail = "is none of the proxy's `proxy_credential_ids`";
        fault("/credential", "unknown-credential", detail)
    })?;
    let below = |problems: Vec<Problem>| {
        let problems = problems.into_iter().map(|p| p.below("/request"));
        Refusal::invalid(problems.collect())
    };
    let described = match &input.request {
        Some(request) => request.described().map_err(below)?,
        None => RequestInput::get("/").described().map_err(below)?,
    };
    let body = described.body.as_deref().unwrap_or_default();
    if body.len() > BODY_BYTES_MAX {
        let detail = format!("has {} bytes; at most {BODY_BYTES_MAX}", body.len());
        return Err(fault("/request/body", "too-large", &detail));
    }
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let path = text(&described.path);
    if !path.starts_with('/') {
        return Err(fault("/request/path", "path", "must begin with `/`"));
    }
    let headers = sent_fields(&described)?;
    let path = match &described.query {
        Some(query) => format!("{path}?{}", text(query)),
        None => path,
    };
    let fields: usize = headers
        .iter()
        .map(|(name, value)| name.len() + value.len())
        .sum();
    let bytes = described.method.len() + path.len() + fields + body.len();
    if bytes > WHOLE_BYTES_MAX {
        let detail = format!("has {bytes} bytes; at most {WHOLE_BYTES_MAX}");
        return Err(fault("/request", "too-large", &detail));
    }
    let unknown = IpAddr::V4(Ipv4Addr::LOCALHOST);
    Ok(TestRequest {
        id: RequestId::new(),
        org: call.org_id(),
        proxy: id,
        version: config.head.n,
        credential,
        method: described.method.clone(),
        path,
        headers,
        body: text(body),
        source: call.request.source.unwrap_or(unknown),
        answer: input.answer,
    })
}

/// The header fields of a request that is sent.
fn sent_fields(described: &Described) -> Result<Vec<(String, String)>, Refusal> {
    let mut headers = Vec::with_capacity(described.headers.len() + 1);
    for (name, value) in &described.headers {
        if FRAMING.contains(&name.as_str()) {
            return Err(fault(
                &format!("/request/headers/{name}"),
                "header",
                "is set by the gateway",
            ));
        }
        let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
        headers.push((name.to_string(), value));
    }
    if !described.headers.contains_key("user-agent") {
        headers.push(("user-agent".into(), "requestrocket-test".into()));
    }
    Ok(headers)
}

fn fault(pointer: &str, code: &'static str, detail: &str) -> Refusal {
    Refusal::invalid(vec![Problem::new(pointer, code, detail)])
}

/// Fields about a connection or about where a body ends: a test has neither.
const FRAMING: [&str; 7] = [
    "connection",
    "content-length",
    "expect",
    "host",
    "te",
    "transfer-encoding",
    "upgrade",
];

/// Puts the request into the store and waits for its outcome; nothing of it stays.
async fn sent(call: &OrgCall, request: &TestRequest) -> Result<TestOutcome, Refusal> {
    let store = call.control.publisher.shared_store();
    let until = Instant::now() + call.control.settings.test_wait;
    let lease = store.grant_lease(LEASE).await.map_err(unsent)?.id;
    let waited = match post(&*store, request, lease).await {
        Ok(revision) => {
            let waited = wait(&*store, request, revision, until).await;
            told(&*store, request, waited).await
        }
        // An answer that cannot be read is none.
        Err(StoreError::OutcomeUnknown(_) | StoreError::Corrupt(_)) => Ok(Waited::Unknown),
        Err(error) => Err(error),
    };
    // Not waited for: without an answer the lease ends by itself.
    let revoking = Arc::clone(&store);
    tokio::spawn(async move { revoking.revoke_lease(lease).await });
    let tells = format!(
        "it may have been carried out: record {} will tell",
        request.id
    );
    match waited.map_err(unsent)? {
        Waited::Outcome(outcome) => Ok(*outcome),
        Waited::Nobody => {
            let detail = "no node has taken the test request; is one running, and current \
                          (`requestrocket nodes`)?";
            Err(Refusal::new(Code::NoNode, detail))
        }
        Waited::Taken(node) => {
            let detail =
                format!("node {node} took the test request and was not done in time; {tells}");
            Err(Refusal::new(Code::NoNode, detail).may_be_done())
        }
        Waited::Unknown => {
            let detail = format!(
                "the store did not tell what became of the test request; {tells}; another request \
                 with the same `Idempotency-Key` sends nothing"
            );
            Err(Refusal::new(Code::OutcomeUnknown, detail).may_be_done())
        }
    }
}

/// What is told where no node has the request and none can take it: nothing was sent, whatever the
/// store has done with a lease or a watch.
fn unsent(error: StoreError) -> Refusal {
    let error = match error {
        StoreError::OutcomeUnknown(words) => StoreError::Unavailable(words),
        error => error,
    };
    write::refusal(PublishError::Store(error))
}

enum Waited {
    Outcome(Box<TestOutcome>),
    /// A node has it.
    Taken(String),
    /// No node has it, and none can take it any more.
    Nobody,
    /// The store does not say.
    Unknown,
}

/// Puts the request where nodes see it; gives the revision at which it is there.
async fn post(
    store: &dyn Store,
    request: &TestRequest,
    lease: LeaseId,
) -> Result<Revision, StoreError> {
    let put = Op::Put {
        key: keys::test(request.id),
        // Texts and numbers only: serialising into memory cannot fail.
        value: serde_json::to_vec(request).unwrap_or_default().into(),
        lease: Some(lease),
    };
    let txn = Txn {
        ops: vec![put],
        ..Txn::default()
    };
    Ok(store.txn(txn).await?.revision())
}

/// Waits for what a node puts beside the request; `Nobody` where that is nothing so far.
async fn wait(
    store: &dyn Store,
    request: &TestRequest,
    posted: Revision,
    until: Instant,
) -> Result<Waited, StoreError> {
    let mut watch = store
        .watch(&keys::test_results(request.id), posted.next())
        .await?;
    let outcome_key = keys::test_outcome(request.id);
    let mut taken = None;
    while let Ok(change) = tokio::time::timeout_at(until, watch.next()).await {
        for event in change?.events {
            let Event::Put(pair) = event else { continue };
            if pair.key != outcome_key {
                taken = Some(String::from_utf8_lossy(&pair.value).into_owned());
                continue;
            }
            return match serde_json::from_slice(&pair.value) {
                Ok(outcome) => Ok(Waited::Outcome(Box::new(outcome))),
                Err(error) => Err(StoreError::Corrupt(format!("{outcome_key}: {error}"))),
            };
        }
    }
    Ok(taken.map_or(Waited::Nobody, Waited::Taken))
}

/// What is known once nothing is waited for any more. Where the store failed meanwhile, that is
/// told if no node has the request.
async fn told(
    store: &dyn Store,
    request: &TestRequest,
    waited: Result<Waited, StoreError>,
) -> Result<Waited, StoreError> {
    let failed = match waited {
        Ok(Waited::Nobody) => None,
        Ok(waited) => return Ok(waited),
        Err(error) => Some(error),
    };
    match (withdrawn(store, request).await, failed) {
        (Waited::Nobody, Some(error)) => Err(error),
        (waited, _) => Ok(waited),
    }
}

/// Takes the request away where no node has put its name to it: none can from then on. Without the
/// request, its lease has ended, and with it went what nodes put beside it.
async fn withdrawn(store: &dyn Store, request: &TestRequest) -> Waited {
    let taken = keys::test_taken(request.id);
    let txn = Txn {
        compares: vec![
            Compare::Present(keys::test(request.id)),
            Compare::Absent(taken.clone()),
        ],
        ops: vec![Op::Delete(keys::test(request.id))],
        or_read: vec![taken],
    };
    match store.txn(txn).await {
        Ok(TxnOutcome::Committed(_)) => Waited::Nobody,
        Ok(TxnOutcome::Conflict(seen)) => match seen.value.into_iter().flatten().next() {
            Some(pair) => Waited::Taken(String::from_utf8_lossy(&pair.value).into_owned()),
            None => Waited::Unknown,
        },
        Err(error) => {
            tracing::warn!(
                "whether test request {} was taken is not known: {error}",
                request.id
            );
            Waited::Unknown
        }
    }
}
