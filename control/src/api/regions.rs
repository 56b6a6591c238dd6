//! The regions of an installation: which one is home, and how far the others have come.

use std::collections::BTreeMap;

use proto::id::OrgId;
use proto::tree::SYSTEM_ORG;
use proto::wire::replication::Position;
use serde_json::{Value, json};

use super::answer::Answer;
use super::call::Call;
use super::error::Refusal;
use super::{page, write};
use crate::regions::status::{Following, Unverified};
use crate::regions::{Directory, Peer, replicated};
use crate::replication::clocks::is_skewed;
use crate::route::{Gives, Route, Verb};
use crate::state::Control;

/// Rows of the routing table.
pub fn routes() -> Vec<Route> {
    vec![
        Route::operator(
            Verb::Get,
            "/regions",
            (
                "list_regions",
                "List the regions, with how far replication has come",
            ),
            list,
        )
        .gives(Gives::List("Region"))
        .by_local_operator(),
    ]
}

async fn list(call: Call) -> Result<Answer, Refusal> {
    let (control, page) = (&call.control, call.request.page()?);
    let settings = &control.settings;
    let Some(directory) = control.directory() else {
        let only = json!({
            "name": settings.region, "own": true, "home": true, "gateway": settings.gateway_url,
        });
        let only = vec![(settings.region.clone(), only)];
        return Ok(Answer::json(page::cut(only, &page)));
    };
    let regions = &directory.regions;
    let counts = homes(directory);
    let system = directory.homes.region_of(SYSTEM_ORG);
    let shown = |name: &str, gateway: Option<&str>| {
        json!({
            "name": name, "own": name == regions.own, "home": name == system,
            "organisations": counts.get(name).copied().unwrap_or(0), "gateway": gateway,
        })
    };
    let mut own = shown(&regions.own, Some(&settings.gateway_url));
    let homes = directory.other_homes();
    if !homes.is_empty() {
        own["replication"] = following(directory, &homes);
    }
    let home = directory.homes.of(SYSTEM_ORG);
    if let Some(seal) = home
        .filter(|_| system == regions.own)
        .and_then(|home| home.sealed)
    {
        own["hands_over_to"] = json!(seal.to);
    }
    let unverified = directory.status.unverified();
    if !unverified.is_empty() {
        own["unverified"] = unverified.iter().map(refused).collect();
    }
    let untaken = directory.status.untaken();
    if !untaken.is_empty() {
        let told = |(org, why): (&OrgId, &String)| json!({"org": org, "why": why});
        own["untaken"] = untaken.iter().map(told).collect();
    }
    let frozen = frozen(control, directory);
    if !frozen.is_empty() {
        own["frozen"] = json!(frozen);
    }
    own["content_by_region"] = json!(control.publisher.cuts_by_region());
    let mut items = vec![own];
    for peer in &regions.peers {
        let mut shown = shown(&peer.name, peer.gateway.as_deref());
        shown["control"] = json!(peer.control);
        let of = directory.status.following(&peer.name);
        shown["clock_ahead_ms"] = json!(of.clock_ahead_ms.filter(|ahead| is_skewed(*ahead)));
        shown["sealed_to_other_keys"] = json!(of.sealed_to_other_keys);
        shown["public_key_id"] = json!(peer.public.key_id);
        if directory.is_home_to_any() {
            shown["replication"] = followed_by(control, directory, peer).await?;
        }
        items.push(shown);
    }
    for item in &mut items {
        let name = item["name"].as_str().unwrap_or_default();
        let signers = regions.signers(name).unwrap_or_default();
        item["verified"] = json!(!signers.is_empty());
    }
    let name = |item: &Value| item["name"].as_str().unwrap_or_default().to_owned();
    let items = items.into_iter().map(|item| (name(&item), item));
    Ok(Answer::json(page::cut(items.collect(), &page)))
}

/// How many organisations each region is home to.
fn homes(directory: &Directory) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for home in directory.homes.facts().borrow().values() {
        *counts.entry(home.region.clone()).or_default() += 1;
    }
    counts
}

/// What this region is home to without all of it.
fn frozen(control: &Control, directory: &Directory) -> Vec<Value> {
    let world = control.world();
    let ours = world.orgs.iter();
    let ours = ours.filter(|(org, _)| directory.is_home(**org));
    let lacking = ours.map(|(org, state)| (org, state.config.withheld_regions()));
    let lacking = lacking.filter(|(_, regions)| !regions.is_empty());
    lacking
        .map(
            |(org, regions)| json!({"org": org, "slug": control.slug_of(*org), "regions": regions}),
        )
        .collect()
}

/// A version that is not taken.
fn refused((org, unverified): (&OrgId, &Unverified)) -> Value {
    let Position { epoch, n, hash } = &unverified.at;
    json!({"org": org, "version": n, "epoch": epoch, "hash": hash, "why": unverified.why})
}

/// What this region has of these, which are home to something: as current as the least of them.
fn following(directory: &Directory, homes: &[String]) -> Value {
    let status = &directory.status;
    let following = homes.iter().map(|home| (home, status.following(home)));
    let following: Vec<(&String, Following)> = following.collect();
    let all = || following.iter().map(|(_, of)| of);
    let error = |(home, of): &(&String, Following)| {
        let error = of.error.clone()?;
        Some(match homes {
            [_] => error,
            _ => format!("region {home}: {error}"),
        })
    };
    json!({
        "leads": status.is_leading(),
        "connected": all().all(|of| of.connected.is_some()),
        "lag_versions": all().map(Following::lag_versions).sum::<u64>(),
        "lag_seconds": all().map(|of| status.lag_s(of)).fold(0.0, f64::max),
        "diverged": all().flat_map(|of| of.diverged.keys()).collect::<Vec<_>>(),
        "error": following.iter().find_map(error),
    })
}

/// What a region has told this one to have of what this one is home to. Whether it is connected,
/// this control plane knows of itself only.
async fn followed_by(
    control: &Control,
    directory: &Directory,
    peer: &Peer,
) -> Result<Value, Refusal> {
    let applied = replicated::by(control.publisher.store(), &peer.name).await;
    let applied = applied.map_err(|error| write::refusal(error.into()))?;
    let world = control.world();
    let ours = world
        .orgs
        .iter()
        .filter(|(org, _)| directory.is_home(**org));
    let behind = ours.map(|(org, state)| replicated::lag(&state.config.head, applied.get(org)));
    let mut told = json!({"connected": false, "lag_versions": behind.sum::<u64>()});
    if let Some(follower) = directory.status.followers().get(&peer.name) {
        told["connected"] = json!(follower.connections > 0);
        told["asked_seconds_ago"] = json!(follower.asked_at.elapsed().as_secs_f64());
        let diverged = follower.diverged.iter();
        let diverged = diverged.filter(|org| directory.is_home(**org));
        told["diverged"] = json!(diverged.collect::<Vec<_>>());
    }
    Ok(told)
}

/// What is listed as such.
const DIVERGED: &str = "Organisations whose history is not that of home: a person decides which \
                        counts (`POST /regions/{region}/promote`, `diverged`)";

/// What the setting keeps where.
const CONTENT: &str = "Of the own region, where there are several: whether what lists `regions` \
                       (proxies, target credentials, and the policy of these) is kept by these \
                       regions and home alone (`regions.content_by_region` of this control \
                       plane). Where false it is kept in every region, and `regions` says where \
                       it is served. Secrets of target credentials can be opened in their \
                       regions alone either way; targets, callers' credentials and the policy of \
                       these and of the organisation are kept in every region either way";
/// What is told of clocks.
const CLOCK_AHEAD: &str = "By how much its clock is ahead of that of this control plane, negative \
                           where it is behind; null up to 2 s, and where this control plane is \
                           not the one that replicates, or not connected there";

/// What is counted as such.
const SEALED_TO_OTHERS: &str = "Of another region: how many of its secrets are kept here sealed to \
                                another of its keys than `public_key_id`. While there are any, \
                                it cannot do without its older keys. null where this control \
                                plane is not the one that replicates, is not connected there, or \
                                has not looked yet: nothing is known then";
/// Says which key that is.
const PUBLIC_KEY_ID: &str = "Of another region: the key in its `public_file` as this control plane \
                             has read it, to which secrets are sealed for it. Only where it is \
                             the newest does `sealed_to_other_keys` tell of older ones";

/// The schema of a region.
pub fn schema() -> Value {
    let text = |description: &str| json!({"type": "string", "description": description});
    let flag = |description: &str| json!({"type": "boolean", "description": description});
    json!({
        "type": "object",
        "description": "One region of the installation",
        "properties": {
            "name": text("Its name"),
            "own": flag("Whether it is that of this control plane"),
            "home": flag("Whether it is home to `system`, and so where organisations are created"),
            "organisations": {"type": "integer",
                "description": "Organisations whose versions are made there"},
            "hands_over_to": text("The region that home is being handed over to"),
            "gateway": {"type": ["string", "null"], "description": "Base URL of its gateway"},
            "control": text("Base URL of its REST API"),
            "content_by_region": flag(CONTENT),
            "clock_ahead_ms": {"type": ["integer", "null"], "description": CLOCK_AHEAD},
            "sealed_to_other_keys": {"type": ["integer", "null"], "description": SEALED_TO_OTHERS},
            "public_key_id": text(PUBLIC_KEY_ID),
            "verified": flag("Whether versions that it made are taken with its signature only"),
            "unverified": {
                "type": "array",
                "description": "Of the own region: versions that are not taken, because it is not \
                                shown that the region that should have made them did",
                "items": {
                    "type": "object",
                    "properties": {
                        "org": text("The organisation"),
                        "version": {"type": "integer", "description": "Its number"},
                        "epoch": {"type": "object",
                                  "description": "Its epoch: a counter, and the region"},
                        "hash": text("Its hash"),
                        "why": text("What is wrong, and what to do")
                    }
                }
            },
            "untaken": {
                "type": "array",
                "description": "Of the own region: organisations that are not taken from their \
                                home for another fault, and are tried again",
                "items": {
                    "type": "object",
                    "properties": {
                        "org": text("The organisation"),
                        "why": text("What is wrong")
                    }
                }
            },
            "frozen": {
                "type": "array",
                "description": "Of the own region: organisations that it was made home of by \
                                force, without what the named regions alone keep. That is served \
                                there as it is, and cannot be changed until it has come here, \
                                which it does by itself",
                "items": {
                    "type": "object",
                    "properties": {
                        "org": text("The organisation"),
                        "slug": {"type": ["string", "null"],
                                 "description": "Its slug, where it has one"},
                        "regions": {"type": "array", "items": {"type": "string"},
                                    "description": "Who has what is lacking"}
                    }
                }
            },
            "replication": replication_schema()
        }
    })
}

fn replication_schema() -> Value {
    let flag = |description: &str| json!({"type": "boolean", "description": description});
    json!({
        "type": "object",
        "description": "Of the own region, what it has of all that are home to something; \
                        of another one, what that has told to have of what is home here",
        "properties": {
            "leads": flag("Whether this control plane is the one that replicates"),
            "connected": flag("Whether the connection is up"),
            "lag_versions": {"type": "integer",
                             "description": "Versions of home that are not there"},
            "lag_seconds": {"type": "number",
                "description": "Seconds since everything that home had was there"},
            "asked_seconds_ago": {"type": "number",
                "description": "Seconds since the region last asked for versions"},
            "diverged": {"type": "array", "items": {"type": "string"},
                "description": DIVERGED},
            "error": {"type": ["string", "null"],
                      "description": "Why replication last broke off"}
        }
    })
}
