//! Writing blocks: to one segment after another.

use rusqlite::{Connection, params};

use super::RecordsError;
use super::block::Packed;
use super::segments::{Segment, Segments};

/// Microseconds of a day.
const DAY_US: i64 = 86_400_000_000;

/// The segment that is written to.
#[derive(Debug)]
struct Open {
    segment: Segment,
    connection: Connection,
    /// About as many as it has.
    bytes: u64,
}

/// Writes blocks.
#[derive(Debug, Default)]
pub(super) struct Appender {
    open: Option<Open>,
}

impl Appender {
    /// Writes blocks with the numbers from `first` on to a segment of at most about `bytes_max`
    /// bytes, and gives the segment as it is with them. Nothing names them until the heads do.
    ///
    /// # Errors
    /// Nothing was written.
    pub(super) fn append(
        &mut self,
        segments: &Segments,
        bytes_max: u64,
        first: i64,
        blocks: &[&Packed],
    ) -> Result<Segment, RecordsError> {
        let last_us = blocks
            .iter()
            .map(|block| block.last_us)
            .max()
            .unwrap_or(i64::MIN);
        let day = last_us.div_euclid(DAY_US);
        let open = self.ready(segments, bytes_max, first, day)?;
        let txn = open.connection.transaction()?;
        for (id, block) in (first..).zip(blocks) {
            // A failure may have left a block of this number that nothing names.
            txn.prepare_cached("INSERT OR REPLACE INTO blocks (id, data) VALUES (?1, ?2)")?
                .execute(params![id, block.data])?;
        }
        txn.commit()?;
        let length = |block: &&Packed| block.bytes().unsigned_abs();
        open.bytes += blocks.iter().map(length).sum::<u64>();
        open.segment.last_us = open.segment.last_us.max(last_us);
        Ok(open.segment)
    }

    /// The segment for blocks of a day: the newest, or one that is begun.
    fn ready(
        &mut self,
        segments: &Segments,
        bytes_max: u64,
        first_block: i64,
        day: i64,
    ) -> Result<&mut Open, RecordsError> {
        let newest = segments.newest();
        let open = self.open.take().filter(|open| {
            newest.is_some_and(|newest| newest.first_block == open.segment.first_block)
        });
        let open = match (open, newest) {
            (None, Some(segment)) => Some(Open {
                segment,
                connection: segments.connect(segment.first_block)?,
                bytes: segments.bytes(segment.first_block),
            }),
            (open, _) => open,
        };
        let fits = |open: &Open| open.bytes < bytes_max && day <= open.segment.day;
        let open = match open.filter(fits) {
            Some(open) => open,
            None => {
                let segment = Segment {
                    first_block,
                    day,
                    last_us: i64::MIN,
                };
                Open {
                    segment,
                    connection: segments.connect(first_block)?,
                    bytes: 0,
                }
            }
        };
        Ok(self.open.insert(open))
    }

    /// Writes to no file any more; the next block opens one.
    pub(super) fn close(&mut self) {
        self.open = None;
    }
}

/// Says in the transaction of the heads what a segment is now.
pub(super) fn put_segment(txn: &Connection, segment: &Segment) -> Result<(), RecordsError> {
    let Segment {
        first_block,
        day,
        last_us,
    } = segment;
    txn.prepare_cached("INSERT OR REPLACE INTO segments VALUES (?1, ?2, ?3)")?
        .execute([first_block, day, last_us])?;
    Ok(())
}
