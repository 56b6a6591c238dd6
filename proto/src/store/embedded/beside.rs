//! The logs beside the store's file: whether they belong to it, and how they are moved away.
//!
//! SQLite replays the log that stands beside a file onto it, and knows by their names alone that
//! they belong together. A backup that is put in the place of a lost file would get the pages that
//! the lost one was to get: it would be corrupt, or wrong without a word. So the store keeps down
//! which two files it has open, in the file that it is locked by. A log that is still the one of
//! then, beside a file that is not, was written for another.
//!
//! Nothing is deleted. What is moved keeps the names that belong together, so that SQLite can open
//! it where it is. And nothing is moved unasked while there is a file that the log may belong to:
//! one that was moved to another disk and back is another one too.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};

/// What SQLite keeps beside a file: its log, and the log's index.
pub(super) const LOGS: [&str; 2] = ["-wal", "-shm"];
const LOG: &str = LOGS[0];

/// More than anybody lets pile up.
const ASIDE_MAX: u32 = 1_000;
/// Longer than any note.
const NOTE_BYTES_MAX: usize = 256;

/// Which file it is, whatever it is called. The number of one that is gone is given away again, so
/// it does not tell alone where the file system knows when a file was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Identity {
    inode: u64,
    made_ns: Option<u64>,
}

impl Identity {
    fn of(path: &Path) -> io::Result<Self> {
        let found = path.metadata()?;
        let made = found.created().ok();
        let made = made.and_then(|made| made.duration_since(UNIX_EPOCH).ok());
        Ok(Self {
            inode: found.ino(),
            made_ns: made.and_then(|made| u64::try_from(made.as_nanos()).ok()),
        })
    }
}

/// The file and the log that are open together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Pair {
    file: Identity,
    log: Identity,
}

impl Pair {
    /// Those that are there.
    pub(super) fn of(path: &Path) -> io::Result<Self> {
        Ok(Self {
            file: Identity::of(path)?,
            log: Identity::of(&with_suffix(path, LOG))?,
        })
    }

    /// Whether the log is still the one of `before`, and the file is not.
    fn is_torn_from(self, before: Self) -> bool {
        self.log == before.log && self.file != before.file
    }
}

/// Whether what the log holds was written for a file that another one has the place of.
pub(super) fn is_of_another(path: &Path, lock: &File) -> bool {
    if is_empty(&with_suffix(path, LOG)) {
        return false;
    }
    match (Pair::of(path), noted(lock)) {
        (Ok(now), Some(before)) => now.is_torn_from(before),
        _ => false,
    }
}

/// Whether the log holds something, and both are still those that were open together.
pub(super) fn is_of_this(path: &Path, lock: &File) -> bool {
    let (now, before) = (Pair::of(path).ok(), noted(lock));
    !is_empty(&with_suffix(path, LOG)) && now.is_some() && now == before
}

fn noted(lock: &File) -> Option<Pair> {
    let mut bytes = [0; NOTE_BYTES_MAX];
    let read = lock.read_at(&mut bytes, 0).ok()?;
    serde_json::from_slice(bytes.get(..read)?).ok()
}

/// Keeps down which two are open.
pub(super) fn note(path: &Path, lock: &File) -> io::Result<()> {
    let pair = Pair::of(path)?;
    if noted(lock) == Some(pair) {
        return Ok(());
    }
    // One that is not whole says nothing; one of other files would say something wrong.
    lock.set_len(0)?;
    lock.write_all_at(&serde_json::to_vec(&pair)?, 0)?;
    lock.sync_data()
}

/// Whether there is nothing in a file, or no file.
pub(super) fn is_empty(path: &Path) -> bool {
    match path.metadata() {
        Ok(found) => found.len() == 0,
        Err(error) => error.kind() == ErrorKind::NotFound,
    }
}

/// Moves what there is of the file and its logs, by their `suffixes`, to a name that nothing has;
/// says how they are called now.
pub(super) fn move_aside(path: &Path, suffixes: &[&str]) -> io::Result<Vec<PathBuf>> {
    let there: Vec<&&str> = suffixes
        .iter()
        .filter(|suffix| with_suffix(path, suffix).exists())
        .collect();
    let is_free = |aside: &PathBuf| {
        let mut names = ["", LOGS[0], LOGS[1]].into_iter();
        names.all(|suffix| !with_suffix(aside, suffix).exists())
    };
    let asides = (1..=ASIDE_MAX).map(|n| with_suffix(path, &format!(".aside.{n}")));
    let aside = asides.into_iter().find(is_free).ok_or_else(|| {
        let why = format!("{ASIDE_MAX} were moved aside before; remove some");
        io::Error::new(ErrorKind::AlreadyExists, why)
    })?;
    let mut moved = Vec::with_capacity(there.len());
    for suffix in there {
        let to = with_suffix(&aside, suffix);
        fs::rename(with_suffix(path, suffix), &to)?;
        moved.push(to);
    }
    Ok(moved)
}

/// The name of what stands beside a file.
pub(super) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_told_from_that_of_another_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store");
        let (log, away) = (with_suffix(&path, LOG), dir.path().join("away"));
        let mut lock = File::options();
        let lock = lock.read(true).write(true).create_new(true);
        let lock = lock.open(dir.path().join("lock")).unwrap();
        let make = |path: &Path, text: &str| fs::write(path, text).unwrap();
        make(&path, "a");
        make(&log, "log of a");
        assert!(!is_of_another(&path, &lock), "nothing is known");
        note(&path, &lock).unwrap();
        assert!(!is_of_another(&path, &lock), "those that were open");
        fs::rename(&path, &away).unwrap();
        assert!(!is_of_another(&path, &lock), "it is gone");
        make(&path, "backup of a");
        assert!(is_of_another(&path, &lock), "another has its place");
        make(&log, "");
        assert!(!is_of_another(&path, &lock), "nothing would be replayed");
        make(&log, "log of a");
        assert!(is_of_another(&path, &lock));
        // Both were put back, as from a copy of the folder.
        let copy = dir.path().join("copy");
        make(&copy, "log of the backup");
        fs::rename(&copy, &log).unwrap();
        assert!(!is_of_another(&path, &lock));
        // The one of then is back, beside its own log.
        note(&path, &lock).unwrap();
        fs::rename(&path, dir.path().join("elsewhere")).unwrap();
        fs::rename(dir.path().join("elsewhere"), &path).unwrap();
        assert!(!is_of_another(&path, &lock));
        lock.set_len(3).unwrap();
        fs::rename(&away, &path).unwrap();
        assert!(!is_of_another(&path, &lock), "a note that is not whole");
    }

    #[test]
    fn what_is_moved_aside_stays_together_and_takes_nobodys_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store");
        let names = |moved: Vec<PathBuf>| -> Vec<String> {
            let names = moved.iter().map(|path| path.file_name().unwrap());
            names.map(|name| name.to_string_lossy().into()).collect()
        };
        assert!(move_aside(&path, &LOGS).unwrap().is_empty());
        fs::write(with_suffix(&path, "-wal"), "1").unwrap();
        let moved = move_aside(&path, &LOGS).unwrap();
        assert_eq!(names(moved), ["store.aside.1-wal"]);
        for suffix in ["", "-wal", "-shm"] {
            fs::write(with_suffix(&path, suffix), "2").unwrap();
        }
        let moved = move_aside(&path, &["", "-wal", "-shm"]).unwrap();
        let expected = ["store.aside.2", "store.aside.2-wal", "store.aside.2-shm"];
        assert_eq!(names(moved), expected);
        let first = fs::read(dir.path().join("store.aside.1-wal")).unwrap();
        assert_eq!(first, b"1");
    }
}
