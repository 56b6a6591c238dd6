//! The records file, opened later where its disk is full or fails at the start: traffic does not
//! wait for it, and records wait in the nodes' spools.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use super::RecordsError;
use super::sqlite::Sqlite;

/// See the module.
#[derive(Debug)]
pub(super) struct Later {
    path: PathBuf,
    opened: OnceLock<Sqlite>,
    /// Held by the one who opens it.
    opening: Mutex<()>,
}

impl Later {
    /// Opens the file now, or whenever it is used, where the disk is in the way.
    pub(super) fn open(path: &Path) -> Result<Self, RecordsError> {
        let file = Self {
            path: path.to_owned(),
            opened: OnceLock::new(),
            opening: Mutex::default(),
        };
        match file.get().map(drop) {
            Err(error) if error.is_of_disk() => {
                let path = path.display();
                tracing::error!(
                    %error,
                    "{path} is not open, trying again whenever it is used; its disk is full or \
                     fails: {error}"
                );
                Ok(file)
            }
            opened => opened.map(|()| file),
        }
    }

    /// The file, if it is open.
    pub(super) fn opened(&self) -> Option<&Sqlite> {
        self.opened.get()
    }

    /// The file, opened if it was not.
    pub(super) fn get(&self) -> Result<&Sqlite, RecordsError> {
        if let Some(opened) = self.opened() {
            return Ok(opened);
        }
        let _one = self.opening.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(opened) = self.opened() {
            return Ok(opened);
        }
        let opened = Sqlite::open(&self.path)?;
        Ok(self.opened.get_or_init(|| opened))
    }
}
