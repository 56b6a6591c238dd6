//! Files that only their owner can read: mode 0600, written whole or not at all.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Puts a file with these parts, one after the other, in the place of what is there: written to
/// `temporary`, which lies in the same folder, synced, then renamed.
///
/// # Errors
/// The folder cannot be written, or the disk is full; the old file is then untouched.
pub fn replace(path: &Path, temporary: &Path, parts: &[&[u8]]) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(temporary)?;
    for part in parts {
        file.write_all(part)?;
    }
    file.sync_all()?;
    fs::rename(temporary, path)?;
    // A bare name lies in the current folder.
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}
