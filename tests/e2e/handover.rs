//! A node that is replaced by a new process on the same addresses.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use crate::cluster::{Cluster, wait_status};
use crate::harness::gateway::{Gateway, binary};
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

/// The copy on disk may be older than what the old process serves, so it counts only where there is
/// nobody to serve meanwhile.
#[test]
fn a_successor_waits_for_an_etcd_that_is_away_while_the_old_process_serves() {
    let mut cluster = Cluster::new();
    let control = Gateway::with(cluster.control_start());
    let start = cluster.node_start("gw-1", "gw-1");
    let first = Gateway::with(start.clone());
    let upstream = Upstream::json("{}");
    let proxy = control.proxy(&upstream.url());
    wait_status(&first, &proxy, "GET", 200);
    wait_for("a copy on disk", || {
        first.data_dir().join("kept.bin").exists().then_some(())
    });
    cluster.etcd[0].kill();
    let second = thread::scope(|scope| {
        let succeeding = scope.spawn(|| first.successor(&start));
        wait_for("that it waits for as long as one without a copy", || {
            let waits = "waiting 10 s at most for the store";
            first.log().contains(waits).then_some(())
        });
        let answer = proxy.request("GET", "/").send(&first.url);
        assert_eq!(answer.status(), 200, "{}", answer.text());
        cluster.etcd[0].restart();
        succeeding.join().expect("it serves")
    });
    assert!(first.ended().0.success());
    let log = second.log();
    assert!(
        !log.contains("serving the configuration kept on disk"),
        "{log}"
    );
    wait_status(&second, &proxy, "GET", 200);
    assert!(second.stop().0.success());
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
