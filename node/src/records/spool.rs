//! Records on disk while no control plane takes them: bounded, oldest first, whole again after a
//! crash.
//!
//! A spool is a folder of segments; each is a file of frames, and each frame is its length, the
//! number of its records and an encoded batch. New batches go to the end of the last segment; what
//! is acknowledged is passed over, and a segment that is passed goes. At the bound the oldest
//! segment goes, and its records count as dropped. A frame that a crash cut is left out. After a
//! restart the first segment is sent again from its beginning: who stores records knows them by
//! their ids.

use std::collections::VecDeque;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use proto::record::Record;
use proto::wire::{self, RecordBatch};

/// Largest part of the bound that one segment takes.
const SEGMENTS_MIN: u64 = 8;
/// Largest segment, in bytes.
const SEGMENT_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// Most bytes of batches that are sent as one: half of what a frame may have.
const JOINED_BYTES_MAX: u64 = wire::PAYLOAD_BYTES_MAX as u64 / 2;
/// Length and number of records before each batch.
const HEAD_BYTES: usize = 8;

/// Records that wait on disk.
#[derive(Debug)]
pub struct Spool {
    dir: PathBuf,
    bytes_max: u64,
    joined_bytes_max: u64,
    segments: VecDeque<Segment>,
    /// The last segment, open for appending.
    writer: Option<File>,
    /// How far the first segment is acknowledged.
    passed: Passed,
    next: u64,
}

#[derive(Debug)]
struct Segment {
    number: u64,
    bytes: u64,
    records: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Passed {
    bytes: u64,
    records: u64,
}

/// The oldest batch, and what passing it means.
#[derive(Debug)]
pub struct Oldest {
    /// Its records.
    pub records: Vec<Arc<Record>>,
    place: Place,
}

/// Where a batch lies: acknowledging one whose segment had to go meanwhile does nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    segment: u64,
    frame_bytes: u64,
}

impl Spool {
    /// Opens a folder, made when missing, with what an earlier process left in it.
    ///
    /// # Errors
    /// The folder cannot be made, read or written.
    pub fn open(dir: &Path, bytes_max: u64) -> std::io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let mut numbers = Vec::new();
        for entry in dir.read_dir()? {
            let name = entry?.file_name();
            let name = name.to_str().and_then(|name| name.strip_suffix(".spool"));
            numbers.extend(name.and_then(|number| number.parse::<u64>().ok()));
        }
        numbers.sort_unstable();
        let mut spool = Self {
            dir: dir.to_owned(),
            bytes_max,
            joined_bytes_max: JOINED_BYTES_MAX,
            segments: VecDeque::new(),
            writer: None,
            passed: Passed::default(),
            next: numbers.last().map_or(0, |last| last + 1),
        };
        for number in numbers {
            let path = spool.path(number);
            let (bytes, records) = match scan(&path) {
                Ok(found) => found,
                Err(error) => {
                    tracing::error!("{} is left out of the spool: {error}", path.display());
                    continue;
                }
            };
            if records == 0 {
                // Left behind, it is looked at again at the next start.
                let _ = std::fs::remove_file(path);
                continue;
            }
            spool.segments.push_back(Segment {
                number,
                bytes,
                records,
            });
        }
        Ok(spool)
    }

    /// Records that wait.
    pub fn records(&self) -> u64 {
        let all: u64 = self.segments.iter().map(|segment| segment.records).sum();
        all.saturating_sub(self.passed.records)
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    /// Adds a batch; gives how many of the oldest records had to go for it.
    ///
    /// # Errors
    /// It cannot be written; then it is not in the spool, and nothing else has changed.
    pub fn push(&mut self, records: Vec<Arc<Record>>) -> std::io::Result<u64> {
        let count = records.len() as u32;
        let batch = RecordBatch {
            records,
            ..RecordBatch::default()
        };
        let payload = wire::encode(&batch).map_err(std::io::Error::other)?;
        let length = u32::try_from(payload.len()).map_err(std::io::Error::other)?;
        let mut frame = Vec::with_capacity(HEAD_BYTES + payload.len());
        frame.extend_from_slice(&length.to_le_bytes());
        frame.extend_from_slice(&count.to_le_bytes());
        frame.extend_from_slice(&payload);
        self.append(&frame)?;
        if let Some(last) = self.segments.back_mut() {
            last.bytes += frame.len() as u64;
            last.records += u64::from(count);
        }
        Ok(self.make_room())
    }

    fn append(&mut self, frame: &[u8]) -> std::io::Result<()> {
        let most = SEGMENT_BYTES_MAX.min(self.bytes_max / SEGMENTS_MIN);
        let full = self.segments.back().is_none_or(|last| last.bytes >= most);
        let mut writer = match self.writer.take() {
            Some(writer) if !full => writer,
            _ => {
                let number = self.next;
                let mut options = OpenOptions::new();
                options.append(true).create_new(true).mode(0o600);
                let writer = options.open(self.path(number))?;
                self.next += 1;
                self.segments.push_back(Segment {
                    number,
                    bytes: 0,
                    records: 0,
                });
                writer
            }
        };
        if let Err(error) = writer.write_all(frame) {
            // What was written of it is cut off, or else the next segment begins behind it.
            if let Some(last) = self.segments.back() {
                let cut = writer.set_len(last.bytes);
                self.writer = cut.is_ok().then_some(writer);
            }
            self.forget_empty_last();
            return Err(error);
        }
        self.writer = Some(writer);
        Ok(())
    }

    /// A segment that never took a frame is none.
    fn forget_empty_last(&mut self) {
        if self.segments.back().is_some_and(|last| last.records == 0)
            && let Some(last) = self.segments.pop_back()
        {
            self.writer = None;
            let _ = std::fs::remove_file(self.path(last.number));
        }
    }

    fn make_room(&mut self) -> u64 {
        let mut dropped = 0;
        while self.segments.len() > 1
            && self.segments.iter().map(|s| s.bytes).sum::<u64>() > self.bytes_max
        {
            if let Some(first) = self.segments.front() {
                dropped += first.records.saturating_sub(self.passed.records);
            }
            self.drop_first();
        }
        dropped
    }

    fn drop_first(&mut self) {
        if let Some(first) = self.segments.pop_front() {
            // Left behind, its records would only be sent once more after a restart.
            let _ = std::fs::remove_file(self.path(first.number));
        }
        self.passed = Passed::default();
        if self.segments.is_empty() {
            self.writer = None;
        }
    }

    /// The oldest records that are not passed: a batch, with those behind it in one as far as they
    /// fit, since a control plane may take as long for one record as for thousands.
    ///
    /// # Errors
    /// It cannot be read. `InvalidData`: it never will be, [`Spool::skip`] gives up its segment.
    /// Others may pass.
    pub fn oldest(&self) -> std::io::Result<Option<Oldest>> {
        let Some(first) = self.segments.front() else {
            return Ok(None);
        };
        let mut file = File::open(self.path(first.number)).map_err(cut)?;
        file.seek(SeekFrom::Start(self.passed.bytes))?;
        let mut file = BufReader::new(file);
        let mut left = first.bytes.saturating_sub(self.passed.bytes);
        let mut oldest = Oldest {
            records: Vec::new(),
            place: Place {
                segment: first.number,
                frame_bytes: 0,
            },
        };
        loop {
            let room = match oldest.records.is_empty() {
                true => u64::MAX,
                false => self
                    .joined_bytes_max
                    .saturating_sub(oldest.place.frame_bytes),
            };
            match read_frame(&mut file, left, room) {
                Ok(Some((bytes, records))) => {
                    left -= bytes;
                    oldest.place.frame_bytes += bytes;
                    oldest.records.extend(records);
                }
                Ok(None) => break,
                Err(error) if oldest.records.is_empty() => return Err(error),
                // Those before it can be read; it is the oldest next time.
                Err(_) => break,
            }
        }
        Ok(Some(oldest))
    }

    /// Passes over the oldest batch: it is stored elsewhere.
    pub fn pass(&mut self, place: Place, records: u64) {
        let is_first = |first: &Segment| first.number == place.segment;
        if !self.segments.front().is_some_and(is_first) {
            return;
        }
        self.passed.bytes += place.frame_bytes;
        self.passed.records += records;
        let done = |first: &Segment| self.passed.bytes >= first.bytes;
        if self.segments.front().is_some_and(done) {
            self.drop_first();
        }
    }

    /// Gives up the oldest segment, which cannot be read; how many records are lost with it.
    pub fn skip(&mut self) -> u64 {
        let lost = self
            .segments
            .front()
            .map_or(0, |first| first.records.saturating_sub(self.passed.records));
        self.drop_first();
        lost
    }

    fn path(&self, number: u64) -> PathBuf {
        self.dir.join(format!("{number:020}.spool"))
    }
}

impl Oldest {
    /// For [`Spool::pass`].
    pub fn place(&self) -> Place {
        self.place
    }
}

/// The next batch with the bytes of its frame; `None` where none is left or it needs more than
/// `room`.
fn read_frame(
    file: &mut BufReader<File>,
    left: u64,
    room: u64,
) -> std::io::Result<Option<(u64, Vec<Arc<Record>>)>> {
    if left == 0 {
        return Ok(None);
    }
    let mut head = [0; HEAD_BYTES];
    file.read_exact(&mut head).map_err(cut)?;
    let (length, _) = read_head(head);
    let bytes = HEAD_BYTES as u64 + length;
    if bytes > left {
        return Err(std::io::ErrorKind::InvalidData.into());
    }
    if bytes > room {
        return Ok(None);
    }
    let mut payload = vec![0; usize::try_from(length).unwrap_or(0)];
    file.read_exact(&mut payload).map_err(cut)?;
    let batch: RecordBatch = wire::decode(&payload)
        .map_err(|error| std::io::Error::new(std::io::ErrorKind::InvalidData, error))?;
    Ok(Some((bytes, batch.records)))
}

/// A file that is shorter than it was, or gone, is damaged.
fn cut(error: std::io::Error) -> std::io::Error {
    match error.kind() {
        std::io::ErrorKind::UnexpectedEof | std::io::ErrorKind::NotFound => {
            std::io::ErrorKind::InvalidData.into()
        }
        _ => error,
    }
}

fn read_head(head: [u8; HEAD_BYTES]) -> (u64, u64) {
    let [a, b, c, d, e, f, g, h] = head;
    let length = u32::from_le_bytes([a, b, c, d]);
    let records = u32::from_le_bytes([e, f, g, h]);
    (u64::from(length), u64::from(records))
}

/// Bytes and records of the whole frames of a segment; a frame that a crash cut does not count.
fn scan(path: &Path) -> std::io::Result<(u64, u64)> {
    let file = File::open(path)?;
    let size = file.metadata()?.len();
    let mut file = BufReader::new(file);
    let (mut bytes, mut records) = (0, 0);
    let mut head = [0; HEAD_BYTES];
    while size - bytes >= HEAD_BYTES as u64 {
        file.read_exact(&mut head)?;
        let (length, count) = read_head(head);
        let frame = HEAD_BYTES as u64 + length;
        if frame > size - bytes {
            break;
        }
        file.seek_relative(i64::try_from(length).map_err(std::io::Error::other)?)?;
        bytes += frame;
        records += count;
    }
    Ok((bytes, records))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::tests::record;

    fn batch(from: u128, count: u128) -> Vec<Arc<Record>> {
        (from..from + count).map(|n| Arc::new(record(n))).collect()
    }

    fn drained(spool: &mut Spool) -> Vec<u128> {
        let mut seen = Vec::new();
        while let Some(oldest) = spool.oldest().unwrap() {
            seen.extend(oldest.records.iter().map(|r| r.request_id.bits()));
            spool.pass(oldest.place(), oldest.records.len() as u64);
        }
        seen
    }

    fn files(dir: &Path) -> usize {
        dir.read_dir().unwrap().count()
    }

    #[test]
    fn batches_come_back_in_their_order_and_leave_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let mut spool = Spool::open(dir.path(), 1 << 20).unwrap();
        assert!(spool.is_empty() && spool.oldest().unwrap().is_none());
        for at in 0..10 {
            assert_eq!(spool.push(batch(at * 10, 10)).unwrap(), 0);
        }
        assert_eq!(spool.records(), 100);
        assert_eq!(drained(&mut spool), (0..100).collect::<Vec<_>>());
        assert_eq!((spool.records(), files(dir.path())), (0, 0));
        spool.push(batch(500, 1)).unwrap();
        assert_eq!(drained(&mut spool), [500]);
    }

    #[test]
    fn another_process_finds_what_was_left_even_cut_by_a_crash() {
        let dir = tempfile::tempdir().unwrap();
        let mut spool = Spool::open(dir.path(), 1 << 20).unwrap();
        for at in 0..3 {
            spool.push(batch(at * 10, 10)).unwrap();
        }
        spool.joined_bytes_max = 0;
        let first = spool.oldest().unwrap().unwrap();
        assert_eq!(first.records.len(), 10);
        spool.pass(first.place(), 10);
        assert_eq!(spool.records(), 20);
        drop(spool);
        let path = dir.path().join(format!("{:020}.spool", 0));
        let whole = std::fs::read(&path).unwrap();
        for cut in [1, 5, 9, 100] {
            std::fs::write(&path, &whole[..whole.len() - cut]).unwrap();
            let mut spool = Spool::open(dir.path(), 1 << 20).unwrap();
            assert_eq!(spool.records(), 20, "cut by {cut}");
            // New ones never continue a file that was cut.
            spool.push(batch(90, 1)).unwrap();
            let expected: Vec<u128> = (0..20).chain([90]).collect();
            assert_eq!(drained(&mut spool), expected);
            assert_eq!(files(dir.path()), 0);
        }
    }

    #[test]
    fn at_the_bound_the_oldest_go_and_are_counted() {
        let dir = tempfile::tempdir().unwrap();
        let mut spool = Spool::open(dir.path(), 64 * 1024).unwrap();
        let mut dropped = 0;
        for at in 0..200 {
            dropped += spool.push(batch(at * 10, 10)).unwrap();
        }
        assert!(dropped > 0);
        let kept = drained(&mut spool);
        assert_eq!(kept.len() as u64 + dropped, 2_000);
        assert_eq!(kept.last(), Some(&1_999));
        assert_eq!(kept.first(), Some(&u128::from(dropped)));
    }

    #[test]
    fn a_segment_that_is_damaged_is_given_up_and_the_rest_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let mut spool = Spool::open(dir.path(), 64 * 1024).unwrap();
        while spool.segments.len() < 2 {
            spool.push(batch(spool.records().into(), 10)).unwrap();
        }
        let damaged = spool.segments[0].records;
        let path = spool.path(0);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[HEAD_BYTES..].fill(0xff);
        std::fs::write(&path, bytes).unwrap();
        let error = spool.oldest().unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidData);
        assert_eq!(spool.skip(), damaged);
        assert_eq!(drained(&mut spool).first(), Some(&u128::from(damaged)));
    }

    #[test]
    fn batches_are_joined_up_to_a_bound_and_up_to_what_is_damaged() {
        let dir = tempfile::tempdir().unwrap();
        let mut spool = Spool::open(dir.path(), 1 << 20).unwrap();
        for at in 0..6 {
            spool.push(batch(at * 10, 10)).unwrap();
        }
        let count = |spool: &Spool| spool.oldest().unwrap().unwrap().records.len();
        assert_eq!(count(&spool), 60);
        let frame = spool.segments[0].bytes / 6;
        spool.joined_bytes_max = frame * 5 / 2;
        assert_eq!(count(&spool), 20);
        spool.joined_bytes_max = JOINED_BYTES_MAX;
        let path = spool.path(0);
        let mut bytes = std::fs::read(&path).unwrap();
        let third = usize::try_from(frame * 2).unwrap() + HEAD_BYTES + 2;
        bytes[third..third + 100].fill(0xff);
        std::fs::write(&path, bytes).unwrap();
        let good = spool.oldest().unwrap().unwrap();
        assert_eq!(good.records.len(), 20);
        spool.pass(good.place(), 20);
        assert!(spool.oldest().is_err());
        assert_eq!(spool.skip(), 40);
    }

    #[test]
    fn a_disk_that_takes_nothing_loses_only_what_it_did_not_take() {
        let dir = tempfile::tempdir().unwrap();
        let mut spool = Spool::open(dir.path(), 1 << 20).unwrap();
        spool.push(batch(0, 5)).unwrap();
        // A folder where the next segment belongs.
        std::fs::create_dir(spool.path(1)).unwrap();
        spool.writer = None;
        assert!(spool.push(batch(5, 5)).is_err());
        assert_eq!(spool.records(), 5);
        std::fs::remove_dir(spool.path(1)).unwrap();
        spool.push(batch(10, 5)).unwrap();
        assert_eq!(drained(&mut spool), [0, 1, 2, 3, 4, 10, 11, 12, 13, 14]);
    }

    #[test]
    fn an_acknowledgement_of_what_had_to_go_passes_over_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let mut spool = Spool::open(dir.path(), 64 * 1024).unwrap();
        spool.push(batch(0, 10)).unwrap();
        let under_way = spool.oldest().unwrap().unwrap();
        let (mut next, mut dropped) = (10, 0);
        while dropped == 0 {
            dropped = spool.push(batch(next, 10)).unwrap();
            next += 10;
        }
        let waiting = spool.records();
        spool.pass(under_way.place(), 10);
        assert_eq!(spool.records(), waiting);
        let kept = drained(&mut spool);
        assert_eq!(kept, (u128::from(dropped)..next).collect::<Vec<_>>());
    }

    #[test]
    fn an_error_that_may_pass_costs_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut spool = Spool::open(dir.path(), 1 << 20).unwrap();
        spool.push(batch(0, 10)).unwrap();
        let (path, aside) = (spool.path(0), dir.path().join("aside"));
        std::fs::rename(&path, &aside).unwrap();
        // Gone for good is damage; a folder in its place is an error of the system.
        let gone = spool.oldest().unwrap_err();
        assert_eq!(gone.kind(), std::io::ErrorKind::InvalidData);
        std::fs::create_dir(&path).unwrap();
        let error = spool.oldest().unwrap_err();
        assert_ne!(error.kind(), std::io::ErrorKind::InvalidData);
        std::fs::remove_dir(&path).unwrap();
        std::fs::rename(&aside, &path).unwrap();
        assert_eq!(drained(&mut spool).len(), 10);
    }
}
