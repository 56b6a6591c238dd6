//! The contract on the embedded store, and what only a store in a file has: restarts, crashes,
//! second openers, damaged files, a full disk.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::Duration;

use proto::store::embedded::{Embedded, EmbeddedOptions};
use proto::store::{Op, Range, Store, StoreError, TXN_BYTES_MAX, Txn};
use tempfile::TempDir;

use crate::runner::{Case, Trial, block_on};
use crate::steps::{
    all, apply, check_refused, expect, get, keys, next, page, put, revision, watch,
};

/// Set for the process that is to be killed: the file of its store.
const CHILD_STORE: &str = "STORE_TEST_CHILD";

/// Writers of the process that is to be killed.
const CHILD_WRITERS: usize = 8;

/// Writes acknowledged before it is killed.
const ACKNOWLEDGED: usize = 300;

/// A case of the contract, on a store of its own.
pub fn trial(case: Case) -> Trial {
    Trial::new(format!("embedded::{}", case.name), move || {
        let dir = TempDir::new().expect("a temporary directory can be made");
        let store = open(&file_in(&dir));
        case.try_on(store);
    })
}

/// What only this store does.
pub fn trials() -> Vec<Trial> {
    let trial = |name: &str, run: fn(&Path)| {
        Trial::new(format!("embedded::{name}"), move || {
            let dir = TempDir::new().expect("a temporary directory can be made");
            run(&file_in(&dir));
        })
    };
    vec![
        trial(
            "a_restart_keeps_data_and_goes_on_with_the_revision",
            restart,
        ),
        trial(
            "a_lease_outlives_a_restart_and_then_ends",
            lease_after_restart,
        ),
        trial("a_killed_process_loses_nothing_acknowledged", killed),
        trial("a_second_opener_is_refused", second_opener),
        trial("a_file_that_is_no_store_is_refused", no_store),
        trial("a_file_that_cannot_be_created_is_named", not_created),
        trial("the_file_is_private", private),
        trial(
            "a_full_store_reads_and_refuses_writes_until_compacted",
            full,
        ),
        trial(
            "a_watch_ends_when_its_store_is_closed",
            closed_under_a_watch,
        ),
        trial(
            "a_compaction_that_was_interrupted_goes_on_after_a_restart",
            compaction_after_restart,
        ),
    ]
}

fn file_in(dir: &TempDir) -> PathBuf {
    dir.path().join("store.db")
}

fn open(path: &Path) -> Arc<Embedded> {
    Embedded::open(path).expect("the store opens")
}

fn restart(path: &Path) {
    block_on(async {
        let store = open(path);
        put(&*store, "a", "1").await;
        let last = put(&*store, "a", "2").await;
        drop(store);
        let store = open(path);
        let found = get(&*store, "a").await;
        assert_eq!((found.mod_revision, found.version), (last, 2));
        let mut watch = watch(&*store, "", last).await;
        expect(&mut watch, last, &["a=2"]).await;
        let next = put(&*store, "b", "1").await;
        assert_eq!(next, last.next());
        expect(&mut watch, next, &["b=1"]).await;
    });
}

fn lease_after_restart(path: &Path) {
    block_on(async {
        let store = open(path);
        let lease = store
            .grant_lease(Duration::from_secs(1))
            .await
            .expect("a lease");
        let leased = Op::Put {
            key: "a".into(),
            value: "1".into(),
            lease: Some(lease.id),
        };
        let at = apply(&*store, vec![leased]).await;
        drop(store);
        let store = open(path);
        let mut watch = watch(&*store, "", at.next()).await;
        expect(&mut watch, at.next(), &["-a"]).await;
        let other = store
            .grant_lease(Duration::from_secs(1))
            .await
            .expect("a lease");
        assert_ne!(other.id, lease.id);
    });
}

/// Writes until it is killed and tells of every acknowledged write; only in the child process.
pub fn run_as_child() -> Option<ExitCode> {
    let path = PathBuf::from(std::env::var_os(CHILD_STORE)?);
    block_on(async {
        let store = open(&path);
        let writers: Vec<_> = (0..CHILD_WRITERS)
            .map(|writer| {
                let store = Arc::clone(&store);
                tokio::spawn(async move {
                    for n in 0_u64.. {
                        let key = format!("k/{writer}/{n}");
                        let revision = put(&*store, &key, n.to_string()).await;
                        // One write of a whole line: lines of writers do not mix.
                        let line = format!("{key} {revision}\n");
                        let out =
                            std::io::Write::write_all(&mut std::io::stdout(), line.as_bytes());
                        out.expect("the parent listens");
                    }
                })
            })
            .collect();
        for writer in writers {
            writer.await.expect("the writer is killed, it does not end");
        }
    });
    Some(ExitCode::FAILURE)
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // Fails only when it has ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn killed(path: &Path) {
    let program = std::env::current_exe().expect("this program has a path");
    let spawned = Command::new(program)
        .env(CHILD_STORE, path)
        .stdout(Stdio::piped())
        .spawn();
    let mut child = Killed(spawned.expect("this program starts again"));
    let output = child.0.stdout.take().expect("the output is piped");
    let mut lines = BufReader::new(output)
        .lines()
        .map(|line| line.expect("a line"));
    let mut acknowledged: Vec<String> = lines.by_ref().take(ACKNOWLEDGED).collect();
    drop(child);
    // What it had said before it died counts too; the last line may have been cut.
    acknowledged.extend(lines.filter(|line| line.split(' ').count() == 2));
    assert!(acknowledged.len() >= ACKNOWLEDGED, "the child wrote");
    block_on(async {
        let store = open(path);
        for line in &acknowledged[..acknowledged.len() - 1] {
            let (key, revision) = line.split_once(' ').expect("key and revision");
            assert_eq!(
                get(&*store, key).await.mod_revision.to_string(),
                revision,
                "{key}"
            );
        }
        let (mut range, mut count) = (all("k/"), 0_usize);
        loop {
            let page = page(&*store, range.clone()).await;
            count += page.items.len();
            if !page.more {
                break;
            }
            range.after = page.items.last().map(|item| item.key.clone());
        }
        let revision = revision(&*store).await;
        assert_eq!(
            revision.0,
            1 + i64::try_from(count).expect("a number"),
            "no revision is lost"
        );
        assert_eq!(put(&*store, "on", "1").await, revision.next());
    });
}

fn refusal(path: &Path) -> StoreError {
    Embedded::open(path)
        .map(|_| ())
        .expect_err("the store is refused")
}

fn second_opener(path: &Path) {
    let store = open(path);
    let error = refusal(path);
    assert!(matches!(error, StoreError::Unavailable(_)), "{error:?}");
    let text = error.to_string();
    assert!(text.contains("in use by another process"), "{text}");
    assert!(text.contains(&*path.to_string_lossy()), "{text}");
    drop(store);
    open(path);
}

fn no_store(path: &Path) {
    let check = |what: &str| {
        let error = refusal(path);
        assert!(matches!(error, StoreError::Corrupt(_)), "{what}: {error:?}");
        let text = error.to_string();
        assert!(text.contains(&*path.to_string_lossy()), "{what}: {text}");
    };
    std::fs::write(
        path,
        "this is no database, but it is long enough to be taken for one",
    )
    .expect("the file is written");
    check("a text");
    assert!(
        std::fs::read(path).is_ok_and(|found| found.starts_with(b"this is")),
        "left as it is"
    );
    std::fs::remove_file(path).expect("the file is removed");
    let store = open(path);
    block_on(async {
        for n in 0..50 {
            put(&*store, &format!("key/{n}"), vec![7; 4000]).await;
        }
    });
    drop(store);
    let mut bytes = std::fs::read(path).expect("the file is read");
    let half = bytes.len() / 2;
    bytes.truncate(half);
    std::fs::write(path, &bytes).expect("the file is written");
    check("half of a store");
    let mut other = bytes;
    // SQLite keeps the application's mark at byte 68 of the file.
    other[68..72].copy_from_slice(b"Else");
    std::fs::write(path, &other).expect("the file is written");
    check("another program's database");
}

fn not_created(path: &Path) {
    let check = |path: &Path| {
        let error = refusal(path);
        assert!(matches!(error, StoreError::Unavailable(_)), "{error:?}");
        let text = error.to_string();
        assert!(text.contains(&*path.to_string_lossy()), "{text}");
    };
    check(&path.with_file_name("no such directory").join("store.db"));
    std::fs::create_dir(path).expect("a directory is made");
    check(path);
}

fn private(path: &Path) {
    let store = open(path);
    block_on(async {
        put(&*store, "a", "1").await;
    });
    let directory = path.parent().expect("the file is in a directory");
    let files = std::fs::read_dir(directory).expect("the directory is read");
    let mut count = 0;
    for file in files {
        let file = file.expect("an entry");
        let mode = file.metadata().expect("its metadata").permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{:?}", file.file_name());
        count += 1;
    }
    assert!(count >= 3, "the database, its log and its lock");
}

fn full(path: &Path) {
    let options = EmbeddedOptions {
        size_bytes_max: 8 << 20,
        ..EmbeddedOptions::default()
    };
    let store = Embedded::open_with(path, &options).expect("the store opens");
    block_on(async {
        let large = || Txn {
            ops: vec![Op::put("a", vec![7; TXN_BYTES_MAX])],
            ..Txn::default()
        };
        let mut last = put(&*store, "small", "1").await;
        let refused = loop {
            match store.txn(large()).await {
                Ok(outcome) => last = crate::steps::committed(outcome),
                Err(error) => break error,
            }
        };
        assert!(matches!(refused, StoreError::Full(_)), "{refused:?}");
        assert_eq!(get(&*store, "a").await.mod_revision, last, "reads work");
        assert_eq!(
            revision(&*store).await,
            last,
            "the refused write left nothing"
        );
        store
            .compact(last)
            .await
            .expect("a full store is compacted");
        // Space comes free while the writer removes rows: asked for until it is there.
        while store.txn(large()).await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(revision(&*store).await, last.next());
        // All of it at once, where an operator asks for it.
        while store.txn(large()).await.is_ok() {}
        let taken = async || store.sizes().await.expect("a size")[0].bytes;
        let before = taken().await;
        store.reclaim_space().await.expect("space");
        let after = taken().await;
        assert!(after < before / 2, "{after} of {before}");
        store.txn(large()).await.expect("a write");
    });
}

fn closed_under_a_watch(path: &Path) {
    block_on(async {
        let store = open(path);
        let at = put(&*store, "a", "1").await;
        let mut watch = watch(&*store, "", at).await;
        next(&mut watch).await;
        drop(store);
        check_refused(
            "a watch on a closed store",
            "Unavailable",
            watch.next().await,
        );
        get(&*open(path), "a").await;
    });
}

fn compaction_after_restart(path: &Path) {
    block_on(async {
        let store = open(path);
        let first = put(&*store, "a", "1").await;
        let mut last = first;
        for n in 0..2000 {
            last = put(&*store, "a", n.to_string()).await;
        }
        store.compact(last).await.expect("history is compacted");
        // Closed at once: most of the rows are still there.
        drop(store);
        let store = open(path);
        let at = Range {
            at: Some(first),
            ..all("")
        };
        check_refused("a range below", "Compacted", store.range(at).await);
        assert_eq!(keys(&page(&*store, all("")).await), ["a"]);
        assert_eq!(get(&*store, "a").await.version, 2001);
    });
}
