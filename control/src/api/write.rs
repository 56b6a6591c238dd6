//! Writes: from a checked model to a published version, and from the publisher's errors to
//! refusals. The only file of the API that publishes.

use std::sync::Arc;

use proto::id::OrgId;
use proto::object::{Body, Object, ObjectId};
use proto::problem::Problem;
use proto::seal::NewSecret;
use proto::store::StoreError;
use proto::tree::{ApplyError, Change, Operation, SecretChange, TreeError};

use super::answer::Answer;
use super::call::OrgCall;
use super::error::{Code, Refusal};
use super::objects::{Edit, Manner, Resource, Rights, Verdict, changed, find, show};
use super::precondition::Condition;
use crate::publish::{Idempotency, Publish, PublishError, Published};
use crate::router::BASE;
use crate::state::Control;

/// Creates an object without a secret.
///
/// # Errors
/// Whatever stands against it.
pub async fn create<R: Resource>(call: &OrgCall, body: Body) -> Result<Answer, Refusal> {
    create_with::<R>(call, body, None).await
}

/// Creates an object.
///
/// # Errors
/// Whatever stands against it.
pub async fn create_with<R: Resource>(
    call: &OrgCall,
    body: Body,
    secret: Option<Arc<NewSecret>>,
) -> Result<Answer, Refusal> {
    let rights = rights(call)?;
    R::guard(
        &rights,
        &Edit {
            before: None,
            after: R::model(&body),
        },
    )?;
    let sealed = secret.as_ref().and_then(|secret| secret.sealed_ahead_for());
    let fresh = sealed.map_or_else(R::fresh_id, ObjectId::Credential);
    let published = publish(
        call,
        Operation::Create {
            id: fresh,
            body,
            secret,
        },
    )
    .await?;
    // Of a remembered write, the object that it created then.
    let id = match published.changed.first() {
        Some(id) if published.replayed => *id,
        _ => fresh,
    };
    let object = object(&published, id)?;
    let location = match id {
        ObjectId::Org(id) => format!("{BASE}/orgs/{id}"),
        _ => format!(
            "{BASE}/orgs/{}/{}/{id}",
            call.org.slug,
            R::place(&object.body)
        ),
    };
    Ok(answer::<R>(call, &published, &object).created(location))
}

/// Changes the object that the path names as the submitted document says.
///
/// # Errors
/// Whatever stands against it.
pub async fn change<R: Resource>(call: &OrgCall, manner: Manner) -> Result<Answer, Refusal> {
    change_with::<R>(call, manner, SecretChange::Keep).await
}

/// The same, with what becomes of a credential's secret.
///
/// # Errors
/// Whatever stands against it.
pub async fn change_with<R: Resource>(
    call: &OrgCall,
    manner: Manner,
    secret: SecretChange,
) -> Result<Answer, Refusal> {
    let document = call.request.body.clone();
    let edit = move |before: &R::Model| changed::<R>(before, &document, manner);
    edited::<R>(call, edit, secret).await
}

/// Changes the object that the path names by what it is when it is written.
///
/// # Errors
/// Whatever stands against it.
pub async fn edit<R: Resource>(
    call: &OrgCall,
    edit: impl Fn(&R::Model) -> Result<R::Model, Vec<Problem>> + Send + Sync + 'static,
) -> Result<Answer, Refusal> {
    edited::<R>(call, edit, SecretChange::Keep).await
}

async fn edited<R: Resource>(
    call: &OrgCall,
    edit: impl Fn(&R::Model) -> Result<R::Model, Vec<Problem>> + Send + Sync + 'static,
    secret: SecretChange,
) -> Result<Answer, Refusal> {
    let (rights, verdict) = (rights(call)?, Verdict::default());
    let kept = verdict.clone();
    let change: Change = Arc::new(move |body: &Body| {
        let Some(before) = R::model(body) else {
            return Err(kept.keep(Refusal::not_found()));
        };
        let after = edit(before)?;
        let judged = Edit {
            before: Some(before),
            after: Some(&after),
        };
        R::guard(&rights, &judged).map_err(|refusal| kept.keep(refusal))?;
        Ok(R::with_model(body, after))
    });
    update::<R>(call, change, secret, verdict).await
}

/// Leaves the object as it is, but for its secret.
///
/// # Errors
/// Whatever stands against it.
pub async fn keep_with<R: Resource>(
    call: &OrgCall,
    secret: SecretChange,
) -> Result<Answer, Refusal> {
    let change: Change = Arc::new(|body: &Body| Ok(body.clone()));
    update::<R>(call, change, secret, Verdict::default()).await
}

async fn update<R: Resource>(
    call: &OrgCall,
    change: Change,
    secret: SecretChange,
    verdict: Verdict,
) -> Result<Answer, Refusal> {
    let seen = find::<R>(call, &*call.config()?)?;
    let operation = Operation::Update {
        id: seen.id,
        precondition: precondition(call, &seen)?,
        change,
        secret,
    };
    let published = match publish(call, operation).await {
        Ok(published) => published,
        Err(refusal) => return Err(verdict.take().unwrap_or(refusal)),
    };
    let object = object(&published, seen.id)?;
    Ok(answer::<R>(call, &published, &object))
}

/// Deletes the object that the path names.
///
/// # Errors
/// Whatever stands against it.
pub async fn delete<R: Resource>(call: &OrgCall) -> Result<Answer, Refusal> {
    let seen = find::<R>(call, &*call.config()?)?;
    let edit = Edit {
        before: R::model(&seen.body),
        after: None,
    };
    R::guard(&rights(call)?, &edit)?;
    let operation = Operation::Delete {
        id: seen.id,
        precondition: precondition(call, &seen)?,
    };
    let published = publish(call, operation).await?;
    Ok(Answer::nothing().version(call.org_id(), published.n))
}

/// The answer to a deletion of something that is not there, where a request with this key has
/// deleted it.
///
/// # Errors
/// The store did not answer, or the key was used for another request.
pub async fn deleted_before(
    control: &Control,
    org: OrgId,
    idempotency: &Idempotency,
) -> Result<Option<Answer>, Refusal> {
    let made = control.publisher.made_with(org, idempotency).await;
    let made = made.map_err(refusal)?;
    Ok(made.map(|made| Answer::nothing().version(org, made.n)))
}

fn rights(call: &OrgCall) -> Result<Rights, Refusal> {
    Ok(Rights {
        role: call.role,
        until: call.caller.token.expires_at,
        config: call.config()?,
    })
}

/// `If-Match` as the one version that the publisher compares with the newest.
fn precondition(call: &OrgCall, seen: &Object) -> Result<Option<u64>, Refusal> {
    match &call.request.if_match {
        None | Some(Condition::Exists) => Ok(None),
        Some(Condition::Versions(versions)) if versions.contains(&seen.version) => {
            Ok(Some(seen.version))
        }
        // What is seen here may be older than what the caller saw.
        Some(Condition::Versions(versions)) => match versions.as_slice() {
            [version] => Ok(Some(*version)),
            _ => Err(stale(seen.id, seen.version)),
        },
    }
}

fn stale(id: ObjectId, current: u64) -> Refusal {
    let detail = format!("{id} is now at version {current}; read it again and repeat the change");
    Refusal::new(Code::PreconditionFailed, detail)
}

fn answer<R: Resource>(call: &OrgCall, published: &Published, object: &Object) -> Answer {
    let mut answer = Answer::json(show::<R>(&call.view(), object))
        .etag(object.version)
        .version(call.org_id(), published.n);
    answer.replayed = published.replayed;
    answer
}

async fn publish(call: &OrgCall, operation: Operation) -> Result<Published, Refusal> {
    let request = call.publishing();
    let publish = Publish {
        org: request.org,
        operations: vec![operation],
        author: request.author,
        deadline: request.deadline,
        idempotency: request.idempotency,
    };
    let published = call
        .control
        .publisher
        .publish(publish)
        .await
        .map_err(refusal)?;
    // So that the caller's next read here sees what it wrote; a node or another control may be
    // later, which is what `requestrocket-version` is for.
    call.control.see_version(call.org_id(), published.n).await;
    Ok(published)
}

fn object(published: &Published, id: ObjectId) -> Result<Arc<Object>, Refusal> {
    match published.config.object(id) {
        Some(object) => Ok(object.clone()),
        // A remembered write whose object was deleted since.
        None if published.replayed => Err(Refusal::not_found()),
        None => {
            let detail = format!("{id} was published and is not there");
            Err(Refusal::new(Code::Internal, detail))
        }
    }
}

/// What a caller is told of a publisher's error.
pub fn refusal(error: PublishError) -> Refusal {
    let words = error.to_string();
    match error {
        PublishError::Refused(error) => not_applied(error),
        PublishError::OrgUnknown(_) => Refusal::not_found(),
        PublishError::KeyReused => {
            let detail = "this key was used for another request within a day; take a new one";
            Refusal::new(Code::IdempotencyKeyReused, detail)
        }
        PublishError::Overloaded | PublishError::Contended | PublishError::Moved => Refusal::new(
            Code::Overloaded,
            format!("{words}; nothing was changed; try again"),
        )
        .retry_after_s(1),
        PublishError::OutcomeUnknown { .. } => {
            let detail = format!(
                "{words}; read the object again, or repeat the request with the same \
                 `Idempotency-Key`"
            );
            Refusal::new(Code::OutcomeUnknown, detail).retry_after_s(5)
        }
        PublishError::Regressed { .. } | PublishError::Behind { .. } => {
            let detail = format!(
                "{words}; writes are refused until a person decides: `requestrocket recover`"
            );
            Refusal::new(Code::StoreRegressed, detail)
        }
        PublishError::NotHome { .. } => {
            let detail = format!("{words} from now on; nothing was changed; try again");
            Refusal::new(Code::HomeMoved, detail).retry_after_s(1)
        }
        PublishError::HomeElsewhere { home, system, .. } => {
            let detail = format!(
                "{words}; nothing was deleted. Have both in one region first: `requestrocket \
                 regions promote {home}` makes {home} home to all that {system} is home to"
            );
            Refusal::new(Code::HomeElsewhere, detail)
        }
        PublishError::Stays { .. } => Refusal::new(Code::Conflict, words),
        PublishError::Withheld { regions, .. } => set_unavailable(&words, &regions),
        PublishError::Tree(TreeError::Withheld(regions)) => set_unavailable(&words, &regions),
        PublishError::Store(StoreError::Full(_)) => {
            let detail = format!(
                "{words}; nothing was changed; traffic goes on; `requestrocket recover --space` \
                 gives back at once what old changes take"
            );
            Refusal::new(Code::StoreFull, detail)
        }
        PublishError::Store(StoreError::TooLarge(detail)) => {
            Refusal::new(Code::BodyTooLarge, detail)
        }
        PublishError::Store(StoreError::OutcomeUnknown(_)) => {
            let detail = format!(
                "{words}; it may have been carried out: read what it changes before trying again"
            );
            Refusal::new(Code::OutcomeUnknown, detail).retry_after_s(5)
        }
        PublishError::Store(StoreError::Invalid(_)) => Refusal::new(Code::Internal, words),
        PublishError::Store(_) => {
            let detail = format!("{words}; nothing was changed; traffic goes on; try again");
            Refusal::new(Code::StoreUnavailable, detail).retry_after_s(5)
        }
        PublishError::Tree(TreeError::TooLarge(detail)) => Refusal::new(Code::BodyTooLarge, detail),
        PublishError::Unreadable(_) | PublishError::Tree(_) | PublishError::Seal(_) => {
            Refusal::new(Code::Internal, words)
        }
    }
}

/// What is told where something is needed that these regions keep alone and home does not have.
pub fn set_unavailable(words: &str, regions: &[String]) -> Refusal {
    let regions = regions.join(", ");
    let detail = format!(
        "{words}. Nothing was changed; traffic goes on, in {regions} too. This region was made \
         home without it and fetches it by itself, where it may have it, once {regions} can be \
         reached: try again then"
    );
    Refusal::new(Code::SetUnavailable, detail).retry_after_s(5)
}

fn not_applied(error: ApplyError) -> Refusal {
    let words = error.to_string();
    match error {
        ApplyError::Withheld { regions, .. } => set_unavailable(&words, &regions),
        ApplyError::NotFound(_) => Refusal::not_found(),
        ApplyError::PreconditionFailed { id, current } => stale(id, current),
        ApplyError::Forbidden(errors) => {
            let words: Vec<&str> = errors
                .iter()
                .map(|problem| problem.detail.as_str())
                .collect();
            Refusal {
                errors: errors.clone(),
                ..Refusal::forbidden(words.join("; "))
            }
        }
        ApplyError::Invalid(errors) => Refusal::invalid(errors),
        ApplyError::Taken { what, by } => Refusal {
            used_by: vec![by.to_string()],
            ..Refusal::new(
                Code::Conflict,
                format!("{what} belongs to {by}; choose another"),
            )
        },
        ApplyError::InUse { id, users } => {
            let used_by: Vec<String> = users.iter().map(ToString::to_string).collect();
            let detail = format!(
                "{id} is used by {}; change or delete them first",
                used_by.join(", ")
            );
            Refusal {
                used_by,
                ..Refusal::new(Code::Conflict, detail)
            }
        }
        ApplyError::TooLarge(detail) => Refusal::new(Code::BodyTooLarge, detail),
    }
}
