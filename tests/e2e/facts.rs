//! A node that is cut off from its store and from other nodes, so that it does not learn that a
//! secret is over: credentials that say for how long that may be (`max_fact_age_s`) are refused
//! after that time, and others go on.

use serde_json::json;

use crate::cluster::{Cluster, wait_known, wait_status};
use crate::harness::gateway::Gateway;
use crate::harness::http::Request;
use crate::harness::metrics;
use crate::harness::upstream::Upstream;
use crate::harness::wait_for;

/// The least that a credential may say.
const AGE_MAX_S: u32 = 60;

#[test]
fn a_node_that_is_cut_off_for_long_refuses_the_credentials_that_say_so() {
    let mut cluster = Cluster::new();
    let control = Gateway::with(cluster.control_start());
    let (node, start, admin) = cluster.watched_node("gw-1");
    let upstream = Upstream::json("{}");
    let [free, by_caller, by_target] = [(); 3].map(|()| control.proxy(&upstream.url()));
    for credential in [&by_caller.proxy_credential, &by_target.target_credential] {
        let limit = json!({"max_fact_age_s": AGE_MAX_S});
        control.patch(&format!("/credentials/{credential}"), limit);
    }
    wait_known(&control, [&node]);
    let age = || metrics::at(&admin, "requestrocket_facts_age_seconds").expect("an age");
    // Judged by the age afterwards: it is not less than the one that the node judged by.
    let serves = || {
        for proxy in [&free, &by_caller, &by_target] {
            let status = proxy.request("GET", "/").send(&node.url).status();
            let (strict, age) = (proxy.id != free.id, age());
            assert!(status == 200 || strict && age > 60.0, "{status} at {age} s");
        }
    };
    serves();
    cluster.etcd[0].kill();
    wait_for("facts that are not that old yet", || {
        serves();
        (age() > 20.0).then_some(())
    });
    wait_for("facts that are too old", || (age() > 60.0).then_some(()));
    let readiness = || Request::new("GET", "/readyz").send(&admin).json();
    let called = upstream.seen().len();
    let refuses = |node: &Gateway| {
        for (proxy, whose) in [(&by_caller, "caller's"), (&by_target, "target's")] {
            let refused = proxy.request("GET", "/").send(&node.url);
            assert_eq!(refused.outcome(), (503, "facts-stale"), "{whose}");
            let detail = refused.json()["detail"].to_string();
            assert!(
                detail.contains(whose) && detail.contains("60 s"),
                "{detail}"
            );
            let id = refused.field("requestrocket-request-id").expect("an id");
            assert_eq!(control.record(id)["code"], "facts-stale", "{whose}");
        }
        assert_eq!(upstream.seen().len(), called, "nothing was sent");
        assert_eq!(readiness()["status"], "degraded");
    };
    refuses(&node);
    wait_status(&node, &free, "GET", 200);

    // What it knows does not get younger by a start.
    let called = upstream.seen().len();
    let (status, folder) = node.stop();
    assert_eq!(status.code(), Some(0));
    let node = Gateway::inside(folder, &start);
    for proxy in [&by_caller, &by_target] {
        let refused = proxy.request("GET", "/").send(&node.url);
        assert_eq!(refused.outcome(), (503, "facts-stale"), "{}", node.log());
    }
    assert_eq!(upstream.seen().len(), called);
    wait_status(&node, &free, "GET", 200);

    cluster.etcd[0].restart();
    for proxy in [&by_caller, &by_target] {
        wait_status(&node, proxy, "GET", 200);
    }
    assert!(age() < 60.0);
}
