//! What can go wrong inside SQLite, in the store contract's words.

use rusqlite::ErrorCode;

use crate::store::StoreError;

/// Why work on the database did not succeed.
#[derive(Debug)]
pub(super) enum Fault {
    /// The request was refused before it changed anything; the transaction it runs in goes on.
    Refused(StoreError),
    /// The database failed; the transaction it runs in must be rolled back.
    Broken(rusqlite::Error),
}

impl From<rusqlite::Error> for Fault {
    fn from(error: rusqlite::Error) -> Self {
        Self::Broken(error)
    }
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Self {
        Self::Refused(error)
    }
}

impl From<Fault> for StoreError {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Refused(error) => error,
            Fault::Broken(error) => nothing_done(&error),
        }
    }
}

/// The kind of an error after which nothing of the work remains.
pub(super) fn nothing_done(error: &rusqlite::Error) -> StoreError {
    let text = error.to_string();
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => StoreError::Full(text),
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => StoreError::Corrupt(text),
        Some(ErrorCode::TooBig) => StoreError::TooLarge(text),
        Some(_) => StoreError::Unavailable(text),
        // Not SQLite but our reading of its answer failed: a column is not of its type.
        None => StoreError::Corrupt(text),
    }
}

/// The kind of an error while the file is opened. Reading alone fails for a disk that is full,
/// where there is no room for the log's index.
pub(super) fn not_opened(error: &rusqlite::Error) -> StoreError {
    match error.sqlite_error_code() {
        Some(ErrorCode::SystemIoFailure) => StoreError::Full(error.to_string()),
        _ => nothing_done(error),
    }
}

/// The kind of an error of a commit.
///
/// After a failed write or fsync the commit may or may not be found in the log when it is read the
/// next time. Only a full disk and a busy database are known to have stopped it before that.
pub(super) fn commit_failed(error: &rusqlite::Error) -> StoreError {
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull | ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            nothing_done(error)
        }
        _ => StoreError::OutcomeUnknown(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use rusqlite::ffi;

    use super::*;

    fn failure(code: i32) -> rusqlite::Error {
        rusqlite::Error::SqliteFailure(ffi::Error::new(code), None)
    }

    #[test]
    fn each_failure_has_the_kind_that_tells_the_caller_what_to_do() {
        let check = |code: i32, before: &str, at_commit: &str| {
            let kind = |error: StoreError| format!("{error:?}");
            let found = kind(nothing_done(&failure(code)));
            assert!(found.starts_with(before), "{code}: {found}");
            let found = kind(commit_failed(&failure(code)));
            assert!(found.starts_with(at_commit), "{code} at commit: {found}");
        };
        let opening = not_opened(&failure(ffi::SQLITE_IOERR_SHMSIZE));
        assert!(matches!(opening, StoreError::Full(_)), "{opening:?}");
        check(ffi::SQLITE_FULL, "Full", "Full");
        check(ffi::SQLITE_BUSY, "Unavailable", "Unavailable");
        check(ffi::SQLITE_IOERR, "Unavailable", "OutcomeUnknown");
        check(ffi::SQLITE_READONLY, "Unavailable", "OutcomeUnknown");
        check(ffi::SQLITE_CORRUPT, "Corrupt", "OutcomeUnknown");
        check(ffi::SQLITE_NOTADB, "Corrupt", "OutcomeUnknown");
        check(ffi::SQLITE_TOOBIG, "TooLarge", "OutcomeUnknown");
    }
}
