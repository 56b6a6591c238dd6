//! Versions of an organisation's configuration: who changed what and when, how two differ, and the
//! way back.

use proto::object::{Object, ObjectId};
use proto::org::Role;
use proto::tree::{self, Difference, VersionRecord};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::answer::Answer;
use super::call::OrgCall;
use super::credentials::Credentials;
use super::error::Refusal;
use super::filters::Filters;
use super::objects::{View, show};
use super::orgs::Orgs;
use super::proxies::Proxies;
use super::rules::Rules;
use super::targets::Targets;
use super::tokens::Tokens;
use super::{page, write};
use crate::publish::{Author, Publish, Rollback};
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
        .gives(Gives::List("Version")),
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
        .gives(Gives::One("Version")),
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
    let request = call.request.page()?;
    let before = match &request.after {
        None => call.config()?.head.n.saturating_add(1),
        Some(after) => after.parse().map_err(|_| {
            let detail = "is not a `next_cursor` of this list; start without it";
            Refusal::parameter("cursor", detail)
        })?,
    };
    let publisher = &call.control.publisher;
    let versions = publisher
        .versions(call.org_id(), before, request.limit)
        .await;
    let versions = versions.map_err(write::refusal)?;
    let oldest = versions.last().map(|record| record.head.n);
    let more = oldest.filter(|n| versions.len() == request.limit && *n > 1);
    let items = versions.iter().map(shown).collect();
    Ok(Answer::json(page::page(items, more.map(|n| n.to_string()))))
}

async fn get(call: OrgCall) -> Result<Answer, Refusal> {
    let record = record(&call, number(&call)?).await?;
    Ok(Answer::json(shown(&record)))
}

async fn diff(call: OrgCall) -> Result<Answer, Refusal> {
    let to = record(&call, number(&call)?).await?;
    let publisher = &call.control.publisher;
    let from = call
        .request
        .query
        .parsed("from", "the number of a version")?;
    let from: u64 = from.unwrap_or(to.head.n.saturating_sub(1));
    let after = publisher
        .at(call.org_id(), &to)
        .await
        .map_err(write::refusal)?;
    let before = match from {
        // Before the first version there was nothing.
        0 => None,
        n => {
            let record = record(&call, n).await?;
            Some(
                publisher
                    .at(call.org_id(), &record)
                    .await
                    .map_err(write::refusal)?,
            )
        }
    };
    let nothing = Default::default();
    let before = before.as_ref().map_or(&nothing, |config| &config.objects);
    let differences = tree::diff(before, &after.objects);
    Ok(Answer::json(changes(&call, from, to.head.n, &differences)))
}

async fn rollback(call: OrgCall) -> Result<Answer, Refusal> {
    let to = number(&call)?;
    let old = record(&call, to).await?;
    let publisher = &call.control.publisher;
    let dry_run: Option<bool> = call.request.query.parsed("dry_run", "true or false")?;
    let before = publisher
        .load(call.org_id())
        .await
        .map_err(write::refusal)?;
    let author = Author {
        name: call.caller.token_id.to_string(),
        role: call.role,
    };
    let deadline = Instant::now() + call.control.settings.write_deadline;
    if dry_run == Some(true) {
        let old = publisher
            .at(call.org_id(), &old)
            .await
            .map_err(write::refusal)?;
        let publish = Publish {
            org: call.org_id(),
            operations: tree::restore(&before.objects, &old.objects),
            author,
            deadline,
            idempotency: None,
        };
        publisher.check(&publish).await.map_err(write::refusal)?;
        let differences = configuration(tree::diff(&before.objects, &old.objects));
        let n = before.head.n;
        return Ok(Answer::json(changes(&call, n, n, &differences)));
    }
    let rollback = Rollback {
        org: call.org_id(),
        to,
        author,
        deadline,
        idempotency: call.request.idempotency.clone(),
    };
    let published = publisher.rollback(rollback).await.map_err(write::refusal)?;
    let published = published.ok_or_else(|| not_kept(to))?;
    call.control.see_version(call.org_id(), published.n).await;
    let differences = tree::diff(&before.objects, &published.config.objects);
    let answer = changes(&call, before.head.n, published.n, &differences);
    Ok(Answer::json(answer).version(call.org_id(), published.n))
}

fn number(call: &OrgCall) -> Result<u64, Refusal> {
    call.request
        .part("n")
        .parse()
        .map_err(|_| Refusal::not_found())
}

async fn record(call: &OrgCall, n: u64) -> Result<VersionRecord, Refusal> {
    let found = call.control.publisher.version(call.org_id(), n).await;
    found.map_err(write::refusal)?.ok_or_else(|| not_kept(n))
}

fn not_kept(n: u64) -> Refusal {
    Refusal {
        detail: format!("version {n} does not exist, or is not kept any more"),
        ..Refusal::not_found()
    }
}

fn shown(record: &VersionRecord) -> Value {
    json!({
        "n": record.head.n,
        "hash": record.head.hash,
        "parent": record.head.parent,
        "published_at": record.at,
        "author": record.author,
        "changes": record.changes,
        "changed": record.changed,
    })
}

/// Without what a rollback leaves alone.
fn configuration(mut differences: Vec<Difference>) -> Vec<Difference> {
    differences.retain(|one| !matches!(one.id, ObjectId::Token(_) | ObjectId::Org(_)));
    differences
}

fn changes(call: &OrgCall, from: u64, to: u64, differences: &[Difference]) -> Value {
    let view = call.view();
    let one = |difference: &Difference| {
        let (before, after) = (&difference.before, &difference.after);
        let change = match (before, after) {
            (None, _) => "created",
            (Some(_), None) => "deleted",
            (Some(_), Some(_)) => "updated",
        };
        let form = |object: &Option<_>| object.as_deref().map(|object| form(&view, object));
        json!({
            "id": difference.id,
            "change": change,
            "before": form(before),
            "after": form(after),
        })
    };
    let items: Vec<Value> = differences.iter().map(one).collect();
    json!({ "from": from, "to": to, "changes": items })
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
    }
}
