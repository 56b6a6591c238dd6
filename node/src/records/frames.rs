//! The frames of a spool's segments: length, number of records, and an encoded batch.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;
use std::sync::Arc;

use proto::record::Record;
use proto::wire::{self, RecordBatch};

/// Length and number of records before each batch.
pub(super) const HEAD_BYTES: usize = 8;

/// A batch as it lies in a segment.
pub(super) fn framed(records: Vec<Arc<Record>>) -> std::io::Result<Vec<u8>> {
    let count = u32::try_from(records.len()).map_err(std::io::Error::other)?;
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
    Ok(frame)
}

/// The next batch with the bytes of its frame; `None` where none is left or it needs more than
/// `room`.
pub(super) fn read_frame(
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
pub(super) fn cut(error: std::io::Error) -> std::io::Error {
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
pub(super) fn scan(path: &Path) -> std::io::Result<(u64, u64)> {
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
