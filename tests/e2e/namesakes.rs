//! Two nodes of one name: their records and their parts of limits mix, and people are told.

use super::cluster::Cluster;
use crate::harness::gateway::Gateway;
use crate::harness::wait_for;

/// What the control plane says of the place of each node: where it is, and the details.
fn told(control: &Gateway) -> Vec<(String, Vec<String>)> {
    let listed = control.operator("/nodes").json();
    let items = listed["items"].as_array().expect("a list").iter();
    let shown = items.map(|node| {
        let problems = node["problems"].as_array().cloned().unwrap_or_default();
        let taken = problems.iter().map(|problem| {
            assert_eq!(problem["code"], "name-taken", "{problem}");
            problem["detail"].as_str().expect("a text").to_owned()
        });
        let address = node["address"].as_str().expect("a text").to_owned();
        (address, taken.collect())
    });
    shown.collect()
}

/// A node that was killed and started again is listed twice for 15 s, so that its log tells of a
/// namesake only after that.
#[test]
fn two_nodes_of_one_name_are_told_where_the_other_one_is_and_what_to_do() {
    let cluster = Cluster::new();
    let control = Gateway::with(cluster.control_start());
    let nodes = [cluster.node("gw-1", "gw-1"), cluster.node("gw-1", "gw-1")];
    let places = nodes.each_ref().map(|node| {
        let place = node.url.trim_start_matches("http://");
        place.to_owned()
    });
    let is_said = |text: &str, place: &str| {
        let remedy = "give each its own `node_name`";
        text.contains(place) && text.contains("is named gw-1 too") && text.contains(remedy)
    };
    let shown = wait_for("both nodes", || {
        let shown = told(&control);
        (shown.len() == 2).then_some(shown)
    });
    for (own, other) in [(0, 1), (1, 0)] {
        let (_, details) = shown
            .iter()
            .find(|(address, _)| *address == places[own])
            .expect("the node");
        assert!(is_said(&details.concat(), &places[other]), "{shown:?}");
    }
    let listed = control.command(&["nodes"]);
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    for place in &places {
        let mut lines = listed.lines().filter(|line| line.contains("! name-taken"));
        assert!(lines.any(|line| is_said(line, place)), "{listed}");
    }
    // The first one looks again at its own times, and has seen the second one less often.
    wait_for("a line in the log", || {
        let log = nodes[1].log();
        let mut lines = log.lines().filter(|line| line.contains("ERROR"));
        lines.any(|line| is_said(line, &places[0])).then_some(())
    });
    let [first, second] = nodes;
    assert_eq!(second.stop().0.code(), Some(0));
    let _renamed = cluster.node("gw-2", "gw-2");
    wait_for("names of their own", || {
        let shown = told(&control);
        let alone = shown.len() == 2 && shown.iter().all(|(_, details)| details.is_empty());
        alone.then_some(())
    });
    drop(first);
}
