//! Moves of home: handed over as planned, or taken by promotion where it cannot be reached; and the
//! versions that were made on branches which are not in force.

use proto::audit::Act;
use proto::checks;
use proto::id::OrgId;
use proto::problem::Problem;
use proto::tree::{Head, SYSTEM_ORG};
use serde::Deserialize;
use serde_json::{Value, json};

use super::answer::Answer;
use super::call::Call;
use super::error::{Code, Refusal};
use super::{page, write};
use crate::regions::Directory;
use crate::replication::{Foreseen, HandOverError, PromoteError, Promoted, Promotion};
use crate::route::{Gives, Parameter, Route, Takes, Verb};

/// Rows of the routing table.
pub fn routes() -> Vec<Route> {
    vec![
        Route::operator(
            Verb::Post,
            "/regions/{region}/hand-over",
            (
                "hand_over_home",
                "Let a region be home to everything that the present home of `system` is home to; \
                 nothing is lost",
            ),
            hand_over,
        )
        .gives(Gives::One("HandedOver"))
        .by_local_operator(),
        Route::operator(
            Verb::Post,
            "/regions/{region}/promote",
            (
                "promote_region",
                "Make this region home to everything whose home cannot be reached, or let its \
                 history count where regions have different ones",
            ),
            promote,
        )
        .takes(Takes::Optional("Promote"))
        .parameters(&[DRY_RUN])
        .gives(Gives::One("Promotion"))
        .local()
        .by_local_operator(),
        Route::operator(
            Verb::Get,
            "/regions/aside",
            (
                "list_versions_aside",
                "List versions made on branches that are not in force, kept in this region",
            ),
            aside,
        )
        .gives(Gives::List("VersionAside"))
        .by_local_operator(),
    ]
}

const DRY_RUN: Parameter = (
    "dry_run",
    "`true`: ask all regions, say what would be promoted and what frozen, and move nothing",
);

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Promote {
    force: bool,
    diverged: bool,
}

fn directory(call: &Call) -> Result<&Directory, Refusal> {
    let none = || Refusal::new(Code::Conflict, "there is one region only (`regions.peers`)");
    call.control.directory().ok_or_else(none)
}

async fn hand_over(call: Call) -> Result<Answer, Refusal> {
    let to = call.request.part("region").to_owned();
    let directory = directory(&call)?;
    let act = Act::HandOverDecided {
        region: checks::printable(&to),
    };
    call.audited(SYSTEM_ORG, act).await?;
    let moved = directory.replication.hand_over(&to).await;
    let moved = moved.map_err(not_handed_over)?;
    let orgs: Vec<Value> = moved.iter().map(|org| named(&call, *org)).collect();
    let elsewhere: Vec<Value> = elsewhere(directory, &to)
        .into_iter()
        .map(|(org, home)| {
            let mut shown = named(&call, org);
            shown["home"] = json!(home);
            shown
        })
        .collect();
    Ok(Answer::json(json!({
        "region": to, "moved": orgs, "elsewhere": elsewhere,
    })))
}

/// What has another home than a region, and which.
fn elsewhere(directory: &Directory, region: &str) -> Vec<(OrgId, String)> {
    let facts = directory.homes.facts();
    let facts = facts.borrow();
    let others = facts.iter().filter(|(_, home)| home.region != region);
    others
        .map(|(org, home)| (*org, home.region.clone()))
        .collect()
}

async fn promote(call: Call) -> Result<Answer, Refusal> {
    let directory = directory(&call)?;
    let (own, region) = (&directory.regions.own, call.request.part("region"));
    if region != own {
        let detail = format!(
            "a region is promoted by its own control plane, so that it needs no other one: ask \
             one of `{region}`; this is one of `{own}`"
        );
        return Err(Refusal::new(Code::Conflict, detail));
    }
    let wanted = match &call.request.body {
        Value::Null => Ok(Promote::default()),
        body => serde_json::from_value(body.clone()),
    };
    let wanted = wanted
        .map_err(|error| Refusal::invalid(vec![Problem::new("", "promote", error.to_string())]))?;
    let dry_run: Option<bool> = call.request.query.parsed("dry_run", "true or false")?;
    if dry_run == Some(true) {
        if wanted.diverged {
            let detail = "does not tell what `diverged` would do; leave one of them out";
            return Err(Refusal::parameter("dry_run", detail));
        }
        let foreseen = directory.replication.foresee(wanted.force).await;
        return Ok(Answer::json(would(
            &call,
            own,
            &foreseen.map_err(not_promoted)?,
        )));
    }
    let act = Act::PromotionDecided {
        region: own.clone(),
        force: wanted.force,
        diverged: wanted.diverged,
    };
    call.audited(SYSTEM_ORG, act).await?;
    let promotion = match wanted.diverged {
        true => directory.replication.decide(wanted.force).await,
        false => directory.replication.promote(wanted.force).await,
    };
    let promotion = promotion.map_err(not_promoted)?;
    Ok(Answer::json(done(&call, own, &promotion)))
}

/// What a promotion led to.
fn done(call: &Call, own: &str, promotion: &Promotion) -> Value {
    let shown = |one: &Promoted| {
        let mut shown = named(call, one.org);
        shown["from"] = json!(one.from);
        shown["n"] = json!(one.first.n);
        shown["epoch"] = json!(one.first.epoch);
        shown["frozen"] = json!(one.frozen);
        shown
    };
    let promoted: Vec<Value> = promotion.promoted.iter().map(shown).collect();
    json!({
        "region": own, "promoted": promoted, "left": left(call, &promotion.left),
        "not_asked": promotion.not_asked, "dry_run": false,
    })
}

/// What one would lead to.
fn would(call: &Call, own: &str, foreseen: &Foreseen) -> Value {
    let promoted = foreseen.promoted.iter().map(|one| {
        let mut shown = named(call, one.org);
        shown["from"] = json!(one.from);
        shown["frozen"] = json!(one.frozen);
        shown
    });
    let promoted: Vec<Value> = promoted.collect();
    json!({
        "region": own, "promoted": promoted, "left": left(call, &foreseen.left),
        "not_asked": foreseen.not_asked, "dry_run": true,
    })
}

fn left(call: &Call, left: &[(OrgId, String)]) -> Vec<Value> {
    let left = left.iter().map(|(org, why)| {
        let mut shown = named(call, *org);
        shown["why"] = json!(why);
        shown
    });
    left.collect()
}

fn named(call: &Call, org: OrgId) -> Value {
    json!({"org": org, "slug": call.control.slug_of(org)})
}

fn not_handed_over(error: HandOverError) -> Refusal {
    let words = error.to_string();
    match error {
        HandOverError::Unknown(_) => Refusal::not_found(),
        HandOverError::Unfit { .. } | HandOverError::Nothing => Refusal::new(Code::Conflict, words),
        // What is sealed may be opened in a moment, or the promotion that the region then asks
        // itself for decides.
        HandOverError::Own { .. } => Refusal::new(Code::HomeMoved, words).retry_after_s(1),
        HandOverError::Unread { .. } => {
            Refusal::new(Code::StoreUnavailable, words).retry_after_s(5)
        }
        HandOverError::Waiting { .. } => Refusal::new(Code::HomeMoved, words).retry_after_s(1),
        HandOverError::Stopped { error, .. } => Refusal {
            detail: words,
            ..write::refusal(error)
        },
    }
}

fn not_promoted(error: PromoteError) -> Refusal {
    let words = error.to_string();
    match error {
        PromoteError::NoMajority { .. }
        | PromoteError::Homed(_)
        | PromoteError::Agreed
        | PromoteError::Left(_) => Refusal::new(Code::Conflict, words),
        PromoteError::Broken(_) => Refusal::new(Code::StoreUnavailable, words).retry_after_s(5),
    }
}

async fn aside(call: Call) -> Result<Answer, Refusal> {
    let page = call.request.page()?;
    let items = call.control.publisher.aside().await;
    let items = items.map_err(write::refusal)?;
    let items = items.iter().map(|(org, record)| {
        let mut shown = named(&call, *org);
        shown["n"] = json!(record.head.n);
        shown["epoch"] = json!(record.head.epoch);
        shown["hash"] = json!(record.head.hash);
        shown["at"] = json!(record.at);
        shown["author"] = json!(record.author);
        shown["changes"] = json!(record.changes);
        shown["changed"] = json!(record.changed);
        (key(*org, &record.head), shown)
    });
    Ok(Answer::json(page::cut(items.collect(), &page)))
}

/// Orders versions by organisation, epoch and number.
fn key(org: OrgId, head: &Head) -> String {
    let Head { epoch, n, hash, .. } = head;
    format!(
        "{org} {:020} {} {n:020} {hash}",
        epoch.counter, epoch.region
    )
}

fn text(description: &str) -> Value {
    json!({"type": "string", "description": description})
}

fn epoch() -> Value {
    json!({
        "type": "object",
        "description": "The history that the version belongs to: a counter, and who opened it",
        "properties": {
            "counter": {"type": "integer", "description": "Rises with every move of home"},
            "region": text("The region that opened it"),
        }
    })
}

fn promotion_schema() -> Value {
    let org = || text("The organisation");
    let slug = || json!({"type": ["string", "null"], "description": "Its slug, where it has one"});
    json!({
        "type": "object",
        "description": "What this region is home to now",
        "properties": {
            "region": text("The region"),
            "promoted": {"type": "array", "items": {"type": "object", "properties": {
                "org": org(), "slug": slug(),
                "from": text("The region whose branch was taken"),
                "n": {"type": "integer", "description": "The first version of the new epoch"},
                "epoch": epoch(),
                "frozen": {"type": "array", "items": {"type": "string"},
                    "description": "Regions of which what they alone keep is not in this one \
                        (`force`): it stays as it is, and cannot be changed, until it comes"},
            }}},
            "left": {"type": "array", "items": {"type": "object", "properties": {
                "org": org(), "slug": slug(),
                "why": text("What would be lost, or may not be in this region"),
            }}},
            "dry_run": {"type": "boolean",
                "description": "Whether this is what would be, with no `n` and `epoch` yet"},
            "not_asked": {"type": "array", "items": {"type": "string"},
                "description": "Regions that did not answer: what only they have does not count"},
        }
    })
}

/// Schemas by name.
pub fn schemas() -> Vec<(&'static str, Value)> {
    let org = || text("The organisation");
    let slug = || json!({"type": ["string", "null"], "description": "Its slug, where it has one"});
    let moved = json!({
        "type": "object",
        "description": "What has another home now",
        "properties": {
            "region": text("The region that is home now"),
            "moved": {"type": "array", "items": {
                "type": "object", "properties": {"org": org(), "slug": slug()}},
                "description": "None where the region was home already"},
            "elsewhere": {"type": "array", "items": {"type": "object", "properties": {
                "org": org(), "slug": slug(), "home": text("Its home region")}},
                "description": "Organisations with another home, of which this is not asked"},
        }
    });
    let promote = json!({
        "type": "object",
        "description": "How far the promotion may go",
        "additionalProperties": false,
        "properties": {
            "force": {"type": "boolean", "default": false,
                      "description": "Do without a majority of the regions, and without what \
                          regions that do not answer alone keep: that is `frozen`"},
            "diverged": {"type": "boolean", "default": false,
                         "description": "Let what this region has count where another one has a \
                             different history, whether home answers or not; nothing else moves"},
        }
    });
    let aside = json!({
        "type": "object",
        "description": "A version that was made on a branch which is not in force",
        "properties": {
            "org": org(), "slug": slug(),
            "n": {"type": "integer", "description": "Its number on that branch"},
            "epoch": epoch(),
            "hash": text("Its name"),
            "at": {"type": "string", "format": "date-time", "description": "When it was made"},
            "author": text("Who made it"),
            "changes": {"type": "integer", "description": "Objects that it changed"},
            "changed": {"type": "array", "items": {"type": "string"},
                        "description": "The first of them"},
        }
    });
    vec![
        ("HandedOver", moved),
        ("Promote", promote),
        ("Promotion", promotion_schema()),
        ("VersionAside", aside),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_hand_over_leaves_half_done_is_told_and_can_be_promoted() {
        let org = OrgId::from_bits(7);
        let own = HandOverError::Own {
            region: "us".to_owned(),
            sealed: vec![org],
        };
        let refusal = not_handed_over(own);
        // By this the command goes on to the promotion.
        assert_eq!(refusal.code, Code::HomeMoved);
        assert_eq!(
            refusal.retry_after_s,
            Some(1),
            "it may be opened in a moment"
        );
        assert!(refusal.detail.contains(&org.to_string()), "{refusal:?}");
        let unread = HandOverError::Unread {
            why: "the store is unavailable".to_owned(),
            so_far: Box::default(),
        };
        let refusal = not_handed_over(unread);
        assert_eq!(refusal.code, Code::StoreUnavailable);
        assert!(refusal.detail.contains("0 were handed over"), "{refusal:?}");
    }
}
