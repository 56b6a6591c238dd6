//! The writer and its batches on a database in memory.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, DEFAULT_NAME, ErrorCode, FileControl, StatementStatus, ffi, params};

use super::batch::{Batch, SWEPT, Sweep};
use super::fault::Fault;
use super::room::Room;
use super::writer::{QUEUE_MAX, Writer};
use super::{Embedded, beside, file, history};
use crate::store::span::Span;
use crate::store::{
    Compare, KeyValue, LeaseId, Op, Range, Revision, Store, StoreError, Txn, TxnOutcome,
};

const LONG: Duration = Duration::from_secs(60);

fn database() -> Connection {
    let db = Connection::open_in_memory().unwrap();
    file::lay_out(&db).unwrap();
    db
}

fn put(key: &str, value: &str) -> Txn {
    Txn {
        ops: vec![Op::put(key, value.to_owned())],
        ..Txn::default()
    }
}

fn delete(key: &str) -> Txn {
    Txn {
        ops: vec![Op::Delete(key.into())],
        ..Txn::default()
    }
}

fn apply(db: &Connection, txns: &[Txn]) -> Vec<Revision> {
    let mut batch = Batch::new(db, history::revision(db).unwrap());
    let mut run = |txn: &Txn| match batch.txn(txn).unwrap() {
        TxnOutcome::Committed(revision) => revision,
        conflict => panic!("{conflict:?}"),
    };
    txns.iter().map(&mut run).collect()
}

fn rows(db: &Connection) -> Vec<(String, i64)> {
    let mut statement = db
        .prepare("SELECT key, revision FROM kv ORDER BY id")
        .unwrap();
    let row = |row: &rusqlite::Row<'_>| Ok((String::from_utf8(row.get(0)?).unwrap(), row.get(1)?));
    statement
        .query_map([], row)
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap()
}

fn values(db: &Connection, at: i64) -> Vec<KeyValue> {
    let at = Some(Revision(at));
    let range = Range {
        prefix: String::new(),
        after: None,
        limit: 100,
        at,
    };
    history::page(db, &range, Instant::now() + LONG)
        .unwrap()
        .items
}

#[test]
fn txns_of_one_batch_have_revisions_of_their_own_and_see_each_other() {
    let db = database();
    let mut batch = Batch::new(&db, Revision(1));
    assert_eq!(
        batch.txn(&put("a", "1")).unwrap(),
        TxnOutcome::Committed(Revision(2))
    );
    let absent = Txn {
        compares: vec![Compare::Absent("a".into())],
        ..put("a", "2")
    };
    assert!(matches!(
        batch.txn(&absent).unwrap(),
        TxnOutcome::Conflict(_)
    ));
    let leased = Op::Put {
        key: "b".into(),
        value: "1".into(),
        lease: Some(LeaseId(5)),
    };
    let unknown = Txn {
        ops: vec![Op::put("c", "1"), leased],
        ..Txn::default()
    };
    assert!(matches!(
        batch.txn(&unknown),
        Err(Fault::Refused(StoreError::LeaseNotFound(LeaseId(5))))
    ));
    assert_eq!(
        batch.txn(&put("a", "3")).unwrap(),
        TxnOutcome::Committed(Revision(3))
    );
    assert_eq!(batch.revision(), Revision(3));
    assert_eq!(
        rows(&db),
        [("a".into(), 2), ("a".into(), 3)],
        "refused ones left nothing"
    );
}

#[test]
fn a_sweep_removes_what_is_below_and_nothing_that_can_be_read() {
    for rows_max in 1..8 {
        let db = database();
        let txns = [
            put("a", "1"),
            put("kept", "1"),
            put("a", "2"),
            put("b", "1"),
            put("c", "1"),
            delete("c"),
            delete("b"),
            put("a", "3"),
        ];
        assert_eq!(apply(&db, &txns).last(), Some(&Revision(9)));
        let compact = |until: i64| {
            let mut batch = Batch::new(&db, Revision(9));
            batch.compact(Revision(until)).unwrap();
            let readable: Vec<_> = (until..=9).map(|at| values(&db, at)).collect();
            let mut sweep = Some(Sweep {
                until: Revision(until),
                row: 0,
            });
            while let Some(slice) = sweep {
                sweep = batch.sweep(slice, rows_max).unwrap();
                let now: Vec<_> = (until..=9).map(|at| values(&db, at)).collect();
                assert_eq!(now, readable, "{rows_max} rows at a time");
            }
        };
        compact(8);
        let left = [
            ("kept".into(), 3),
            ("a".into(), 4),
            ("b".into(), 8),
            ("a".into(), 9),
        ];
        assert_eq!(
            rows(&db),
            left,
            "the deletion at 8 stays for a watch from 8"
        );
        compact(9);
        assert_eq!(rows(&db), [("kept".into(), 3), ("a".into(), 9)]);
    }
}

/// It held up the writer for as long as the table is long.
#[test]
fn the_end_of_a_sweep_does_not_read_the_rest_of_the_table() {
    let db = database();
    let txns: Vec<Txn> = (0..3_000).map(|_| put("a", "1")).collect();
    apply(&db, &txns);
    let look = |row: i64| {
        let mut statement = db.prepare(SWEPT).unwrap();
        let rows = statement.query_map(params![row, 100, 500], |_| Ok(()));
        let rows = rows.unwrap().count();
        (rows, statement.get_status(StatementStatus::VmStep))
    };
    let (rows, _) = look(0);
    assert_eq!(rows, 98, "the revisions 2 to 99");
    let (rows, steps) = look(98);
    assert_eq!(rows, 0);
    assert!(steps < 500, "{steps} steps");
}

/// Leaves a log as a process that is killed does.
fn write_and_die(path: &std::path::Path, key: &str) {
    let db = Connection::open(path).unwrap();
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)
        .unwrap();
    db.file_control(DEFAULT_NAME, FileControl::PersistWal(&mut 1))
        .unwrap();
    apply(&db, &[put(key, "1")]);
    db.close().unwrap();
    let log = beside::with_suffix(path, "-wal").metadata().unwrap();
    assert!(log.len() > 0);
}

#[tokio::test]
async fn a_backup_gets_nothing_of_the_lost_files_log() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let (path, backup, lost) = (at("store"), at("backup"), at("lost"));
    let keys = async || {
        let store = Embedded::open(&path).unwrap();
        let in_use = Embedded::restore(&path, Some(&backup));
        assert!(
            matches!(in_use, Err(StoreError::Unavailable(_))),
            "{in_use:?}"
        );
        let mut there = String::new();
        for key in ["a", "b"] {
            let found = store.get(key).await.unwrap().value;
            there.push_str(found.map_or("", |_| key));
        }
        there
    };
    let store = Embedded::open(&path).unwrap();
    store.txn(put("a", "1")).await.unwrap();
    drop(store);
    std::fs::copy(&path, &backup).unwrap();
    assert_eq!(keys().await, "a");
    write_and_die(&path, "b");

    std::fs::rename(&path, &lost).unwrap();
    std::fs::copy(&backup, &path).unwrap();
    for refused in [Embedded::check(&path), Embedded::open(&path).map(drop)] {
        let said = refused.unwrap_err().to_string();
        assert!(said.contains("`requestrocket restore"), "{said}");
    }
    // What it was written for is not refused: nothing of it is lost.
    std::fs::rename(&lost, &path).unwrap();
    assert_eq!(keys().await, "ab");
    write_and_die(&path, "b");
    let refused = Embedded::restore(&path, None).unwrap_err().to_string();
    assert!(refused.contains("nothing has to be put back"), "{refused}");
    assert_eq!(keys().await, "ab", "what the log held is there");
    write_and_die(&path, "b");

    // The backup is put there before, or by the one call.
    std::fs::rename(&path, &lost).unwrap();
    std::fs::copy(&backup, &path).unwrap();
    let moved = Embedded::restore(&path, None).unwrap();
    assert_eq!(moved, [at("store.aside.1-wal"), at("store.aside.1-shm")]);
    assert_eq!(keys().await, "a");
    write_and_die(&path, "b");
    let moved = Embedded::restore(&path, Some(&backup)).unwrap();
    let names = ["store.aside.2", "store.aside.2-wal", "store.aside.2-shm"];
    assert_eq!(moved, names.map(at));
    assert_eq!(keys().await, "a");
    std::fs::rename(at("store.aside.2"), &path).unwrap();
    std::fs::rename(at("store.aside.2-wal"), at("store-wal")).unwrap();
    assert_eq!(keys().await, "ab", "they were kept together");

    for (backup, why) in [(at("none"), "unable to open"), (at("store.lock"), "")] {
        let refused = Embedded::restore(&path, Some(&backup));
        let said = refused.unwrap_err().to_string();
        assert!(said.contains(why), "{said}");
        assert_eq!(keys().await, "ab", "nothing was moved");
    }
}

/// SQLite would delete it.
#[tokio::test]
async fn a_log_whose_file_is_gone_is_kept_when_a_store_is_made_anew() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    drop(Embedded::open(&path).unwrap());
    write_and_die(&path, "a");
    std::fs::remove_file(&path).unwrap();
    let store = Embedded::open(&path).unwrap();
    assert!(store.get("a").await.unwrap().value.is_none());
    assert!(dir.path().join("store.aside.1-wal").exists());
}

/// The lock file may have been removed.
#[tokio::test]
async fn a_second_writer_of_the_same_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let first = Connection::open(&path).unwrap();
    file::lay_out(&first).unwrap();
    let (second, _) = Writer::start(Connection::open(&path).unwrap()).unwrap();
    let (first, _) = Writer::start(first).unwrap();
    let done = |revision| Ok(TxnOutcome::Committed(Revision(revision)));
    assert_eq!(run_put(&first, "a").await, done(2));
    let refused = run_put(&second, "b").await;
    assert!(
        matches!(refused, Err(StoreError::Unavailable(_))),
        "{refused:?}"
    );
    assert_eq!(run_put(&first, "c").await, done(3));
}

/// Most changes are of keys outside the span: the time is looked at between some of them, and what
/// was read until then counts.
#[test]
fn changes_are_read_until_the_deadline_and_from_there_on() {
    let db = database();
    let mut txns: Vec<Txn> = (0..10_500).map(|_| put("b", "1")).collect();
    txns[3] = put("a", "1");
    txns.push(put("a", "2"));
    let newest = apply(&db, &txns).pop().unwrap();
    let span = Span::new("", "a", None);
    let read = |from, by| {
        let found = history::changes(&db, &span, from, by).unwrap();
        let revisions: Vec<i64> = found.changes.iter().map(|c| c.revision.0).collect();
        (revisions, found.next)
    };
    let (late, long) = (Instant::now(), Instant::now() + LONG);
    while Instant::now() <= late {}
    let (found, next) = read(Revision(2), late);
    assert_eq!(found, [5]);
    assert!(Revision(5) < next && next < newest);
    assert_eq!(read(next, late), (vec![newest.0], newest.next()));
    let all = (vec![5, newest.0], newest.next());
    assert_eq!(read(Revision(2), long), all);
    assert_eq!(read(newest.next(), long), (vec![], newest.next()));
}

/// A job that holds up the writer until told to go on, so that a batch gathers behind it.
async fn hold_up(writer: &Writer, while_held: impl Future<Output = ()>) {
    let (go_on, held) = mpsc::channel::<()>();
    let work = move |_: &mut Batch<'_>| {
        // Run a second time when a batch is broken: then there is nobody to wait for.
        let _ = held.recv();
        Ok(())
    };
    let release = async {
        while_held.await;
        drop(go_on);
    };
    let (result, ()) = tokio::join!(writer.run(LONG, work), release);
    result.unwrap();
}

async fn run_put(writer: &Writer, key: &'static str) -> Result<TxnOutcome, StoreError> {
    writer
        .run(LONG, move |batch| batch.txn(&put(key, "1")))
        .await
}

#[tokio::test]
async fn a_job_that_breaks_its_batch_fails_alone() {
    let (writer, mut revisions) = Writer::start(database()).unwrap();
    let full = || -> Result<(), Fault> {
        let error = ffi::Error {
            code: ErrorCode::DiskFull,
            extended_code: ffi::SQLITE_FULL,
        };
        Err(rusqlite::Error::SqliteFailure(error, None).into())
    };
    let broken = writer.run(LONG, move |batch| {
        batch.txn(&put("half", "done"))?;
        full()
    });
    // Polled in this order: the others are queued behind the one that holds up the writer.
    let ((), first, broken, second) = tokio::join!(
        hold_up(&writer, tokio::task::yield_now()),
        run_put(&writer, "first"),
        broken,
        run_put(&writer, "second"),
    );
    assert_eq!(first, Ok(TxnOutcome::Committed(Revision(2))));
    assert!(matches!(broken, Err(StoreError::Full(_))), "{broken:?}");
    assert_eq!(second, Ok(TxnOutcome::Committed(Revision(3))));
    assert_eq!(*revisions.borrow_and_update(), Revision(3));
}

/// Who asks whether there is room without writing is not told that there is.
#[tokio::test]
async fn a_full_store_refuses_whatever_could_write() {
    let db = database();
    let pages: i64 = db
        .query_row("PRAGMA page_count", [], |row| row.get(0))
        .unwrap();
    db.pragma_update(None, "max_page_count", pages + 40)
        .unwrap();
    let (writer, _revisions) = Writer::start(db).unwrap();
    let ask = |ops: Vec<Op>| {
        let txn = Txn {
            compares: vec![Compare::ModRevision("no".into(), Revision(i64::MAX))],
            ops,
            or_read: vec!["no".into()],
        };
        writer.run(LONG, move |batch| batch.txn(&txn))
    };
    let may_write = || ask(vec![Op::put("room", "")]);
    assert!(matches!(may_write().await, Ok(TxnOutcome::Conflict(_))));
    let large = |bytes: usize| {
        let txn = Txn {
            ops: vec![Op::put("large", vec![7; bytes])],
            ..Txn::default()
        };
        writer.run(LONG, move |batch| batch.txn(&txn))
    };
    while large(4096 * 8).await.is_ok() {}
    let refused = may_write().await;
    assert!(matches!(refused, Err(StoreError::Full(_))), "{refused:?}");
    assert!(matches!(ask(vec![]).await, Ok(TxnOutcome::Conflict(_))));
}

/// A disk that does not do its work: a commit whose outcome nobody knows.
#[tokio::test]
async fn a_store_whose_commits_fail_refuses_whatever_could_write_until_its_disk_works() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let db = Connection::open(&path).unwrap();
    file::lay_out(&db).unwrap();
    // What is found to be wrong at the commit only.
    db.execute_batch(
        "PRAGMA foreign_keys = ON;
         CREATE TABLE parent (id INTEGER PRIMARY KEY);
         CREATE TABLE child (id REFERENCES parent (id) DEFERRABLE INITIALLY DEFERRED);
         CREATE TRIGGER fails AFTER INSERT ON kv WHEN new.key = CAST('bad' AS BLOB)
             BEGIN INSERT INTO child VALUES (1); END;",
    )
    .unwrap();
    let (writer, _revisions) = Writer::start(db).unwrap();
    // A folder where the file is to be written that tells.
    let room = dir.path().join("store-room");
    std::fs::create_dir(&room).unwrap();
    let failed = run_put(&writer, "bad").await;
    assert!(
        matches!(failed, Err(StoreError::OutcomeUnknown(_))),
        "{failed:?}"
    );
    let may_write = || {
        let txn = Txn {
            compares: vec![Compare::Present("no".into())],
            ops: vec![Op::put("a", "")],
            or_read: vec!["no".into()],
        };
        writer.run(LONG, move |batch| batch.txn(&txn))
    };
    let refused = may_write().await;
    assert!(
        matches!(refused, Err(StoreError::Unavailable(_))),
        "{refused:?}"
    );
    std::fs::remove_dir(&room).unwrap();
    // It is looked at once a second.
    while may_write().await.is_err() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(!room.exists());
    assert_eq!(
        run_put(&writer, "good").await,
        Ok(TxnOutcome::Committed(Revision(2)))
    );
}

/// A look writes to the disk: not more often than once a second, and for nobody who only reads.
#[test]
fn a_disk_without_room_is_looked_at_once_a_second_for_who_could_write() {
    let dir = tempfile::tempdir().unwrap();
    let db = Connection::open(dir.path().join("store")).unwrap();
    file::lay_out(&db).unwrap();
    // Where the file is to be written that tells: while it is in the way there is no room.
    let in_the_way = dir.path().join("store-room");
    let block = || std::fs::create_dir(&in_the_way).unwrap();
    let clear = || std::fs::remove_dir(&in_the_way).unwrap();
    let (mut room, now) = (Room::default(), Instant::now());
    assert_eq!(room.refuses(&db, now), None, "nothing has failed");
    block();
    let why = StoreError::Full("no space left".into());
    room.is_lacking(why.clone());
    assert_eq!(room.refuses(&db, now), Some(&why));
    clear();
    let early = now + Duration::from_millis(999);
    assert_eq!(room.refuses(&db, early), Some(&why), "looked at again");
    // What fails does not bring the look forward, and is what is told.
    let newer = StoreError::Unavailable("the disk is gone".into());
    room.is_lacking(newer.clone());
    assert_eq!(room.refuses(&db, early), Some(&newer));
    let due = now + Duration::from_secs(1);
    assert_eq!(room.refuses(&db, due), None);
    room.is_lacking(why.clone());
    assert_eq!(room.refuses(&db, due), Some(&why), "looked at again");
    // As above, by way of a batch.
    let mut room = Room::default();
    room.is_lacking(why);
    let mut batch = Batch::new(&db, Revision(1)).within(&mut room);
    let ask = |ops: Vec<Op>| Txn {
        compares: vec![Compare::Present("no".into())],
        ops,
        or_read: vec!["no".into()],
    };
    block();
    let read = batch.txn(&ask(vec![]));
    assert!(matches!(read, Ok(TxnOutcome::Conflict(_))), "{read:?}");
    clear();
    // Nobody has looked yet, or it would be refused for a second.
    let write = batch.txn(&ask(vec![Op::put("a", "")]));
    assert!(matches!(write, Ok(TxnOutcome::Conflict(_))), "{write:?}");
}

#[tokio::test]
async fn a_full_queue_refuses_and_a_job_given_up_is_not_done() {
    let (writer, revisions) = Writer::start(database()).unwrap();
    let done = Arc::new(AtomicUsize::new(0));
    hold_up(&writer, async {
        let run = |timeout| {
            let done = Arc::clone(&done);
            writer.run(timeout, move |batch| {
                done.fetch_add(1, Ordering::Relaxed);
                batch.txn(&put("a", "1"))
            })
        };
        let late = run(Duration::from_millis(1)).await;
        assert!(
            matches!(late, Err(StoreError::OutcomeUnknown(_))),
            "{late:?}"
        );
        let mut refused = None;
        // The writer may have taken a batch before it was held up, but no more than one.
        for _ in 0..2 * QUEUE_MAX {
            // Polled once and dropped: the job stays in the queue.
            refused = tokio::time::timeout(Duration::ZERO, run(LONG)).await.ok();
            if refused.is_some() {
                break;
            }
        }
        let refused = refused.expect("a full queue answers at once");
        assert!(
            matches!(refused, Err(StoreError::Unavailable(_))),
            "{refused:?}"
        );
    })
    .await;
    drop(writer);
    assert_eq!(
        done.load(Ordering::Relaxed),
        0,
        "nobody waits for them any more"
    );
    assert_eq!(*revisions.borrow(), Revision(1));
}
