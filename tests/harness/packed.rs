//! What lies packed in bytes that were written: frames of zstd, wherever they begin, frames within
//! frames, and the cells of SQLite files, which these cut into pages.
#![allow(dead_code, reason = "each test program uses a part of it")]

use std::io::Read;
use std::path::Path;

use rusqlite::types::ValueRef;
use rusqlite::{Connection, OpenFlags};

/// What a frame of zstd begins with.
const MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// Most that is unpacked of one frame, in bytes.
const FRAME_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// Frames in frames that are looked into.
const DEPTH_MAX: usize = 4;
/// What a SQLite file begins with.
const SQLITE: &[u8] = b"SQLite format 3\0";

/// Bytes, and what is packed in them.
pub fn unpacked(bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut all = vec![bytes.to_vec()];
    add_frames(bytes, DEPTH_MAX, &mut all);
    all
}

/// The same of a file; nothing of one that is gone.
pub fn unpacked_file(path: &Path) -> Vec<Vec<u8>> {
    let Ok(bytes) = std::fs::read(path) else {
        return Vec::new();
    };
    let mut all = unpacked(&bytes);
    if bytes.starts_with(SQLITE) {
        for cell in cells(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())) {
            all.extend(unpacked(&cell));
        }
    }
    all
}

fn add_frames(bytes: &[u8], depth: usize, all: &mut Vec<Vec<u8>>) {
    if depth == 0 {
        return;
    }
    let starts = bytes.windows(MAGIC.len()).enumerate();
    for (at, _) in starts.filter(|(_, start)| *start == MAGIC) {
        let mut content = Vec::new();
        if let Ok(decoder) = zstd::stream::read::Decoder::with_buffer(&bytes[at..]) {
            // What ends in the middle, or only looks like a frame, is looked at as far as it goes.
            let _ = decoder
                .single_frame()
                .take(FRAME_BYTES_MAX)
                .read_to_end(&mut content);
        }
        if !content.is_empty() {
            add_frames(&content, depth - 1, all);
            all.push(content);
        }
    }
}

/// Every text and every value of bytes in a file of SQLite, which may be in use.
fn cells(path: &Path) -> rusqlite::Result<Vec<Vec<u8>>> {
    let db = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    db.busy_timeout(super::http::SILENCE_MAX)?;
    let listed = "SELECT name FROM sqlite_schema WHERE type = 'table' AND rootpage > 0";
    let names: rusqlite::Result<Vec<String>> = db
        .prepare(listed)?
        .query_map([], |row| row.get(0))?
        .collect();
    let mut found = Vec::new();
    for name in names? {
        let mut all = db.prepare(&format!("SELECT * FROM \"{name}\""))?;
        let columns = all.column_count();
        let mut rows = all.query([])?;
        while let Some(row) = rows.next()? {
            for column in 0..columns {
                if let ValueRef::Text(bytes) | ValueRef::Blob(bytes) = row.get_ref(column)? {
                    found.push(bytes.to_vec());
                }
            }
        }
    }
    Ok(found)
}

#[test]
fn what_is_packed_is_found_in_files_frames_and_tables() {
    let finds = |all: &[Vec<u8>]| {
        let mut all = all.iter();
        all.any(|bytes| String::from_utf8_lossy(bytes).contains("canary"))
    };
    // Few letters in no order: packed it is more than a page of a table, and no text any more.
    let mut state = 1_u32;
    let letter = |_| {
        for (left, by) in [(true, 13), (false, 17), (true, 5)] {
            state ^= if left { state << by } else { state >> by };
        }
        b"abcdefghijklmnop"[state as usize % 16]
    };
    let noise: Vec<u8> = (0..40_000).map(letter).collect();
    let content = [noise.as_slice(), b"a canary"].concat();
    let once = zstd::bulk::compress(&content, 3).expect("it is packed");
    let twice = [b"before".as_slice(), &once, b"behind"].concat();
    let twice = zstd::bulk::compress(&twice, 3).expect("it is packed");
    assert!(!finds(&[once.clone(), twice.clone()]), "as it is written");
    for (packed, found) in [
        (b"a canary".to_vec(), true),
        (once.clone(), true),
        ([b"before".as_slice(), &once].concat(), true),
        (twice.clone(), true),
        (once[..once.len() / 2].to_vec(), false),
        (MAGIC.to_vec(), false),
        (b"nothing".to_vec(), false),
    ] {
        assert_eq!(finds(&unpacked(&packed)), found, "{} bytes", packed.len());
    }

    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("some.sqlite");
    let db = Connection::open(&file).expect("a database");
    db.pragma_update(None, "journal_mode", "WAL").expect("WAL");
    db.execute_batch("CREATE TABLE t (id INTEGER PRIMARY KEY, value BLOB)")
        .expect("a table");
    assert!(!finds(&unpacked_file(&file)));
    db.execute("INSERT INTO t (value) VALUES (?1)", [&twice])
        .expect("a row");
    // While it is in use, and when it is not.
    assert!(finds(&unpacked_file(&file)));
    drop(db);
    let bytes = std::fs::read(&file).expect("a file");
    assert!(!finds(&unpacked(&bytes)), "its pages cut the frame");
    assert!(finds(&unpacked_file(&file)));
    assert!(unpacked_file(&folder.path().join("gone")).is_empty());
}
