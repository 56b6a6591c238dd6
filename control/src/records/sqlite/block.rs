//! A block: records of one organisation as they lie in the file, and what a search may know of
//! them without reading them. Pure.

use std::collections::BTreeSet;

use proto::outcome::Code;
use proto::record::Record;
use proto::wire::{self, BlockWriter, WireError};
use zstd::bulk::Compressor;

use super::RecordsError;

/// Most records in a block; a larger batch becomes several.
pub(super) const BLOCK_RECORDS_MAX: usize = 1_024;
/// Most bytes of a block before compression, which bounds what reading a damaged one allocates.
const BLOCK_BYTES_MAX: usize = wire::HEAD_BYTES + wire::PAYLOAD_BYTES_MAX;
/// zstd's fastest ordinary level: a record takes about a third of its size at half a microsecond.
const LEVEL: i32 = 1;
/// Bytes of a mark.
const MARK_BYTES: usize = 4;

/// Something that a search can ask for and that a block has or has not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mark<'a> {
    /// A proxy that was called.
    Proxy(u128),
    /// A credential on either side.
    Credential(u128),
    /// A status that a caller got.
    Status(u16),
    /// Its first digit.
    StatusClass(u16),
    /// An outcome.
    Code(&'a str),
    /// The beginning of a request's id, which is about a second of its time.
    Moment(u128),
    /// A proxy with an outcome that is not the usual one: rare in a block where each of the two
    /// alone is in nearly all.
    Pair(u128, Unusual<'a>),
    /// The block has marks of pairs; those of earlier releases have none.
    HasPairs,
}

/// An outcome that few requests have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unusual<'a> {
    /// A status that is no success.
    Status(u16),
    /// Its first digit.
    Class(u16),
    /// A code that is not the one of answers that passed.
    Code(&'a str),
}

impl<'a> Unusual<'a> {
    pub(super) fn status(status: u16) -> Option<Self> {
        (status / 100 != 2).then_some(Self::Status(status))
    }

    pub(super) fn class(class: u16) -> Option<Self> {
        (class != 2).then_some(Self::Class(class))
    }

    pub(super) fn code(code: &'a str) -> Option<Self> {
        (code != Code::AccessGranted.as_str()).then_some(Self::Code(code))
    }
}

impl Mark<'_> {
    /// The mark of a request's id.
    pub(super) fn moment(request_id: u128) -> Mark<'static> {
        // An id begins with 48 bits of milliseconds; 10 of them are a second.
        Mark::Moment(request_id >> 90)
    }

    /// The mark in 32 bits. Two that fall together cost a search the reading of a block in vain
    /// and nothing else. Kinds and numbers lie in files: they stay as they are.
    fn bits(self) -> u32 {
        match self {
            Self::Proxy(id) => fold(1, &id.to_be_bytes()),
            Self::Credential(id) => fold(2, &id.to_be_bytes()),
            Self::Status(status) => fold(3, &status.to_be_bytes()),
            Self::StatusClass(class) => fold(4, &class.to_be_bytes()),
            Self::Code(code) => fold(5, code.as_bytes()),
            Self::Moment(moment) => fold(6, &moment.to_be_bytes()),
            Self::Pair(proxy, of) => {
                let other = match of {
                    Unusual::Status(status) => Mark::Status(status),
                    Unusual::Class(class) => Mark::StatusClass(class),
                    Unusual::Code(code) => Mark::Code(code),
                };
                fold(
                    7,
                    &[&proxy.to_be_bytes()[..], &other.bits().to_be_bytes()].concat(),
                )
            }
            Self::HasPairs => fold(8, &[]),
        }
    }
}

/// FNV-1a with 64 bits, folded to 32.
fn fold(kind: u8, value: &[u8]) -> u32 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    let hash = value.iter().fold(step(0xcbf2_9ce4_8422_2325, &kind), step);
    (hash ^ (hash >> 32)) as u32
}

/// The distinct marks of records: 4 bytes each, sorted.
fn marks(records: &[&Record]) -> Vec<u8> {
    let mut marks = BTreeSet::from([Mark::HasPairs.bits()]);
    let mut before: Option<&Record> = None;
    for record in records {
        let proxy = record.proxy_id.bits();
        let pairs = [
            record.status.and_then(Unusual::status),
            record
                .status
                .and_then(|status| Unusual::class(status / 100)),
            Unusual::code(&record.code),
        ];
        let pairs = pairs.into_iter().flatten();
        marks.extend(pairs.map(|unusual| Mark::Pair(proxy, unusual).bits()));
        // Neighbours are mostly alike: only what is new is hashed and sorted in.
        let is_new =
            |same: fn(&Record, &Record) -> bool| before.is_none_or(|before| !same(before, record));
        if is_new(|a, b| a.proxy_id == b.proxy_id) {
            marks.insert(Mark::Proxy(record.proxy_id.bits()).bits());
        }
        let credentials = |record: &Record| {
            let both = [record.proxy_credential_id, record.target_credential_id];
            both.map(|id| id.map(|id| id.bits()))
        };
        if before.is_none_or(|before| credentials(before) != credentials(record)) {
            for id in credentials(record).into_iter().flatten() {
                marks.insert(Mark::Credential(id).bits());
            }
        }
        if let Some(status) = record.status
            && is_new(|a, b| a.status == b.status)
        {
            marks.insert(Mark::Status(status).bits());
            marks.insert(Mark::StatusClass(status / 100).bits());
        }
        if is_new(|a, b| a.code == b.code) {
            marks.insert(Mark::Code(&record.code).bits());
        }
        let moment = |record: &Record| Mark::moment(record.request_id.bits());
        if before.is_none_or(|before| moment(before) != moment(record)) {
            marks.insert(moment(record).bits());
        }
        before = Some(record);
    }
    marks.into_iter().flat_map(u32::to_be_bytes).collect()
}

/// What every block with an answer has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Sought {
    /// Marks of all blocks.
    pub marks: Vec<Wanted>,
    /// Marks of those that have pairs.
    pub pairs: Vec<Wanted>,
}

impl Sought {
    /// Whether a block with these marks may hold an answer.
    pub(super) fn may_be_in(&self, marks: &[u8]) -> bool {
        let paired = || has_all(marks, &[Wanted::from(Mark::HasPairs)]);
        has_all(marks, &self.marks)
            && (self.pairs.is_empty() || has_all(marks, &self.pairs) || !paired())
    }
}

/// Whether stored marks hold all of these.
pub(super) fn has_all(marks: &[u8], wanted: &[Wanted]) -> bool {
    let (marks, _) = marks.as_chunks::<MARK_BYTES>();
    wanted
        .iter()
        .all(|wanted| marks.binary_search(&wanted.0).is_ok())
}

/// A mark that is looked for in many blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wanted([u8; MARK_BYTES]);

impl From<Mark<'_>> for Wanted {
    fn from(mark: Mark<'_>) -> Self {
        Self(mark.bits().to_be_bytes())
    }
}

/// A block that is ready to be written.
#[derive(Debug)]
pub(super) struct Packed {
    /// Start of its oldest record, in microseconds since the Unix epoch.
    pub first_us: i64,
    /// Start of its newest record.
    pub last_us: i64,
    /// The smallest request id.
    pub first_id: u128,
    /// The largest request id.
    pub last_id: u128,
    /// Made of all request ids in their order: the same for a batch that is sent again.
    pub key: u128,
    /// How many records.
    pub count: usize,
    /// What it holds, for searches: see [`Sought`].
    pub marks: Vec<u8>,
    /// The records.
    pub data: Vec<u8>,
}

impl Packed {
    /// Bytes that it takes in its file, about.
    pub(super) fn bytes(&self) -> i64 {
        i64::try_from(self.data.len()).map_or(i64::MAX, |bytes| bytes.saturating_add(EXTRA_BYTES))
    }
}

/// Bytes that a block takes in its file beyond its data, about.
const EXTRA_BYTES: i64 = 64;
/// Most bytes of memory that is kept for the next block; a usual one has a quarter of it.
const KEPT_BYTES_MAX: usize = 1024 * 1024;
/// Most pieces of memory that are kept for the data of blocks.
const SPARE_MAX: usize = 4;

/// Makes blocks; it keeps zstd's tables between them, and its memory: a block's worth of fresh
/// memory from the system costs as much as to fill it.
pub(super) struct Packer {
    compressor: Compressor<'static>,
    writer: BlockWriter,
    spare: Vec<Vec<u8>>,
}

impl std::fmt::Debug for Packer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Packer")
    }
}

impl Packer {
    pub(super) fn new() -> Result<Self, RecordsError> {
        let mut compressor = Compressor::new(LEVEL).map_err(failed)?;
        compressor.include_checksum(true).map_err(failed)?;
        Ok(Self {
            compressor,
            writer: BlockWriter::default(),
            spare: Vec::new(),
        })
    }

    /// Packs records of one organisation, in their order, into as few blocks as hold them. The
    /// same records always become the same blocks.
    pub(super) fn pack(
        &mut self,
        records: &[&Record],
        blocks: &mut Vec<Packed>,
    ) -> Result<(), RecordsError> {
        let Some(first) = records.first() else {
            return Ok(());
        };
        let fits = records.len() <= BLOCK_RECORDS_MAX && {
            self.writer.begin(first.org_id);
            match records
                .iter()
                .try_for_each(|record| self.writer.push(record))
            {
                Err(WireError::TooLarge(_)) if records.len() > 1 => false,
                written => written.map(|()| true).map_err(failed)?,
            }
        };
        if !fits {
            let (left, right) = records.split_at(records.len() / 2);
            self.pack(left, blocks)?;
            return self.pack(right, blocks);
        }
        let times = || records.iter().map(|record| record.started_at_us);
        let ids = || records.iter().map(|record| record.request_id.bits());
        blocks.push(Packed {
            first_us: times().min().unwrap_or_default(),
            last_us: times().max().unwrap_or_default(),
            first_id: ids().min().unwrap_or_default(),
            last_id: ids().max().unwrap_or_default(),
            key: ids().fold(0, |key: u128, id| key.rotate_left(7).wrapping_add(id)),
            count: records.len(),
            marks: marks(records),
            data: self.compressed()?,
        });
        Ok(())
    }

    /// What was written, compressed.
    fn compressed(&mut self) -> Result<Vec<u8>, RecordsError> {
        let frame = self.writer.finish().map_err(failed)?;
        let mut data = self.spare.pop().unwrap_or_default();
        data.clear();
        data.reserve(zstd::zstd_safe::compress_bound(frame.len()));
        self.compressor
            .compress_to_buffer(frame, &mut data)
            .map_err(failed)?;
        if self.writer.capacity() > KEPT_BYTES_MAX {
            self.writer = BlockWriter::default();
        }
        Ok(data)
    }

    /// Takes back the memory of blocks that are stored.
    pub(super) fn recycle(&mut self, blocks: impl Iterator<Item = Packed>) {
        let kept = blocks.map(|block| block.data);
        let room = SPARE_MAX.saturating_sub(self.spare.len());
        let kept = kept.filter(|data| data.capacity() <= KEPT_BYTES_MAX);
        self.spare.extend(kept.take(room));
    }
}

fn failed(error: impl std::fmt::Display) -> RecordsError {
    RecordsError::Pack(error.to_string())
}

/// The frame of a stored block, to be read with [`wire::Block`].
///
/// # Errors
/// What is stored is no block, or one that claims to be larger than a block can be.
pub(super) fn unpack(data: &[u8]) -> Result<Vec<u8>, String> {
    zstd::bulk::decompress(data, BLOCK_BYTES_MAX).map_err(|error| error.to_string())
}
