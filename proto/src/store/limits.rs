//! What no store accepts, checked before either of them is asked.
//!
//! The bounds are etcd's defaults with room for its framing and our key prefix: a request of
//! 1.5 MiB with at most 128 entries a list. One place refuses for both stores, so that a
//! transaction which the embedded store takes never turns out too large on the day a cluster is
//! introduced.

use std::collections::HashSet;
use std::time::Duration;

use super::{Compare, LeaseId, Op, Range, Revision, StoreError, Txn};

/// Entries allowed in each list of a [`Txn`] (etcd's default is 128; we leave room).
pub const TXN_OPS_MAX: usize = 120;

/// Largest value and largest sum of values of one transaction, in bytes (etcd: 1.5 MiB a request).
///
/// Values of compares count like those of puts: they travel in the same request.
pub const TXN_BYTES_MAX: usize = 1_400_000;

/// Longest key, in bytes.
pub const KEY_BYTES_MAX: usize = 1_000;

/// Largest sum of all keys named by one transaction, in bytes.
///
/// With [`TXN_BYTES_MAX`] this leaves 52 KB of etcd's 1.5 MiB for its framing and our prefix, which
/// is 140 bytes for each of 360 entries.
pub const TXN_KEY_BYTES_MAX: usize = 120_000;

/// Keys of one page at most.
pub const PAGE_KEYS_MAX: usize = 1_000;

/// Longest time to live of a lease. A lease that outlives its owner by days protects nothing.
pub const LEASE_TTL_MAX: Duration = Duration::from_secs(30 * 24 * 3600);

/// Refuses keys that a store cannot hold.
pub fn check_key(key: &str) -> Result<(), StoreError> {
    if key.is_empty() {
        return Err(StoreError::Invalid("the key is empty".into()));
    }
    check_key_len(key)
}

/// Refuses more keys than one call reads, and keys that a store cannot hold.
pub fn check_keys(keys: &[String]) -> Result<(), StoreError> {
    check_count("keys", keys.len())?;
    keys.iter().try_for_each(|key| check_key(key))
}

/// Refuses a transaction that breaks a bound, names a key twice in its ops, or compares with what
/// can never be.
pub fn check_txn(txn: &Txn) -> Result<(), StoreError> {
    check_count("compares", txn.compares.len())?;
    check_count("ops", txn.ops.len())?;
    check_count("or_read", txn.or_read.len())?;
    let mut size = TxnSize::default();
    for compare in &txn.compares {
        check_compare(compare, &mut size)?;
    }
    let mut changed = HashSet::with_capacity(txn.ops.len());
    for op in &txn.ops {
        let key = check_op(op, &mut size)?;
        if !changed.insert(key) {
            return Err(StoreError::Invalid(format!(
                "key {key:?} is named by two ops"
            )));
        }
    }
    for key in &txn.or_read {
        size.add(key, 0)?;
    }
    size.check()
}

/// Refuses a range without a limit, beyond revision zero, or with an overlong key.
pub fn check_range(range: &Range) -> Result<(), StoreError> {
    check_key_len(&range.prefix)?;
    check_key_len(range.after.as_deref().unwrap_or_default())?;
    if range.limit == 0 {
        return Err(StoreError::Invalid("a range of no keys".into()));
    }
    range.at.map_or(Ok(()), check_revision)
}

/// Refuses a watch that begins before the first revision (etcd takes zero for "from now on").
pub fn check_watch(prefix: &str, from: Revision) -> Result<(), StoreError> {
    check_key_len(prefix)?;
    check_revision(from)
}

/// Refuses revisions that no store ever has.
pub fn check_revision(revision: Revision) -> Result<(), StoreError> {
    if revision.0 < 1 {
        return Err(StoreError::Invalid(format!(
            "revision {revision} is below 1"
        )));
    }
    Ok(())
}

/// Refuses a time to live of zero or above [`LEASE_TTL_MAX`].
pub fn check_ttl(ttl: Duration) -> Result<(), StoreError> {
    if ttl.is_zero() || ttl > LEASE_TTL_MAX {
        return Err(StoreError::Invalid(format!(
            "a lease lives more than 0 and at most {} s, not {} s",
            LEASE_TTL_MAX.as_secs(),
            ttl.as_secs()
        )));
    }
    Ok(())
}

/// Refuses names that no lease ever has (etcd takes zero for "no lease").
pub fn check_lease(lease: LeaseId) -> Result<(), StoreError> {
    if lease.0 < 1 {
        Err(StoreError::LeaseNotFound(lease))
    } else {
        Ok(())
    }
}

fn check_key_len(key: &str) -> Result<(), StoreError> {
    if key.len() > KEY_BYTES_MAX {
        return Err(StoreError::TooLarge(format!(
            "a key of {} bytes, at most {KEY_BYTES_MAX} are allowed",
            key.len()
        )));
    }
    Ok(())
}

fn check_count(list: &str, count: usize) -> Result<(), StoreError> {
    if count > TXN_OPS_MAX {
        return Err(StoreError::TooLarge(format!(
            "{count} entries in {list}, at most {TXN_OPS_MAX} are allowed"
        )));
    }
    Ok(())
}

fn check_compare(compare: &Compare, size: &mut TxnSize) -> Result<(), StoreError> {
    match compare {
        Compare::Absent(key) | Compare::Present(key) => size.add(key, 0),
        Compare::ModRevision(key, revision) => {
            check_revision(*revision)?;
            size.add(key, 0)
        }
        Compare::Value(key, value) => size.add(key, value.len()),
    }
}

fn check_op<'a>(op: &'a Op, size: &mut TxnSize) -> Result<&'a str, StoreError> {
    match op {
        Op::Put { key, value, lease } => {
            if let Some(lease) = lease {
                check_lease(*lease)?;
            }
            size.add(key, value.len())?;
            Ok(key)
        }
        Op::Delete(key) => {
            size.add(key, 0)?;
            Ok(key)
        }
    }
}

/// The running size of a transaction; the lists are bounded, so the sums cannot overflow.
#[derive(Default)]
struct TxnSize {
    key_bytes: usize,
    value_bytes: usize,
}

impl TxnSize {
    fn add(&mut self, key: &str, value_bytes: usize) -> Result<(), StoreError> {
        check_key(key)?;
        self.key_bytes = self.key_bytes.saturating_add(key.len());
        self.value_bytes = self.value_bytes.saturating_add(value_bytes);
        Ok(())
    }

    fn check(&self) -> Result<(), StoreError> {
        let (what, bytes, bytes_max) = if self.value_bytes > TXN_BYTES_MAX {
            ("values", self.value_bytes, TXN_BYTES_MAX)
        } else if self.key_bytes > TXN_KEY_BYTES_MAX {
            ("keys", self.key_bytes, TXN_KEY_BYTES_MAX)
        } else {
            return Ok(());
        };
        Err(StoreError::TooLarge(format!(
            "{bytes} bytes of {what} in one transaction, at most {bytes_max} are allowed"
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn txn(ops: Vec<Op>) -> Txn {
        Txn {
            ops,
            ..Txn::default()
        }
    }

    fn puts(count: usize, key_bytes: usize, value_bytes: usize) -> Vec<Op> {
        let pad = "k".repeat(key_bytes.saturating_sub(4));
        (0..count)
            .map(|n| Op::put(format!("{pad}{n:04}"), vec![0; value_bytes]))
            .collect()
    }

    #[test]
    fn a_txn_is_refused_beyond_each_bound_and_taken_at_it() {
        let check = |what: &str, txn: Txn, fits: bool| {
            assert_eq!(check_txn(&txn).is_ok(), fits, "{what}");
            if let Err(error) = check_txn(&txn) {
                assert!(matches!(error, StoreError::TooLarge(_)), "{what}: {error}");
            }
        };
        check("no entry at all", Txn::default(), true);
        check("as many ops as allowed", txn(puts(TXN_OPS_MAX, 4, 1)), true);
        check("one op more", txn(puts(TXN_OPS_MAX + 1, 4, 1)), false);
        let absent = |n| vec![Compare::Absent("k".into()); n];
        let compares = |n| Txn {
            compares: absent(n),
            ..Txn::default()
        };
        check("as many compares as allowed", compares(TXN_OPS_MAX), true);
        check("one compare more", compares(TXN_OPS_MAX + 1), false);
        let reads = |n| Txn {
            or_read: vec!["k".into(); n],
            ..Txn::default()
        };
        check("as many reads as allowed", reads(TXN_OPS_MAX), true);
        check("one read more", reads(TXN_OPS_MAX + 1), false);
        check("the largest value", txn(puts(1, 4, TXN_BYTES_MAX)), true);
        check("a larger value", txn(puts(1, 4, TXN_BYTES_MAX + 1)), false);
        check("the largest sum", txn(puts(2, 4, TXN_BYTES_MAX / 2)), true);
        check(
            "a larger sum",
            txn(puts(2, 4, TXN_BYTES_MAX / 2 + 1)),
            false,
        );
        let mut compared = txn(puts(1, 4, TXN_BYTES_MAX));
        compared.compares = vec![Compare::Value("k".into(), "x".into())];
        check("the value of a compare counts", compared, false);
        check("the longest key", txn(puts(1, KEY_BYTES_MAX, 1)), true);
        check("a longer key", txn(puts(1, KEY_BYTES_MAX + 1, 1)), false);
        let mut keys = txn(puts(TXN_OPS_MAX, KEY_BYTES_MAX, 1));
        check("the largest sum of keys", keys.clone(), true);
        keys.or_read = vec!["k".into()];
        check("a larger sum of keys", keys, false);
    }

    #[test]
    fn what_makes_no_sense_is_invalid() {
        let check = |what: &str, result: Result<(), StoreError>| {
            assert!(
                matches!(result, Err(StoreError::Invalid(_))),
                "{what}: {result:?}"
            );
        };
        check("an empty key", check_key(""));
        check(
            "a put of an empty key",
            check_txn(&txn(vec![Op::put("", "v")])),
        );
        check(
            "a delete of an empty key",
            check_txn(&txn(vec![Op::Delete(String::new())])),
        );
        let twice = vec![Op::put("a", "1"), Op::Delete("a".into())];
        check("one key in two ops", check_txn(&txn(twice)));
        let zero = Compare::ModRevision("a".into(), Revision(0));
        check(
            "a key last changed at 0",
            check_txn(&Txn {
                compares: vec![zero],
                ..Txn::default()
            }),
        );
        let range = Range {
            prefix: String::new(),
            after: None,
            limit: 0,
            at: None,
        };
        check("a range of no keys", check_range(&range));
        check(
            "a range at 0",
            check_range(&Range {
                limit: 1,
                at: Some(Revision(0)),
                ..range
            }),
        );
        check("a watch from 0", check_watch("", Revision(0)));
        check("a lease of no time", check_ttl(Duration::ZERO));
        check(
            "a lease of a year",
            check_ttl(Duration::from_secs(365 * 24 * 3600)),
        );
    }

    #[test]
    fn a_lease_that_cannot_exist_is_not_found() {
        for id in [0, -1, i64::MIN] {
            let put = Op::Put {
                key: "a".into(),
                value: "1".into(),
                lease: Some(LeaseId(id)),
            };
            let expected = Err(StoreError::LeaseNotFound(LeaseId(id)));
            assert_eq!(check_txn(&txn(vec![put])), expected);
            assert_eq!(check_lease(LeaseId(id)), expected);
        }
    }
}
