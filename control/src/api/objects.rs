//! What targets, proxies, credentials, tokens and organisations have in common: list, read,
//! create, merge, replace, delete. A resource says what is its own by implementing [`Resource`].
//!
//! Reads are answered from the configuration as last seen. Writes are functions of the object they
//! change: they run on the newest version, again after a lost race, so a patch never overwrites
//! what somebody else changed in between.

use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use proto::checks::pointer_token;
use proto::object::{Body, Object, ObjectId};
use proto::org::Role;
use proto::problem::Problem;
use proto::tree::OrgConfig;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::answer::Answer;
use super::call::OrgCall;
use super::error::{Code, Refusal};
use super::lacking;
use super::page;
use super::patch::merge;
use super::shape::{self, Document};
use crate::openapi::schemas;
use crate::state::Control;

/// A kind of object that the API serves.
pub trait Resource: Sized + 'static {
    /// The model, as submitted and stored.
    type Model: Serialize + DeserializeOwned + Clone + Send + Sync + 'static;
    /// The resource's word in paths.
    const COLLECTION: &'static str;
    /// The schema of what is submitted.
    const SCHEMA: &'static str;
    /// Fields of the schema that are not part of the model.
    const BESIDE: &'static [&'static str] = &[];
    /// Fields of the model that the gateway sets.
    const OWN: &'static [&'static str] = &["id"];

    /// A fresh id.
    fn fresh_id() -> ObjectId;
    /// The ids between which all objects of this kind stand.
    fn span() -> RangeInclusive<ObjectId>;
    /// The model in a stored object.
    fn model(body: &Body) -> Option<&Self::Model>;
    /// A stored object with its model replaced.
    fn with_model(body: &Body, model: Self::Model) -> Body;
    /// Every problem of the model itself, but for fields that are filled in later.
    fn validate(model: &Self::Model) -> Vec<Problem>;
    /// Adds to the stored fields what only answers have.
    fn decorate(shown: &mut Map<String, Value>, view: &View<'_>, object: &Object);
    /// Whether something beside the configuration has changed what is shown of it: its version, and
    /// so its entity tag, is the same as before.
    fn is_changed_beside(_view: &View<'_>, _object: &Object) -> bool {
        false
    }

    /// Where an object stands below its organisation.
    fn place(_body: &Body) -> String {
        Self::COLLECTION.to_owned()
    }

    /// Whether a caller may make this change, besides what the route's role and the configuration
    /// itself (`proto::tree::apply`) say.
    ///
    /// # Errors
    /// 403, naming what needs which role.
    fn guard(_rights: &Rights, _edit: &Edit<'_, Self::Model>) -> Result<(), Refusal> {
        Ok(())
    }
}

/// What answers are made from besides the object.
pub struct View<'a> {
    /// What serves the call.
    pub control: &'a Control,
    /// The reader's role.
    pub role: Role,
    /// The slug of the organisation that is read.
    pub slug: &'a str,
}

/// Who changes something, and what stands beside it.
#[derive(Clone)]
pub struct Rights {
    /// The caller's role in the organisation.
    pub role: Role,
    /// When the caller's token ends, if ever.
    pub until: Option<Timestamp>,
    /// The configuration as last seen.
    pub config: Arc<OrgConfig>,
}

/// A change of one object.
pub struct Edit<'a, M> {
    /// The model now; absent for a creation.
    pub before: Option<&'a M>,
    /// The model to be; absent for a deletion.
    pub after: Option<&'a M>,
}

/// The object as the API shows it.
pub fn show<R: Resource>(view: &View<'_>, object: &Object) -> Value {
    let mut shown = R::model(&object.body).map(fields).unwrap_or_default();
    shown.shift_insert(0, "id".into(), object.id.to_string().into());
    R::decorate(&mut shown, view, object);
    for (name, value) in [
        ("version", Value::from(object.version)),
        ("created_at", object.created_at.to_string().into()),
        ("updated_at", object.updated_at.to_string().into()),
    ] {
        shown.insert(name.into(), value);
    }
    Value::Object(shown)
}

/// The fields of a model, which always serialises as an object.
pub fn fields<M: Serialize>(model: &M) -> Map<String, Value> {
    match serde_json::to_value(model) {
        Ok(Value::Object(fields)) => fields,
        _ => Map::new(),
    }
}

/// Lists the objects of a kind that `keep` keeps, in the order of their ids.
///
/// # Errors
/// The page is malformed.
pub fn list<R: Resource>(
    call: &OrgCall,
    keep: impl Fn(&Body, &R::Model) -> bool,
) -> Result<Answer, Refusal> {
    let request = call.request.page()?;
    let config = call.config()?;
    if let ObjectId::Credential(_) | ObjectId::Proxy(_) = R::span().start() {
        lacking::refuse_part(call, &config)?;
    }
    let first = match &request.after {
        None => *R::span().start(),
        Some(after) => after
            .parse()
            .ok()
            .filter(|id| R::span().contains(id))
            .ok_or_else(|| Refusal::parameter("cursor", "is not a `next_cursor` of this list"))?,
    };
    let view = call.view();
    let mut items = Vec::new();
    let mut last = None;
    for (id, object) in config.objects.range(first..=*R::span().end()) {
        let behind = request.after.is_none() || *id > first;
        let kept = R::model(&object.body).is_some_and(|model| keep(&object.body, model));
        if !behind || !kept {
            continue;
        }
        if items.len() == request.limit {
            return Ok(Answer::json(page::page(items, last)));
        }
        items.push(show::<R>(&view, object));
        last = Some(id.to_string());
    }
    Ok(Answer::json(page::page(items, None)))
}

/// The object of a kind that the path names.
///
/// # Errors
/// 404; 503 where home lacks what it may be in.
pub fn find<R: Resource>(call: &OrgCall, config: &OrgConfig) -> Result<Arc<Object>, Refusal> {
    let id: ObjectId = call.request.id("id")?;
    if R::span().contains(&id) {
        lacking::refuse_away(call, config, id)?;
    }
    config
        .object(id)
        .filter(|object| R::span().contains(&id) && R::model(&object.body).is_some())
        .cloned()
        .ok_or_else(Refusal::not_found)
}

/// What is told of an object that is not here by a call that is carried out in the region that is
/// asked: 404; where some regions keep alone what is theirs, 503 that names them.
pub fn not_here(config: &OrgConfig) -> Refusal {
    let regions = config.withheld_regions();
    if regions.is_empty() {
        return Refusal::not_found();
    }
    let detail = format!(
        "nothing of this id is in this region, and what is pinned to {} is not kept here: ask a \
         control plane of one of these regions",
        regions.join(", ")
    );
    Refusal::new(Code::SetUnavailable, detail)
}

/// Reads the object that the path names.
///
/// # Errors
/// 404.
pub fn get<R: Resource>(call: &OrgCall) -> Result<Answer, Refusal> {
    let config = call.config()?;
    let object = find::<R>(call, &config)?;
    let known = call.request.if_none_match.as_ref();
    let known = known.filter(|_| !R::is_changed_beside(&call.view(), &object));
    if known.is_some_and(|condition| condition.met_by(object.version)) {
        return Ok(Answer::not_modified(object.version));
    }
    Ok(Answer::json(show::<R>(&call.view(), &object)).etag(object.version))
}

/// A submitted document as a complete model.
///
/// # Errors
/// All its faults: of shape, and where the shape lets it be read at all, of content.
pub fn parse<R: Resource>(document: Value) -> Result<R::Model, Vec<Problem>> {
    let mut problems = shape::faults(schemas(), R::SCHEMA, &document, Document::Whole);
    let mut document = without_unknown(document, &problems);
    if let Value::Object(fields) = &mut document {
        fields.retain(|name, _| !R::BESIDE.contains(&name.as_str()));
    }
    match shape::deserialize::<R::Model>(document) {
        Ok(model) if problems.is_empty() => Ok(model),
        // The publisher judges a well-shaped model with all that it names; an ill-shaped one never
        // gets there.
        Ok(model) => {
            problems.extend(R::validate(&model));
            Err(problems)
        }
        // serde's words add something only where the schemas found nothing.
        Err(faults) if problems.is_empty() => Err(faults),
        Err(_) => Err(problems),
    }
}

/// The document without the fields that are not known, so that the rest can still be judged.
fn without_unknown(mut document: Value, problems: &[Problem]) -> Value {
    for problem in problems {
        if !matches!(problem.code, "unknown-field" | "read-only") {
            continue;
        }
        let Some((parent, token)) = problem.pointer.rsplit_once('/') else {
            continue;
        };
        if let Some(Value::Object(fields)) = document.pointer_mut(parent) {
            fields.retain(|name, _| pointer_token(name) != token);
        }
    }
    document
}

/// How a submitted document changes an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// `PATCH`: what it names changes.
    Merge,
    /// `PUT`: it takes the place of all.
    Replace,
}

/// The model that a document makes of another.
///
/// # Errors
/// All its faults.
pub fn changed<R: Resource>(
    before: &R::Model,
    document: &Value,
    manner: Manner,
) -> Result<R::Model, Vec<Problem>> {
    match manner {
        Manner::Replace => parse::<R>(document.clone()),
        Manner::Merge => {
            let faults = shape::faults(schemas(), R::SCHEMA, document, Document::MergePatch);
            // A null removes; of a field that does not exist it would pass unnoticed.
            let unknown = faults.iter().any(|fault| fault.code == "unknown-field");
            let mut old = fields(before);
            old.retain(|name, _| !R::OWN.contains(&name.as_str()));
            let whole = merge(Value::Object(old), document);
            match parse::<R>(whole) {
                Ok(model) if !unknown => Ok(model),
                Ok(_) => Err(faults),
                Err(problems) => Err(union(problems, faults)),
            }
        }
    }
}

fn union(mut problems: Vec<Problem>, further: Vec<Problem>) -> Vec<Problem> {
    for problem in further {
        if !problems
            .iter()
            .any(|known| known.pointer == problem.pointer)
        {
            problems.push(problem);
        }
    }
    problems
}

/// The refusal of a change that ran inside the publisher, which knows problems only.
#[derive(Clone, Debug, Default)]
pub struct Verdict(Arc<Mutex<Option<Refusal>>>);

impl Verdict {
    /// Keeps a refusal; returns what the publisher is told.
    pub fn keep(&self, refusal: Refusal) -> Vec<Problem> {
        let problem = Problem::new("", "refused", refusal.detail.clone());
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(refusal);
        vec![problem]
    }

    /// The refusal that was kept, if any.
    pub fn take(&self) -> Option<Refusal> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}
