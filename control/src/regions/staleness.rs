//! How old this region's copy of another region's organisations may be while the holders of their
//! tokens change something here.
//!
//! Tokens are objects of an organisation, and its home judges with its own copy what is forwarded
//! to it. But some writes are carried out where they are asked for, by the copy: promotion and
//! recovery, changes of an organisation that is at home here by an operator while `system` is not,
//! and what is about this region's nodes and limits (`raise`, `test`). A token that was revoked at
//! home since would go on there as long as the link is cut.
//!
//! The time stands in the store: every control plane of the region knows it, and a restart does not
//! make a copy young.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use proto::id::OrgId;
use proto::keys;
use proto::store::{Op, Store, StoreError, Txn};
use serde::{Deserialize, Serialize};

use super::Directory;
use crate::api::error::{Code, Refusal};
use crate::api::write;
use crate::operator::Caller;
use crate::regions::status::Following;
use crate::replication::Replication;
use crate::state::Control;

/// How often the time is written while the copy is current.
const NOTE_EVERY: Duration = Duration::from_secs(10);
/// Most organisations that are told apart. With more of them behind nothing is noted, and the copy
/// of all ages.
const BEHIND_MAX: usize = 1_000;

/// When all that a region is home to was last stored here: the value of [`keys::followed`].
#[derive(Debug, Deserialize, PartialEq, Serialize)]
struct Note {
    at: Timestamp,
    /// The organisations of which that is not so, and when it last was; `None`: never.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    behind: BTreeMap<OrgId, Option<Timestamp>>,
}

impl Note {
    async fn read(store: &dyn Store, region: &str) -> Result<Option<Self>, StoreError> {
        let noted = store.get(&keys::followed(region)).await?.value;
        Ok(noted.and_then(|pair| serde_json::from_slice(&pair.value).ok()))
    }

    async fn write(&self, store: &dyn Store, region: &str) -> Result<(), StoreError> {
        // A note of plain fields always serialises.
        let value = serde_json::to_vec(self).unwrap_or_default();
        let txn = Txn {
            compares: Vec::new(),
            ops: vec![Op::put(keys::followed(region), value)],
            or_read: Vec::new(),
        };
        store.txn(txn).await.map(drop)
    }

    /// When all of an organisation was last stored.
    fn of(&self, org: OrgId) -> Option<Timestamp> {
        self.behind.get(&org).copied().unwrap_or(Some(self.at))
    }

    /// The one after `before`: all but those that are behind are current at a time; these as of
    /// when it says, where that is later than before.
    fn after(
        before: Option<&Self>,
        at: Timestamp,
        (behind, as_of): (BTreeSet<OrgId>, &BTreeMap<OrgId, Option<Timestamp>>),
    ) -> Self {
        let since = |org| {
            let known = before.and_then(|before| before.of(org));
            (org, known.max(as_of.get(&org).copied().flatten()))
        };
        Self {
            at,
            behind: behind.into_iter().map(since).collect(),
        }
    }
}

/// Writes down, now and then, that all that a region was home to at a time is stored here, but for
/// the organisations that are `gone` there, those that could not be taken, and those that are being
/// taken: these are current as of the times in `late`.
///
/// # Errors
/// The store failed.
pub async fn note(
    replication: &Replication,
    peer: &str,
    at: Timestamp,
    (gone, late): (&[OrgId], &BTreeMap<OrgId, Option<Timestamp>>),
) -> Result<(), StoreError> {
    let following = replication.status.following(peer);
    let noted = following.noted_at;
    if noted.is_some_and(|noted| noted.elapsed() < NOTE_EVERY) {
        return Ok(());
    }
    let behind = behind(&following, gone);
    if behind.len() > BEHIND_MAX {
        return Ok(());
    }
    let store = &*replication.store;
    let before = Note::read(store, peer).await?;
    let note = Note::after(before.as_ref(), at, (behind, late));
    note.write(store, peer).await?;
    let status = &replication.status;
    status.follow(peer, |of| of.noted_at = Some(Instant::now()));
    Ok(())
}

/// The organisations whose newest version is not here.
fn behind(following: &Following, gone: &[OrgId]) -> BTreeSet<OrgId> {
    let stuck = following.unverified.keys().chain(following.untaken.keys());
    let untaken = following.behind.keys().chain(stuck);
    let all = untaken.chain(following.diverged.keys()).chain(gone);
    all.copied().collect()
}

/// How old the copy of an organisation is; `None` where it never was known to be current.
async fn age(
    store: &dyn Store,
    (region, org): (&str, OrgId),
    now: Timestamp,
) -> Result<Option<Duration>, StoreError> {
    let at = Note::read(store, region)
        .await?
        .and_then(|note| note.of(org));
    // One that is ahead of this clock by what clocks differ is of now.
    Ok(at.map(|at| now.duration_since(at).try_into().unwrap_or_default()))
}

/// Refuses a caller who would change something here by a token that its home may have revoked.
///
/// # Errors
/// The copy is older than the setting allows, or its age cannot be read.
pub async fn refuse(control: &Control, caller: &Caller) -> Result<(), Refusal> {
    let Some(directory) = control.directory() else {
        return Ok(());
    };
    if caller.is_local() || directory.is_home(caller.org) {
        return Ok(());
    }
    let home = directory.homes.region_of(caller.org);
    let of = (home.as_str(), caller.org);
    let age = age(control.publisher.store(), of, Timestamp::now()).await;
    let age = age.map_err(|error| write::refusal(error.into()))?;
    match age {
        Some(age) if age <= control.settings.auth_max_staleness => Ok(()),
        age => Err(stale(directory, caller, &home, age)),
    }
}

fn stale(directory: &Directory, caller: &Caller, home: &str, age: Option<Duration>) -> Refusal {
    let how_old = match age {
        Some(age) => format!("is {} s old", age.as_secs()),
        None => "was never seen to be current".to_owned(),
    };
    let (whose, remedy) = match caller.of_system {
        true => (
            "operators' tokens are",
            " `regions` and `recover` take the token of `control.operator_token_file` meanwhile",
        ),
        false => ("tokens of this organisation are", ""),
    };
    let own = &directory.regions.own;
    let detail = format!(
        "{whose} judged in region {own} by a copy that {how_old}, and region {home} may have \
         revoked this one since (`control.auth_max_staleness_s`); nothing was changed.{remedy}"
    );
    Refusal::new(Code::AuthStale, detail).retry_after_s(30)
}

#[cfg(test)]
mod tests {
    use proto::store::embedded::Embedded;

    use super::*;
    use crate::regions::status::Unverified;

    fn seconds(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + seconds).unwrap()
    }

    #[tokio::test]
    async fn a_copy_ages_from_when_it_was_noted() {
        let dir = tempfile::tempdir().unwrap();
        let store = Embedded::open(&dir.path().join("store")).unwrap();
        let org = OrgId::from_bits(1);
        let of = ("us", org);
        assert_eq!(age(&*store, of, seconds(0)).await.unwrap(), None);
        let note = Note::after(None, seconds(0), (BTreeSet::new(), &BTreeMap::new()));
        note.write(&*store, "us").await.unwrap();
        for (after_s, expected_s) in [(0, 0), (61, 61), (-2, 0)] {
            let expected = Some(Duration::from_secs(expected_s));
            let age = age(&*store, of, seconds(after_s)).await.unwrap();
            assert_eq!(age, expected, "{after_s}");
        }
        let later = Note::after(
            Some(&note),
            seconds(61),
            (BTreeSet::new(), &BTreeMap::new()),
        );
        later.write(&*store, "us").await.unwrap();
        let now = seconds(61);
        assert_eq!(age(&*store, of, now).await.unwrap(), Some(Duration::ZERO));
        let elsewhere = ("asia", org);
        assert_eq!(age(&*store, elsewhere, now).await.unwrap(), None);
    }

    #[test]
    fn what_cannot_be_taken_ages_alone() {
        let [late, new, other] = [1, 2, 3].map(OrgId::from_bits);
        let none = BTreeMap::new();
        let first = Note::after(None, seconds(0), (BTreeSet::from([new]), &none));
        let second = Note::after(
            Some(&first),
            seconds(10),
            (BTreeSet::from([late, new]), &none),
        );
        let third = Note::after(
            Some(&second),
            seconds(20),
            (BTreeSet::from([late, new]), &none),
        );
        let ages = |note: &Note| [late, new, other].map(|org| note.of(org));
        assert_eq!(ages(&first), [Some(seconds(0)), None, Some(seconds(0))]);
        let behind = [Some(seconds(0)), None, Some(seconds(20))];
        assert_eq!(ages(&third), behind);
        let mended = Note::after(Some(&third), seconds(30), (BTreeSet::new(), &none));
        assert_eq!(ages(&mended), [Some(seconds(30)); 3]);
        let text = serde_json::to_vec(&third).unwrap();
        assert_eq!(serde_json::from_slice::<Note>(&text).unwrap(), third);
    }

    #[test]
    fn behind_is_what_moved_and_is_not_here() {
        let [late, diverged, gone, unverified, untaken] = [1, 2, 3, 4, 5].map(OrgId::from_bits);
        let mut following = Following::default();
        following.behind.insert(late, 1);
        let position = proto::wire::replication::Position {
            epoch: proto::version::Epoch {
                counter: 1,
                region: "us".into(),
            },
            n: 1,
            hash: proto::tree::Hash::of(b""),
        };
        following.diverged.insert(diverged, position.clone());
        let why = "it was altered".to_owned();
        let of = Unverified { at: position, why };
        following.unverified.insert(unverified, of);
        let why = "a leaf is missing".to_owned();
        following.untaken.insert(untaken, why);
        let all = BTreeSet::from([late, diverged, gone, unverified, untaken]);
        assert_eq!(behind(&following, &[gone]), all);
    }
}
