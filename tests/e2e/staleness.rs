//! What operators may still do in a region that has not heard from home for long (`schedules.md`
//! part one, 17, and part two, 19).

use jiff::{SignedDuration, Timestamp};
use proto::keys;
use proto::store::Op;
use serde_json::{Value, json};

use crate::harness::gateway::Gateway;
use crate::harness::wait_for;
use crate::raw_store::RawStore;
use crate::regions::Two;

fn promote(eu: &Gateway, token: &str, force: bool) -> (u16, Value) {
    let path = "/api/v1/regions/eu/promote";
    let answer = eu.control_call("POST", path, Some(token), Some(&json!({"force": force})));
    (answer.status(), answer.json())
}

#[test]
fn an_old_copy_of_operators_tokens_promotes_nothing() {
    let two = Two::new();
    let (us, eu) = two.controls();
    let store = RawStore::new(two.eu.etcd());
    wait_for("a note that eu has all", || {
        store.find(&keys::followed("us"))
    });
    let age = |age_s: i64| {
        let at = Timestamp::now() - SignedDuration::from_secs(age_s);
        let note = json!({"at": at}).to_string();
        store.put(vec![Op::put(keys::followed("us"), note)]);
    };
    let token = json!({"name": "of an organisation", "role": "admin"});
    let token = us.create("/tokens", token)["secret"]["token"].clone();
    let token = token.as_str().expect("a token").to_owned();
    let meter = json!({"limits": [{"limit": 100, "window": "minute"}]});
    let proxy = us.proxy("https://api.example.com").id;
    let meter = us.create(&format!("/proxies/{proxy}/meters"), meter)["id"].clone();
    let raise = || {
        let path = format!(
            "/api/v1/orgs/default/meters/{}/raise",
            meter.as_str().expect("an id")
        );
        let raise = json!({"percent": 200, "seconds": 60});
        eu.control_call("POST", &path, Some(&token), Some(&raise))
    };
    wait_for("the token and the meter in eu", || {
        (raise().status() == 200).then_some(())
    });
    // Nothing is noted any more, and the hour has passed.
    two.way.cut();
    two.back.cut();
    wait_for("the cut in eu", || {
        let connected = eu.metric("requestrocket_replication_connected{peer=\"us\"}");
        (connected == 0.0).then_some(())
    });
    age(3_605);
    let (status, refused) = promote(&eu, &us.token, true);
    assert_eq!((status, &refused["code"]), (503, &json!("auth-stale")));
    let detail = refused["detail"].as_str().expect("a text");
    assert!(detail.contains("operator_token_file"), "{detail}");
    // An organisation's own token may be revoked as well.
    let refused = raise();
    assert_eq!(refused.status(), 503, "{}", refused.text());
    let refused = refused.json();
    assert_eq!(refused["code"], "auth-stale");
    let detail = refused["detail"].as_str().expect("a text");
    assert!(detail.contains("of this organisation"), "{detail}");
    // What only asks, and what home judges, does not depend on it.
    assert_eq!(eu.operator("/regions").status(), 200);
    let question = json!({"method": "GET", "url": "http://gw.eu.example/api/nothing"});
    let explained = eu.api("POST", "/explain", Some(&question));
    assert_ne!(explained.json()["code"], "auth-stale");
    let target = json!({"base_url": "https://api.example.com", "name": "through eu"});
    let written = eu.api("POST", "/targets", Some(&target));
    assert_eq!(written.status(), 201, "{}", written.text());

    // A copy of almost an hour will do; what refuses is then that there is no majority.
    age(3_000);
    assert_eq!(raise().status(), 200);
    let (status, refused) = promote(&eu, &us.token, false);
    assert_eq!((status, &refused["code"]), (409, &json!("conflict")));
    // Once home is heard again the copy is young by itself.
    age(3_605);
    two.way.heal();
    two.back.heal();
    wait_for("a young copy", || {
        let (status, refused) = promote(&eu, &us.token, false);
        (status == 409 && refused["code"] == "conflict").then_some(())
    });

    // Home is gone for good: the region's own token is not bound by it, and whoever is home is not.
    us.stop();
    age(3_605);
    let token = eu.token.clone();
    assert_eq!(promote(&eu, &token, true).0, 503);
    let local = "eu-operator-token-of-at-least-32-characters";
    let (status, promoted) = promote(&eu, local, true);
    assert_eq!(status, 200, "{promoted}");
    let target = json!({"base_url": "https://api.example.com", "name": "at home"});
    wait_for("eu as home", || {
        (eu.api("POST", "/targets", Some(&target)).status() == 201).then_some(())
    });
}
