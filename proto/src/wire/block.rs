//! The binary form of a block of stored records: the organisation, a count, then the records.
//!
//! A frame like that of a message, with a schema number of its own; files of earlier releases hold
//! it, so a changed layout gets a new number and this one stays readable. Records are decoded one
//! at a time and borrow their texts from the block: a search that wants few of many neither
//! allocates for the others nor believes a claimed length. Ids are 16 bytes here and not texts as
//! in a [`super::RecordBatch`]: half the size, and nothing to parse.

use serde::{Deserialize, Serialize};

use super::earlier::First;
use super::stored::StoredRecord;
use super::{
    DECODED_BYTES_MAX, HEAD_BYTES, PAYLOAD_BYTES_MAX, SCHEMA_RECORD_BLOCK as SCHEMA, WireError,
};
use super::{SCHEMA_RECORD_BLOCK_2, SCHEMA_RECORD_BLOCK_25, SCHEMA_RECORD_BLOCK_28};
use super::{
    SCHEMA_RECORD_BLOCK_13, SCHEMA_RECORD_BLOCK_41, SCHEMA_RECORD_BLOCK_44, SCHEMA_RECORD_BLOCK_49,
    SCHEMA_RECORD_BLOCK_111,
};
use super::{begin, finish_with, payload, put, schema_of};
use crate::id::OrgId;
use crate::record::{
    FIELDS_BEFORE_ENDPOINTS, FIELDS_BEFORE_EVENTS, FIELDS_BEFORE_PAYLOAD, FIELDS_BEFORE_PRESENTED,
    FIELDS_BEFORE_REFUSED_BY, FIELDS_BEFORE_SCRUB, FIELDS_BEFORE_SENDS,
    FIELDS_BEFORE_VALUE_MISSING, Record,
};

// Stored without their organisation.
type WithoutSends<'a> = First<StoredRecord<'a>, { FIELDS_BEFORE_SENDS - 1 }>;
type WithoutScrub<'a> = First<StoredRecord<'a>, { FIELDS_BEFORE_SCRUB - 1 }>;
type WithoutEndpoints<'a> = First<StoredRecord<'a>, { FIELDS_BEFORE_ENDPOINTS - 1 }>;
type WithoutPayload<'a> = First<StoredRecord<'a>, { FIELDS_BEFORE_PAYLOAD - 1 }>;
type WithoutPresented<'a> = First<StoredRecord<'a>, { FIELDS_BEFORE_PRESENTED - 1 }>;
type WithoutRefusedBy<'a> = First<StoredRecord<'a>, { FIELDS_BEFORE_REFUSED_BY - 1 }>;
type WithoutEvents<'a> = First<StoredRecord<'a>, { FIELDS_BEFORE_EVENTS - 1 }>;
type WithoutValueMissing<'a> = First<StoredRecord<'a>, { FIELDS_BEFORE_VALUE_MISSING - 1 }>;

/// Most bytes of a block's beginning: the frame's head, the organisation, the count.
const HEAD_BYTES_MAX: usize = HEAD_BYTES + 17 + 9;

/// Makes blocks, one after the other in the same memory.
#[derive(Debug, Default)]
pub struct BlockWriter {
    /// Room for the beginning, which is known at the end, then the records.
    bytes: Vec<u8>,
    org: u128,
    count: u64,
}

impl BlockWriter {
    /// Begins a block of records of `org`; what was written before is gone.
    pub fn begin(&mut self, org: OrgId) {
        self.bytes.clear();
        self.bytes.resize(HEAD_BYTES_MAX, 0);
        (self.org, self.count) = (org.bits(), 0);
    }

    /// Adds a record of the block's organisation.
    ///
    /// # Errors
    /// The payload exceeds [`PAYLOAD_BYTES_MAX`] with it; the block is as it was before.
    pub fn push(&mut self, record: &Record) -> Result<(), WireError> {
        let before = self.bytes.len();
        let put = put::record(&mut self.bytes, record);
        let put = match self.bytes.len() {
            // The room for the beginning counts, which is a little more than the beginning.
            bytes if bytes > PAYLOAD_BYTES_MAX => Err(WireError::TooLarge(bytes)),
            _ => put,
        };
        match put {
            Ok(()) => self.count += 1,
            Err(_) => self.bytes.truncate(before),
        }
        put
    }

    /// The frame that holds them.
    ///
    /// # Errors
    /// None that [`BlockWriter::push`] leaves over.
    pub fn finish(&mut self) -> Result<&[u8], WireError> {
        let mut head = begin(SCHEMA);
        append(&mut head, &(self.org, self.count))?;
        let records = self.bytes.len().saturating_sub(HEAD_BYTES_MAX);
        let head = finish_with(head, records)?;
        let from = HEAD_BYTES_MAX - head.len();
        // Where none was begun there is no room yet.
        self.bytes.resize(HEAD_BYTES_MAX + records, 0);
        self.bytes[from..HEAD_BYTES_MAX].copy_from_slice(&head);
        Ok(&self.bytes[from..])
    }

    /// Bytes that it holds on to.
    pub fn capacity(&self) -> usize {
        self.bytes.capacity()
    }
}

pub(super) fn append(frame: &mut Vec<u8>, value: &impl Serialize) -> Result<(), WireError> {
    bincode::serde::encode_into_std_write(value, frame, bincode::config::standard())
        .map(|_| ())
        .map_err(|error| WireError::Payload(error.to_string()))
}

/// The records of a block, in the order in which they were encoded. Ends after the first error.
#[derive(Debug)]
pub struct Block<'a> {
    org: OrgId,
    left: u64,
    rest: &'a [u8],
    schema: u16,
}

impl<'a> Block<'a> {
    /// Reads the beginning of the block that `frame` holds exactly.
    ///
    /// # Errors
    /// See [`WireError`]. A damaged record shows when its turn comes.
    pub fn open(frame: &'a [u8]) -> Result<Self, WireError> {
        let schema = match schema_of(frame)? {
            known @ (SCHEMA_RECORD_BLOCK_2
            | SCHEMA_RECORD_BLOCK_13
            | SCHEMA_RECORD_BLOCK_25
            | SCHEMA_RECORD_BLOCK_28
            | SCHEMA_RECORD_BLOCK_41
            | SCHEMA_RECORD_BLOCK_44
            | SCHEMA_RECORD_BLOCK_49
            | SCHEMA_RECORD_BLOCK_111) => known,
            _ => SCHEMA,
        };
        let mut rest = payload(frame, schema)?;
        let (org, left) = take(&mut rest)?;
        Ok(Self {
            org: OrgId::from_bits(org),
            left,
            rest,
            schema,
        })
    }

    /// The organisation that the records belong to.
    pub fn org(&self) -> OrgId {
        self.org
    }
}

impl<'a> Iterator for Block<'a> {
    type Item = Result<StoredRecord<'a>, WireError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            let left_over = !std::mem::take(&mut self.rest).is_empty();
            return left_over.then(|| Err(WireError::Payload("bytes follow the records".into())));
        }
        self.left -= 1;
        let taken = match self.schema {
            SCHEMA_RECORD_BLOCK_2 => take(&mut self.rest).map(|record: WithoutSends<'_>| record.0),
            SCHEMA_RECORD_BLOCK_111 => {
                take(&mut self.rest).map(|record: WithoutScrub<'_>| record.0)
            }
            SCHEMA_RECORD_BLOCK_28 => {
                take(&mut self.rest).map(|record: WithoutEndpoints<'_>| record.0)
            }
            SCHEMA_RECORD_BLOCK_25 => {
                take(&mut self.rest).map(|record: WithoutPayload<'_>| record.0)
            }
            SCHEMA_RECORD_BLOCK_41 => {
                take(&mut self.rest).map(|record: WithoutPresented<'_>| record.0)
            }
            SCHEMA_RECORD_BLOCK_13 => {
                take(&mut self.rest).map(|record: WithoutRefusedBy<'_>| record.0)
            }
            SCHEMA_RECORD_BLOCK_44 => {
                take(&mut self.rest).map(|record: WithoutEvents<'_>| record.0)
            }
            SCHEMA_RECORD_BLOCK_49 => {
                take(&mut self.rest).map(|record: WithoutValueMissing<'_>| record.0)
            }
            _ => take(&mut self.rest),
        };
        if taken.is_err() {
            (self.left, self.rest) = (0, &[]);
        }
        Some(taken)
    }
}

/// Decodes the value at the start of `rest` and leaves what follows it.
fn take<'a, T: Deserialize<'a>>(rest: &mut &'a [u8]) -> Result<T, WireError> {
    let config = bincode::config::standard().with_limit::<DECODED_BYTES_MAX>();
    let (value, used) = bincode::serde::borrow_decode_from_slice(rest, config)
        .map_err(|error| WireError::Payload(error.to_string()))?;
    *rest = rest.get(used..).unwrap_or_default();
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::super::{RecordBatch, encode, finish};
    use super::*;
    use crate::id::RequestId;

    const ORG: OrgId = OrgId::from_bits(2);

    /// One record with something in every field and one with as little as there can be.
    fn records() -> [Record; 2] {
        let full = crate::record::tests::full();
        let mut bare = full.clone();
        bare.request_id = RequestId::from_bits(9);
        bare.proxy_credential_id = None;
        bare.proxy_credential_generation = None;
        bare.status = None;
        bare.auth_failure = None;
        bare.stages.clear();
        bare.denials.clear();
        bare.trace_id = None;
        bare.node = "".into();
        [full, bare]
    }

    fn encode_block(org: OrgId, records: &[&Record]) -> Result<Vec<u8>, WireError> {
        let mut writer = BlockWriter::default();
        writer.begin(OrgId::from_bits(77));
        writer.push(&crate::record::tests::full())?;
        writer.begin(org);
        records.iter().try_for_each(|record| writer.push(record))?;
        writer.finish().map(<[u8]>::to_vec)
    }

    fn frame() -> Vec<u8> {
        let [full, bare] = records();
        encode_block(ORG, &[&full, &bare]).unwrap()
    }

    fn read(frame: &[u8]) -> Result<Vec<Record>, WireError> {
        let block = Block::open(frame)?;
        let org = block.org();
        block.map(|record| Ok(record?.to_record(org))).collect()
    }

    /// Schema 35. When this fails, the layout changed: give it a new number and keep reading this
    /// one.
    const GOLDEN: &str = include_str!("record_block_35.hex");
    /// Schema 49 as releases before `value_missing` stored it.
    const GOLDEN_49: &str = include_str!("record_block_49.hex");
    /// Schema 44 as releases before `events` stored it.
    const GOLDEN_44: &str = include_str!("record_block_44.hex");
    /// Schema 13 as releases before `refused_by` stored it.
    const GOLDEN_13: &str = include_str!("record_block_13.hex");
    /// Schema 41 as releases before `presented` stored it.
    const GOLDEN_41: &str = include_str!("record_block_41.hex");
    /// Schema 25 as releases before `payload` stored it.
    const GOLDEN_25: &str = include_str!("record_block_25.hex");
    /// Schema 28 as releases before `endpoints` stored it.
    const GOLDEN_28: &str = include_str!("record_block_28.hex");
    /// Schema 111 as releases before `scrub` stored it.
    const GOLDEN_111: &str = include_str!("record_block_111.hex");
    /// Schema 2 as it left the first release that stored blocks; it had no `sends`.
    const GOLDEN_2: &str = include_str!("record_block_2.hex");

    /// Takes out what an earlier release did not have.
    type Without = fn(Record) -> Record;

    #[test]
    fn earlier_schemas_are_still_read() {
        use crate::record::tests as earlier;
        let releases: [(&str, Without); 8] = [
            (GOLDEN_2, earlier::without_sends),
            (GOLDEN_111, earlier::without_scrub),
            (GOLDEN_28, earlier::without_endpoints),
            (GOLDEN_25, earlier::without_payload),
            (GOLDEN_41, earlier::without_presented),
            (GOLDEN_13, earlier::without_refused_by),
            (GOLDEN_44, earlier::without_events),
            (GOLDEN_49, earlier::without_value_missing),
        ];
        for (golden, without) in releases {
            let golden = hex::decode(golden.trim()).unwrap();
            assert_eq!(read(&golden).unwrap(), records().map(without));
        }
    }

    #[test]
    fn schema_35_has_these_bytes() {
        assert_eq!(hex::encode(frame()), GOLDEN.trim());
        let golden = hex::decode(GOLDEN.trim()).unwrap();
        assert_eq!(read(&golden).unwrap(), records());
        let empty = encode_block(ORG, &[]).unwrap();
        assert_eq!(read(&empty).unwrap(), []);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let mut large = crate::record::tests::full();
        large.path = "x".repeat(PAYLOAD_BYTES_MAX / 2);
        assert!(encode_block(ORG, &[&large]).is_ok());
        assert!(matches!(
            encode_block(ORG, &[&large, &large, &large]),
            Err(WireError::TooLarge(_))
        ));
        let mut writer = BlockWriter::default();
        writer.begin(ORG);
        writer.push(&large).unwrap();
        assert!(writer.push(&large).is_err());
        let [full, _] = records();
        writer.push(&full).unwrap();
        assert_eq!(read(writer.finish().unwrap()).unwrap(), [large, full]);
    }

    #[test]
    fn damage_is_an_error_and_ends_the_block() {
        let good = frame();
        assert!(matches!(
            read(&good[..good.len() - 1]),
            Err(WireError::Cut { .. })
        ));
        let batch = encode(&RecordBatch::default()).unwrap();
        assert!(matches!(read(&batch), Err(WireError::Schema { .. })));
        // A count of 2^60 records, of which not one is there.
        let mut frame = begin(SCHEMA);
        append(&mut frame, &(1u128, 1u64 << 60)).unwrap();
        let frame = finish(frame).unwrap();
        assert_eq!(Block::open(&frame).unwrap().count(), 1);
        // A count of one where there are two.
        let mut fewer = good.clone();
        let at = HEAD_BYTES + 1;
        assert_eq!(fewer[at], 2);
        fewer[at] = 1;
        assert!(matches!(read(&fewer), Err(WireError::Payload(_))));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_decode_or_are_refused(bytes: Vec<u8>, count in 0u64..4) {
            let mut frame = begin(SCHEMA);
            append(&mut frame, &(1u128, count)).unwrap();
            frame.extend_from_slice(&bytes);
            let _ = read(&finish(frame).unwrap());
        }

        #[test]
        fn a_changed_byte_decodes_or_is_refused(at: proptest::sample::Index, byte: u8) {
            let mut changed = frame();
            let at = at.index(changed.len());
            changed[at] = byte;
            let _ = read(&changed);
        }
    }
}
