//! Reading: a connection to the heads, and those to the segments that it was led to.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::ops::Deref;
use std::path::Path;
use std::sync::Arc;

use proto::id::OrgId;
use proto::wire::{Block, StoredRecord};
use rusqlite::{Connection, OptionalExtension};

use super::segments::{Place, Segments};
use super::{RecordsError, block, bytes, connect};

/// Most files of segments that one reader keeps open.
const OPEN_MAX: usize = 16;

/// Reads heads and blocks.
#[derive(Debug)]
pub(super) struct Reader {
    heads: Connection,
    segments: Arc<Segments>,
    /// The one that was read last is the last.
    open: RefCell<VecDeque<(i64, Connection)>>,
}

impl Deref for Reader {
    type Target = Connection;

    /// The file of the heads.
    fn deref(&self) -> &Connection {
        &self.heads
    }
}

impl Reader {
    /// Opens the file of the heads.
    pub(super) fn open(path: &Path, segments: Arc<Segments>) -> Result<Self, RecordsError> {
        Ok(Self {
            heads: connect(path)?,
            segments,
            open: RefCell::default(),
        })
    }

    /// Shows the records of a block to `visit`, one after another, until it says that it is
    /// enough. A block that went since its head was read, by its age or with its file, has none.
    ///
    /// # Errors
    /// The store failed or the block is damaged.
    pub(super) fn read(
        &self,
        org: OrgId,
        id: i64,
        mut visit: impl FnMut(&StoredRecord<'_>) -> bool,
    ) -> Result<(), RecordsError> {
        let damaged = |why: String| RecordsError::Damaged(format!("block {id}: {why}"));
        let Some(frame) = self.frame(id)? else {
            return Ok(());
        };
        let frame = frame.map_err(damaged)?;
        let records = Block::open(&frame).map_err(|error| damaged(error.to_string()))?;
        if records.org() != org {
            return Err(damaged("it belongs to another organisation".into()));
        }
        for record in records {
            if !visit(&record.map_err(|error| damaged(error.to_string()))?) {
                break;
            }
        }
        Ok(())
    }

    /// A block's frame, or why it is damaged; `None` where it is not there.
    pub(super) fn frame(&self, id: i64) -> Result<Option<Result<Vec<u8>, String>>, RecordsError> {
        match self.segments.place(id) {
            Place::Heads => frame_in(&self.heads, id),
            Place::Segment(first) => {
                let mut open = self.open.borrow_mut();
                match open.iter().position(|(known, _)| *known == first) {
                    Some(at) if at + 1 == open.len() => {}
                    Some(at) => {
                        let found = open.remove(at);
                        open.extend(found);
                    }
                    None => {
                        let Some(connection) = self.segments.existing(first)? else {
                            return Ok(None);
                        };
                        if open.len() >= OPEN_MAX {
                            open.pop_front();
                        }
                        open.push_back((first, connection));
                    }
                }
                match open.back() {
                    Some((_, connection)) => frame_in(connection, id),
                    None => Ok(None),
                }
            }
        }
    }

    /// Closes the file of a segment, so that the disk gets its space back when it is deleted.
    pub(super) fn close(&self, first_block: i64) {
        let mut open = self.open.borrow_mut();
        open.retain(|(known, _)| *known != first_block);
    }
}

fn frame_in(
    connection: &Connection,
    id: i64,
) -> Result<Option<Result<Vec<u8>, String>>, RecordsError> {
    Ok(connection
        .prepare_cached("SELECT data FROM blocks WHERE id = ?1")?
        .query_row([id], |row| Ok(block::unpack(bytes(row, 0)?)))
        .optional()?)
}
