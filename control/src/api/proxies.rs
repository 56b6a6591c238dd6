//! Proxies: what callers call.
//!
//! Members make and change proxies. What would lift a guardrail that an admin set needs role
//! admin: that is judged where the version is made (`proto::tree::apply`), on the newest
//! configuration.

use std::ops::RangeInclusive;

use proto::id::ProxyId;
use proto::object::{Body, Object, ObjectId};
use proto::org::Role;
use proto::problem::Problem;
use proto::proxy::Proxy;
use proto::tree::{Objects, SYSTEM_ORG};
use serde_json::{Map, Value, json};

use super::answer::Answer;
use super::call::OrgCall;
use super::error::Refusal;
use super::objects::{self, Manner, Resource, View};
use super::{inline, write};
use crate::route::{Gives, Need, Route, Takes, Verb};

/// The resource.
pub enum Proxies {}

impl Resource for Proxies {
    type Model = Proxy;
    const COLLECTION: &'static str = "proxies";
    const SCHEMA: &'static str = "Proxy";
    const OWN: &'static [&'static str] = &["former_aliases"];

    fn fresh_id() -> ObjectId {
        ObjectId::Proxy(ProxyId::new())
    }

    fn span() -> RangeInclusive<ObjectId> {
        ObjectId::Proxy(ProxyId::from_bits(0))..=ObjectId::Proxy(ProxyId::from_bits(u128::MAX))
    }

    fn model(body: &Body) -> Option<&Proxy> {
        match body {
            Body::Proxy(proxy) => Some(proxy),
            _ => None,
        }
    }

    fn with_model(_body: &Body, model: Proxy) -> Body {
        Body::Proxy(model)
    }

    fn validate(model: &Proxy) -> Vec<Problem> {
        let mut problems = model.validate();
        // An absent name is filled from the alias or the target.
        problems.retain(|problem| problem.pointer != "/name" || !model.name.is_empty());
        problems
    }

    fn decorate(shown: &mut Map<String, Value>, view: &View<'_>, object: &Object) {
        let Body::Proxy(proxy) = &object.body else {
            return;
        };
        let settings = &view.control.settings;
        shown.insert("regions".into(), json!(proxy.regions));
        shown.insert("cross_region".into(), json!(proxy.cross_region));
        let url = format!("{}/api/{}", settings.gateway_url, object.id);
        let mut urls = Map::new();
        let own = (settings.region.as_str(), settings.gateway_url.as_str());
        for (region, gateway) in std::iter::once(own).chain(view.control.other_gateways()) {
            if proxy.is_served_in(region) {
                urls.insert(region.into(), json!(format!("{gateway}/api/{}", object.id)));
            }
        }
        shown.insert("url".into(), json!(url));
        let alias = shown.get("alias").and_then(Value::as_str);
        let by_alias = alias.map(|alias| match view.slug == settings.default_org {
            true => format!("{}/api/{alias}", settings.gateway_url),
            false => format!("{}/api/{}.{alias}", settings.gateway_url, view.slug),
        });
        if let Some(url) = by_alias {
            shown.insert("alias_url".into(), json!(url));
        }
        shown.insert("urls".into(), Value::Object(urls));
    }
}

const ALL: &str = "/orgs/{org}/proxies";
const ONE: &str = "/orgs/{org}/proxies/{id}";

/// Rows of the routing table.
pub fn routes() -> Vec<Route> {
    let (viewer, member) = (Need::Role(Role::Viewer), Need::Role(Role::Member));
    let guarded = Need::ProxySettings;
    vec![
        Route::org(
            Verb::Get,
            ALL,
            ("list_proxies", "List proxies"),
            viewer,
            list,
        )
        .gives(Gives::List("Proxy"))
        .of_configuration(),
        Route::org(
            Verb::Post,
            ALL,
            (
                "create_proxy",
                "Create a proxy; with `target` and `credentials` these too, as one version",
            ),
            guarded,
            create,
        )
        .takes(Takes::Body("NewProxy"))
        .gives(Gives::Created("CreatedProxy"))
        .given_secrets(inline::given),
        Route::org(Verb::Get, ONE, ("get_proxy", "Read a proxy"), viewer, get)
            .gives(Gives::One("Proxy"))
            .of_configuration(),
        Route::org(
            Verb::Patch,
            ONE,
            ("update_proxy", "Change a proxy"),
            guarded,
            update,
        )
        .takes(Takes::MergePatch("Proxy"))
        .gives(Gives::One("Proxy")),
        Route::org(
            Verb::Put,
            ONE,
            ("replace_proxy", "Replace a proxy"),
            guarded,
            replace,
        )
        .takes(Takes::Body("Proxy"))
        .gives(Gives::One("Proxy")),
        Route::org(
            Verb::Delete,
            ONE,
            ("delete_proxy", "Delete a proxy"),
            member,
            delete,
        ),
    ]
}

async fn list(call: OrgCall) -> Result<Answer, Refusal> {
    objects::list::<Proxies>(&call, |_, _| true)
}

async fn get(call: OrgCall) -> Result<Answer, Refusal> {
    objects::get::<Proxies>(&call)
}

async fn create(mut call: OrgCall) -> Result<Answer, Refusal> {
    with_default_limits(&mut call);
    if inline::has_inline(&call.request.body) {
        return inline::create(&call).await;
    }
    let model = objects::parse::<Proxies>(call.request.body.clone()).map_err(Refusal::invalid)?;
    write::create::<Proxies>(&call, Body::Proxy(model)).await
}

/// A proxy that says nothing of limits gets those that the operator gave its organisation for this.
fn with_default_limits(call: &mut OrgCall) {
    let system = call.control.config(SYSTEM_ORG);
    let object = system
        .as_ref()
        .and_then(|config| config.object(ObjectId::Org(call.org.id)));
    let Some(Body::Org(org)) = object.map(|object| &object.body) else {
        return;
    };
    let Some(fields) = call.request.body.as_object_mut() else {
        return;
    };
    if let Some(limits) = &org.default_limits {
        fields.entry("limits").or_insert_with(|| json!(limits));
    }
}

async fn update(call: OrgCall) -> Result<Answer, Refusal> {
    write::change::<Proxies>(&call, Manner::Merge).await
}

async fn replace(call: OrgCall) -> Result<Answer, Refusal> {
    write::change::<Proxies>(&call, Manner::Replace).await
}

async fn delete(call: OrgCall) -> Result<Answer, Refusal> {
    write::delete::<Proxies>(&call).await
}

/// Why a text names no proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unnamed {
    /// None is called so.
    #[error("is no id, alias or name of a proxy of this organisation")]
    Unknown,
    /// So many are, and none of them by its alias.
    #[error("is the name of {0} proxies; give the id")]
    Several(usize),
}

/// The proxy that a text names: by its id, by its alias, or by a name that only one has. A name is
/// chosen freely, so it never comes before somebody's alias.
///
/// # Errors
/// [`Unnamed`].
pub fn named(objects: &Objects, text: &str) -> Result<ProxyId, Unnamed> {
    let is_named = |(id, proxy): &(ProxyId, &Proxy)| {
        id.to_string() == text || proxy.alias.as_deref() == Some(text)
    };
    if let Some((id, _)) = objects.proxies().find(is_named) {
        return Ok(id);
    }
    let mut by_name = objects.proxies().filter(|(_, proxy)| proxy.name == text);
    match (by_name.next(), by_name.count()) {
        (Some((id, _)), 0) => Ok(id),
        (Some(_), more) => Err(Unnamed::Several(more + 1)),
        (None, _) => Err(Unnamed::Unknown),
    }
}
