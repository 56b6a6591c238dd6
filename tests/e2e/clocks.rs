//! Clocks of the machines of a cluster that are apart.

use proto::beat::Beat;
use proto::keys;
use proto::store::Op;

use crate::cluster::Cluster;
use crate::harness::gateway::{Gateway, binary};
use crate::harness::shifted_clock;
use crate::harness::wait_for;
use crate::raw_store::RawStore;

#[test]
fn clocks_that_are_apart_are_shown_until_they_agree() {
    let cluster = Cluster::new();
    let control = Gateway::with(cluster.control_start());
    let _node = cluster.node("gw-1", "gw-1");
    let store = RawStore::new(&cluster.etcd[0]);
    let beat = || -> Option<Beat> { serde_json::from_slice(&store.find(keys::BEAT)?).ok() };
    let listed = || {
        let list = binary()
            .args(["nodes", "--control", &control.control, "--token"])
            .arg(&control.token)
            .output()
            .expect("the binary runs");
        String::from_utf8(list.stdout).expect("a text")
    };
    wait_for("the first beat", beat);
    wait_for("the node in the list", || {
        listed().contains("gw-1").then_some(())
    });
    assert!(!listed().contains("clock-skew"), "{}", listed());
    // The beat of a control plane whose clock is ahead; while it beats, the real one does not.
    let ahead = || {
        let at = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(3_600);
        let by = "of-the-future".to_owned();
        let value = serde_json::to_vec(&Beat { at, by }).expect("a text");
        store.put(vec![Op::put(keys::BEAT, value)]);
    };
    let skewed = wait_for("the skew in the list", || {
        ahead();
        let listed = listed();
        listed.contains("clock-skew").then_some(listed)
    });
    let told = "clock-skew its clock is 3600.0 s behind the control plane's; set both by NTP";
    assert!(
        skewed.contains(told) || skewed.contains("3599.9 s"),
        "{skewed}"
    );
    // The real one goes on, and the clocks agree.
    wait_for("a real beat", || {
        (beat()?.by != "of-the-future").then_some(())
    });
    wait_for("the end of the skew", || {
        (!listed().contains("clock-skew")).then_some(())
    });
}

#[test]
fn a_node_whose_clock_is_off_says_so_and_is_listed_and_the_others_are_not() {
    let cluster = Cluster::new();
    let control = Gateway::with(cluster.control_start());
    let node = |name: &str, ahead_s: i64| {
        let mut start = cluster.node_start(name, name);
        if ahead_s != 0 {
            start.environment.extend(shifted_clock::by(ahead_s));
        }
        Gateway::with(start)
    };
    let nodes = [("gw-1", 0), ("gw-2", 7), ("gw-3", -7)].map(|(name, s)| (name, s, node(name, s)));
    let items = wait_for("the clocks compared", || {
        let items = control.operator("/nodes").json()["items"]
            .as_array()?
            .clone();
        let skewed = items.iter().filter(|item| item["clock_ahead_ms"].is_i64());
        (items.len() == nodes.len() && skewed.count() == 2).then_some(items)
    });
    let listed = control.command(&["nodes"]);
    let listed = String::from_utf8(listed.stdout).expect("a text");
    assert_eq!(
        listed.matches("clock-skew its clock is ").count(),
        2,
        "{listed}"
    );
    for (name, ahead_s, node) in &nodes {
        let item = items.iter().find(|item| item["name"] == *name);
        let told_ms = item.expect("the node")["clock_ahead_ms"].as_i64();
        let logged = node.log().contains("the clock of this machine is");
        match (ahead_s, told_ms) {
            (0, told_ms) => assert_eq!((told_ms, logged), (None, false), "{name}"),
            (ahead_s, Some(told_ms)) => {
                // A beat takes its time, and a busy machine more of it.
                assert!(
                    (told_ms - ahead_s * 1_000).abs() < 4_000,
                    "{name}: {told_ms}"
                );
                assert!(logged, "{name} logs it");
            }
            (_, None) => unreachable!("two are skewed, {name} is not: {items:?}"),
        }
    }
}
