//! `POST …/changes`: a list of operations that becomes one version.
//!
//! An operation that creates something may give it a name (`as`); operations of the same list use
//! it as `@name` wherever an id stands.

use std::collections::BTreeMap;

use proto::object::{Body, ObjectId};
use proto::org::Role;
use proto::problem::Problem;
use proto::seal::DigestKey;
use proto::tree::{Operation, OrgConfig, SecretChange};
use serde::Deserialize;
use serde_json::Value;

use super::ahead::Given;
use super::answer::Answer;
use super::batch;
use super::call::OrgCall;
use super::credentials::Credentials;
use super::error::Refusal;
use super::filters::Filters;
use super::meters::Meters;
use super::objects::{Manner, Resource};
use super::plan::{self, Plan};
use super::proxies::Proxies;
use super::rules::Rules;
use super::shape;
use super::targets::Targets;
use crate::openapi::schemas;
use crate::route::{Gives, Need, Route, Takes, Verb};

/// Most operations of one list.
const OPERATIONS_MAX: usize = 1_000;

/// Rows of the routing table.
pub fn routes() -> Vec<Route> {
    vec![
        Route::org(
            Verb::Post,
            "/orgs/{org}/changes",
            (
                "apply_changes",
                "Carry out many operations as one version: all of them or none",
            ),
            Need::Role(Role::Member),
            apply,
        )
        .takes(Takes::Large("Changes"))
        .gives(Gives::One("Changed"))
        .given_secrets(given)
        .parameters(&[batch::DRY_RUN]),
    ]
}

/// A list of operations, as submitted.
#[derive(Clone, Deserialize)]
pub struct Changes {
    operations: Vec<Step>,
}

/// One operation: exactly one of `create`, `update`, `replace` and `delete`.
#[derive(Clone, Deserialize)]
struct Step {
    create: Option<String>,
    r#as: Option<String>,
    parent: Option<String>,
    object: Option<Value>,
    update: Option<String>,
    patch: Option<Value>,
    replace: Option<String>,
    delete: Option<String>,
    if_match: Option<u64>,
}

async fn apply(call: OrgCall) -> Result<Answer, Refusal> {
    let changes = read(&call.request.body)?;
    let key = call.control.digest_key.clone();
    batch::carry_out(&call, |config| changes.plan(config, &key)).await
}

fn given(call: &OrgCall, config: &OrgConfig) -> Result<Vec<Given>, Refusal> {
    let changes = read(&call.request.body)?;
    changes.plan(config, &call.control.digest_key).given()
}

fn read(document: &Value) -> Result<Changes, Refusal> {
    bounded(Some(document), "")?;
    shape::parse(schemas(), "Changes", document.clone()).map_err(Refusal::invalid)
}

/// Refuses a list of too many operations before anything is made of them: each takes many times
/// what it takes in the body.
///
/// # Errors
/// There are none, or too many.
pub fn bounded(changes: Option<&Value>, at: &str) -> Result<(), Refusal> {
    let operations = changes.and_then(|changes| changes.get("operations"));
    let count = operations.and_then(Value::as_array).map(Vec::len);
    match count {
        Some(count) if count == 0 || count > OPERATIONS_MAX => {
            let problem = wrong_length();
            Err(Refusal::invalid(vec![problem.below(at)]))
        }
        _ => Ok(()),
    }
}

fn wrong_length() -> Problem {
    let detail = format!("must be 1 to {OPERATIONS_MAX}");
    Problem::new("/operations", "length", detail)
}

impl Changes {
    /// What the list does to a version.
    pub fn plan(&self, config: &OrgConfig, key: &DigestKey) -> Plan {
        let mut work = Work {
            config,
            key,
            plan: Plan::default(),
            names: BTreeMap::new(),
        };
        let fresh = work.name(&self.operations);
        for (at, step) in self.operations.iter().enumerate() {
            work.step(at, step, fresh.get(at).copied().flatten());
        }
        work.plan
    }
}

struct Work<'a> {
    config: &'a OrgConfig,
    key: &'a DigestKey,
    plan: Plan,
    /// What `@name` stands for.
    names: BTreeMap<String, ObjectId>,
}

impl Work<'_> {
    /// Gives every creation its id, so that the order of the list does not matter.
    fn name(&mut self, steps: &[Step]) -> Vec<Option<ObjectId>> {
        let mut fresh = Vec::with_capacity(steps.len());
        for (at, step) in steps.iter().enumerate() {
            let create = step.create.as_deref();
            let id = create.map(|collection| fresh_id(collection, step.object.as_ref()));
            fresh.push(id);
            if let (Some(name), Some(id)) = (&step.r#as, id)
                && self.names.insert(name.clone(), id).is_some()
            {
                let detail = format!("`{name}` is given twice");
                let pointer = format!("/operations/{at}/as");
                self.plan
                    .problem(Problem::new(pointer, "duplicate", detail));
            }
        }
        fresh
    }

    fn step(&mut self, at: usize, step: &Step, fresh: Option<ObjectId>) {
        let place = format!("/operations/{at}");
        let verbs = [&step.create, &step.update, &step.replace, &step.delete];
        if verbs.iter().filter(|verb| verb.is_some()).count() != 1 {
            let detail = "has exactly one of `create`, `update`, `replace` and `delete`";
            self.plan.problem(Problem::new(place, "operation", detail));
            return;
        }
        if let Err(problem) = only_its_own(step) {
            self.plan.problem(problem.below(&place));
            return;
        }
        if let Some(id) = fresh {
            let at = format!("{place}/parent");
            let parent = step
                .parent
                .as_deref()
                .map(|name| match name.starts_with('@') {
                    true => self.id(&at, name),
                    false if fresh_hangs_on(self.config, id, name) => name.parse().ok(),
                    false => self.existing(&at, name),
                });
            // An unknown one is told at its own place.
            if parent == Some(None) {
                return;
            }
            let pointer = format!("{place}/object");
            let mut document = step.object.clone().unwrap_or_default();
            self.substitute(&pointer, &mut document);
            self.plan
                .create(&pointer, id, parent.flatten(), document, self.key);
        } else if let Some(name) = &step.delete {
            if let Some(id) = self.existing(&format!("{place}/delete"), name) {
                let precondition = step.if_match;
                self.plan
                    .push(&place, Operation::Delete { id, precondition });
            }
        } else if let Some(name) = &step.update {
            self.change(&place, step, name, Manner::Merge);
        } else if let Some(name) = &step.replace {
            self.change(&place, step, name, Manner::Replace);
        }
    }

    fn change(&mut self, place: &str, step: &Step, name: &str, manner: Manner) {
        let (word, field, document) = match manner {
            Manner::Merge => ("update", "patch", &step.patch),
            Manner::Replace => ("replace", "object", &step.object),
        };
        let Some(id) = self.existing(&format!("{place}/{word}"), name) else {
            return;
        };
        let pointer = format!("{place}/{field}");
        let mut document = document.clone().unwrap_or_default();
        self.substitute(&pointer, &mut document);
        let given = plan::taken_secret(id, &mut document);
        let change = plan::change(id, document, manner);
        let before = self.config.object(id).map(|object| &object.body);
        // Whatever the object is by then: a secret may stand in a field by mistake.
        if let Some(Err(problems)) = before.map(&*change)
            && problems.iter().any(|fault| fault.code == "unknown-field")
        {
            return self.plan.faults(&pointer, problems);
        }
        let secret = match before {
            Some(body @ Body::Credential(stored)) => {
                match given.is_some().then(|| change(body)).transpose() {
                    Ok(after) => self.plan.gives(&pointer, id, after.as_ref()),
                    Err(problems) => return self.plan.faults(&pointer, problems),
                }
                self.plan.changed_secret(id, stored, given, self.key)
            }
            _ => Ok(SecretChange::Keep),
        };
        match secret {
            Ok(secret) => self.plan.push(
                &pointer,
                Operation::Update {
                    id,
                    precondition: step.if_match,
                    change,
                    secret,
                },
            ),
            Err(problems) => self.plan.faults(&pointer, problems),
        }
    }

    /// The object that a text names: an id, or a name of this list.
    fn id(&mut self, pointer: &str, text: &str) -> Option<ObjectId> {
        let found = match text.strip_prefix('@') {
            Some(name) => self.names.get(name).copied(),
            None => text.parse().ok(),
        };
        if found.is_none() {
            let detail = match text.strip_prefix('@') {
                Some(name) => format!("no operation of this list is named `{name}` (`as`)"),
                None => "is neither an id nor the `@name` of an operation of this list".into(),
            };
            self.plan
                .problem(Problem::new(pointer, "unknown-reference", detail));
        }
        found
    }

    /// An object that the newest version holds.
    fn existing(&mut self, pointer: &str, text: &str) -> Option<ObjectId> {
        let found: Option<ObjectId> = text.parse().ok();
        let found = found.filter(|id| {
            let configures = !matches!(id, ObjectId::Org(_) | ObjectId::Token(_));
            configures && self.config.object(*id).is_some()
        });
        if found.is_none() {
            let detail =
                "names no target, credential, proxy, rule, filter or meter of this organisation";
            self.plan
                .problem(Problem::new(pointer, "not-found", detail));
        }
        found
    }

    /// Puts ids in the place of the names of this list.
    fn substitute(&mut self, pointer: &str, document: &mut Value) {
        for field in ["target_id", "target_credential_id"] {
            if let Some(value) = document.get_mut(field) {
                self.substitute_one(&format!("{pointer}/{field}"), value);
            }
        }
        let list = document.get_mut("proxy_credential_ids");
        for (at, value) in list
            .and_then(Value::as_array_mut)
            .into_iter()
            .flatten()
            .enumerate()
        {
            self.substitute_one(&format!("{pointer}/proxy_credential_ids/{at}"), value);
        }
    }

    fn substitute_one(&mut self, pointer: &str, value: &mut Value) {
        if let Some(name) = value.as_str().filter(|text| text.starts_with('@'))
            && let Some(id) = self.id(pointer, name)
        {
            *value = Value::from(id.to_string());
        }
    }
}

/// A fresh id of a collection's kind; the schema lets no other word through.
fn fresh_id(collection: &str, object: Option<&Value>) -> ObjectId {
    match collection {
        Credentials::COLLECTION => {
            Credentials::id_of_new(object.and_then(|object| object.get("secret")))
        }
        Proxies::COLLECTION => Proxies::fresh_id(),
        Rules::COLLECTION => Rules::fresh_id(),
        Filters::COLLECTION => Filters::fresh_id(),
        Meters::COLLECTION => Meters::fresh_id(),
        _ => Targets::fresh_id(),
    }
}

/// Whether `name` is the organisation itself, on which meters may hang.
fn fresh_hangs_on(config: &OrgConfig, fresh: ObjectId, name: &str) -> bool {
    matches!(fresh, ObjectId::Meter(_)) && name.parse() == Ok(ObjectId::Org(config.org))
}

/// What hangs on another object.
const HANGING: [&str; 3] = [Rules::COLLECTION, Filters::COLLECTION, Meters::COLLECTION];

/// No field may stand where it would be ignored.
fn only_its_own(step: &Step) -> Result<(), Problem> {
    let given = [
        ("as", step.r#as.is_some()),
        ("parent", step.parent.is_some()),
        ("object", step.object.is_some()),
        ("patch", step.patch.is_some()),
        ("if_match", step.if_match.is_some()),
    ];
    let hangs = step
        .create
        .as_deref()
        .is_some_and(|on| HANGING.contains(&on));
    let (verb, needs, takes): (&str, &[&str], &[&str]) = match step {
        Step {
            create: Some(_), ..
        } if hangs => ("create", &["object", "parent"], &["as", "object", "parent"]),
        Step {
            create: Some(_), ..
        } => ("create", &["object"], &["as", "object"]),
        Step {
            update: Some(_), ..
        } => ("update", &["patch"], &["patch", "if_match"]),
        Step {
            replace: Some(_), ..
        } => ("replace", &["object"], &["object", "if_match"]),
        _ => ("delete", &[], &["if_match"]),
    };
    for (field, is_given) in given {
        if is_given && !takes.contains(&field) {
            let detail = format!("does not belong to this `{verb}`");
            return Err(Problem::new(format!("/{field}"), "not-applicable", detail));
        }
        if !is_given && needs.contains(&field) {
            let detail = format!("is missing; this `{verb}` needs it");
            return Err(Problem::new(format!("/{field}"), "required", detail));
        }
    }
    Ok(())
}
