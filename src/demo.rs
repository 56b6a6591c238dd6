//! What `dev` has ready-made: an echo target and the proxy `demo` in front of it.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use actix_web::dev::Server;
use actix_web::{App, HttpRequest, HttpResponse, HttpServer, web};
use control::publish::{Publish, Publisher};
use proto::credential::{AuthType, Credential, CredentialKind, CredentialSettings, SecretInput};
use proto::hosts::{HostPattern, Origin, Scheme};
use proto::id::{CredentialId, OrgId, ProxyId, TargetId};
use proto::object::{Body, ObjectId, StoredCredential};
use proto::proxy::Proxy;
use proto::seal;
use proto::target::Target;
use proto::tree::{Operation, SecretChange};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::time::Instant;

use crate::{bootstrap, private_file};

/// What is remembered of the demo between two runs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Demo {
    /// Where the echo target listened.
    pub echo: SocketAddr,
    /// The key of the demo proxy.
    pub api_key: String,
    /// The demo's target.
    pub target_id: TargetId,
    /// The demo's target credential.
    pub target_credential_id: CredentialId,
}

/// Largest body that the echo target shows, in bytes.
const ECHO_BYTES_MAX: usize = 1024 * 1024;

/// Starts the echo target, where it was before if that port is free.
///
/// # Errors
/// No port is free.
pub fn echo(before: Option<SocketAddr>) -> std::io::Result<(SocketAddr, Server)> {
    let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
    let listener = before
        .and_then(|address| TcpListener::bind(address).ok())
        .map_or_else(|| TcpListener::bind(loopback), Ok)?;
    let address = listener.local_addr()?;
    let server = HttpServer::new(|| {
        App::new()
            .app_data(web::PayloadConfig::new(ECHO_BYTES_MAX))
            .default_service(web::to(answer))
    })
    .workers(1)
    .disable_signals()
    .listen(listener)?
    .run();
    Ok((address, server))
}

/// Answers with what arrived, so that a person sees what the gateway sent.
async fn answer(request: HttpRequest, body: web::Bytes) -> HttpResponse {
    let headers: serde_json::Map<String, serde_json::Value> = request
        .headers()
        .iter()
        .map(|(name, value)| {
            (
                name.to_string(),
                String::from_utf8_lossy(value.as_bytes())
                    .into_owned()
                    .into(),
            )
        })
        .collect();
    HttpResponse::Ok().json(json!({
        "method": request.method().as_str(),
        "path": request.uri().path_and_query().map_or("", |target| target.as_str()),
        "headers": headers,
        "body": String::from_utf8_lossy(&body),
    }))
}

/// Makes what is missing of the demo, and follows the echo target when its port has changed.
///
/// # Errors
/// The store or the file cannot be written.
pub async fn ensure(
    publisher: &Publisher,
    org: OrgId,
    before: Option<Demo>,
    echo: SocketAddr,
    file: &Path,
) -> anyhow::Result<Demo> {
    let config = publisher.load(org).await?;
    if let Some(before) = before.filter(|demo| config.target(demo.target_id).is_some()) {
        if before.echo == echo {
            return Ok(before);
        }
        let operations = moved(publisher, &before, echo);
        publish(publisher, org, operations).await?;
        return keep(Demo { echo, ..before }, file);
    }
    let demo = Demo {
        echo,
        api_key: seal::issue_key().to_string(),
        target_id: TargetId::new(),
        target_credential_id: CredentialId::new(),
    };
    let operations = made(publisher, &demo)?;
    publish(publisher, org, operations).await?;
    keep(demo, file)
}

fn keep(demo: Demo, file: &Path) -> anyhow::Result<Demo> {
    private_file::write(file, serde_json::to_string(&demo)?.as_bytes())?;
    Ok(demo)
}

async fn publish(
    publisher: &Publisher,
    org: OrgId,
    operations: Vec<Operation>,
) -> anyhow::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(10);
    let author = bootstrap::author();
    publisher
        .publish(Publish {
            org,
            operations,
            author,
            deadline,
            idempotency: None,
        })
        .await?;
    Ok(())
}

/// The secret that the echo target shows; not a secret at all.
const TARGET_SECRET: &str = "demo-target-secret";

fn made(publisher: &Publisher, demo: &Demo) -> anyhow::Result<Vec<Operation>> {
    let target: Target = serde_json::from_value(json!({
        "name": "echo",
        "base_url": format!("http://{}", demo.echo),
        "allow_http": true,
        "allow_networks": ["127.0.0.0/8"],
    }))?;
    let secret_of = |credential: &Credential, secret| -> anyhow::Result<_> {
        Ok(Some(
            publisher.prepare(credential, serde_json::from_value(secret)?),
        ))
    };
    let target_credential: Credential = serde_json::from_value(json!({
        "name": "demo target credential", "kind": "target", "auth_type": "bearer",
        "hosts": [format!("http://{}", demo.echo)],
    }))?;
    let caller: Credential = serde_json::from_value(json!({
        "name": "demo caller", "kind": "proxy", "auth_type": "api_key",
    }))?;
    let caller_id = CredentialId::new();
    let proxy: Proxy = serde_json::from_value(json!({
        "name": "demo", "alias": "demo", "target_id": demo.target_id,
        "target_credential_id": demo.target_credential_id, "proxy_credential_ids": [caller_id],
    }))?;
    let target_secret = secret_of(&target_credential, json!({ "token": TARGET_SECRET }))?;
    let caller_secret = secret_of(&caller, json!({ "key": demo.api_key }))?;
    let stored = |credential| StoredCredential {
        credential,
        secret: None,
        previous: Vec::new(),
    };
    let create = |id, body, secret| Operation::Create { id, body, secret };
    Ok(vec![
        create(ObjectId::Target(demo.target_id), Body::Target(target), None),
        create(
            ObjectId::Credential(demo.target_credential_id),
            Body::Credential(stored(target_credential)),
            target_secret,
        ),
        create(
            ObjectId::Credential(caller_id),
            Body::Credential(stored(caller)),
            caller_secret,
        ),
        create(ObjectId::Proxy(ProxyId::new()), Body::Proxy(proxy), None),
    ])
}

/// The target and the hosts of its credential at the echo's new address.
fn moved(publisher: &Publisher, demo: &Demo, echo: SocketAddr) -> Vec<Operation> {
    let origin = Origin {
        scheme: Scheme::Http,
        host: echo.ip().to_string(),
        port: echo.port(),
    };
    let hosts = vec![HostPattern::exact(origin)];
    let mut secret = SecretInput::default();
    secret.token = Some(TARGET_SECRET.to_owned());
    let shape = Credential {
        name: String::new(),
        kind: CredentialKind::Target,
        auth_type: AuthType::Bearer,
        hosts: hosts.clone(),
        settings: CredentialSettings::default(),
        default_rule_effect: Default::default(),
        use_by: Default::default(),
        regions: proto::regions::everywhere(),
        expires_at: None,
        explain: false,
        max_fact_age_s: None,
        labels: Default::default(),
    };
    let base_url = format!("http://{echo}");
    let retarget = move |body: &Body| match body {
        Body::Target(target) => Ok(Body::Target(Target {
            base_url: base_url.clone(),
            ..target.clone()
        })),
        other => Ok(other.clone()),
    };
    let rebind = move |body: &Body| match body {
        Body::Credential(stored) => {
            let mut stored = stored.clone();
            stored.credential.hosts.clone_from(&hosts);
            Ok(Body::Credential(stored))
        }
        other => Ok(other.clone()),
    };
    vec![
        Operation::Update {
            id: ObjectId::Target(demo.target_id),
            precondition: None,
            change: Arc::new(retarget),
            secret: SecretChange::Keep,
        },
        Operation::Update {
            id: ObjectId::Credential(demo.target_credential_id),
            precondition: None,
            change: Arc::new(rebind),
            secret: SecretChange::Set {
                secret: publisher.prepare(&shape, secret),
                old_until: None,
            },
        },
    ]
}
