//! A node that is killed under load loses the records of its last moment and no others.

use std::collections::HashSet;
use std::io::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::cluster::Cluster;
use crate::harness::gateway::{Gateway, Proxy};
use crate::harness::http::Connection;
use crate::harness::metrics;
use crate::harness::upstream::{Upstream, json_answer};
use crate::harness::wait_for;

/// How long before its end a request must have ended for its record to be safe: four times of what
/// the docs state, for machines that do much besides.
const SAFE: Duration = Duration::from_secs(2);
/// Requests of a load that a control plane keeps up with, before the kill.
const FEW: usize = 800;
/// Requests at full load: so many more than may be lost.
const MANY: usize = LOST_MAX * 2;
/// Most records that a kill loses, whatever the load: what waits in memory, and a batch of each
/// worker. (What a full memory had no room for before is counted by the node, and comes on top.)
const LOST_MAX: usize = 16_384 + 512 * WORKERS;
/// Of the node.
const WORKERS: usize = 2;

/// Ids of requests with when they were answered.
type Answered = Vec<(String, Instant)>;

/// How a node is called.
#[derive(Clone, Copy)]
struct Load {
    callers: usize,
    /// Between two requests of one.
    pace: Duration,
    /// So many are answered when the node is killed.
    requests: usize,
}

/// The load on a path until the node is killed, whose operator's listener is `admin`.
fn load(node: Gateway, admin: &str, proxy: &Proxy, path: &'static str, load: Load) -> Loaded {
    let bytes = proxy.request("GET", path).bytes(&node.url);
    let url = node.url.clone();
    let answered = Mutex::new(Answered::new());
    let count = AtomicUsize::new(0);
    let call = || {
        let mut caller = Connection::open(&url);
        let mut own = Answered::new();
        while caller.stream().write_all(&bytes).is_ok() {
            let Some(answer) = caller.read().filter(|answer| answer.complete) else {
                break;
            };
            assert_eq!(answer.status(), 200);
            let id = answer.field("requestrocket-request-id").expect("an id");
            own.push((id.to_owned(), Instant::now()));
            count.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(load.pace);
        }
        answered.lock().expect("no panic").extend(own);
    };
    let (dropped, killed, folder) = std::thread::scope(|scope| {
        (0..load.callers).for_each(|_| drop(scope.spawn(call)));
        let mut so_far = 0;
        while so_far < load.requests {
            so_far = wait_for("answers", || {
                let now = count.load(Ordering::Relaxed);
                (now > so_far).then_some(now)
            });
        }
        let dropped = metrics::at(admin, "requestrocket_records_dropped_total").unwrap_or(0.0);
        let (killed, folder) = (Instant::now(), node.kill());
        // And what may have been since then: of requests that ended, and what workers had gathered.
        let since = count.load(Ordering::Relaxed) - so_far + 512 * WORKERS;
        (dropped as usize + since, killed, folder)
    });
    Loaded {
        path,
        answered: answered.into_inner().expect("no panic"),
        dropped,
        killed,
        folder,
    }
}

struct Loaded {
    path: &'static str,
    answered: Answered,
    /// At most so many found no room in memory before the kill.
    dropped: usize,
    killed: Instant,
    folder: std::sync::Arc<tempfile::TempDir>,
}

impl Loaded {
    /// No more are missing than may be, however many there are.
    fn is_kept(&self, control: &Gateway) {
        let (all, most) = (self.answered.len(), LOST_MAX + self.dropped);
        wait_for("no more that are missing than are lost", || {
            let path = format!("/telemetry?path={}&from=1h", self.path);
            let count = control.get(&path)["groups"][0]["count"].as_u64();
            (count.unwrap_or(0) as usize + most >= all).then_some(())
        });
        let kept = kept(control, self.path);
        let lost = self.answered.iter().filter(|(id, _)| !kept.contains(id));
        let lost = lost.count();
        assert!(lost <= most, "{lost} of {all} are lost, {most} may be");
        eprintln!("of {all} at most {lost} are lost, {} before", self.dropped);
    }

    /// Each record of those that ended early enough is there, and at least half of the rest.
    fn is_kept_but_the_last(&self, control: &Gateway) {
        let is_safe = |at: &Instant| *at + SAFE < self.killed;
        let (safe, late): (Vec<_>, Vec<_>) = self.answered.iter().partition(|(_, at)| is_safe(at));
        assert!(safe.len() > 100, "{} requests are no load", safe.len());
        let kept = wait_for("the records that are safe", || {
            let kept = kept(control, self.path);
            safe.iter().all(|(id, _)| kept.contains(id)).then_some(kept)
        });
        let lost = late.iter().filter(|(id, _)| !kept.contains(id)).count();
        let (safe, late) = (safe.len(), late.len());
        eprintln!("{safe} kept that ended {SAFE:?} before; of {late} after that {lost} are lost");
        assert!(
            lost == 0 || lost < late / 2,
            "{lost} of {late} are those of no moment"
        );
    }
}

/// Ids of all records of a load.
fn kept(control: &Gateway, path: &str) -> HashSet<String> {
    let export = format!("/records/export?path={path}");
    let answer = control.api("GET", &export, None);
    assert_eq!(answer.status(), 200, "{}", answer.text());
    assert!(answer.complete, "an export that broke off");
    let lines = answer.body.split(|byte| *byte == b'\n');
    let records = lines.filter_map(|line| serde_json::from_slice::<Value>(line).ok());
    let ids = records.filter_map(|record| record["request_id"].as_str().map(str::to_owned));
    ids.collect()
}

/// Such a load with a control plane that takes records, and one with none: they wait on the node's
/// disk then, which outlives the process.
fn check(how: Load, judged: impl Fn(&Loaded, &Gateway)) {
    let cluster = Cluster::new();
    let control = Gateway::with(cluster.control_start());
    let (mut start, admin) = cluster.watched_start("gw-1");
    let workers = WORKERS.to_string();
    let setting = "REQUESTROCKET_GATEWAY__WORKERS".to_owned();
    start.environment.push((setting, workers));
    let node = Gateway::with(start.clone());
    let answer = json_answer("200 OK", "{}");
    let upstream = Upstream::raw(move |connection, _| {
        while connection.read().is_some() {
            connection.send(&answer);
        }
    });
    let proxy = control.proxy(&upstream.url());
    wait_for("the proxy", || {
        let answer = proxy.request("GET", "/").send(&node.url);
        (answer.status() == 200).then_some(())
    });

    let taken = load(node, &admin, &proxy, "/taken", how);
    judged(&taken, &control);

    let node = Gateway::inside(taken.folder.clone(), &start);
    let folder = control.kill();
    let spooled = load(node, &admin, &proxy, "/spooled", how);
    let node = Gateway::inside(spooled.folder.clone(), &start);
    let control = Gateway::inside(folder, &cluster.control_start());
    judged(&spooled, &control);
    assert_eq!(proxy.request("GET", "/").send(&node.url).status(), 200);
}

#[test]
fn a_node_that_is_killed_loses_no_record_but_those_of_its_last_moment() {
    let how = Load {
        callers: 1,
        pace: Duration::from_millis(5),
        requests: FEW,
    };
    check(how, Loaded::is_kept_but_the_last);
}

#[test]
fn at_full_load_a_node_that_is_killed_loses_no_more_than_is_stated() {
    let how = Load {
        callers: 16,
        pace: Duration::ZERO,
        requests: MANY,
    };
    check(how, Loaded::is_kept);
}
