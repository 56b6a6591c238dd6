//! A node that is replaced by a new process on the same addresses.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, ScopedJoinHandle};

use serde_json::json;

use crate::cluster::{Cluster, wait_status};
use crate::harness::gateway::{Gateway, Proxy, Start, binary};
use crate::harness::http::Connection;
use crate::harness::upstream::{After, Upstream, json_answer};
use crate::harness::wait_for;

#[test]
fn a_node_is_replaced_without_a_refused_connection_or_a_cut_request() {
    let cluster = Cluster::new();
    let control = Gateway::with(cluster.control_start());
    let start = cluster.node_start("gw-1", "gw-1");
    let first = Gateway::with(start.clone());
    let released = Arc::new(AtomicBool::new(false));
    let release = released.clone();
    let upstream = Upstream::start(move |request, connection| {
        if request.target() == "/slow" {
            wait_for("the release", || {
                release.load(Ordering::Relaxed).then_some(())
            });
        }
        connection.send(json_answer("200 OK", "{}"));
        After::Keep
    });
    let proxy = control.proxy(&upstream.url());
    wait_status(&first, &proxy, "GET", 200);
    let address = first.url.clone();
    let mut slow = Connection::open(&address);
    slow.send(proxy.request("GET", "/slow").bytes("gw"));
    wait_for("the slow request", || {
        upstream
            .seen()
            .iter()
            .any(|seen| seen.target() == "/slow")
            .then_some(())
    });

    let (stop, sent) = (AtomicBool::new(false), AtomicUsize::new(0));
    let calls = || {
        while !stop.load(Ordering::Relaxed) {
            // Each on a connection of its own: none is refused, none is cut.
            let answer = proxy.request("GET", "/").send(&address);
            assert_eq!(answer.status(), 200, "{}", answer.text());
            sent.fetch_add(1, Ordering::Relaxed);
        }
    };
    let more = |count: usize| {
        let goal = sent.load(Ordering::Relaxed) + count;
        wait_for("answers", || {
            (sent.load(Ordering::Relaxed) >= goal).then_some(())
        });
    };
    thread::scope(|scope| {
        let callers = [scope.spawn(calls), scope.spawn(calls)];
        more(50);
        let second = first.successor(&start);
        assert_eq!(second.url, address, "the same socket");
        more(50);
        released.store(true, Ordering::Relaxed);
        assert_eq!(
            slow.read().expect("an answer").status(),
            200,
            "by the old process"
        );
        let (status, _) = first.ended();
        assert!(status.success(), "{status}");
        more(50);
        // And again, from the process that took over.
        let third = second.successor(&start);
        assert!(second.ended().0.success());
        more(50);
        stop.store(true, Ordering::Relaxed);
        for caller in callers {
            caller.join().expect("no request failed");
        }
        // The data folder is the last one's now, and its records still arrive.
        let answer = proxy.request("GET", "/").send(&third.url);
        control.record(answer.field("requestrocket-request-id").expect("an id"));
        assert!(third.stop().0.success());
    });
}

/// What a process logs while the store does not answer at its start.
const WAITS: &str = "the store does not answer after";

/// A node without etcd, which hangs, and what it serves.
struct WithoutStore {
    cluster: Cluster,
    control: Gateway,
    node: Gateway,
    start: Start,
    /// The newest that the node has.
    proxy: Proxy,
    _upstream: Upstream,
}

impl WithoutStore {
    fn new() -> Self {
        let cluster = Cluster::new();
        let control = Gateway::with(cluster.control_start());
        let start = cluster.node_start("gw-1", "gw-1");
        let node = Gateway::with(start.clone());
        let upstream = Upstream::json("{}");
        wait_status(&node, &control.proxy(&upstream.url()), "GET", 200);
        let proxy = control.proxy(&upstream.url());
        wait_status(&node, &proxy, "GET", 200);
        let kept = node.data_dir().join("kept.bin");
        let written = || kept.metadata().and_then(|of| of.modified()).ok();
        // The first of the copies that come after it may have been begun before.
        for _ in 0..2 {
            let before = written();
            control.create("/targets", json!({"base_url": "https://kept.example"}));
            wait_for("a copy on disk", || {
                written().filter(|at| Some(*at) > before)
            });
        }
        cluster.etcd[0].signal("STOP");
        Self {
            cluster,
            control,
            node,
            start,
            proxy,
            _upstream: upstream,
        }
    }

    /// One call, on whatever process has the socket.
    fn is_served(&self) {
        let answer = self.proxy.request("GET", "/").send(&self.node.url);
        assert_eq!(answer.status(), 200, "{}", answer.text());
    }

    /// Lets etcd go on, and waits until it is written to again.
    fn heal(&self) {
        self.cluster.etcd[0].signal("CONT");
        let target = json!({"base_url": "https://target.example"});
        wait_for("a write", || {
            let made = self.control.api("POST", "/targets", Some(&target));
            (made.status() == 201).then_some(())
        });
    }

    /// Starts a successor and waits until it waits.
    fn successor<'s>(&'s self, scope: &'s thread::Scope<'s, '_>) -> ScopedJoinHandle<'s, Gateway> {
        let (node, start) = (&self.node, &self.start);
        let second = scope.spawn(move || node.successor(start));
        wait_for("a successor that waits", || {
            self.is_served();
            self.node.log().contains(WAITS).then_some(())
        });
        assert!(!second.is_finished());
        second
    }
}

#[test]
fn a_successor_waits_for_the_store_as_long_as_the_old_process_serves() {
    let mut without = WithoutStore::new();
    let second = thread::scope(|scope| {
        let second = without.successor(scope);
        without.heal();
        wait_for("its start", || {
            without.is_served();
            second.is_finished().then_some(())
        });
        second.join().expect("a successor")
    });
    without.is_served();
    let first = std::mem::replace(&mut without.node, second);
    assert!(first.ended().0.success());
    let changed = without.control.proxy("http://127.0.0.1:9");
    wait_status(&without.node, &changed, "GET", 502);
}

/// Kept on disk by the old process before that ended so, served by the new one without the store.
fn goes_on_alone(signal: &str) {
    let mut without = WithoutStore::new();
    let second = thread::scope(|scope| {
        let second = without.successor(scope);
        without.node.signal(signal);
        second.join().expect("a successor")
    });
    assert_eq!(second.url, without.node.url, "the same socket");
    let log = second.log();
    assert!(
        log.contains("serving the configuration kept on disk"),
        "{log}"
    );
    let first = std::mem::replace(&mut without.node, second);
    drop(first);
    let found = |proxy: &Proxy| proxy.request("GET", "/").send(&without.node.url).status();
    assert_eq!(found(&without.proxy), 200);
    without.heal();
    let changed = without.control.proxy("http://127.0.0.1:9");
    wait_status(&without.node, &changed, "GET", 502);
}

#[test]
fn a_successor_goes_on_alone_when_the_old_process_is_killed() {
    goes_on_alone("KILL");
}

#[test]
fn a_successor_goes_on_alone_when_the_old_process_is_asked_to_end() {
    goes_on_alone("TERM");
}

#[test]
fn a_control_plane_is_not_asked_to_end_while_the_store_does_not_answer() {
    let cluster = Cluster::new();
    let start = cluster.control_start();
    let first = Gateway::with(start.clone());
    let proxy = first.proxy("http://127.0.0.1:9");
    let path = format!("/proxies/{}", proxy.id);
    let reads = || assert_eq!(first.api("GET", &path, None).status(), 200);
    cluster.etcd[0].signal("STOP");
    let second = thread::scope(|scope| {
        let second = scope.spawn(|| first.successor(&start));
        wait_for("a successor that waits", || {
            reads();
            first.log().contains(WAITS).then_some(())
        });
        assert!(!second.is_finished());
        reads();
        cluster.etcd[0].signal("CONT");
        second.join().expect("a successor")
    });
    assert_eq!(second.api("GET", &path, None).status(), 200);
    assert!(first.ended().0.success());
}

#[test]
fn a_data_folder_is_of_one_process() {
    let cluster = Cluster::new();
    let control = Gateway::with(cluster.control_start());
    let node = cluster.node("gw-1", "gw-1");
    let upstream = Upstream::json("{}");
    let proxy = control.proxy(&upstream.url());
    wait_status(&node, &proxy, "GET", 200);
    let config = node.data_dir().with_file_name("config.toml");
    let refused = |arguments: &[&str], variables: &[(&str, &str)]| {
        let mut command = binary();
        command
            .arg("node")
            .args(arguments)
            .arg("--config")
            .arg(&config);
        command.env("REQUESTROCKET_GATEWAY__LISTEN", "127.0.0.1:0");
        let output = command
            .envs(variables.iter().copied())
            .output()
            .expect("it runs");
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    };
    let (code, said) = refused(&[], &[]);
    assert_eq!(code, Some(2), "{said}");
    assert!(
        said.contains("is used by process") && said.contains("--take-over"),
        "{said}"
    );
    // A successor that cannot start changes nothing.
    let (code, said) = refused(
        &["--take-over"],
        &[("REQUESTROCKET_LINK__CA_FILE", "/none.pem")],
    );
    assert_eq!(code, Some(2), "{said}");
    wait_for("the log line", || {
        node.log().contains("this one goes on").then_some(())
    });
    wait_status(&node, &proxy, "GET", 200);
}
