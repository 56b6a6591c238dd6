//! Keys of what is remembered of requests with an `Idempotency-Key`.

use sha2::{Digest, Sha256};

use crate::id::OrgId;

/// What is remembered of requests with an `Idempotency-Key`, of all organisations.
pub const IDEMPOTENCY: &str = "idempotency/";

/// What a key below [`IDEMPOTENCY`] holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// The answer: see [`idempotency`].
    Answer,
    /// The same for other regions: see [`remembered`].
    Told,
}

/// Whose outcome a key holds, and which.
pub fn parse_outcome(key: &str) -> Option<(OrgId, Outcome)> {
    let (org, rest) = key.strip_prefix(IDEMPOTENCY)?.split_once('/')?;
    let outcome = match rest.starts_with("n/") {
        true => Outcome::Told,
        false => Outcome::Answer,
    };
    Some((org.parse().ok()?, outcome))
}

/// What was answered to a request with an `Idempotency-Key`. The key is the caller's text, so
/// its hash stands here.
pub fn idempotency(org: OrgId, key: &str) -> String {
    format!("{IDEMPOTENCY}{org}/{}", hex::encode(Sha256::digest(key)))
}

/// The same, by the hash that stands in the key: 64 hexadecimal digits.
pub fn idempotency_by_hash(org: OrgId, hash: &str) -> Option<String> {
    let is_hash = hash.len() == 64 && hash.bytes().all(|b| b.is_ascii_hexdigit());
    is_hash.then(|| format!("{IDEMPOTENCY}{org}/{hash}"))
}

/// What was answered to the request that made a version, for other regions.
pub fn remembered(org: OrgId, n: u64) -> String {
    format!("{IDEMPOTENCY}{org}/n/{n:020}")
}

/// All remembered answers of an organisation.
pub fn idempotency_of(org: OrgId) -> String {
    format!("{IDEMPOTENCY}{org}/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_callers_text_cannot_shape_a_key() {
        let org = OrgId::from_bits(1);
        let key = idempotency(org, "../../live/head/x");
        assert_eq!(key.matches('/').count(), 2);
        assert!(key.starts_with(&idempotency_of(org)));
        assert!(idempotency(org, &"x".repeat(10_000)).len() < 200);
        let hash = key.rsplit('/').next().unwrap();
        assert_eq!(idempotency_by_hash(org, hash), Some(key.clone()));
        let foreign = format!("{}/x", &hash[2..]);
        for bad in ["", "n/00000000000000000001", &hash[1..], &foreign] {
            assert_eq!(idempotency_by_hash(org, bad), None, "{bad}");
        }
        assert!(remembered(org, 7).starts_with(&idempotency_of(org)));
        assert_eq!(parse_outcome(&key), Some((org, Outcome::Answer)));
        assert_eq!(
            parse_outcome(&remembered(org, 7)),
            Some((org, Outcome::Told))
        );
        assert_eq!(parse_outcome("idempotency/x/n/1"), None);
    }
}
