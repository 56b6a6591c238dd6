//! Opening the store's file: for one process at a time, private to its user, ours and sound.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, DEFAULT_NAME, FileControl, OpenFlags};

use super::beside::{self, LOGS, with_suffix};
use super::fault::not_opened;
use crate::store::StoreError;

/// Marks the file as ours in SQLite's header ("RRkv").
const APPLICATION_ID: i32 = 0x5252_6b76;

/// Version of the tables; a file with a higher one was written by a later release.
const SCHEMA_VERSION: i32 = 1;

/// How long a statement waits for a lock that another program (a backup) holds on the file.
const BUSY_TIMEOUT: Duration = Duration::from_secs(1);

/// The write-ahead log is cut back to this size after a checkpoint.
const LOG_BYTES_MAX: u64 = 64 << 20;

/// Beside the file: what it is locked by, and which log belongs to it.
const LOCK: &str = ".lock";

const SQLITE_PAGE_BYTES: u64 = 4096;

/// `kv` is only ever appended to, but for what a compaction removes. `id` grows with `revision` and
/// keeps the order of a transaction's ops. `lease.id` is never used twice, so that the owner of an
/// ended lease cannot renew another's.
const SCHEMA: &str = "
CREATE TABLE kv (
    id INTEGER PRIMARY KEY,
    revision INTEGER NOT NULL,
    key BLOB NOT NULL,
    create_revision INTEGER NOT NULL,
    version INTEGER NOT NULL,
    deleted INTEGER NOT NULL,
    lease INTEGER,
    value BLOB NOT NULL
) STRICT;
CREATE UNIQUE INDEX kv_key ON kv (key, revision);
CREATE INDEX kv_revision ON kv (revision);
CREATE INDEX kv_lease ON kv (lease) WHERE lease IS NOT NULL;
CREATE TABLE lease (id INTEGER PRIMARY KEY AUTOINCREMENT, ttl_ms INTEGER NOT NULL) STRICT;
CREATE TABLE compaction (id INTEGER PRIMARY KEY CHECK (id = 1), revision INTEGER NOT NULL) STRICT;
INSERT INTO compaction VALUES (1, 0);
";

/// The store's file, held by this process until dropped.
#[derive(Debug)]
pub(super) struct DataFile {
    path: PathBuf,
    // A file of its own: closing any handle of the database file would drop SQLite's own locks.
    lock: File,
}

impl DataFile {
    /// Creates the file when it is absent and takes it for this process.
    pub(super) fn take(path: &Path) -> Result<Self, StoreError> {
        let file = Self::locked(path)?;
        if beside::is_empty(path) && !beside::is_empty(&with_suffix(path, LOGS[0])) {
            // SQLite would delete it: it is of a file that is gone.
            for log in file.move_aside(&LOGS)? {
                let (path, log) = (path.display(), log.display());
                tracing::warn!("{path} is made anew; what was beside it is {log} now");
            }
        }
        not_of_another(path, &file.lock)?;
        create(path)?;
        Ok(file)
    }

    /// Takes the place of the file for this process.
    fn locked(path: &Path) -> Result<Self, StoreError> {
        let lock_path = with_suffix(path, LOCK);
        let lock = private().create(true).open(&lock_path);
        let lock = lock.map_err(|error| cannot("open", &lock_path, &error))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let path = path.display();
                return Err(StoreError::Unavailable(format!(
                    "{path} is in use by another process; a store on disk serves one at a time"
                )));
            }
            Err(TryLockError::Error(error)) => return Err(cannot("lock", &lock_path, &error)),
        }
        Ok(Self {
            path: path.to_owned(),
            lock,
        })
    }

    /// Puts a backup in the place of the file, or says that what is there is one: what SQLite would
    /// replay onto it is moved aside, with the former file if there is one. Says what was moved.
    pub(super) fn restore(path: &Path, backup: Option<&Path>) -> Result<Vec<PathBuf>, StoreError> {
        let file = Self::locked(path)?;
        let staged = backup.map(|backup| stage(path, backup)).transpose()?;
        let moved = match &staged {
            Some(_) => file.move_aside(&["", LOGS[0], LOGS[1]])?,
            None if beside::is_empty(path) => {
                let why = format!("there is no {}; name the backup", path.display());
                return Err(StoreError::Unavailable(why));
            }
            None if beside::is_of_this(path, &file.lock) => {
                let why = format!(
                    "{log} was written for {path} as it is there, and may hold the newest of it: \
                     nothing has to be put back, start the process. If a backup was copied into \
                     the file, name that backup, or move {log} and its index away",
                    log = with_suffix(path, LOGS[0]).display(),
                    path = path.display()
                );
                return Err(StoreError::Unavailable(why));
            }
            None => file.move_aside(&LOGS)?,
        };
        if let Some(staged) = staged {
            fs::rename(&staged, path).map_err(|error| cannot("make", path, &error))?;
        }
        sync_directory(path)?;
        // It is of the former one.
        let cleared = file.lock.set_len(0);
        cleared.map_err(|error| cannot("write", &with_suffix(path, LOCK), &error))?;
        Ok(moved)
    }

    fn move_aside(&self, suffixes: &[&str]) -> Result<Vec<PathBuf>, StoreError> {
        let moved = beside::move_aside(&self.path, suffixes);
        moved.map_err(|error| cannot("move aside what is beside", &self.path, &error))
    }

    /// Keeps down which files are open, so that the next start knows whether the log belongs to
    /// what it finds. A disk that is full is no reason not to serve.
    pub(super) fn note(&self) {
        if let Err(error) = beside::note(&self.path, &self.lock) {
            let lock = with_suffix(&self.path, LOCK);
            tracing::warn!("{}", cannot("write", &lock, &error));
        }
    }

    /// Whether the file, if there is one, is ours and of tables that are known. Another process may
    /// have it.
    pub(super) fn check(path: &Path) -> Result<(), StoreError> {
        if !path.exists() {
            return Ok(());
        }
        if let Ok(lock) = File::open(with_suffix(path, LOCK)) {
            not_of_another(path, &lock)?;
        }
        let opened = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)
            .and_then(|db| db.busy_timeout(BUSY_TIMEOUT).map(|()| db));
        let checked = opened.map_err(|error| not_opened(&error));
        let checked = checked.and_then(|db| is_fresh(&db).map(drop));
        checked.map_err(|error| named(path, error))
    }

    /// What it is called.
    pub(super) fn name(&self) -> String {
        let name = self.path.file_name().unwrap_or_default();
        name.to_string_lossy().into_owned()
    }

    /// The only connection that writes, with the tables in place and the file checked.
    pub(super) fn open_writer(&self, size_bytes_max: u64) -> Result<Connection, StoreError> {
        let db = self.connect()?;
        let prepared = prepare(&db, size_bytes_max);
        prepared.map_err(|error| named(&self.path, error))?;
        Ok(db)
    }

    /// A connection that can only read.
    pub(super) fn open_reader(&self) -> Result<Connection, StoreError> {
        let db = self.connect()?;
        db.pragma_update(None, "query_only", true)
            .map_err(|error| named(&self.path, not_opened(&error)))?;
        Ok(db)
    }

    fn connect(&self) -> Result<Connection, StoreError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let opened = Connection::open_with_flags(&self.path, flags).and_then(|db| {
            db.busy_timeout(BUSY_TIMEOUT)?;
            // The log and its index stay when the file is closed: on a full disk the next start
            // would find no room for them. The writer closes last, and empties the log.
            db.file_control(DEFAULT_NAME, FileControl::PersistWal(&mut 1))?;
            Ok(db)
        });
        opened.map_err(|error| named(&self.path, not_opened(&error)))
    }
}

fn named(path: &Path, error: StoreError) -> StoreError {
    let path = path.display();
    match error {
        StoreError::Corrupt(text) => StoreError::Corrupt(format!("{path}: {text}")),
        StoreError::Full(text) => StoreError::Full(format!("{path}: {text}")),
        other => StoreError::Unavailable(format!("cannot open {path}: {other}")),
    }
}

/// Refuses a file that has the place of the one that the log beside it was written for.
fn not_of_another(path: &Path, lock: &File) -> Result<(), StoreError> {
    if !beside::is_of_another(path, lock) {
        return Ok(());
    }
    let (log, lock) = (with_suffix(path, LOGS[0]), with_suffix(path, LOCK));
    let why = format!(
        "it is not the file that {} was written for, and SQLite would replay that onto it. If it \
         is a restored backup, `requestrocket restore --data-dir` of its folder moves the log \
         aside; if it is the same file, moved away and back, remove {}",
        log.display(),
        lock.display()
    );
    Err(named(path, StoreError::Corrupt(why)))
}

/// Copies a backup beside the file, with what its own log holds, and looks whether it is a store.
fn stage(path: &Path, backup: &Path) -> Result<PathBuf, StoreError> {
    let staged = with_suffix(path, ".restored");
    let made = private().create(true).open(&staged);
    let made = made.and_then(|staged| staged.set_len(0).map(|()| staged));
    let made = made.map_err(|error| cannot("make", &staged, &error))?;
    let copied = opened_backup(backup)
        .map_err(|error| not_opened(&error))
        .and_then(|db| match is_fresh(&db)? {
            true => Err(StoreError::Corrupt("there is no store in it".into())),
            false => Ok(db),
        });
    let copied = copied.and_then(|db| {
        let copy = db.execute("VACUUM INTO ?1", [staged.to_string_lossy()]);
        copy.map(drop).map_err(|error| not_opened(&error))
    });
    let copied = copied.map_err(|error| named(backup, error)).and_then(|()| {
        let synced = made.sync_all();
        synced.map_err(|error| cannot("sync", &staged, &error))
    });
    if copied.is_err() {
        let _ = fs::remove_file(&staged);
    }
    copied.map(|()| staged)
}

/// Opens a backup to be read. One without a log of its own is opened as a file that nobody changes:
/// SQLite would make a log beside it otherwise, and its folder may be one that nobody may write to.
fn opened_backup(backup: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY;
    match (beside::is_empty(&with_suffix(backup, LOGS[0])), url(backup)) {
        (true, Some(url)) => Connection::open_with_flags(
            format!("{url}?immutable=1"),
            flags | OpenFlags::SQLITE_OPEN_URI,
        ),
        _ => Connection::open_with_flags(backup, flags),
    }
}

/// The URL of a file; none where its name is not UTF-8.
fn url(path: &Path) -> Option<String> {
    let name = path.to_str()?;
    let escaped = name
        .replace('%', "%25")
        .replace('?', "%3f")
        .replace('#', "%23");
    Some(format!("file:{escaped}"))
}

fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).truncate(false).mode(0o600);
    options
}

fn cannot(verb: &str, path: &Path, error: &io::Error) -> StoreError {
    let text = format!("cannot {verb} {}: {error}", path.display());
    match error.kind() {
        io::ErrorKind::StorageFull => StoreError::Full(text),
        _ => StoreError::Unavailable(text),
    }
}

/// SQLite would create the file readable by all; and its log takes the file's mode.
fn create(path: &Path) -> Result<(), StoreError> {
    if path.exists() {
        return Ok(());
    }
    let created = private().create_new(true).open(path);
    created.map_err(|error| cannot("create", path, &error))?;
    sync_directory(path)
}

/// The name must survive a power cut as well as what is written under it.
fn sync_directory(path: &Path) -> Result<(), StoreError> {
    let directory = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(|error| cannot("sync", directory, &error))
}

fn prepare(db: &Connection, size_bytes_max: u64) -> Result<(), StoreError> {
    // Before anything is written: the file may belong to another program.
    let fresh = is_fresh(db)?;
    configure(db, size_bytes_max).map_err(|error| not_opened(&error))?;
    if fresh {
        return lay_out(db).map_err(|error| not_opened(&error));
    }
    let verdict: String = db
        .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
        .map_err(|error| not_opened(&error))?;
    if verdict == "ok" {
        Ok(())
    } else {
        Err(StoreError::Corrupt(verdict))
    }
}

fn is_fresh(db: &Connection) -> Result<bool, StoreError> {
    let read = |sql: &str| -> Result<i32, StoreError> {
        db.query_row(sql, [], |row| row.get(0))
            .map_err(|error| not_opened(&error))
    };
    if read("SELECT count(*) FROM sqlite_schema")? == 0 {
        return Ok(true);
    }
    if read("PRAGMA application_id")? != APPLICATION_ID {
        return Err(StoreError::Corrupt(
            "the file is another program's database".into(),
        ));
    }
    match read("PRAGMA user_version")? {
        SCHEMA_VERSION => Ok(false),
        version => Err(StoreError::Corrupt(format!(
            "its tables have version {version}, this release knows {SCHEMA_VERSION}"
        ))),
    }
}

fn configure(db: &Connection, size_bytes_max: u64) -> rusqlite::Result<()> {
    db.pragma_update(None, "journal_mode", "WAL")?;
    // FULL: a commit is on the disk before it is acknowledged, also when the power fails.
    db.pragma_update(None, "synchronous", "FULL")?;
    db.pragma_update(None, "journal_size_limit", LOG_BYTES_MAX.cast_signed())?;
    let pages = (size_bytes_max / SQLITE_PAGE_BYTES).clamp(1, i64::from(u32::MAX).unsigned_abs());
    db.pragma_update(None, "max_page_count", pages.cast_signed())
}

/// Makes the tables.
pub(super) fn lay_out(db: &Connection) -> rusqlite::Result<()> {
    let transaction = db.unchecked_transaction()?;
    transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    transaction.pragma_update(None, "user_version", SCHEMA_VERSION)?;
    transaction.execute_batch(SCHEMA)?;
    transaction.commit()
}
