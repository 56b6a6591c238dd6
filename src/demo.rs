//! What `dev` has ready-made: an echo target and the proxy `demo` in front of it.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use actix_web::dev::Server;
use actix_web::{App, HttpRequest, HttpResponse, HttpServer, web};
use control::publish::{Publish, PublishError, Publisher};
use proto::credential::{AuthType, Credential, CredentialKind, CredentialSettings, SecretInput};
use proto::hosts::{HostPattern, Origin, Scheme};
use proto::id::{CredentialId, OrgId, ProxyId, TargetId};
use proto::object::{Body, ObjectId, StoredCredential};
use proto::proxy::Proxy;
use proto::seal::{self, Purpose};
use proto::target::Target;
use proto::tree::{Operation, OrgConfig, SecretChange};
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
    /// The demo's proxy; absent in files of before.
    #[serde(default)]
    pub proxy_id: Option<ProxyId>,
}

/// The alias of the demo's proxy.
const ALIAS: &str = "demo";
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

/// Makes the demo where it is not there, and follows the echo target when its port has changed.
/// What a person has made of its objects stays as it is: where calls with the demo's key would not
/// go through, the reason is given instead of it.
///
/// # Errors
/// The store or the file cannot be read or written.
pub async fn ensure(
    publisher: &Publisher,
    org: OrgId,
    before: Option<Demo>,
    echo: SocketAddr,
    file: &Path,
) -> anyhow::Result<Result<Demo, String>> {
    let config = publisher.load(org).await?;
    let (demo, operations) = match before {
        Some(before) if config.target(before.target_id).is_some() => {
            if let Some(why) = is_changed(publisher, &config, &before) {
                return Ok(Err(why));
            }
            match before.echo == echo {
                true => return Ok(Ok(before)),
                false => (
                    Demo {
                        echo,
                        ..before.clone()
                    },
                    moved(publisher, &before, echo),
                ),
            }
        }
        _ => {
            let demo = Demo {
                echo,
                api_key: seal::issue_key().to_string(),
                target_id: TargetId::new(),
                target_credential_id: CredentialId::new(),
                proxy_id: Some(ProxyId::new()),
            };
            let operations = made(publisher, &demo)?;
            // First: nobody knows the key of one that is made and not remembered.
            (keep(demo, file)?, operations)
        }
    };
    match publish(publisher, org, operations).await {
        Ok(()) => keep(demo, file).map(Ok),
        // Another object has its alias: whoever uses the folder has no need of the demo.
        Err(PublishError::Refused(refused)) => Ok(Err(refused.to_string())),
        Err(error) => Err(error.into()),
    }
}

/// What a person has changed so that the demo's key leads nowhere or elsewhere.
fn is_changed(publisher: &Publisher, config: &OrgConfig, demo: &Demo) -> Option<String> {
    let ours = |(id, proxy): &(ProxyId, &Proxy)| match demo.proxy_id {
        Some(known) => *id == known,
        None => proxy.target_id == demo.target_id && proxy.alias.as_deref() == Some(ALIAS),
    };
    let Some((_, proxy)) = config.objects.proxies().find(ours) else {
        return Some("its proxy was deleted".to_owned());
    };
    if !proxy.active {
        return Some("its proxy is switched off".to_owned());
    }
    if proxy.alias.as_deref() != Some(ALIAS) {
        return Some("its proxy has another alias".to_owned());
    }
    if proxy.target_id != demo.target_id
        || proxy.target_credential_id != Some(demo.target_credential_id)
    {
        return Some("its proxy leads elsewhere".to_owned());
    }
    let target = config.target(demo.target_id);
    if target.is_none_or(|target| target.base_url != base_url(demo.echo)) {
        return Some("its target is another one".to_owned());
    }
    let digest = hex::encode(publisher.digest(Purpose::ProxyCredential, demo.api_key.as_bytes()));
    let mut callers = proxy.proxy_credential_ids.iter();
    let opens = callers.any(|id| {
        let stored = config.credential(*id);
        let secret = stored.and_then(|stored| stored.secret.as_ref());
        secret.is_some_and(|secret| secret.digest == digest)
    });
    (!opens).then(|| "its key was replaced".to_owned())
}

fn base_url(echo: SocketAddr) -> String {
    format!("http://{echo}")
}

fn keep(demo: Demo, file: &Path) -> anyhow::Result<Demo> {
    private_file::write(file, serde_json::to_string(&demo)?.as_bytes())?;
    Ok(demo)
}

async fn publish(
    publisher: &Publisher,
    org: OrgId,
    operations: Vec<Operation>,
) -> Result<(), PublishError> {
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
        "base_url": base_url(demo.echo),
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
        "hosts": [base_url(demo.echo)],
    }))?;
    let caller: Credential = serde_json::from_value(json!({
        "name": "demo caller", "kind": "proxy", "auth_type": "api_key",
    }))?;
    let caller_id = CredentialId::new();
    let proxy_id = demo.proxy_id.unwrap_or_default();
    let proxy: Proxy = serde_json::from_value(json!({
        "name": "demo", "alias": ALIAS, "target_id": demo.target_id,
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
        create(ObjectId::Proxy(proxy_id), Body::Proxy(proxy), None),
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
        priority: 0,
        labels: Default::default(),
    };
    let base_url = base_url(echo);
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
