//! What a version writes, as store operations.

use bytes::Bytes;
use proto::id::OrgId;
use proto::keys;
use proto::object::ObjectId;
use proto::signature::Signer;
use proto::store::chunks::{CHUNK_BYTES, CHUNK_OPS, bytes_of};
use proto::store::{Compare, Op};
use proto::tree::{Leaf, OrgConfig, Packed, VERSION_CHANGED_MAX, VersionRecord, narrows};

use super::Author;

/// A publish with more operations than this, or more bytes, writes its content first.
pub(crate) const ONE_TXN_OPS: usize = CHUNK_OPS;
const ONE_TXN_BYTES: usize = CHUNK_BYTES;

/// Everything that a version writes.
#[derive(Default)]
pub(crate) struct Writes {
    /// All must hold for the head to move.
    pub compares: Vec<Compare>,
    /// Must be in the head's transaction.
    pub with_head: Vec<Op>,
    /// May be written before it: nothing names it until the head does.
    pub before: Vec<Op>,
    /// May be done after it: nothing names it any more.
    pub after: Vec<Op>,
}

impl Writes {
    /// Whether everything fits one transaction together with `more` small operations.
    pub fn fit_one_txn(&self, more: usize) -> bool {
        let ops = self.with_head.iter().chain(&self.before);
        let bytes: usize = ops.clone().map(bytes_of).sum();
        // Room for head, delta (at most 32 KiB of objects) and record.
        ops.count() + more <= ONE_TXN_OPS && bytes + 64 * 1024 <= ONE_TXN_BYTES
    }
}

/// Head, delta and record of a version.
pub(super) fn version_ops(
    packed: &Packed,
    changed: &[ObjectId],
    (author, now): (&Author, jiff::Timestamp),
    signer: Option<&Signer>,
) -> Vec<Op> {
    let (org, head) = (packed.config.org, &packed.config.head);
    let record = VersionRecord {
        head: head.clone(),
        at: now,
        author: author.name.clone(),
        source: author.source,
        changes: changed.len() as u64,
        changed: changed.iter().take(VERSION_CHANGED_MAX).copied().collect(),
    };
    let head = Op::put(keys::head(org), head.to_json());
    let delta = Op::put(keys::delta(org), json(&packed.delta));
    let record = record_ops(org, &record, signer);
    [head, delta].into_iter().chain(record).collect()
}

/// What says that a region keeps nothing of before a version that leaves something out of it.
pub(super) fn narrowing(old: &OrgConfig, new: &OrgConfig, region: &str) -> Option<Op> {
    narrows(old, new, region).then(|| kept_from(new.org, new.head.n))
}

/// The put of [`keys::kept_from`].
pub(crate) fn kept_from(org: OrgId, n: u64) -> Op {
    Op::put(keys::kept_from(org), n.to_string())
}

/// The record of a version, signed where this region signs.
pub(super) fn record_ops(org: OrgId, record: &VersionRecord, signer: Option<&Signer>) -> Vec<Op> {
    let n = record.head.n;
    let record = json(record);
    let signature = signer.map(|signer| {
        let signature = signer.sign(org, &record);
        Op::put(keys::signature(org, n), json(&signature))
    });
    let record = Op::put(keys::version(org, n), record);
    std::iter::once(record).chain(signature).collect()
}

/// The puts of leaves and roots.
pub(super) fn leaf_ops(org: OrgId, leaves: &[Leaf]) -> Vec<Op> {
    let put = |leaf: &Leaf| Op::put(keys::leaf(org, &leaf.hash), leaf.packed.clone());
    leaves.iter().map(put).collect()
}

/// Values of our own types as JSON.
pub(crate) fn json(value: &impl serde::Serialize) -> Bytes {
    // Structs of texts, numbers and lists: serialising into memory cannot fail.
    serde_json::to_vec(value).unwrap_or_default().into()
}
