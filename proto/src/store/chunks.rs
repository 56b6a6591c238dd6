//! Cuts many operations into transactions that a store takes.

use super::Op;

/// Operations and bytes of one transaction: below what either store refuses, so that compares and
/// a few more operations fit beside them.
pub const CHUNK_OPS: usize = 100;
/// See [`CHUNK_OPS`].
pub const CHUNK_BYTES: usize = 1024 * 1024;

/// The bytes of an operation's key and value.
pub fn bytes_of(op: &Op) -> usize {
    match op {
        Op::Put { key, value, .. } => key.len() + value.len(),
        Op::Delete(key) => key.len(),
    }
}

/// The operations in their order, in parts of at most [`CHUNK_OPS`] and, but for a single larger
/// operation, [`CHUNK_BYTES`].
pub fn chunks(ops: Vec<Op>) -> Vec<Vec<Op>> {
    let mut chunks: Vec<Vec<Op>> = Vec::new();
    let mut bytes = 0;
    for op in ops {
        let size = bytes_of(&op);
        match chunks.last_mut() {
            Some(chunk) if chunk.len() < CHUNK_OPS && bytes + size <= CHUNK_BYTES => {
                chunk.push(op);
                bytes += size;
            }
            _ => {
                chunks.push(vec![op]);
                bytes = size;
            }
        }
    }
    chunks
}
