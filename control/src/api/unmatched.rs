//! Attempts that matched no proxy, for operators: a mistyped alias gets the same 401 as a wrong
//! key, and here is where the difference shows.
//!
//! Nodes keep a few of them a second, as records of the organisation `system`.

use jiff::Timestamp;
use proto::record::Record;
use proto::store::follow::World;
use proto::tree::{Objects, SYSTEM_ORG};
use serde_json::{Value, json};

use super::answer::Answer;
use super::call::Call;
use super::error::Refusal;
use super::records::of_store;
use super::{page, shape};
use crate::openapi::reference;
use crate::records::{RecordFilter, Records};
use crate::route::{Gives, Route, Verb};

/// Rows of the routing table.
pub fn routes() -> Vec<Route> {
    vec![
        Route::operator(
            Verb::Get,
            "/unmatched",
            (
                "list_unmatched",
                "List attempts that matched no proxy, newest first",
            ),
            list,
        )
        .gives(Gives::List("UnmatchedAttempt")),
    ]
}

async fn list(call: Call) -> Result<Answer, Refusal> {
    let page = call.request.page()?;
    let after = match &page.after {
        None => None,
        Some(after) => Some(after.parse().map_err(|()| {
            let detail = "is not a `next_cursor` of this list; start without it";
            Refusal::parameter("cursor", detail)
        })?),
    };
    let filter = RecordFilter {
        after,
        ..RecordFilter::default()
    };
    let read = move |records: &Records| records.list(SYSTEM_ORG, &filter, page.limit);
    let (found, next) = of_store(call.control.records.clone(), read).await?;
    let names = names(&call.control.world(), &call.control.settings.default_org);
    let items = found.iter().map(|record| shown(record, &names)).collect();
    let cursor = next.map(|cursor| cursor.to_string());
    Ok(Answer::json(page::page(items, cursor)))
}

/// The names under which proxies with an alias are called.
fn names(world: &World, default_org: &str) -> Vec<String> {
    let mut names = Vec::new();
    for (slug, org) in &world.slugs {
        let objects = world.orgs.get(org).map(|state| &state.config.objects);
        let proxies = objects.into_iter().flat_map(Objects::proxies);
        for alias in proxies.filter_map(|(_, proxy)| proxy.alias.as_deref()) {
            names.push(format!("{slug}.{alias}"));
            if slug == default_org {
                names.push(alias.to_owned());
            }
        }
    }
    names
}

fn shown(record: &Record, names: &[String]) -> Value {
    let nearest = shape::nearest(&record.path, names.iter().map(String::as_str));
    json!({
        "id": record.request_id,
        "started_at": Timestamp::from_microsecond(record.started_at_us).ok(),
        "name": record.path,
        "nearest": nearest,
        "reason": record.auth_failure,
        "presented": record.presented,
        "method": record.method,
        "source_address": record.source_address,
        "user_agent": record.user_agent,
        "node": record.node,
        "region": record.region,
    })
}

/// What an item of the list looks like.
pub fn schema() -> Value {
    let text = |description: &str| json!({"type": ["string", "null"], "description": description});
    json!({
        "type": "object",
        "description": "A request that named no proxy; its caller got the same 401 as any other",
        "properties": {
            "id": text("The id in the answer's `requestrocket-request-id`"),
            "started_at": {"type": "string", "format": "date-time"},
            "name": text("What stood behind `/api/`; `REDACTED` where it may be a key"),
            "nearest": text("The name of a proxy that it may be a slip of"),
            "reason": text("`unknown-proxy`"),
            "presented": {
                "description": "The key that it presented; null of none, and of several",
                "oneOf": [reference("PresentedKey"), {"type": "null"}]
            },
            "method": text("Its method"),
            "source_address": text("Where it came from"),
            "user_agent": text("What the caller says that it is"),
            "node": text("The node that answered"),
            "region": text("Its region")
        }
    })
}
