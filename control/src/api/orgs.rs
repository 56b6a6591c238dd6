//! Organisations: objects of the organisation `system`, so operators make and change them; who
//! belongs to one may read it.

use std::ops::RangeInclusive;

use proto::id::OrgId;
use proto::object::{Body, Object, ObjectId};
use proto::org::{Org, Role, SYSTEM};
use proto::problem::Problem;
use proto::tree::SYSTEM_ORG;
use serde_json::{Map, Value};

use super::answer::Answer;
use super::call::{Call, OrgCall};
use super::error::Refusal;
use super::objects::{self, Manner, Resource, View};
use super::write;
use crate::route::{Gives, Need, Route, Takes, Verb};
use crate::state::OrgName;

/// The resource.
pub enum Orgs {}

impl Resource for Orgs {
    type Model = Org;
    const COLLECTION: &'static str = "orgs";
    const SCHEMA: &'static str = "Org";

    fn fresh_id() -> ObjectId {
        ObjectId::Org(OrgId::new())
    }

    fn span() -> RangeInclusive<ObjectId> {
        ObjectId::Org(OrgId::from_bits(0))..=ObjectId::Org(OrgId::from_bits(u128::MAX))
    }

    fn model(body: &Body) -> Option<&Org> {
        match body {
            Body::Org(org) => Some(org),
            _ => None,
        }
    }

    fn with_model(_body: &Body, model: Org) -> Body {
        Body::Org(model)
    }

    fn validate(model: &Org) -> Vec<Problem> {
        let mut model = model.clone();
        model.complete();
        model.validate()
    }

    fn decorate(_shown: &mut Map<String, Value>, _view: &View<'_>, _object: &Object) {}
}

const ALL: &str = "/orgs";
const ONE: &str = "/orgs/{org}";

/// Rows of the routing table.
pub fn routes() -> Vec<Route> {
    vec![
        Route::operator(Verb::Get, ALL, ("list_orgs", "List organisations"), list)
            .gives(Gives::List("Org"))
            .of_configuration(),
        Route::operator(
            Verb::Post,
            ALL,
            ("create_org", "Create an organisation"),
            create,
        )
        .takes(Takes::Body("Org"))
        .gives(Gives::Created("Org")),
        Route::org(
            Verb::Get,
            ONE,
            ("get_org", "Read an organisation"),
            Need::Role(Role::Viewer),
            get,
        )
        .gives(Gives::One("Org"))
        .of_configuration(),
        Route::operator(
            Verb::Patch,
            ONE,
            ("update_org", "Change an organisation"),
            update,
        )
        .takes(Takes::MergePatch("Org"))
        .gives(Gives::One("Org")),
        Route::operator(
            Verb::Delete,
            ONE,
            (
                "delete_org",
                "Delete an organisation that holds nothing but tokens",
            ),
            delete,
        ),
    ]
}

async fn list(call: Call) -> Result<Answer, Refusal> {
    objects::list::<Orgs>(&in_system(call), |_, _| true)
}

async fn create(call: Call) -> Result<Answer, Refusal> {
    let call = in_system(call);
    let org = objects::parse::<Orgs>(call.request.body.clone()).map_err(Refusal::invalid)?;
    if org.slug == SYSTEM {
        let detail = "is the slug of the organisation that holds the others";
        return Err(Refusal::invalid(vec![Problem::new(
            "/slug", "reserved", detail,
        )]));
    }
    write::create::<Orgs>(&call, Body::Org(org)).await
}

async fn get(call: OrgCall) -> Result<Answer, Refusal> {
    let mut call = call;
    call.request.path.insert("id", call.org.id.to_string());
    call.org = system();
    objects::get::<Orgs>(&call)
}

async fn update(call: Call) -> Result<Answer, Refusal> {
    write::change::<Orgs>(&named(call)?, Manner::Merge).await
}

async fn delete(call: Call) -> Result<Answer, Refusal> {
    write::delete::<Orgs>(&named(call)?).await
}

fn system() -> OrgName {
    OrgName {
        id: SYSTEM_ORG,
        slug: SYSTEM.to_owned(),
    }
}

/// An operator's call as one within `system`, where organisations are objects.
fn in_system(call: Call) -> OrgCall {
    OrgCall {
        role: call.caller.token.role,
        control: call.control,
        caller: call.caller,
        org: system(),
        request: call.request,
    }
}

/// The same, for the organisation that the path names by id or slug.
fn named(call: Call) -> Result<OrgCall, Refusal> {
    let org = call
        .control
        .find_org(call.request.part("org"))
        .ok_or_else(Refusal::not_found)?;
    let mut call = in_system(call);
    call.request.path.insert("id", org.id.to_string());
    Ok(call)
}
