//! Entries of the audit: what was done, or tried, that makes no version of the configuration.
//!
//! The entries of an organisation in a region are a chain: each holds the hash of the one before,
//! and every version of the configuration that is made there holds how far the chain was
//! ([`Anchor`]). Who changes, removes or reorders entries has to write all later ones anew, and all
//! later versions, which other regions have too. `verify` finds where a chain breaks.
//!
//! An entry's hash is that of its bytes in the store, so that one of a newer release, of which not
//! everything is understood, is verified like any other.

pub mod signed;
pub mod verify;

use std::net::IpAddr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::id::{CredentialId, MeterId, OrgId, ProxyId, RequestId};
use crate::tree::Hash;

/// One entry, as the store holds it (JSON).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its number: 1, and one more for each.
    pub seq: u64,
    /// The hash of the one before; absent for the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<Hash>,
    /// What it says.
    #[serde(flatten)]
    pub said: Said,
}

/// What an entry says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Said {
    /// When it was done, by the clock of the control plane.
    pub at: Timestamp,
    /// Who did it: an API token's id, or a word such as `unknown`.
    pub actor: String,
    /// The address that the request came from, as the control plane saw it; the first one of its
    /// /64 for IPv6 where several requests are counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<IpAddr>,
    /// What was done.
    pub act: Act,
}

/// What was done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Act {
    /// Wrong API tokens were presented, from one source or from several.
    LoginFailed {
        /// What was wrong with them.
        why: Failure,
        /// How many requests.
        times: u64,
        /// How many sources, where it is more than the one that is named.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        sources: Option<u64>,
        /// When the last of them came.
        until: Timestamp,
    },
    /// A meter gives more than its limits for a while, or again what they say (100 percent).
    MeterRaised {
        /// The meter.
        meter_id: MeterId,
        /// What it gives, in percent of its limits.
        percent: u64,
        /// For how long, in seconds.
        seconds: u64,
    },
    /// The record of a request was read with its bodies.
    PayloadRead {
        /// The request.
        request_id: RequestId,
    },
    /// A request was to be sent through a proxy on behalf of the caller of a credential.
    TestSent {
        /// The request.
        request_id: RequestId,
        /// The proxy.
        proxy_id: ProxyId,
        /// The credential.
        credential_id: CredentialId,
    },
    /// Every secret of a credential was to end in this region at once.
    RevocationDecided {
        /// The credential.
        credential_id: CredentialId,
    },
    /// It was decided what counts after the store was restored or wiped: one of them.
    RecoveryDecided {
        /// What this node has.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        from_node: Option<String>,
        /// What the store has.
        accept_store: bool,
        /// Nothing; old changes were forgotten, so that the store has room.
        reclaim_space: bool,
    },
    /// This region was to become home to everything whose home cannot be reached.
    PromotionDecided {
        /// The region.
        region: String,
        /// Whether without a majority of the regions.
        force: bool,
        /// Instead, whether to what another region has a different history of.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        diverged: bool,
    },
    /// Another region was to become home, as planned.
    HandOverDecided {
        /// The other region.
        region: String,
    },
    /// A further region was to be invited.
    RegionInvited {
        /// Its name.
        region: String,
        /// The invitation's id.
        invitation: String,
    },
    /// A region showed the token of an invitation, and is given the digest key.
    RegionJoined {
        /// Its name.
        region: String,
        /// What its key is compared by.
        fingerprint: String,
    },
    /// An invitation was to be withdrawn.
    InvitationWithdrawn {
        /// The invitation's id.
        invitation: String,
    },
    /// The oldest entries left the store, because there are many.
    EntriesDropped {
        /// The last one that left.
        until: u64,
        /// Its hash, which the first that stays has as that of the one before.
        hash: Hash,
    },
    /// Something that a newer release writes.
    #[serde(other)]
    Unknown,
}

/// What was wrong with an API token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Failure {
    /// No organisation has it, or none has it any more.
    Unknown,
    /// Its time is over.
    Expired,
}

/// How far a chain is: its last entry (the value of `keys::audit_head`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Last {
    /// The entry's number.
    pub seq: u64,
    /// Its hash.
    pub hash: Hash,
}

/// How far the chain of a region was when a version was made there.
///
/// It stands in the version's salt, which its hash covers like everything else, and which releases
/// take as it is that know nothing of it: with a field of its own, whoever presents a wrong token
/// while a cluster is updated would make versions that nodes of before cannot read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Anchor {
    /// The region.
    pub region: String,
    /// Its last entry then.
    pub last: Last,
}

impl Anchor {
    /// The salt of a version, with this behind something random.
    pub fn salt(&self, random: &str) -> String {
        let Last { seq, hash } = self.last;
        format!("{random} {seq} {hash} {}", self.region)
    }

    /// What a salt holds; `None` where it is random only.
    pub fn of_salt(salt: &str) -> Option<Self> {
        let mut parts = salt.splitn(4, ' ').skip(1);
        let seq = parts.next()?.parse().ok()?;
        let hash = parts.next()?.parse().ok()?;
        let region = parts.next()?.to_owned();
        let last = Last { seq, hash };
        Some(Self { region, last })
    }
}

impl Last {
    /// The entry that comes next in a chain, and how far that is with it.
    pub fn next(last: Option<Self>, org: OrgId, said: Said) -> (Vec<u8>, Self) {
        let seq = last.map_or(0, |last| last.seq).saturating_add(1);
        let before = last.map(|last| last.hash);
        let entry = Entry { seq, before, said };
        // Texts and numbers only: serialising into memory cannot fail.
        let value = serde_json::to_vec(&entry).unwrap_or_default();
        let hash = hash(org, &value);
        (value, Self { seq, hash })
    }
}

/// The hash of an entry, by its bytes in the store.
pub fn hash(org: OrgId, value: &[u8]) -> Hash {
    let mut content = format!("requestrocket audit 1\n{org}\n").into_bytes();
    content.extend_from_slice(value);
    Hash::of(&content)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The form in stores that exist: a change of it breaks every chain.
    #[test]
    fn an_entry_is_written_like_this_and_read_back() {
        let said = Said {
            at: "2026-11-28T10:00:00Z".parse().unwrap(),
            actor: "unknown".into(),
            source: Some("192.0.2.7".parse().unwrap()),
            act: Act::LoginFailed {
                why: Failure::Unknown,
                times: 3,
                sources: None,
                until: "2026-11-28T10:00:59Z".parse().unwrap(),
            },
        };
        let org = OrgId::from_bits(1);
        let (value, first) = Last::next(None, org, said.clone());
        let text = concat!(
            r#"{"seq":1,"at":"2026-11-28T10:00:00Z","actor":"unknown","source":"192.0.2.7","#,
            r#""act":{"kind":"login_failed","why":"unknown","times":3,"#,
            r#""until":"2026-11-28T10:00:59Z"}}"#
        );
        assert_eq!(String::from_utf8(value.clone()).unwrap(), text);
        let read: Entry = serde_json::from_slice(&value).unwrap();
        assert_eq!((read.seq, read.before, &read.said), (1, None, &said));
        let (value, second) = Last::next(Some(first), org, said);
        let read: Entry = serde_json::from_slice(&value).unwrap();
        assert_eq!((read.seq, read.before), (2, Some(first.hash)));
        assert_ne!(second.hash, first.hash);
        assert_ne!(hash(OrgId::from_bits(2), &value), second.hash);
    }

    #[test]
    fn a_salt_holds_how_far_the_audit_was() {
        let anchor = Anchor {
            region: "eu-west 1".into(),
            last: Last {
                seq: 12,
                hash: Hash::of(b"x"),
            },
        };
        let salt = anchor.salt("a1b2");
        assert_eq!(Anchor::of_salt(&salt), Some(anchor));
        for random in ["a1b2", "", "a 1", "a 1 b c", "a x y z"] {
            assert_eq!(Anchor::of_salt(random), None, "{random}");
        }
    }

    #[test]
    fn what_a_newer_release_did_is_an_entry_too() {
        let text = r#"{"seq":1,"at":"2026-11-28T10:00:00Z","actor":"x","more":1,
                       "act":{"kind":"flown","to":"the moon"}}"#;
        let read: Entry = serde_json::from_str(text).unwrap();
        assert_eq!(read.said.act, Act::Unknown);
    }
}
