//! Many changes as one version: all of them or none, seen beforehand with `dry_run`.
//!
//! What is to be done is planned on the newest version, again when somebody publishes in between,
//! so that names and contents are looked up in exactly the version that the result follows.

use std::sync::Arc;

use proto::object::{Body, ObjectId, StoredCredential};
use proto::problem::Problem;
use proto::seal::DigestKey;
use proto::tree::{self, ApplyError, Change, Draft, Operation, OrgConfig, SecretChange};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::answer::Answer;
use super::call::OrgCall;
use super::credentials::Credentials;
use super::error::Refusal;
use super::filters::Filters;
use super::meters::Meters;
use super::objects::{self, Manner, Resource};
use super::proxies::Proxies;
use super::rules::Rules;
use super::secret::{Absent, Secret};
use super::targets::Targets;
use super::versions::{changes, outcome};
use super::write;
use crate::publish::{PublishError, Published};
use crate::route::Parameter;

/// Most faults that are listed.
const PROBLEMS_MAX: usize = 100;

/// The parameter that both routes know.
pub const DRY_RUN: Parameter = (
    "dry_run",
    "`true`: check everything, say what would change, and change nothing",
);

/// What is to be done, and what is wrong with it.
#[derive(Default)]
pub struct Plan {
    operations: Vec<Operation>,
    /// Where in the submitted document the object of each operation stands.
    pointers: Vec<String>,
    generated: Vec<Generated>,
    /// What is to be said of given secrets.
    warnings: Vec<(ObjectId, Vec<Problem>)>,
    problems: Vec<Problem>,
    /// Fields that the document calls otherwise than the model: the model's word, its own.
    words: &'static [(&'static str, &'static str)],
}

struct Generated {
    id: ObjectId,
    field: &'static str,
    secret: Zeroizing<String>,
}

impl Plan {
    /// A plan of a document that calls fields otherwise than the model.
    pub fn in_words(words: &'static [(&'static str, &'static str)]) -> Self {
        Self {
            words,
            ..Self::default()
        }
    }

    /// The same plan of a document that stands within another.
    pub fn below(mut self, prefix: &str) -> Self {
        for pointer in &mut self.pointers {
            pointer.insert_str(0, prefix);
        }
        self.problems = self.problems.into_iter().map(|p| p.below(prefix)).collect();
        self
    }

    /// Notes what is wrong, at its place in the submitted document.
    pub fn problem(&mut self, problem: Problem) {
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push(problem);
        }
    }

    /// Adds an operation on the object that stands at `pointer`.
    pub fn push(&mut self, pointer: &str, operation: Operation) {
        self.operations.push(operation);
        self.pointers.push(pointer.to_owned());
    }

    /// Adds the creation of what a document describes; its faults become problems.
    pub fn create(
        &mut self,
        pointer: &str,
        id: ObjectId,
        parent: Option<ObjectId>,
        mut document: Value,
        key: &DigestKey,
    ) {
        let given = taken_secret(id, &mut document);
        let made = match body(id, parent, document) {
            Ok(body) => self.secret_of_new(id, &body, given, key).map(|s| (body, s)),
            Err(problems) => Err(problems),
        };
        match made {
            Ok((body, secret)) => self.push(pointer, Operation::Create { id, body, secret }),
            Err(problems) => self.faults(pointer, problems),
        }
    }

    fn secret_of_new(
        &mut self,
        id: ObjectId,
        body: &Body,
        given: Option<Value>,
        key: &DigestKey,
    ) -> Result<Option<Arc<proto::seal::NewSecret>>, Vec<Problem>> {
        let Body::Credential(stored) = body else {
            return Ok(None);
        };
        let secret = Secret::new(&stored.credential, given, Absent::Generates)?;
        let warnings = secret.warnings(&stored.credential);
        if !warnings.is_empty() {
            self.warnings.push((id, warnings));
        }
        if let Some((field, text)) = secret.generated() {
            self.generated.push(Generated {
                id,
                field,
                secret: Zeroizing::new(text.to_owned()),
            });
        }
        Ok(secret.prepare(key, &stored.credential))
    }

    /// Notes the faults of the object at `pointer`.
    pub fn faults(&mut self, pointer: &str, problems: Vec<Problem>) {
        for problem in problems {
            self.problem(problem.below(pointer));
        }
    }

    fn checked(&mut self) -> Result<Vec<Operation>, Failed> {
        match self.problems.is_empty() {
            true => Ok(std::mem::take(&mut self.operations)),
            false => {
                let problems = std::mem::take(&mut self.problems);
                Err(Failed::Refused(Box::new(Refusal::invalid(problems))))
            }
        }
    }

    /// The publisher's pointers begin with an operation's number; ours with its place.
    fn replaced(&self, problem: Problem) -> Problem {
        let (at, rest) = match problem.pointer.strip_prefix('/') {
            Some(rest) if self.pointers.len() > 1 => match rest.split_once('/') {
                Some((at, rest)) => (at.parse().unwrap_or(0), format!("/{rest}")),
                None => (rest.parse().unwrap_or(0), String::new()),
            },
            _ => (0, problem.pointer.clone()),
        };
        let place: &str = self.pointers.get(at).map_or("", String::as_str);
        let field = rest.split('/').nth(1).unwrap_or_default();
        let rest = match self.words.iter().find(|(model, _)| *model == field) {
            Some((model, own)) => rest.replacen(model, own, 1),
            None => rest,
        };
        Problem {
            pointer: format!("{place}{rest}"),
            ..problem
        }
    }

    fn refusal(&self, error: PublishError) -> Refusal {
        let replaced = |problems: Vec<Problem>| -> Vec<Problem> {
            problems.into_iter().map(|p| self.replaced(p)).collect()
        };
        write::refusal(match error {
            PublishError::Refused(ApplyError::Invalid(problems)) => {
                ApplyError::Invalid(replaced(problems)).into()
            }
            PublishError::Refused(ApplyError::Forbidden(problems)) => {
                ApplyError::Forbidden(replaced(problems)).into()
            }
            other => other,
        })
    }

    fn shown_once(&self) -> Vec<Value> {
        let one = |generated: &Generated| {
            let secret = json!({generated.field: generated.secret.as_str()});
            json!({"id": generated.id, "secret": secret})
        };
        self.generated.iter().map(one).collect()
    }

    /// Adds what only this answer says of a credential: the secret that was generated, and what is
    /// to be said of a given one.
    pub fn show_once(&self, shown: &mut Value) {
        for (id, warnings) in &self.warnings {
            if shown["id"] == json!(id) {
                shown["warnings"] = json!(warnings);
            }
        }
        for generated in &self.generated {
            if shown["id"] == json!(generated.id) {
                shown["secret"][generated.field] = json!(generated.secret.as_str());
            }
        }
    }
}

enum Failed {
    Refused(Box<Refusal>),
    Publish(PublishError),
}

impl From<PublishError> for Failed {
    fn from(error: PublishError) -> Self {
        Self::Publish(error)
    }
}

/// Publishes what `plan` makes of the newest version; with `dry_run` only says what it would.
///
/// # Errors
/// Everything that stands against it, at its place in the submitted document.
pub async fn carry_out(
    call: &OrgCall,
    plan: impl Fn(&OrgConfig) -> Plan,
) -> Result<Answer, Refusal> {
    if call.request.if_match.is_some() {
        let detail = "does not apply to several objects at once; an operation has `if_match`";
        return Err(Refusal::parameter("If-Match", detail));
    }
    let dry_run: Option<bool> = call.request.query.parsed("dry_run", "true or false")?;
    if dry_run == Some(true) {
        let (current, draft) = drafted(call, plan).await?;
        let differences = tree::diff(&current.objects, draft.objects());
        let n = current.head.n;
        return Ok(Answer::json(changes(&call.view(), n, n, &differences)));
    }
    let (published, plan, before) = publish(call, plan).await?;
    let mut answer = outcome(call, &published, &before).await?;
    // Of a remembered write, other keys were generated and are in force.
    if !published.replayed {
        answer["generated"] = plan.shown_once().into();
    }
    Ok(Answer::json(answer).version(call.org_id(), published.n))
}

/// Publishes what `plan` makes of the newest version: what was published, the plan that it was made
/// by, and the version before.
///
/// # Errors
/// As for [`carry_out`].
pub async fn publish(
    call: &OrgCall,
    plan: impl Fn(&OrgConfig) -> Plan,
) -> Result<(Published, Plan, Arc<OrgConfig>), Refusal> {
    let publisher = &call.control.publisher;
    let (mut last, mut before) = (Plan::default(), None);
    let make = |current: &Arc<OrgConfig>| {
        last = plan(current);
        before = Some(Arc::clone(current));
        last.checked()
    };
    let published = publisher.publish_made(call.publishing(), make).await;
    let published = published.map_err(|failed| refusal(&last, failed))?;
    call.control.see_version(call.org_id(), published.n).await;
    let before = before.unwrap_or_else(|| Arc::clone(&published.config));
    Ok((published, last, before))
}

/// The newest version, and the draft of what `plan` makes of it; nothing is published.
///
/// # Errors
/// As for [`carry_out`].
pub async fn drafted(
    call: &OrgCall,
    plan: impl Fn(&OrgConfig) -> Plan,
) -> Result<(Arc<OrgConfig>, Draft), Refusal> {
    let mut last = Plan::default();
    let make = |current: &Arc<OrgConfig>| {
        last = plan(current);
        last.checked()
    };
    let drafted = call.control.publisher.draft(&call.publishing(), make).await;
    drafted.map_err(|failed| refusal(&last, failed))
}

fn refusal(plan: &Plan, failed: Failed) -> Refusal {
    match failed {
        Failed::Refused(refusal) => *refusal,
        Failed::Publish(error) => plan.refusal(error),
    }
}

/// The object that a document describes, of the kind that its id is of.
fn body(id: ObjectId, parent: Option<ObjectId>, document: Value) -> Result<Body, Vec<Problem>> {
    match (id, parent) {
        (ObjectId::Target(_), _) => objects::parse::<Targets>(document).map(Body::Target),
        (ObjectId::Proxy(_), _) => objects::parse::<Proxies>(document).map(Body::Proxy),
        (ObjectId::Credential(_), _) => {
            let credential = objects::parse::<Credentials>(document)?;
            Ok(Body::Credential(StoredCredential {
                credential,
                secret: None,
                previous: Vec::new(),
            }))
        }
        (ObjectId::Rule(_), Some(on)) => {
            objects::parse::<Rules>(document).map(|rule| Rules::attach(on, rule))
        }
        (ObjectId::Filter(_), Some(on)) => {
            objects::parse::<Filters>(document).map(|filter| Filters::attach(on, filter))
        }
        (ObjectId::Meter(_), Some(on)) => {
            objects::parse::<Meters>(document).map(|meter| Meters::attach(on, meter))
        }
        (ObjectId::Rule(_) | ObjectId::Filter(_) | ObjectId::Meter(_), None) => {
            let detail = "names no object that it hangs on";
            Err(vec![Problem::new("", "required", detail)])
        }
        (ObjectId::Org(_) | ObjectId::Token(_), _) => {
            let detail = "organisations and tokens have routes of their own";
            Err(vec![Problem::new("", "not-applicable", detail)])
        }
    }
}

/// Takes a credential's secret out of its document; no other kind has one.
pub fn taken_secret(id: ObjectId, document: &mut Value) -> Option<Value> {
    match (id, document) {
        (ObjectId::Credential(_), Value::Object(fields)) => fields.shift_remove("secret"),
        _ => None,
    }
}

/// How a document changes an object of the kind that its id is of.
pub fn change(id: ObjectId, document: Value, manner: Manner) -> Change {
    match id {
        ObjectId::Target(_) => change_of::<Targets>(document, manner),
        ObjectId::Credential(_) => change_of::<Credentials>(document, manner),
        ObjectId::Proxy(_) => change_of::<Proxies>(document, manner),
        ObjectId::Rule(_) => change_of::<Rules>(document, manner),
        ObjectId::Filter(_) => change_of::<Filters>(document, manner),
        ObjectId::Meter(_) => change_of::<Meters>(document, manner),
        ObjectId::Org(_) | ObjectId::Token(_) => Arc::new(|_: &Body| {
            let detail = "organisations and tokens have routes of their own";
            Err(vec![Problem::new("", "not-applicable", detail)])
        }),
    }
}

fn change_of<R: Resource>(document: Value, manner: Manner) -> Change {
    Arc::new(move |body: &Body| {
        let kind = || vec![Problem::new("", "kind", "is of another kind")];
        let before = R::model(body).ok_or_else(kind)?;
        let after = objects::changed::<R>(before, &document, manner)?;
        Ok(R::with_model(body, after))
    })
}

/// What becomes of a credential's secret when `given` is submitted with its change.
///
/// # Errors
/// The faults of the secret, at `/secret`.
pub fn changed_secret(
    stored: &StoredCredential,
    given: Option<Value>,
    key: &DigestKey,
) -> Result<SecretChange, Vec<Problem>> {
    let Some(given) = given else {
        return Ok(SecretChange::Keep);
    };
    let secret = Secret::new(&stored.credential, Some(given), Absent::IsAFault)?;
    Ok(match secret.prepare(key, &stored.credential) {
        Some(secret) => SecretChange::Set {
            secret,
            old_until: None,
        },
        None => SecretChange::Keep,
    })
}
