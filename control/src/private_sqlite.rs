//! SQLite files that only their owner can read, whatever the folder and the umask are.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rusqlite::Connection;

/// Opens a file, made when missing. What SQLite keeps beside it gets the same mode.
///
/// # Errors
/// The file cannot be opened.
pub fn open(path: &Path) -> rusqlite::Result<Connection> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    // Whatever is wrong with the place, or a file that is there: SQLite says it better.
    let _ = options.open(path);
    Connection::open(path)
}
