//! The copy of the configuration that a process keeps on its disk: a node starts from it while the
//! store cannot be reached, and a control plane knows by it what the store held before.
//!
//! Encrypted (AES-256-GCM) under a key that is made of the region's: the file alone gives away
//! neither configuration nor sealed values (`sealed_file`). It holds heads, leaves, sealed values
//! and revocations of one revision, and is read back as a store ([`Frozen`]) by the same code that
//! reads the real one: every hash is checked again. Newer revocations lie beside it (`facts`).

mod facts;
mod left;
mod parts;
mod sealed_file;

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use serde::Serialize;
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use self::parts::{Content, content, frames};
use self::sealed_file::{SealedFile, temporary};
use super::follow::World;
use super::frozen::Frozen;
use super::{Revision, Store, StoreError};
use crate::health::Health;
use crate::keys;
use crate::restarts::Restarts;
use crate::seal::{DigestKey, Purpose};
use crate::tree::{Hash, OrgConfig};

/// Shortest time between two writes, so that a burst of changes is one.
const PAUSE: Duration = Duration::from_secs(1);
/// At least so many times as long as a write took is waited before the next one: of a large
/// configuration that changes all the time only some versions are kept.
const PAUSE_PER_WRITE: u32 = 20;
/// Longest time between a change and its copy.
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// How often a copy that is still right is written again, so that it does not grow too old to start
/// from while all is well.
const RENEW: Duration = Duration::from_secs(3_600);
/// Longest wait after a copy could not be written.
const RETRY_MAX: Duration = Duration::from_secs(60);

/// How a copy is called where it is told of; its name is given.
const COPY: &str = "kept.bin";
/// The name of the facts beside it.
const FACTS: &str = "kept-facts.bin";

/// How far a clock may have been set back since a copy was made, in seconds, before the copy's age
/// counts as unknown: a machine without a clock of its own starts in the past.
const CLOCK_BACK_MAX_S: i64 = 60;

/// Why a kept copy cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeptError {
    /// The file cannot be read or written.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// It is damaged, of another region, or written under another key.
    #[error("it cannot be opened: damaged, or kept under another key ring")]
    Sealed,
    /// It opens, and its content makes no sense to this release.
    #[error("its content cannot be read: {0}")]
    Content(String),
    /// The clock is behind what it was when the copy was made, so that its age is not known.
    #[error(
        "the clock shows {behind_s} s before the store was last heard, so that its age, which \
         `store.kept_max_s` bounds, is not known; set the clock"
    )]
    ClockBehind {
        /// How far the clock is behind at least, in seconds.
        behind_s: i64,
    },
    /// It is older than it may be.
    #[error(
        "the store was last heard {age_s} s before, and at most {max_s} s are allowed \
         (`store.kept_max_s`)"
    )]
    TooOld {
        /// Its age, in seconds.
        age_s: i64,
        /// The most, in seconds.
        max_s: i64,
    },
}

/// The files of a process.
pub struct Kept {
    copy: SealedFile,
    facts: SealedFile,
    renew: Duration,
}

impl Kept {
    /// The copy in this file, and beside it the one before and the facts, under a key made of the
    /// region's.
    ///
    /// # Errors
    /// The cipher refuses the key, which it does not.
    pub fn new(file: PathBuf, digest_key: &DigestKey, region: &str) -> Result<Self, KeptError> {
        let key = digest_key.digest(Purpose::KeptCopy, region.as_bytes());
        let facts = file.with_file_name(FACTS);
        Ok(Self {
            copy: SealedFile::new(file, &key, region)?.with_previous("kept-previous.bin"),
            facts: SealedFile::new(facts, &key, format!("{region}/facts"))?,
            renew: RENEW,
        })
    }

    /// Reads the copy and how long ago it was proven to be whole, with all facts that were kept
    /// since; `None` where there is none. Where it is damaged, the one before, which counts only
    /// where there are facts beside it.
    ///
    /// # Errors
    /// [`KeptError`]; the files stay as they are.
    pub fn read(&self, age_max: Duration) -> Result<Option<(Frozen, Duration)>, KeptError> {
        let opened = self.copy.read();
        let read = opened.and_then(|opened| opened.as_deref().map(content).transpose());
        let read = match read {
            Err(error) => Some(self.previous(error)?),
            Ok(read) => read,
        };
        let Some((revision, proven_at_s, mut pairs)) = read else {
            return Ok(None);
        };
        let age_s = Timestamp::now().as_second().saturating_sub(proven_at_s);
        let max_s = i64::try_from(age_max.as_secs()).unwrap_or(i64::MAX);
        if age_s > max_s {
            return Err(KeptError::TooOld { age_s, max_s });
        }
        if age_s < -CLOCK_BACK_MAX_S && max_s < i64::MAX {
            let behind_s = age_s.saturating_neg();
            return Err(KeptError::ClockBehind { behind_s });
        }
        self.raise_facts(&mut pairs)?;
        let age = Duration::from_secs(age_s.max(0).unsigned_abs());
        Ok(Some((Frozen::new(revision, pairs), age)))
    }

    /// The copy before one that cannot be used.
    fn previous(&self, damaged: KeptError) -> Result<Content, KeptError> {
        let previous = match self.facts.read() {
            Ok(Some(_)) => self.copy.read_previous(),
            Ok(None) | Err(_) => Ok(None),
        };
        match previous.and_then(|opened| opened.as_deref().map(content).transpose()) {
            Ok(Some(content)) => {
                tracing::warn!("{COPY} is not used, the copy before it is: {damaged}");
                Ok(content)
            }
            Ok(None) | Err(_) => Err(damaged),
        }
    }
}

/// Removes what processes that were killed while they wrote have left in the folder. Only for a
/// process that has the folder for itself.
pub fn sweep(dir: &Path) {
    let own = format!(".{}", temporary(std::process::id()));
    for entry in dir.read_dir().into_iter().flatten().flatten() {
        let name = entry.file_name();
        let left = name.to_str().filter(|name| name.starts_with("kept"));
        if left.is_some_and(|left| left.ends_with(".tmp") && !left.ends_with(&own)) {
            // What stays takes a little space and is never read.
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Keeps every world that appears, the newest where they come fast. Ends when `stop` is sent or
/// dropped, after the last one is kept.
pub async fn run(
    kept: Kept,
    store: Arc<dyn Store>,
    (worlds, health): (watch::Receiver<Arc<World>>, Health),
    stop: oneshot::Receiver<()>,
) {
    let (kept, last) = (Arc::new(kept), worlds.clone());
    let (mut of_facts, mut restarts) = (worlds.clone(), Restarts::of("kept-facts", health.clone()));
    let facts = async {
        while restarts
            .run(kept.keep_facts(&mut of_facts, &health))
            .await
            .is_none()
        {}
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = facts => {}
        () = copy(kept.clone(), store, (worlds, health.clone()), stop) => {}
    }
    // What came since they were written last: an earlier copy may be put back beside them.
    let world = last.borrow().clone();
    if world.orgs.values().any(|state| !state.retired.is_empty()) {
        kept.write_facts(&world, &health).await;
    }
}

/// The same for the copy alone.
async fn copy(
    kept: Arc<Kept>,
    store: Arc<dyn Store>,
    (mut worlds, health): (watch::Receiver<Arc<World>>, Health),
    mut stop: oneshot::Receiver<()>,
) {
    let mut restarts = Restarts::of("kept-copy", health.clone());
    let (mut leaves, mut last) = (HashMap::new(), None);
    let (mut stopping, mut failures) = (false, 0_u32);
    loop {
        let world = worlds.borrow_and_update().clone();
        let (begun, age) = (Instant::now(), health.facts_age());
        let keeping = keep(&kept, &*store, (&world, age), (&mut leaves, &mut last));
        match restarts.run(keeping).await {
            Some(Ok(())) => {
                health.kept(COPY, None);
                failures = 0;
            }
            None => {
                leaves.clear();
                failures = failures.saturating_add(1);
            }
            Some(Err(error)) => {
                if health.kept(COPY, Some(error.to_string())) {
                    tracing::warn!(%error, "the configuration could not be kept on disk: {error}");
                }
                failures = failures.saturating_add(1);
            }
        }
        if stopping {
            return;
        }
        let rest = pause(begun.elapsed());
        let wait = match failures {
            0 if age.is_some_and(|age| age < kept.renew) => kept.renew,
            0 => RETRY_MAX,
            failures => (PAUSE * 2_u32.saturating_pow(failures.min(6))).min(RETRY_MAX),
        };
        let is_proven_anew = || health.facts_age().is_some_and(|age| age < begun.elapsed());
        let next = async {
            tokio::time::sleep(rest).await;
            loop {
                let changed = tokio::time::timeout(wait, worlds.changed()).await;
                match changed {
                    Ok(changed) => return changed.is_err(),
                    // What was not written is tried again; what was stays young only as long as
                    // it is proven that nothing else is there.
                    Err(_) if failures > 0 || is_proven_anew() => return false,
                    Err(_) => {}
                }
            }
        };
        stopping = tokio::select! {
            ended = next => ended,
            _ = &mut stop => true,
        };
        if stopping && failures == 0 && !worlds.has_changed().unwrap_or(false) {
            return;
        }
    }
}

/// How long nothing is written after a write that took so long.
fn pause(took: Duration) -> Duration {
    (took * PAUSE_PER_WRITE).clamp(PAUSE, PAUSE_MAX)
}

/// Keeps a world that was proven to be whole so long ago ([`Health::facts_age`]); one that never
/// was is not kept. A world also changes by what a peer says, without the store: it is not younger
/// for that. Where something has left since the `last` one, or that is not known, the copy before
/// goes too.
async fn keep(
    kept: &Arc<Kept>,
    store: &dyn Store,
    (world, age): (&Arc<World>, Option<Duration>),
    (leaves, last): (&mut HashMap<String, Bytes>, &mut Option<Arc<World>>),
) -> Result<(), KeptError> {
    let Some(age) = age.filter(|_| world.revision != Revision(0)) else {
        return Ok(());
    };
    let age_s = i64::try_from(age.as_secs()).unwrap_or(i64::MAX);
    let proven_at_s = Timestamp::now().as_second().saturating_sub(age_s);
    let pairs = pairs(store, world, leaves).await;
    let pairs = pairs.map_err(|error| KeptError::Content(error.to_string()))?;
    let content = frames(world.revision, proven_at_s, &pairs)?;
    let kept = kept.clone();
    let before = last.take();
    let nothing_left = before.is_some_and(|before| !left::has_left(&before, world));
    let write = move || match nothing_left {
        true => kept.copy.write(content),
        false => kept.copy.write_over(content),
    };
    let written = tokio::task::spawn_blocking(write).await;
    written.map_err(|error| KeptError::Content(error.to_string()))??;
    *last = Some(world.clone());
    Ok(())
}

/// What a follower needs to make the same world. Leaves that did not change are not read again.
pub(super) async fn pairs(
    store: &dyn Store,
    world: &World,
    leaves: &mut HashMap<String, Bytes>,
) -> Result<BTreeMap<String, Bytes>, StoreError> {
    let mut pairs = BTreeMap::new();
    let mut reached = HashMap::new();
    for (org, state) in &world.orgs {
        let config = &state.config;
        pairs.insert(keys::head(*org), config.head.to_json().into());
        for (credential, retired) in state.retired.iter() {
            pairs.insert(keys::retired(*org, *credential), json(retired));
        }
        for ((credential, seal_id), sealed) in state.sealed.iter() {
            let key = keys::secret(*org, *credential, seal_id, &sealed.region);
            pairs.insert(key, json(&**sealed));
        }
        let hashes: std::collections::BTreeSet<Hash> = config.reaches().collect();
        for hash in hashes {
            let key = keys::leaf(*org, &hash);
            let value = match leaves.get(&key) {
                Some(value) => value.clone(),
                None => leaf(store, config, (&key, hash)).await?,
            };
            reached.insert(key.clone(), value.clone());
            pairs.insert(key, value);
        }
    }
    if !world.gateways.urls.is_empty() {
        pairs.insert(keys::REGIONS.to_owned(), json(&*world.gateways));
    }
    *leaves = reached;
    Ok(pairs)
}

/// A leaf or a root, made of what is in memory: every node keeps every change, and the store shall
/// not be read for that. One with an object that this release cannot read is read from there.
async fn leaf(
    store: &dyn Store,
    config: &OrgConfig,
    (key, hash): (&str, Hash),
) -> Result<Bytes, StoreError> {
    if let Some(leaf) = config.leaf(hash) {
        // Of a large configuration there are hundreds at first.
        tokio::task::yield_now().await;
        return Ok(leaf.packed.into());
    }
    if let Some(held) = store.get(key).await?.value {
        return Ok(held.value);
    }
    // Swept meanwhile, or lost by a restored store: as the objects make it.
    let made = config.leaves().map(|(_, leaves)| leaves);
    let mut made = made.unwrap_or_default().into_iter();
    let leaf = made.find(|leaf| leaf.hash == hash);
    let leaf = leaf.ok_or_else(|| StoreError::Corrupt(format!("{key} is gone")))?;
    Ok(leaf.packed.into())
}

fn json(value: &impl Serialize) -> Bytes {
    // Structs of texts, numbers and lists: serialising into memory cannot fail.
    serde_json::to_vec(value).unwrap_or_default().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::embedded::Embedded;

    fn kept(dir: &tempfile::TempDir, key: u8, region: &str) -> Kept {
        let key = DigestKey::from_bytes([key; 32]);
        Kept::new(dir.path().join("kept"), &key, region).unwrap()
    }

    fn some_pairs() -> BTreeMap<String, Bytes> {
        let value = |n: usize| Bytes::from(vec![n as u8; 900_000]);
        (0..5).map(|n| (format!("leaf/{n}"), value(n))).collect()
    }

    const HOUR: Duration = Duration::from_secs(3_600);

    #[test]
    fn large_copies_are_written_less_often() {
        for (took_ms, pause_ms) in [(0, 1_000), (50, 1_000), (400, 8_000), (90_000, 60_000)] {
            let pause = pause(Duration::from_millis(took_ms));
            assert_eq!(pause, Duration::from_millis(pause_ms), "{took_ms} ms");
        }
    }

    #[tokio::test]
    async fn what_is_kept_is_read_back_under_the_same_key_only() {
        let dir = tempfile::tempdir().unwrap();
        let mine = kept(&dir, 1, "eu");
        assert!(mine.read(HOUR).unwrap().is_none(), "none yet");
        let now_s = Timestamp::now().as_second();
        let pairs = some_pairs();
        mine.copy
            .write(frames(Revision(42), now_s, &pairs).unwrap())
            .unwrap();
        let (frozen, age) = mine.read(HOUR).unwrap().unwrap();
        assert!(age < HOUR);
        let found = frozen.get("leaf/3").await.unwrap();
        assert_eq!(found.revision, Revision(42));
        assert_eq!(found.value.unwrap().value, pairs["leaf/3"]);
        for other in [kept(&dir, 2, "eu"), kept(&dir, 1, "us")] {
            assert!(matches!(other.read(HOUR), Err(KeptError::Sealed)));
        }
        let bytes = fs::read(dir.path().join("kept")).unwrap();
        assert!(
            !bytes.windows(6).any(|part| part == b"leaf/3"),
            "it is encrypted"
        );
        for at in [0, 10, 30, bytes.len() - 1] {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            fs::write(dir.path().join("kept"), &damaged).unwrap();
            assert!(
                matches!(mine.read(HOUR), Err(KeptError::Sealed)),
                "byte {at}"
            );
            fs::write(dir.path().join("kept"), &bytes[..at]).unwrap();
            assert!(mine.read(HOUR).is_err(), "cut at {at}");
        }
        mine.copy
            .write(frames(Revision(43), now_s - 7_200, &pairs).unwrap())
            .unwrap();
        assert!(matches!(mine.read(HOUR), Err(KeptError::TooOld { .. })));
        assert!(mine.read(3 * HOUR).unwrap().is_some());
        // A machine that starts in the past knows nothing of the age; a step back is not that.
        for (ahead_s, is_read) in [(30, true), (7_200, false)] {
            let content = frames(Revision(44), now_s + ahead_s, &pairs).unwrap();
            mine.copy.write(content).unwrap();
            let read = mine.read(HOUR);
            match is_read {
                true => assert_eq!(read.unwrap().unwrap().1, Duration::ZERO),
                false => assert!(matches!(read, Err(KeptError::ClockBehind { .. }))),
            }
            // Where no age is too high, none has to be known.
            assert!(mine.read(Duration::MAX).unwrap().is_some());
        }
    }

    #[tokio::test]
    async fn the_copy_before_a_damaged_one_counts_with_the_facts_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let mine = kept(&dir, 1, "eu");
        let now_s = Timestamp::now().as_second();
        for revision in [42, 43] {
            let content = frames(Revision(revision), now_s, &some_pairs()).unwrap();
            mine.copy.write(content).unwrap();
        }
        let revision = async || {
            let read = mine.read(HOUR)?.map(|(frozen, _)| frozen);
            let found = read.unwrap().get("leaf/3").await.unwrap();
            Ok::<_, KeptError>(found.revision)
        };
        assert_eq!(revision().await.unwrap(), Revision(43));
        fs::write(dir.path().join("kept"), b"cut").unwrap();
        assert!(matches!(revision().await, Err(KeptError::Sealed)));
        mine.facts.write(b"{}".to_vec()).unwrap();
        assert_eq!(revision().await.unwrap(), Revision(42));
        // What is written next does not put the damaged one in its place.
        let next = frames(Revision(44), now_s, &some_pairs()).unwrap();
        mine.copy.write(next).unwrap();
        assert_eq!(revision().await.unwrap(), Revision(44));
        fs::write(dir.path().join("kept"), b"cut").unwrap();
        assert_eq!(revision().await.unwrap(), Revision(42));
        fs::remove_file(dir.path().join("kept")).unwrap();
        assert!(mine.read(HOUR).unwrap().is_none(), "it was taken away");
    }

    /// Runs it on a world that never changes, until the file is there and `met`.
    async fn written(kept: Kept, file: PathBuf, health: &Health, met: impl Fn(&[u8]) -> bool) {
        let dir = tempfile::tempdir().unwrap();
        let store = Embedded::open(&dir.path().join("store")).unwrap();
        let world = World {
            revision: Revision(7),
            ..World::default()
        };
        let (_sender, worlds) = watch::channel(Arc::new(world));
        let (_stop, stopping) = oneshot::channel();
        health.facts_were_whole(Duration::ZERO);
        let followed = (worlds, health.clone());
        let running = tokio::spawn(run(kept, store, followed, stopping));
        let seen = async {
            while !fs::read(&file).is_ok_and(|bytes| met(&bytes)) {
                health.facts_were_whole(Duration::ZERO);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), seen)
            .await
            .unwrap();
        running.abort();
    }

    #[tokio::test]
    async fn a_copy_that_could_not_be_written_is_tried_again_without_a_change() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("later");
        let key = DigestKey::from_bytes([1; 32]);
        let kept = Kept::new(folder.join("kept"), &key, "eu").unwrap();
        let health = Health::default();
        let later = async {
            while health.not_kept().len() < 2 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            fs::create_dir(&folder).unwrap();
        };
        let is_told = |_: &[u8]| health.not_kept().is_empty();
        let written = written(kept, folder.join("kept"), &health, is_told);
        tokio::join!(written, later);
    }

    #[tokio::test]
    async fn a_copy_is_as_old_as_the_last_proof_that_it_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let store = Embedded::open(&dir.path().join("store")).unwrap();
        let kept = Arc::new(kept(&dir, 1, "eu"));
        let world = Arc::new(World {
            revision: Revision(7),
            ..World::default()
        });
        // Without the store for two hours, and yet a new world: a peer had news.
        for (age, expected) in [
            (None, None),
            (Some(2 * HOUR), Some(2)),
            (Some(HOUR / 2), Some(0)),
        ] {
            let seen = (&mut HashMap::new(), &mut None);
            keep(&kept, &*store, (&world, age), seen).await.unwrap();
            let read = kept.read(3 * HOUR).unwrap();
            let hours = read.map(|(_, age)| age.as_secs() / 3_600);
            assert_eq!(hours, expected, "{age:?}");
            let too_old = matches!(kept.read(HOUR), Err(KeptError::TooOld { .. }));
            assert_eq!(too_old, expected == Some(2), "{age:?}");
        }
    }

    #[tokio::test]
    async fn a_copy_stays_young_while_it_is_proven_to_be_whole() {
        let dir = tempfile::tempdir().unwrap();
        let mut mine = kept(&dir, 1, "eu");
        mine.renew = Duration::from_millis(10);
        let first = std::sync::Mutex::new(Vec::new());
        // Written again it has another nonce.
        let again = |bytes: &[u8]| {
            let mut first = first.lock().unwrap();
            if first.is_empty() {
                *first = bytes.to_vec();
            }
            *first != bytes
        };
        written(mine, dir.path().join("kept"), &Health::default(), again).await;
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_content_or_refused(bytes: Vec<u8>, cut: proptest::sample::Index,
                                            at: proptest::sample::Index, byte: u8) {
            assert!(content(&bytes).is_err());
            let pairs = BTreeMap::from([("leaf/a".to_owned(), Bytes::from("content"))]);
            let good = frames(Revision(1), 0, &pairs).unwrap();
            assert!(content(&good[..cut.index(good.len())]).is_err(), "a cut one");
            let mut changed = good.clone();
            let at = at.index(changed.len());
            changed[at] = byte;
            // Damage is told by the cipher; here it only must not break anything.
            let _ = content(&changed);
        }
    }

    #[test]
    fn content_that_makes_no_sense_is_refused() {
        let good = frames(Revision(1), 0, &some_pairs()).unwrap();
        assert!(content(&good).is_ok());
        assert!(content(&[]).is_err());
        assert!(content(&good[..good.len() - 1]).is_err());
        let twice = [good.clone(), b"x".to_vec()].concat();
        assert!(content(&twice).is_err());
    }
}
