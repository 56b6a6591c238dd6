//! Where the entries of the audit are.

use crate::id::OrgId;

/// All audit entries of an organisation in this region, and their head.
pub fn audit(org: OrgId) -> String {
    format!("{AUDIT}{org}/")
}

/// All keys of [`audit`].
pub(super) const AUDIT: &str = "audit/";

/// One audit entry. Numbers are padded, so that keys sort as entries were written.
pub fn audit_entry(org: OrgId, seq: u64) -> String {
    format!("{AUDIT}{org}/{seq:020}")
}

/// How far the audit of an organisation is: its last entry. Sorts after all entries.
pub fn audit_head(org: OrgId) -> String {
    format!("{AUDIT}{org}/head")
}

/// The number in a key of [`audit_entry`].
pub fn parse_audit_entry(key: &str) -> Option<u64> {
    let (_, seq) = key.strip_prefix(AUDIT)?.split_once('/')?;
    seq.parse().ok()
}
