//! Files that hold keys: mode 0600, written whole or not at all.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;

/// Writes a file that only its owner can read: a temporary one, synced, then renamed.
///
/// # Errors
/// The folder cannot be written, or the disk is full; the old file is then untouched.
pub fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    proto::private_file::replace(path, &path.with_extension("tmp"), &[content])
}

/// The same where there may be a file already: its owner, group and mode stay. Whoever runs a
/// command as root does not take a file from the service that reads it.
///
/// # Errors
/// As for [`write`]; or the file is written, and its owner could not be kept.
pub fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    let was = fs::metadata(path).ok();
    let mut kept = Ok(());
    proto::private_file::replace_after(path, &temporary, &[content], || {
        if let Some(was) = &was {
            kept = keep_owner(&temporary, was);
        }
    })?;
    kept.map_err(|error| {
        let why = format!("it is written, but its owner and mode were not kept: {error}");
        io::Error::new(error.kind(), why)
    })
}

/// The owner first: whoever had the group's rights before has them after.
fn keep_owner(path: &Path, was: &fs::Metadata) -> io::Result<()> {
    chown(path, Some(was.uid()), Some(was.gid()))?;
    fs::set_permissions(path, was.permissions())
}

/// Reads a file; `None` when it does not exist.
///
/// # Errors
/// It exists and cannot be read.
pub fn read(path: &Path) -> io::Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_written_file_is_private_and_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        assert_eq!(read(&path).unwrap(), None);
        write(&path, b"one").unwrap();
        write(&path, b"two").unwrap();
        assert_eq!(read(&path).unwrap().as_deref(), Some("two"));
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        replace(&path, b"three").unwrap();
        assert_eq!(read(&path).unwrap().as_deref(), Some("three"));
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o640, "who could read it still can");
        let bare = Path::new("private-file-of-a-test.tmp-name");
        write(bare, b"x").unwrap();
        fs::remove_file(bare).unwrap();
        assert!(write(&dir.path().join("none/key"), b"x").is_err());
    }
}
