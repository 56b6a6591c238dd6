//! Regions that are invited, join, and try what is not for them.

use actix_web::http::Method;
use jiff::{SignedDuration, Timestamp};
use proto::keys;
use proto::seal::{self, Keyring};
use proto::store::{Op, Txn};
use serde_json::{Value, json};

use super::{Who, api};
use crate::regions::invitations::{self, Invitation};

const INVITATIONS: &str = "/regions/invitations";

fn wanted(region: &str) -> Value {
    json!({"region": region, "control": "https://control.us.example",
           "replication": ["control.us.example:8082"]})
}

fn introduced(ring: &Keyring) -> Value {
    json!({
        "public": ring.public().unwrap(),
        "addresses": {"control": "https://control.ap.example", "gateway": "https://gw.ap.example",
                      "replication": ["control.ap.example:8082"]},
    })
}

macro_rules! join {
    ($api:expr, $token:expr, $body:expr) => {{
        let request = $api
            .request(Who::Nobody, Method::POST, "/regions/join")
            .insert_header(("authorization", format!("Bearer {}", $token)))
            .set_json($body);
        $api.send(request).await
    }};
}

#[actix_web::test]
async fn a_region_joins_once_and_gets_what_callers_keys_are_known_by() {
    let api = api().await;
    let made = api
        .post(Who::Operator, INVITATIONS, wanted("ap"))
        .await
        .is(201);
    let token = made.body["token"].as_str().unwrap().to_owned();
    assert!(token.starts_with("rr_join_ap_"), "{token}");
    let path = format!("{INVITATIONS}/{}", made.id());
    let shown = api.get(Who::Operator, &path).await.is(200);
    assert_eq!(
        (&shown.body["state"], &shown.body["token"]),
        (&json!("open"), &Value::Null)
    );

    let ring = Keyring::generate("ap");
    let admitted = join!(api, token, introduced(&ring)).is(200);
    let sealed = serde_json::from_value(admitted.body["digest_key"].clone()).unwrap();
    let key = seal::open_digest_key(&ring, &made.id(), &sealed).unwrap();
    assert!(key == api.control.digest_key);
    assert_eq!(admitted.body["home"], "local");
    let regions = admitted.body["regions"].as_array().unwrap();
    assert_eq!(regions.len(), 1);
    assert_eq!(
        regions[0]["addresses"]["control"],
        "https://control.us.example"
    );
    assert_eq!(regions[0]["addresses"]["gateway"], "https://gw.example");

    // Whoever did not get the answer asks once more; with other addresses it could be anybody, as
    // public keys are no secret.
    join!(api, token, introduced(&ring)).is(200);
    let mut moved = introduced(&ring);
    moved["addresses"]["replication"] = json!(["control-2.ap.example:8082"]);
    join!(api, token, moved).is(409);
    let shown = api.get(Who::Operator, &path).await.is(200).body;
    assert_eq!(shown["state"], "joined");
    assert_eq!(shown["joined"]["addresses"], introduced(&ring)["addresses"]);
    assert_eq!(
        shown["joined"]["fingerprint"],
        ring.public().unwrap().fingerprint()
    );
    assert_eq!(shown["joined"]["source"], "192.0.2.9");

    // Anybody else who has the token gets nothing, and is told that they are not the first.
    let again = join!(api, token, introduced(&Keyring::generate("ap"))).is(409);
    assert_eq!(again.body["code"], "invitation-used");
    assert!(
        again.text.contains(&ring.public().unwrap().fingerprint()),
        "{}",
        again.text
    );
    assert!(again.body["digest_key"].is_null());
    let audit = api
        .get(Who::Operator, "/orgs/system/audit?limit=5")
        .await
        .is(200);
    let items = audit.body["items"].as_array().unwrap();
    let told: Vec<_> = items
        .iter()
        .map(|item| item["kind"].as_str().unwrap_or("-"))
        .collect();
    assert!(told.contains(&"region_invited"), "{told:?}");
    let joined = items
        .iter()
        .find(|item| item["kind"] == "region_joined")
        .unwrap();
    assert_eq!(
        joined["details"]["fingerprint"],
        ring.public().unwrap().fingerprint()
    );
    // No second region of the name, before it was withdrawn.
    api.post(Who::Operator, INVITATIONS, wanted("ap"))
        .await
        .is(409);
    api.delete(Who::Operator, &path).await.is(204);
    join!(api, token, introduced(&ring)).is(401);
    api.post(Who::Operator, INVITATIONS, wanted("ap"))
        .await
        .is(201);
}

#[actix_web::test]
async fn an_invitation_that_is_repeated_is_the_first_one() {
    let api = api().await;
    let invite = |key: &'static str| {
        let request = api.request(Who::Operator, Method::POST, INVITATIONS);
        let request = request.insert_header(("idempotency-key", key));
        api.send(request.set_json(wanted("ap")))
    };
    let first = invite("k1").await.is(201);
    assert_eq!(invite("k1").await.is(201).body, first.body);
    assert_ne!(invite("k2").await.is(201).body, first.body);
}

#[actix_web::test]
async fn of_two_invitations_for_one_name_one_counts() {
    let api = api().await;
    let mut tokens = Vec::new();
    for _ in 0..2 {
        let made = api
            .post(Who::Operator, INVITATIONS, wanted("ap"))
            .await
            .is(201);
        tokens.push(made.body["token"].as_str().unwrap().to_owned());
    }
    join!(api, tokens[0], introduced(&Keyring::generate("ap"))).is(200);
    let second = join!(api, tokens[1], introduced(&Keyring::generate("ap"))).is(409);
    assert_eq!(second.body["code"], "conflict");
    // What joined is told to the next.
    let made = api
        .post(Who::Operator, INVITATIONS, wanted("sa"))
        .await
        .is(201);
    let token = made.body["token"].as_str().unwrap();
    let admitted = join!(api, token, introduced(&Keyring::generate("sa"))).is(200);
    let regions = admitted.body["regions"].as_array().unwrap();
    let names: Vec<_> = regions.iter().map(|one| &one["public"]["region"]).collect();
    assert_eq!(names, ["local", "ap"]);
}

#[actix_web::test]
async fn late_is_too_late() {
    let api = api().await;
    let made = api
        .post(Who::Operator, INVITATIONS, wanted("ap"))
        .await
        .is(201);
    let token = made.body["token"].as_str().unwrap();
    let store = api.control.publisher.store();
    let (kept, _) = invitations::read(store, &made.id()).await.unwrap();
    let ago = SignedDuration::from_secs(1);
    let late = Invitation {
        expires_at: Timestamp::now() - ago,
        ..kept
    };
    let ops = vec![Op::Put {
        key: keys::invitation(&made.id()),
        value: serde_json::to_vec(&late).unwrap().into(),
        lease: None,
    }];
    store
        .txn(Txn {
            ops,
            ..Txn::default()
        })
        .await
        .unwrap();
    let refused = join!(api, token, introduced(&Keyring::generate("ap"))).is(410);
    assert_eq!(refused.body["code"], "invitation-expired");
    assert!(
        refused.text.contains("regions invite ap"),
        "{}",
        refused.text
    );
    let list = api.get(Who::Operator, INVITATIONS).await.is(200);
    assert_eq!(list.body["items"][0]["state"], "expired");
}

#[actix_web::test]
async fn what_is_wrong_with_an_invitation_or_a_region_is_said() {
    let api = api().await;
    for (change, pointer) in [
        (json!({"region": "AP"}), "/region"),
        (json!({"control": "control.us"}), "/control"),
        (json!({"control": "http://control.us.example"}), "/control"),
        (json!({"replication": []}), "/replication"),
        (json!({"replication": ["host"]}), "/replication"),
        (json!({"valid_s": 1}), "/valid_s"),
        (json!({"wrong": 1}), ""),
    ] {
        let mut body = wanted("ap");
        for (key, value) in change.as_object().unwrap() {
            body[key] = value.clone();
        }
        let refused = api.post(Who::Operator, INVITATIONS, body).await.is(422);
        assert_eq!(refused.faults()[0].0, pointer, "{}", refused.text);
    }
    let own = api
        .post(Who::Operator, INVITATIONS, wanted("local"))
        .await
        .is(409);
    assert!(own.text.contains("`local`"), "{}", own.text);
    let made = api
        .post(Who::Operator, INVITATIONS, wanted("ap"))
        .await
        .is(201);
    let token = made.body["token"].as_str().unwrap().to_owned();
    let ring = Keyring::generate("ap");
    for (pointer, value) in [
        ("/public", json!(Keyring::generate("eu").public().unwrap())),
        ("/public/key", json!("AAAA")),
        ("/addresses/control", json!("ftp://x")),
        ("/addresses/control", json!("http://control.ap.example")),
        ("/addresses/replication", json!(["x:0"])),
        ("/signers", json!([{"id": "1", "key": "AAAA"}])),
    ] {
        let mut body = introduced(&ring);
        match body.pointer_mut(pointer) {
            Some(place) => *place = value,
            None => body[&pointer[1..]] = value,
        }
        let refused = join!(api, token, body).is(422);
        let (at, _) = refused.faults()[0].clone();
        assert!(
            at.is_empty() || at.starts_with(pointer) || pointer.starts_with(&at),
            "{at}"
        );
    }
    // Nothing was used up by that.
    join!(api, token, introduced(&ring)).is(200);
    // What is no invitation is a wrong token, and no document is judged for it.
    for wrong in ["rr_join_ap_x", "rr_api_x", &token[..token.len() - 1]] {
        join!(api, wrong, json!({})).is(401);
    }
    let mut last = 0;
    for _ in 0..20 {
        let never_issued = seal::issue_invitation("ap");
        last = join!(api, *never_issued, json!({})).status;
    }
    assert_eq!(last, 429);
}

#[actix_web::test]
async fn invitations_come_in_pages_the_newest_first() {
    let api = api().await;
    let mut made = Vec::new();
    for region in ["ap", "sa", "za"] {
        let invited = api.post(Who::Operator, INVITATIONS, wanted(region)).await;
        made.insert(0, invited.is(201).id());
    }
    let ids = |body: &Value| {
        let items = body["items"].as_array().unwrap().iter();
        let ids = items.map(|one| one["id"].as_str().unwrap().to_owned());
        ids.collect::<Vec<_>>()
    };
    let first = format!("{INVITATIONS}?limit=2");
    let first = api.get(Who::Operator, &first).await.is(200).body;
    let cursor = first["next_cursor"].as_str().unwrap();
    let second = format!("{INVITATIONS}?limit=2&cursor={cursor}");
    let second = api.get(Who::Operator, &second).await.is(200).body;
    assert_eq!([ids(&first), ids(&second)].concat(), made);
    assert_eq!(ids(&second).len(), 1);
    assert_eq!(second["next_cursor"], Value::Null);
}
