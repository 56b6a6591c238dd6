//! The API as its callers see it: a whole control on an embedded store, called over HTTP.

mod audit;
mod bounds;
mod config;
mod errors;
mod explain;
mod guardrails;
mod inline;
mod invitations;
mod meters;
mod objects;
mod policies;
mod proxy_test;
mod roles;
mod safety;
mod standing;
mod suggested;
mod versions;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use actix_http::Request;
use actix_web::body::MessageBody;
use actix_web::dev::{Service, ServiceResponse};
use actix_web::http::Method;
use actix_web::http::header::HeaderMap;
use actix_web::{App, test};
use jiff::Timestamp;
use proto::exposition::Families;
use proto::forwarded::TrustedProxies;
use proto::id::{OrgId, TokenId};
use proto::object::{Body, ObjectId, StoredToken};
use proto::org::{ApiToken, Org, Role};
use proto::policy::Policy;
use proto::seal::{DigestKey, Keyring, Purpose};
use proto::store::embedded::Embedded;
use proto::store::follow::Follower;
use proto::tree::{Operation, SYSTEM_ORG};
use proto::version::Epoch;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::config::RegionKeys;
use crate::dial_guard::Foreseen;
use crate::publish::{Author, Publish, Publisher, PublisherOptions};
use crate::records::Records;
use crate::{ApiSettings, Control, ControlDeps, configure};

/// Who calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Who {
    Nobody,
    Viewer,
    Member,
    Admin,
    Owner,
    /// Owner of another organisation.
    Stranger,
    /// Admin of `system`.
    Operator,
    /// Member of `system`.
    SystemMember,
}

/// A control with two organisations, `acme` and `other`, and a token of each kind.
pub struct Api<S> {
    service: S,
    pub control: Arc<Control>,
    tokens: BTreeMap<Who, String>,
    pub acme: OrgId,
    follower: actix_web::rt::task::JoinHandle<()>,
    _dir: tempfile::TempDir,
}

impl<S> Drop for Api<S> {
    fn drop(&mut self) {
        self.follower.abort();
    }
}

/// An answer.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Value,
    pub text: String,
}

impl Reply {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// Pointers and codes of the faults.
    pub fn faults(&self) -> Vec<(String, String)> {
        let errors = self.body["errors"].as_array().cloned().unwrap_or_default();
        let text =
            |error: &Value, field: &str| error[field].as_str().unwrap_or_default().to_owned();
        errors
            .iter()
            .map(|e| (text(e, "pointer"), text(e, "code")))
            .collect()
    }

    #[track_caller]
    pub fn is(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{}", self.text);
        self
    }

    pub fn id(&self) -> String {
        self.body["id"].as_str().unwrap().to_owned()
    }
}

async fn publish(publisher: &Publisher, org: OrgId, operation: Operation) {
    let publish = Publish {
        org,
        operations: vec![operation],
        author: Author {
            name: "test".into(),
            role: Role::Owner,
            source: None,
        },
        deadline: Instant::now() + Duration::from_secs(30),
        idempotency: None,
    };
    publisher.publish(publish).await.unwrap();
}

async fn org(publisher: &Publisher, slug: &str) -> OrgId {
    let id = OrgId::new();
    let body = Body::Org(Org {
        slug: slug.into(),
        name: String::new(),
        default_limits: None,
    });
    let create = Operation::Create {
        id: ObjectId::Org(id),
        body,
        secret: None,
    };
    publish(publisher, SYSTEM_ORG, create).await;
    id
}

async fn token(publisher: &Publisher, org: OrgId, role: Role) -> String {
    let text = proto::seal::issue_api_token().to_string();
    let digest = publisher.digest(Purpose::ApiToken, text.as_bytes());
    let body = Body::Token(StoredToken {
        token: ApiToken {
            name: format!("{role:?}"),
            role,
            expires_at: None,
        },
        digest: hex::encode(digest),
    });
    let create = Operation::Create {
        id: ObjectId::Token(TokenId::new()),
        body,
        secret: None,
    };
    publish(publisher, org, create).await;
    text
}

impl<S> Api<S> {
    /// A token of an organisation whose time is over, which this control knows.
    pub async fn expired_token(&self, org: OrgId) -> String {
        let publisher = &self.control.publisher;
        let text = proto::seal::issue_api_token().to_string();
        let digest = publisher.digest(Purpose::ApiToken, text.as_bytes());
        let body = Body::Token(StoredToken {
            token: ApiToken {
                name: "expired".into(),
                role: Role::Owner,
                expires_at: Some(Timestamp::UNIX_EPOCH),
            },
            digest: hex::encode(digest),
        });
        let create = Operation::Create {
            id: ObjectId::Token(TokenId::new()),
            body,
            secret: None,
        };
        publish(publisher, org, create).await;
        let n = publisher.load(org).await.unwrap().head.n;
        assert!(self.control.see_version(org, n).await);
        text
    }
}

/// A fresh control.
pub async fn api() -> Api<
    impl Service<Request, Response = ServiceResponse<impl MessageBody>, Error = actix_web::Error>,
> {
    let dir = tempfile::tempdir().unwrap();
    let store = Embedded::open(&dir.path().join("store.db")).unwrap();
    let (follower, world) = Follower::new(store.clone(), "local");
    let follower = actix_web::rt::spawn(follower.run());
    let digest_key = DigestKey::generate();
    let public = Keyring::generate("local").public().unwrap();
    let publisher = Arc::new(Publisher::new(PublisherOptions {
        store,
        public: public.clone(),
        digest_key: digest_key.clone(),
        policy: Policy::default(),
        epoch: Epoch {
            counter: 1,
            region: "local".into(),
        },
        clock: Arc::new(Timestamp::now),
    }));
    publisher
        .bootstrap(Instant::now() + Duration::from_secs(30))
        .await
        .unwrap();
    let acme = org(&publisher, "acme").await;
    let other = org(&publisher, "other").await;
    let mut tokens = BTreeMap::new();
    for (who, org, role) in [
        (Who::Viewer, acme, Role::Viewer),
        (Who::Member, acme, Role::Member),
        (Who::Admin, acme, Role::Admin),
        (Who::Owner, acme, Role::Owner),
        (Who::Stranger, other, Role::Owner),
        (Who::Operator, SYSTEM_ORG, Role::Admin),
        (Who::SystemMember, SYSTEM_ORG, Role::Member),
    ] {
        tokens.insert(who, token(&publisher, org, role).await);
    }
    let records = Arc::new(Records::open(&dir.path().join("records.db")).unwrap());
    let control = Arc::new(Control::new(ControlDeps {
        settings: ApiSettings {
            test_wait: Duration::from_secs(2),
            proxies: TrustedProxies {
                networks: vec!["198.51.100.0/24".parse().unwrap()],
                ..TrustedProxies::default()
            },
            keys: Some(RegionKeys {
                public: public.clone(),
                signers: Vec::new(),
            }),
            ..ApiSettings::new("https://gw.example")
        },
        publisher: publisher.clone(),
        world,
        digest_key,
        policy: Policy::default(),
        records,
        metrics: Arc::new(|| {
            let mut families = Families::default();
            families.gauge("up", "It runs.").is(1);
            families
        }),
        counters: Default::default(),
        linked: Default::default(),
        health: Default::default(),
        trace_file: |told| {
            let target = told.target.map(|(id, _)| id);
            json!({"request": told.record.request_id, "target": target, "scheme": told.scheme})
        },
        dial_guard: Arc::new(|asked| match asked.origin.host.as_str() {
            "10.0.0.7" => Foreseen::Refused("may not be dialled"),
            "8.8.8.8" => Foreseen::Passes,
            _ => Foreseen::AtDialling("is a name"),
        }),
    }));
    for org in [acme, other, SYSTEM_ORG] {
        let n = publisher.load(org).await.unwrap().head.n;
        assert!(control.see_version(org, n).await);
    }
    let service = test::init_service(App::new().configure(configure(control.clone()))).await;
    Api {
        service,
        control,
        tokens,
        acme,
        follower,
        _dir: dir,
    }
}

impl<S, B> Api<S>
where
    S: Service<Request, Response = ServiceResponse<B>, Error = actix_web::Error>,
    B: MessageBody,
{
    /// A call with everything about it in the caller's hand.
    pub async fn send(&self, request: test::TestRequest) -> Reply {
        self.reply(test::call_service(&self.service, request.to_request()).await)
            .await
    }

    /// An answer that has begun, read to its end.
    pub async fn reply(&self, response: ServiceResponse<B>) -> Reply {
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let bytes = test::read_body(response).await;
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let body = serde_json::from_str(&text).unwrap_or(Value::Null);
        Reply {
            status,
            headers,
            body,
            text,
        }
    }

    pub fn request(&self, who: Who, method: Method, path: &str) -> test::TestRequest {
        let request = test::TestRequest::default()
            .method(method)
            .uri(&format!("/api/v1{path}"))
            .peer_addr("192.0.2.9:4000".parse().unwrap())
            .insert_header(("host", "localhost:8081"));
        match self.tokens.get(&who) {
            Some(token) => request.insert_header(("authorization", format!("Bearer {token}"))),
            None => request,
        }
    }

    pub async fn get(&self, who: Who, path: &str) -> Reply {
        self.send(self.request(who, Method::GET, path)).await
    }

    pub async fn delete(&self, who: Who, path: &str) -> Reply {
        self.send(self.request(who, Method::DELETE, path)).await
    }

    pub async fn write(&self, who: Who, method: Method, path: &str, body: Value) -> Reply {
        self.send(self.request(who, method, path).set_json(body))
            .await
    }

    pub async fn post(&self, who: Who, path: &str, body: Value) -> Reply {
        self.write(who, Method::POST, path, body).await
    }

    pub async fn patch(&self, who: Who, path: &str, body: Value) -> Reply {
        self.write(who, Method::PATCH, path, body).await
    }

    pub async fn put(&self, who: Who, path: &str, body: Value) -> Reply {
        self.write(who, Method::PUT, path, body).await
    }

    /// Creates something in `acme`.
    pub fn make(&self, who: Who, what: &str, body: Value) -> impl Future<Output = Reply> {
        let path = format!("/orgs/acme/{what}");
        async move { self.post(who, &path, body).await.is(201) }
    }

    /// The number of `acme`'s newest version: whether anything was published.
    pub fn acme_version(&self) -> u64 {
        self.control.config(self.acme).unwrap().head.n
    }

    /// A target, both credentials (the target one for `use_by`), and a proxy of them, by an admin.
    pub async fn quick_path(&self, use_by: &str) -> Made {
        let target = json!({"base_url": "https://api.stripe.com/v1"});
        let target = self
            .post(Who::Admin, "/orgs/acme/targets", target)
            .await
            .is(201)
            .id();
        let injected = json!({"kind": "target", "auth_type": "bearer", "use_by": use_by,
                              "hosts": ["api.stripe.com"], "secret": {"token": "sk_live_1"}});
        let injected = self
            .post(Who::Admin, "/orgs/acme/credentials", injected)
            .await
            .is(201)
            .id();
        let key = json!({"kind": "proxy", "auth_type": "api_key"});
        let key = self
            .post(Who::Admin, "/orgs/acme/credentials", key)
            .await
            .is(201)
            .id();
        let proxy = json!({"target_id": target, "target_credential_id": injected,
                           "proxy_credential_ids": [key]});
        let proxy = self
            .post(Who::Admin, "/orgs/acme/proxies", proxy)
            .await
            .is(201)
            .id();
        Made {
            target,
            injected,
            key,
            proxy,
        }
    }
}

/// Ids of what [`Api::quick_path`] made.
pub struct Made {
    pub target: String,
    pub injected: String,
    pub key: String,
    pub proxy: String,
}
