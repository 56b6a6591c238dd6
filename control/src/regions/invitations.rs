//! Regions that are invited and join: a token that counts once and for some time, which the new
//! region shows with its own keys and addresses, and gets for it what makes it one of the
//! installation.
//!
//! The token opens the digest key, with which callers' keys hold in every region. That goes sealed
//! to the new region's key, so that it opens in the region that came first and nowhere else; the
//! store keeps a digest of the token. Who joined with which key is kept, for people to compare.

use std::net::IpAddr;
use std::time::Duration;

use jiff::Timestamp;
use proto::keys;
use proto::problem::Problem;
use proto::seal::{RegionPublicKey, Sealed};
use proto::signature::VerifyingKey;
use proto::store::{Compare, KeyValue, Op, Revision, Store, StoreError, Txn, TxnOutcome, load};
use proto::tree::Hash;
use serde::{Deserialize, Serialize};

use super::{base_url, is_endpoint, is_plain};

/// Most invitations that are kept, used ones included.
pub const INVITATIONS_MAX: usize = 100;
/// Most signing keys and link listeners of a region.
const LISTED_MAX: usize = 16;
/// Longest address, in bytes.
const ADDRESS_BYTES_MAX: usize = 512;
/// The code of what is wrong with a region's keys or addresses.
pub const FAULT: &str = "region";

/// What a region tells of itself, and is told of others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Introduction {
    /// What secrets for it are sealed to; names it.
    pub public: RegionPublicKey,
    /// What its versions are signed with.
    #[serde(default)]
    pub signers: Vec<VerifyingKey>,
    /// Where it is.
    pub addresses: Addresses,
}

/// Where a region is reached by others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Addresses {
    /// Base URL of its REST API.
    pub control: String,
    /// Whether that and the gateway may be `http://` although not of one machine.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub insecure: bool,
    /// Base URL of its gateway, where it has one.
    #[serde(default)]
    pub gateway: Option<String>,
    /// The link listeners of its control planes, `host:port` each.
    pub replication: Vec<String>,
}

impl Addresses {
    /// Addresses of a region: its REST API, its gateway, its link listeners. Those without TLS are
    /// faults, unless [`Addresses::though_plain`].
    pub fn new(control: String, gateway: Option<String>, replication: Vec<String>) -> Self {
        Self {
            control,
            insecure: false,
            gateway,
            replication,
        }
    }

    /// The same, with a word that they are without TLS on purpose, where one is.
    #[must_use]
    pub fn though_plain(self) -> Self {
        let insecure = !self.plain().is_empty();
        Self { insecure, ..self }
    }

    /// Those that callers' requests go to, by field.
    fn urls(&self) -> [(&'static str, Option<&String>); 2] {
        [
            ("/control", Some(&self.control)),
            ("/gateway", self.gateway.as_ref()),
        ]
    }

    /// Those under which what callers prove themselves by can be overheard.
    pub fn plain(&self) -> Vec<&'static str> {
        let is_plain = |url: &String| base_url(url).is_some_and(|url| is_plain(&url));
        let urls = self.urls().into_iter();
        let urls = urls.filter(|(_, url)| url.is_some_and(is_plain));
        urls.map(|(field, _)| field).collect()
    }

    /// What is wrong with them.
    pub fn faults(&self) -> Vec<Problem> {
        let mut faults = Vec::new();
        for (field, url) in self.urls() {
            let good = |url: &String| url.len() <= ADDRESS_BYTES_MAX && base_url(url).is_some();
            if !url.is_none_or(good) {
                let words = "must be a URL, as https://control.example.com";
                faults.push(Problem::new(field, FAULT, words));
            }
        }
        for field in self.plain().into_iter().filter(|_| !self.insecure) {
            let words = "is without TLS, and what callers prove themselves by goes there: make it \
                         https://, or say `insecure`";
            faults.push(Problem::new(field, FAULT, words));
        }
        let good = |text: &String| text.len() <= ADDRESS_BYTES_MAX && is_endpoint(text);
        let count = self.replication.len();
        if !(1..=LISTED_MAX).contains(&count) || !self.replication.iter().all(good) {
            let words = format!("must list 1 to {LISTED_MAX} link listeners, host:port each");
            faults.push(Problem::new("/replication", FAULT, words));
        }
        faults
    }
}

impl Introduction {
    /// What people compare to know that they mean the same keys and addresses: SHA-256 of all of
    /// it, in hexadecimal.
    pub fn digest(&self) -> String {
        // Texts and lists only: serialising into memory cannot fail.
        Hash::of(&serde_json::to_vec(self).unwrap_or_default()).to_string()
    }

    /// What is wrong with it.
    pub fn faults(&self) -> Vec<Problem> {
        let mut faults = Vec::new();
        if !self.public.is_well_formed() {
            let words = "holds no X25519 key of 32 bytes";
            faults.push(Problem::new("/public", FAULT, words));
        }
        let good = self.signers.iter().all(VerifyingKey::is_well_formed);
        if !good || self.signers.len() > LISTED_MAX {
            let words = format!("must be at most {LISTED_MAX} Ed25519 keys of 32 bytes");
            faults.push(Problem::new("/signers", FAULT, words));
        }
        let of_addresses = self.addresses.faults().into_iter();
        faults.extend(of_addresses.map(|fault| fault.below("/addresses")));
        faults
    }
}

/// An invitation as the store keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invitation {
    /// The region that it is for.
    pub region: String,
    /// Where the inviting region is reached.
    pub by: Addresses,
    /// When it was made.
    pub created_at: Timestamp,
    /// The token that made it, by name.
    pub created_by: String,
    /// From when on it is worth nothing.
    pub expires_at: Timestamp,
    /// Who used it.
    pub joined: Option<Joined>,
}

/// Who has used an invitation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Joined {
    /// When.
    pub at: Timestamp,
    /// From where, where that is known.
    pub source: Option<IpAddr>,
    /// The region.
    pub region: Introduction,
}

/// What a region that joins is given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Admission {
    /// The region that is home.
    pub home: String,
    /// The installation's digest key, sealed to the region that joins, for the invitation's id.
    pub digest_key: Sealed,
    /// The invitation's id.
    pub invitation: String,
    /// Whether regions keep only what is for them (`regions.content_by_region`).
    pub content_by_region: bool,
    /// All other regions.
    pub regions: Vec<Introduction>,
}

/// Why a region was not invited, or does not join.
#[derive(Debug, thiserror::Error)]
pub enum InvitationError {
    /// No such invitation.
    #[error("there is no such invitation")]
    Unknown,
    /// It was used by another key.
    #[error("it was used already")]
    Used(Box<Joined>),
    /// It is over.
    #[error("it was valid until {0}")]
    Expired(Timestamp),
    /// A region of this name has joined.
    #[error("a region of this name has joined already")]
    Taken,
    /// Too many are kept.
    #[error("there are {INVITATIONS_MAX} invitations; withdraw those that are done with")]
    TooMany,
    /// The store failed, or holds what cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn decode(pair: &KeyValue) -> Result<Invitation, StoreError> {
    let decoded = serde_json::from_slice(&pair.value);
    decoded.map_err(|error| StoreError::Corrupt(format!("{}: {error}", pair.key)))
}

fn put(key: String, invitation: &Invitation) -> Result<Op, StoreError> {
    let value = serde_json::to_vec(invitation);
    let value = value.map_err(|error| StoreError::Invalid(error.to_string()))?;
    Ok(Op::Put {
        key,
        value: value.into(),
        lease: None,
    })
}

/// Every invitation with its id.
///
/// # Errors
/// The store failed, or holds what cannot be read.
pub async fn all(store: &dyn Store) -> Result<Vec<(String, Invitation)>, StoreError> {
    let mut pairs = Vec::new();
    load::list(store, keys::INVITATIONS, None, |pair| pairs.push(pair)).await?;
    let id = |pair: &KeyValue| pair.key.strip_prefix(keys::INVITATIONS).map(str::to_owned);
    let read = |pair: KeyValue| Ok((id(&pair).unwrap_or_default(), decode(&pair)?));
    pairs.into_iter().map(read).collect()
}

/// Keeps a new invitation; what has been over for `forgotten_after` makes room.
///
/// # Errors
/// [`InvitationError`]; nothing was changed but for what made room.
pub async fn keep(
    store: &dyn Store,
    id: &str,
    invitation: &Invitation,
    forgotten_after: Duration,
) -> Result<(), InvitationError> {
    let mut kept = 0;
    for (id, old) in all(store).await? {
        let over_s = invitation.created_at.as_second() - old.expires_at.as_second();
        let is_over = u64::try_from(over_s).is_ok_and(|over| over > forgotten_after.as_secs());
        if old.joined.is_none() && is_over {
            let ops = vec![Op::Delete(keys::invitation(&id))];
            store
                .txn(Txn {
                    ops,
                    ..Txn::default()
                })
                .await?;
        } else {
            kept += 1;
        }
    }
    if kept >= INVITATIONS_MAX {
        return Err(InvitationError::TooMany);
    }
    let made = store.txn(Txn {
        compares: vec![Compare::Absent(keys::joined(&invitation.region))],
        ops: vec![put(keys::invitation(id), invitation)?],
        or_read: Vec::new(),
    });
    match made.await? {
        TxnOutcome::Committed(_) => Ok(()),
        TxnOutcome::Conflict(_) => Err(InvitationError::Taken),
    }
}

/// An invitation, and the revision at which it was last changed.
///
/// # Errors
/// [`InvitationError`].
pub async fn read(store: &dyn Store, id: &str) -> Result<(Invitation, Revision), InvitationError> {
    let found = store.get(&keys::invitation(id)).await?;
    let pair = found.value.ok_or(InvitationError::Unknown)?;
    Ok((decode(&pair)?, pair.mod_revision))
}

/// The invitation with this id, while somebody may use it.
///
/// # Errors
/// [`InvitationError`].
pub async fn usable(
    store: &dyn Store,
    id: &str,
    now: Timestamp,
) -> Result<Invitation, InvitationError> {
    let (invitation, _) = read(store, id).await?;
    match now < invitation.expires_at {
        true => Ok(invitation),
        false => Err(InvitationError::Expired(invitation.expires_at)),
    }
}

/// Marks an invitation as used. The same keys at the same addresses may use it again while it is
/// valid: whoever did not get the answer asks once more. Tells also whether it was used only now.
///
/// # Errors
/// [`InvitationError`]; nothing was changed.
pub async fn use_up(
    store: &dyn Store,
    id: &str,
    joined: Joined,
) -> Result<(Invitation, bool), InvitationError> {
    let (mut invitation, revision) = read(store, id).await?;
    if joined.at >= invitation.expires_at {
        return Err(InvitationError::Expired(invitation.expires_at));
    }
    if let Some(before) = &invitation.joined {
        return match before.region == joined.region {
            true => Ok((invitation, false)),
            false => Err(InvitationError::Used(Box::new(before.clone()))),
        };
    }
    let taken = keys::joined(&invitation.region);
    invitation.joined = Some(joined.clone());
    let used = store.txn(Txn {
        compares: vec![
            Compare::ModRevision(keys::invitation(id), revision),
            Compare::Absent(taken.clone()),
        ],
        ops: vec![
            put(keys::invitation(id), &invitation)?,
            Op::Put {
                key: taken.clone(),
                value: id.to_owned().into(),
                lease: None,
            },
        ],
        or_read: vec![taken],
    });
    match used.await? {
        TxnOutcome::Committed(_) => Ok((invitation, true)),
        TxnOutcome::Conflict(seen) => match seen.value.into_iter().next().flatten() {
            Some(by) if by.value != id.as_bytes() => Err(InvitationError::Taken),
            // Somebody used or withdrew it at this moment: maybe the same region, which asks twice.
            _ => match read(store, id).await?.0 {
                known
                    if known
                        .joined
                        .as_ref()
                        .is_some_and(|by| by.region == joined.region) =>
                {
                    Ok((known, true))
                }
                known => match known.joined {
                    Some(before) => Err(InvitationError::Used(Box::new(before))),
                    None => Err(InvitationError::Unknown),
                },
            },
        },
    }
}

/// Takes an invitation back, used or not; a region of its name may be invited anew then.
///
/// # Errors
/// [`InvitationError`]; nothing was changed.
pub async fn withdraw(store: &dyn Store, id: &str) -> Result<Invitation, InvitationError> {
    let (invitation, revision) = read(store, id).await?;
    let mut ops = vec![Op::Delete(keys::invitation(id))];
    if invitation.joined.is_some() {
        ops.push(Op::Delete(keys::joined(&invitation.region)));
    }
    let gone = store.txn(Txn {
        compares: vec![Compare::ModRevision(keys::invitation(id), revision)],
        ops,
        or_read: Vec::new(),
    });
    match gone.await? {
        TxnOutcome::Committed(_) => Ok(invitation),
        TxnOutcome::Conflict(_) => Err(InvitationError::Unknown),
    }
}
