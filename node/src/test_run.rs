//! Sends a test request through a worker's pipeline, as if a caller had sent it.
//!
//! It takes a place among the requests in flight, spends tokens, and has a record, like any other.

use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use proto::outcome::{Code, EarlyEnd};
use proto::test_request::{ANSWER_BYTES_MAX, TestAnswer, TestOutcome, TestRequest};
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::time::Instant;

use crate::actor::overloaded;
use crate::answer::Collected;
use crate::flow::{Exchange, Inbound};
use crate::reply::seat;
use crate::request::Request;
use crate::worker::Worker;

/// Most test requests that wait for a worker.
const WAITING_MAX: usize = 64;
/// Longest time that an answer may take; control waits a little longer.
const ANSWER_MAX: Duration = Duration::from_secs(9);

/// A test request, and where its outcome is waited for.
pub struct Job {
    /// The request.
    pub request: Arc<TestRequest>,
    /// Takes its outcome.
    pub done: oneshot::Sender<TestOutcome>,
}

/// Test requests on their way to a worker; clones share one queue.
#[derive(Clone)]
pub struct TestQueue {
    sender: mpsc::Sender<Job>,
    /// One worker at a time waits for the next; the others wait for their turn.
    receiver: Arc<Mutex<mpsc::Receiver<Job>>>,
}

impl Default for TestQueue {
    fn default() -> Self {
        let (sender, receiver) = mpsc::channel(WAITING_MAX);
        let receiver = Arc::new(Mutex::new(receiver));
        Self { sender, receiver }
    }
}

impl TestQueue {
    /// Lets a worker send a test request; nothing where none can.
    pub async fn run(&self, request: Arc<TestRequest>) -> Option<TestOutcome> {
        let (done, outcome) = oneshot::channel();
        self.sender.try_send(Job { request, done }).ok()?;
        outcome.await.ok()
    }

    /// The next test request; nothing once nobody can send one any more.
    pub async fn next(&self) -> Option<Job> {
        self.receiver.lock().await.recv().await
    }
}

/// Serves test requests as long as there is the worker.
pub async fn serve(worker: Weak<Worker>) {
    let Some(queue) = worker.upgrade().map(|worker| worker.tests().clone()) else {
        return;
    };
    loop {
        let job = queue.next().await;
        let (Some(job), Some(worker)) = (job, worker.upgrade()) else {
            return;
        };
        actix_rt::spawn(async move {
            let outcome = run(&worker, &job.request).await;
            // Nobody may wait any more.
            let _ = job.done.send(outcome);
        });
    }
}

async fn run(worker: &Rc<Worker>, test: &TestRequest) -> TestOutcome {
    let started = Instant::now();
    let ended = |end: EarlyEnd| early(worker, test, &end);
    let Some(permit) = worker.enter() else {
        return ended(overloaded());
    };
    let (sender, receiver) = seat();
    let exchange = match exchange(worker, test) {
        Ok(exchange) => exchange,
        Err(detail) => return ended(EarlyEnd::new(Code::MalformedRequest, detail)),
    };
    let exchange = Box::new(Exchange {
        reply: Some(sender),
        permit: Some(permit),
        ..exchange
    });
    if let Err((_, end)) = worker.submit(exchange) {
        return ended(*end);
    }
    let deadline = started + ANSWER_MAX;
    let reply = match tokio::time::timeout_at(deadline, receiver).await {
        Ok(Some(reply)) => reply,
        Ok(None) => {
            let detail = "the gateway failed on this request; it has been counted";
            return ended(EarlyEnd::new(Code::InternalError, detail));
        }
        Err(_) => {
            let detail = "the target has not answered within 9 s; a test waits no longer, \
                          callers wait for `timeouts.first_byte_ms`";
            return ended(EarlyEnd::new(Code::UpstreamTimeout, detail));
        }
    };
    let collected = reply.collect(ANSWER_BYTES_MAX, deadline).await;
    outcome(worker, test, collected, started)
}

/// The exchange that `receive` would have made of a caller's request.
fn exchange(worker: &Worker, test: &TestRequest) -> Result<Exchange, &'static str> {
    let method = Method::from_bytes(test.method.as_bytes()).map_err(|_| "the method is none")?;
    let target = format!("/api/{}{}", test.proxy, test.path);
    let is_target = http::uri::PathAndQuery::try_from(target.as_str()).is_ok();
    if !test.path.starts_with('/') || test.path.contains('#') || !is_target {
        return Err("the path must begin with `/`, and other bytes be percent-encoded");
    }
    let headers = fields(&test.headers)?;
    let peer = SocketAddr::new(test.source, 0);
    let request = Request::new(method, target.into(), headers, peer);
    let body = match test.body.is_empty() {
        true => Inbound::None,
        false => Inbound::Buffered(Bytes::copy_from_slice(test.body.as_bytes())),
    };
    let (trace, snapshot) = (
        worker.trace(&request.headers, test.id, false),
        worker.snapshot(),
    );
    let exchange = Exchange {
        assumed: Some(test.credential),
        body,
        ..Exchange::arrived(test.id, trace, snapshot, request)
    };
    let request_bytes = &exchange.notes.request_bytes;
    request_bytes.set(test.body.len() as u64);
    Ok(exchange)
}

fn fields(given: &[(String, String)]) -> Result<HeaderMap, &'static str> {
    // A map of header fields panics where there are more than it can hold.
    let too_many = "there are too many header fields";
    let mut headers = HeaderMap::try_with_capacity(given.len()).map_err(|_| too_many)?;
    for (name, value) in given {
        let name = HeaderName::from_bytes(name.as_bytes());
        let value = HeaderValue::from_bytes(value.as_bytes());
        let (Ok(name), Ok(value)) = (name, value) else {
            return Err("a header field is not valid");
        };
        headers.try_append(name, value).map_err(|_| too_many)?;
    }
    Ok(headers)
}

/// The outcome of a request that had no place in the pipeline, or did not come out of it in time.
fn early(worker: &Worker, test: &TestRequest, end: &EarlyEnd) -> TestOutcome {
    TestOutcome {
        node: worker.node().to_owned(),
        status: end.status,
        code: end.code.as_str().to_owned(),
        auth_failure: None,
        upstream_status: None,
        attempts: 0,
        total_us: 0,
        stages: Vec::new(),
        problem: Some(end.document(test.id.text().as_str())),
        answer: None,
    }
}

fn outcome(
    worker: &Worker,
    test: &TestRequest,
    collected: Collected,
    started: Instant,
) -> TestOutcome {
    let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let headers = &collected.headers;
    let code = headers.get("requestrocket-proxy-code").map(text);
    let code = code.unwrap_or_default();
    let granted = code == Code::AccessGranted.as_str();
    let record = collected.record.as_ref();
    TestOutcome {
        node: worker.node().to_owned(),
        status: collected.status.as_u16(),
        auth_failure: record.and_then(|record| record.auth_failure),
        upstream_status: record.and_then(|record| record.upstream_status),
        attempts: record.map_or(0, |record| record.attempts),
        total_us: u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX),
        stages: record
            .map(|record| record.stages.clone())
            .unwrap_or_default(),
        problem: match granted {
            true => None,
            false => serde_json::from_slice(&collected.body).ok(),
        },
        answer: (granted && test.answer).then(|| TestAnswer {
            headers: headers
                .iter()
                .map(|(name, value)| (name.to_string(), text(value)))
                .collect(),
            body: String::from_utf8_lossy(&collected.body).into_owned(),
            whole: collected.whole,
        }),
        code,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_header_fields_than_a_map_holds_are_refused() {
        let field = |n: usize| (format!("x{n}"), String::new());
        let names: Vec<_> = (0..33_000).map(field).collect();
        let values = vec![("x".to_owned(), String::new()); 40_000];
        for given in [names, values] {
            assert!(fields(&given).is_err());
        }
        let few: Vec<_> = (0..256).map(field).collect();
        assert_eq!(fields(&few).map(|headers| headers.len()), Ok(256));
    }
}
