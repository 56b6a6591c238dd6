//! What nodes say to each other: frames of [`proto::wire`] on a mutually authenticated stream.
//!
//! The side that dials begins with [`PeerHello`], the other answers [`PeerWelcome`], each with the
//! highest protocol that it speaks; both go on with the lower one. Then either side sends
//! [`PeerMessage`]s whenever it has something to say.

use proto::wire::{self, Message};
use serde::{Deserialize, Serialize};

use crate::limits::Opener;
use crate::limits::exchange::TokenBatch;

/// The protocol that this program speaks.
pub const PROTOCOL: u16 = 4;
/// The protocol since which nodes tell each other which secrets are over.
pub const FACTS_PROTOCOL: u16 = 2;
/// The protocol since which they compare their wall clocks.
pub const CLOCK_PROTOCOL: u16 = 3;
/// The protocol since which they tell each other whose callers wait for tokens.
pub const HELD_PROTOCOL: u16 = 3;
/// The protocol since which they write slots for each other.
pub const SLOTS_PROTOCOL: u16 = 4;
/// Largest frame of a peer that is known, in bytes.
pub const FRAME_BYTES_MAX: usize = 4 * 1_024 * 1_024;

/// Who dials.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerHello {
    /// The highest protocol that it speaks.
    pub protocol: u16,
    /// Its name, which its certificate must name too.
    pub node: String,
    /// Its region; nodes of another one are no peers.
    pub region: String,
    /// This start of it.
    pub incarnation: Opener,
    /// Where it can be dialled, `host:port`.
    pub address: String,
}

impl Message for PeerHello {
    const SCHEMA: u16 = wire::SCHEMA_PEER_HELLO;
}

/// The answer to a [`PeerHello`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerWelcome {
    /// The highest protocol that the answering node speaks.
    pub protocol: u16,
    /// This start of it.
    pub incarnation: Opener,
    /// What happens next.
    pub verdict: Verdict,
}

/// What becomes of a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    /// It is the link of this pair.
    Linked,
    /// Of a pair the node whose name sorts first dials; it has heard the knock and will.
    CallBack,
    /// Why the caller is sent away.
    Refused(String),
}

impl Message for PeerWelcome {
    const SCHEMA: u16 = wire::SCHEMA_PEER_WELCOME;
}

/// Anything said on a link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PeerMessage {
    /// A sign of life.
    Beat,
    /// About tokens.
    Tokens(TokenBatch),
    /// A leaf or root of a configuration is wanted.
    WantLeaf {
        /// Names the answer.
        ask: u64,
        /// Its key in the store.
        key: String,
    },
    /// The answer to it.
    Leaf {
        /// Which one.
        ask: u64,
        /// As the store holds it; `None` from a peer that does not have it.
        packed: Option<Vec<u8>>,
    },
    /// What facts a node holds on secrets that are over; since protocol 2, as the next two.
    HoldFacts {
        /// Equal for equal facts.
        digest: [u8; 32],
        /// How long ago they were known to be all there are, in milliseconds; 0 with the store at
        /// hand, the largest number for never.
        age_ms: u64,
    },
    /// A node without the store asks a peer for its facts.
    WantFacts {
        /// The last key of the page before.
        after: Option<String>,
    },
    /// The answer to it.
    Facts(FactsPage),
    /// What does your wall clock show? Since protocol 3, as its answer.
    AskTime {
        /// When it was asked, on the clock of who asks; it comes back as it is.
        asked_ns: u64,
    },
    /// The answer to it.
    Time {
        /// When it was asked.
        asked_ns: u64,
        /// Nanoseconds since 1970-01-01 in UTC.
        unix_ns: u64,
    },
    /// A node that the store does not answer wants slots of a concurrency limit written. Since
    /// protocol 4, as its answer.
    WriteSlots {
        /// Names the answer.
        ask: u64,
        /// The key in the store.
        key: String,
        /// The revision that it must have; none: it must be absent.
        expected: Option<i64>,
        /// The new value; none deletes the key.
        next: Option<Vec<u8>>,
    },
    /// The answer to it.
    SlotsWritten {
        /// Which one.
        ask: u64,
        /// What became of it.
        written: SlotsWritten,
    },
}

/// What became of slots that a peer was to write.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SlotsWritten {
    /// They are written, at this revision of the store.
    Committed {
        /// The revision.
        revision: i64,
    },
    /// The key has another revision; nothing was written.
    Conflict {
        /// The revision of the store.
        revision: i64,
        /// Its value and revision; none where it is absent.
        found: Option<(Vec<u8>, i64)>,
    },
    /// The peer does not reach the store either, or does not know what became of it.
    Unreached,
}

/// Facts of a node on secrets that are over, from some key on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FactsPage {
    /// In the order of their keys.
    pub facts: Vec<HeldFact>,
    /// Whether there are more after these.
    pub more: bool,
    /// Of all facts of the node.
    pub digest: [u8; 32],
    /// How long ago they were known to be all there are, as in [`PeerMessage::HoldFacts`].
    pub age_ms: u64,
}

/// A fact as the store holds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldFact {
    /// Its key in the store.
    pub key: String,
    /// Its value.
    pub value: Vec<u8>,
}

impl Message for PeerMessage {
    const SCHEMA: u16 = wire::SCHEMA_PEER_MESSAGE;
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The bytes of each message as the first release sends them. When this fails, the layout
    /// changed: nodes of two releases run side by side, so raise [`PROTOCOL`] and keep this form.
    #[test]
    fn the_messages_have_these_bytes() {
        let incarnation = Opener { node: 1, boot: 2 };
        let hello = PeerHello {
            protocol: 1,
            node: "gw-1".into(),
            region: "eu".into(),
            incarnation,
            address: "a:1".into(),
        };
        let welcome = PeerWelcome {
            protocol: 1,
            incarnation,
            verdict: Verdict::CallBack,
        };
        let check = |bytes: Vec<u8>, expected: &str| assert_eq!(hex::encode(bytes), expected);
        check(
            wire::encode(&hello).unwrap(),
            "525257310100080000000f010467772d3102657501020361\
             3a31",
        );
        check(
            wire::encode(&welcome).unwrap(),
            "52525731010009000000040101\
             0201",
        );
        check(
            wire::encode(&PeerMessage::Beat).unwrap(),
            "5252573101001f0000000100",
        );
        let after = Some("k".into());
        let want = wire::encode(&PeerMessage::WantFacts { after }).unwrap();
        check(want, "5252573101001f000000040501016b");
        let hold = PeerMessage::HoldFacts {
            digest: [7; 32],
            age_ms: 5,
        };
        let digest = "07".repeat(32);
        check(
            wire::encode(&hold).unwrap(),
            &format!("5252573101001f0000002204{digest}05"),
        );
        let ask = PeerMessage::AskTime { asked_ns: 7 };
        check(wire::encode(&ask).unwrap(), "5252573101001f000000020707");
        let time = PeerMessage::Time {
            asked_ns: 7,
            unix_ns: 9,
        };
        check(wire::encode(&time).unwrap(), "5252573101001f00000003080709");
        let write = PeerMessage::WriteSlots {
            ask: 7,
            key: "k".into(),
            expected: Some(9),
            next: Some(b"v".to_vec()),
        };
        let write = wire::encode(&write).unwrap();
        check(write, "5252573101001f000000090907016b0112010176");
        let written = |written| wire::encode(&PeerMessage::SlotsWritten { ask: 7, written });
        let found = Some((b"v".to_vec(), 5));
        let conflict = written(SlotsWritten::Conflict { revision: 9, found });
        check(conflict.unwrap(), "5252573101001f000000080a0701120101760a");
        let committed = written(SlotsWritten::Committed { revision: 9 });
        check(committed.unwrap(), "5252573101001f000000040a070012");
        let unreached = written(SlotsWritten::Unreached);
        check(unreached.unwrap(), "5252573101001f000000030a0702");
        let facts = PeerMessage::Facts(FactsPage {
            facts: vec![HeldFact {
                key: "k".into(),
                value: b"v".to_vec(),
            }],
            more: true,
            digest: [7; 32],
            age_ms: 5,
        });
        check(
            wire::encode(&facts).unwrap(),
            &format!("5252573101001f000000280601016b017601{digest}05"),
        );
    }

    fn opener() -> impl Strategy<Value = Opener> {
        any::<(u64, u64)>().prop_map(|(node, boot)| Opener { node, boot })
    }

    fn bytes(most: usize) -> impl Strategy<Value = Vec<u8>> {
        proptest::collection::vec(any::<u8>(), 0..most)
    }

    fn page() -> impl Strategy<Value = FactsPage> {
        let fact = (".{0,20}", bytes(40)).prop_map(|(key, value)| HeldFact { key, value });
        let facts = proptest::collection::vec(fact, 0..5);
        let rest = any::<(bool, [u8; 32], u64)>();
        (facts, rest).prop_map(|(facts, (more, digest, age_ms))| FactsPage {
            facts,
            more,
            digest,
            age_ms,
        })
    }

    fn message() -> impl Strategy<Value = PeerMessage> {
        let want = |(ask, key)| PeerMessage::WantLeaf { ask, key };
        let leaf = |(ask, packed)| PeerMessage::Leaf { ask, packed };
        let hold = |(digest, age_ms)| PeerMessage::HoldFacts { digest, age_ms };
        let time = |(asked_ns, unix_ns)| PeerMessage::Time { asked_ns, unix_ns };
        let write = |(ask, key, expected, next)| PeerMessage::WriteSlots {
            ask,
            key,
            expected,
            next,
        };
        let conflict = |(ask, revision, found)| PeerMessage::SlotsWritten {
            ask,
            written: SlotsWritten::Conflict { revision, found },
        };
        let value = || proptest::option::of(bytes(40));
        let held = proptest::option::of((bytes(40), any::<i64>()));
        prop_oneof![
            (any::<u64>(), ".{0,40}", any::<Option<i64>>(), value()).prop_map(write),
            (any::<u64>(), any::<i64>(), held).prop_map(conflict),
            Just(PeerMessage::Beat),
            Just(PeerMessage::Tokens(TokenBatch::default())),
            (any::<u64>(), ".{0,40}").prop_map(want),
            (any::<u64>(), proptest::option::of(bytes(60))).prop_map(leaf),
            any::<([u8; 32], u64)>().prop_map(hold),
            proptest::option::of(".{0,40}").prop_map(|after| PeerMessage::WantFacts { after }),
            page().prop_map(PeerMessage::Facts),
            any::<u64>().prop_map(|asked_ns| PeerMessage::AskTime { asked_ns }),
            any::<(u64, u64)>().prop_map(time),
        ]
    }

    fn verdict() -> impl Strategy<Value = Verdict> {
        prop_oneof![
            Just(Verdict::Linked),
            Just(Verdict::CallBack),
            ".{0,40}".prop_map(Verdict::Refused),
        ]
    }

    /// Comes as it was sent; a part of it is no message, and changed it is another one or none.
    fn passes<M: Message + PartialEq + std::fmt::Debug>(message: &M, (at, byte): (usize, u8)) {
        let mut frame = wire::encode(message).unwrap();
        assert_eq!(wire::decode::<M>(&frame).unwrap(), *message);
        for end in 0..frame.len() {
            assert!(wire::decode::<M>(&frame[..end]).is_err(), "{end} bytes");
        }
        let at = at % frame.len();
        frame[at] = byte;
        is_read_or_refused::<M>(&frame);
    }

    /// What can be read of a frame is a message, and the same one after another passage.
    fn is_read_or_refused<M: Message + PartialEq + std::fmt::Debug>(frame: &[u8]) {
        if let Ok(read) = wire::decode::<M>(frame) {
            let again = wire::encode(&read).unwrap();
            assert_eq!(wire::decode::<M>(&again).unwrap(), read);
        }
    }

    proptest! {
        #[test]
        fn every_message_comes_as_it_was_sent_and_a_changed_one_is_no_panic(
            message in message(),
            (hello, verdict) in ((any::<u16>(), ".{0,20}", ".{0,20}", ".{0,20}"), verdict()),
            incarnation in opener(),
            change in any::<(usize, u8)>(),
        ) {
            passes(&message, change);
            let (protocol, node, region, address) = hello;
            passes(&PeerWelcome { protocol, incarnation, verdict }, change);
            passes(&PeerHello { protocol, node, region, incarnation, address }, change);
        }

        #[test]
        fn any_payload_is_a_message_or_an_error(payload in bytes(200)) {
            // The heads are those of frames that are right.
            let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
            let of = |schema: u16| {
                let head = [&b"RRW1\x01"[..], &schema.to_be_bytes()[..], &length[..]].concat();
                [head, payload.clone()].concat()
            };
            is_read_or_refused::<PeerHello>(&of(PeerHello::SCHEMA));
            is_read_or_refused::<PeerWelcome>(&of(PeerWelcome::SCHEMA));
            is_read_or_refused::<PeerMessage>(&of(PeerMessage::SCHEMA));
        }
    }
}
