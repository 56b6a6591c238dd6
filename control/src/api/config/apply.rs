//! From a document to the operations that make the configuration what it says.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proto::object::{Body, ObjectId, StoredCredential};
use proto::problem::Problem;
use proto::seal::DigestKey;
use proto::tree::{OBJECTS_MAX, Operation, OrgConfig, SecretChange};
use serde_json::{Map, Value};

use super::FORMAT;
use super::entry::{Key, List, Model, fresh, objects};
use super::identity::Meant;
use super::stored::{Kind, Stored};
use crate::api::ahead::Given;
use crate::api::answer::Answer;
use crate::api::attached::{Policies, Policy};
use crate::api::batch;
use crate::api::call::OrgCall;
use crate::api::credentials::Credentials;
use crate::api::error::{Code, Refusal};
use crate::api::filters::FilterKind;
use crate::api::lacking;
use crate::api::meters::MeterKind;
use crate::api::objects::{Resource, parse};
use crate::api::plan::Plan;
use crate::api::proxies::Proxies;
use crate::api::rules::RuleKind;
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
    let manner = checked(&call)?;
    // What the document names by name may be among what is not here.
    lacking::refuse_part(&call, &*call.config()?)?;
    batch::carry_out(&call, |config| planned(&call, config, manner)).await
}

/// The credentials for which the document gives a secret.
///
/// # Errors
/// What is wrong with the document.
pub fn given(call: &OrgCall, config: &OrgConfig) -> Result<Vec<Given>, Refusal> {
    let manner = checked(call)?;
    if !config.withheld_regions().is_empty() {
        // What is not here looks new.
        return Err(Refusal::new(
            Code::SetUnavailable,
            "the document names things by name",
        ));
    }
    planned(call, config, manner).given()
}

/// How a document is applied.
#[derive(Clone, Copy)]
pub(super) struct Manner {
    /// What the document does not name goes, so nothing may refer to it.
    pub(super) prunes: bool,
    /// The document is of another installation: what has an id that nothing has here is new.
    pub(super) imports: bool,
}

/// How a document of the right form is applied.
fn checked(call: &OrgCall) -> Result<Manner, Refusal> {
    let document = &call.request.body;
    if objects(document) > OBJECTS_MAX {
        let detail = format!("an organisation has at most {OBJECTS_MAX} objects");
        return Err(Refusal::new(Code::BodyTooLarge, detail));
    }
    let faults = shape::faults(schemas(), "Config", document, Document::Whole);
    if !faults.is_empty() {
        return Err(Refusal::invalid(faults));
    }
    if document["format"] != FORMAT {
        let problem = Problem::new("/format", "format", format!("must be `{FORMAT}`"));
        return Err(Refusal::invalid(vec![problem]));
    }
    let is_set = |name: &str| -> Result<bool, Refusal> {
        let given: Option<bool> = call.request.query.parsed(name, "true or false")?;
        Ok(given == Some(true))
    };
    Ok(Manner {
        prunes: is_set("prune")?,
        imports: is_set("import")?,
    })
}

/// What the document makes of a version.
fn planned(call: &OrgCall, config: &OrgConfig, manner: Manner) -> Plan {
    let mut work = Work {
        call,
        config,
        key: &call.control.digest_key,
        plan: Plan::in_words(&WORDS),
        manner,
        stored: Stored::of(config),
        named: BTreeMap::new(),
        targets: BTreeMap::new(),
        reissued: BTreeMap::new(),
        kept: BTreeSet::new(),
    };
    work.apply(&call.request.body);
    if manner.prunes {
        work.prune();
    }
    let reissued = work.reissued.into_iter();
    work.plan
        .reissues(reissued.map(|(old, (new, _))| (old, new)));
    work.plan
}

pub(super) struct Work<'a> {
    pub(super) call: &'a OrgCall,
    pub(super) config: &'a OrgConfig,
    pub(super) key: &'a DigestKey,
    pub(super) plan: Plan,
    pub(super) manner: Manner,
    pub(super) stored: Stored<'a>,
    /// Entries of the document by what they are referred to.
    pub(super) named: BTreeMap<Key, Vec<ObjectId>>,
    /// Names of the document's targets.
    pub(super) targets: BTreeMap<ObjectId, String>,
    /// What stands here for ids of another installation, and of which kind.
    pub(super) reissued: BTreeMap<ObjectId, (ObjectId, Kind)>,
    /// Objects of the newest version that the document names.
    pub(super) kept: BTreeSet<ObjectId>,
}

impl Work<'_> {
    fn apply(&mut self, document: &Value) {
        let org = ObjectId::Org(self.config.org);
        self.policies::<MeterKind>("", org, document.get("meters").cloned());
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
        let policies = ["rules", "filters", "meters"].map(|word| fields.shift_remove(word));
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
        let (on, is_new) = match self.identify(pointer, id, &model) {
            None => return,
            Some(Meant::Stored(id)) => (id, false),
            Some(Meant::New(Some(id))) => (id, true),
            Some(Meant::New(None)) => (fresh(list, secret.as_ref()), true),
        };
        self.named.entry(model.key()).or_default().push(on);
        if list == List::Targets {
            self.targets.insert(on, model.name().to_owned());
        }
        match is_new {
            true => self.create(pointer, on, model, secret),
            false => self.update(pointer, on, model, secret),
        }
        let [rules, filters, meters] = policies;
        self.policies::<RuleKind>(pointer, on, rules);
        self.policies::<FilterKind>(pointer, on, filters);
        self.policies::<MeterKind>(pointer, on, meters);
    }

    pub(super) fn refuse(
        &mut self,
        pointer: String,
        code: &'static str,
        detail: impl Into<String>,
    ) {
        self.plan.problem(Problem::new(pointer, code, detail));
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
                let form = StoredCredential {
                    credential: credential.clone(),
                    ..stored.clone()
                };
                let after = Body::Credential(form.clone());
                let gives = secret.is_some().then_some(&after);
                self.plan.gives(pointer, id, gives);
                self.changed_secret(pointer, id, (stored, &form), secret)
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

    /// Makes the policies that hang on an object those of the document's list; without a list
    /// they stay. One with the same content stays the same object; so does one that is edited,
    /// where it can be told which it was ([`partner`]): a meter keeps what it has counted.
    fn policies<K: Policy>(&mut self, pointer: &str, on: ObjectId, list: Option<Value>) {
        let Some(Value::Array(list)) = list else {
            return;
        };
        let stored = self.stored.policies(on).iter();
        let mut stored: Vec<(ObjectId, Value)> = stored
            .filter_map(|object| {
                Some((
                    object.id,
                    content::<Policies<K>>(Policies::<K>::model(&object.body)?),
                ))
            })
            .collect();
        let mut changed = Vec::new();
        for (at, document) in list.into_iter().enumerate() {
            let pointer = format!("{pointer}/{}/{at}", K::COLLECTION);
            let model = match parse::<Policies<K>>(document) {
                Ok(model) => model,
                Err(problems) => {
                    self.plan.faults(&pointer, problems);
                    continue;
                }
            };
            let same = content::<Policies<K>>(&model);
            match stored.iter().position(|(_, content)| *content == same) {
                Some(found) => drop(stored.remove(found)),
                None => changed.push((pointer, model, same)),
            }
        }
        let one_each = changed.len() == 1 && stored.len() == 1;
        for (pointer, model, content) in changed {
            let operation = match partner(&stored, &content, one_each) {
                Some(found) => {
                    let (id, _) = stored.remove(found);
                    let change =
                        move |body: &Body| Ok(Policies::<K>::with_model(body, model.clone()));
                    Operation::Update {
                        id,
                        precondition: None,
                        change: Arc::new(change),
                        secret: SecretChange::Keep,
                    }
                }
                None => Operation::Create {
                    id: K::fresh_id(),
                    body: Policies::<K>::attach(on, model),
                    secret: None,
                },
            };
            self.plan.push(&pointer, operation);
        }
        for (id, _) in stored {
            let precondition = None;
            self.plan
                .push(pointer, Operation::Delete { id, precondition });
        }
    }

    /// Removes what the document does not name.
    fn prune(&mut self) {
        let named = self
            .config
            .objects
            .iter()
            .filter(|(id, object)| Kind::of(&object.body).is_some() && !self.kept.contains(id));
        let ids: Vec<ObjectId> = named.map(|(id, _)| *id).collect();
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

/// Which of the stored policies one of the document is that has another content: the one of its
/// name, and where neither has a name the one that is left, if it is one. A meter that counts
/// something else is another one: what was counted are no such tokens.
fn partner(stored: &[(ObjectId, Value)], content: &Value, one_each: bool) -> Option<usize> {
    let name = |content: &Value| content["name"].as_str().unwrap_or_default().to_owned();
    let wanted = name(content);
    let counts_as = |before: &Value| {
        let mut what = ["kind", "value"].iter();
        what.all(|key| before[*key] == content[*key])
    };
    let is_it = |(_, before): &(ObjectId, Value)| name(before) == wanted && counts_as(before);
    let all = stored.iter().enumerate();
    let mut places = all.filter(|(_, one)| is_it(one)).map(|(at, _)| at);
    let found = places.next()?;
    match wanted.is_empty() {
        true => one_each.then_some(found),
        false => places.next().is_none().then_some(found),
    }
}
