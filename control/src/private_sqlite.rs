//! SQLite files that only their owner can read, whatever the folder and the umask are.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rusqlite::{Connection, DEFAULT_NAME, ErrorCode, FileControl};

/// What stays of a log that was carried over into its file.
const LOG_BYTES_MAX: i64 = 64 << 20;

/// Opens a file, made when missing. What SQLite keeps beside it gets the same mode, and stays there
/// when the file is closed: on a full disk the next one who opens it would find no room for it.
///
/// # Errors
/// The file cannot be opened.
pub fn open(path: &Path) -> rusqlite::Result<Connection> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    // Whatever is wrong with the place, or a file that is there: SQLite says it better.
    let _ = options.open(path);
    let db = Connection::open(path)?;
    db.file_control(DEFAULT_NAME, FileControl::PersistWal(&mut 1))?;
    // A log that stays must be emptied: it may hold what was deleted since.
    db.pragma_update(None, "journal_size_limit", LOG_BYTES_MAX)?;
    Ok(db)
}

/// Whether the disk of a file is full or fails: it may do better later.
pub fn is_of_disk(error: &rusqlite::Error) -> bool {
    let code = error.sqlite_error_code();
    matches!(code, Some(ErrorCode::DiskFull | ErrorCode::SystemIoFailure))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_beside_a_file_stays_empty_when_it_is_closed() {
        let dir = tempfile::tempdir().unwrap();
        let db = open(&dir.path().join("db")).unwrap();
        db.pragma_update(None, "journal_mode", "WAL").unwrap();
        db.execute_batch("CREATE TABLE t (a); INSERT INTO t VALUES (1)")
            .unwrap();
        db.close().unwrap();
        let bytes = |name: &str| std::fs::metadata(dir.path().join(name)).unwrap().len();
        assert_eq!(bytes("db-wal"), 0);
        assert!(bytes("db-shm") > 0);
    }
}
