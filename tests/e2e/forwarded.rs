//! Writes made in a region that is not home: answers that are lost on the way, one name for two
//! regions, and a token that home has revoked (`schedules.md` part one, 17).

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use crate::harness::gateway::Gateway;
use crate::harness::http::Request;
use crate::harness::wait_for;
use crate::regions::{Two, open, sealed};
use crate::residency::{code_of, id_of};

/// A way to a REST API that is overheard, and on which answers are lost.
struct Lossy {
    address: String,
    /// Of so many of the next answers only a part arrives.
    losses: Arc<AtomicUsize>,
    /// Bytes of it.
    part: Arc<AtomicUsize>,
    /// All that went to the API.
    heard: Arc<Mutex<Vec<u8>>>,
}

impl Lossy {
    fn new(target: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address").to_string();
        let (losses, part) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let way = Self {
            address,
            losses: Arc::clone(&losses),
            part: Arc::clone(&part),
            heard: Arc::default(),
        };
        let heard = Arc::clone(&way.heard);
        let target = target.to_owned();
        std::thread::spawn(move || {
            for near in listener.incoming().flatten() {
                let Ok(far) = TcpStream::connect(&target) else {
                    continue;
                };
                let double = |stream: &TcpStream| stream.try_clone().expect("a handle");
                let (mut from, mut to) = (double(&near), double(&far));
                let heard = Arc::clone(&heard);
                std::thread::spawn(move || {
                    let mut bytes = [0; 16 * 1024];
                    while let Ok(count @ 1..) = from.read(&mut bytes) {
                        let heard = heard.lock();
                        heard.expect("no panic").extend(&bytes[..count]);
                        if to.write_all(&bytes[..count]).is_err() {
                            break;
                        }
                    }
                    let _ = to.shutdown(Shutdown::Write);
                });
                let (losses, part) = (Arc::clone(&losses), Arc::clone(&part));
                std::thread::spawn(move || give_back(far, near, &losses, &part));
            }
        });
        way
    }

    fn lose(&self, losses: usize, part: usize) {
        self.part.store(part, Ordering::SeqCst);
        self.losses.store(losses, Ordering::SeqCst);
    }

    /// How often a text has gone this way.
    fn count(&self, text: &str) -> usize {
        let heard = self.heard.lock().expect("no panic");
        String::from_utf8_lossy(&heard).matches(text).count()
    }

    fn left(&self) -> usize {
        self.losses.load(Ordering::SeqCst)
    }
}

/// Carries answers, whole or in part.
fn give_back(mut far: TcpStream, mut near: TcpStream, losses: &AtomicUsize, part: &AtomicUsize) {
    let mut bytes = [0; 16 * 1024];
    while let Ok(count @ 1..) = far.read(&mut bytes) {
        let loses = losses.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| {
            left.checked_sub(1)
        });
        let given = match loses {
            Ok(_) => part.load(Ordering::SeqCst).min(count),
            Err(_) => count,
        };
        let _ = near.write_all(&bytes[..given]);
        if loses.is_ok() {
            break;
        }
    }
    let _ = near.shutdown(Shutdown::Both);
    let _ = far.shutdown(Shutdown::Both);
}

/// How many targets have a name.
fn named(control: &Gateway, name: &str) -> usize {
    let listed = control.get("/targets");
    let items = listed["items"].as_array().expect("a list");
    items.iter().filter(|target| target["name"] == name).count()
}

fn target(name: &str) -> Value {
    json!({"base_url": "https://api.example.com", "name": name})
}

/// The control planes of two regions, and the way from that of eu to the API of us, home.
fn controls(two: &Two) -> (Gateway, Gateway, Lossy) {
    let us = Gateway::with(two.us_start());
    let lossy = Lossy::new(two.us.control_address());
    let mut start = two.eu_start();
    let direct = format!("control = \"http://{}\"", two.us.control_address());
    assert!(start.config.contains(&direct));
    let through = format!("control = \"http://{}\"", lossy.address);
    start.config = start.config.replace(&direct, &through);
    let mut eu = Gateway::with(start);
    eu.token.clone_from(&us.token);
    two.wait_equal();
    wait_for("home's token in eu", || {
        (eu.operator("/me").status() == 200).then_some(())
    });
    (us, eu, lossy)
}

#[test]
fn a_write_whose_answer_is_lost_is_done_once() {
    let two = Two::new();
    let (us, eu, lossy) = controls(&two);
    // Nothing of the answer comes, a part of its head, all of its head and some of its body.
    for (at, part) in [0, 20, 900].into_iter().enumerate() {
        let name = format!("once-{at}");
        // Large enough that its answer does not end within the part.
        let mut document = target(&name);
        document["labels"] = (0..40)
            .map(|n| (format!("label-{n}"), json!("x".repeat(60))))
            .collect::<serde_json::Map<_, _>>()
            .into();
        lossy.lose(1, part);
        let made = eu.api("POST", "/targets", Some(&document));
        assert_eq!(made.status(), 201, "{part}: {}", made.text());
        assert_eq!(lossy.left(), 0, "the answer was lost");
        let id = made.json()["id"].as_str().expect("an id").to_owned();
        assert_eq!(eu.get(&format!("/targets/{id}"))["name"], name.as_str());
        assert_eq!((named(&us, &name), named(&eu, &name)), (1, 1), "{part}");
    }
    // Lost twice, the caller is told that nobody knows, and its own key makes the rest safe.
    let post = || {
        Request::new("POST", "/api/v1/orgs/default/targets")
            .field("authorization", &format!("Bearer {}", eu.token))
            .field("idempotency-key", "a-key-of-the-caller")
            .json(&target("twice").to_string())
            .send(&eu.control)
    };
    lossy.lose(2, 0);
    let unknown = post();
    assert_eq!(unknown.status(), 503, "{}", unknown.text());
    assert_eq!(unknown.json()["code"], "outcome-unknown");
    let made = post();
    assert_eq!(made.status(), 201, "{}", made.text());
    assert_eq!((named(&us, "twice"), named(&eu, "twice")), (1, 1));
}

#[test]
fn of_two_regions_that_take_one_name_one_gets_it() {
    let two = Two::new();
    let (us, eu) = two.controls();
    for at in 0..10 {
        let document = json!({"slug": format!("acme-{at}")});
        let take = |control: &Gateway| {
            let token = Some(control.token.as_str());
            let answer = control.control_call("POST", "/api/v1/orgs", token, Some(&document));
            answer.status()
        };
        let statuses = std::thread::scope(|scope| {
            let taken = [scope.spawn(|| take(&us)), scope.spawn(|| take(&eu))];
            taken.map(|taken| taken.join().expect("no panic"))
        });
        let made = statuses.iter().filter(|status| **status == 201).count();
        let refused = statuses.iter().any(|status| [409, 422].contains(status));
        assert!(made == 1 && refused, "{statuses:?}");
    }
    two.wait_equal();
}

#[test]
fn a_token_that_home_revoked_writes_nothing_from_a_region_that_has_not_heard() {
    let two = Two::new();
    let (us, eu) = two.controls();
    let made = us.create("/tokens", json!({"name": "dev", "role": "admin"}));
    let token = made["secret"]["token"]
        .as_str()
        .expect("a token")
        .to_owned();
    let id = made["id"].as_str().expect("an id").to_owned();
    let targets = "/api/v1/orgs/default/targets";
    let write = |name: &str| eu.control_call("POST", targets, Some(&token), Some(&target(name)));
    wait_for("the token in eu", || {
        (eu.control_call("GET", targets, Some(&token), None).status() == 200).then_some(())
    });
    assert_eq!(write("before").status(), 201);
    two.way.cut();
    let revoked = us.api("DELETE", &format!("/tokens/{id}"), None);
    assert!(revoked.status() < 300, "{}", revoked.text());
    // eu does not know, and home judges with its own copy.
    let refused = write("after");
    assert_eq!(refused.status(), 401, "{}", refused.text());
    assert_eq!(named(&us, "after"), 0);
    two.way.heal();
    wait_for("the revocation in eu", || {
        let read = eu.control_call("GET", targets, Some(&token), None);
        [401, 429].contains(&read.status()).then_some(())
    });
}

/// The token that a credential has in eu, as the nodes there open it.
fn opened(two: &Two, id: &str) -> String {
    let dump = two.eu.dump();
    let of_it: Vec<_> = sealed(&dump, "eu")
        .into_iter()
        .filter(|(key, _)| key.contains(id))
        .collect();
    assert_eq!(of_it.len(), 1, "one secret of {id}");
    open(&two.ring("eu"), &of_it[0], HOST).expect("it opens")
}

const HOST: &str = "https://api.example.com";

fn canary(at: usize) -> String {
    format!("canary-{at}-5be1f0a93c7d4e21f0")
}

#[test]
fn secrets_of_writes_that_go_on_to_home_are_sealed_where_they_were_given() {
    let two = Two::new();
    let (us, eu, way) = controls(&two);
    let secret = |at| json!({"token": canary(at)});
    let fields = |at: usize| {
        json!({"kind": "target", "auth_type": "bearer", "name": format!("credential {at}"),
               "secret": secret(at), "hosts": [HOST], "regions": ["eu"]})
    };
    // Every way in which a write can give a secret.
    let made = eu.create("/credentials", fields(1));
    let id = id_of(&made);
    assert_eq!(opened(&two, &id), canary(1));
    let path = format!("/credentials/{id}");
    eu.patch(&path, json!({ "secret": secret(2) }));
    assert_eq!(opened(&two, &id), canary(2));
    let rotation = json!({ "secret": secret(3) });
    let rotated = eu.api("POST", &format!("{path}/rotate"), Some(&rotation));
    assert_eq!(rotated.status(), 200, "{}", rotated.text());
    assert_eq!(opened(&two, &id), canary(3));
    let replaced = eu.api("PUT", &path, Some(&fields(4)));
    assert_eq!(replaced.status(), 200, "{}", replaced.text());
    assert_eq!(opened(&two, &id), canary(4));

    let mut inline = json!({"target": {"base_url": HOST}, "regions": ["eu"],
                        "credentials": [fields(5), {"kind": "proxy", "auth_type": "api_key"}]});
    // Its hosts are those of the target.
    let of_target = inline["credentials"][0].as_object_mut();
    of_target.expect("an object").remove("hosts");
    let proxy = eu.create("/proxies", inline);
    let inline_id = proxy["target_credential_id"].as_str().expect("an id");
    assert_eq!(opened(&two, inline_id), canary(5));
    assert!(
        proxy["credentials"][1]["secret"]["key"].is_string(),
        "{proxy}"
    );

    let operations = json!({"operations": [
        {"create": "credentials", "as": "new", "object": fields(6)},
        {"update": id, "patch": {"secret": secret(7)}},
    ]});
    let changed = eu.api("POST", "/changes", Some(&operations));
    assert_eq!(changed.status(), 200, "{}", changed.text());
    assert_eq!(opened(&two, &id), canary(7));
    let config = json!({"format": "requestrocket/1", "credentials": [fields(8)]});
    let applied = eu.api("PUT", "/config", Some(&config));
    assert_eq!(applied.status(), 200, "{}", applied.text());

    // What callers present is kept as a digest: that is all that is sent.
    let given = json!({"kind": "proxy", "auth_type": "bearer", "secret": secret(9)});
    eu.create("/credentials", given);
    two.wait_equal();

    assert!(way.count("\"sealed\":{") >= 9, "they came this way");
    for at in 1..=9 {
        assert_eq!(way.count(&canary(at)), 0, "{at} in plain text");
    }
    let listed = us.get("/credentials?limit=100");
    let listed = listed["items"].as_array().expect("a list").len();
    assert_eq!(listed, 6, "each was made once");
}

#[test]
fn a_sealed_secret_is_the_same_request_again_and_nobody_elses_to_send() {
    let two = Two::new();
    let (us, eu, way) = controls(&two);
    let body = json!({"kind": "target", "auth_type": "bearer", "hosts": [HOST],
                      "secret": {"token": canary(1)}});
    let post = |to: &Gateway, body: &Value| {
        Request::new("POST", "/api/v1/orgs/default/credentials")
            .field("authorization", &format!("Bearer {}", us.token))
            .field("idempotency-key", "a-key-of-the-caller")
            .json(&body.to_string())
            .send(&to.control)
    };
    let first = post(&eu, &body);
    assert_eq!(first.status(), 201, "{}", first.text());
    // Sealed anew each time, and told from another secret all the same, in each region.
    for control in [&eu, &us] {
        let again = post(control, &body);
        assert_eq!(again.status(), 201, "{}", again.text());
        assert_eq!(again.json()["id"], first.json()["id"]);
    }
    let mut other = body.clone();
    other["secret"]["token"] = json!(canary(2));
    let other = post(&eu, &other);
    assert_eq!(
        other.json()["code"],
        "idempotency-key-reused",
        "{}",
        other.text()
    );

    // What is faulty is told by the region that was asked, and does not leave it.
    let short = json!({"kind": "proxy", "auth_type": "bearer", "secret": {"token": "weak-canary"}});
    let refused = eu.api("POST", "/credentials", Some(&short));
    let expected = (422, json!("/secret/token"), json!("secret-too-weak"));
    assert_eq!(code_of(&refused), expected);
    assert_eq!(way.count("weak-canary"), 0);

    // Nor does what is no secret of anything that is known, wherever it stands.
    let id = id_of(&first.json());
    let lost = canary(3);
    let secret = json!({"token": lost});
    let proxy_patch =
        json!({"operations": [{"update": id, "patch": {"nmae": "x", "secret": secret}}]});
    let rotate = format!("/credentials/{id}/rotate");
    for (method, path, body) in [
        ("POST", "/changes", proxy_patch),
        (
            "POST",
            "/changes",
            json!({"operations": [{"update": id, "patch": {"token": lost}}]}),
        ),
        (
            "POST",
            "/credentials",
            json!({"kind": "target", "auth_type": "bearer", "hosts": [HOST],
                                        "secret": lost}),
        ),
        (
            "POST",
            "/credentials",
            json!({"kind": "target", "auth_type": "bearer", "hosts": [HOST],
                                        "token": lost}),
        ),
        ("POST", rotate.as_str(), json!([{"secret": secret}])),
        ("POST", rotate.as_str(), json!({"new": {"secret": secret}})),
        (
            "PUT",
            "/config",
            json!({"format": "requestrocket/1", "credentials": [{"secret": secret}]}),
        ),
    ] {
        let refused = eu.api(method, path, Some(&body));
        assert_eq!(refused.status(), 422, "{path} {body}: {}", refused.text());
        assert_eq!(way.count(&lost), 0, "{path} {body}");
    }
    // A field that is there twice counts once, and only that goes on.
    let twice = format!(r#"{{"name": "twice", "secret": {{"token": "{lost}"}}, "secret": null}}"#);
    let patched = Request::new("PATCH", &format!("/api/v1/orgs/default/credentials/{id}"))
        .field("authorization", &format!("Bearer {}", us.token))
        .json(&twice)
        .send(&eu.control);
    assert!(patched.status() >= 200, "{}", patched.text());
    assert_eq!(way.count(&lost), 0);

    // A caller cannot say that something is sealed.
    let mut forged = body;
    forged["secret"] = json!({"sealed": {"org": "x", "proof": "00"}});
    for control in [&us, &eu] {
        let refused = control.api("POST", "/credentials", Some(&forged));
        let expected = (422, json!("/secret/sealed"), json!("not-genuine"));
        assert_eq!(code_of(&refused), expected);
    }
}
