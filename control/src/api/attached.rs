//! Policy that hangs on an object: rules, filters and meters of targets, credentials and proxies,
//! and meters of the organisation.
//!
//! Who may edit a policy is who may edit the object that it hangs on. A path that names another
//! object than the policy's own answers like an unknown id.

use std::marker::PhantomData;
use std::ops::RangeInclusive;

use proto::credential::CredentialKind;
use proto::object::{Attached, Body, Object, ObjectId};
use proto::org::Role;
use proto::problem::Problem;
use proto::tree::OrgConfig;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::answer::Answer;
use super::call::OrgCall;
use super::credentials::Credentials;
use super::error::Refusal;
use super::objects::{self, Manner, Resource, View};
use super::proxies::Proxies;
use super::targets::Targets;
use super::warned::warn;
use super::write;
use crate::route::{Gives, Need, Route, Takes, Verb};

/// A kind of policy: what it has of its own.
pub trait Policy: Sized + 'static {
    /// The model, as submitted and stored.
    type Model: Serialize + DeserializeOwned + Clone + Send + Sync + 'static;
    /// Its word in paths.
    const COLLECTION: &'static str;
    /// The schema of what is submitted.
    const SCHEMA: &'static str;
    /// The part of the path that holds its id.
    const PART: &'static str;

    /// The id with these bits.
    fn id(bits: u128) -> ObjectId;
    /// A fresh id.
    fn fresh_id() -> ObjectId;
    /// What is stored of one.
    fn of(body: &Body) -> Option<&Attached<Self::Model>>;
    /// One to be stored.
    fn body(attached: Attached<Self::Model>) -> Body;
    /// Every problem of the model itself.
    fn validate(model: &Self::Model) -> Vec<Problem>;
    /// Keeps what one that is edited has besides what a document says of it.
    fn carry(_before: &Self::Model, _after: &mut Self::Model) {}
    /// What is valid in one and probably not meant, where it hangs.
    fn warnings(_model: &Self::Model, _on: Option<&Body>, _config: &OrgConfig) -> Vec<Problem> {
        Vec::new()
    }
}

/// The resource of a kind of policy.
pub struct Policies<K>(PhantomData<K>);

impl<K: Policy> Resource for Policies<K> {
    type Model = K::Model;
    const COLLECTION: &'static str = K::COLLECTION;
    const SCHEMA: &'static str = K::SCHEMA;

    fn fresh_id() -> ObjectId {
        K::fresh_id()
    }

    fn span() -> RangeInclusive<ObjectId> {
        K::id(0)..=K::id(u128::MAX)
    }

    fn model(body: &Body) -> Option<&K::Model> {
        K::of(body).map(|attached| &attached.spec)
    }

    fn with_model(body: &Body, mut model: K::Model) -> Body {
        match K::of(body) {
            Some(attached) => {
                K::carry(&attached.spec, &mut model);
                Self::attach(attached.parent, model)
            }
            None => body.clone(),
        }
    }

    fn validate(model: &K::Model) -> Vec<Problem> {
        K::validate(model)
    }

    fn decorate(shown: &mut Map<String, Value>, view: &View<'_>, object: &Object) {
        let world = view.control.world();
        if let (Some(model), Some(state)) = (Self::model(&object.body), world.org(view.slug)) {
            let config = &state.config;
            let on = object
                .body
                .parent()
                .and_then(|parent| config.object(parent));
            warn(shown, K::warnings(model, on.map(|on| &on.body), config));
        }
        shown.insert("parent_id".into(), json!(object.body.parent()));
        if view.role < Role::Member {
            shown.shift_remove("notes");
        }
    }

    fn place(body: &Body) -> String {
        below(body.parent(), K::COLLECTION)
    }
}

impl<K: Policy> Policies<K> {
    /// A policy that hangs on `parent`.
    pub fn attach(parent: ObjectId, model: K::Model) -> Body {
        K::body(Attached {
            parent,
            spec: model,
        })
    }
}

/// What policy can hang on.
pub trait Holder: 'static {
    /// The one that the path names.
    ///
    /// # Errors
    /// 404.
    fn named(call: &OrgCall) -> Result<ObjectId, Refusal>;
}

impl<P: Resource> Holder for P {
    fn named(call: &OrgCall) -> Result<ObjectId, Refusal> {
        Ok(objects::find::<P>(call, &*call.config()?)?.id)
    }
}

/// A policy's place below its organisation.
fn below(parent: Option<ObjectId>, collection: &str) -> String {
    let (word, parent) = match parent {
        Some(id @ ObjectId::Target(_)) => ("targets", id),
        Some(id @ ObjectId::Credential(_)) => ("credentials", id),
        Some(id @ ObjectId::Proxy(_)) => ("proxies", id),
        // Policies hang on nothing else but the organisation.
        Some(_) | None => return collection.to_owned(),
    };
    format!("{word}/{parent}/{collection}")
}

/// Where policies of one kind hang, and what their rows are called.
pub struct Place {
    /// The path of all.
    pub all: &'static str,
    /// The path of one.
    pub one: &'static str,
    /// Operation and summary of each row: list, create, get, update, replace, delete.
    pub names: [(&'static str, &'static str); 6],
}

/// A [`Place`]: below which path, policies of which word, on what (in names, in words).
macro_rules! place {
    ($below:literal, $one:literal, $on:literal, $phrase:literal) => {
        $crate::api::attached::Place {
            all: concat!($below, "/", $one, "s"),
            one: concat!($below, "/", $one, "s/{", $one, "_id}"),
            names: [
                (
                    concat!("list_", $on, "_", $one, "s"),
                    concat!("List the ", $one, "s of ", $phrase),
                ),
                (
                    concat!("create_", $on, "_", $one),
                    concat!("Add a ", $one, " to ", $phrase),
                ),
                (
                    concat!("get_", $on, "_", $one),
                    concat!("Read a ", $one, " of ", $phrase),
                ),
                (
                    concat!("update_", $on, "_", $one),
                    concat!("Change a ", $one, " of ", $phrase),
                ),
                (
                    concat!("replace_", $on, "_", $one),
                    concat!("Replace a ", $one, " of ", $phrase),
                ),
                (
                    concat!("delete_", $on, "_", $one),
                    concat!("Delete a ", $one, " of ", $phrase),
                ),
            ],
        }
    };
}

/// The places of a policy that hangs on targets, credentials and proxies, in this order.
macro_rules! places {
    ($one:literal) => {
        [
            $crate::api::attached::place!("/orgs/{org}/targets/{id}", $one, "target", "a target"),
            $crate::api::attached::place!(
                "/orgs/{org}/credentials/{id}",
                $one,
                "credential",
                "a credential"
            ),
            $crate::api::attached::place!("/orgs/{org}/proxies/{id}", $one, "proxy", "a proxy"),
        ]
    };
}

pub(super) use {place, places};

/// The rows of a policy that hangs on targets, credentials and proxies.
pub fn everywhere<K: Policy>([targets, credentials, proxies]: [Place; 3]) -> Vec<Route> {
    [
        rows::<K, Targets>(targets, Need::Role(Role::Admin)),
        rows::<K, Credentials>(credentials, Need::CredentialKind),
        rows::<K, Proxies>(proxies, Need::Role(Role::Member)),
    ]
    .concat()
}

/// The rows of policies `K` on objects `P`.
pub fn rows<K: Policy, P: Holder>(place: Place, need: Need) -> Vec<Route> {
    let viewer = Need::Role(Role::Viewer);
    let Place { all, one, names } = place;
    let [listed, created, got, updated, replaced, deleted] = names;
    let schema = K::SCHEMA;
    vec![
        Route::org(Verb::Get, all, listed, viewer, list::<K, P>)
            .gives(Gives::List(schema))
            .of_configuration(),
        Route::org(Verb::Post, all, created, need, create::<K, P>)
            .takes(Takes::Body(schema))
            .gives(Gives::Created(schema)),
        Route::org(Verb::Get, one, got, viewer, get::<K, P>)
            .gives(Gives::One(schema))
            .of_configuration(),
        Route::org(Verb::Patch, one, updated, need, update::<K, P>)
            .takes(Takes::MergePatch(schema))
            .gives(Gives::One(schema)),
        Route::org(Verb::Put, one, replaced, need, replace::<K, P>)
            .takes(Takes::Body(schema))
            .gives(Gives::One(schema)),
        Route::org(Verb::Delete, one, deleted, need, delete::<K, P>),
    ]
}

async fn list<K: Policy, P: Holder>(call: OrgCall) -> Result<Answer, Refusal> {
    let parent = P::named(&call)?;
    objects::list::<Policies<K>>(&call, |body, _| body.parent() == Some(parent))
}

async fn create<K: Policy, P: Holder>(call: OrgCall) -> Result<Answer, Refusal> {
    let parent = P::named(&call)?;
    may_edit(&call, parent)?;
    let model =
        objects::parse::<Policies<K>>(call.request.body.clone()).map_err(Refusal::invalid)?;
    write::create::<Policies<K>>(&call, Policies::<K>::attach(parent, model)).await
}

async fn get<K: Policy, P: Holder>(call: OrgCall) -> Result<Answer, Refusal> {
    objects::get::<Policies<K>>(&policy::<K, P>(call)?.0)
}

async fn update<K: Policy, P: Holder>(call: OrgCall) -> Result<Answer, Refusal> {
    write::change::<Policies<K>>(&editable::<K, P>(call)?, Manner::Merge).await
}

async fn replace<K: Policy, P: Holder>(call: OrgCall) -> Result<Answer, Refusal> {
    write::change::<Policies<K>>(&editable::<K, P>(call)?, Manner::Replace).await
}

async fn delete<K: Policy, P: Holder>(call: OrgCall) -> Result<Answer, Refusal> {
    write::delete::<Policies<K>>(&editable::<K, P>(call)?).await
}

/// The call as one about the policy that the path names last, and the object it hangs on.
fn policy<K: Policy, P: Holder>(call: OrgCall) -> Result<(OrgCall, ObjectId), Refusal> {
    let parent = P::named(&call)?;
    let mut call = call;
    let id = call.request.part(K::PART).to_owned();
    call.request.path.insert("id", id);
    let found = objects::find::<Policies<K>>(&call, &*call.config()?)?;
    if found.body.parent() != Some(parent) {
        return Err(Refusal::not_found());
    }
    Ok((call, parent))
}

fn editable<K: Policy, P: Holder>(call: OrgCall) -> Result<OrgCall, Refusal> {
    may_edit(&call, P::named(&call)?)?;
    Ok(policy::<K, P>(call)?.0)
}

/// The route asks for the role of most objects of the kind; target credentials need more.
fn may_edit(call: &OrgCall, parent: ObjectId) -> Result<(), Refusal> {
    let config = call.config()?;
    let of_target = config.object(parent).is_some_and(|object| {
        matches!(&object.body, Body::Credential(stored)
            if stored.credential.kind == CredentialKind::Target)
    });
    match of_target {
        true => call.require(Role::Admin, "what hangs on a target credential"),
        false => Ok(()),
    }
}
