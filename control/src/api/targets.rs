//! Targets: the upstream APIs of an organisation.

use std::ops::RangeInclusive;

use proto::id::TargetId;
use proto::object::{Body, Object, ObjectId};
use proto::org::Role;
use proto::problem::Problem;
use proto::target::{BaseUrl, Target, Timeouts};
use serde_json::{Map, Value, json};

use super::answer::Answer;
use super::call::OrgCall;
use super::error::Refusal;
use super::objects::{self, Manner, Resource, View};
use super::write;
use crate::route::{Gives, Need, Route, Takes, Verb};

/// The resource.
pub enum Targets {}

impl Resource for Targets {
    type Model = Target;
    const COLLECTION: &'static str = "targets";
    const SCHEMA: &'static str = "Target";

    fn fresh_id() -> ObjectId {
        ObjectId::Target(TargetId::new())
    }

    fn span() -> RangeInclusive<ObjectId> {
        ObjectId::Target(TargetId::from_bits(0))..=ObjectId::Target(TargetId::from_bits(u128::MAX))
    }

    fn model(body: &Body) -> Option<&Target> {
        match body {
            Body::Target(target) => Some(target),
            _ => None,
        }
    }

    fn with_model(_body: &Body, model: Target) -> Body {
        Body::Target(model)
    }

    fn validate(model: &Target) -> Vec<Problem> {
        let mut model = model.clone();
        model.complete();
        model.validate()
    }

    fn decorate(shown: &mut Map<String, Value>, _view: &View<'_>, object: &Object) {
        if let Body::Target(target) = &object.body
            && let Ok(base) = BaseUrl::parse(&target.base_url)
        {
            let defaults = Timeouts::defaults_for(&base.origin.host);
            let effective = target.timeouts.or(defaults);
            shown.insert("effective_timeouts".into(), json!(effective));
        }
    }
}

const ALL: &str = "/orgs/{org}/targets";
const ONE: &str = "/orgs/{org}/targets/{id}";

/// Rows of the routing table.
pub fn routes() -> Vec<Route> {
    let (viewer, admin) = (Need::Role(Role::Viewer), Need::Role(Role::Admin));
    vec![
        Route::org(
            Verb::Get,
            ALL,
            ("list_targets", "List targets"),
            viewer,
            list,
        )
        .gives(Gives::List("Target"))
        .of_configuration(),
        Route::org(
            Verb::Post,
            ALL,
            ("create_target", "Create a target"),
            admin,
            create,
        )
        .takes(Takes::Body("Target"))
        .gives(Gives::Created("Target")),
        Route::org(Verb::Get, ONE, ("get_target", "Read a target"), viewer, get)
            .gives(Gives::One("Target"))
            .of_configuration(),
        Route::org(
            Verb::Patch,
            ONE,
            ("update_target", "Change a target"),
            admin,
            update,
        )
        .takes(Takes::MergePatch("Target"))
        .gives(Gives::One("Target")),
        Route::org(
            Verb::Put,
            ONE,
            ("replace_target", "Replace a target"),
            admin,
            replace,
        )
        .takes(Takes::Body("Target"))
        .gives(Gives::One("Target")),
        Route::org(
            Verb::Delete,
            ONE,
            ("delete_target", "Delete a target"),
            admin,
            delete,
        ),
    ]
}

async fn list(call: OrgCall) -> Result<Answer, Refusal> {
    objects::list::<Targets>(&call, |_, _| true)
}

async fn get(call: OrgCall) -> Result<Answer, Refusal> {
    objects::get::<Targets>(&call)
}

async fn create(call: OrgCall) -> Result<Answer, Refusal> {
    let model = objects::parse::<Targets>(call.request.body.clone()).map_err(Refusal::invalid)?;
    write::create::<Targets>(&call, Body::Target(model)).await
}

async fn update(call: OrgCall) -> Result<Answer, Refusal> {
    write::change::<Targets>(&call, Manner::Merge).await
}

async fn replace(call: OrgCall) -> Result<Answer, Refusal> {
    write::change::<Targets>(&call, Manner::Replace).await
}

async fn delete(call: OrgCall) -> Result<Answer, Refusal> {
    write::delete::<Targets>(&call).await
}
