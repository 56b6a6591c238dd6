//! A process with a control plane that is replaced by a new one on the same addresses: callers wait
//! a moment, and none is refused.

use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use serde_json::json;

use crate::cluster::{Cluster, wait_status};
use crate::harness::gateway::{Gateway, Start, binary};
use crate::harness::http::{Connection, Message, Request};
use crate::harness::upstream::{After, Gate, Upstream, json_answer};
use crate::harness::wait_for;

fn standalone() -> Start {
    let config = "[policy]\nallow_http = true\n[[dial_guard.permit]]\nnetwork = \"127.0.0.0/8\"\n\
                  ports = [\"1-65535\"]\norgs = [\"*\"]\n";
    Start {
        mode: "standalone",
        config: config.into(),
        ..Start::default()
    }
}

/// Callers that go on until they are told to stop; each counts its answers.
#[derive(Default)]
struct Callers {
    stop: AtomicBool,
    answers: [AtomicUsize; 5],
}

impl Callers {
    /// Sends the request again and again, each on a connection of its own.
    fn anew(&self, at: usize, address: &str, request: &Request, status: u16) {
        while !self.stop.load(Ordering::Relaxed) {
            self.answered(at, &request.send(address), status);
        }
    }

    /// The same on one connection, for as long as answers do not say that they are its last.
    fn kept(&self, at: usize, address: &str, request: &Request, status: u16) {
        let bytes = request.bytes(address.trim_start_matches("http://"));
        while !self.stop.load(Ordering::Relaxed) {
            let mut connection = Connection::open(address);
            loop {
                connection.send(&bytes);
                let answer = connection
                    .read()
                    .expect("a connection ends between answers");
                self.answered(at, &answer, status);
                let last = answer.field("connection") == Some("close");
                if last || self.stop.load(Ordering::Relaxed) {
                    break;
                }
            }
        }
    }

    fn answered(&self, at: usize, answer: &Message, status: u16) {
        assert!(answer.complete, "{at}: {answer:?}");
        assert_eq!(answer.status(), status, "{at}: {}", answer.text());
        self.answers[at].fetch_add(1, Ordering::Relaxed);
    }

    fn count(&self, at: usize) -> usize {
        self.answers[at].load(Ordering::Relaxed)
    }

    /// Waits until each of the first `callers` has had so many more answers.
    fn more(&self, callers: usize, count: usize) {
        let before: Vec<_> = (0..callers).map(|at| self.count(at)).collect();
        wait_for("answers", || {
            let all = (0..callers).all(|at| self.count(at) >= before[at] + count);
            all.then_some(())
        });
    }
}

/// Ends the callers however a test ends: a scope waits for them.
struct Stopping<'c>(&'c Callers);

impl Drop for Stopping<'_> {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::Relaxed);
    }
}

fn authorized(gateway: &Gateway, method: &str, path: &str) -> Request {
    let token = format!("Bearer {}", gateway.token);
    Request::new(method, &format!("/api/v1/orgs/default{path}")).field("authorization", &token)
}

/// A target without a name of its own: each call makes one.
fn make_target(gateway: &Gateway) -> Request {
    let body = json!({"base_url": "https://target.example"}).to_string();
    authorized(gateway, "POST", "/targets").json(&body)
}

fn targets(gateway: &Gateway) -> usize {
    let (mut count, mut cursor) = (0, String::new());
    loop {
        let page = gateway.get(&format!("/targets?limit=100{cursor}"));
        count += page["items"].as_array().expect("a list").len();
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return count,
        }
    }
}

#[test]
fn a_standalone_is_replaced_twice_and_no_call_fails() {
    let start = standalone();
    let first = Gateway::with(start.clone());
    let upstream = Upstream::json("{}");
    let proxy = first.proxy(&upstream.url());
    let answer = proxy.get("/");
    let before = answer.field("requestrocket-request-id").expect("an id");
    let had = targets(&first);
    let (url, control) = (first.url.clone(), first.control.clone());
    let through = proxy.request("GET", "/");
    let read = authorized(&first, "GET", "/proxies");
    let write = make_target(&first);
    let mut follower = Connection::open(&control);
    follower.send(authorized(&first, "GET", "/records/follow").bytes("localhost"));
    let callers = Callers::default();
    let last = thread::scope(|scope| {
        let stopping = Stopping(&callers);
        let running = [
            scope.spawn(|| callers.anew(0, &url, &through, 200)),
            scope.spawn(|| callers.kept(1, &url, &through, 200)),
            scope.spawn(|| callers.anew(2, &control, &read, 200)),
            scope.spawn(|| callers.kept(3, &control, &read, 200)),
            scope.spawn(|| callers.anew(4, &control, &write, 201)),
        ];
        callers.more(5, 20);
        let following = scope.spawn(|| follower.read().expect("an answer"));
        let second = first.successor(&start);
        assert_eq!(
            (&second.url, &second.control),
            (&url, &control),
            "the same sockets"
        );
        assert!(first.ended().0.success());
        let followed = following.join().expect("it does not panic");
        assert!(followed.complete, "it ends as an answer does");
        callers.more(5, 20);
        let third = second.successor(&start);
        assert!(second.ended().0.success());
        callers.more(5, 20);
        drop(stopping);
        for caller in running {
            caller.join().expect("no call failed");
        }
        third
    });
    last.record(before);
    let after = proxy.get("/");
    last.record(after.field("requestrocket-request-id").expect("an id"));
    assert_eq!(
        targets(&last),
        had + callers.count(4),
        "what was answered is there, once"
    );
    assert!(last.stop().0.success());
}

#[test]
fn a_control_plane_is_replaced_twice_and_no_call_fails() {
    let cluster = Cluster::new();
    let start = cluster.control_start();
    let first = Gateway::with(start.clone());
    let node = cluster.node("gw-1", "gw-1");
    let upstream = Upstream::json("{}");
    let proxy = first.proxy(&upstream.url());
    wait_status(&node, &proxy, "GET", 200);
    let sent = |control: &Gateway| {
        let answer = proxy.request("GET", "/").send(&node.url);
        let id = answer
            .field("requestrocket-request-id")
            .expect("an id")
            .to_owned();
        control.record(&id);
        id
    };
    let before = sent(&first);
    let had = targets(&first);
    let control = first.control.clone();
    let (read, write) = (authorized(&first, "GET", "/proxies"), make_target(&first));
    let callers = Callers::default();
    let last = thread::scope(|scope| {
        let stopping = Stopping(&callers);
        let running = [
            scope.spawn(|| callers.anew(0, &control, &read, 200)),
            scope.spawn(|| callers.kept(1, &control, &read, 200)),
            scope.spawn(|| callers.kept(2, &control, &write, 201)),
        ];
        callers.more(3, 20);
        let second = first.successor(&start);
        assert_eq!(second.control, control, "the same socket");
        assert!(first.ended().0.success());
        callers.more(3, 20);
        sent(&second);
        let third = second.successor(&start);
        assert!(second.ended().0.success());
        callers.more(3, 20);
        drop(stopping);
        for caller in running {
            caller.join().expect("no call failed");
        }
        third
    });
    last.record(&before);
    sent(&last);
    assert_eq!(
        targets(&last),
        had + callers.count(2),
        "what was answered is there, once"
    );
    assert!(last.stop().0.success());
}

/// A process that ends with its test.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A successor of which no line is read.
fn successor(gateway: &Gateway, mode: &str, variables: &[(&str, &str)]) -> Command {
    let config: PathBuf = gateway.data_dir().with_file_name("config.toml");
    let mut command = binary();
    command.args([mode, "--take-over", "--output", "json", "--config"]);
    command
        .arg(config)
        .env("REQUESTROCKET_GATEWAY__LISTEN", "127.0.0.1:0")
        .env("REQUESTROCKET_CONTROL__LISTEN", "127.0.0.1:0")
        .envs(variables.iter().copied())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    command
}

/// A command, a part of what it says, and the variables that it is started with.
type Case = (
    &'static str,
    &'static str,
    &'static [(&'static str, &'static str)],
);

#[test]
fn a_successor_that_cannot_start_leaves_the_old_process_serving() {
    let gateway = Gateway::with(standalone());
    let upstream = Upstream::json("{}");
    let proxy = gateway.proxy(&upstream.url());
    let cases: &[Case] = &[
        (
            "standalone",
            "unknown setting",
            &[("REQUESTROCKET_GATEWAY__LISTENN", "127.0.0.1:0")],
        ),
        (
            "standalone",
            "`gateway.tls.key_file` is missing",
            &[("REQUESTROCKET_GATEWAY__TLS__CERT_FILE", "/none.pem")],
        ),
        (
            "standalone",
            "/none.pem",
            &[
                ("REQUESTROCKET_CONTROL__TLS__CERT_FILE", "/none.pem"),
                ("REQUESTROCKET_CONTROL__TLS__KEY_FILE", "/none.pem"),
            ],
        ),
        (
            "standalone",
            "gateway settings",
            &[("REQUESTROCKET_GATEWAY__HEAD_BYTES_MAX", "1")],
        ),
        (
            "standalone",
            "dial_guard.hosts_file",
            &[("REQUESTROCKET_DIAL_GUARD__HOSTS_FILE", "/none")],
        ),
        (
            "standalone",
            "`records.clickhouse.url`",
            &[("REQUESTROCKET_RECORDS__STORE", "clickhouse")],
        ),
        (
            "standalone",
            "the key ring /none cannot be used",
            &[("REQUESTROCKET_KEYS__SIGNING_FILE", "/none")],
        ),
        (
            "standalone",
            "`metrics.interval_ms` must be at least 1",
            &[
                ("REQUESTROCKET_OTLP__ENDPOINT", "http://127.0.0.1:9"),
                ("REQUESTROCKET_METRICS__INTERVAL_MS", "0"),
            ],
        ),
        (
            "standalone",
            "cannot be used",
            &[("REQUESTROCKET_ADMIN__LISTEN", "192.0.2.1:1")],
        ),
        ("dev", "another release, or another command", &[]),
    ];
    for (mode, words, variables) in cases {
        let mut command = successor(&gateway, mode, variables);
        let mut refused = Killed(command.spawn().expect("it runs"));
        let status = wait_for("its end", || refused.0.try_wait().expect("a child"));
        let mut said = String::new();
        let log = refused.0.stderr.as_mut().expect("its log");
        log.read_to_string(&mut said).expect("a log");
        assert_eq!(status.code(), Some(2), "{variables:?}: {said}");
        assert!(said.contains(words), "{variables:?}: {said}");
        assert_eq!(proxy.get("/").status(), 200, "{variables:?}");
        gateway.create("/targets", json!({"base_url": "https://target.example"}));
    }
    assert!(!gateway.log().contains("stopping"), "{}", gateway.log());
    assert!(gateway.stop().0.success());
}

/// Waits for words in what a process logs, which it goes on reading.
fn logs(child: &mut Child, words: &'static str) -> thread::JoinHandle<()> {
    let log = BufReader::new(child.stderr.take().expect("its log"));
    let (found, waits) = std::sync::mpsc::channel();
    let reading = thread::spawn(move || {
        for line in log.lines().map_while(Result::ok) {
            if line.contains(words) {
                let _ = found.send(());
            }
        }
    });
    waits
        .recv()
        .unwrap_or_else(|_| panic!("it did not say {words:?}"));
    reading
}

#[test]
fn a_request_in_hand_ends_first_and_a_successor_that_dies_meanwhile_is_told() {
    let gate = Gate::default();
    let shared = gate.clone();
    let upstream = Upstream::start(move |request, connection| {
        if request.target() == "/slow" {
            shared.pass();
        }
        connection.send(json_answer("200 OK", "{}"));
        After::Keep
    });
    let gateway = Gateway::with(standalone());
    let proxy = gateway.proxy(&upstream.url());
    let url = gateway.url.clone();
    let mut slow = Connection::open(&url);
    slow.send(proxy.request("GET", "/slow").bytes("gw"));
    upstream.wait_seen(1);
    let mut command = successor(&gateway, "standalone", &[]);
    let mut next = Killed(command.spawn().expect("it runs"));
    let reading = logs(&mut next.0, "callers wait meanwhile");
    // Whoever comes now is not refused, whether the old process still accepts or not.
    let waiting = Connection::open(&url);
    drop(next);
    reading.join().expect("a reader");
    gate.open();
    assert_eq!(slow.read().expect("an answer").status(), 200);
    drop(waiting);
    let log = gateway.data_dir().with_file_name("log");
    let (status, folder) = gateway.ended();
    assert_eq!(status.code(), Some(1), "whoever started it starts it again");
    let log = std::fs::read_to_string(log).expect("a log");
    assert!(
        log.contains("the process that was to take over is gone"),
        "{log}"
    );
    let again = Gateway::inside(folder, &standalone());
    assert_eq!(proxy.request("GET", "/").send(&again.url).status(), 200);
    assert!(again.stop().0.success());
}
