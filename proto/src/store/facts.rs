//! Raising the facts of retired secrets in a store: what is to hold is joined with what is stored,
//! on a compare with it, and never lowers it.

use bytes::Bytes;

use super::{Compare, KeyValue, Op, Store, StoreError, Txn, TxnOutcome};
use crate::id::{CredentialId, OrgId};
use crate::keys;
use crate::retired::Retired;

/// Times that a fact is raised again because somebody else wrote it meanwhile.
const RAISES_MAX: usize = 10;

/// A stored fact makes no sense.
#[derive(Debug, thiserror::Error)]
#[error("{key} cannot be read: {error}")]
pub struct UnreadableFact {
    /// Where it is.
    pub key: String,
    /// What is wrong with it.
    pub error: serde_json::Error,
}

/// Why a fact was not raised.
#[derive(Debug, thiserror::Error)]
pub enum RaiseError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What is stored makes no sense.
    #[error(transparent)]
    Unreadable(#[from] UnreadableFact),
}

/// How a fact rises: `raise` makes it of the one that is stored at `key`. `None` where that holds
/// already.
///
/// # Errors
/// What is stored cannot be read.
pub fn raising(
    key: &str,
    stored: Option<&KeyValue>,
    raise: impl FnOnce(Option<Retired>) -> Retired,
) -> Result<Option<(Compare, Op)>, UnreadableFact> {
    let before = stored.map(|pair| serde_json::from_slice::<Retired>(&pair.value));
    let before = before.transpose().map_err(|error| UnreadableFact {
        key: key.to_owned(),
        error,
    })?;
    let raised = raise(before.clone());
    if before.as_ref() == Some(&raised) {
        return Ok(None);
    }
    let compare = match stored {
        None => Compare::Absent(key.to_owned()),
        Some(pair) => Compare::ModRevision(key.to_owned(), pair.mod_revision),
    };
    // A struct of texts and numbers: serialising into memory cannot fail.
    let value = Bytes::from(serde_json::to_vec(&raised).unwrap_or_default());
    Ok(Some((compare, Op::put(key.to_owned(), value))))
}

/// Raises the facts of an organisation to these, one after the other.
///
/// # Errors
/// The store failed, or holds a fact that cannot be read; what was raised stays.
pub async fn raise(
    store: &dyn Store,
    org: OrgId,
    facts: Vec<(CredentialId, Retired)>,
) -> Result<(), RaiseError> {
    for (credential, fact) in facts {
        raise_one(store, &keys::retired(org, credential), &fact).await?;
    }
    Ok(())
}

async fn raise_one(store: &dyn Store, key: &str, fact: &Retired) -> Result<(), RaiseError> {
    for _ in 0..RAISES_MAX {
        let stored = store.get(key).await?.value;
        let joined = |before| fact.clone().joined(before);
        let Some((compare, put)) = raising(key, stored.as_ref(), joined)? else {
            return Ok(());
        };
        let txn = Txn {
            compares: vec![compare],
            ops: vec![put],
            or_read: Vec::new(),
        };
        if let TxnOutcome::Committed(_) = store.txn(txn).await? {
            return Ok(());
        }
    }
    Err(StoreError::Unavailable(format!("{key} changes all the time")).into())
}
