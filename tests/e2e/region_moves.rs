//! Home moves between two regions of real processes: planned under load, forced while the old home
//! is gone, and the old home's return.

use std::process::Output;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use crate::cluster::wait_status;
use crate::harness::gateway::{Gateway, binary};
use crate::harness::http::Request;
use crate::harness::upstream::Upstream;
use crate::harness::wait_for;
use crate::regions::Two;

/// `requestrocket regions …` on a control plane.
pub fn regions(control: &Gateway, token: &str, arguments: &[&str]) -> Output {
    binary()
        .arg("regions")
        .args(arguments)
        .args(["--control", &control.control])
        .env("REQUESTROCKET_TOKEN", token)
        .output()
        .expect("the binary runs")
}

pub fn said(output: &Output) -> String {
    let text = [&output.stdout[..], &output.stderr[..]].concat();
    String::from_utf8_lossy(&text).into_owned()
}

/// The region that a control plane takes for home.
fn home(control: &Gateway) -> Option<String> {
    let listed = control.operator("/regions").json();
    let mut items = listed["items"].as_array()?.iter();
    let home = items.find(|region| region["home"] == true)?;
    Some(home["name"].as_str()?.to_owned())
}

/// Renames a proxy until told to stop; gives the last name that was taken. Nothing but a move of
/// home may refuse, and only for a moment.
fn rename_until(control: &Gateway, path: &str, done: &AtomicBool, whose: &str) -> String {
    let (mut last, mut refused) = (String::new(), 0);
    for at in 0.. {
        if done.load(Ordering::SeqCst) {
            break;
        }
        let name = format!("{whose}-{at}");
        let answer = control.api("PATCH", path, Some(&json!({"name": name})));
        match answer.status() {
            200 => last = name,
            503 => {
                assert_eq!(answer.json()["code"], "home-moved", "{}", answer.text());
                refused += 1;
            }
            other => panic!("{other}: {}", answer.text()),
        }
    }
    assert!(refused < 50, "{refused} writes were refused");
    assert!(!last.is_empty());
    last
}

#[test]
fn home_is_handed_over_while_both_regions_write_and_serve() {
    let two = Two::new();
    let (us, eu) = two.controls();
    let nodes = [two.node(&two.us), two.node(&two.eu)];
    let upstream = Upstream::json("{}");
    let proxy = us.proxy(&upstream.url());
    for node in &nodes {
        wait_status(node, &proxy, "GET", 200);
    }
    let path = format!("/proxies/{}", proxy.id);
    let done = AtomicBool::new(false);
    let names = std::thread::scope(|scope| {
        let writers = [
            scope.spawn(|| rename_until(&us, &path, &done, "us")),
            scope.spawn(|| rename_until(&eu, &path, &done, "eu")),
        ];
        let versions = |control: &Gateway| {
            let listed = control.get("/versions?limit=1");
            listed["items"][0]["n"].as_u64().expect("a number")
        };
        let before = versions(&us);
        wait_for("writes", || (versions(&us) > before + 5).then_some(()));
        // Asked in the region that is to be home: it goes on to the one that is.
        let moved = regions(&eu, &us.token, &["promote", "eu"]);
        assert!(moved.status.success(), "{}", said(&moved));
        assert!(
            said(&moved).contains("handed over to eu"),
            "{}",
            said(&moved)
        );
        for control in [&us, &eu] {
            wait_for("the new home", || (home(control)? == "eu").then_some(()));
        }
        let at_the_move = versions(&eu);
        wait_for("writes after it", || {
            (versions(&eu) > at_the_move + 5).then_some(())
        });
        done.store(true, Ordering::SeqCst);
        writers.map(|writer| writer.join().expect("nothing but the move refuses"))
    });
    two.wait_equal();
    // A control plane sees what its store has a moment later.
    wait_for("the last name of one of them", || {
        let name = us.get(&path)["name"].clone();
        names.iter().any(|last| name == last.as_str()).then_some(())
    });
    // A change that is made where home was is in effect in both regions.
    us.patch(&path, json!({"active": false}));
    for node in &nodes {
        wait_status(node, &proxy, "GET", 403);
    }
    let aside = regions(&us, &us.token, &["aside"]);
    assert!(
        said(&aside).contains("nothing is set aside"),
        "{}",
        said(&aside)
    );
    // There is nothing left to hand over, which is said.
    let before = eu.get("/versions?limit=1");
    let again = regions(&us, &us.token, &["promote", "eu", "--force"]);
    assert!(again.status.success(), "{}", said(&again));
    let already = "eu is home already, nothing was moved";
    assert!(said(&again).contains(already), "{}", said(&again));
    assert_eq!(eu.get("/versions?limit=1"), before);
}

#[test]
fn a_region_is_promoted_without_home_and_the_old_homes_branch_is_set_aside() {
    let two = Two::new();
    let (us, eu) = two.controls();
    let nodes = [two.node(&two.us), two.node(&two.eu)];
    let upstream = Upstream::json("{}");
    let proxy = us.proxy(&upstream.url());
    for node in &nodes {
        wait_status(node, &proxy, "GET", 200);
    }
    let path = format!("/proxies/{}", proxy.id);
    two.wait_equal();
    // us makes two versions that nobody else hears of, and dies.
    two.way.cut();
    two.back.cut();
    us.patch(&path, json!({"name": "in us alone"}));
    us.patch(&path, json!({"name": "in us alone, again"}));
    let token = us.token.clone();
    let folder = us.kill();
    let local = "eu-operator-token-of-at-least-32-characters";
    let alone = regions(&eu, local, &["promote", "eu"]);
    assert!(!alone.status.success(), "{}", said(&alone));
    assert!(
        said(&alone).contains("no majority") && said(&alone).contains("not asked: us"),
        "{}",
        said(&alone)
    );
    // The operator's token of the region is for this, and for nothing else.
    let other = eu.control_call("GET", "/api/v1/orgs", Some(local), None);
    assert_eq!(other.status(), 403, "{}", other.text());
    let forced = regions(&eu, local, &["promote", "eu", "--force"]);
    assert!(forced.status.success(), "{}", said(&forced));
    assert!(
        said(&forced).contains("home is eu") && said(&forced).contains("not asked: us"),
        "{}",
        said(&forced)
    );
    wait_for("the new home", || (home(&eu)? == "eu").then_some(()));
    eu.patch(&path, json!({"name": "in force", "active": false}));
    wait_status(&nodes[1], &proxy, "GET", 403);
    assert_eq!(
        proxy.request("GET", "/").send(&nodes[0].url).status(),
        200,
        "us serves alone"
    );
    // The old home comes back: what it made alone is listed, and eu's branch is in force.
    two.way.heal();
    two.back.heal();
    let mut us = Gateway::inside(folder, &two.us_start());
    us.token = token;
    two.wait_equal();
    for node in &nodes {
        wait_status(node, &proxy, "GET", 403);
    }
    let shown = wait_for("what was set aside", || {
        let shown = us.operator("/regions/aside").json();
        let count = shown["items"].as_array().map(Vec::len);
        (count == Some(2)).then_some(shown)
    });
    let first: &Value = &shown["items"][0];
    assert_eq!(
        (
            &first["slug"],
            &first["epoch"]["counter"],
            &first["changes"]
        ),
        (&json!("default"), &json!(1), &json!(1))
    );
    assert_eq!(first["changed"], json!([proxy.id]));
    let listed = said(&regions(&us, &us.token, &["aside"]));
    assert_eq!(listed.lines().count(), 2, "{listed}");
    assert!(eu.operator("/regions/aside").json()["items"] == json!([]));
    // Writes in us now go on to eu.
    wait_for("the new home in us", || (home(&us)? == "eu").then_some(()));
    us.patch(&path, json!({"name": "through us"}));
    assert_eq!(eu.get(&path)["name"], "through us");
    two.wait_equal();
}

/// A forced promotion leaves in its old home what may be nowhere else: the homes of `system` and of
/// that organisation are two then.
#[test]
fn what_may_be_in_the_home_before_alone_is_changed_once_that_is_home_again() {
    let mut two = Two::new();
    two.content_by_region = true;
    let (us, eu) = two.controls();
    us.organisation("apart");
    let strict = json!({"regions": ["us"], "residency": "strict"});
    let proxy = us.proxy_in("apart", "http://127.0.0.1:9", json!({}), strict);
    two.wait_equal();
    let token = us.token.clone();
    let folder = us.kill();
    let local = "eu-operator-token-of-at-least-32-characters";
    let forced = regions(&eu, local, &["promote", "eu", "--force"]);
    assert!(forced.status.success(), "{}", said(&forced));
    assert!(said(&forced).contains("what us alone keeps is frozen"));
    let mut us = Gateway::inside(folder, &two.us_start());
    us.token = token;
    for control in [&us, &eu] {
        wait_for("the new home", || (home(control)? == "eu").then_some(()));
    }
    let ids = [
        ("proxies", &proxy.id),
        ("credentials", &proxy.proxy_credential),
        ("credentials", &proxy.target_credential),
        ("targets", &proxy.target),
    ];
    let delete = |(collection, id): (&str, &String)| {
        us.api_of("apart", "DELETE", &format!("/{collection}/{id}"), None)
    };
    // eu may not have the proxy, and what it names is not seen there.
    for of in ids {
        let refused = delete(of);
        let code = refused.json()["code"].clone();
        let refused_as = (refused.status(), code);
        assert_eq!(refused_as, (503, json!("set-unavailable")), "{of:?}");
    }
    let at = |control: &Gateway, method: &str, body: Option<&Value>| {
        control.control_call(method, "/api/v1/orgs/apart", Some(&us.token), body)
    };
    for control in [&us, &eu] {
        let name = format!("named through {}", control.control);
        let named = at(control, "PATCH", Some(&json!({"name": name})));
        assert_eq!(named.status(), 200, "{}", named.text());
        assert_eq!(named.json()["name"], name);
    }
    two.wait_equal();

    let moved = regions(&eu, &us.token, &["promote", "us"]);
    assert!(moved.status.success(), "{}", said(&moved));
    for control in [&us, &eu] {
        wait_for("one home", || (home(control)? == "us").then_some(()));
    }
    for of in ids {
        let gone = delete(of);
        assert_eq!(gone.status(), 204, "{of:?}: {}", gone.text());
    }
    let gone = at(&eu, "DELETE", None);
    assert_eq!(gone.status(), 204, "{}", gone.text());
    wait_for("its end in both regions", || {
        let found = [&us, &eu].map(|control| at(control, "GET", None).status());
        (found == [404, 404]).then_some(())
    });
}

#[test]
fn a_write_that_is_repeated_where_home_is_now_is_answered_as_before() {
    let two = Two::new();
    let (us, eu) = two.controls();
    let write = |control: &Gateway, key: &str| {
        let body = json!({"base_url": "https://api.example.com", "name": key});
        Request::new("POST", "/api/v1/orgs/default/targets")
            .field("authorization", &format!("Bearer {}", us.token))
            .field("content-type", "application/json")
            .field("idempotency-key", key)
            .body(body.to_string())
            .send(&control.control)
    };
    let made = [write(&us, "one"), write(&eu, "two")];
    for answer in &made {
        assert_eq!(answer.status(), 201, "{}", answer.text());
    }
    two.wait_equal();
    let moved = regions(&us, &us.token, &["promote", "eu"]);
    assert!(moved.status.success(), "{}", said(&moved));
    for control in [&us, &eu] {
        wait_for("the new home", || (home(control)? == "eu").then_some(()));
    }
    // The client lost the answer, and asks whichever region answers.
    for (key, first) in ["one", "two"].iter().zip(&made) {
        for control in [&eu, &us] {
            let again = write(control, key);
            assert_eq!(again.status(), 201, "{}", again.text());
            assert_eq!(again.json()["id"], first.json()["id"], "{key}");
        }
    }
    let listed = eu.get("/targets");
    assert_eq!(
        listed["items"].as_array().map(Vec::len),
        Some(2),
        "{listed}"
    );
    // The same key of another request is refused there too.
    let other = json!({"base_url": "https://other.example.com"});
    let other = Request::new("POST", "/api/v1/orgs/default/targets")
        .field("authorization", &format!("Bearer {}", us.token))
        .field("content-type", "application/json")
        .field("idempotency-key", "one")
        .body(other.to_string())
        .send(&eu.control);
    assert_eq!(
        other.json()["code"],
        "idempotency-key-reused",
        "{}",
        other.text()
    );
}
