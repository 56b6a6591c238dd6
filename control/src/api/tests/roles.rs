//! Every route with every role.

use actix_web::http::Method;
use proto::org::Role;
use serde_json::{Value, json};

use super::{Made, Who, api};
use crate::route::{Access, Gives, Need, Route, Takes};
use crate::router::routes;

const EVERYBODY: [Who; 8] = [
    Who::Nobody,
    Who::Viewer,
    Who::Member,
    Who::Admin,
    Who::Owner,
    Who::Stranger,
    Who::Operator,
    Who::SystemMember,
];

/// What a call is refused with, by the table alone; `None` when it gets through to its handler.
fn refused(access: &Access, who: Who) -> Option<u16> {
    let role = match who {
        Who::Nobody | Who::Stranger | Who::SystemMember => None,
        Who::Viewer => Some(Role::Viewer),
        Who::Member => Some(Role::Member),
        Who::Admin | Who::Operator => Some(Role::Admin),
        Who::Owner => Some(Role::Owner),
    };
    match (access, who) {
        (Access::Open(_), _) => None,
        (_, Who::Nobody) | (Access::Invited(_), _) => Some(401),
        (Access::Token(_), _) => None,
        (Access::Operator(_), Who::Operator) => None,
        (Access::Operator(_), _) => Some(403),
        (Access::Org(need, _), _) => match role {
            None => Some(404),
            Some(role) if role >= need.least() => None,
            Some(_) => Some(403),
        },
    }
}

fn path(route: &Route, made: &Made) -> String {
    let id = match route.path.split('/').nth(3) {
        Some("targets") => &made.target,
        Some("credentials") => &made.key,
        Some("proxies") => &made.proxy,
        _ => "tok_00000000000000000000000000",
    };
    let path = route.path.replace("{org}", "acme").replace("{id}", id);
    let path = path
        .replace("{rule_id}", "rul_00000000000000000000000000")
        .replace("{filter_id}", "flt_00000000000000000000000000")
        .replace("{meter_id}", "mtr_00000000000000000000000000");
    match route.gives {
        // Refused by its handler: what it sends would never end.
        Gives::Stream(_) => path + "?status=none",
        _ => path,
    }
}

/// What was recorded stays: no route changes an entry of the audit, a version or a record, whoever
/// asks for it.
#[actix_web::test]
async fn nobody_takes_out_what_was_recorded() {
    const RECORDED: [&str; 4] = ["audit", "records", "versions", "telemetry"];
    let recorded = routes().into_iter().filter(|route| {
        let mut parts = route.path.split('/');
        parts.any(|part| RECORDED.contains(&part))
    });
    let recorded: Vec<Route> = recorded.collect();
    assert!(recorded.len() >= 10, "{recorded:?}");
    let writing = recorded.iter().filter(|route| route.verb.writes());
    let writing: Vec<&str> = writing.map(|route| route.path).collect();
    // A rollback is one more version.
    assert_eq!(writing, ["/orgs/{org}/versions/{n}/rollback"]);

    let api = api().await;
    let made = api.quick_path("admin").await;
    let audit = || api.get(Who::Owner, "/orgs/acme/audit");
    let before = audit().await.is(200).text;
    for route in &recorded {
        for who in [Who::Owner, Who::Operator] {
            for method in ["DELETE", "PUT", "PATCH", "POST"] {
                if method == route.verb.as_str() {
                    continue;
                }
                let request = api.request(who, method.parse().unwrap(), &path(route, &made));
                let request = request.set_json(json!({})).insert_header(("if-match", "*"));
                let reply = api.send(request).await;
                let refused = [404, 405].contains(&reply.status);
                assert!(refused, "{method} {} {}", route.path, reply.text);
            }
        }
    }
    assert_eq!(audit().await.is(200).text, before);
}

#[actix_web::test]
async fn every_route_asks_every_role() {
    let api = api().await;
    let made = api.quick_path("admin").await;
    let before = api.control.config(api.acme).unwrap().head.n;
    for route in routes() {
        for who in EVERYBODY {
            let method: Method = route.verb.as_str().parse().unwrap();
            let request = api.request(who, method, &path(&route, &made));
            // A body that no handler accepts: a call that gets through changes nothing.
            let request = match route.takes {
                Takes::Nothing => request.insert_header(("if-match", "\"999999\"")),
                _ => request.set_json(json!({"not_a_field": 1})),
            };
            let reply = api.send(request).await;
            let title = format!("{route:?} by {who:?}: {} {}", reply.status, reply.text);
            match refused(&route.access, who) {
                Some(status) => assert_eq!(reply.status, status, "{title}"),
                None => assert!(!matches!(reply.status, 401 | 403), "{title}"),
            }
        }
    }
    assert_eq!(
        api.control.config(api.acme).unwrap().head.n,
        before,
        "nothing changed"
    );
}

/// A list that does not would answer with all that there is, however much that may become.
#[actix_web::test]
async fn every_list_reads_which_page_is_asked_for() {
    let api = api().await;
    let made = api.quick_path("admin").await;
    let lists = |route: &Route| matches!(route.gives, Gives::List(_));
    for route in routes().into_iter().filter(lists) {
        let who = match route.access {
            Access::Operator(_) => Who::Operator,
            _ => Who::Owner,
        };
        let path = path(&route, &made);
        for (query, parameter) in [("limit=0", "`limit`"), ("cursor=!", "`cursor`")] {
            let reply = api.get(who, &format!("{path}?{query}")).await.is(400);
            assert!(reply.text.contains(parameter), "{route:?} {}", reply.text);
        }
    }
}

#[actix_web::test]
async fn what_hangs_on_a_target_credential_is_for_admins() {
    let api = api().await;
    let made = api.quick_path("member").await;
    let before = api.control.config(api.acme).unwrap().head.n;
    for route in routes() {
        let by_kind = matches!(route.access, Access::Org(Need::CredentialKind, _));
        if !by_kind || !route.path.contains("{id}") {
            continue;
        }
        let path = route
            .path
            .replace("{org}", "acme")
            .replace("{id}", &made.injected)
            .replace("{rule_id}", "rul_00000000000000000000000000")
            .replace("{filter_id}", "flt_00000000000000000000000000")
            .replace("{meter_id}", "mtr_00000000000000000000000000");
        let method: Method = route.verb.as_str().parse().unwrap();
        let request = api.request(Who::Member, method, &path);
        let request = match route.takes {
            Takes::Nothing => request,
            _ => request.set_json(json!({"labels": {"a": "b"}})),
        };
        let reply = api.send(request).await;
        assert_eq!(reply.status, 403, "{route:?} {}", reply.text);
    }
    assert_eq!(
        api.control.config(api.acme).unwrap().head.n,
        before,
        "nothing changed"
    );
}

/// Ids are issued here: nodes may keep what they know by id alone.
#[actix_web::test]
async fn no_request_gives_an_object_an_id_that_another_organisation_has() {
    let api = api().await;
    let made = api.quick_path("admin").await;
    let body = json!({"base_url": "https://api.example.com"});
    let with_id = |fields: Value| {
        let mut body = body.clone();
        let more = fields.as_object().cloned().unwrap_or_default();
        body.as_object_mut().unwrap().extend(more);
        body
    };
    let id = json!({"id": made.target});
    let targets = "/orgs/other/targets";
    let stranger = Who::Stranger;
    api.post(stranger, targets, with_id(id.clone()))
        .await
        .is(422);
    let path = format!("{targets}/{}", made.target);
    api.put(stranger, &path, body.clone()).await.is(404);
    api.patch(stranger, &path, json!({"name": "x"}))
        .await
        .is(404);
    let file = json!({"format": "requestrocket/1", "targets": [with_id(id.clone())]});
    // A file's id is issued anew, as one that nobody has would be.
    let config = "/orgs/other/config";
    api.put(stranger, config, file.clone()).await.is(422);
    let import = format!("{config}?import=true");
    let applied = api.put(stranger, &import, file).await.is(200);
    let issued = &applied.body["reissued"][&made.target];
    assert!(
        issued.is_string() && *issued != made.target,
        "{}",
        applied.text
    );
    for operation in [
        json!({"create": "targets", "object": with_id(id.clone())}),
        json!({"create": "targets", "as": made.target, "object": body, "id": made.target}),
        json!({"update": made.target, "patch": {"name": "x"}}),
        json!({"delete": made.target}),
    ] {
        let body = json!({"operations": [operation]});
        let reply = api.post(stranger, "/orgs/other/changes", body).await;
        let refused = [400, 404, 422].contains(&reply.status);
        assert!(refused, "{operation}: {}", reply.text);
    }
    // What is created under another's name for it has an id of its own.
    let named = json!({"create": "targets", "as": made.target, "object": body});
    let named = json!({"operations": [named]});
    api.post(stranger, "/orgs/other/changes", named).await;
    let other = api.get(stranger, targets).await.is(200);
    assert!(!other.text.contains(&made.target), "{}", other.text);
}

#[actix_web::test]
async fn another_organisations_ids_answer_like_unknown_ones() {
    let api = api().await;
    let made = api.quick_path("admin").await;
    let unknown = |id: &str| format!("{}00000000000000000000000000", &id[..4]);
    let replies = [
        api.get(
            Who::Stranger,
            &format!("/orgs/acme/targets/{}", made.target),
        )
        .await,
        api.get(
            Who::Stranger,
            &format!("/orgs/nobody/targets/{}", made.target),
        )
        .await,
        api.get(
            Who::Stranger,
            &format!("/orgs/other/targets/{}", made.target),
        )
        .await,
        api.get(
            Who::Stranger,
            &format!("/orgs/other/targets/{}", unknown(&made.target)),
        )
        .await,
        api.get(
            Who::Stranger,
            &format!("/orgs/other/targets/{}", made.proxy),
        )
        .await,
        api.get(Who::Stranger, "/orgs/other/targets/x").await,
        api.get(Who::Stranger, &format!("/orgs/{}", api.acme)).await,
    ];
    for reply in &replies {
        assert_eq!(reply.status, 404);
        assert_eq!(reply.text, replies[0].text, "byte for byte");
    }
}

#[actix_web::test]
async fn nobody_makes_or_touches_a_token_above_their_own_role() {
    let api = api().await;
    let create = |who, role: &str| {
        let body = json!({"name": "t", "role": role});
        let api = &api;
        async move { api.post(who, "/orgs/acme/tokens", body).await }
    };
    create(Who::Admin, "owner").await.is(403);
    create(Who::Member, "viewer").await.is(403);
    let admin = create(Who::Admin, "admin").await.is(201).id();
    let owner = create(Who::Owner, "owner").await.is(201);
    let (owner_id, secret) = (owner.id(), owner.body["secret"]["token"].as_str().unwrap());
    assert!(secret.starts_with("rr_api_"));
    let at = |id: &str| format!("/orgs/acme/tokens/{id}");
    api.patch(Who::Admin, &at(&admin), json!({"role": "owner"}))
        .await
        .is(403);
    api.patch(Who::Admin, &at(&owner_id), json!({"role": "viewer"}))
        .await
        .is(403);
    api.delete(Who::Admin, &at(&owner_id)).await.is(403);
    let shown = api.get(Who::Admin, &at(&owner_id)).await.is(200);
    assert!(shown.body.get("secret").is_none() && !shown.text.contains(secret));
    assert!(!shown.text.contains("digest"));

    let me = api.request(Who::Nobody, Method::GET, "/me");
    let me = me.insert_header(("authorization", format!("Bearer {secret}")));
    let me = api.send(me).await.is(200);
    assert_eq!(me.body["role"], "owner");
    assert_eq!(me.body["org"], "acme");
    assert_eq!(me.body["operator"], Value::Bool(false));

    api.delete(Who::Owner, &at(&owner_id)).await.is(204);
    let me = api.request(Who::Nobody, Method::GET, "/me");
    let me = me.insert_header(("authorization", format!("Bearer {secret}")));
    api.send(me).await.is(401);
}
