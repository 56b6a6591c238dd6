//! Leaves of newest versions that the store has lost, found and written again.
//!
//! Who serves a version does not read it again: what the store loses of it is missed by whoever
//! starts with nothing, perhaps when nobody has it any more. So it is looked for now and then. A
//! leaf is named by the hash of its content: whoever holds its objects writes the same one, and
//! only as long as the head is the one that names it.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::PoisonError;

use futures_util::future::join_all;
use proto::exposition::Families;
use proto::id::OrgId;
use proto::keys;
use proto::store::chunks::chunks;
use proto::store::{Compare, StoreError, Txn, TxnOutcome, load};
use proto::tree::{self, Hash, Leaf, OrgConfig};
use tokio::time::{Instant, timeout_at};

use super::cache::Parent;
use super::writes::leaf_ops;
use super::{PublishError, Publisher};

/// Why an organisation was not looked at, where nothing has failed.
pub const NO_TIME: &str = "there was no time left for it";
/// Organisations that are looked at at one time.
const ORGS_AT_ONCE: usize = 16;

/// What was found and done since the process started.
#[derive(Default)]
pub(super) struct Mending(Mutex<Counts>);

#[derive(Clone, Copy, Default)]
struct Counts {
    /// Lost when everything was last looked at, and not written again.
    lost: u64,
    written: u64,
}

/// What came of a look for what the store has lost.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Mended {
    /// Leaves that were written again.
    pub written: u64,
    /// Why some organisation was not seen to, though the store answers: it is full, say.
    pub unfinished: Option<StoreError>,
}

/// What was found lost, and of which organisations that was not found out, and why.
#[derive(Debug, Default)]
pub(super) struct Looked {
    pub lost: Vec<Lost>,
    /// Without an organisation: which ones there are is not known.
    pub unchecked: Vec<(Option<OrgId>, String)>,
}

impl Looked {
    fn not_at_all(why: String) -> Self {
        Self {
            unchecked: vec![(None, why)],
            ..Self::default()
        }
    }
}

/// What the store has lost of the newest version of an organisation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Lost {
    pub org: OrgId,
    /// The version.
    pub n: u64,
    pub leaves: u64,
}

impl Mending {
    fn counts(&self) -> std::sync::MutexGuard<'_, Counts> {
        // Numbers only: whole at any time.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Publisher {
    /// Looks for leaves and roots of all newest versions that the store has lost, or that have not
    /// the content of their names, and writes those again that are held here.
    ///
    /// # Errors
    /// The store did not answer. An organisation that cannot be read is passed over: everybody who
    /// follows it reports that.
    pub(crate) async fn mend(&self) -> Result<Mended, StoreError> {
        let (mut lost, mut mended) = (0, Mended::default());
        for part in self.with_heads().await?.chunks(ORGS_AT_ONCE) {
            let ended = join_all(part.iter().map(|org| self.mend_one(*org))).await;
            for (org, ended) in part.iter().zip(ended) {
                let one = match ended {
                    Err(PublishError::Store(error)) if !is_away(&error) => {
                        tracing::debug!(%org, %error, "{org} is not mended: {error}");
                        mended.unfinished.get_or_insert(error);
                        continue;
                    }
                    ended => readable(*org, ended)?.unwrap_or_default(),
                };
                lost += one.lost;
                mended.written += one.written;
            }
        }
        let mut counts = self.mending.counts();
        (counts.lost, counts.written) = (lost, counts.written + mended.written);
        Ok(mended)
    }

    /// What [`Publisher::mend`] would find until the deadline; nothing is written.
    pub(super) async fn lost(&self, deadline: Instant) -> Looked {
        let mut looked = Looked::default();
        // Whatever the time: those that it is too short for are named.
        let orgs = match self.with_heads().await {
            Ok(orgs) => orgs,
            Err(error) => return Looked::not_at_all(error.to_string()),
        };
        for part in orgs.chunks(ORGS_AT_ONCE) {
            if Instant::now() >= deadline {
                let late = part.iter().map(|org| (Some(*org), NO_TIME.to_owned()));
                looked.unchecked.extend(late);
                continue;
            }
            let look = |org: &OrgId| timeout_at(deadline, self.lost_one(*org));
            let ended = join_all(part.iter().map(look)).await;
            for (org, ended) in part.iter().zip(ended) {
                match ended {
                    Ok(Ok(one)) if one.leaves > 0 => looked.lost.push(one),
                    Ok(Ok(_)) => {}
                    Ok(Err(error)) => looked.unchecked.push((Some(*org), error.to_string())),
                    Err(_) => looked.unchecked.push((Some(*org), NO_TIME.to_owned())),
                }
            }
        }
        looked
    }

    /// The organisations that have a head.
    async fn with_heads(&self) -> Result<Vec<OrgId>, StoreError> {
        let mut orgs = Vec::new();
        load::list(&*self.store, keys::HEADS, None, |pair| {
            if let Some(keys::Live::Head(org)) = keys::Live::parse(&pair.key) {
                orgs.push(org);
            }
        })
        .await?;
        Ok(orgs)
    }

    async fn lost_one(&self, org: OrgId) -> Result<Lost, PublishError> {
        let parent = self.parent(org).await?;
        let n = parent.config.head.n;
        let leaves = self.lost_of(&parent).await?.len() as u64;
        Ok(Lost { org, n, leaves })
    }

    async fn mend_one(&self, org: OrgId) -> Result<Counts, PublishError> {
        let parent = self.parent(org).await?;
        let lost = self.lost_of(&parent).await?;
        let leaves: Vec<Leaf> = lost
            .iter()
            .filter_map(|hash| parent.config.leaf(*hash))
            .collect();
        let (mut written, n) = (0, parent.config.head.n);
        for ops in chunks(leaf_ops(org, &leaves)) {
            let count = ops.len() as u64;
            let txn = Txn {
                compares: vec![parent.unchanged.clone()],
                ops,
                or_read: Vec::new(),
            };
            match self.store.txn(txn).await? {
                TxnOutcome::Committed(_) => written += count,
                // The next look is at the version that is the newest then.
                TxnOutcome::Conflict(_) => return Err(PublishError::Moved),
            }
        }
        if !lost.is_empty() {
            let count = lost.len();
            tracing::error!(
                %org, n, lost = count, written,
                "the store had lost {count} leaves of version {n} of {org}; {written} were written \
                 again"
            );
        }
        let lost = (lost.len() as u64).saturating_sub(written);
        Ok(Counts { lost, written })
    }

    /// Leaves and roots of a newest version that the store does not have as they are named. Nothing
    /// where it is the newest no more: what it alone reached may go.
    async fn lost_of(&self, parent: &Parent) -> Result<Vec<Hash>, PublishError> {
        let config = &parent.config;
        let mut missing = self.kept_here(config).await?;
        load::list(&*self.store, &keys::leaves(config.org), None, |pair| {
            let named = keys::parse_leaf(&pair.key).map(|(_, hash)| hash);
            let named = named.filter(|hash| missing.contains(hash));
            if let Some(hash) = named.filter(|hash| tree::unpack(*hash, &pair.value).is_ok()) {
                missing.remove(&hash);
            }
        })
        .await?;
        if missing.is_empty() {
            return Ok(Vec::new());
        }
        let head = self.store.get(&keys::head(config.org)).await?.value;
        let is_newest = head.is_some_and(|pair| {
            parent.unchanged == Compare::ModRevision(pair.key, pair.mod_revision)
        });
        Ok(missing.into_iter().filter(|_| is_newest).collect())
    }

    /// What this region's store is to have of a version: all of it where it is home.
    async fn kept_here(&self, config: &OrgConfig) -> Result<BTreeSet<Hash>, PublishError> {
        let home = self.home(config.org, &config.head.epoch).await?;
        Ok(match home.region == self.region() {
            true => config.reaches().collect(),
            false => config.reaches_in(self.region()).collect(),
        })
    }

    /// What was lost and written again.
    pub fn mending_families(&self) -> Families {
        let Counts { lost, written } = *self.mending.counts();
        let mut out = Families::default();
        let help =
            "Leaves of newest versions that the store has lost and nobody could write again.";
        out.gauge("requestrocket_store_leaves_lost", help).is(lost);
        let help = "Leaves of newest versions that the store had lost and that were written again.";
        let name = "requestrocket_store_leaves_rewritten_total";
        out.counter(name, help).is(written);
        out
    }
}

fn is_away(error: &StoreError) -> bool {
    matches!(error, StoreError::Unavailable(_))
}

/// What came of an organisation; nothing of one that cannot be read.
fn readable<T>(org: OrgId, found: Result<T, PublishError>) -> Result<Option<T>, StoreError> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(PublishError::Store(error)) => Err(error),
        Err(error) => {
            tracing::debug!(%org, %error, "{org} is not compared: {error}");
            Ok(None)
        }
    }
}
