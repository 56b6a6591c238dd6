//! How old this region's copy of `system` may be while its operators change something here.
//!
//! Operators' tokens are objects of `system`. Home judges with its own copy what is forwarded to
//! it, but some writes are carried out in a region that follows: promotion, recovery, and changes
//! of an organisation that is at home here while `system` is not. Those are judged by the copy,
//! and a token that was revoked at home since would go on as long as the link is cut. Tokens of an
//! organisation need no such limit: a write of their own is carried out at its home.
//!
//! The time stands in the store: every control plane of the region knows it, and a restart does not
//! make a copy young.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use proto::keys;
use proto::store::{Op, Store, StoreError, Txn};
use proto::tree::SYSTEM_ORG;

use super::Directory;
use crate::api::error::{Code, Refusal};
use crate::api::write;
use crate::operator::Caller;
use crate::replication::Replication;
use crate::state::Control;

/// How often the time is written while the copy is current.
const NOTE_EVERY: Duration = Duration::from_secs(10);

/// Writes down, now and then, that all that a region had of `system` at a time is stored here, if
/// that region is its home.
///
/// # Errors
/// The store failed.
pub async fn note(replication: &Replication, peer: &str, at: Timestamp) -> Result<(), StoreError> {
    let Replication { status, homes, .. } = replication;
    let following = status.following(peer);
    let noted = following.noted_at;
    let is_due = noted.is_none_or(|noted| noted.elapsed() >= NOTE_EVERY);
    let is_whole = !following.unverified.contains_key(&SYSTEM_ORG);
    if is_due && is_whole && homes.region_of(SYSTEM_ORG) == peer {
        put(&*replication.store, at).await?;
        status.follow(peer, |of| of.noted_at = Some(Instant::now()));
    }
    Ok(())
}

async fn put(store: &dyn Store, at: Timestamp) -> Result<(), StoreError> {
    let txn = Txn {
        compares: Vec::new(),
        ops: vec![Op::put(keys::SYSTEM_FOLLOWED, at.to_string())],
        or_read: Vec::new(),
    };
    store.txn(txn).await.map(drop)
}

/// How old the copy is; `None` where it never was known to be current.
async fn age(store: &dyn Store, now: Timestamp) -> Result<Option<Duration>, StoreError> {
    let noted = store.get(keys::SYSTEM_FOLLOWED).await?.value;
    let at = noted.and_then(|pair| std::str::from_utf8(&pair.value).ok()?.parse().ok());
    // One that is ahead of this clock by what clocks differ is of now.
    Ok(at.map(|at: Timestamp| now.duration_since(at).try_into().unwrap_or_default()))
}

/// Refuses an operator who would change something here by a token that home may have revoked.
///
/// # Errors
/// The copy is older than the setting allows, or its age cannot be read.
pub async fn refuse(control: &Control, caller: &Caller) -> Result<(), Refusal> {
    let Some(directory) = control.directory() else {
        return Ok(());
    };
    if !caller.of_system || caller.is_local() || directory.is_home(SYSTEM_ORG) {
        return Ok(());
    }
    let age = age(control.publisher.store(), Timestamp::now()).await;
    let age = age.map_err(|error| write::refusal(error.into()))?;
    match age {
        Some(age) if age <= control.settings.auth_max_staleness => Ok(()),
        age => Err(stale(directory, age)),
    }
}

fn stale(directory: &Directory, age: Option<Duration>) -> Refusal {
    let home = directory.homes.region_of(SYSTEM_ORG);
    let how_old = match age {
        Some(age) => format!("is {} s old", age.as_secs()),
        None => "was never seen to be current".to_owned(),
    };
    let detail = format!(
        "operators' tokens are judged here by a copy of `system` that {how_old}, and region {home} \
         may have revoked this one since (`control.auth_max_staleness_s`); nothing was changed. \
         `regions` and `recover` take the token of `control.operator_token_file` meanwhile"
    );
    Refusal::new(Code::AuthStale, detail).retry_after_s(30)
}

#[cfg(test)]
mod tests {
    use proto::store::embedded::Embedded;

    use super::*;

    #[tokio::test]
    async fn a_copy_ages_from_when_it_was_noted() {
        let dir = tempfile::tempdir().unwrap();
        let store = Embedded::open(&dir.path().join("store")).unwrap();
        let at = Timestamp::now();
        assert_eq!(age(&*store, at).await.unwrap(), None);
        put(&*store, at).await.unwrap();
        for (after_s, expected_s) in [(0, 0), (61, 61), (-2, 0)] {
            let now = at + jiff::SignedDuration::from_secs(after_s);
            let expected = Some(Duration::from_secs(expected_s));
            assert_eq!(age(&*store, now).await.unwrap(), expected, "{after_s}");
        }
        put(&*store, at + jiff::SignedDuration::from_secs(61))
            .await
            .unwrap();
        let now = at + jiff::SignedDuration::from_secs(61);
        assert_eq!(age(&*store, now).await.unwrap(), Some(Duration::ZERO));
    }
}
