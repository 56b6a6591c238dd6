//! What a document is to do to a configuration: operations, each with its place in the document,
//! and what is wrong with it.

use std::collections::BTreeMap;
use std::sync::Arc;

use proto::credential::Credential;
use proto::object::{Body, ObjectId, StoredCredential};
use proto::problem::Problem;
use proto::seal::{DigestKey, NewSecret};
use proto::tree::{ApplyError, Change, Operation, SecretChange};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::ahead::Given;
use super::credentials::Credentials;
use super::error::Refusal;
use super::filters::Filters;
use super::meters::Meters;
use super::objects::{self, Manner, Resource};
use super::proxies::Proxies;
use super::rules::Rules;
use super::secret::{Absent, Secret};
use super::targets::Targets;
use super::warned::add;
use super::write;
use crate::publish::PublishError;

/// Most faults that are listed.
const PROBLEMS_MAX: usize = 100;

/// What is to be done, and what is wrong with it.
#[derive(Default)]
pub struct Plan {
    operations: Vec<Operation>,
    /// Where in the submitted document the object of each operation stands.
    pointers: Vec<String>,
    generated: Vec<Generated>,
    /// What is to be said of given secrets, new ones and such as replace others.
    warnings: Vec<(ObjectId, Vec<Problem>)>,
    /// What is to be said of the document where it changes nothing.
    remarks: Vec<Problem>,
    problems: Vec<Problem>,
    /// Ids of the document that stand for others here.
    reissued: BTreeMap<ObjectId, ObjectId>,
    /// Credentials for which the document gives a secret.
    given: Vec<Given>,
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
            Ok(body) => {
                self.gives(pointer, id, given.is_some().then_some(&body));
                self.secret_of_new(id, &body, given, key).map(|s| (body, s))
            }
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
    ) -> Result<Option<Arc<NewSecret>>, Vec<Problem>> {
        let Body::Credential(stored) = body else {
            return Ok(None);
        };
        let secret = Secret::new(key, &stored.credential, given, Absent::Generates)?;
        self.warn(id, &secret, &stored.credential);
        if let Some((field, text)) = secret.generated() {
            self.generated.push(Generated {
                id,
                field,
                secret: Zeroizing::new(text.to_owned()),
            });
        }
        Ok(secret.prepare(key, &stored.credential))
    }

    fn warn(&mut self, id: ObjectId, secret: &Secret, credential: &Credential) {
        let warnings = secret.warnings(credential);
        if !warnings.is_empty() {
            self.warnings.push((id, warnings));
        }
    }

    /// Notes what is to be said of a place in the document that changes nothing.
    pub fn remark(&mut self, remark: Problem) {
        self.remarks.push(remark);
    }

    /// Adds what is to be said of the document to the answer to it.
    pub fn show_remarks(&self, answer: &mut Value) {
        add(answer, self.remarks.clone());
    }

    /// What becomes of a credential's secret when `given` is submitted with its change.
    ///
    /// # Errors
    /// The faults of the secret, at `/secret`.
    pub fn changed_secret(
        &mut self,
        id: ObjectId,
        stored: &StoredCredential,
        given: Option<Value>,
        key: &DigestKey,
    ) -> Result<SecretChange, Vec<Problem>> {
        let Some(given) = given else {
            return Ok(SecretChange::Keep);
        };
        let secret = Secret::new(key, &stored.credential, Some(given), Absent::IsAFault)?;
        self.warn(id, &secret, &stored.credential);
        Ok(match secret.prepare(key, &stored.credential) {
            Some(secret) => SecretChange::Set {
                secret,
                old_until: None,
            },
            None => SecretChange::Keep,
        })
    }

    /// Notes that the object at `pointer` holds a secret for a credential, as that will be.
    pub fn gives(&mut self, pointer: &str, id: ObjectId, after: Option<&Body>) {
        if let Some(Body::Credential(stored)) = after {
            let credential = stored.credential.clone();
            self.given.push(Given::new(pointer, id, credential));
        }
    }

    /// Notes ids of the document that stand for others here.
    pub fn reissues(&mut self, ids: impl Iterator<Item = (ObjectId, ObjectId)>) {
        self.reissued.extend(ids);
    }

    /// Adds which ids of the document stand for others here, where some do.
    pub fn show_reissued(&self, shown: &mut Value) {
        if !self.reissued.is_empty() {
            let ids = self.reissued.iter();
            let ids = ids.map(|(given, issued)| (given.to_string(), json!(issued)));
            shown["reissued"] = Value::Object(ids.collect());
        }
    }

    /// The credentials for which the document gives a secret.
    ///
    /// # Errors
    /// What is wrong with the document.
    pub fn given(self) -> Result<Vec<Given>, Refusal> {
        match self.problems.is_empty() {
            true => Ok(self.given),
            false => Err(Refusal::invalid(self.problems)),
        }
    }

    /// Notes the faults of the object at `pointer`.
    pub fn faults(&mut self, pointer: &str, problems: Vec<Problem>) {
        for problem in problems {
            self.problem(problem.below(pointer));
        }
    }

    /// The operations, which leave the plan.
    ///
    /// # Errors
    /// What is wrong with the document.
    pub fn checked(&mut self) -> Result<Vec<Operation>, Refusal> {
        match self.problems.is_empty() {
            true => Ok(std::mem::take(&mut self.operations)),
            false => Err(Refusal::invalid(std::mem::take(&mut self.problems))),
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

    /// What the caller is told of a publisher's error, with its places in the document.
    pub fn refusal(&self, error: PublishError) -> Refusal {
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

    /// Whether it generates secrets.
    pub fn generates(&self) -> bool {
        !self.generated.is_empty()
    }

    /// The secrets that were generated.
    pub fn shown_once(&self) -> Vec<Value> {
        let one = |generated: &Generated| {
            let secret = json!({generated.field: generated.secret.as_str()});
            json!({"id": generated.id, "secret": secret})
        };
        self.generated.iter().map(one).collect()
    }

    /// Adds what only this answer says of a credential: what is to be said of a given secret.
    pub fn show_warnings(&self, shown: &mut Value) {
        for (id, warnings) in &self.warnings {
            if shown["id"] == json!(id) {
                add(shown, warnings.clone());
            }
        }
    }

    /// Adds that, and the secret that was generated, which this answer alone shows as well.
    pub fn show_once(&self, shown: &mut Value) {
        self.show_warnings(shown);
        for generated in &self.generated {
            if shown["id"] == json!(generated.id) {
                shown["secret"][generated.field] = json!(generated.secret.as_str());
            }
        }
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
