//! The binary form of what our own processes send each other and spool to disk.
//!
//! Only this module names bincode. Its upstream ended (RUSTSEC-2025-0141), so it is boxed in: a
//! frame says which format and schema its payload has, nothing is decoded above a limit, and no
//! byte may be left over. Frames come from our own processes over an authenticated link or from
//! our own files; what a caller, a target or a person can write is JSON.
//!
//! Messages are plain structs and enums without recursion: a recursive type overflows the stack on
//! hostile input, which no limit prevents.
//!
//! A frame is, with numbers in network byte order:
//!
//! | bytes | what |
//! |---|---|
//! | 4 | magic `RRW1` |
//! | 1 | format version: 1 is bincode 2 with its standard configuration |
//! | 2 | schema id of the message |
//! | 4 | payload length |
//! | … | payload |

mod block;
mod earlier;
pub mod link;
mod put;
pub mod replication;
mod stored;

use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::record::{
    FIELDS_BEFORE_ENDPOINTS, FIELDS_BEFORE_EVENTS, FIELDS_BEFORE_PAYLOAD, FIELDS_BEFORE_PRESENTED,
    FIELDS_BEFORE_REFUSED_BY, FIELDS_BEFORE_SCRUB, FIELDS_BEFORE_SENDS,
    FIELDS_BEFORE_VALUE_MISSING, Record,
};

pub use block::{Block, BlockWriter};
pub use stored::StoredRecord;

const MAGIC: [u8; 4] = *b"RRW1";
/// Format 1: bincode 2.0.1, little endian, variable-length integers. Another codec becomes 2.
const FORMAT: u8 = 1;
/// Bytes before the payload.
pub const HEAD_BYTES: usize = 11;
/// Largest payload, in bytes. A batch of 1,000 records is about 0.5 MiB.
pub const PAYLOAD_BYTES_MAX: usize = 8 * 1024 * 1024;
/// What bincode may count while it decodes one payload. It counts numbers by the width of their
/// types, up to 16 bytes, and writes small ones as a single byte: whatever fits into a frame has to
/// stay below this, or it would be sent again for ever.
const DECODED_BYTES_MAX: usize = 16 * PAYLOAD_BYTES_MAX;

// The schemas, one number each in all of the product. A number is never used again.
const SCHEMA_RECORD_BATCH_1: u16 = 1;
const SCHEMA_RECORD_BLOCK_2: u16 = 2;
const SCHEMA_RECORD_BATCH_11: u16 = 11;
const SCHEMA_RECORD_BLOCK_111: u16 = 111;
const SCHEMA_RECORD_BATCH_27: u16 = 27;
const SCHEMA_RECORD_BLOCK_28: u16 = 28;
const SCHEMA_RECORD_BATCH_24: u16 = 24;
const SCHEMA_RECORD_BLOCK_25: u16 = 25;
const SCHEMA_RECORD_BATCH_40: u16 = 40;
const SCHEMA_RECORD_BLOCK_41: u16 = 41;
const SCHEMA_RECORD_BATCH_12: u16 = 12;
const SCHEMA_RECORD_BLOCK_13: u16 = 13;
const SCHEMA_RECORD_BATCH_43: u16 = 43;
const SCHEMA_RECORD_BLOCK_44: u16 = 44;
const SCHEMA_RECORD_BATCH_48: u16 = 48;
const SCHEMA_RECORD_BLOCK_49: u16 = 49;
const SCHEMA_RECORD_BATCH: u16 = 34;
const SCHEMA_RECORD_BLOCK: u16 = 35;
/// The state of one meter key in the store; the type is the data plane's.
pub const SCHEMA_TOKEN_STATE: u16 = 3;
/// The same with a token bucket in it, which programs before it do not know.
pub const SCHEMA_BUCKET_STATE: u16 = 15;
/// The slots of one key of a concurrency limit; the type is the data plane's.
pub const SCHEMA_SLOT_STATE: u16 = 16;
/// A pause of one meter key; the type is the data plane's.
pub const SCHEMA_PAUSE: u16 = 17;
/// A meter that gives more than its limits for a while.
pub const SCHEMA_RAISE: u16 = 33;
/// A meter key that gives a part of its limits for a while; the type is the data plane's.
pub const SCHEMA_SLOW: u16 = 32;
/// A part of the configuration that a node keeps on its disk; the type is the data plane's.
pub const SCHEMA_KEPT_PART: u16 = 7;
const SCHEMA_HELLO: u16 = 4;
const SCHEMA_WELCOME: u16 = 5;
const SCHEMA_ACK: u16 = 6;
const SCHEMA_TIMED_ACK: u16 = 42;
/// Who dials a node; the type is the data plane's, as those of the two below.
pub const SCHEMA_PEER_HELLO: u16 = 8;
/// The answer of the node that was dialled.
pub const SCHEMA_PEER_WELCOME: u16 = 9;
/// What two nodes say to each other.
pub const SCHEMA_PEER_MESSAGE: u16 = 31;
/// The state of a meter key that answers have corrected; the type is the data plane's.
pub const SCHEMA_CORRECTED_STATE: u16 = 30;
/// How long ago the store had which revision; the type is the data plane's.
pub const SCHEMA_REVISION_AGES: u16 = 45;
const SCHEMA_REGION_HELLO: u16 = 18;
// 19 and 20 were these two before home could move.
const SCHEMA_REGION_ASK: u16 = 21;
const SCHEMA_REGION_ANSWER: u16 = 22;
const SCHEMA_REGION_NUMBERED_ASK: u16 = 46;
const SCHEMA_REGION_ANSWER_PART: u16 = 47;

/// A type that may travel in a frame.
pub trait Message: Serialize + DeserializeOwned {
    /// Names type and layout. A changed layout gets a new number.
    const SCHEMA: u16;

    /// Reads a payload that an earlier release wrote with another schema; `None` where this program
    /// knows none with that number.
    fn earlier(_schema: u16, _payload: &[u8]) -> Option<Result<Self, WireError>> {
        None
    }
}

/// Records of finished requests, from a node to control and in a node's spool.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct RecordBatch {
    /// The node that made them.
    pub node: String,
    /// Rises with every batch of that node's process, so that a repeated one is recognised.
    pub sequence: u64,
    /// Records that were lost since the batch before: the spool was full.
    pub dropped: u64,
    /// Oldest first. Shared, since whoever exports their traces may still hold them.
    pub records: Vec<Arc<Record>>,
}

impl Message for RecordBatch {
    const SCHEMA: u16 = SCHEMA_RECORD_BATCH;

    fn earlier(schema: u16, payload: &[u8]) -> Option<Result<Self, WireError>> {
        use earlier::EarlierBatch as Batch;
        Some(match schema {
            SCHEMA_RECORD_BATCH_1 => whole::<Batch<FIELDS_BEFORE_SENDS>>(payload).map(Self::from),
            SCHEMA_RECORD_BATCH_11 => whole::<Batch<FIELDS_BEFORE_SCRUB>>(payload).map(Self::from),
            SCHEMA_RECORD_BATCH_27 => {
                whole::<Batch<FIELDS_BEFORE_ENDPOINTS>>(payload).map(Self::from)
            }
            SCHEMA_RECORD_BATCH_24 => {
                whole::<Batch<FIELDS_BEFORE_PAYLOAD>>(payload).map(Self::from)
            }
            SCHEMA_RECORD_BATCH_40 => {
                whole::<Batch<FIELDS_BEFORE_PRESENTED>>(payload).map(Self::from)
            }
            SCHEMA_RECORD_BATCH_12 => {
                whole::<Batch<FIELDS_BEFORE_REFUSED_BY>>(payload).map(Self::from)
            }
            SCHEMA_RECORD_BATCH_43 => whole::<Batch<FIELDS_BEFORE_EVENTS>>(payload).map(Self::from),
            SCHEMA_RECORD_BATCH_48 => {
                whole::<Batch<FIELDS_BEFORE_VALUE_MISSING>>(payload).map(Self::from)
            }
            _ => return None,
        })
    }
}

/// Why bytes are not the frame that was expected.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// Fewer bytes than the head or its length field says; a spool cut by a crash ends so.
    #[error("the frame is cut: {have} of {need} bytes")]
    Cut {
        /// Bytes there are.
        have: usize,
        /// Bytes that are needed.
        need: usize,
    },
    /// Not a frame of ours.
    #[error("the bytes are not a frame")]
    Magic,
    /// Written by a newer program.
    #[error("frame format {0} is not known; this program is older than what wrote it")]
    Format(u8),
    /// Another message, or another layout of it.
    #[error("the frame holds schema {found}, expected {expected}")]
    Schema {
        /// In the frame.
        found: u16,
        /// What was asked for.
        expected: u16,
    },
    /// The payload exceeds [`PAYLOAD_BYTES_MAX`].
    #[error("the payload has {0} bytes, at most {PAYLOAD_BYTES_MAX} are allowed")]
    TooLarge(usize),
    /// The payload is not a value of the message's type.
    #[error("the payload does not decode: {0}")]
    Payload(String),
}

/// The frame that holds `message`.
///
/// # Errors
/// The payload exceeds [`PAYLOAD_BYTES_MAX`], or the type has a shape that bincode cannot carry.
pub fn encode<M: Message>(message: &M) -> Result<Vec<u8>, WireError> {
    let mut frame = begin(M::SCHEMA);
    bincode::serde::encode_into_std_write(message, &mut frame, bincode::config::standard())
        .map_err(|error| WireError::Payload(error.to_string()))?;
    finish(frame)
}

/// A frame without its payload; [`finish`] puts in how long that became.
fn begin(schema: u16) -> Vec<u8> {
    let mut frame = Vec::with_capacity(HEAD_BYTES);
    frame.extend_from_slice(&MAGIC);
    frame.push(FORMAT);
    frame.extend_from_slice(&schema.to_be_bytes());
    frame.extend_from_slice(&[0; 4]);
    frame
}

fn finish(frame: Vec<u8>) -> Result<Vec<u8>, WireError> {
    finish_with(frame, 0)
}

/// The same of a frame whose last bytes, so many, are elsewhere.
fn finish_with(mut frame: Vec<u8>, more: usize) -> Result<Vec<u8>, WireError> {
    let bytes = frame.len().saturating_sub(HEAD_BYTES) + more;
    let length = u32::try_from(bytes)
        .ok()
        .filter(|_| bytes <= PAYLOAD_BYTES_MAX)
        .ok_or(WireError::TooLarge(bytes))?;
    if let Some(place) = frame.get_mut(HEAD_BYTES - 4..HEAD_BYTES) {
        place.copy_from_slice(&length.to_be_bytes());
    }
    Ok(frame)
}

/// The length of the frame that begins with `bytes`, once its head is there.
///
/// # Errors
/// The head is cut, is none of ours, or announces too much: nothing should be read then.
pub fn frame_len(bytes: &[u8]) -> Result<usize, WireError> {
    head(bytes).map(|head| HEAD_BYTES + head.length)
}

/// Whether the frame that begins with `bytes` holds a message of this type.
pub fn holds<M: Message>(bytes: &[u8]) -> bool {
    head(bytes).is_ok_and(|head| head.schema == M::SCHEMA)
}

/// The message in a frame that `bytes` hold exactly.
///
/// # Errors
/// See [`WireError`]; bytes that are left over are an error too.
pub fn decode<M: Message>(bytes: &[u8]) -> Result<M, WireError> {
    let schema = schema_of(bytes)?;
    if schema != M::SCHEMA
        && let Some(read) = M::earlier(schema, payload(bytes, schema)?)
    {
        return read;
    }
    whole(payload(bytes, M::SCHEMA)?)
}

/// The value that a payload holds exactly.
fn whole<T: DeserializeOwned>(payload: &[u8]) -> Result<T, WireError> {
    // The limit bounds what is allocated while decoding; lengths inside are the sender's claim.
    let config = bincode::config::standard().with_limit::<DECODED_BYTES_MAX>();
    let (message, used) = bincode::serde::decode_from_slice::<T, _>(payload, config)
        .map_err(|error| WireError::Payload(error.to_string()))?;
    if used != payload.len() {
        return Err(WireError::Payload("bytes follow the message".into()));
    }
    Ok(message)
}

/// The payload of the frame of this schema that `bytes` hold exactly.
fn payload(bytes: &[u8], schema: u16) -> Result<&[u8], WireError> {
    let head = head(bytes)?;
    if head.schema != schema {
        return Err(WireError::Schema {
            found: head.schema,
            expected: schema,
        });
    }
    let payload = bytes.get(HEAD_BYTES..).unwrap_or_default();
    if payload.len() < head.length {
        return Err(WireError::Cut {
            have: bytes.len(),
            need: HEAD_BYTES + head.length,
        });
    }
    if payload.len() > head.length {
        return Err(WireError::Payload("bytes follow the frame".into()));
    }
    Ok(payload)
}

/// The schema of the frame that begins with `bytes`.
fn schema_of(bytes: &[u8]) -> Result<u16, WireError> {
    head(bytes).map(|head| head.schema)
}

struct Head {
    schema: u16,
    length: usize,
}

fn head(bytes: &[u8]) -> Result<Head, WireError> {
    let Some((head, _)) = bytes.split_first_chunk::<HEAD_BYTES>() else {
        return Err(WireError::Cut {
            have: bytes.len(),
            need: HEAD_BYTES,
        });
    };
    let [m0, m1, m2, m3, format, s0, s1, l0, l1, l2, l3] = *head;
    if [m0, m1, m2, m3] != MAGIC {
        return Err(WireError::Magic);
    }
    if format != FORMAT {
        return Err(WireError::Format(format));
    }
    // A u32 always fits where this program runs (32 bits or more).
    let length = u32::from_be_bytes([l0, l1, l2, l3]) as usize;
    if length > PAYLOAD_BYTES_MAX {
        return Err(WireError::TooLarge(length));
    }
    Ok(Head {
        schema: u16::from_be_bytes([s0, s1]),
        length,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch() -> RecordBatch {
        RecordBatch {
            node: "node-a".into(),
            sequence: 300,
            dropped: 1,
            records: vec![Arc::new(crate::record::tests::full())],
        }
    }

    /// Schema 34. When this fails, the layout changed: give the message a new schema number and
    /// keep decoding this one.
    const GOLDEN: &str = include_str!("record_batch_34.hex");
    /// Schema 48, whose records had no `value_missing`.
    const GOLDEN_48: &str = include_str!("record_batch_48.hex");
    /// Schema 43, whose records had no `events`.
    const GOLDEN_43: &str = include_str!("record_batch_43.hex");
    /// Schema 12, whose records had no `refused_by`.
    const GOLDEN_12: &str = include_str!("record_batch_12.hex");
    /// Schema 40, whose records had no `presented`.
    const GOLDEN_40: &str = include_str!("record_batch_40.hex");
    /// Schema 24, whose records had no `payload`.
    const GOLDEN_24: &str = include_str!("record_batch_24.hex");
    /// Schema 27, whose records had no `endpoints`.
    const GOLDEN_27: &str = include_str!("record_batch_27.hex");
    /// Schema 11 as releases before `scrub` sent and spooled it.
    const GOLDEN_11: &str = include_str!("record_batch_11.hex");
    /// Schema 1 as it left the first release; its records had no `sends`.
    const GOLDEN_1: &str = include_str!("record_batch_1.hex");

    /// Takes out what an earlier release did not have.
    type Without = fn(Record) -> Record;

    #[test]
    fn earlier_schemas_are_still_read() {
        use crate::record::tests as earlier;
        let releases: [(&str, Without); 8] = [
            (GOLDEN_1, earlier::without_sends),
            (GOLDEN_11, earlier::without_scrub),
            (GOLDEN_27, earlier::without_endpoints),
            (GOLDEN_24, earlier::without_payload),
            (GOLDEN_40, earlier::without_presented),
            (GOLDEN_12, earlier::without_refused_by),
            (GOLDEN_43, earlier::without_events),
            (GOLDEN_48, earlier::without_value_missing),
        ];
        for (golden, without) in releases {
            let golden = hex::decode(golden.trim()).unwrap();
            let mut expected = batch();
            for record in &mut expected.records {
                *record = Arc::new(without(Record::clone(record)));
            }
            assert_eq!(decode::<RecordBatch>(&golden).unwrap(), expected);
        }
    }

    #[test]
    fn schema_34_has_these_bytes() {
        let frame = encode(&batch()).unwrap();
        assert_eq!(hex::encode(&frame), GOLDEN.trim());
        let golden = hex::decode(GOLDEN.trim()).unwrap();
        assert_eq!(decode::<RecordBatch>(&golden).unwrap(), batch());
    }

    #[test]
    fn every_way_to_be_wrong_is_refused() {
        let good = encode(&batch()).unwrap();
        assert_eq!(frame_len(&good).unwrap(), good.len());
        let edited = |at: usize, byte: u8| {
            let mut bytes = good.clone();
            bytes[at] = byte;
            bytes
        };
        let check = |bytes: &[u8], expected: &str| {
            let error = decode::<RecordBatch>(bytes).unwrap_err();
            assert!(format!("{error:?}").starts_with(expected), "{error:?}");
        };
        check(&[], "Cut");
        check(&good[..HEAD_BYTES - 1], "Cut");
        check(&good[..good.len() - 1], "Cut");
        check(&edited(0, b'X'), "Magic");
        check(&edited(4, 2), "Format");
        check(&edited(6, 9), "Schema");
        check(&edited(7, 0xff), "TooLarge");
        check(&[&good[..], &[0]].concat(), "Payload");
        check(&edited(HEAD_BYTES, 0xfb), "Payload");
        let mut longer = good.clone();
        longer.push(0);
        let length = (longer.len() - HEAD_BYTES) as u32;
        longer[7..11].copy_from_slice(&length.to_be_bytes());
        check(&longer, "Payload");
    }

    #[test]
    fn a_claimed_length_allocates_nothing_beyond_the_limit() {
        // node: "", sequence 0, dropped 0, then a list that claims 2^60 records.
        let payload = [&[0u8, 0, 0, 253][..], &(1u64 << 60).to_le_bytes()].concat();
        let mut frame = [&MAGIC[..], &[FORMAT], &RecordBatch::SCHEMA.to_be_bytes()].concat();
        frame.extend_from_slice(&(payload.len() as u32).to_be_bytes());
        frame.extend_from_slice(&payload);
        assert!(matches!(
            decode::<RecordBatch>(&frame),
            Err(WireError::Payload(_))
        ));
    }

    /// Numbers of 16 bytes, each written as one.
    #[derive(PartialEq, serde::Serialize, serde::Deserialize)]
    struct Wide(Vec<u128>);

    impl Message for Wide {
        const SCHEMA: u16 = u16::MAX;
    }

    #[test]
    fn what_fits_into_a_frame_is_read_however_wide_its_numbers_are() {
        // The length takes five bytes.
        let wide = Wide(vec![0; PAYLOAD_BYTES_MAX - 5]);
        let frame = encode(&wide).unwrap();
        assert_eq!(frame.len(), HEAD_BYTES + PAYLOAD_BYTES_MAX);
        let read = decode::<Wide>(&frame);
        assert!(read.is_ok_and(|read| read == wide));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_decode_or_are_refused(bytes: Vec<u8>) {
            let mut frame = encode(&RecordBatch::default()).unwrap();
            frame.truncate(HEAD_BYTES);
            frame.extend_from_slice(&bytes);
            frame[7..11].copy_from_slice(&(bytes.len() as u32).to_be_bytes());
            let _ = decode::<RecordBatch>(&frame);
        }
    }
}
