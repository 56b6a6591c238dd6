//! Credentials of both kinds. A secret goes in and never comes out, but for a key that the gateway
//! generates, which the answer to its creation or rotation holds once.

use std::ops::RangeInclusive;

use jiff::{SignedDuration, Timestamp};
use proto::credential::{Credential, CredentialKind};
use proto::id::CredentialId;
use proto::object::{Body, Object, ObjectId, StoredCredential};
use proto::org::Role;
use proto::problem::Problem;
use proto::tree::{OrgConfig, SecretChange};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::ahead::Given;
use super::answer::Answer;
use super::call::{OrgCall, require};
use super::error::Refusal;
use super::former::{fact, former, tell_former};
use super::objects::{self, Edit, Manner, Resource, Rights, View};
use super::secret::{Absent, SEALED, Secret};
use super::warned::{past, warn};
use super::{shape, unsealed, write};
use crate::openapi::schemas;
use crate::route::{Gives, Need, Parameter, Route, Takes, Verb};

/// Longest overlap of a rotation: 30 days.
const OVERLAP_MS_MAX: u64 = 30 * 86_400_000;

/// The resource.
pub enum Credentials {}

impl Resource for Credentials {
    type Model = Credential;
    const COLLECTION: &'static str = "credentials";
    const SCHEMA: &'static str = "CredentialInput";
    const BESIDE: &'static [&'static str] = &["secret"];

    fn fresh_id() -> ObjectId {
        ObjectId::Credential(CredentialId::new())
    }

    fn span() -> RangeInclusive<ObjectId> {
        let end = |bits| ObjectId::Credential(CredentialId::from_bits(bits));
        end(0)..=end(u128::MAX)
    }

    fn model(body: &Body) -> Option<&Credential> {
        match body {
            Body::Credential(stored) => Some(&stored.credential),
            _ => None,
        }
    }

    fn with_model(body: &Body, model: Credential) -> Body {
        match body {
            Body::Credential(stored) => Body::Credential(StoredCredential {
                credential: model,
                ..stored.clone()
            }),
            other => other.clone(),
        }
    }

    fn validate(model: &Credential) -> Vec<Problem> {
        let mut model = model.clone();
        model.complete();
        model.validate()
    }

    fn decorate(shown: &mut Map<String, Value>, view: &View<'_>, object: &Object) {
        let Body::Credential(stored) = &object.body else {
            return;
        };
        if stored.credential.kind == CredentialKind::Target {
            shown.insert("regions".into(), json!(stored.credential.regions));
        }
        warn(shown, past(stored.credential.expires_at, Timestamp::now()));
        if !stored.credential.has_secret() {
            return;
        }
        let secret = match &stored.secret {
            None => json!({ "state": "missing" }),
            Some(secret) => {
                let (world, now) = (view.control.world(), Timestamp::now());
                let fact = fact(&world, view.slug, object.id);
                let is_over = fact.is_some_and(|fact| fact.covers(&secret.generation, now));
                json!({
                    "state": if is_over { "revoked" } else { "active" },
                    "set_at": secret.set_at,
                    "generation": secret.generation,
                    "hint": secret.hint,
                    "former": former(&stored.previous, fact, now),
                })
            }
        };
        shown.insert("secret".into(), secret);
    }

    fn is_changed_beside(view: &View<'_>, object: &Object) -> bool {
        let Body::Credential(stored) = &object.body else {
            return false;
        };
        // Keys of before end by the clock as well.
        let world = view.control.world();
        !stored.previous.is_empty() || fact(&world, view.slug, object.id).is_some()
    }

    fn guard(rights: &Rights, edit: &Edit<'_, Credential>) -> Result<(), Refusal> {
        for credential in [edit.before, edit.after].into_iter().flatten() {
            if credential.kind == CredentialKind::Target {
                require(rights.role, Role::Admin, "a target credential")?;
            }
        }
        Ok(())
    }
}

impl Credentials {
    /// The id of a credential that is made with this secret: the one that it was sealed for, where
    /// another region did that.
    pub fn id_of_new(secret: Option<&Value>) -> ObjectId {
        let sealed = secret.and_then(|secret| secret.get(SEALED)?.get("credential")?.as_str());
        let id = sealed.and_then(|id| id.parse().ok());
        id.map_or_else(Self::fresh_id, ObjectId::Credential)
    }
}

const ALL: &str = "/orgs/{org}/credentials";
const ONE: &str = "/orgs/{org}/credentials/{id}";
const ROTATE: &str = "/orgs/{org}/credentials/{id}/rotate";
const KIND: &[Parameter] = &[("kind", "`proxy` or `target`; both when absent")];

/// Rows of the routing table.
pub fn routes() -> Vec<Route> {
    let (viewer, by_kind) = (Need::Role(Role::Viewer), Need::CredentialKind);
    let made = (
        "create_credential",
        "Create a credential; without `secret` a key is generated and shown once",
    );
    let rotated = (
        "rotate_credential",
        "Replace the secret, with an overlap for proxy credentials",
    );
    let input = "CredentialInput";
    vec![
        Route::org(
            Verb::Get,
            ALL,
            ("list_credentials", "List credentials"),
            viewer,
            list,
        )
        .gives(Gives::List("Credential"))
        .of_configuration()
        .parameters(KIND),
        Route::org(Verb::Post, ALL, made, by_kind, create)
            .takes(Takes::Body(input))
            .gives(Gives::Created("Credential"))
            .given_secrets(of_new),
        Route::org(
            Verb::Get,
            ONE,
            ("get_credential", "Read a credential"),
            viewer,
            get,
        )
        .gives(Gives::One("Credential"))
        .of_configuration(),
        Route::org(
            Verb::Patch,
            ONE,
            ("update_credential", "Change a credential"),
            by_kind,
            update,
        )
        .takes(Takes::MergePatch(input))
        .gives(Gives::One("Credential"))
        .given_secrets(of_merged),
        Route::org(
            Verb::Put,
            ONE,
            ("replace_credential", "Replace a credential"),
            by_kind,
            replace,
        )
        .takes(Takes::Body(input))
        .gives(Gives::One("Credential"))
        .given_secrets(of_replaced),
        Route::org(
            Verb::Delete,
            ONE,
            ("delete_credential", "Delete a credential"),
            by_kind,
            delete,
        ),
        Route::org(Verb::Post, ROTATE, rotated, by_kind, rotate)
            .takes(Takes::Optional("Rotation"))
            .gives(Gives::One("Credential"))
            .given_secrets(of_rotated),
    ]
}

async fn list(call: OrgCall) -> Result<Answer, Refusal> {
    let kind = match call.request.query.get("kind") {
        None => None,
        Some("proxy") => Some(CredentialKind::Proxy),
        Some("target") => Some(CredentialKind::Target),
        Some(_) => return Err(Refusal::parameter("kind", "must be `proxy` or `target`")),
    };
    let mut answer = objects::list::<Credentials>(&call, |_, credential| {
        kind.is_none_or(|kind| credential.kind == kind)
    })?;
    unsealed::show(&call, &mut answer).await?;
    Ok(answer)
}

async fn get(call: OrgCall) -> Result<Answer, Refusal> {
    let mut answer = objects::get::<Credentials>(&call)?;
    unsealed::show(&call, &mut answer).await?;
    Ok(answer)
}

async fn create(call: OrgCall) -> Result<Answer, Refusal> {
    guard_new(&call)?;
    let credential =
        objects::parse::<Credentials>(call.request.body.clone()).map_err(Refusal::invalid)?;
    let given = call.request.body.get("secret").cloned();
    let key = &call.control.digest_key;
    let secret = Secret::new(key, &credential, given, Absent::Generates);
    let secret = secret.map_err(|mut problems| {
        problems.extend(Credentials::validate(&credential));
        Refusal::invalid(problems)
    })?;
    let prepared = secret.prepare(key, &credential);
    let body = Body::Credential(StoredCredential {
        credential: credential.clone(),
        secret: None,
        previous: Vec::new(),
    });
    let mut answer = write::create_with::<Credentials>(&call, body, prepared).await?;
    secret.show_once(&credential, &mut answer);
    Ok(answer)
}

async fn update(call: OrgCall) -> Result<Answer, Refusal> {
    change(call, Manner::Merge).await
}

async fn replace(call: OrgCall) -> Result<Answer, Refusal> {
    change(call, Manner::Replace).await
}

async fn change(mut call: OrgCall, manner: Manner) -> Result<Answer, Refusal> {
    let current = current(&call, &*call.config()?)?;
    guard_kind(&call, &current)?;
    let given = match &mut call.request.body {
        Value::Object(fields) => fields.shift_remove("secret"),
        _ => None,
    };
    let key = call.control.digest_key.clone();
    let secret = match given {
        None => Secret::None,
        // The credential as it will be: where a secret stands does not change its form.
        Some(given) => Secret::new(&key, &current.credential, Some(given), Absent::IsAFault)
            .map_err(Refusal::invalid)?,
    };
    let change = match secret.prepare(&key, &current.credential) {
        Some(secret) => SecretChange::Set {
            secret,
            old_until: None,
        },
        None => SecretChange::Keep,
    };
    let mut answer = write::change_with::<Credentials>(&call, manner, change).await?;
    secret.show_once(&current.credential, &mut answer);
    Ok(answer)
}

async fn delete(call: OrgCall) -> Result<Answer, Refusal> {
    write::delete::<Credentials>(&call).await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rotation {
    #[serde(default)]
    secret: Option<Value>,
    #[serde(default)]
    overlap_ms: u64,
}

async fn rotate(call: OrgCall) -> Result<Answer, Refusal> {
    let current = current(&call, &*call.config()?)?;
    guard_kind(&call, &current)?;
    let rotation: Rotation =
        shape::parse(schemas(), "Rotation", call.request.body.clone()).map_err(Refusal::invalid)?;
    let mut problems = Vec::new();
    if rotation.overlap_ms > OVERLAP_MS_MAX {
        let detail = format!("at most {OVERLAP_MS_MAX} ms (30 days)");
        problems.push(Problem::new("/overlap_ms", "range", detail));
    }
    if rotation.overlap_ms > 0 && current.credential.kind == CredentialKind::Target {
        let detail = "the gateway uses one secret of a target credential at a time";
        problems.push(Problem::new("/overlap_ms", "not-applicable", detail));
    }
    let key = &call.control.digest_key;
    let secret = match Secret::new(key, &current.credential, rotation.secret, Absent::Generates) {
        Ok(secret) if problems.is_empty() => secret,
        Ok(_) => return Err(Refusal::invalid(problems)),
        Err(further) => {
            problems.extend(further);
            return Err(Refusal::invalid(problems));
        }
    };
    let Some(prepared) = secret.prepare(key, &current.credential) else {
        let detail = "type none holds no secret";
        return Err(Refusal::invalid(vec![Problem::new(
            "",
            "not-applicable",
            detail,
        )]));
    };
    let overlap = SignedDuration::from_millis(i64::try_from(rotation.overlap_ms).unwrap_or(0));
    let old_until = (rotation.overlap_ms > 0)
        .then(|| Timestamp::now().checked_add(overlap).ok())
        .flatten();
    let change = SecretChange::Set {
        secret: prepared,
        old_until,
    };
    let mut answer = write::keep_with::<Credentials>(&call, change).await?;
    secret.show_once(&current.credential, &mut answer);
    tell_former(&mut answer, &current, old_until);
    Ok(answer)
}

fn of_new(call: &OrgCall, _: &OrgConfig) -> Result<Vec<Given>, Refusal> {
    let document = &call.request.body;
    guard_new(call)?;
    let credential = objects::parse::<Credentials>(document.clone()).map_err(Refusal::invalid)?;
    let id = Credentials::id_of_new(document.get("secret"));
    Ok(vec![Given::new("", id, credential)])
}

fn of_merged(call: &OrgCall, config: &OrgConfig) -> Result<Vec<Given>, Refusal> {
    of_changed(call, config, Manner::Merge)
}

fn of_replaced(call: &OrgCall, config: &OrgConfig) -> Result<Vec<Given>, Refusal> {
    of_changed(call, config, Manner::Replace)
}

fn of_changed(call: &OrgCall, config: &OrgConfig, manner: Manner) -> Result<Vec<Given>, Refusal> {
    let current = current(call, config)?;
    guard_kind(call, &current)?;
    let current = current.credential;
    let after = objects::changed::<Credentials>(&current, &call.request.body, manner);
    // What it is does not change; a secret that fits another type is told as at home.
    let (kind, auth_type) = (current.kind, current.auth_type);
    let after = after.map_err(Refusal::invalid)?;
    let after = Credential {
        kind,
        auth_type,
        ..after
    };
    Ok(vec![Given::new("", call.request.id("id")?, after)])
}

fn of_rotated(call: &OrgCall, config: &OrgConfig) -> Result<Vec<Given>, Refusal> {
    let current = current(call, config)?;
    guard_kind(call, &current)?;
    let id = call.request.id("id")?;
    Ok(vec![Given::new("", id, current.credential)])
}

fn current(call: &OrgCall, config: &OrgConfig) -> Result<StoredCredential, Refusal> {
    match &objects::find::<Credentials>(call, config)?.body {
        Body::Credential(stored) => Ok(stored.clone()),
        _ => Err(Refusal::not_found()),
    }
}

/// Told before anything about the document, like the role of every other route.
fn guard_new(call: &OrgCall) -> Result<(), Refusal> {
    match call.request.body.get("kind").and_then(Value::as_str) {
        Some("target") => call.require(Role::Admin, "a target credential"),
        _ => Ok(()),
    }
}

fn guard_kind(call: &OrgCall, current: &StoredCredential) -> Result<(), Refusal> {
    match current.credential.kind {
        CredentialKind::Target => call.require(Role::Admin, "a target credential"),
        CredentialKind::Proxy => Ok(()),
    }
}
