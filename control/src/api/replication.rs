//! How far each region has come with each organisation.

use std::collections::BTreeSet;

use proto::id::OrgId;
use proto::store::follow::World;
use serde_json::{Value, json};

use super::answer::Answer;
use super::call::Call;
use super::error::Refusal;
use super::{page, write};
use crate::regions::status::Following;
use crate::regions::{Directory, replicated};
use crate::route::{Gives, Parameter, Route, Verb};

const FILTERS: &[Parameter] = &[
    ("org", "Only this organisation: its slug or id"),
    ("region", "Only how far this region has come"),
];

/// Rows of the routing table.
pub fn routes() -> Vec<Route> {
    vec![
        Route::operator(
            Verb::Get,
            "/replication",
            (
                "list_replication",
                "List how far each region has come with each organisation",
            ),
            list,
        )
        .gives(Gives::List("Replication"))
        .parameters(FILTERS)
        .by_local_operator(),
    ]
}

async fn list(call: Call) -> Result<Answer, Refusal> {
    let (control, page) = (&call.control, call.request.page()?);
    let wanted = match call.request.query.get("org") {
        None => None,
        Some(name) => Some(control.find_org(name).ok_or_else(|| {
            let detail = "names no organisation: give the slug or the id of one";
            Refusal::parameter("org", detail)
        })?),
    };
    let is_wanted = |org: &OrgId| wanted.as_ref().is_none_or(|wanted| wanted.id == *org);
    let region = call.request.query.get("region");
    let own = &control.settings.region;
    let known = control.directory().map(|directory| &directory.regions);
    if let Some(name) = region
        && name != own
        && known.is_none_or(|regions| regions.peer(name).is_none())
    {
        return Err(Refusal::parameter("region", "names no region"));
    }
    let world = control.world();
    let mut rows = Vec::new();
    if region.is_none_or(|name| name == own) {
        rows.extend(here(control.directory(), own, &world));
    }
    if let Some(directory) = control.directory() {
        let peers = directory.regions.peers.iter();
        for peer in peers.filter(|peer| region.is_none_or(|name| name == peer.name)) {
            let applied = replicated::by(control.publisher.store(), &peer.name).await;
            let applied = applied.map_err(|error| write::refusal(error.into()))?;
            let follower = directory.status.followers().remove(&peer.name);
            let diverged = follower
                .map(|follower| follower.diverged)
                .unwrap_or_default();
            let ours = world
                .orgs
                .iter()
                .filter(|(org, _)| directory.is_home(**org));
            rows.extend(ours.map(|(org, state)| Row {
                region: peer.name.clone(),
                org: *org,
                home: own.clone(),
                version: applied.get(org).map(|at| at.n),
                lag_versions: Some(replicated::lag(&state.config.head, applied.get(org))),
                lag_s: None,
                fault: diverged.contains(org).then_some(("diverged", None)),
            }));
        }
    }
    let rows = rows.into_iter().filter(|row| is_wanted(&row.org));
    let key = |row: &Row| format!("{} {}", row.org, row.region);
    let items = rows.map(|row| (key(&row), row.shown(control.slug_of(row.org))));
    let mut items: Vec<(String, Value)> = items.collect();
    items.sort_by(|one, other| one.0.cmp(&other.0));
    Ok(Answer::json(page::cut(items, &page)))
}

/// One organisation in one region.
struct Row {
    region: String,
    org: OrgId,
    home: String,
    /// The version that it has there.
    version: Option<u64>,
    /// Of its home, that are not there; none where this control plane does not know.
    lag_versions: Option<u64>,
    /// How long ago all of its home was there.
    lag_s: Option<f64>,
    /// A word for what keeps it from being taken, and why.
    fault: Option<(&'static str, Option<String>)>,
}

impl Row {
    fn shown(&self, slug: Option<String>) -> Value {
        let state = match (&self.fault, self.region == self.home, self.lag_versions) {
            (Some((fault, _)), ..) => *fault,
            (None, true, _) => "home",
            (None, false, Some(0)) => "current",
            (None, false, Some(_)) => "behind",
            (None, false, None) => "unknown",
        };
        json!({
            "region": self.region, "org": self.org, "slug": slug, "home": self.home,
            "version": self.version, "lag_versions": self.lag_versions,
            "lag_seconds": self.lag_s, "state": state,
            "why": self.fault.as_ref().and_then(|(_, why)| why.clone()),
        })
    }
}

/// What this region has, of itself and of every other home.
fn here(directory: Option<&Directory>, own: &str, world: &World) -> Vec<Row> {
    let own_row = |org: OrgId, version: Option<u64>| Row {
        region: own.to_owned(),
        org,
        home: own.to_owned(),
        version,
        lag_versions: Some(0),
        lag_s: None,
        fault: None,
    };
    let versions = world.orgs.iter();
    let versions = versions.map(|(org, state)| (*org, Some(state.config.head.n)));
    let Some(directory) = directory else {
        return versions.map(|(org, n)| own_row(org, n)).collect();
    };
    let mut rows: Vec<Row> = versions
        .filter(|(org, _)| directory.is_home(*org))
        .map(|(org, n)| own_row(org, n))
        .collect();
    for home in directory.other_homes() {
        let of = directory.status.following(&home);
        let is_its = |org: &OrgId| directory.homes.region_of(*org) == home;
        // Only who replicates, and is connected, is told of what it lacks.
        let knows = directory.status.is_leading() && of.connected.is_some();
        let lag_s = directory.status.is_leading();
        let lag_s = lag_s.then(|| directory.status.lag_s(&of));
        let mut orgs: Vec<OrgId> = world.orgs.keys().copied().filter(is_its).collect();
        // What it tells of and nothing of which is here yet.
        let told = of.behind.keys().chain(of.untaken.keys());
        let new = told.filter(|org| !world.orgs.contains_key(org)).copied();
        orgs.extend(new.collect::<BTreeSet<_>>());
        rows.extend(orgs.into_iter().map(|org| Row {
            home: home.clone(),
            version: world.orgs.get(&org).map(|state| state.config.head.n),
            lag_versions: knows.then(|| of.behind.get(&org).copied().unwrap_or(0)),
            lag_s,
            fault: fault(&of, org),
            ..own_row(org, None)
        }));
    }
    rows
}

fn fault(of: &Following, org: OrgId) -> Option<(&'static str, Option<String>)> {
    if of.diverged.contains_key(&org) {
        return Some(("diverged", None));
    }
    let unverified = of.unverified.get(&org);
    let unverified = unverified.map(|of| ("unverified", Some(of.why.clone())));
    let untaken = || {
        of.untaken
            .get(&org)
            .map(|why| ("untaken", Some(why.clone())))
    };
    unverified.or_else(untaken)
}

/// The schema of a row.
pub fn schema() -> Value {
    let text = |description: &str| json!({"type": "string", "description": description});
    json!({
        "type": "object",
        "description": "How far a region has come with an organisation. A control plane knows it \
                        of its own region, and of other regions for what its own is home to",
        "properties": {
            "region": text("The region"),
            "org": text("The organisation"),
            "slug": {"type": ["string", "null"], "description": "Its slug, where it has one here"},
            "home": text("The region in which its versions are made"),
            "version": {"type": ["integer", "null"],
                "description": "The version that the region has; of another region, that it has \
                                told to have"},
            "lag_versions": {"type": ["integer", "null"],
                "description": "Versions of its home that are not there; null where this control \
                                plane does not replicate, or is not connected to home"},
            "lag_seconds": {"type": ["number", "null"],
                "description": "Seconds since everything of its home was there, of which only the \
                                control plane that replicates knows; null for other regions"},
            "state": {"type": "string",
                "enum": ["home", "current", "behind", "unknown", "diverged", "unverified",
                         "untaken"],
                "description": "What it is there"},
            "why": {"type": ["string", "null"], "description": "Why it is not taken"}
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_keeps_an_organisation_from_being_taken_is_its_state() {
        let org = OrgId::from_bits(1);
        let mut of = Following::default();
        let shown = |of: &Following, lag_versions| {
            let row = Row {
                region: "eu".into(),
                org,
                home: "us".into(),
                version: Some(4),
                lag_versions,
                lag_s: Some(0.5),
                fault: fault(of, org),
            };
            let shown = row.shown(None);
            (shown["state"].clone(), shown["why"].clone())
        };
        assert_eq!(shown(&of, Some(0)), (json!("current"), Value::Null));
        assert_eq!(shown(&of, Some(3)), (json!("behind"), Value::Null));
        assert_eq!(shown(&of, None), (json!("unknown"), Value::Null));
        of.untaken.insert(org, "a leaf is missing".into());
        let untaken = (json!("untaken"), json!("a leaf is missing"));
        assert_eq!(shown(&of, Some(3)), untaken);
        of.untaken.insert(OrgId::from_bits(2), "another".into());
        assert_eq!(shown(&of, Some(3)), untaken);
    }
}
