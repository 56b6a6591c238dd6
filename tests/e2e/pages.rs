//! A list of several pages, as a command shows it.

use serde_json::{Value, json};

use crate::harness::gateway::binary;
use crate::harness::upstream::{After, Upstream, json_answer};

#[test]
fn a_command_follows_a_list_to_its_last_page() {
    // In the place of a control plane with more nodes than a test can start.
    let control = Upstream::start(|request, connection| {
        let page = |names: &[&str], next: Option<&str>| {
            let items = names.iter().map(|name| json!({"name": name}));
            json!({"items": items.collect::<Vec<_>>(), "next_cursor": next})
        };
        let body = match request.target().rsplit_once("&cursor=") {
            None => page(&["gw-1", "gw-2"], Some("Mg")),
            Some((_, "Mg")) => page(&["gw-3"], Some("Mw")),
            Some(_) => page(&["gw-4"], None),
        };
        let status = "200 OK\r\nrequestrocket-request-id: req_1";
        connection.send(json_answer(status, &body.to_string()));
        After::Keep
    });
    let ran = binary()
        .args(["nodes", "--org", "acme", "--output", "json", "--control"])
        .arg(control.url())
        .env("REQUESTROCKET_TOKEN", "rr_api_x")
        .output()
        .expect("the binary runs");
    assert!(ran.status.success(), "{ran:?}");
    let listed: Value = serde_json::from_slice(&ran.stdout).expect("JSON");
    let names = ["gw-1", "gw-2", "gw-3", "gw-4"].map(|name| json!({"name": name}));
    assert_eq!(listed, json!({"items": names, "next_cursor": null}));
    let asked = control.seen();
    let asked: Vec<&str> = asked.iter().map(|request| request.target()).collect();
    let path = "/api/v1/nodes?org=acme";
    let expected = [
        path,
        &format!("{path}&cursor=Mg"),
        &format!("{path}&cursor=Mw"),
    ];
    assert_eq!(asked, expected);
}
