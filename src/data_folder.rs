//! The data folder: private, writable, and of one process at a time.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::serve::CannotStart;

/// How often a process that waits for the folder looks whether it is free.
const RETRY: Duration = Duration::from_millis(20);

/// A data folder that this process may use.
pub struct DataFolder {
    path: PathBuf,
    lock: File,
}

/// The folder is this process's while it holds this; the end of the process frees it too.
pub struct Claim(#[expect(dead_code, reason = "held for its lock")] File);

impl DataFolder {
    /// Makes the folder where it is missing, and tries to write there.
    ///
    /// # Errors
    /// [`CannotStart`]: it cannot be made or written.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let lock = make(path).map_err(|error| {
            CannotStart(format!(
                "the data folder {} cannot be written: {error}; choose another \
                 (`data_dir`; --data-dir of `dev`)",
                path.display()
            ))
        })?;
        Ok(Self {
            path: path.to_owned(),
            lock,
        })
    }

    /// Takes the folder for this process.
    ///
    /// # Errors
    /// [`CannotStart`]: another process has it, or it cannot be locked.
    pub fn claim(self) -> anyhow::Result<Claim> {
        match self.lock.try_lock() {
            Ok(()) => Ok(self.claimed()),
            Err(error) => Err(CannotStart(match error {
                TryLockError::WouldBlock => self.taken(),
                TryLockError::Error(error) => self.unlockable(&error),
            })
            .into()),
        }
    }

    /// Takes the folder when the process that has it ends.
    ///
    /// # Errors
    /// It cannot be locked at all.
    pub async fn claim_later(self) -> std::io::Result<Claim> {
        loop {
            match self.lock.try_lock() {
                Ok(()) => return Ok(self.claimed()),
                Err(TryLockError::WouldBlock) => tokio::time::sleep(RETRY).await,
                Err(TryLockError::Error(error)) => return Err(error),
            }
        }
    }

    /// Who has it is for people to read: nothing depends on it.
    fn claimed(mut self) -> Claim {
        let _ = self.lock.set_len(0);
        let _ = writeln!(self.lock, "{}", std::process::id());
        Claim(self.lock)
    }

    fn taken(&self) -> String {
        let mut holder = String::new();
        let _ = (&self.lock).read_to_string(&mut holder);
        let holder = match holder.trim() {
            "" => "another process".to_owned(),
            id => format!("process {id}"),
        };
        format!(
            "the data folder {} is used by {holder}; give each process its own (`data_dir`), or \
             replace the process that runs with --take-over",
            self.path.display()
        )
    }

    fn unlockable(&self, error: &std::io::Error) -> String {
        let path = self.path.display();
        format!(
            "the data folder {path} cannot be locked: {error}; choose a local disk (`data_dir`)"
        )
    }
}

fn make(path: &Path) -> std::io::Result<File> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    let probe = path.join(".writable");
    std::fs::write(&probe, b"")?;
    std::fs::remove_file(&probe)?;
    OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path.join("lock"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_folder_is_of_one_process_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        let first = DataFolder::open(&path).unwrap().claim().unwrap();
        let second = DataFolder::open(&path).unwrap().claim();
        let said = second.err().unwrap().to_string();
        let own = format!("is used by process {};", std::process::id());
        assert!(said.contains(&own), "{said}");
        let mut waiting = Box::pin(DataFolder::open(&path).unwrap().claim_later());
        let soon = tokio::time::timeout(RETRY * 2, &mut waiting).await;
        assert!(soon.is_err(), "the first one still has it");
        drop(first);
        waiting.await.unwrap();
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, b"").unwrap();
        let said = DataFolder::open(&file.join("x")).err().unwrap().to_string();
        assert!(said.contains("cannot be written"), "{said}");
    }
}
