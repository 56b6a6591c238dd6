//! The archive by itself: what goes in comes out, and what is dropped takes nothing with it.

use jiff::Timestamp;
use proto::id::TargetId;
use proto::object::{Body, ObjectId};
use proto::org::Role;
use proto::policy::Policy;
use proto::store::load;
use proto::tree::{Context, Operation, OrgConfig, Packed, apply};
use proto::version::Epoch;
use serde_json::json;

use super::*;

const ORG: OrgId = OrgId::from_bits(7);

/// The version after `parent` with one target more.
fn next(parent: &OrgConfig, bits: u128) -> Packed {
    let body = json!({"base_url": format!("https://h{bits}.example"), "name": "t"});
    let create = Operation::Create {
        id: ObjectId::Target(TargetId::from_bits(bits)),
        body: Body::Target(serde_json::from_value(body).unwrap()),
        secret: None,
    };
    let context = Context {
        now: Timestamp::from_second(1_000).unwrap(),
        policy: &Policy::default(),
        role: Role::Owner,
    };
    let draft = apply(parent, &[create], &context).unwrap();
    draft.commit(parent, 0, seal::random_name()).unwrap()
}

/// So many versions, each with one target more and published a second later, in an archive.
fn filled(versions: u64) -> (Archive, Vec<(VersionRecord, OrgConfig)>, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let archive = Archive::open(&dir.path().join("archive")).unwrap();
    let epoch = Epoch {
        counter: 1,
        region: "eu".into(),
    };
    let mut config = OrgConfig::genesis(ORG, epoch);
    let mut made = Vec::new();
    for n in 1..=versions {
        let packed = next(&config, u128::from(n));
        let record = VersionRecord {
            head: packed.config.head.clone(),
            at: Timestamp::from_second(1_000 + n as i64).unwrap(),
            author: "tok".into(),
            source: None,
            changes: 1,
            changed: Vec::new(),
        };
        let leaves = packed.leaves.into_iter();
        let leaves: Vec<_> = leaves
            .map(|leaf| (leaf.hash, Bytes::from(leaf.packed)))
            .collect();
        archive.insert(ORG, &record, &leaves).unwrap();
        config = packed.config;
        made.push((record, config.clone()));
    }
    (archive, made, dir)
}

async fn read(archive: &Archive, record: &VersionRecord) -> OrgConfig {
    let content = archive.content(ORG, record).unwrap();
    let loaded = load::version(&content, ORG, record.head.clone(), None).await;
    loaded.unwrap().config
}

fn numbers(records: &[VersionRecord]) -> Vec<u64> {
    records.iter().map(|record| record.head.n).collect()
}

#[tokio::test]
async fn what_is_archived_is_read_back_whole_also_by_the_next_process() {
    let (archive, made, dir) = filled(5);
    for (record, config) in &made {
        assert_eq!(
            archive.version(ORG, record.head.n).unwrap().as_ref(),
            Some(record)
        );
        assert_eq!(read(&archive, record).await.objects, config.objects);
    }
    assert_eq!(archive.version(ORG, 6).unwrap(), None);
    assert_eq!(archive.version(OrgId::from_bits(8), 1).unwrap(), None);
    for (before, limit, expected) in [
        (6, 2, vec![5, 4]),
        (4, 10, vec![3, 2, 1]),
        (1, 10, vec![]),
        (u64::MAX, 1, vec![5]),
    ] {
        let found = archive.versions(ORG, before, limit).unwrap();
        assert_eq!(numbers(&found), expected, "before {before}");
    }
    let name = archive.name().to_owned();
    drop(archive);
    let again = Archive::open(&dir.path().join("archive")).unwrap();
    assert_eq!(again.name(), name);
    assert_eq!(read(&again, &made[2].0).await.objects.len(), 3);
}

#[tokio::test]
async fn what_is_dropped_takes_no_leaf_of_another_version_with_it() {
    let leaves = |archive: &Archive| -> i64 {
        let count = "SELECT count(*) FROM leaves";
        archive
            .locked()
            .query_row(count, [], |row| row.get(0))
            .unwrap()
    };
    for (keep, left) in [
        ((2, 0), vec![6, 5]),
        ((100, 1_004), vec![6, 5, 4]),
        ((100, 0), vec![6, 5, 4, 3, 2, 1]),
        ((0, 0), vec![]),
    ] {
        let (archive, made, _dir) = filled(6);
        let keep = Keep {
            versions_max: keep.0,
            published_from_s: keep.1,
        };
        archive.retain(ORG, keep).unwrap();
        assert_eq!(numbers(&archive.versions(ORG, 100, 100).unwrap()), left);
        // A leaf and a root for each version.
        assert_eq!(leaves(&archive), 2 * left.len() as i64);
        for n in left {
            let (record, config) = &made[n as usize - 1];
            assert_eq!(read(&archive, record).await.objects, config.objects);
        }
    }
}

#[test]
fn a_version_of_another_history_takes_the_place_of_the_old_one() {
    let (archive, made, _dir) = filled(3);
    let mut other = made[1].0.clone();
    other.author = "somebody else".into();
    archive.insert(ORG, &other, &[]).unwrap();
    assert_eq!(archive.version(ORG, 2).unwrap(), Some(other));
    assert_eq!(archive.orgs().unwrap(), [ORG]);
    archive.forget(ORG).unwrap();
    assert_eq!(archive.orgs().unwrap(), []);
    assert!(!archive.has_leaf(ORG, &made[0].0.head.roots["*"]).unwrap());
}

#[test]
fn a_file_of_another_release_is_refused() {
    let (archive, _, dir) = filled(1);
    archive
        .locked()
        .pragma_update(None, "user_version", 9)
        .unwrap();
    drop(archive);
    let refused = Archive::open(&dir.path().join("archive")).unwrap_err();
    assert!(matches!(refused, ArchiveError::Layout(9)), "{refused}");
    std::fs::write(
        dir.path().join("none"),
        "this is no SQLite file, but long enough",
    )
    .unwrap();
    assert!(Archive::open(&dir.path().join("none")).is_err());
}

#[test]
fn a_branch_is_moved_aside_with_its_content_and_goes_by_age() {
    let (archive, made, dir) = filled(6);
    let is_aside = |record: &VersionRecord| record.head.n > 4;
    assert_eq!(archive.leave_branch(ORG, is_aside).unwrap(), 2);
    assert_eq!(archive.leave_branch(ORG, is_aside).unwrap(), 0);
    assert_eq!(archive.version(ORG, 5).unwrap(), None);
    let newest = archive.versions(ORG, u64::MAX, 1).unwrap();
    assert_eq!(newest, [made[3].0.clone()]);
    // It outlives the process, and the leaves that it reaches outlive others.
    drop(archive);
    let archive = Archive::open(&dir.path().join("archive")).unwrap();
    let mut aside = archive.aside().unwrap();
    aside.sort_by_key(|(_, record)| record.head.n);
    assert_eq!(aside, [(ORG, made[4].0.clone()), (ORG, made[5].0.clone())]);
    let keep = |published_from_s| Keep {
        versions_max: 1,
        published_from_s,
    };
    assert_eq!(archive.retain(ORG, keep(0)).unwrap(), 3);
    for hash in made[5].1.reaches() {
        assert!(archive.has_leaf(ORG, &hash).unwrap());
    }
    archive.retain(ORG, keep(1_006)).unwrap();
    let left = archive.aside().unwrap();
    assert_eq!(left, [(ORG, made[5].0.clone())]);
    archive.forget(ORG).unwrap();
    assert!(archive.aside().unwrap().is_empty());
}
