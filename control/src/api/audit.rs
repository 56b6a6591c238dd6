//! Who changed what, when and from where, with both forms of every object; never a secret.
//!
//! It is read off the versions themselves, whose hashes chain them: there is no second book that
//! could say something else.

use std::sync::Arc;

use proto::org::Role;
use proto::tree::{self, Objects, OrgConfig, SYSTEM_ORG};
use serde_json::{Value, json};

use super::answer::Answer;
use super::call::OrgCall;
use super::error::Refusal;
use super::versions::{before, change_list, next_cursor, shown};
use super::{page, write};
use crate::publish::Kept;
use crate::route::{Gives, Need, Route, Verb};

/// Most versions on a page: each is read whole.
const LIMIT_MAX: usize = 50;
/// A page ends with the version that takes it over this number of changed objects.
const CHANGES_MAX: u64 = 1_000;

/// Rows of the routing table.
pub fn routes() -> Vec<Route> {
    vec![
        Route::org(
            Verb::Get,
            "/orgs/{org}/audit",
            (
                "list_audit",
                "List who changed what, when and from where, newest first, with both forms",
            ),
            Need::Role(Role::Admin),
            list,
        )
        .gives(Gives::List("AuditEntry"))
        .of_configuration(),
    ]
}

async fn list(call: OrgCall) -> Result<Answer, Refusal> {
    let request = call.request.page()?;
    let limit = request.limit.min(LIMIT_MAX);
    let before = before(&call, &request)?;
    let publisher = &call.control.publisher;
    // One more than is shown: the form before the oldest change.
    let mut records = publisher
        .versions(call.org_id(), before, limit + 1)
        .await
        .map_err(write::refusal)?;
    let reaches_first = records
        .last()
        .is_none_or(|oldest| oldest.record.head.n == 1);
    let mut after = match records.first() {
        Some(newest) => Some(read(&call, newest).await?),
        None => None,
    };
    let mut changes = 0;
    let fits = |kept: &&Kept| {
        let fits = changes < CHANGES_MAX;
        changes = changes.saturating_add(kept.record.changes);
        fits
    };
    let shown_count = records.iter().take(limit).take_while(fits).count();
    let mut items = Vec::with_capacity(shown_count);
    for at in 0..shown_count {
        let earlier = match records.get(at + 1) {
            Some(record) => Some(read(&call, record).await?),
            None => None,
        };
        if let (Some(record), Some(config)) = (records.get(at), &after) {
            items.push(entry(
                &call,
                record,
                earlier.as_deref(),
                config,
                reaches_first,
            ));
        }
        after = earlier;
    }
    let whole = shown_count == limit || shown_count == records.len();
    records.truncate(shown_count);
    let cursor = next_cursor(&records, if whole { limit } else { shown_count });
    Ok(Answer::json(page::page(items, cursor)))
}

async fn read(call: &OrgCall, kept: &Kept) -> Result<Arc<OrgConfig>, Refusal> {
    let publisher = &call.control.publisher;
    let config = publisher.at(call.org_id(), &kept.record).await;
    config.map_err(write::refusal)
}

fn entry(
    call: &OrgCall,
    kept: &Kept,
    earlier: Option<&OrgConfig>,
    config: &OrgConfig,
    reaches_first: bool,
) -> Value {
    let nothing = Objects::new();
    let before = earlier.map(|earlier| &earlier.objects);
    // The version before the oldest one that is kept cannot be read any more.
    let known = before.is_some() || reaches_first;
    let differences = tree::diff(before.unwrap_or(&nothing), &config.objects);
    let mut entry = shown(kept);
    let (author, world) = (&kept.record.author, call.control.world());
    // The operator's tokens are those of `system`, as it is now.
    let system = || author_name(&world.orgs.get(&SYSTEM_ORG)?.config, author);
    entry["author_name"] = json!(author_name(config, author).or_else(system));
    entry["objects"] = match known {
        true => change_list(&call.view(), &differences).into(),
        false => Value::Null,
    };
    entry
}

/// The name of the token that published a version, where the version still holds it.
fn author_name<'a>(config: &'a OrgConfig, author: &str) -> Option<&'a str> {
    let id = author.parse().ok()?;
    match &config.object(id)?.body {
        proto::object::Body::Token(stored) => Some(&stored.token.name),
        _ => None,
    }
}
