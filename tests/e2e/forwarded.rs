//! Writes made in a region that is not home: answers that are lost on the way, one name for two
//! regions, and a token that home has revoked (`schedules.md` part one, 17).

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};

use crate::harness::gateway::Gateway;
use crate::harness::http::Request;
use crate::harness::wait_for;
use crate::regions::Two;

/// A way to a REST API on which answers are lost.
struct Lossy {
    address: String,
    /// Of so many of the next answers only a part arrives.
    losses: Arc<AtomicUsize>,
    /// Bytes of it.
    part: Arc<AtomicUsize>,
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
        };
        let target = target.to_owned();
        std::thread::spawn(move || {
            for near in listener.incoming().flatten() {
                let Ok(far) = TcpStream::connect(&target) else {
                    continue;
                };
                let double = |stream: &TcpStream| stream.try_clone().expect("a handle");
                let (mut from, mut to) = (double(&near), double(&far));
                std::thread::spawn(move || {
                    let _ = std::io::copy(&mut from, &mut to);
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

#[test]
fn a_write_whose_answer_is_lost_is_done_once() {
    let two = Two::new();
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
