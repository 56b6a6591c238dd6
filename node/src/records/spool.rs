//! Records on disk while no control plane takes them: bounded, oldest first, whole again after a
//! crash.
//!
//! A spool is a folder of segments; each is a file of frames ([`super::frames`]). New batches go to
//! the end of the last segment; what is acknowledged is passed over, and a segment that is passed
//! goes. At the bound, and where the disk is full, the oldest segment goes, and its records count
//! as dropped. A frame that a crash cut is left out. After a restart the first segment is sent
//! again from its beginning: who stores records knows them by their ids.

use std::collections::VecDeque;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{BufReader, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use proto::record::Record;
use proto::wire;

use super::frames::{cut, framed, read_frame, scan};

/// Largest part of the bound that one segment takes.
const SEGMENTS_MIN: u64 = 8;
/// Largest segment, in bytes.
const SEGMENT_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// Most bytes of batches that are sent as one: half of what a frame may have.
const JOINED_BYTES_MAX: u64 = wire::PAYLOAD_BYTES_MAX as u64 / 2;
/// On a full disk the oldest go until they have freed so many times what a batch needs.
const ROOM_TRIES: u64 = 4;

/// Records that wait on disk.
#[derive(Debug)]
pub struct Spool {
    dir: PathBuf,
    bytes_max: u64,
    /// Most bytes that are sent as one now: fewer after a failure.
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

/// What became of a batch, and of others.
#[derive(Debug, Default)]
pub struct Kept {
    /// Records that are lost: the oldest, or those of the batch itself.
    pub lost: u64,
    /// Whether the batch is among them because the disk did not take it.
    pub refused: bool,
    /// Why the batch was not taken as it was.
    pub problem: Option<std::io::Error>,
}

impl Kept {
    /// The batch is lost as well.
    fn without(self, count: u64, problem: std::io::Error) -> Self {
        Self {
            lost: self.lost + count,
            refused: self.refused,
            problem: Some(problem),
        }
    }

    /// The disk did not take it.
    fn refused(self, count: u64, problem: std::io::Error) -> Self {
        let refused = true;
        let kept = Self { refused, ..self };
        kept.without(count, problem)
    }
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

    /// Adds a batch. On a full disk the oldest segments go for it.
    pub fn keep(&mut self, records: Vec<Arc<Record>>) -> Kept {
        let count = records.len() as u64;
        let mut kept = Kept::default();
        let frame = match framed(records) {
            Ok(frame) => frame,
            Err(problem) => return kept.without(count, problem),
        };
        let (mut freed, enough) = (0, ROOM_TRIES * frame.len() as u64);
        loop {
            match self.push(&frame, count) {
                Ok(dropped) => {
                    kept.lost += dropped;
                    return kept;
                }
                // Where that was of no use others take the room, and more of it would be theirs.
                Err(problem) if is_full(&problem) && !self.is_empty() && freed < enough => {
                    freed += self.segments.front().map_or(0, |first| first.bytes);
                    kept.lost += self.skip();
                    kept.problem = Some(problem);
                }
                Err(problem) => return kept.refused(count, problem),
            }
        }
    }

    /// Adds a frame; gives how many of the oldest records had to go for it at the bound.
    ///
    /// # Errors
    /// It cannot be written; then it is not in the spool, and nothing else has changed.
    fn push(&mut self, frame: &[u8], count: u64) -> std::io::Result<u64> {
        self.append(frame)?;
        if let Some(last) = self.segments.back_mut() {
            last.bytes += frame.len() as u64;
            last.records += count;
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

    /// The oldest batch was not taken: half as much is sent as one the next time, down to a single
    /// frame, since it may be the size that is not taken.
    pub fn not_taken(&mut self, place: Place) {
        self.joined_bytes_max = place.frame_bytes / 2;
    }

    /// Passes over the oldest batch: it is stored elsewhere. The next one may be twice as large.
    pub fn pass(&mut self, place: Place, records: u64) {
        let taken = self.joined_bytes_max.max(place.frame_bytes);
        self.joined_bytes_max = taken.saturating_mul(2).min(JOINED_BYTES_MAX);
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

    /// Gives up the oldest segment; how many records are lost with it.
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

/// Whether an error says that there is no room, which others that go may make.
fn is_full(problem: &std::io::Error) -> bool {
    use std::io::ErrorKind::{QuotaExceeded, StorageFull};
    matches!(problem.kind(), StorageFull | QuotaExceeded)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::frames::HEAD_BYTES;
    use crate::records::tests::record;

    fn batch(from: u128, count: u128) -> Vec<Arc<Record>> {
        (from..from + count).map(|n| Arc::new(record(n))).collect()
    }

    /// Adds a batch that has room; how many others are lost for it.
    fn kept(spool: &mut Spool, from: u128, count: u128) -> u64 {
        let kept = spool.keep(batch(from, count));
        assert!(!kept.refused, "{kept:?}");
        kept.lost
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
            assert_eq!(kept(&mut spool, at * 10, 10), 0);
        }
        assert_eq!(spool.records(), 100);
        assert_eq!(drained(&mut spool), (0..100).collect::<Vec<_>>());
        assert_eq!((spool.records(), files(dir.path())), (0, 0));
        kept(&mut spool, 500, 1);
        assert_eq!(drained(&mut spool), [500]);
    }

    #[test]
    fn another_process_finds_what_was_left_even_cut_by_a_crash() {
        let dir = tempfile::tempdir().unwrap();
        let mut spool = Spool::open(dir.path(), 1 << 20).unwrap();
        for at in 0..3 {
            kept(&mut spool, at * 10, 10);
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
            kept(&mut spool, 90, 1);
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
            dropped += kept(&mut spool, at * 10, 10);
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
            let next = spool.records().into();
            kept(&mut spool, next, 10);
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
            kept(&mut spool, at * 10, 10);
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
    fn small_records_that_are_joined_are_read_by_who_takes_them() {
        let dir = tempfile::tempdir().unwrap();
        let mut spool = Spool::open(dir.path(), 1 << 26).unwrap();
        while spool.segments.iter().map(|one| one.bytes).sum::<u64>() <= JOINED_BYTES_MAX {
            let next = spool.records().into();
            kept(&mut spool, next, 512);
        }
        let oldest = spool.oldest().unwrap().unwrap();
        let batch = proto::wire::RecordBatch {
            records: oldest.records,
            ..Default::default()
        };
        let frame = wire::encode(&batch).unwrap();
        assert!(wire::decode::<proto::wire::RecordBatch>(&frame).unwrap() == batch);
    }

    #[test]
    fn what_is_not_taken_is_halved_down_to_one_frame_and_grows_again() {
        let dir = tempfile::tempdir().unwrap();
        let mut spool = Spool::open(dir.path(), 1 << 20).unwrap();
        // Numbers of one length, so that frames have one.
        for at in 100..164 {
            kept(&mut spool, at * 10, 10);
        }
        let mut counts = Vec::new();
        for _ in 0..8 {
            let oldest = spool.oldest().unwrap().unwrap();
            counts.push(oldest.records.len());
            spool.not_taken(oldest.place());
        }
        assert_eq!(counts, [640, 320, 160, 80, 40, 20, 10, 10]);
        counts.clear();
        while let Some(oldest) = spool.oldest().unwrap() {
            counts.push(oldest.records.len());
            spool.pass(oldest.place(), oldest.records.len() as u64);
        }
        assert_eq!(counts, [10, 20, 40, 80, 160, 320, 10]);
    }

    #[test]
    fn a_batch_that_is_too_large_says_nothing_of_the_disk() {
        let dir = tempfile::tempdir().unwrap();
        let mut spool = Spool::open(dir.path(), 1 << 26).unwrap();
        let mut large = record(1);
        large.path = "x".repeat(wire::PAYLOAD_BYTES_MAX);
        let lost = spool.keep(vec![Arc::new(large)]);
        assert!(lost.problem.is_some() && !lost.refused);
        assert_eq!(lost.lost, 1);
    }

    #[test]
    fn a_disk_that_takes_nothing_loses_only_what_it_did_not_take() {
        let dir = tempfile::tempdir().unwrap();
        let mut spool = Spool::open(dir.path(), 1 << 20).unwrap();
        kept(&mut spool, 0, 5);
        // A folder where the next segment belongs.
        std::fs::create_dir(spool.path(1)).unwrap();
        spool.writer = None;
        let refused = spool.keep(batch(5, 5));
        assert!(refused.refused && refused.problem.is_some());
        assert_eq!(refused.lost, 5);
        assert_eq!(spool.records(), 5);
        std::fs::remove_dir(spool.path(1)).unwrap();
        kept(&mut spool, 10, 5);
        assert_eq!(drained(&mut spool), [0, 1, 2, 3, 4, 10, 11, 12, 13, 14]);
    }

    #[test]
    fn on_a_full_disk_the_oldest_go_for_what_is_new_and_are_counted() {
        let dir = tempfile::tempdir().unwrap();
        let mut spool = Spool::open(dir.path(), 64 * 1024).unwrap();
        let mut next = 0;
        while spool.segments.len() < 3 {
            assert_eq!(kept(&mut spool, next, 10), 0);
            next += 10;
        }
        let oldest = spool.segments[0].records;
        let fill = |spool: &mut Spool| {
            let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
            spool.writer = Some(full);
        };
        fill(&mut spool);
        let taken = spool.keep(batch(next, 10));
        let problem = taken.problem.expect("what the disk said");
        assert!(is_full(&problem), "{problem}");
        assert_eq!((taken.lost, taken.refused), (oldest, false));
        next += 10;
        let left: Vec<u128> = (u128::from(oldest)..next).collect();
        assert_eq!(drained(&mut spool), left);
        // Where that is of no use the batch is lost as well.
        kept(&mut spool, next, 10);
        fill(&mut spool);
        std::fs::create_dir(spool.path(spool.next)).unwrap();
        let refused = spool.keep(batch(next + 10, 10));
        assert_eq!((refused.lost, refused.refused), (20, true));
        assert!(spool.is_empty());
    }

    #[test]
    fn an_acknowledgement_of_what_had_to_go_passes_over_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let mut spool = Spool::open(dir.path(), 64 * 1024).unwrap();
        kept(&mut spool, 0, 10);
        let under_way = spool.oldest().unwrap().unwrap();
        let (mut next, mut dropped) = (10, 0);
        while dropped == 0 {
            dropped = kept(&mut spool, next, 10);
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
        kept(&mut spool, 0, 10);
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
