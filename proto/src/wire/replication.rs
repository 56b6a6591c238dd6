//! What the control planes of two regions say to each other: each pulls from the other what that
//! one is home to.
//!
//! Who pulls begins with [`RegionHello`] and the other answers with the `Welcome` of every link,
//! each with the highest protocol that it speaks; both go on with the lower one. Then the first
//! asks and the other, called home below, answers: one at a time, and from [`PROTOCOL_NUMBERED`] on
//! many at one time, each ask with a number that the parts of its answer name. Everything that has
//! a name by hash travels as the bytes that the store holds, so that who asked verifies what it is
//! given and a newer program's content passes through an older one.

use serde::{Deserialize, Serialize};

use super::{
    Message, SCHEMA_REGION_ANSWER, SCHEMA_REGION_ANSWER_PART, SCHEMA_REGION_ASK,
    SCHEMA_REGION_HELLO, SCHEMA_REGION_NUMBERED_ASK,
};
use crate::home::Home;
use crate::id::{CredentialId, OrgId};
use crate::shares::Grant;
use crate::tree::{Hash, Head};
use crate::version::Epoch;

/// The protocol that this program speaks.
pub const PROTOCOL: u16 = 11;
/// The first with [`Ask::SignedVersions`].
pub const PROTOCOL_SIGNED: u16 = 3;
/// The first whose followers keep a version of which some content is that of other regions alone;
/// such a one is not given to others.
pub const PROTOCOL_CUT: u16 = 4;
/// The first with [`Ask::Shares`] as it is: earlier ones told less of what is wanted.
pub const PROTOCOL_SHARES: u16 = 9;
/// The first with [`Ask::Facts`].
pub const PROTOCOL_FACTS: u16 = 7;
/// The first with [`Ask::SealedFor`].
pub const PROTOCOL_SEALED_FOR: u16 = 8;
/// The first with [`Ask::RememberedVersions`].
pub const PROTOCOL_REMEMBERED: u16 = 8;
/// The first with [`Ask::Clock`].
pub const PROTOCOL_CLOCK: u16 = 10;
/// The first with [`NumberedAsk`], [`AnswerPart`] and [`Ask::Applied`].
pub const PROTOCOL_NUMBERED: u16 = 11;
/// The lowest that it still speaks.
pub const PROTOCOL_MIN: u16 = 2;

/// A control plane of another region calls.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegionHello {
    /// The highest protocol that it speaks.
    pub protocol: u16,
    /// Its region; its certificate names the host under which that region is reached.
    pub region: String,
}

impl Message for RegionHello {
    const SCHEMA: u16 = SCHEMA_REGION_HELLO;
}

/// A version by everything that names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// The history.
    pub epoch: Epoch,
    /// The number in it.
    pub n: u64,
    /// The name.
    pub hash: Hash,
}

impl From<&Head> for Position {
    fn from(head: &Head) -> Self {
        Self {
            epoch: head.epoch.clone(),
            n: head.n,
            hash: head.hash,
        }
    }
}

/// What a follower asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ask {
    /// Which organisations have moved since the last such answer on this connection; the first one
    /// tells of all. Answered when there is something to tell, or after the wait.
    News {
        /// Longest wait, in milliseconds.
        wait_ms: u32,
        /// What the follower has stored since it last said so.
        applied: Vec<(OrgId, Position)>,
    },
    /// The versions of an organisation after one.
    Versions {
        /// The organisation.
        org: OrgId,
        /// The follower's newest version; absent when it has none.
        after: Option<Position>,
    },
    /// Leaves and roots by name.
    Leaves {
        /// The organisation.
        org: OrgId,
        /// At most [`LEAVES_MAX`].
        hashes: Vec<Hash>,
    },
    /// Sealed secrets, of every region.
    Sealed {
        /// The organisation.
        org: OrgId,
        /// Credential and seal id, at most [`SEALED_MAX`].
        names: Vec<(CredentialId, String)>,
    },
    /// The fact which region is home to an organisation, read from the store for this answer.
    Home {
        /// The organisation.
        org: OrgId,
    },
    /// As [`Ask::Versions`], with signatures. From [`PROTOCOL_SIGNED`] on.
    SignedVersions {
        /// The organisation.
        org: OrgId,
        /// The follower's newest version; absent when it has none.
        after: Option<Position>,
    },
    /// What the asking region has of limits that both share, and lacks; at most [`SHARES_MAX`].
    /// From [`PROTOCOL_SHARES`] on.
    Shares(Vec<Need>),
    /// The facts of an organisation's retired secrets that were not told on this connection, in the
    /// order of the credentials: home asks, for what was revoked elsewhere. From
    /// [`PROTOCOL_FACTS`] on.
    Facts {
        /// The organisation.
        org: OrgId,
        /// The last credential of the answer before; absent in the first ask.
        after: Option<CredentialId>,
    },
    /// Sealed secrets that nodes of a region made for another one, or may have. From
    /// [`PROTOCOL_SEALED_FOR`] on.
    SealedFor {
        /// The organisation.
        org: OrgId,
        /// Credential, seal id and region, at most [`SEALED_MAX`].
        names: Vec<(CredentialId, String, String)>,
    },
    /// As [`Ask::SignedVersions`], with what was answered to the requests that made them. From
    /// [`PROTOCOL_REMEMBERED`] on.
    RememberedVersions {
        /// The organisation.
        org: OrgId,
        /// The follower's newest version; absent when it has none.
        after: Option<Position>,
    },
    /// What time it is there. From [`PROTOCOL_CLOCK`] on.
    Clock,
    /// What the follower has stored since it last said so, told while [`Ask::News`] waits. From
    /// [`PROTOCOL_NUMBERED`] on.
    Applied(Vec<(OrgId, Position)>),
}

/// An ask among others that are not answered yet. From [`PROTOCOL_NUMBERED`] on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NumberedAsk {
    /// Names it while it has no answer.
    pub number: u64,
    /// What is asked.
    pub ask: Ask,
}

impl Message for NumberedAsk {
    const SCHEMA: u16 = SCHEMA_REGION_NUMBERED_ASK;
}

/// A part of the answer to a [`NumberedAsk`]; parts of several answers take turns, so that a short
/// one does not wait for a long one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnswerPart {
    /// Of which ask.
    pub number: u64,
    /// Whether it ends the answer.
    pub last: bool,
    /// The next bytes of the [`Answer`]'s frame.
    pub bytes: Vec<u8>,
}

impl Message for AnswerPart {
    const SCHEMA: u16 = SCHEMA_REGION_ANSWER_PART;
}

/// Most bytes in one [`AnswerPart`].
pub const PART_BYTES: usize = 32 * 1024;

/// Most meters in one [`Ask::Shares`].
pub const SHARES_MAX: usize = 1_000;

/// What a region has of the limits of one meter, and what it wants.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Need {
    /// The organisation.
    pub org: OrgId,
    /// The id of the meter, or of the proxy for its own `limits`.
    pub meter: String,
    /// Among whom, as the asking region knows it.
    pub division: u64,
    /// What it has and is to get, in millionths of the limits.
    pub fraction: u64,
    /// How much its callers ask for, in millionths of the limits.
    pub wanted: u64,
    /// The highest number of a grant of the asked region that it has heard of.
    pub heard: u64,
    /// The highest that it has taken.
    pub taken: u64,
}

/// What was given of one meter.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Given {
    /// All that is not known to be taken, in their order.
    pub grants: Vec<Grant>,
    /// The highest number of a grant of the asking region that was taken.
    pub taken: u64,
}

/// Most leaves in one ask; an answer may hold fewer, the first ones.
pub const LEAVES_MAX: usize = 64;
/// Most sealed secrets in one ask; an answer may hold fewer, the first ones.
pub const SEALED_MAX: usize = 256;

impl Message for Ask {
    const SCHEMA: u16 = SCHEMA_REGION_ASK;
}

/// What home answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// To [`Ask::News`].
    News {
        /// Whether these are all organisations that home has.
        whole: bool,
        /// Those that have moved.
        moved: Vec<Moved>,
        /// Those that home has no more.
        gone: Vec<OrgId>,
    },
    /// To [`Ask::Versions`].
    Versions(Versions),
    /// To either: home's history does not lead through the follower's version.
    Fork {
        /// The newest version of home.
        newest: Position,
    },
    /// To either: home has no such organisation.
    Unknown,
    /// To [`Ask::Leaves`]: as the store holds them, in the order asked for. One that is missing
    /// is empty.
    Leaves(Vec<Vec<u8>>),
    /// To [`Ask::Sealed`]: the regions of each with its value as the store holds it, in the order
    /// asked for. One that is missing is empty. To [`Ask::SealedFor`] the same, of the one region.
    Sealed(Vec<Vec<(String, Vec<u8>)>>),
    /// To [`Ask::Home`]: as the store holds it (JSON), if it does.
    Home(Option<Vec<u8>>),
    /// To [`Ask::SignedVersions`].
    SignedVersions {
        /// The versions.
        versions: Versions,
        /// The signature of each as the store holds it (JSON), in their order. One that is missing
        /// is empty.
        signatures: Vec<Vec<u8>>,
    },
    /// To either of the last two: the region lacks what the follower keeps of the newest version.
    NotHere,
    /// To [`Ask::Shares`]: for each meter of it, in its order.
    Shares(Vec<Given>),
    /// To [`Ask::Facts`].
    Facts {
        /// Credentials with their facts (JSON).
        facts: Vec<(CredentialId, Vec<u8>)>,
        /// Whether more follow.
        more: bool,
    },
    /// To [`Ask::RememberedVersions`].
    RememberedVersions {
        /// The versions.
        versions: Versions,
        /// As in [`Answer::SignedVersions`].
        signatures: Vec<Vec<u8>>,
        /// What is remembered of the request that made each, as the store holds it (JSON), in
        /// their order. Empty where nothing is.
        remembered: Vec<Vec<u8>>,
    },
    /// To [`Ask::Clock`].
    Clock {
        /// Microseconds since the Unix epoch.
        unix_us: i64,
    },
    /// To [`Ask::Applied`]: it is written down.
    Noted,
}

impl Message for Answer {
    const SCHEMA: u16 = SCHEMA_REGION_ANSWER;
}

/// Where an organisation stands at home.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moved {
    /// The organisation.
    pub org: OrgId,
    /// Its newest version.
    pub position: Position,
    /// The hash of the facts of its retired secrets: who has the same need not ask.
    pub facts: Hash,
    /// Its home, as this region knows it.
    pub home: Option<HomeAt>,
}

/// Which region is home, without the history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HomeAt {
    /// The epoch of the fact.
    pub epoch: Epoch,
    /// The region.
    pub region: String,
    /// The region that is to be home.
    pub sealed_to: Option<String>,
}

impl From<&Home> for HomeAt {
    fn from(home: &Home) -> Self {
        Self {
            epoch: home.epoch.clone(),
            region: home.region.clone(),
            sealed_to: home.sealed.as_ref().map(|seal| seal.to.clone()),
        }
    }
}

/// Versions that follow the one asked about, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versions {
    /// Whether the first of them follows no version that the follower has: home does not keep those
    /// between any more.
    pub snapshot: bool,
    /// The versions.
    pub versions: Vec<VersionParts>,
    /// The delta of the last version (JSON), where home has it.
    pub delta: Option<Vec<u8>>,
    /// Secrets that the last version names and the follower's does not; what is left out of a
    /// large answer is to be asked for.
    pub sealed: Vec<SealedPart>,
    /// The facts of retired secrets (JSON) that home has not told on this connection.
    pub retired: Vec<(CredentialId, Vec<u8>)>,
    /// Whether more versions follow.
    pub more: bool,
}

/// One version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionParts {
    /// Its record (JSON), which holds its head.
    pub record: Vec<u8>,
    /// Leaves and roots that it adds, as the store holds them; what is left out of a large answer
    /// is to be asked for.
    pub leaves: Vec<(Hash, Vec<u8>)>,
}

/// One sealed secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedPart {
    /// Whose.
    pub credential: CredentialId,
    /// Which.
    pub seal_id: String,
    /// The region whose nodes can open it.
    pub region: String,
    /// As the store holds it (JSON).
    pub value: Vec<u8>,
}

#[cfg(test)]
mod tests {
    use super::super::{decode, encode};
    use super::*;

    #[test]
    fn what_is_said_is_understood() {
        let position = Position {
            epoch: Epoch {
                counter: 2,
                region: "us".into(),
            },
            n: 7,
            hash: Hash::of(b"x"),
        };
        let (org, credential) = (OrgId::from_bits(1), CredentialId::from_bits(2));
        for ask in [
            Ask::News {
                wait_ms: 5,
                applied: vec![(org, position.clone())],
            },
            Ask::Versions { org, after: None },
            Ask::Home { org },
            Ask::Facts {
                org,
                after: Some(credential),
            },
            Ask::Shares(vec![Need {
                org,
                meter: "mtr_1".into(),
                division: u64::MAX,
                fraction: 333_333,
                wanted: 500_000,
                heard: 3,
                taken: 2,
            }]),
            Ask::Sealed {
                org,
                names: vec![(credential, "s".into())],
            },
            Ask::SealedFor {
                org,
                names: vec![(credential, "s".into(), "ap".into())],
            },
            Ask::RememberedVersions {
                org,
                after: Some(position.clone()),
            },
            Ask::Applied(vec![(org, position.clone())]),
        ] {
            assert_eq!(decode::<Ask>(&encode(&ask).unwrap()).unwrap(), ask);
            let numbered = NumberedAsk { number: 7, ask };
            let decoded = decode::<NumberedAsk>(&encode(&numbered).unwrap());
            assert_eq!(decoded.unwrap(), numbered);
        }
        let answer = Answer::Versions(Versions {
            versions: vec![VersionParts {
                record: b"{}".to_vec(),
                leaves: vec![(Hash::of(b"y"), vec![1, 2])],
            }],
            sealed: vec![SealedPart {
                credential,
                seal_id: "s".into(),
                region: "eu".into(),
                value: vec![3],
            }],
            retired: vec![(credential, vec![4])],
            ..Versions::default()
        });
        assert_eq!(decode::<Answer>(&encode(&answer).unwrap()).unwrap(), answer);
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_decode_or_are_refused(bytes: Vec<u8>) {
            let mut frame = encode(&Answer::Unknown).unwrap();
            frame.truncate(super::super::HEAD_BYTES);
            frame.extend_from_slice(&bytes);
            frame[7..11].copy_from_slice(&(bytes.len() as u32).to_be_bytes());
            let _ = decode::<Answer>(&frame);
        }
    }
}
