//! The OpenAPI 3.1 document: paths from the routing table, schemas from the model's types.
//!
//! The committed copy (`control/openapi.json`) is what clients are generated from; a test fails
//! when it is stale. The same schemas check what callers submit (`api::shape`).

use std::sync::OnceLock;

use proto::filter::Filter;
use proto::meter::Meter;
use proto::org::{ApiToken, Org, Role};
use proto::problem::Problem;
use proto::record::Record;
use proto::rule::Rule;
use proto::target::{Target, Timeouts};
use proto::usage::KeyUsage;
use proto::{credential, proxy};
use serde_json::{Map, Value, json};
use utoipa::ToSchema;
use utoipa::openapi::{RefOr, Schema};

use crate::api::answer::VERSION_HEADER;
use crate::api::recovery_schemas;
use crate::api::schemas as own;
use crate::api::shape::Schemas;
use crate::regions::ask::REGIONS;
use crate::regions::missing;
use crate::regions::replicated::{DURABILITY, DURABILITY_MEANS};
use crate::route::{Access, Gives, Need, Route, Served, Takes};
use crate::router::routes;

/// The document as it is served and committed: pretty JSON with a line break at its end.
/// Made once: whoever has no token may ask for it too.
pub fn openapi_json() -> &'static str {
    static TEXT: OnceLock<String> = OnceLock::new();
    TEXT.get_or_init(|| {
        // A `Value` of maps and strings always serialises.
        let text = serde_json::to_string_pretty(&document()).unwrap_or_default();
        text + "\n"
    })
}

/// The named schemas, built once.
pub fn schemas() -> &'static Schemas {
    static SCHEMAS: OnceLock<Schemas> = OnceLock::new();
    SCHEMAS.get_or_init(build_schemas)
}

fn build_schemas() -> Schemas {
    let mut schemas = Schemas::new();
    add::<Target>(&mut schemas);
    add::<Timeouts>(&mut schemas);
    add::<credential::Credential>(&mut schemas);
    add::<credential::SecretInput>(&mut schemas);
    add::<proxy::Proxy>(&mut schemas);
    add::<Org>(&mut schemas);
    add::<ApiToken>(&mut schemas);
    add::<Role>(&mut schemas);
    add::<Rule>(&mut schemas);
    add::<Filter>(&mut schemas);
    add::<Meter>(&mut schemas);
    add::<KeyUsage>(&mut schemas);
    add::<Problem>(&mut schemas);
    add::<Record>(&mut schemas);
    own::add(&mut schemas);
    schemas.values_mut().for_each(plain_words);
    schemas.sort_keys();
    schemas
}

/// Takes the links of Rust's documentation out of descriptions: whoever reads these has no Rust.
fn plain_words(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            if let Some(Value::String(words)) = fields.get_mut("description") {
                *words = without_links(words);
            }
            fields.values_mut().for_each(plain_words);
        }
        Value::Array(items) => items.iter_mut().for_each(plain_words),
        _ => {}
    }
}

/// "[`A::b`](c::d)" as "`b`".
fn without_links(words: &str) -> String {
    let mut out = String::with_capacity(words.len());
    let mut rest = words;
    while let Some((before, link)) = rest.split_once("[`") {
        let Some((name, after)) = link.split_once("`]") else {
            break;
        };
        out.push_str(before);
        let name = name.rsplit("::").next().unwrap_or(name);
        out.push_str(&format!("`{name}`"));
        let target = after
            .strip_prefix('(')
            .and_then(|target| target.split_once(')'));
        rest = target.map_or(after, |(_, after)| after);
    }
    out + rest
}

/// Adds a type's schema, and those that it refers to, under their names.
pub fn add<T: ToSchema>(schemas: &mut Schemas) {
    let mut found: Vec<(String, RefOr<Schema>)> = vec![(T::name().into_owned(), T::schema())];
    T::schemas(&mut found);
    for (name, schema) in found {
        let schema = serde_json::to_value(schema).unwrap_or_default();
        schemas.entry(name).or_insert(schema);
    }
}

/// A copy of the object schema `base` with further properties, under the name `name`.
pub fn extend(schemas: &mut Schemas, base: &str, name: &str, further: &[(&str, Value)]) {
    let mut schema = schemas.get(base).cloned().unwrap_or_default();
    if let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) {
        for (property, description) in further {
            properties.insert((*property).to_owned(), description.clone());
        }
    }
    schemas.insert(name.to_owned(), schema);
}

fn document() -> Value {
    let mut paths = Map::new();
    for route in routes() {
        let item = paths
            .entry(format!("/api/v1{}", route.path))
            .or_insert_with(|| json!({}));
        item[route.verb.as_str().to_ascii_lowercase()] = operation(&route);
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "RequestRocket control API",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Objects change by merge patch (RFC 7396) or replacement. Every object \
                has an `ETag`; `If-Match` guards a change. Errors are problem details (RFC 9457) \
                with all faults at once. A write answers with `requestrocket-version`; a read that \
                presents it sees that version.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"}
        },
        "servers": [{"url": "/"}],
        "security": [{"token": []}],
        "paths": paths,
        "components": {
            "schemas": schemas(),
            "responses": {"Problem": {
                "description": "Why the call was not carried out",
                "content": {"application/problem+json": {"schema": reference("ProblemDocument")}}
            }},
            "securitySchemes": {"token": {
                "type": "http",
                "scheme": "bearer",
                "description": "An API token, `rr_api_…`"
            }}
        }
    })
}

fn operation(route: &Route) -> Value {
    let mut operation = json!({
        "operationId": route.operation,
        "summary": route.summary,
        "tags": [tag(route)],
        "parameters": parameters(route),
        "responses": responses(route),
    });
    let description = who(&route.access);
    operation["description"] = json!(description);
    if matches!(route.access, Access::Open(_)) {
        operation["security"] = json!([]);
    }
    let body = |schema: &str, media_type: &str, required: bool| {
        json!({
            "required": required,
            "content": {media_type: {"schema": reference(schema)}}
        })
    };
    match route.takes {
        Takes::Nothing => {}
        Takes::Body(schema) | Takes::Large(schema) => {
            operation["requestBody"] = body(schema, "application/json", true);
        }
        Takes::Optional(schema) => {
            operation["requestBody"] = body(schema, "application/json", false);
        }
        Takes::MergePatch(schema) => {
            operation["requestBody"] = body(schema, "application/merge-patch+json", true);
            operation["requestBody"]["description"] =
                json!("A merge patch: fields that change; `null` removes a field");
        }
    }
    operation
}

/// Whether the route changes one object, whose version `If-Match` can name.
fn of_one(route: &Route) -> bool {
    route.path.ends_with('}') || route.path.ends_with("/rotate")
}

/// The last fixed word of the path: what the route is about.
fn tag(route: &Route) -> &'static str {
    route
        .path
        .split('/')
        .rfind(|part| !part.is_empty() && !part.starts_with('{') && *part != "rotate")
        .unwrap_or("api")
}

fn who(access: &Access) -> String {
    match access {
        Access::Open(_) => "Needs no token.".into(),
        Access::Invited(_) => "Needs the token of an invitation, `rr_join_…`.".into(),
        Access::Token(_) => "Needs any valid token.".into(),
        Access::Operator(_) => {
            "Needs a token of role admin or owner in organisation `system`.".into()
        }
        Access::Org(Need::Role(role), _) => format!("Needs role {} or higher.", role_name(*role)),
        Access::Org(Need::CredentialKind, _) => {
            "Needs role member for a proxy credential, admin for a target credential.".into()
        }
        Access::Org(Need::ProxySettings, _) => {
            "Needs role member; admin to bind a target credential whose `use_by` is `admin`, and \
             for `forward_caller_headers`, `cookies: pass`, `error_bodies: pass`, \
             `rewrite_urls: off` and open proxies."
                .into()
        }
    }
}

/// A role as the API writes it.
pub fn role_name(role: Role) -> &'static str {
    match role {
        Role::Viewer => "viewer",
        Role::Member => "member",
        Role::Admin => "admin",
        Role::Owner => "owner",
    }
}

fn parameters(route: &Route) -> Value {
    let mut all: Vec<Value> = route
        .path_parameters()
        .map(|name| {
            let description = match name {
                "org" => "Id or slug of the organisation",
                "id" => "Id of the object",
                _ => "Id of what hangs on it",
            };
            json!({"name": name, "in": "path", "required": true, "description": description,
                   "schema": {"type": "string"}})
        })
        .collect();
    let query = |name: &str, description: &str, schema: Value| {
        let mut parameter = json!({"name": name, "in": "query", "description": description});
        parameter["schema"] = schema;
        parameter
    };
    let header = |name: &str, description: &str| {
        json!({"name": name, "in": "header", "description": description,
               "schema": {"type": "string"}})
    };
    if matches!(route.gives, Gives::List(_)) {
        let limit = json!({"type": "integer", "minimum": 1, "maximum": 500, "default": 100});
        all.push(query("limit", "Items on a page", limit));
        let text = json!({"type": "string"});
        all.push(query("cursor", "`next_cursor` of the page before", text));
    }
    for (name, description) in route.parameters {
        all.push(query(name, description, json!({"type": "string"})));
    }
    if route.served == Served::AtHome {
        let schema = json!({"type": "string", "enum": ["0", "1"], "default": "0"});
        all.push(query(DURABILITY, DURABILITY_MEANS, schema));
    }
    if route.verb.writes() {
        let key = "Any text of 1 to 255 characters; a write that is repeated with it within a day \
                   is carried out once, unless the organisation has made 100,000 others since. \
                   A generated key or token may be in the first answer alone: `warnings` says so";
        all.push(header("Idempotency-Key", key));
        if !matches!(route.gives, Gives::Created(_)) && of_one(route) {
            all.push(header(
                "If-Match",
                "`ETag` that the object must have, else 412",
            ));
        }
    } else if matches!(route.gives, Gives::One(_)) && route.path.ends_with('}') {
        all.push(header(
            "If-None-Match",
            "`ETag` that the caller has; 304 if it is current",
        ));
    }
    if let Some(means) = version_means(route) {
        all.push(header(VERSION_HEADER.as_str(), means));
    }
    Value::Array(all)
}

/// What a version does that a call presents; `None` where it does nothing.
fn version_means(route: &Route) -> Option<&'static str> {
    match (&route.access, route.served) {
        (Access::Open(_), _) => None,
        (_, Served::HereOrAtHome) => Some(
            "What a write answered with: waited for, for two seconds, then read in the home \
             region; else 503",
        ),
        _ => Some("What a write answered with: waited for, for two seconds; else 503"),
    }
}

fn responses(route: &Route) -> Value {
    let content = |schema: Value| json!({"application/json": {"schema": schema}});
    let (status, success) = match route.gives {
        Gives::One(name) => (
            "200",
            json!({"description": "The object", "content": content(reference(name))}),
        ),
        Gives::Either(one, other) => {
            let either = json!({"oneOf": [reference(one), reference(other)]});
            (
                "200",
                json!({"description": "The object", "content": content(either)}),
            )
        }
        Gives::Created(name) => (
            "201",
            json!({"description": "The created object", "content": content(reference(name))}),
        ),
        Gives::List(name) => (
            "200",
            json!({"description": "A page", "content": content(list(route, name))}),
        ),
        Gives::Nothing => ("204", json!({"description": "Done"})),
        Gives::Text => (
            "200",
            json!({
                "description": "Text",
                "content": {
                    "text/plain": {"schema": {"type": "string"}},
                    "application/openmetrics-text": {"schema": {"type": "string"}}
                }
            }),
        ),
        Gives::Stream(media_type) => (
            "200",
            json!({
                "description": "Sent as it comes",
                "content": {media_type: {"schema": {"type": "string"}}}
            }),
        ),
        Gives::Document => (
            "200",
            json!({"description": "This document", "content": content(json!({"type": "object"}))}),
        ),
    };
    json!({
        status: success,
        "default": {"$ref": "#/components/responses/Problem"}
    })
}

/// A page of a list.
fn list(route: &Route, name: &str) -> Value {
    let mut page = json!({
        "type": "object",
        "required": ["items", "next_cursor"],
        "properties": {
            "items": {"type": "array", "items": reference(name)},
            "next_cursor": {"type": ["string", "null"]}
        }
    });
    if route.parameters.contains(&REGIONS) {
        for (name, property) in missing::properties() {
            page["properties"][name] = property;
        }
    }
    if name == "Regression" {
        for (name, property) in recovery_schemas::unchecked() {
            page["properties"][name] = property;
        }
    }
    page
}

/// A reference to a named schema.
pub fn reference(name: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{name}")})
}

#[cfg(test)]
mod tests;
