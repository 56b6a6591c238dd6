//! How far nodes are behind in one organisation.
//!
//! A node does not list what it applies of every organisation: with thousands of them that would be
//! much to write every few seconds, and nearly always the newest of each. It says up to which
//! revision of the store it has applied everything, and names the exceptions, the versions that it
//! could not apply. With the revisions at which an organisation's versions were written that tells
//! what it applies.

use jiff::Timestamp;
use proto::id::OrgId;
use proto::keys;
use proto::member::{FAULTS_MAX, Member, MemberFault};
use proto::store::recovery::REGRESSED;
use proto::store::{Store, StoreError, load};
use proto::tree::{Head, VersionRecord};
use serde_json::{Value, json};

/// The versions of an organisation that the store keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    org: OrgId,
    /// The newest one's number; absent where its head cannot be read.
    newest: Option<u64>,
    /// The revision at which it became the newest one.
    revision: i64,
    /// In their order.
    made: Vec<Made>,
}

/// One version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Made {
    n: u64,
    /// The revision at which it was written.
    revision: i64,
    at: Timestamp,
}

impl Line {
    /// Reads the versions of an organisation; `None` where it has none. What nodes say must be read
    /// before: then no node has applied more than this shows.
    ///
    /// # Errors
    /// The store did not answer.
    pub(super) async fn read(store: &dyn Store, org: OrgId) -> Result<Option<Self>, StoreError> {
        let Some(head) = store.get(&keys::head(org)).await?.value else {
            return Ok(None);
        };
        let newest = Head::parse(&head.value).ok().map(|head| head.n);
        let mut made = Vec::new();
        load::list(store, &keys::versions(org), None, |pair| {
            // One that cannot be read is reported by everybody who needs it.
            let record = serde_json::from_slice::<VersionRecord>(&pair.value);
            made.extend(record.ok().map(|record| Made {
                n: record.head.n,
                revision: pair.mod_revision.0,
                at: record.at,
            }));
        })
        .await?;
        made.retain(|version| newest.is_none_or(|newest| version.n <= newest));
        Ok(Some(Self {
            org,
            newest,
            revision: head.mod_revision.0,
            made,
        }))
    }

    /// Whose versions they are.
    pub(super) fn org(&self) -> OrgId {
        self.org
    }

    /// What a node applies, and how far that is behind. A version that is not in the store's line
    /// is neither behind nor the newest, whatever its number.
    pub(super) fn shown(&self, member: &Member, now: Timestamp) -> Value {
        let applied = self.applied(member);
        let mut shown = json!({
            "org": self.org.to_string(), "version": applied, "newest": self.newest,
        });
        if self.is_apart(member, applied) {
            shown["apart"] = json!(true);
            return shown;
        }
        if let (Some(applied), Some(newest)) = (applied, self.newest) {
            shown["lag_versions"] = json!(newest.saturating_sub(applied));
            shown["lag_s"] = json!(self.lag_s(applied, now));
        }
        shown
    }

    /// The version that a node applies; `None` where it has none, one of before those that the
    /// store keeps, or more exceptions than it may name.
    fn applied(&self, member: &Member) -> Option<u64> {
        if let Some(fault) = self.faults(member).next() {
            return fault.applied;
        }
        let is_whole = |fault: &MemberFault| fault.object.is_none();
        if member.faults.len() >= FAULTS_MAX && member.faults.iter().all(is_whole) {
            // It may have another one to tell of this organisation.
            return None;
        }
        if self.revision <= member.revision {
            return self.newest;
        }
        let seen = self.made.iter();
        let seen = seen.filter(|version| version.revision <= member.revision);
        seen.map(|version| version.n).max()
    }

    /// What a node says of the whole organisation.
    fn faults<'m>(&self, member: &'m Member) -> impl Iterator<Item = &'m MemberFault> + use<'m> {
        let org = self.org.to_string();
        let is_of_it = move |fault: &&MemberFault| {
            fault.object.is_none() && fault.org.as_deref() == Some(org.as_str())
        };
        member.faults.iter().filter(is_of_it)
    }

    /// Whether the version that a node applies is not one that the newest follows: the store went
    /// back. One with a lower number may be, and counts as behind.
    fn is_apart(&self, member: &Member, applied: Option<u64>) -> bool {
        let went_back = self.faults(member).any(|fault| fault.code == REGRESSED);
        went_back && applied.is_some_and(|applied| self.newest.is_some_and(|n| applied >= n))
    }

    /// Seconds since the first version was made that is not applied.
    fn lag_s(&self, applied: u64, now: Timestamp) -> i64 {
        let missed = self.made.iter().filter(|version| version.n > applied);
        let first = missed.min_by_key(|version| version.n);
        first.map_or(0, |first| now.duration_since(first.at).as_secs().max(0))
    }
}

#[cfg(test)]
mod tests {
    use proto::id::NodeId;

    use super::*;

    const ORG: OrgId = OrgId::from_bits(1);

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    /// Versions 3 to 6, written at revisions 30 to 60 and so many seconds.
    fn line() -> Line {
        let made = |n: u64| Made {
            n,
            revision: n as i64 * 10,
            at: at(n as i64 * 10),
        };
        Line {
            org: ORG,
            newest: Some(6),
            revision: 60,
            made: (3..=6).map(made).collect(),
        }
    }

    fn member(revision: i64, faults: Vec<MemberFault>) -> Member {
        Member {
            id: NodeId::from_bits(1),
            name: "gw-1".into(),
            region: "eu".into(),
            address: String::new(),
            peers: None,
            program: String::new(),
            started_at: Timestamp::UNIX_EPOCH,
            revision,
            serves: String::new(),
            in_flight: 0,
            clock_ahead_ms: None,
            meters_degraded: 0,
            restarts: Default::default(),
            not_kept: Default::default(),
            sealing: None,
            failing: Vec::new(),
            faults,
        }
    }

    fn fault(org: OrgId, object: Option<&str>, applied: Option<u64>) -> MemberFault {
        MemberFault {
            org: Some(org.to_string()),
            object: object.map(str::to_owned),
            code: "version-unreadable".into(),
            detail: String::new(),
            applied,
        }
    }

    #[test]
    fn what_a_node_applies_follows_from_its_revision_and_its_faults() {
        let check = |revision, faults: &[MemberFault], expected: [Value; 3]| {
            let shown = line().shown(&member(revision, faults.to_vec()), at(100));
            assert_eq!(shown["org"], ORG.to_string());
            assert_eq!(shown["newest"], 6);
            let found = ["version", "lag_versions", "lag_s"].map(|key| shown[key].clone());
            assert_eq!(found, expected, "{revision} {faults:?}");
        };
        let row = |version: u64, versions: u64, seconds: u64| {
            [json!(version), json!(versions), json!(seconds)]
        };
        check(60, &[], row(6, 0, 0));
        check(999, &[], row(6, 0, 0));
        check(59, &[], row(5, 1, 40));
        check(40, &[], row(4, 2, 50));
        check(39, &[], row(3, 3, 60));
        // Of before what the store keeps.
        let unknown = [Value::Null, Value::Null, Value::Null];
        check(29, &[], unknown.clone());
        // It has seen the newest one, and goes on with another.
        check(60, &[fault(ORG, None, Some(4))], row(4, 2, 50));
        check(60, &[fault(ORG, None, None)], unknown);
        // Quarantined objects, and other organisations.
        check(60, &[fault(ORG, Some("prx_1"), None)], row(6, 0, 0));
        let other = fault(OrgId::from_bits(2), None, Some(1));
        check(
            59,
            &[other.clone(), fault(ORG, None, Some(3))],
            row(3, 3, 60),
        );
        // More exceptions than it may name: this may be one of the rest.
        check(
            60,
            &vec![other; FAULTS_MAX],
            [Value::Null, Value::Null, Value::Null],
        );
    }

    #[test]
    fn a_version_that_the_store_went_back_from_is_not_the_newest() {
        let shown = |applied| {
            let fault = MemberFault {
                code: REGRESSED.into(),
                ..fault(ORG, None, Some(applied))
            };
            let shown = line().shown(&member(60, vec![fault]), at(100));
            ["version", "lag_versions", "lag_s", "apart"].map(|key| shown[key].clone())
        };
        for applied in [6, 9] {
            let expected = [json!(applied), Value::Null, Value::Null, json!(true)];
            assert_eq!(shown(applied), expected);
        }
        assert_eq!(shown(4), [json!(4), json!(2), json!(50), Value::Null]);
    }

    #[test]
    fn a_head_that_cannot_be_read_has_no_number() {
        let line = Line {
            newest: None,
            ..line()
        };
        let shown = line.shown(&member(60, vec![fault(ORG, None, Some(6))]), at(100));
        assert_eq!(shown["version"], 6);
        assert_eq!(shown["newest"], Value::Null);
        assert_eq!(shown.get("lag_versions"), None);
    }
}
