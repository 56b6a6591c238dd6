//! Versions of an organisation's configuration: who changed what and when, how two differ, and the
//! way back.

use std::sync::Arc;

use proto::object::{Object, ObjectId};
use proto::org::Role;
use proto::tree::{self, Difference, OrgConfig};
use serde_json::{Value, json};

use super::answer::Answer;
use super::call::OrgCall;
use super::credentials::Credentials;
use super::error::Refusal;
use super::filters::Filters;
use super::lacking;
use super::meters::Meters;
use super::objects::{View, show};
use super::orgs::Orgs;
use super::page::{self, PageRequest};
use super::proxies::Proxies;
use super::rules::Rules;
use super::targets::Targets;
use super::tokens::Tokens;
use super::write;
use crate::publish::{Kept, Published, Rollback, returning};
use crate::route::{Gives, Need, Parameter, Route, Verb};

const DIFF: &[Parameter] = &[(
    "from",
    "Number of the version to compare with; by default the one before",
)];
const ROLLBACK: &[Parameter] = &[(
    "dry_run",
    "`true`: say what would change, and change nothing",
)];

/// Rows of the routing table.
pub fn routes() -> Vec<Route> {
    let viewer = Need::Role(Role::Viewer);
    vec![
        Route::org(
            Verb::Get,
            "/orgs/{org}/versions",
            (
                "list_versions",
                "List versions of the configuration, newest first",
            ),
            viewer,
            list,
        )
        .gives(Gives::List("Version"))
        .of_configuration(),
        Route::org(
            Verb::Get,
            "/orgs/{org}/versions/{n}",
            (
                "get_version",
                "Read who published a version, when, and what it changed",
            ),
            viewer,
            get,
        )
        .gives(Gives::One("Version"))
        .of_configuration(),
        Route::org(
            Verb::Get,
            "/orgs/{org}/versions/{n}/diff",
            (
                "diff_version",
                "Compare a version with another, object by object",
            ),
            viewer,
            diff,
        )
        .gives(Gives::One("VersionDiff"))
        .of_configuration()
        .parameters(DIFF),
        Route::org(
            Verb::Post,
            "/orgs/{org}/versions/{n}/rollback",
            (
                "rollback_version",
                "Publish a new version with the content of this one; tokens and secrets stay",
            ),
            Need::Role(Role::Admin),
            rollback,
        )
        .gives(Gives::One("VersionDiff"))
        .parameters(ROLLBACK),
    ]
}

async fn list(call: OrgCall) -> Result<Answer, Refusal> {
    call.of_operators()?;
    let request = call.request.page()?;
    let before = before(&call, &request)?;
    let publisher = &call.control.publisher;
    let versions = publisher
        .versions(call.org_id(), before, request.limit)
        .await;
    let versions = versions.map_err(write::refusal)?;
    let items = versions.iter().map(|kept| shown(kept, call.role));
    let items = items.collect();
    let cursor = next_cursor(&versions, request.limit);
    Ok(Answer::json(page::page(items, cursor)))
}

/// The number below which a page of versions begins.
///
/// # Errors
/// The cursor is none of this list.
fn before(call: &OrgCall, request: &PageRequest) -> Result<u64, Refusal> {
    match &request.after {
        None => Ok(call.config()?.head.n.saturating_add(1)),
        Some(after) => after.parse().map_err(|_| {
            let detail = "is not a `next_cursor` of this list; start without it";
            Refusal::parameter("cursor", detail)
        }),
    }
}

/// Where the page after this one begins, if there is one.
fn next_cursor(page: &[Kept], limit: usize) -> Option<String> {
    let oldest = page.last().map(|kept| kept.record.head.n);
    let more = oldest.filter(|n| page.len() == limit && *n > 1);
    more.map(|n| n.to_string())
}

async fn get(call: OrgCall) -> Result<Answer, Refusal> {
    call.of_operators()?;
    let kept = record(&call, number(&call)?).await?;
    Ok(Answer::json(shown(&kept, call.role)))
}

async fn diff(call: OrgCall) -> Result<Answer, Refusal> {
    call.of_operators()?;
    lacking::refuse_part(&call, &*call.config()?)?;
    let to = record(&call, number(&call)?).await?.record;
    let publisher = &call.control.publisher;
    let from = call
        .request
        .query
        .parsed("from", "the number of a version")?;
    let from = match from {
        Some(from) => from,
        None => before_it(&call, to.head.n).await?,
    };
    let after = publisher
        .at(call.org_id(), &to)
        .await
        .map_err(write::refusal)?;
    let before = match from {
        // Before the first version there was nothing.
        0 => None,
        n => {
            let kept = record(&call, n).await?;
            Some(
                publisher
                    .at(call.org_id(), &kept.record)
                    .await
                    .map_err(write::refusal)?,
            )
        }
    };
    let nothing = Default::default();
    let before = before.as_ref().map_or(&nothing, |config| &config.objects);
    let differences = tree::diff(before, &after.objects);
    Ok(Answer::json(changes(
        &call.view(),
        from,
        to.head.n,
        &differences,
    )))
}

async fn rollback(call: OrgCall) -> Result<Answer, Refusal> {
    let to = number(&call)?;
    let old = record(&call, to).await?;
    let publisher = &call.control.publisher;
    let dry_run: Option<bool> = call.request.query.parsed("dry_run", "true or false")?;
    let request = call.publishing();
    if dry_run == Some(true) {
        let old = publisher
            .at(call.org_id(), &old.record)
            .await
            .map_err(write::refusal)?;
        let make = |current: &Arc<OrgConfig>| returning(call.org_id(), (current, &old));
        let (current, draft) = publisher
            .draft(&request, make)
            .await
            .map_err(write::refusal)?;
        let differences = tree::diff(&current.objects, draft.objects());
        let n = current.head.n;
        return Ok(Answer::json(changes(&call.view(), n, n, &differences)));
    }
    let before = publisher
        .load(call.org_id())
        .await
        .map_err(write::refusal)?;
    let published = publisher.rollback(Rollback { to, request }).await;
    let published = published
        .map_err(write::refusal)?
        .ok_or_else(|| not_kept(to))?;
    call.control.see_version(call.org_id(), published.n).await;
    let answer = outcome(&call, &published, &before).await?;
    Ok(Answer::json(answer).version(call.org_id(), published.n))
}

/// What a write that was made of `before` has changed; of a remembered one, what it changed then.
///
/// # Errors
/// The store failed.
pub async fn outcome(
    call: &OrgCall,
    published: &Published,
    before: &OrgConfig,
) -> Result<Value, Refusal> {
    let view = call.view();
    let n = published.n;
    if !published.replayed {
        let differences = tree::diff(&before.objects, &published.config.objects);
        return Ok(changes(&view, before.head.n, n, &differences));
    }
    // The version is somebody else's.
    if published.changed.is_empty() {
        return Ok(changes(&view, n, n, &[]));
    }
    // Of a version that is not kept any more only the number is known.
    let Some((before, after)) = around(call, n).await? else {
        return Ok(changes(&view, n.saturating_sub(1), n, &[]));
    };
    let differences = tree::diff(&before.objects, &after.objects);
    Ok(changes(&view, before.head.n, n, &differences))
}

/// The configurations before and after a version; `None` where one is not kept any more.
///
/// # Errors
/// The store failed.
pub async fn around(
    call: &OrgCall,
    n: u64,
) -> Result<Option<(Arc<OrgConfig>, Arc<OrgConfig>)>, Refusal> {
    let publisher = &call.control.publisher;
    let versions = publisher.versions(call.org_id(), n + 1, 2).await;
    let versions = versions.map_err(write::refusal)?;
    let (Some(record), Some(parent)) = (versions.first(), versions.get(1)) else {
        return Ok(None);
    };
    let after = publisher
        .at(call.org_id(), &record.record)
        .await
        .map_err(write::refusal)?;
    let before = publisher
        .at(call.org_id(), &parent.record)
        .await
        .map_err(write::refusal)?;
    Ok(Some((before, after)))
}

fn number(call: &OrgCall) -> Result<u64, Refusal> {
    call.request
        .part("n")
        .parse()
        .map_err(|_| Refusal::not_found())
}

/// The number of the version before this one, 0 before the first: after a restored store was
/// recovered from, numbers have a gap.
async fn before_it(call: &OrgCall, n: u64) -> Result<u64, Refusal> {
    let publisher = &call.control.publisher;
    let before = publisher.versions(call.org_id(), n, 1).await;
    let before = before.map_err(write::refusal)?;
    let fallback = n.saturating_sub(1);
    Ok(before.first().map_or(fallback, |kept| kept.record.head.n))
}

async fn record(call: &OrgCall, n: u64) -> Result<Kept, Refusal> {
    let found = call.control.publisher.version(call.org_id(), n).await;
    found.map_err(write::refusal)?.ok_or_else(|| not_kept(n))
}

fn not_kept(n: u64) -> Refusal {
    Refusal {
        detail: format!("version {n} does not exist, or is not kept any more"),
        ..Refusal::not_found()
    }
}

/// A version's record as the API shows it to a role: the publisher's address to admins, as in the
/// audit.
pub fn shown(kept: &Kept, role: Role) -> Value {
    let record = &kept.record;
    let mut shown = json!({
        "n": record.head.n,
        "hash": record.head.hash,
        "parent": record.head.parent,
        "published_at": record.at,
        "author": record.author,
        "changes": record.changes,
        "changed": record.changed,
        "kept_in": kept.place.as_str(),
    });
    if role >= Role::Admin {
        shown["source"] = json!(record.source);
    }
    shown
}

/// Two versions compared, as the API shows it.
pub fn changes(view: &View<'_>, from: u64, to: u64, differences: &[Difference]) -> Value {
    json!({ "from": from, "to": to, "changes": change_list(view, differences) })
}

/// Objects that differ: which, how, and both forms, never a secret; of API tokens the forms are for
/// admins, as their list is.
pub fn change_list(view: &View<'_>, differences: &[Difference]) -> Vec<Value> {
    let one = |difference: &Difference| {
        let (before, after) = (&difference.before, &difference.after);
        let change = match (before, after) {
            (None, _) => "created",
            (Some(_), None) => "deleted",
            (Some(_), Some(_)) => "updated",
        };
        let hidden = matches!(difference.id, ObjectId::Token(_)) && view.role < Role::Admin;
        let form = |object: &Option<_>| {
            let object = object.as_deref().filter(|_| !hidden);
            object.map(|object| form(view, object))
        };
        json!({
            "id": difference.id,
            "change": change,
            "before": form(before),
            "after": form(after),
        })
    };
    differences.iter().map(one).collect()
}

/// An object of any kind as the API shows it.
fn form(view: &View<'_>, object: &Object) -> Value {
    match object.id {
        ObjectId::Org(_) => show::<Orgs>(view, object),
        ObjectId::Token(_) => show::<Tokens>(view, object),
        ObjectId::Target(_) => show::<Targets>(view, object),
        ObjectId::Credential(_) => show::<Credentials>(view, object),
        ObjectId::Proxy(_) => show::<Proxies>(view, object),
        ObjectId::Rule(_) => show::<Rules>(view, object),
        ObjectId::Filter(_) => show::<Filters>(view, object),
        ObjectId::Meter(_) => show::<Meters>(view, object),
    }
}
