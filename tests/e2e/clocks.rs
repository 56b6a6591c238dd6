//! Clocks of the machines of a cluster that are apart.

use proto::beat::Beat;
use proto::keys;
use proto::store::Op;

use crate::cluster::Cluster;
use crate::harness::gateway::{Gateway, binary};
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
