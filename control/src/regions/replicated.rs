//! Which regions have a version: told with every write, and waited for where a write asks for it.
//!
//! What a follower has stored it tells the control plane of home that it is connected to, which
//! keeps it in the store, so that every control plane of home can tell.

use std::collections::BTreeMap;
use std::time::Duration;

use actix_web::http::header::HeaderName;
use proto::id::OrgId;
use proto::keys;
use proto::store::{Store, StoreError, load};
use proto::tree::Head;
use proto::wire::replication::Position;
use tokio::time::Instant;

use super::Directory;
use crate::api::error::Refusal;

/// Names the regions, besides home, that have the version which a write made.
pub const REPLICATED_TO: HeaderName = HeaderName::from_static("requestrocket-replicated-to");
/// The query parameter by which a write waits for one of them.
pub const DURABILITY: &str = "durability";
/// What it means, for the documentation.
pub const DURABILITY_MEANS: &str = "`1`: answer once another region has the version, or after 5 s; \
                                    `requestrocket-replicated-to` names those that have it";
/// Longest wait for one.
const WAIT_MAX: Duration = Duration::from_secs(5);
/// How often the store is asked meanwhile.
const LOOK: Duration = Duration::from_millis(25);

/// Whether a write asks to wait for another region.
///
/// # Errors
/// The parameter is neither 0 nor 1, or there is no other region.
pub fn wanted(query: &str, several: bool) -> Result<bool, Refusal> {
    let mut given = url::form_urlencoded::parse(query.as_bytes())
        .filter(|(name, _)| name == DURABILITY)
        .map(|(_, value)| value.into_owned());
    match (given.next().as_deref(), several) {
        (None | Some("0"), _) => Ok(false),
        (Some("1"), true) => Ok(true),
        (Some("1"), false) => Err(Refusal::parameter(
            DURABILITY,
            "1 needs another region, and there is one only (`regions.peers`)",
        )),
        (Some(_), _) => Err(Refusal::parameter(DURABILITY, "must be 0 or 1")),
    }
}

/// Where a region has told to stand with each organisation.
///
/// # Errors
/// The store did not answer.
pub async fn by(store: &dyn Store, region: &str) -> Result<BTreeMap<OrgId, Position>, StoreError> {
    let prefix = keys::replicated_of(region);
    let mut applied = BTreeMap::new();
    load::list(store, &prefix, None, |pair| {
        let org = pair.key.strip_prefix(&prefix);
        let position = serde_json::from_slice::<Position>(&pair.value);
        if let (Some(org), Ok(position)) = (org.and_then(|id| id.parse().ok()), position) {
            applied.insert(org, position);
        }
    })
    .await?;
    Ok(applied)
}

/// How many versions a region lacks that has told to stand there. What it told under an earlier
/// home may be of a branch that is not in force.
pub fn lag(head: &Head, at: Option<&Position>) -> u64 {
    let Some(at) = at else {
        return head.n;
    };
    let lacks = head.n.saturating_sub(at.n);
    match at.epoch < head.epoch {
        true => lacks.max(1),
        false => lacks,
    }
}

/// The regions that have a version, by name with commas; waits for one where that is wanted.
///
/// What a region told before home moved here is not of this history: only an epoch as high as that
/// of the version counts.
pub async fn to(
    store: &dyn Store,
    directory: &Directory,
    (org, n): (OrgId, u64),
    wait: bool,
) -> String {
    let until = Instant::now() + WAIT_MAX;
    let epoch = directory.homes.of(org).map(|home| home.epoch);
    let has = |position: Position| {
        position.n >= n && epoch.as_ref().is_none_or(|epoch| position.epoch >= *epoch)
    };
    loop {
        let mut found: Vec<&str> = Vec::new();
        for peer in &directory.regions.peers {
            let key = keys::replicated(&peer.name, org);
            // What cannot be read is not told: it is a promise.
            let pair = store.get(&key).await.ok().and_then(|at| at.value);
            let position = pair.and_then(|p| serde_json::from_slice::<Position>(&p.value).ok());
            if position.is_some_and(has) {
                found.push(&peer.name);
            }
        }
        if !wait || !found.is_empty() || Instant::now() >= until {
            return found.join(",");
        }
        tokio::time::sleep(LOOK).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parameter_is_0_or_1() {
        for (query, several, expected) in [
            ("", true, Some(false)),
            ("a=1", true, Some(false)),
            ("durability=0", false, Some(false)),
            ("durability=1", true, Some(true)),
            ("durability=1", false, None),
            ("durability=2", true, None),
            ("durability=", true, None),
        ] {
            let found = wanted(query, several).ok();
            assert_eq!(found, expected, "{query} {several}");
        }
    }
}
