//! Every key of the store, built and parsed here only.
//!
//! The store adds its own global prefix. Parts are ids, hex and zero-padded numbers, so no part
//! can hold the separator; a text that comes from outside (an idempotency key, a seal id) is
//! hashed or checked before it becomes a part.

mod audit;
mod branch;
mod idempotency;
mod live;

use std::str::FromStr;

use self::audit::AUDIT;
pub use self::audit::{audit, audit_entry, audit_head, parse_audit_entry};
pub use self::branch::{ASIDE, PARTED, aside, aside_of, parse_aside, parted};
pub use self::idempotency::{
    IDEMPOTENCY, Outcome, idempotency, idempotency_by_hash, idempotency_of, parse_outcome,
    remembered,
};
pub use self::live::Live;
use crate::id::{CredentialId, MeterId, NodeId, OrgId, RequestId};
use crate::tree::Hash;

/// Everything that a node watches: heads, deltas, retired facts, the beat.
pub const LIVE: &str = "live/";
/// All heads.
pub const HEADS: &str = "live/head/";
/// All deltas.
pub const DELTAS: &str = "live/delta/";
/// Sorts after all deltas, and before every other key of [`LIVE`] but the beat.
pub const BEYOND_DELTAS: &str = "live/delta/\u{10ffff}";
/// All retired facts.
pub const RETIRED: &str = "live/retired/";
/// All test requests that wait for a node.
pub const TESTS: &str = "live/test/";
/// The gateways of all regions.
pub const REGIONS: &str = "live/regions";
/// Written by control every few seconds; a watch that does not show it is dead.
pub const BEAT: &str = "live/beat";
/// To which key sealed values of the region were sealed anew: what is sealed to another one is read
/// again.
pub const RESEALED: &str = "live/resealed";

/// The head of an organisation.
pub fn head(org: OrgId) -> String {
    format!("{HEADS}{org}")
}

/// The newest version's changes.
pub fn delta(org: OrgId) -> String {
    format!("{DELTAS}{org}")
}

/// The fact which secrets of a credential are over.
pub fn retired(org: OrgId, credential: CredentialId) -> String {
    format!("{RETIRED}{org}/{credential}")
}

/// The facts of all credentials of an organisation.
pub fn retired_of(org: OrgId) -> String {
    format!("{RETIRED}{org}/")
}

/// A leaf or root by the hash of its content.
pub fn leaf(org: OrgId, hash: &Hash) -> String {
    format!("leaf/{org}/{hash}")
}

/// All leaves and roots of an organisation.
pub fn leaves(org: OrgId) -> String {
    format!("leaf/{org}/")
}

/// The hash that a key of [`leaf`] names.
pub fn parse_leaf(key: &str) -> Option<(OrgId, Hash)> {
    let (org, hash) = key.strip_prefix("leaf/")?.split_once('/')?;
    Some((org.parse().ok()?, Hash::from_str(hash).ok()?))
}

/// The record of one version. Numbers are padded, so that keys sort as versions do.
pub fn version(org: OrgId, n: u64) -> String {
    format!("versions/{org}/{n:020}")
}

/// The records of all versions of an organisation.
pub fn versions(org: OrgId) -> String {
    format!("versions/{org}/")
}

/// The organisation and number that a key of [`version`] names.
pub fn parse_version(key: &str) -> Option<(OrgId, u64)> {
    let (org, n) = key.strip_prefix("versions/")?.split_once('/')?;
    Some((org.parse().ok()?, n.parse().ok()?))
}

/// The signature of a version's record. Numbers are padded as there.
pub fn signature(org: OrgId, n: u64) -> String {
    format!("signatures/{org}/{n:020}")
}

/// The signatures of all versions of an organisation.
pub fn signatures(org: OrgId) -> String {
    format!("signatures/{org}/")
}

/// The counter that keeps a large publish and the sweep of old leaves apart.
pub fn gc(org: OrgId) -> String {
    format!("gc/{org}")
}

/// All counters of [`gc`].
pub const GC: &str = "gc/";

/// Up to which version each control plane has archived an organisation.
pub fn archived(org: OrgId) -> String {
    format!("{ARCHIVED}{org}")
}

/// All keys of [`archived`].
pub const ARCHIVED: &str = "archived/";

/// Retired facts that the newest version left for afterwards.
pub fn retiring(org: OrgId) -> String {
    format!("{RETIRING}{org}")
}

/// Whose turn it is among control planes that publish in an organisation at once.
pub fn turn(org: OrgId) -> String {
    format!("turn/{org}")
}

/// All keys of [`retiring`].
pub const RETIRING: &str = "retiring/";

/// The names of versions whose records have left the store.
pub fn lineage(org: OrgId) -> String {
    format!("{LINEAGE}{org}")
}

/// All keys of [`lineage`].
pub const LINEAGE: &str = "lineage/";

/// The first version of an organisation that a region may keep which is not home: earlier ones hold
/// what has been pinned to other regions since.
pub fn kept_from(org: OrgId) -> String {
    format!("{KEPT_FROM}{org}")
}

/// All keys of [`kept_from`].
pub const KEPT_FROM: &str = "kept-from/";

/// The epoch as of which home is known to have what this region has, and does not keep, of an
/// organisation.
pub fn home_has(org: OrgId) -> String {
    format!("{HOME_HAS}{org}")
}

/// All keys of [`home_has`].
pub const HOME_HAS: &str = "home-has/";

/// Leaves and roots, records of versions and their signatures, sealed secrets, audit entries and
/// the like of all organisations: what comes behind these is an organisation and a slash.
pub const OF_ORGS: [&str; 11] = [
    "leaf/",
    "versions/",
    "signatures/",
    "secrets/",
    RETIRED,
    IDEMPOTENCY,
    "tokens/",
    SHARES,
    "grants/",
    PARTED,
    AUDIT,
];

/// All running control planes.
pub const CONTROLS: &str = "controls/";

/// A running control plane, under its lease; `name` is its archive's.
pub fn control(name: &str) -> String {
    format!("{CONTROLS}{name}")
}

/// All invitations of regions.
pub const INVITATIONS: &str = "invitations/";

/// An invitation by its id, which is no secret.
pub fn invitation(id: &str) -> String {
    format!("{INVITATIONS}{id}")
}

/// That a region of this name has joined by an invitation.
pub fn joined(region: &str) -> String {
    format!("joined/{region}")
}

/// A person's request to write back what the store has lost. Nodes see it by their watch.
pub const RECOVERY_ASK: &str = "live/recovery";

/// The same for nodes of earlier releases, which look for it themselves while they miss something.
pub const RECOVERY_ASK_BEFORE: &str = "recovery/ask";

/// What a node wrote back of one organisation, for the request with this id.
pub fn recovery_offer(id: &str, org: OrgId) -> String {
    format!("recovery/offer/{id}/{org}")
}

/// That a node has written back everything that the request with this id asked for.
pub fn recovery_offered(id: &str) -> String {
    format!("recovery/offered/{id}")
}

/// A sealed secret of one region.
pub fn secret(org: OrgId, credential: CredentialId, seal_id: &str, region: &str) -> String {
    format!("secrets/{org}/{credential}/{seal_id}/{region}")
}

/// The credential, the seal id and the region that a key of [`secret`] names.
pub fn parse_secret(key: &str) -> Option<(CredentialId, &str, &str)> {
    let mut parts = key.strip_prefix("secrets/")?.split('/').skip(1);
    Some((parts.next()?.parse().ok()?, parts.next()?, parts.next()?))
}

/// All sealed secrets of a credential.
pub fn secrets_of(org: OrgId, credential: CredentialId) -> String {
    format!("secrets/{org}/{credential}/")
}

/// All sealed secrets of an organisation.
pub fn secrets(org: OrgId) -> String {
    format!("secrets/{org}/")
}

/// How long ago the store had which revision, by the node that sweeps keys of limits.
pub const SWEPT: &str = "limits/swept";

/// The state of all rate limits of an organisation.
pub fn tokens(org: OrgId) -> String {
    format!("tokens/{org}/")
}

/// The state of one rate limit key; `meter` is an id, `digest` names the key's value.
pub fn token(org: OrgId, meter: &str, digest: &str) -> String {
    format!("tokens/{org}/{meter}/{digest}")
}

/// A test request, under its lease.
pub fn test(id: RequestId) -> String {
    format!("{TESTS}{id}")
}

/// What becomes of a test request, under its lease.
pub fn test_results(id: RequestId) -> String {
    format!("tests/{id}/")
}

/// The node that sends a test request.
pub fn test_taken(id: RequestId) -> String {
    format!("tests/{id}/taken")
}

/// The outcome of a test request.
pub fn test_outcome(id: RequestId) -> String {
    format!("tests/{id}/outcome")
}

/// All nodes.
pub const NODES: &str = "nodes/";

/// What a node says of itself, under its lease.
pub fn node(node: NodeId) -> String {
    format!("{NODES}{node}")
}

/// The node that a key of [`node`] names.
pub fn parse_node(key: &str) -> Option<NodeId> {
    key.strip_prefix(NODES)?.parse().ok()
}

/// What nodes say of their meters.
pub const USAGE: &str = "usage/";

/// What a node says of its meters, under its lease.
pub fn usage(node: NodeId) -> String {
    format!("{USAGE}{node}")
}

/// All meters that give more than their limits for a while.
pub const RAISES: &str = "raises/";

/// A meter that gives more than its limits, under a lease of that length.
pub fn raise(meter: MeterId) -> String {
    format!("{RAISES}{meter}")
}

/// What this region has of limits that regions share, where that has ever moved.
const SHARES: &str = "shares/";

/// Written with every change of a share: who has seen it has seen all before.
pub const SHARES_MOVED: &str = "shares-moved";

/// The beginning of all shares and of [`SHARES_MOVED`].
pub const SHARES_WATCHED: &str = "shares";

/// What this region has of the limits of a meter, or of a proxy's own; `id` names it.
pub fn share(org: OrgId, id: &str) -> String {
    format!("{SHARES}{org}/{id}")
}

/// All shares of an organisation.
pub fn shares_of(org: OrgId) -> String {
    format!("{SHARES}{org}/")
}

/// The organisation and the meter that a key of [`share`] names.
pub fn parse_share(key: &str) -> Option<(OrgId, &str)> {
    let (org, id) = key.strip_prefix(SHARES)?.split_once('/')?;
    Some((org.parse().ok()?, id))
}

/// What this region has given to another one and is not known to be taken.
pub fn grants_to(org: OrgId, region: &str) -> String {
    format!("grants/{org}/{region}/")
}

/// All such grants of an organisation.
pub fn grants_of(org: OrgId) -> String {
    format!("grants/{org}/")
}

/// One grant. Numbers are padded, so that keys sort as they were given.
pub fn grant((org, region): (OrgId, &str), id: &str, seq: u64) -> String {
    format!("grants/{org}/{region}/{id}/{seq:020}")
}

/// The region and the meter that a key of [`grant`] names.
pub fn parse_grant(key: &str) -> Option<(&str, &str)> {
    let (_, rest) = key.strip_prefix("grants/")?.split_once('/')?;
    let (region, rest) = rest.split_once('/')?;
    let (id, _) = rest.split_once('/')?;
    Some((region, id))
}

/// What nodes say of how they use limits that regions share.
pub const DEMAND: &str = "demand/";

/// What a node says of that, under its lease.
pub fn demand(node: NodeId) -> String {
    format!("{DEMAND}{node}")
}

/// Who does a job that only one control may do, under its lease.
pub fn leader(role: &str) -> String {
    format!("leaders/{role}")
}

/// Which region is home to an organisation.
pub fn home(org: OrgId) -> String {
    format!("{HOMES}{org}")
}

/// All keys of [`home`].
pub const HOMES: &str = "home/";

/// The organisation that a key of [`home`] names.
pub fn parse_home(key: &str) -> Option<OrgId> {
    key.strip_prefix(HOMES)?.parse().ok()
}

/// What a region that follows has stored of an organisation, as it told home.
pub fn replicated(region: &str, org: OrgId) -> String {
    format!("replication/{region}/{org}")
}

/// All keys of [`replicated`] of a region.
pub fn replicated_of(region: &str) -> String {
    format!("replication/{region}/")
}

/// When all that another region is home to was last stored in this one.
pub fn followed(region: &str) -> String {
    format!("followed/{region}")
}

/// The role of [`leader`] that replicates from the home region.
pub const REPLICATION: &str = "replication";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::version::Epoch;

    #[test]
    fn live_keys_and_back() {
        let (org, credential) = (OrgId::from_bits(1), CredentialId::from_bits(2));
        for (key, expected) in [
            (head(org), Some(Live::Head(org))),
            (
                test(RequestId::from_bits(3)),
                Some(Live::Test(RequestId::from_bits(3))),
            ),
            (delta(org), Some(Live::Delta(org))),
            (
                retired(org, credential),
                Some(Live::Retired(org, credential)),
            ),
            (BEAT.to_owned(), Some(Live::Beat)),
            (RESEALED.to_owned(), Some(Live::Resealed)),
            (RECOVERY_ASK.to_owned(), Some(Live::RecoveryAsk)),
            ("live/".to_owned(), None),
            ("live/head/x".to_owned(), None),
            (format!("live/retired/{org}"), None),
            (format!("live/retired/{org}/x"), None),
            ("leaf/x".to_owned(), None),
        ] {
            assert_eq!(Live::parse(&key), expected, "{key}");
            assert!(!key.starts_with("live") || key.starts_with(LIVE));
        }
    }

    #[test]
    fn other_keys_and_back() {
        let org = OrgId::from_bits(1);
        let hash = Hash::of(b"x");
        assert_eq!(parse_leaf(&leaf(org, &hash)), Some((org, hash)));
        assert_eq!(parse_leaf("leaf/x/y"), None);
        assert_eq!(parse_version(&version(org, 7)), Some((org, 7)));
        assert!(
            version(org, 9) < version(org, 10),
            "keys sort as numbers do"
        );
        assert!(audit_entry(org, 9) < audit_entry(org, 10));
        assert!(audit_entry(org, u64::MAX) < audit_head(org));
        assert_eq!(parse_audit_entry(&audit_entry(org, 7)), Some(7));
        assert_eq!(parse_audit_entry(&audit_head(org)), None);
        assert_eq!(parse_home(&home(org)), Some(org));
        let epoch = Epoch {
            counter: 3,
            region: "eu".into(),
        };
        let set_aside = aside(org, &epoch, (9, &hash));
        assert!(set_aside.starts_with(&aside_of(org)));
        assert!(set_aside < aside(org, &epoch, (10, &hash)));
        assert_ne!(set_aside, aside(org, &epoch, (9, &Hash::of(b"y"))));
        assert!(parted(org, &epoch).starts_with(&format!("{PARTED}{org}/")));
        assert_eq!(parse_aside(&set_aside), Some(org));
        let credential = CredentialId::from_bits(2);
        let sealed = secret(org, credential, "abc", "eu");
        assert_eq!(parse_secret(&sealed), Some((credential, "abc", "eu")));
        assert_eq!(parse_secret("secrets/x"), None);
        assert_eq!(
            parse_node(&node(NodeId::from_bits(3))),
            Some(NodeId::from_bits(3))
        );
        assert_eq!(parse_node("nodes/x"), None);
        assert_eq!(parse_share(&share(org, "mtr_1")), Some((org, "mtr_1")));
        assert_eq!(parse_share(SHARES_MOVED), None);
        for key in [SHARES_MOVED, &share(org, "mtr_1")] {
            assert!(key.starts_with(SHARES_WATCHED), "{key}");
        }
        let given = (org, "eu");
        assert!(grant(given, "mtr_1", 9) < grant(given, "mtr_1", 10));
        assert!(grant(given, "mtr_1", 9).starts_with(&grants_to(org, "eu")));
        assert_eq!(
            parse_grant(&grant(given, "mtr_1", 9)),
            Some(("eu", "mtr_1"))
        );
        assert_eq!(parse_grant(&grants_to(org, "eu")), None);
    }
}
