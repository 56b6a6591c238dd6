//! Who calls is judged by what holds when something is done, and learns nothing of what is not
//! theirs.

use actix_http::{BoxedPayloadStream, Payload};
use actix_web::body::MessageBody;
use actix_web::dev::{Service, ServiceResponse};
use actix_web::http::Method;
use actix_web::test;
use bytes::Bytes;
use futures_util::stream::{once, pending};
use jiff::Timestamp;
use proto::id::{CredentialId, RequestId};
use proto::record::Record;
use proto::seal::issue_invitation;
use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::{Api, Reply, Who, api};
use crate::api::proxies::{self, Unnamed};

const TOKENS: &str = "/orgs/acme/tokens";

impl<S, B> Api<S>
where
    S: Service<actix_http::Request, Response = ServiceResponse<B>, Error = actix_web::Error>,
    B: MessageBody,
{
    /// A call whose body comes as it is sent.
    async fn send_as_it_comes(
        &self,
        request: test::TestRequest,
        body: BoxedPayloadStream,
    ) -> Reply {
        let request = request.insert_header(("content-type", "application/json"));
        let (request, _) = request.to_request().replace_payload(Payload::from(body));
        self.reply(test::call_service(&self.service, request).await)
            .await
    }

    /// The id of an API token of `acme` by its name.
    async fn token_named(&self, name: &str) -> String {
        let list = self.get(Who::Owner, TOKENS).await.is(200).body;
        let mut tokens = list["items"].as_array().unwrap().iter();
        let found = tokens.find(|token| token["name"] == name).unwrap();
        found["id"].as_str().unwrap().to_owned()
    }
}

/// A body that is here at last when `rest` says so; `reading` is told when it is waited for.
fn held(
    body: &Value,
    reading: oneshot::Sender<()>,
    rest: oneshot::Receiver<()>,
) -> BoxedPayloadStream {
    let body = Bytes::from(body.to_string());
    Box::pin(once(async move {
        reading.send(()).unwrap();
        rest.await.unwrap();
        Ok(body)
    }))
}

#[actix_web::test]
async fn a_token_that_loses_its_standing_while_its_body_comes_does_nothing() {
    for (method, change, status) in [
        (Method::DELETE, None, 401),
        (Method::PATCH, Some(json!({"role": "member"})), 403),
    ] {
        let api = api().await;
        let path = format!("{TOKENS}/{}", api.token_named("Admin").await);
        let (reading, is_read) = oneshot::channel();
        let (send_rest, rest) = oneshot::channel();
        let body = json!({"name": "kept", "role": "admin"});
        let request = api.request(Who::Admin, Method::POST, TOKENS);
        let making = api.send_as_it_comes(request, held(&body, reading, rest));
        let revoking = async {
            is_read.await.unwrap();
            let request = api.request(Who::Owner, method, &path);
            let request = match change {
                Some(change) => request.set_json(change),
                None => request,
            };
            let done = api.send(request).await;
            assert!(done.status < 300, "{}", done.text);
            send_rest.send(()).unwrap();
        };
        let (made, ()) = tokio::join!(making, revoking);
        made.is(status);
        let list = api.get(Who::Owner, TOKENS).await.is(200);
        assert!(!list.text.contains("kept"), "{}", list.text);
    }
}

#[actix_web::test]
async fn nobody_without_a_token_has_a_body_waited_for() {
    let api = api().await;
    let invited = issue_invitation("eu");
    for (path, token) in [
        ("/regions/join", "rr_join_x"),
        ("/regions/join", invited.as_str()),
        (TOKENS, "rr_api_x"),
    ] {
        let request = api.request(Who::Nobody, Method::POST, path);
        let request = request.insert_header(("authorization", format!("Bearer {token}")));
        let refused = api.send_as_it_comes(request, Box::pin(pending())).await;
        refused.is(401);
    }
}

#[actix_web::test]
async fn versions_of_other_organisations_are_those_of_none() {
    let api = api().await;
    let other = api.control.find_org("other").unwrap().id;
    let unknown = proto::id::OrgId::new();
    let mut told = Vec::new();
    for (org, status) in [(api.acme, 200), (other, 503), (unknown, 503)] {
        let request = api.request(Who::Viewer, Method::GET, "/orgs/acme/targets");
        let request = request.insert_header(("requestrocket-version", format!("{org}=1")));
        let reply = api.send(request).await.is(status);
        told.push(reply.text.replace(&org.to_string(), "org"));
    }
    let without_id = |text: &str| {
        let mut answer: Value = serde_json::from_str(text).unwrap();
        answer["request_id"] = Value::Null;
        answer
    };
    assert_eq!(without_id(&told[1]), without_id(&told[2]));
    // An operator has a role in all of them.
    let request = api.request(Who::Operator, Method::GET, "/orgs/other/targets");
    let request = request.insert_header(("requestrocket-version", format!("{other}=1")));
    api.send(request).await.is(200);
}

fn record(api: &Api<impl Sized>, n: u128) -> Record {
    let fields = json!({
        "request_id": RequestId::from_bits(n), "org_id": api.acme,
        "config_version": 1, "node": "n", "region": "local", "method": "GET", "path": "/",
        "query": [], "status": 200, "code": "proxy-access-granted",
        "started_at_us": Timestamp::now().as_microsecond(), "total_us": 5, "stages": [],
        "request_bytes": 0, "response_bytes": 0, "upstream_request_bytes": 0,
        "upstream_response_bytes": 0, "attempts": 1, "denials": [], "shadow_rule_ids": [],
        "filter_ids": [], "upstream_ids": [], "client_aborted": false, "scrubbed": 0,
        "proxy_id": "prx_00000000000000000000000000"
    });
    serde_json::from_value(fields).unwrap()
}

#[actix_web::test]
async fn an_operator_who_is_none_any_more_follows_no_records_of_others() {
    let api = api().await;
    let request = api.request(Who::Operator, Method::GET, "/orgs/acme/records/follow");
    let answer = test::call_service(&api.service, request.to_request()).await;
    assert_eq!(answer.status(), 200);
    let list = api.get(Who::Operator, "/orgs/system/tokens").await.is(200);
    let mut tokens = list.body["items"].as_array().unwrap().iter();
    let own = tokens.find(|token| token["name"] == "Admin").unwrap();
    let path = format!("/orgs/system/tokens/{}", own["id"].as_str().unwrap());
    let demoted = json!({"role": "member"});
    api.patch(Who::Operator, &path, demoted).await.is(200);
    let batch = [record(&api, 1)];
    api.control.records.insert(&batch).unwrap();
    let followed = api.reply(answer).await;
    assert_eq!(followed.text, ": following\n\n");
}

#[actix_web::test]
async fn who_follows_again_is_told_first_what_came_meanwhile() {
    let api = api().await;
    let told = async |last: Option<&Record>| {
        let mut request = api.request(Who::Admin, Method::GET, "/orgs/acme/records/follow");
        if let Some(last) = last {
            request = request.insert_header(("last-event-id", last.request_id.to_string()));
        }
        let answer = test::call_service(&api.service, request.to_request()).await;
        assert_eq!(answer.status(), 200);
        let mut body = Box::pin(answer.into_body());
        let piece = std::future::poll_fn(|cx| body.as_mut().poll_next(cx)).await;
        let Some(Ok(piece)) = piece else {
            panic!("nothing comes");
        };
        String::from_utf8(piece.to_vec()).unwrap()
    };
    let records = [1, 2, 3].map(|n| record(&api, n));
    api.control.records.insert(&records).unwrap();
    let [first, second, third] = &records;
    let ids = |text: &str| -> Vec<String> {
        let ids = text.lines().filter_map(|line| line.strip_prefix("id: "));
        ids.map(str::to_owned).collect()
    };
    let all = [second, third].map(|record| record.request_id.to_string());
    assert_eq!(ids(&told(Some(first)).await), all);
    assert_eq!(ids(&told(Some(second)).await), all[1..]);
    assert_eq!(told(Some(third)).await, ": following\n\n");
    // One that is not known here: nobody can tell what came after it.
    let unknown = told(Some(&record(&api, 9))).await;
    let missed = "event: missed\ndata: {\"count\":null}\n\n";
    assert_eq!(unknown, format!(": following\n\n{missed}"));
    assert_eq!(told(None).await, ": following\n\n");
}

#[actix_web::test]
async fn what_system_holds_of_others_is_for_operators() {
    let api = api().await;
    for path in [
        "/orgs/system/records",
        "/orgs/system/records/export",
        "/orgs/system/telemetry",
        "/orgs/system/versions",
        "/orgs/system/versions/1",
        "/orgs/system/versions/2/diff",
    ] {
        let refused = api.get(Who::SystemMember, path).await.is(403);
        assert!(refused.text.contains("admin"), "{path}: {}", refused.text);
        api.get(Who::Operator, path).await.is(200);
    }
    let none = format!("/orgs/system/records/{}", RequestId::from_bits(1));
    api.get(Who::SystemMember, &none).await.is(403);
    api.get(Who::Operator, &none).await.is(404);
}

#[actix_web::test]
async fn a_token_that_ends_makes_nothing_that_lasts_longer() {
    let api = api().await;
    let past = json!({"name": "old", "role": "viewer", "expires_at": "2020-01-01T00:00:00Z"});
    let refused = api.post(Who::Owner, TOKENS, past).await.is(422);
    assert_eq!(refused.faults()[0].0, "/expires_at");
    let ends = "2099-01-01T00:00:00Z";
    let limited = json!({"name": "limited", "role": "admin", "expires_at": ends});
    let limited = api.post(Who::Owner, TOKENS, limited).await.is(201).body;
    let path = format!("{TOKENS}/{}", limited["id"].as_str().unwrap());
    let secret = limited["secret"]["token"].as_str().unwrap();
    let by_it = |method, path: &str, body: Value| {
        let request = api.request(Who::Nobody, method, path).set_json(body);
        api.send(request.insert_header(("authorization", format!("Bearer {secret}"))))
    };
    for (lasting, status) in [
        (Value::Null, 403),
        (json!("2100-01-01T00:00:00Z"), 403),
        (json!(ends), 200),
        (json!("2098-01-01T00:00:00Z"), 200),
    ] {
        let change = json!({"expires_at": lasting});
        by_it(Method::PATCH, &path, change).await.is(status);
    }
    let lasts = json!({"name": "more", "role": "viewer"});
    by_it(Method::POST, TOKENS, lasts).await.is(403);
    // By one without an end, everything is as it was.
    let lifted = json!({"expires_at": null});
    api.patch(Who::Owner, &path, lifted).await.is(200);
}

#[actix_web::test]
async fn a_revocation_is_seen_by_whoever_knows_the_version() {
    let api = api().await;
    let made = api.quick_path("admin").await;
    let path = format!("/orgs/acme/credentials/{}", made.key);
    let read = |etag: String| {
        let request = api.request(Who::Viewer, Method::GET, &path);
        api.send(request.insert_header(("if-none-match", etag)))
    };
    let shown = api.get(Who::Viewer, &path).await.is(200);
    let etag = shown.header("etag").unwrap().to_owned();
    read(etag.clone()).await.is(304);
    let id: CredentialId = made.key.parse().unwrap();
    let lowest = api.control.publisher.revoke_here(api.acme, id).await;
    lowest.unwrap();
    let mut world = api.control.watched();
    let is_told = |world: &std::sync::Arc<proto::store::follow::World>| {
        world.orgs[&api.acme].retired.contains_key(&id)
    };
    world.wait_for(is_told).await.unwrap();
    let known = read(etag.clone()).await.is(200);
    assert_eq!(known.body["secret"]["state"], "revoked");
    // Writes are still made by the version.
    let named = api.request(Who::Admin, Method::PATCH, &path);
    let named = named.insert_header(("if-match", etag));
    let named = named.set_json(json!({"name": "renamed"}));
    api.send(named).await.is(200);
}

#[actix_web::test]
async fn a_name_that_is_somebodys_alias_is_the_alias() {
    let api = api().await;
    let made = api.quick_path("admin").await;
    let proxy = |fields: Value| {
        let mut proxy = json!({"target_id": made.target, "proxy_credential_ids": [made.key],
                               "target_credential_id": made.injected});
        for (name, value) in fields.as_object().cloned().unwrap() {
            proxy[name] = value;
        }
        api.make(Who::Admin, "proxies", proxy)
    };
    let named = proxy(json!({"name": "pay"})).await.id();
    let aliased = proxy(json!({"name": "other", "alias": "pay"})).await.id();
    for name in ["twice", "twice", "once"] {
        proxy(json!({ "name": name })).await;
    }
    let config = api.control.config(api.acme).unwrap();
    let found = |text: &str| proxies::named(&config.objects, text).map(|id| id.to_string());
    assert_eq!(found("pay"), Ok(aliased));
    assert_eq!(found(&named), Ok(named.clone()));
    assert!(found("once").is_ok());
    assert_eq!(found("twice"), Err(Unnamed::Several(2)));
    assert_eq!(found("none"), Err(Unnamed::Unknown));
    let records = "/orgs/acme/records?proxy=twice";
    api.get(Who::Viewer, records).await.is(400);
    let suggested = "/orgs/acme/proxies/twice/suggested-rules";
    api.get(Who::Viewer, suggested).await.is(409);
}
