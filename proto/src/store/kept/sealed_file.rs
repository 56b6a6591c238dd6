//! A file that only processes with the region's key ring can read, written whole or not at all.
//!
//! AES-256-GCM under a key that is made of the region's; a temporary file, synced, then renamed.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};

use super::KeptError;
use crate::private_file;

/// First bytes of a file: what it is, and its format.
const MAGIC: &[u8; 8] = b"RRKEPT01";

/// One such file.
pub(super) struct SealedFile {
    file: PathBuf,
    key: RandomizedNonceKey,
    /// What it is of: a file that takes the place of another one does not open.
    of: Vec<u8>,
    /// Where what it held before the last write stays, if that does.
    previous: Option<PathBuf>,
    /// Whether it could not be opened: then the one before it is the better one.
    is_damaged: AtomicBool,
}

impl SealedFile {
    /// # Errors
    /// The cipher refuses the key, which it does not.
    pub fn new(file: PathBuf, key: &[u8; 32], of: impl Into<Vec<u8>>) -> Result<Self, KeptError> {
        let key = RandomizedNonceKey::new(&AES_256_GCM, key).map_err(|_| KeptError::Sealed)?;
        Ok(Self {
            file,
            key,
            of: of.into(),
            previous: None,
            is_damaged: AtomicBool::new(false),
        })
    }

    /// The same file; what a write takes the place of stays under this name in its folder.
    pub fn with_previous(mut self, name: &str) -> Self {
        self.previous = Some(self.file.with_file_name(name));
        self
    }

    /// Whether there is such a file, whatever is in it.
    pub fn is_there(&self) -> bool {
        self.file.exists()
    }

    /// What it holds; `None` where there is none.
    ///
    /// # Errors
    /// [`KeptError`]; the file stays as it is.
    pub fn read(&self) -> Result<Option<Vec<u8>>, KeptError> {
        let read = self.read_from(&self.file);
        self.is_damaged.store(read.is_err(), Relaxed);
        read
    }

    /// What it held before the last write; `None` where that is not there.
    ///
    /// # Errors
    /// [`KeptError`]; the file stays as it is.
    pub fn read_previous(&self) -> Result<Option<Vec<u8>>, KeptError> {
        let previous = self.previous.as_deref();
        previous.map_or(Ok(None), |previous| self.read_from(previous))
    }

    fn read_from(&self, file: &Path) -> Result<Option<Vec<u8>>, KeptError> {
        match fs::read(file) {
            Ok(sealed) => self.open(sealed).map(Some),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn open(&self, mut sealed: Vec<u8>) -> Result<Vec<u8>, KeptError> {
        let body = sealed.strip_prefix(MAGIC).ok_or(KeptError::Sealed)?;
        let nonce: [u8; NONCE_LEN] = body
            .get(..NONCE_LEN)
            .and_then(|nonce| nonce.try_into().ok())
            .ok_or(KeptError::Sealed)?;
        let from = MAGIC.len() + NONCE_LEN;
        let mut body = sealed.split_off(from);
        let aad = Aad::from(self.of.as_slice());
        let opened = self.key.open_in_place(Nonce::from(&nonce), aad, &mut body);
        let length = opened.map_err(|_| KeptError::Sealed)?.len();
        body.truncate(length);
        Ok(body)
    }

    /// Writes it.
    ///
    /// # Errors
    /// [`KeptError`]; the file is then as it was.
    pub fn write(&self, content: Vec<u8>) -> Result<(), KeptError> {
        let keep = || {
            let previous = self.previous.as_ref();
            if let Some(previous) = previous.filter(|_| !self.is_damaged.load(Relaxed)) {
                // Where neither can be done, there is no previous one, and the file is what it is.
                let _ = fs::remove_file(previous);
                let _ = fs::hard_link(&self.file, previous);
            }
        };
        self.put(&self.file, content, keep)?;
        self.is_damaged.store(false, Relaxed);
        Ok(())
    }

    /// The same, and nothing of what it held before stays: once it is written it is written a
    /// second time, as the one before.
    ///
    /// # Errors
    /// [`KeptError`]; what it held before may stay, and it is to be written again.
    pub fn write_over(&self, content: Vec<u8>) -> Result<(), KeptError> {
        let Some(previous) = &self.previous else {
            return self.write(content);
        };
        self.put(&self.file, content.clone(), || {})?;
        self.is_damaged.store(false, Relaxed);
        self.put(previous, content, || {})
    }

    fn put(
        &self,
        file: &Path,
        mut content: Vec<u8>,
        before: impl FnOnce(),
    ) -> Result<(), KeptError> {
        let aad = Aad::from(self.of.as_slice());
        let sealed = self.key.seal_in_place_append_tag(aad, &mut content);
        let nonce = sealed.map_err(|_| KeptError::Sealed)?;
        // Two processes write here while one takes over from the other.
        let temporary = file.with_extension(temporary(std::process::id()));
        let parts: [&[u8]; 3] = [MAGIC, nonce.as_ref(), &content];
        Ok(private_file::replace_after(
            file, &temporary, &parts, before,
        )?)
    }
}

/// The end of the name of a file that a process is writing.
pub(super) fn temporary(process: u32) -> String {
    format!("{process}.tmp")
}
