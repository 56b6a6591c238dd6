//! More organisations than one page of a list holds (500).

use serde_json::json;

use super::cluster::Cluster;
use crate::harness::gateway::{Gateway, Proxy, Start};
use crate::harness::http::Request;
use crate::harness::upstream::Upstream;
use crate::harness::wait_for;

/// `default` and `system` come to these.
const MADE: usize = 505;
/// The one that was made last, and is listed last: ids rise with time.
const LAST: &str = "org-504";

fn make(control: &Gateway, upstream: &Upstream) -> Proxy {
    for at in 0..MADE {
        control.organisation(&format!("org-{at}"));
    }
    let alias = json!({"alias": "last"});
    control.proxy_in(LAST, &upstream.url(), json!({}), alias)
}

/// Waits until a node says that it serves everything that there is.
fn wait_current(control: &Gateway, count: usize) {
    wait_for("nodes that serve everything", || {
        let listed = control.operator("/nodes").json();
        let items = listed["items"].as_array().expect("a list");
        let all = items.iter().filter(|node| node["current"] == true).count();
        (all == count && items.len() == count).then_some(())
    });
}

fn serves_last(node: &Gateway, proxy: &Proxy) {
    let request = Request::new("GET", &format!("/api/{LAST}.last/x"));
    let request = request.field("authorization", &format!("Bearer {}", proxy.key));
    assert_eq!(request.send(&node.url).status(), 200);
}

#[test]
fn a_fresh_node_reads_the_organisations_of_etcd_over_pages_and_serves_the_last() {
    let cluster = Cluster::new();
    let control = Gateway::with(cluster.control_start());
    let upstream = Upstream::json("{}");
    let proxy = make(&control, &upstream);
    let node = cluster.node("gw-1", "gw-1");
    // It takes no connection before it has read all.
    serves_last(&node, &proxy);
    wait_current(&control, 1);
}

#[test]
fn a_start_reads_the_organisations_of_the_embedded_store_over_pages_and_serves_the_last() {
    let gateway = Gateway::start();
    let upstream = Upstream::json("{}");
    let proxy = make(&gateway, &upstream);
    let gateway = Gateway::inside(gateway.kill(), &Start::default());
    serves_last(&gateway, &proxy);
}
