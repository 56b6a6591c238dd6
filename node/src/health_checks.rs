//! Active health checks of targets' endpoints: each node asks those that it uses.
//!
//! One thread of the node does all checks, with an upstream client of its own: what holds for
//! requests (dial guard, TLS, bounds of the pools) holds for them, and no worker waits for one. An
//! endpoint is checked for as long as a configuration in use has it. Checks begin at a random time
//! within the first interval and then come give or take a tenth of it, so that neither the nodes of
//! a region nor the endpoints of a node are asked all at once. Requests read one atomic.

use std::collections::HashMap;
use std::convert::Infallible;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use http::header::{ACCEPT, USER_AGENT};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method};
use proto::endpoint::WHOLE;
use proto::health_check::{HealthCheck, Verdict};
use proto::id::{OrgId, TargetId};
use tokio::sync::Semaphore;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tracing::{info, warn};

use crate::body::RequestBody;
use crate::breakers::risen;
use crate::upstream::{Destination, Hold, RequestHead, SendError, Terms};
use crate::upstream::{Upstream, UpstreamSettings};

/// Most endpoints that a node checks; further ones are used without.
const CHECKED_MAX: usize = 1_000;
/// Most of one organisation.
const CHECKED_PER_ORG_MAX: usize = 250;
/// Checks under way at one time.
const AT_ONCE: usize = 64;
/// Bytes of an answer that are read, so that its connection can serve again.
const ANSWER_BYTES_MAX: usize = 64 * 1024;
/// How checks name themselves.
const AGENT: HeaderValue = HeaderValue::from_static("requestrocket-health-check");
/// It has never come back.
const NEVER: u64 = u64::MAX;

/// An endpoint that is checked.
#[derive(Debug)]
pub struct Checked {
    /// Whose target it is of.
    pub org: OrgId,
    /// The target.
    pub target: TargetId,
    /// Host and port.
    pub label: Arc<str>,
    settings: HealthCheck,
    path: PathAndQuery,
    started: Instant,
    /// The newest configuration's.
    destination: Mutex<Arc<Destination>>,
    state: Mutex<State>,
    fails: AtomicBool,
    /// Milliseconds since `started` at which it came back.
    back_ms: AtomicU64,
    passed: AtomicU64,
    failed: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    verdict: Verdict,
    /// What the last check that failed found.
    why: String,
}

/// What an endpoint is checked as.
pub struct CheckedParts {
    /// Whose target it is of.
    pub org: OrgId,
    /// The target.
    pub target: TargetId,
    /// Scheme, host, port and base path.
    pub address: String,
    /// Host and port.
    pub label: Arc<str>,
    /// What the target asks for.
    pub settings: HealthCheck,
    /// Where it is dialled.
    pub destination: Destination,
}

impl Checked {
    fn new(parts: CheckedParts, path: PathAndQuery) -> Self {
        Self {
            org: parts.org,
            target: parts.target,
            label: parts.label,
            settings: parts.settings,
            path,
            started: Instant::now(),
            destination: Mutex::new(Arc::new(parts.destination)),
            state: Mutex::default(),
            fails: AtomicBool::new(false),
            back_ms: AtomicU64::new(NEVER),
            passed: AtomicU64::new(0),
            failed: AtomicU64::new(0),
        }
    }

    /// Whether it is passed over.
    pub fn fails(&self) -> bool {
        self.fails.load(Relaxed)
    }

    /// What the last check that failed found.
    pub fn why(&self) -> String {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.why.clone()
    }

    /// Checks that passed, and that failed.
    pub fn counts(&self) -> (u64, u64) {
        (self.passed.load(Relaxed), self.failed.load(Relaxed))
    }

    /// How long until it is worth asking again.
    pub fn interval(&self) -> Duration {
        Duration::from_millis(self.settings.interval_ms)
    }

    /// How much of what falls to it it may have, in thousandths: none while it fails, a rising part
    /// for so long after it came back.
    pub fn share(&self, now: Instant, slow_start: Duration) -> u32 {
        if self.fails() {
            return 0;
        }
        match self.back_ms.load(Relaxed) {
            NEVER => WHOLE,
            ms => risen(self.started + Duration::from_millis(ms), now, slow_start),
        }
    }

    /// Takes the outcome of a check.
    pub(crate) fn note(&self, outcome: Result<(), String>) {
        let passed = outcome.is_ok();
        let counter = if passed { &self.passed } else { &self.failed };
        counter.fetch_add(1, Relaxed);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(why) = outcome {
            state.why = why;
        }
        if !state.verdict.passed(passed, &self.settings) {
            return;
        }
        let fails = state.verdict.fails();
        let (target, at, why) = (self.target, &self.label, &state.why);
        if fails {
            warn!(%target, "the endpoint {at} of target {target} fails its health checks: {why}");
        } else {
            let ms = self.started.elapsed().as_millis();
            let ms = u64::try_from(ms).unwrap_or(NEVER);
            self.back_ms.store(ms, Relaxed);
            info!(%target, "the endpoint {at} of target {target} passes its health checks again");
        }
        self.fails.store(fails, Relaxed);
    }

    fn destination(&self) -> Arc<Destination> {
        let destination = self.destination.lock();
        destination.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Asks once.
    async fn ask(&self, upstream: &Upstream) -> Result<(), String> {
        let timeout = Duration::from_millis(self.settings.timeout_ms());
        let asking = async {
            let mut headers = HeaderMap::new();
            headers.insert(USER_AGENT, AGENT);
            headers.insert(ACCEPT, HeaderValue::from_static("*/*"));
            let mut head = RequestHead {
                method: Method::GET,
                target: self.path.clone(),
                headers,
                terms: Terms::now(),
            };
            let destination = self.destination();
            let mut gate = |_, _: &mut RequestHead| Ok::<_, Hold<Infallible>>(None);
            let mut body = RequestBody::Empty;
            let sent = upstream.send(&destination, &mut head, &mut body, &mut gate);
            let mut answer = sent.await.map_err(|error| match error {
                SendError::Failed(failure) => failure.kind.to_string(),
                SendError::Gate(stopped) => match stopped.why {},
            })?;
            let mut bytes = 0;
            while let Some(Ok(piece)) = answer.body.next().await {
                bytes += piece.len();
                if bytes > ANSWER_BYTES_MAX {
                    break;
                }
            }
            match self.settings.accepts(answer.status.as_u16()) {
                true => Ok(()),
                false => Err(format!("it answered {}", answer.status.as_u16())),
            }
        };
        let asked = tokio::time::timeout(timeout, asking).await;
        asked.unwrap_or_else(|_| Err(format!("no answer within {} ms", timeout.as_millis())))
    }
}

/// By the address of a target.
type ByAddress = HashMap<(OrgId, TargetId, Box<str>), Weak<Checked>>;

/// The endpoints that are checked, found again when a new version is compiled.
pub struct HealthChecks {
    upstream: UpstreamSettings,
    known: Mutex<ByAddress>,
    /// To the thread, which begins with the first endpoint and ends with this.
    thread: OnceLock<UnboundedSender<Weak<Checked>>>,
}

impl HealthChecks {
    /// No endpoint is checked yet; the client is made of these settings.
    pub fn new(upstream: UpstreamSettings) -> Self {
        Self {
            upstream,
            known: Mutex::default(),
            thread: OnceLock::new(),
        }
    }

    /// Checks an endpoint for as long as what is returned is held. What is known of it goes on
    /// where its settings are as before. `None` beyond the bounds.
    pub fn of(&self, parts: CheckedParts) -> Option<Arc<Checked>> {
        let key = (parts.org, parts.target, Box::from(&*parts.address));
        let mut all = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let known = all.get(&key).and_then(Weak::upgrade);
        if let Some(known) = known.filter(|known| known.settings == parts.settings) {
            let destination = known.destination.lock();
            *destination.unwrap_or_else(PoisonError::into_inner) = Arc::new(parts.destination);
            return Some(known);
        }
        all.retain(|_, known| known.strong_count() > 0);
        let held = all.values().filter_map(Weak::upgrade);
        let of_org = held.filter(|known| known.org == parts.org).count();
        if all.len() >= CHECKED_MAX || of_org >= CHECKED_PER_ORG_MAX {
            let (target, at) = (parts.target, &parts.label);
            warn!(
                %target,
                "the endpoint {at} of target {target} is used without health checks: this node \
                 checks {CHECKED_MAX} endpoints at most, {CHECKED_PER_ORG_MAX} of an organisation"
            );
            return None;
        }
        // Control has checked it.
        let path = PathAndQuery::try_from(&*parts.settings.path).ok()?;
        let checked = Arc::new(Checked::new(parts, path));
        let weak = Arc::downgrade(&checked);
        all.insert(key, weak.clone());
        let thread = self.thread.get_or_init(|| begin(self.upstream.clone()));
        if thread.send(weak).is_err() {
            warn!("the thread of health checks has ended: endpoints are used without");
        }
        Some(checked)
    }
}

/// Starts the thread that checks.
fn begin(upstream: UpstreamSettings) -> UnboundedSender<Weak<Checked>> {
    let (sender, endpoints) = unbounded_channel();
    let run = move || {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        match builder.enable_all().build() {
            Ok(runtime) => {
                let local = tokio::task::LocalSet::new();
                local.block_on(&runtime, serve(endpoints, upstream));
            }
            Err(error) => warn!(%error, "health checks cannot begin: {error}"),
        }
    };
    let name = "health-checks".to_owned();
    if let Err(error) = std::thread::Builder::new().name(name).spawn(run) {
        warn!(%error, "health checks cannot begin: {error}");
    }
    sender
}

async fn serve(mut endpoints: UnboundedReceiver<Weak<Checked>>, upstream: UpstreamSettings) {
    let upstream = Rc::new(Upstream::new(upstream));
    let places = Rc::new(Semaphore::new(AT_ONCE));
    while let Some(checked) = endpoints.recv().await {
        let looking = look_after(checked, upstream.clone(), places.clone());
        tokio::task::spawn_local(looking);
    }
}

/// Checks an endpoint until nobody holds it.
async fn look_after(checked: Weak<Checked>, upstream: Rc<Upstream>, places: Rc<Semaphore>) {
    let Some(interval) = checked.upgrade().map(|held| held.interval()) else {
        return;
    };
    tokio::time::sleep(interval.mul_f64(rand::random::<f64>())).await;
    loop {
        // Nobody closes it.
        let Ok(place) = places.acquire().await else {
            return;
        };
        let Some(held) = checked.upgrade() else {
            return;
        };
        let outcome = held.ask(&upstream).await;
        held.note(outcome);
        drop((place, held));
        let part = 0.9 + 0.2 * rand::random::<f64>();
        tokio::time::sleep(interval.mul_f64(part)).await;
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use super::*;
    use crate::upstream::address::{GuardPolicy, PermitEntry};
    use crate::upstream::tls::{TlsSettings, TlsSpec};
    use crate::upstream::{CONNECTIONS_MAX_DEFAULT, DestinationParts, Host, Timeouts};
    use proto::hosts::Scheme;

    fn settings(more: &str) -> HealthCheck {
        let json = format!(r#"{{"path": "/up?x=1", "interval_ms": 1000{more}}}"#);
        serde_json::from_str(&json).unwrap()
    }

    fn parts(target: u128, port: u16, permitted: bool, settings: HealthCheck) -> CheckedParts {
        let mut guard = GuardPolicy::default();
        if permitted {
            guard.permit = vec![PermitEntry {
                network: "127.0.0.0/8".parse().unwrap(),
                ports: vec![1..=65_535],
            }];
            guard.allow_networks = vec!["127.0.0.0/8".parse().unwrap()];
        }
        let destination = Destination::new(DestinationParts {
            scheme: Scheme::Http,
            host: Host::parse("127.0.0.1").unwrap(),
            port,
            tls: Arc::new(TlsSettings::new(&TlsSpec::default()).unwrap()),
            http2: false,
            tenant: 0,
            guard: Arc::new(guard),
            timeouts: Timeouts::default(),
            connections_max: CONNECTIONS_MAX_DEFAULT,
        });
        CheckedParts {
            org: OrgId::from_bits(1),
            target: TargetId::from_bits(target),
            address: format!("http://127.0.0.1:{port}"),
            label: format!("127.0.0.1:{port}").into(),
            settings,
            destination: destination.unwrap(),
        }
    }

    /// An endpoint that gives these answers, one for each connection; gives its port and what it
    /// was asked.
    fn answering(answers: Vec<&'static str>) -> (u16, std::thread::JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let serving = std::thread::spawn(move || {
            let mut asked = Vec::new();
            for answer in answers {
                let (mut stream, _) = listener.accept().unwrap();
                let (mut head, mut byte) = (Vec::new(), [0]);
                while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap() == 1 {
                    head.push(byte[0]);
                }
                asked.push(String::from_utf8(head).unwrap());
                let text =
                    format!("HTTP/1.1 {answer}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
                stream.write_all(text.as_bytes()).unwrap();
            }
            asked
        });
        (port, serving)
    }

    fn asked(checked: &Checked) -> Result<(), String> {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_all().build().unwrap();
        let upstream = Upstream::new(UpstreamSettings::default());
        tokio::task::LocalSet::new().block_on(&runtime, checked.ask(&upstream))
    }

    fn checked(parts: CheckedParts) -> Checked {
        let path = PathAndQuery::try_from(&*parts.settings.path).unwrap();
        Checked::new(parts, path)
    }

    #[test]
    fn a_check_is_a_plain_get_and_its_status_decides() {
        let (port, serving) = answering(vec!["204 No Content", "503 X", "302 Found"]);
        let check = checked(parts(1, port, true, settings("")));
        assert_eq!(asked(&check), Ok(()));
        assert_eq!(asked(&check), Err("it answered 503".into()));
        assert_eq!(asked(&check), Err("it answered 302".into()), "not followed");
        let heads = serving.join().unwrap();
        let head = heads[0].to_ascii_lowercase();
        assert!(head.starts_with("get /up?x=1 http/1.1\r\n"), "{head}");
        assert!(head.contains("user-agent: requestrocket-health-check"));
        for secret in ["authorization", "x-api-key", "cookie"] {
            assert!(!head.contains(secret), "{head}");
        }
        let (port, serving) = answering(vec!["401 X"]);
        let own = checked(parts(1, port, true, settings(r#", "statuses": [401]"#)));
        assert_eq!(asked(&own), Ok(()));
        serving.join().unwrap();
    }

    #[test]
    fn what_is_not_there_and_what_may_not_be_dialled_fails() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let silent = settings(r#", "timeout_ms": 50"#);
        let waiting = checked(parts(1, port, true, silent));
        assert_eq!(asked(&waiting), Err("no answer within 50 ms".into()));
        let guarded = checked(parts(1, port, false, settings("")));
        assert!(asked(&guarded).is_err());
        listener.set_nonblocking(true).unwrap();
        let dialled = std::iter::from_fn(|| listener.accept().ok()).count();
        assert_eq!(dialled, 1, "the guard holds for checks");
    }

    #[test]
    fn one_that_fails_has_no_share_and_comes_back_slowly() {
        let check = checked(parts(1, 1, true, settings(r#", "unhealthy": 2"#)));
        let slow = Duration::from_secs(3_600);
        let share = |slow| check.share(Instant::now(), slow);
        check.note(Err("a".into()));
        assert_eq!((check.fails(), share(slow)), (false, WHOLE));
        check.note(Err("b".into()));
        assert_eq!((check.fails(), share(slow)), (true, 0));
        assert_eq!(check.why(), "b");
        check.note(Ok(()));
        check.note(Ok(()));
        let part = share(slow);
        assert!(!check.fails() && (1..WHOLE).contains(&part), "{part}");
        assert_eq!(share(Duration::ZERO), WHOLE);
        assert_eq!(check.counts(), (2, 2));
    }

    #[test]
    fn what_is_known_goes_on_with_the_same_settings_and_ends_with_its_last_holder() {
        let checks = HealthChecks::new(UpstreamSettings::default());
        let first = checks.of(parts(1, 1, true, settings(""))).unwrap();
        let again = checks.of(parts(1, 1, true, settings(""))).unwrap();
        assert!(Arc::ptr_eq(&first, &again));
        let other = checks.of(parts(1, 1, true, settings(r#", "healthy": 7"#)));
        assert!(!Arc::ptr_eq(&first, &other.unwrap()));
        drop((first, again));
        let held: Vec<_> = (0..CHECKED_PER_ORG_MAX as u128 + 5)
            .map(|target| checks.of(parts(target + 10, 1, true, settings(""))))
            .collect();
        let count = held.iter().flatten().count();
        assert_eq!(count, CHECKED_PER_ORG_MAX);
        drop(held);
        assert!(checks.of(parts(9_999, 1, true, settings(""))).is_some());
    }

    #[test]
    fn an_endpoint_is_asked_again_and_again_until_nobody_holds_it() {
        let (port, serving) = answering(vec!["500 X"; 3]);
        let checks = HealthChecks::new(UpstreamSettings::default());
        let check = checks.of(parts(1, port, true, settings(""))).unwrap();
        assert_eq!(serving.join().unwrap().len(), 3);
        let weak = Arc::downgrade(&check);
        while !check.fails() {
            std::thread::sleep(Duration::from_millis(5));
        }
        drop(check);
        while weak.strong_count() > 0 {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
