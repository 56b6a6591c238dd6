//! Policy that hangs on an object: rules, filters and meters of targets, credentials and proxies,
//! and meters of the organisation.
//!
//! Who may edit a policy is who may edit the object that it hangs on. A path that names another
//! object than the policy's own answers like an unknown id.

use proto::credential::CredentialKind;
use proto::object::{Body, ObjectId};
use proto::org::Role;

use super::answer::Answer;
use super::call::OrgCall;
use super::error::Refusal;
use super::objects::{self, Manner, Resource};
use super::write;
use crate::route::{Gives, Need, Route, Takes, Verb};

/// A kind of policy.
pub trait Policy: Resource {
    /// The part of the path that holds its id.
    const PART: &'static str;

    /// The object that it hangs on.
    fn parent(body: &Body) -> Option<ObjectId>;
    /// A policy that hangs on `parent`.
    fn attach(parent: ObjectId, model: Self::Model) -> Body;
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
pub fn place(parent: Option<ObjectId>, collection: &str) -> String {
    let (word, parent) = match parent {
        Some(id @ ObjectId::Target(_)) => ("targets", id),
        Some(id @ ObjectId::Credential(_)) => ("credentials", id),
        Some(id @ ObjectId::Proxy(_)) => ("proxies", id),
        // Policies hang on nothing else but the organisation.
        Some(_) | None => return collection.to_owned(),
    };
    format!("{word}/{parent}/{collection}")
}

/// Names of the six rows of one policy on one kind of object: operation and summary.
pub type Names = [(&'static str, &'static str); 6];

/// The rows of policy `R` on objects `P`.
pub fn rows<R: Policy, P: Holder>(
    all: &'static str,
    one: &'static str,
    need: Need,
    names: Names,
) -> Vec<Route> {
    let viewer = Need::Role(Role::Viewer);
    let [
        list_name,
        create_name,
        get_name,
        update_name,
        replace_name,
        delete_name,
    ] = names;
    let schema = R::SCHEMA;
    vec![
        Route::org(Verb::Get, all, list_name, viewer, list::<R, P>).gives(Gives::List(schema)),
        Route::org(Verb::Post, all, create_name, need, create::<R, P>)
            .takes(Takes::Body(schema))
            .gives(Gives::Created(schema)),
        Route::org(Verb::Get, one, get_name, viewer, get::<R, P>).gives(Gives::One(schema)),
        Route::org(Verb::Patch, one, update_name, need, update::<R, P>)
            .takes(Takes::MergePatch(schema))
            .gives(Gives::One(schema)),
        Route::org(Verb::Put, one, replace_name, need, replace::<R, P>)
            .takes(Takes::Body(schema))
            .gives(Gives::One(schema)),
        Route::org(Verb::Delete, one, delete_name, need, delete::<R, P>),
    ]
}

async fn list<R: Policy, P: Holder>(call: OrgCall) -> Result<Answer, Refusal> {
    let parent = P::named(&call)?;
    objects::list::<R>(&call, |body, _| R::parent(body) == Some(parent))
}

async fn create<R: Policy, P: Holder>(call: OrgCall) -> Result<Answer, Refusal> {
    let parent = P::named(&call)?;
    may_edit(&call, parent)?;
    let model = objects::parse::<R>(call.request.body.clone()).map_err(Refusal::invalid)?;
    write::create::<R>(&call, R::attach(parent, model)).await
}

async fn get<R: Policy, P: Holder>(call: OrgCall) -> Result<Answer, Refusal> {
    objects::get::<R>(&policy::<R, P>(call)?.0)
}

async fn update<R: Policy, P: Holder>(call: OrgCall) -> Result<Answer, Refusal> {
    write::change::<R>(&editable::<R, P>(call)?, Manner::Merge).await
}

async fn replace<R: Policy, P: Holder>(call: OrgCall) -> Result<Answer, Refusal> {
    write::change::<R>(&editable::<R, P>(call)?, Manner::Replace).await
}

async fn delete<R: Policy, P: Holder>(call: OrgCall) -> Result<Answer, Refusal> {
    write::delete::<R>(&editable::<R, P>(call)?).await
}

/// The call as one about the policy that the path names last, and the object it hangs on.
fn policy<R: Policy, P: Holder>(call: OrgCall) -> Result<(OrgCall, ObjectId), Refusal> {
    let parent = P::named(&call)?;
    let mut call = call;
    let id = call.request.part(R::PART).to_owned();
    call.request.path.insert("id", id);
    let found = objects::find::<R>(&call, &*call.config()?)?;
    if R::parent(&found.body) != Some(parent) {
        return Err(Refusal::not_found());
    }
    Ok((call, parent))
}

fn editable<R: Policy, P: Holder>(call: OrgCall) -> Result<OrgCall, Refusal> {
    may_edit(&call, P::named(&call)?)?;
    Ok(policy::<R, P>(call)?.0)
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
