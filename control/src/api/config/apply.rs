//! From a document to the operations that make the configuration what it says.

use std::collections::{BTreeMap, BTreeSet};

use proto::credential::Credential;
use proto::object::{Body, ObjectId, StoredCredential};
use proto::problem::Problem;
use proto::seal::DigestKey;
use proto::tree::{Operation, OrgConfig, SecretChange};
use serde_json::{Map, Value};

use super::entry::{List, Model, by, fresh};
use super::{FORMAT, all};
use crate::api::answer::Answer;
use crate::api::attached::Policy;
use crate::api::batch::{self, Plan};
use crate::api::call::OrgCall;
use crate::api::credentials::Credentials;
use crate::api::error::Refusal;
use crate::api::filters::Filters;
use crate::api::objects::{Resource, parse};
use crate::api::proxies::Proxies;
use crate::api::rules::Rules;
use crate::api::shape::{self, Document};
use crate::api::targets::Targets;
use crate::openapi::schemas;

/// What the document calls by name, the model holds by id.
const WORDS: [(&str, &str); 3] = [
    ("target_id", "target"),
    ("target_credential_id", "target_credential"),
    ("proxy_credential_ids", "proxy_credentials"),
];

/// `PUT …/config`.
pub async fn apply(call: OrgCall) -> Result<Answer, Refusal> {
    let document = &call.request.body;
    let faults = shape::faults(schemas(), "Config", document, Document::Whole);
    if !faults.is_empty() {
        return Err(Refusal::invalid(faults));
    }
    if document["format"] != FORMAT {
        let problem = Problem::new("/format", "format", format!("must be `{FORMAT}`"));
        return Err(Refusal::invalid(vec![problem]));
    }
    let prune: Option<bool> = call.request.query.parsed("prune", "true or false")?;
    let key = call.control.digest_key.clone();
    batch::carry_out(&call, |config| {
        let mut work = Work {
            config,
            key: &key,
            plan: Plan::in_words(&WORDS),
            prunes: prune == Some(true),
            named: BTreeMap::new(),
            kept: BTreeSet::new(),
        };
        work.apply(document);
        if work.prunes {
            work.prune();
        }
        work.plan
    })
    .await
}

struct Work<'a> {
    config: &'a OrgConfig,
    key: &'a DigestKey,
    plan: Plan,
    /// What the document does not name goes, so nothing may refer to it.
    prunes: bool,
    /// Objects of the document by name.
    named: BTreeMap<(List, String), ObjectId>,
    /// Objects of the newest version that the document names.
    kept: BTreeSet<ObjectId>,
}

impl Work<'_> {
    fn apply(&mut self, document: &Value) {
        // Proxies last: they name the others.
        for list in [List::Targets, List::Credentials, List::Proxies] {
            let entries = document[list.word()].as_array();
            for (at, entry) in entries.into_iter().flatten().enumerate() {
                let pointer = format!("/{}/{at}", list.word());
                if let Value::Object(fields) = entry {
                    self.entry(list, &pointer, fields.clone());
                }
            }
        }
    }

    fn entry(&mut self, list: List, pointer: &str, mut fields: Map<String, Value>) {
        let id = fields.shift_remove("id");
        let policies = [fields.shift_remove("rules"), fields.shift_remove("filters")];
        let secret = fields
            .shift_remove("secret")
            .filter(|_| list == List::Credentials);
        let model = match list {
            List::Targets => parse::<Targets>(Value::Object(fields)).map(|mut target| {
                target.complete();
                Model::Target(target)
            }),
            List::Credentials => parse::<Credentials>(Value::Object(fields)).map(|mut c| {
                c.complete();
                Model::Credential(c)
            }),
            List::Proxies => match self.resolved(pointer, fields) {
                Some(fields) => parse::<Proxies>(Value::Object(fields)).map(Model::Proxy),
                None => return,
            },
        };
        let model = match model {
            Ok(model) => model,
            Err(problems) => return self.plan.faults(pointer, problems),
        };
        let id = id.as_ref().and_then(Value::as_str);
        let Some(found) = self.identify(list, pointer, id, &model) else {
            return;
        };
        let (on, is_new) = match found {
            Some(id) => (id, false),
            None => (fresh(list), true),
        };
        self.named.insert((list, model.name().to_owned()), on);
        match is_new {
            true => self.create(pointer, on, model, secret),
            false => self.update(pointer, on, model, secret),
        }
        let [rules, filters] = policies;
        self.policies::<Rules>(pointer, on, rules);
        self.policies::<Filters>(pointer, on, filters);
    }

    /// The stored object that an entry means: `Some(None)` for a new one, nothing when that cannot
    /// be told.
    fn identify(
        &mut self,
        list: List,
        pointer: &str,
        id: Option<&str>,
        model: &Model,
    ) -> Option<Option<ObjectId>> {
        let found = match id {
            Some(text) => {
                let of_kind = |id: &ObjectId| {
                    self.config
                        .object(*id)
                        .is_some_and(|o| model.is_kind_of(&o.body))
                };
                let Some(id) = text.parse().ok().filter(of_kind) else {
                    let detail = "no object of this kind has this id here; leave `id` out for a \
                                  new one";
                    self.plan
                        .problem(Problem::new(format!("{pointer}/id"), "not-found", detail));
                    return None;
                };
                Some(id)
            }
            None => {
                let candidates = model.candidates(self.config);
                if candidates.len() > 1 {
                    let detail = format!(
                        "{} {} are named `{}`; add the `id` of the one that is meant",
                        candidates.len(),
                        list.word(),
                        model.name()
                    );
                    self.plan
                        .problem(Problem::new(format!("{pointer}/name"), "ambiguous", detail));
                    return None;
                }
                candidates.first().copied()
            }
        };
        let taken = self.named.contains_key(&(list, model.name().to_owned()));
        let twice = found.is_some_and(|id| !self.kept.insert(id));
        if twice || (taken && id.is_none()) {
            let detail = format!("another entry is `{}` already", model.name());
            self.plan
                .problem(Problem::new(format!("{pointer}/name"), "duplicate", detail));
            return None;
        }
        Some(found)
    }

    fn create(&mut self, pointer: &str, id: ObjectId, model: Model, secret: Option<Value>) {
        let mut document = model.fields();
        if let Some(secret) = secret {
            document.insert("secret".into(), secret);
        }
        self.plan
            .create(pointer, id, None, Value::Object(document), self.key);
    }

    fn update(&mut self, pointer: &str, id: ObjectId, model: Model, secret: Option<Value>) {
        let stored = self.config.object(id).map(|object| &object.body);
        let secret = match (stored, &model) {
            (Some(Body::Credential(stored)), Model::Credential(credential)) => {
                self.changed_secret(stored, credential, secret)
            }
            _ => Ok(SecretChange::Keep),
        };
        match secret {
            Ok(secret) => self.plan.push(
                pointer,
                Operation::Update {
                    id,
                    precondition: None,
                    change: model.change(),
                    secret,
                },
            ),
            Err(problems) => self.plan.faults(pointer, problems),
        }
    }

    /// A secret that is the same as the stored one, for the same hosts, changes nothing.
    fn changed_secret(
        &self,
        stored: &StoredCredential,
        credential: &Credential,
        given: Option<Value>,
    ) -> Result<SecretChange, Vec<Problem>> {
        let form = StoredCredential {
            credential: credential.clone(),
            ..stored.clone()
        };
        let change = batch::changed_secret(&form, given, self.key)?;
        let same = match (&change, &stored.secret) {
            (SecretChange::Set { secret, .. }, Some(state)) => secret.digest == state.digest,
            _ => false,
        };
        let bound = stored.credential.hosts == credential.hosts;
        Ok(match same && bound {
            true => SecretChange::Keep,
            false => change,
        })
    }

    /// Makes the policies that hang on an object those of the document's list; without a list
    /// they stay. One with the same content stays the same object.
    fn policies<R: Policy>(&mut self, pointer: &str, on: ObjectId, list: Option<Value>)
    where
        R::Model: PartialEq,
    {
        let Some(Value::Array(list)) = list else {
            return;
        };
        let mut stored: Vec<(ObjectId, Value)> = all::<R>(self.config)
            .filter(|(_, _, object)| R::parent(&object.body) == Some(on))
            .map(|(id, model, _)| (*id, content::<R>(model)))
            .collect();
        for (at, document) in list.into_iter().enumerate() {
            let pointer = format!("{pointer}/{}/{at}", R::COLLECTION);
            let model = match parse::<R>(document) {
                Ok(model) => model,
                Err(problems) => {
                    self.plan.faults(&pointer, problems);
                    continue;
                }
            };
            let same = content::<R>(&model);
            match stored.iter().position(|(_, content)| *content == same) {
                Some(found) => drop(stored.remove(found)),
                None => {
                    let (id, body, secret) = (R::fresh_id(), R::attach(on, model), None);
                    self.plan
                        .push(&pointer, Operation::Create { id, body, secret });
                }
            }
        }
        for (id, _) in stored {
            let precondition = None;
            self.plan
                .push(pointer, Operation::Delete { id, precondition });
        }
    }

    /// A proxy's fields with ids in the place of names.
    fn resolved(
        &mut self,
        pointer: &str,
        mut fields: Map<String, Value>,
    ) -> Option<Map<String, Value>> {
        let mut whole = true;
        let mut one = |work: &mut Self, list, pointer: String, name: &str| {
            let id = work.referred(list, &pointer, name);
            whole &= id.is_some();
            id.map(|id| Value::from(id.to_string()))
        };
        for (word, list, field) in [
            ("target", List::Targets, "target_id"),
            (
                "target_credential",
                List::Credentials,
                "target_credential_id",
            ),
        ] {
            if let Some(Value::String(name)) = fields.shift_remove(word)
                && let Some(id) = one(self, list, format!("{pointer}/{word}"), &name)
            {
                fields.insert(field.into(), id);
            }
        }
        if let Some(Value::Array(names)) = fields.shift_remove("proxy_credentials") {
            let mut ids = Vec::new();
            for (at, name) in names.iter().enumerate() {
                let place = format!("{pointer}/proxy_credentials/{at}");
                let name = name.as_str().unwrap_or_default();
                ids.extend(one(self, List::Credentials, place, name));
            }
            fields.insert("proxy_credential_ids".into(), Value::Array(ids));
        }
        let target = fields.get("target_id").and_then(Value::as_str);
        let name = fields.get("name").or(fields.get("alias")).cloned();
        if let Some(name) = name.or_else(|| self.target_name(target?).map(Value::from)) {
            fields.insert("name".into(), name);
        }
        whole.then_some(fields)
    }

    fn target_name(&self, id: &str) -> Option<String> {
        let id: ObjectId = id.parse().ok()?;
        let in_document = self.named.iter().find(|(_, known)| **known == id);
        if let Some(((_, name), _)) = in_document {
            return Some(name.clone());
        }
        let body = &self.config.object(id)?.body;
        Targets::model(body).map(|target| target.name.clone())
    }

    /// What a name means: an entry of the document, or an object that is there.
    fn referred(&mut self, list: List, pointer: &str, name: &str) -> Option<ObjectId> {
        if let Some(id) = self.named.get(&(list, name.to_owned())) {
            return Some(*id);
        }
        let is_named = |id: &ObjectId, stored: &str| stored == name || id.to_string() == name;
        let found = match list {
            List::Targets => {
                by(all::<Targets>(self.config).map(|(id, t, _)| (id, is_named(id, &t.name))))
            }
            List::Credentials => {
                by(all::<Credentials>(self.config).map(|(id, c, _)| (id, is_named(id, &c.name))))
            }
            List::Proxies => Vec::new(),
        };
        if let [id] = found.as_slice()
            && (!self.prunes || self.kept.contains(id))
        {
            return Some(*id);
        }
        let (name, word) = (proto::checks::printable(name), list.word());
        let detail = match found.is_empty() || self.prunes {
            true if self.prunes => format!("the document has no `{name}` in {word}"),
            true => format!("neither the document nor the organisation has `{name}` in {word}"),
            false => format!("{} {word} are named `{name}`; give the id", found.len()),
        };
        self.plan
            .problem(Problem::new(pointer, "unknown-reference", detail));
        None
    }

    /// Removes what the document does not name.
    fn prune(&mut self) {
        let ids: Vec<ObjectId> = self
            .config
            .objects
            .keys()
            .filter(|id| {
                matches!(
                    id,
                    ObjectId::Target(_) | ObjectId::Credential(_) | ObjectId::Proxy(_)
                )
            })
            .filter(|id| !self.kept.contains(id))
            .copied()
            .collect();
        for id in ids {
            let precondition = None;
            self.plan.push("", Operation::Delete { id, precondition });
        }
    }
}

/// A policy without its id, for comparing.
fn content<R: Resource>(model: &R::Model) -> Value {
    let mut fields = crate::api::objects::fields(model);
    fields.shift_remove("id");
    Value::Object(fields)
}
