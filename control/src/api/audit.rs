//! Who did what, when and from where: versions with both forms of every object, never a secret, and
//! between them the audit entries of this region, of what made no version.
//!
//! Versions are read off themselves, whose hashes chain them: there is no second book that could
//! say something else.

use std::sync::Arc;

use jiff::Timestamp;
use proto::audit::Entry;
use proto::org::Role;
use proto::tree::{self, Objects, OrgConfig, SYSTEM_ORG};
use serde_json::{Map, Value, json};

use super::answer::Answer;
use super::call::OrgCall;
use super::error::Refusal;
use super::page::PageRequest;
use super::versions::{change_list, shown};
use super::{audit_verification, page, write};
use crate::audit::{self, Entries};
use crate::publish::Kept;
use crate::route::{Gives, Need, Route, Verb};

/// Most items on a page: each version is read whole.
const LIMIT_MAX: usize = 50;
/// A page ends with the version that takes it over this number of changed objects.
const CHANGES_MAX: u64 = 1_000;

/// Rows of the routing table.
pub fn routes() -> Vec<Route> {
    let admin = Need::Role(Role::Admin);
    vec![
        Route::org(
            Verb::Get,
            "/orgs/{org}/audit",
            (
                "list_audit",
                "List who did what, when and from where, newest first: versions with both forms, \
                 and what made no version",
            ),
            admin,
            list,
        )
        .gives(Gives::List("AuditEntry"))
        .of_configuration(),
        Route::org(
            Verb::Get,
            "/orgs/{org}/audit/verify",
            (
                "verify_audit",
                "Say whether audit entries and versions are as they were written",
            ),
            admin,
            audit_verification::verified,
        )
        .gives(Gives::One("AuditVerification")),
    ]
}

/// Where a page begins: below a version, and below an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    version: u64,
    /// `None`: with the newest.
    entry: Option<u64>,
}

impl Place {
    fn of(call: &OrgCall, request: &PageRequest) -> Result<Self, Refusal> {
        let Some(after) = &request.after else {
            let version = call.config()?.head.n.saturating_add(1);
            return Ok(Self {
                version,
                entry: None,
            });
        };
        let parse = || {
            let (version, entry) = after.split_once('.')?;
            Some(Self {
                version: version.parse().ok()?,
                entry: Some(entry.parse().ok()?),
            })
        };
        parse().ok_or_else(|| {
            let detail = "is not a `next_cursor` of this list; start without it";
            Refusal::parameter("cursor", detail)
        })
    }
}

/// An item of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Item {
    Version,
    Entry,
}

async fn list(call: OrgCall) -> Result<Answer, Refusal> {
    let request = call.request.page()?;
    let limit = request.limit.min(LIMIT_MAX);
    let place = Place::of(&call, &request)?;
    let (publisher, org) = (&call.control.publisher, call.org_id());
    if request.after.is_none() {
        count_logins(&call).await;
    }
    // One more than is shown: the form before the oldest change.
    let records = publisher.versions(org, place.version, limit + 1).await;
    let records = records.map_err(write::refusal)?;
    let entries = audit::entries(publisher.store(), org, place.entry, limit).await;
    let entries = entries.map_err(|error| write::refusal(error.into()))?;
    let order = merged(&records, &entries, limit);
    let count = |wanted| order.iter().filter(|item| **item == wanted).count();
    let (versions, told) = (count(Item::Version), count(Item::Entry));
    let mut versions_shown = version_items(&call, &records, versions).await?.into_iter();
    let entry = |(seq, entry): &(u64, Option<Entry>)| entry_item(&call, *seq, entry.as_ref());
    let mut entries_shown = entries.items.iter().map(entry);
    let items = order.iter().filter_map(|item| match item {
        Item::Version => versions_shown.next(),
        Item::Entry => entries_shown.next(),
    });
    let items = items.collect();
    let cursor = cursor(place, (&records, versions), (&entries, told));
    Ok(Answer::json(page::page(items, cursor)))
}

/// Versions and entries as one list, the newest first; each keeps its own order.
fn merged(records: &[Kept], entries: &Entries, limit: usize) -> Vec<Item> {
    let (mut order, mut changes) = (Vec::new(), 0u64);
    let (mut versions, mut told) = (records.iter().peekable(), entries.items.iter().peekable());
    while order.len() < limit && changes < CHANGES_MAX {
        let version = versions.peek().map(|kept| kept.record.at);
        // One that cannot be read stands where it is reached.
        let entry = |(_, entry): &&(u64, Option<Entry>)| {
            entry.as_ref().map_or(Timestamp::MAX, |entry| entry.said.at)
        };
        let is_version = match (version, told.peek().map(entry)) {
            (None, None) => break,
            // What comes next may be earlier entries, of which the next page knows.
            (Some(_), None) if entries.before.is_some() => break,
            (Some(version), entry) => entry.is_none_or(|entry| version >= entry),
            (None, Some(_)) => false,
        };
        if is_version {
            changes = changes.saturating_add(versions.next().map_or(0, |kept| kept.record.changes));
            order.push(Item::Version);
        } else {
            told.next();
            order.push(Item::Entry);
        }
    }
    order
}

/// Where the page after one begins that shows so many of each, if there is one.
fn cursor(
    place: Place,
    (records, versions): (&[Kept], usize),
    (entries, told): (&Entries, usize),
) -> Option<String> {
    let (items, earlier) = (&entries.items, entries.before);
    let more = versions < records.len() || told < items.len() || earlier.is_some();
    let last = versions.checked_sub(1).and_then(|last| records.get(last));
    let version = last.map_or(place.version, |kept| kept.record.head.n);
    let next = items.get(told).map(|(seq, _)| seq.saturating_add(1));
    let entry = next.or(earlier).unwrap_or(1);
    more.then(|| format!("{version}.{entry}"))
}

/// The first versions of these records, with what each changed.
async fn version_items(
    call: &OrgCall,
    records: &[Kept],
    count: usize,
) -> Result<Vec<Value>, Refusal> {
    let oldest = records.last();
    let reaches_first = oldest.is_none_or(|oldest| oldest.record.head.n == 1);
    let mut after = match records.first().filter(|_| count > 0) {
        Some(newest) => Some(read(call, newest).await?),
        None => None,
    };
    let mut items = Vec::with_capacity(count);
    for (at, record) in records.iter().enumerate().take(count) {
        let earlier = match records.get(at + 1) {
            Some(record) => Some(read(call, record).await?),
            None => None,
        };
        if let Some(config) = &after {
            let before = earlier.as_deref();
            items.push(version_item(call, record, before, config, reaches_first));
        }
        after = earlier;
    }
    Ok(items)
}

async fn read(call: &OrgCall, kept: &Kept) -> Result<Arc<OrgConfig>, Refusal> {
    let publisher = &call.control.publisher;
    let config = publisher.at(call.org_id(), &kept.record).await;
    config.map_err(write::refusal)
}

fn version_item(
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
    let mut item = shown(kept, call.role);
    item["kind"] = json!("version");
    item["at"] = json!(kept.record.at);
    item["author_name"] = json!(author_name(call, Some(config), &kept.record.author));
    item["objects"] = match known {
        true => change_list(&call.view(), &differences).into(),
        false => Value::Null,
    };
    item
}

fn entry_item(call: &OrgCall, seq: u64, entry: Option<&Entry>) -> Value {
    let region = call.control.publisher.region();
    let Some(entry) = entry else {
        return json!({"kind": "unreadable", "entry": seq, "region": region});
    };
    let said = &entry.said;
    let config = call.config().ok();
    let act = json!(said.act);
    let details = act.as_object().into_iter().flatten();
    let details = details.filter(|(key, _)| *key != "kind");
    let details: Map<String, Value> = details
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    json!({
        "kind": act["kind"], "entry": seq, "region": region, "at": said.at,
        "author": said.actor,
        "author_name": author_name(call, config.as_deref(), &said.actor),
        "source": said.source,
        "details": details,
    })
}

/// The name of the token that did something, where the configuration still holds it; the
/// operator's tokens are those of `system`, as it is now.
fn author_name(call: &OrgCall, config: Option<&OrgConfig>, author: &str) -> Option<String> {
    let name = |config: &OrgConfig| {
        let id = author.parse().ok()?;
        match &config.object(id)?.body {
            proto::object::Body::Token(stored) => Some(stored.token.name.clone()),
            _ => None,
        }
    };
    let world = call.control.world();
    let system = || name(&world.orgs.get(&SYSTEM_ORG)?.config);
    config.and_then(name).or_else(system)
}

/// Failed logins that this control plane has counted are in the list too.
pub async fn count_logins(call: &OrgCall) {
    let control = call.control.clone();
    // A task of its own: the caller's hang-up must not lose what was taken to be written.
    let writing = actix_web::rt::spawn(async move {
        let store = control.publisher.store();
        control.logins.write(store, &control.counters).await;
    });
    if let Err(error) = writing.await {
        tracing::warn!(%error, "writing failed logins broke off: {error}");
    }
}

/// Schemas by name.
pub fn schemas(version: Value, changes: Value) -> Vec<(&'static str, Value)> {
    let text = |description: &str| json!({"type": "string", "description": description});
    let mut entry = version;
    let name = json!({"type": ["string", "null"], "description": "Name of the author's token"});
    entry["description"] = json!(
        "A version (`kind` `version`), with both forms of everything that it changed; or an entry \
         of what made no version"
    );
    let more = [
        (
            "kind",
            text("`version`, or what was done: `login_failed`, `meter_raised`, …"),
        ),
        ("at", json!({"type": "string", "format": "date-time"})),
        ("author_name", name),
        (
            "entry",
            json!({"type": "integer", "description": "Of an entry: its number"}),
        ),
        (
            "region",
            text("Of an entry: the region whose control plane wrote it"),
        ),
        (
            "details",
            json!({"type": "object", "description": "Of an entry: what was done"}),
        ),
    ];
    for (key, schema) in more {
        entry["properties"][key] = schema;
    }
    let mut objects = changes;
    objects["type"] = json!(["array", "null"]);
    objects["description"] =
        json!("Of a version; null where the version before is not kept any more");
    entry["properties"]["objects"] = objects;
    vec![("AuditEntry", entry)]
}
