//! Files that only their owner can read: mode 0600, written whole or not at all.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Puts a file with these parts, one after the other, in the place of what is there: written to
/// `temporary`, which lies in the same folder, synced, then renamed.
///
/// # Errors
/// The folder cannot be written, or the disk is full; the old file is then untouched, and the
/// temporary one takes no room.
pub fn replace(path: &Path, temporary: &Path, parts: &[&[u8]]) -> io::Result<()> {
    replace_after(path, temporary, parts, || {})
}

/// The same; `before` is done when the new file is on the disk and the old one in its place still.
///
/// # Errors
/// As for [`replace`].
pub fn replace_after(
    path: &Path,
    temporary: &Path,
    parts: &[&[u8]],
    before: impl FnOnce(),
) -> io::Result<()> {
    let written = write(temporary, parts).and_then(|()| {
        before();
        fs::rename(temporary, path)
    });
    if written.is_err() {
        // What stays is overwritten by the next one.
        let _ = fs::remove_file(temporary);
    }
    written?;
    sync_folder_of(path)
}

/// Writes a file where there is none.
///
/// # Errors
/// `AlreadyExists` where there is one, which is untouched. The folder cannot be written, or the
/// disk is full; there is no file then.
pub fn create(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = opened(OpenOptions::new().write(true).create_new(true), path)?;
    let written = file.write_all(content).and_then(|()| file.sync_all());
    if written.is_err() {
        let _ = fs::remove_file(path);
    }
    written?;
    sync_folder_of(path)
}

fn write(path: &Path, parts: &[&[u8]]) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let mut file = opened(options.write(true).create(true).truncate(true), path)?;
    for part in parts {
        file.write_all(part)?;
    }
    file.sync_all()
}

fn opened(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    options.mode(0o600).open(path)
}

fn sync_folder_of(path: &Path) -> io::Result<()> {
    // A bare name lies in the current folder.
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_created_takes_nobodys_place() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        create(&file, b"one").unwrap();
        let again = create(&file, b"two").unwrap_err();
        assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&file).unwrap(), b"one");
        let mode =
            std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&file).unwrap().permissions());
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn what_cannot_be_put_in_place_takes_no_room() {
        let dir = tempfile::tempdir().unwrap();
        let (file, temporary) = (dir.path().join("file"), dir.path().join("file.tmp"));
        replace(&file, &temporary, &[b"a", b"b"]).unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"ab");
        // A folder in its place, which no file can take.
        let taken = dir.path().join("taken");
        fs::create_dir_all(taken.join("inside")).unwrap();
        assert!(replace(&taken, &temporary, &[b"c"]).is_err());
        assert!(!temporary.exists());
    }
}
