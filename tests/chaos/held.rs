//! Callers that a limit over three linked nodes holds: in which order they are served, and who is
//! told at once that it is too many.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use super::cluster::{self, Cluster, Links};
use crate::harness::gateway::Proxy;

const CALLERS: usize = 200;
const PER_SECOND: usize = 10;
/// Which node each of seven callers calls: they do not come evenly.
const SPREAD: [usize; 7] = [0, 0, 0, 0, 1, 1, 2];
/// Who cannot be served in time is to be told so within this time. A figure: on a machine with
/// other work an answer takes longer.
const AT_ONCE: Duration = Duration::from_millis(50);
/// Between two callers.
const APART: Duration = Duration::from_millis(5);

/// What became of a caller.
#[derive(Clone, Debug)]
struct Served {
    /// The how manieth that came.
    number: usize,
    status: u16,
    retry_after_s: Option<u64>,
    /// How long it waited.
    waited: Duration,
    /// When it had its answer, from the first call on.
    at: Duration,
}

/// The header that says how urgent a call is.
const PRIORITY: &str = "x-priority";
/// Of each so many callers one is urgent.
const URGENT_EACH: usize = 8;

/// Calls one after the other, without waiting for answers, with a priority each; in the order of
/// the answers.
fn call_all(
    cluster: &Cluster<'_>,
    proxy: &Proxy,
    priority: impl Fn(usize) -> &'static str + Sync,
) -> Vec<Served> {
    let served = Mutex::new(Vec::new());
    let begun = Instant::now();
    thread::scope(|scope| {
        for number in 0..CALLERS {
            let node = &cluster.nodes[SPREAD[number % SPREAD.len()]].gateway().url;
            let (served, priority) = (&served, priority(number));
            scope.spawn(move || {
                let due = APART * u32::try_from(number).expect("few");
                thread::sleep(due.saturating_sub(begun.elapsed()));
                let asked = Instant::now();
                let request = proxy.request("GET", "/").field(PRIORITY, priority);
                let answer = request.send(node);
                let retry_after = answer.field("retry-after");
                let one = Served {
                    number,
                    status: answer.status(),
                    retry_after_s: retry_after.map(|text| text.parse().expect("seconds")),
                    waited: asked.elapsed(),
                    at: begun.elapsed(),
                };
                served.lock().expect("no panic").push(one);
            });
        }
    });
    let mut served = served.into_inner().expect("no panic");
    served.sort_by_key(|one| one.at);
    served
}

/// A proxy whose limit holds callers for so long.
fn holding(cluster: &Cluster<'_>, max_wait: Duration) -> Proxy {
    let proxy = cluster.proxy_with(json!({}));
    let limit = json!({"limit": PER_SECOND, "window": "second"});
    let max_wait_ms = u64::try_from(max_wait.as_millis()).expect("some time");
    let hold = json!({"max_wait_ms": max_wait_ms, "max_waiting": 500, "priority_header": PRIORITY});
    let place = format!("/proxies/{}/meters", proxy.id);
    let meter = json!({"limits": [limit], "at_limit": {"hold": hold}});
    cluster.controls[0].gateway().create(&place, meter);
    cluster.agrees(0);
    proxy
}

#[test]
fn held_callers_of_three_nodes_are_served_in_their_order_or_refused_at_once() {
    cluster::run_with(Links::Peers, |cluster, _| {
        for node in &cluster.nodes {
            node.wait_metric("requestrocket_peers_linked", 2);
        }
        all_in_time(cluster);
        most_refused(cluster);
        urgent_first(cluster);
        who_obeys_is_served(cluster);
    });
}

fn all_in_time(cluster: &Cluster<'_>) {
    let proxy = holding(cluster, Duration::from_secs(60));
    let served = call_all(cluster, &proxy, |_| "0");
    let granted = granted(&served);
    assert_eq!(granted.len(), CALLERS, "{served:#?}");
    in_order(&granted);
}

fn most_refused(cluster: &Cluster<'_>) {
    // In six seconds come so many tokens that most must be sent away: at once, not in the end.
    let max_wait = Duration::from_secs(6);
    let proxy = holding(cluster, max_wait);
    let served = call_all(cluster, &proxy, |_| "0");
    let granted = granted(&served);
    let mut refused: Vec<&Served> = served.iter().filter(|one| one.status == 429).collect();
    assert_eq!(granted.len() + refused.len(), CALLERS, "{served:#?}");
    let in_time = PER_SECOND * 6;
    assert!(
        granted.len() >= in_time * 3 / 4,
        "{} granted",
        granted.len()
    );
    in_order(&granted);
    let in_the_end = refused
        .iter()
        .filter(|one| one.waited > max_wait / 2)
        .count();
    refused.sort_by_key(|one| one.waited);
    let after = |percent: usize| refused.get(refused.len() * percent / 100).map(|r| r.waited);
    let at_once = refused.partition_point(|one| one.waited < AT_ONCE);
    eprintln!(
        "{} refused, {at_once} of them within {AT_ONCE:?}, {in_the_end} in the end; half after \
         {:?}, nine of ten after {:?}",
        refused.len(),
        after(50),
        after(90)
    );
    assert!(
        in_the_end <= refused.len() / 5,
        "{in_the_end} of {}",
        refused.len()
    );
    // They are told to come one after the other.
    let again = refused.iter().map(|one| one.retry_after_s.expect("a time"));
    let again: BTreeSet<u64> = again.collect();
    assert!(again.len() >= 4 && !again.contains(&0), "{again:?}");
}

/// Who is urgent is served before those that are not, whichever nodes they called; all are served.
fn urgent_first(cluster: &Cluster<'_>) {
    let proxy = holding(cluster, Duration::from_secs(60));
    let is_urgent = |number: usize| number % URGENT_EACH == URGENT_EACH - 1;
    let priority = |number| if is_urgent(number) { "5" } else { "0" };
    let served = call_all(cluster, &proxy, priority);
    let granted = granted(&served);
    assert_eq!(granted.len(), CALLERS, "{served:#?}");
    let urgent = |one: &&&Served| is_urgent(one.number);
    let all = granted.iter().filter(urgent).count();
    // What was given away before they came, and what nodes do not know of each other for a moment.
    let most = all + 2 * PER_SECOND + CALLERS / 10;
    let last = granted.iter().rposition(|one| is_urgent(one.number));
    eprintln!("{all} urgent, the last of them served as number {last:?}");
    assert!(last < Some(most), "{last:?}, {most} at most: {granted:#?}");
}

/// Callers that are refused and come again when they are told: tokens find takers all the time, so
/// that all are served after as many windows as their number takes, and few more.
fn who_obeys_is_served(cluster: &Cluster<'_>) {
    const OBEDIENT: usize = 60;
    let proxy = cluster.proxy_with(json!({}));
    let limit = json!({"limit": PER_SECOND, "window": "second"});
    let place = format!("/proxies/{}/meters", proxy.id);
    cluster.controls[0]
        .gateway()
        .create(&place, json!({"limits": [limit]}));
    cluster.agrees(0);
    let begun = Instant::now();
    let attempts = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for number in 0..OBEDIENT {
            let node = &cluster.nodes[SPREAD[number % SPREAD.len()]].gateway().url;
            let (proxy, attempts) = (&proxy, &attempts);
            scope.spawn(move || {
                let mut asked = 1;
                loop {
                    let answer = proxy.request("GET", "/").send(node);
                    if answer.status() == 200 {
                        break;
                    }
                    assert_eq!(answer.status(), 429, "{}", answer.text());
                    let again = answer.field("retry-after").expect("a time");
                    thread::sleep(Duration::from_secs(again.parse().expect("seconds")));
                    asked += 1;
                }
                attempts.lock().expect("no panic").push(asked);
            });
        }
    });
    let took = begun.elapsed();
    let attempts: usize = attempts.into_inner().expect("no panic").iter().sum();
    eprintln!("{OBEDIENT} served in {took:?} after {attempts} attempts");
    assert!(attempts <= 4 * OBEDIENT, "{attempts}");
}

/// Those that were served, in the order in which they were.
fn granted(served: &[Served]) -> Vec<&Served> {
    served.iter().filter(|one| one.status == 200).collect()
}

/// Who came first was served first, whichever node it called: nobody is further from its place than
/// what two nodes do not know of each other for a moment.
fn in_order(granted: &[&Served]) {
    let mut came: Vec<usize> = granted.iter().map(|one| one.number).collect();
    came.sort_unstable();
    let place = |number: usize| came.partition_point(|other| *other < number);
    let displaced = granted.iter().enumerate();
    let displaced = displaced
        .map(|(at, one)| at.abs_diff(place(one.number)))
        .max();
    eprintln!(
        "{} granted, displaced by {displaced:?} at most",
        granted.len()
    );
    assert!(
        displaced < Some(CALLERS / 10),
        "{displaced:?}: {granted:#?}"
    );
}
