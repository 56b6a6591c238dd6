//! Who goes first among callers that a meter holds: by what their credential says, or the request.

use serde_json::json;

use crate::harness::gateway::Gateway;
use crate::harness::http::{Connection, Request};
use crate::harness::upstream::{After, Upstream, json_answer};
use crate::harness::wait_for;

/// A target that asks to wait, once: whoever comes meanwhile is held, and all are there before the
/// first of them goes on.
fn busy_at_first() -> Upstream {
    Upstream::start(|request, connection| {
        let busy = request.target().ends_with("/busy");
        connection.send(match busy {
            true => "HTTP/1.1 429 Too Many Requests\r\nretry-after: 4\r\ncontent-length: 0\r\n\r\n"
                .to_owned(),
            false => json_answer("200 OK", "{}"),
        });
        After::Keep
    })
}

#[test]
fn held_callers_go_by_the_priority_of_their_credential_or_their_header() {
    let gateway = Gateway::start();
    let upstream = busy_at_first();
    let proxy = gateway.proxy(&upstream.url());
    let urgent = json!({"kind": "proxy", "auth_type": "api_key", "priority": 5});
    let urgent = gateway.create("/credentials", urgent);
    assert_eq!(urgent["priority"], 5, "{urgent}");
    let callers = json!([proxy.proxy_credential, urgent["id"]]);
    let fields = json!({"proxy_credential_ids": callers});
    gateway.patch(&format!("/proxies/{}", proxy.id), fields);
    let hold = json!({"max_wait_ms": 60_000, "priority_header": "x-urgency"});
    let meter = json!({
        "limits": [{"limit": 1, "window": "second"}], "at_limit": {"hold": hold},
        "learn": {"from": "retry_after"},
    });
    gateway.create(&format!("/proxies/{}/meters", proxy.id), meter);
    assert_eq!(proxy.get("/busy").status(), 429);

    let key = urgent["secret"]["key"].as_str().expect("a key");
    let of_urgent = |path: &str| {
        let request = proxy.request("GET", path).without("authorization");
        request.field("authorization", &format!("Bearer {key}"))
    };
    let requests: [Request; 5] = [
        proxy.request("GET", "/plain"),
        of_urgent("/urgent"),
        of_urgent("/lowered").field("x-urgency", "2"),
        proxy.request("GET", "/raised").field("x-urgency", "7"),
        of_urgent("/odd").field("x-urgency", "high"),
    ];
    let held = || gateway.metric("requestrocket_limit_callers_held");
    let mut waiting = Vec::new();
    for request in &requests {
        let mut connection = Connection::open(&gateway.url);
        connection.send(request.bytes(&gateway.url));
        waiting.push(connection);
        let all = waiting.len() as f64;
        wait_for("a further one that waits", || (held() == all).then_some(()));
    }
    for connection in &mut waiting {
        let answer = connection.read().expect("an answer");
        assert_eq!(answer.status(), 200, "{}", answer.text());
    }
    let seen = upstream.seen();
    let paths: Vec<&str> = seen.iter().skip(1).map(|one| one.target()).collect();
    let expected = ["/raised", "/urgent", "/odd", "/lowered", "/plain"];
    assert_eq!(paths, expected);
}
