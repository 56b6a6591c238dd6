//! The listener over real sockets: raw bytes in, statuses and the requests that ran out.

mod client;
mod deadlines;
mod flow;
mod rows;
mod tls;
mod vanish;

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use actix_web::http::StatusCode;
use actix_web::{App, HttpRequest, HttpResponse, web};
use futures_util::StreamExt as _;

use super::connection::Connection;
use super::{ListenerHandle, ListenerSettings, Queue, serve, whole_seconds};
use crate::metrics::Metrics;

/// A test that waits longer than this for anything has failed.
const PATIENCE: Duration = Duration::from_secs(30);
/// A deadline that a test lets pass.
const SHORT: Duration = Duration::from_millis(150);

/// What the app saw and did, for the test to look at.
#[derive(Default)]
struct Seen {
    /// `METHOD target` of each request that a handler was called for.
    requests: Mutex<Vec<String>>,
    changed: Condvar,
    /// Handlers of `/hang` that are running.
    hanging: AtomicUsize,
}

impl Seen {
    fn note(&self, request: String) {
        self.requests.lock().unwrap().push(request);
        self.changed.notify_all();
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.requests.lock().unwrap())
    }

    /// Waits until as many requests ran.
    fn wait(&self, count: usize) {
        let requests = self.requests.lock().unwrap();
        let waited = self
            .changed
            .wait_timeout_while(requests, PATIENCE, |r| r.len() < count);
        assert!(waited.unwrap().0.len() >= count, "too few requests ran");
    }

    /// Waits until as many handlers hang.
    fn wait_hanging(&self, count: usize) {
        until("handlers hang", || {
            self.hanging.load(Ordering::SeqCst) == count
        });
    }
}

fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < end, "never: {what}");
        std::thread::yield_now();
    }
}

/// A running listener.
struct Gateway {
    addr: SocketAddr,
    seen: Arc<Seen>,
    handle: ListenerHandle,
    thread: Option<JoinHandle<()>>,
}

impl Gateway {
    fn start(settings: ListenerSettings) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let seen = Arc::new(Seen::default());
        let for_app = Arc::clone(&seen);
        let (give, take) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            actix_rt::System::new().block_on(async move {
                let app = move || {
                    let seen = web::Data::from(Arc::clone(&for_app));
                    App::new().app_data(seen).default_service(web::to(handle))
                };
                let (server, handle) = serve(listener, settings, Metrics::default(), app).unwrap();
                give.send(handle).unwrap();
                server.await.unwrap();
            });
        });
        let handle = take.recv().unwrap();
        Self {
            addr,
            seen,
            handle,
            thread: Some(thread),
        }
    }

    fn plain() -> Self {
        Self::start(settings())
    }

    /// Stops; `true` lets requests in hand end.
    fn stop(&mut self, drain: bool) {
        let handle = self.handle.clone();
        // On a thread of its own: the test may be within a runtime.
        let stopping = std::thread::spawn(move || {
            actix_rt::System::new().block_on(async move {
                if drain {
                    handle.drain(Queue::Ends).await
                } else {
                    handle.stop().await
                }
            });
        });
        stopping.join().unwrap();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if self.thread.is_some() && !std::thread::panicking() {
            self.stop(false);
        }
    }
}

fn settings() -> ListenerSettings {
    ListenerSettings {
        workers: 1,
        ..ListenerSettings::default()
    }
}

struct Hanging(Arc<Seen>);

impl Drop for Hanging {
    fn drop(&mut self) {
        self.0.hanging.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Byte `at` of every generated body.
fn pattern(at: usize) -> u8 {
    // A prime, so that no buffer size divides the pattern.
    (at % 251) as u8
}

async fn handle(
    req: HttpRequest,
    mut payload: web::Payload,
    seen: web::Data<Seen>,
) -> HttpResponse {
    let target = req
        .uri()
        .path_and_query()
        .map_or("", |target| target.as_str())
        .to_owned();
    seen.note(format!("{} {target}", req.method()));
    let connection = req.conn_data::<Connection>().unwrap().clone();
    match req.uri().path() {
        "/now" => return HttpResponse::Ok().body(target),
        "/early" => {
            actix_rt::task::yield_now().await;
            return HttpResponse::PayloadTooLarge().body("early");
        }
        "/hang" => {
            seen.hanging.fetch_add(1, Ordering::SeqCst);
            let _hanging = Hanging(seen.into_inner());
            std::future::pending::<()>().await;
        }
        "/hang-body" => {
            seen.hanging.fetch_add(1, Ordering::SeqCst);
            let hanging = Hanging(seen.into_inner());
            let first = futures_util::stream::once(async { Ok(web::Bytes::from_static(b"x")) });
            let rest = futures_util::stream::pending::<Result<web::Bytes, std::io::Error>>();
            return HttpResponse::Ok().streaming(first.chain(rest).map(move |item| {
                let _held = &hanging;
                item
            }));
        }
        "/download" => return download(&req),
        "/peer" => return HttpResponse::Ok().body(req.peer_addr().unwrap().to_string()),
        "/tls" => {
            let name = connection.tls().and_then(|tls| tls.server_name.clone());
            return HttpResponse::Ok().body(name.unwrap_or_default());
        }
        "/close" => {
            actix_rt::task::yield_now().await;
            return HttpResponse::Ok().force_close().body("close");
        }
        "/tunnel" => {
            return HttpResponse::SwitchingProtocols()
                .upgrade("websocket")
                .streaming(payload);
        }
        _ => {}
    }
    let mut length = 0;
    let mut intact = true;
    while let Some(chunk) = payload.next().await {
        match chunk {
            Ok(bytes) => {
                intact &= bytes
                    .iter()
                    .enumerate()
                    .all(|(at, b)| *b == pattern(length + at));
                length += bytes.len();
            }
            Err(_) => return cut(&connection),
        }
    }
    let kind = if intact { "pattern" } else { "other" };
    HttpResponse::Ok().body(format!("{} {target} {length} {kind}", req.method()))
}

/// What a pipeline answers when a body ends too early.
fn cut(connection: &Connection) -> HttpResponse {
    let Some(fault) = connection.body_fault() else {
        return HttpResponse::BadGateway().finish();
    };
    let status = StatusCode::from_u16(fault.facts().status).unwrap();
    HttpResponse::build(status).body(fault.facts().detail)
}

fn download(req: &HttpRequest) -> HttpResponse {
    let length: usize = req.uri().query().unwrap().parse().unwrap();
    let at = Rc::new(Cell::new(0));
    HttpResponse::Ok().streaming(futures_util::stream::poll_fn(move |_| {
        let start = at.get();
        let end = length.min(start + 10_007);
        at.set(end);
        let bytes: web::Bytes = (start..end).map(pattern).collect::<Vec<u8>>().into();
        std::task::Poll::Ready((start < end).then_some(Ok::<_, std::io::Error>(bytes)))
    }))
}

#[test]
fn a_drain_of_a_part_of_a_second_is_no_less() {
    for (ms, seconds) in [
        (0, 0),
        (1, 1),
        (900, 1),
        (1_000, 1),
        (1_001, 2),
        (30_000, 30),
    ] {
        assert_eq!(whole_seconds(Duration::from_millis(ms)), seconds, "{ms}");
    }
}
