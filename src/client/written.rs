//! The version of the last write, so that the next command reads what was written.
//!
//! Several control planes may stand behind one address: what one has just published, another sees
//! milliseconds later, or only when it is reached again. A write tells its version, and a read that
//! presents it waits for that. The next command is another process, so the version lies in a file
//! of the user's, for a minute: afterwards a control plane that has not seen it has other troubles,
//! and what was written may have been put back.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::private_file;

/// The header by which writes tell their version and reads ask for one.
pub const VERSION: &str = "requestrocket-version";
/// How long a version is presented.
const KEPT_S: i64 = 60;
/// Most versions that the file holds; the oldest go first.
const KEPT_MAX: usize = 32;
/// What is of one region, node or control plane alone: no version comes there.
const OF_ITS_OWN: [&str; 8] = [
    "/records",
    "/telemetry",
    "/meters/usage",
    "/unmatched",
    "/nodes",
    "/regions",
    "/replication",
    "/recovery",
];

/// The last write of this token to an organisation at an address.
pub struct Written {
    file: Option<PathBuf>,
    /// Names address, organisation and token, and shows none of them.
    whose: String,
    last: Mutex<Option<String>>,
}

#[derive(Clone, Serialize, Deserialize)]
struct Entry {
    version: String,
    at_s: i64,
}

type Entries = BTreeMap<String, Entry>;

impl Written {
    /// What is known of earlier commands.
    pub fn of(url: &str, org: &str, token: &str) -> Self {
        Self::within(folder(), (url, org, token), Timestamp::now())
    }

    fn within(folder: Option<PathBuf>, whose: (&str, &str, &str), now: Timestamp) -> Self {
        let file = folder.map(|folder| folder.join("written.json"));
        let whose = proto::tree::Hash::of(format!("{whose:?}").as_bytes()).to_string();
        let entries = file.as_deref().map(|file| entries(file, now));
        let known = entries.and_then(|mut entries| entries.remove(&whose));
        Self {
            file,
            whose,
            last: Mutex::new(known.map(|entry| entry.version)),
        }
    }

    /// The version that a read of this path presents.
    pub fn for_read(&self, path: &str) -> Option<String> {
        match OF_ITS_OWN.iter().any(|own| path.starts_with(own)) {
            true => None,
            false => self
                .last
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone(),
        }
    }

    /// A write has told its version. That it cannot be kept is no fault of the write.
    pub fn told(&self, version: &str) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        *last = Some(version.to_owned());
        if let Some(file) = &self.file
            && let Err(error) = keep(file, &self.whose, version, Timestamp::now())
        {
            tracing::debug!(%error, "the version is not kept for the next command: {error}");
        }
    }

    /// Nothing is presented any more: the organisation is gone, and its versions come nowhere.
    pub fn forget(&self) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = None;
        if let Some(file) = &self.file {
            let mut entries = entries(file, Timestamp::now());
            if entries.remove(&self.whose).is_some()
                && let Err(error) = save(file, &entries)
            {
                tracing::debug!(%error, "the version is not forgotten: {error}");
            }
        }
    }
}

/// Where programs keep the like; `None` where there is no home.
fn folder() -> Option<PathBuf> {
    let absolute = |name: &str| {
        let path = PathBuf::from(std::env::var_os(name)?);
        path.is_absolute().then_some(path)
    };
    let state = absolute("XDG_STATE_HOME").or_else(|| Some(absolute("HOME")?.join(".local/state")));
    state.map(|state| state.join("requestrocket"))
}

/// What the file holds that is young enough; nothing of one that makes no sense.
fn entries(file: &Path, now: Timestamp) -> Entries {
    let text = private_file::read(file).ok().flatten().unwrap_or_default();
    let mut entries: Entries = serde_json::from_str(&text).unwrap_or_default();
    let age_s = |entry: &Entry| now.as_second().saturating_sub(entry.at_s);
    entries.retain(|_, entry| (0..KEPT_S).contains(&age_s(entry)));
    entries
}

fn keep(file: &Path, whose: &str, version: &str, now: Timestamp) -> std::io::Result<()> {
    let mut entries = entries(file, now);
    let entry = Entry {
        version: version.to_owned(),
        at_s: now.as_second(),
    };
    entries.insert(whose.to_owned(), entry);
    while entries.len() > KEPT_MAX {
        let others = entries.iter().filter(|(other, _)| *other != whose);
        let oldest = others.min_by_key(|(_, entry)| entry.at_s);
        let Some(oldest) = oldest.map(|(whose, _)| whose.clone()) else {
            break;
        };
        entries.remove(&oldest);
    }
    save(file, &entries)
}

fn save(file: &Path, entries: &Entries) -> std::io::Result<()> {
    std::fs::create_dir_all(file.parent().unwrap_or(Path::new(".")))?;
    private_file::write(file, serde_json::to_string(entries)?.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOSE: (&str, &str, &str) = ("http://c", "acme", "rr_api_canary");

    fn later(s: i64) -> Timestamp {
        Timestamp::from_second(Timestamp::now().as_second() + s).unwrap()
    }

    #[test]
    fn the_next_command_presents_what_the_last_one_wrote_for_a_minute() {
        let dir = tempfile::tempdir().unwrap();
        let at = |whose, s| Written::within(Some(dir.path().to_owned()), whose, later(s));
        let first = at(WHOSE, 0);
        assert_eq!(first.for_read("/targets"), None);
        first.told("org_1=7");
        assert_eq!(first.for_read("/targets").as_deref(), Some("org_1=7"));
        let next = at(WHOSE, 1);
        for (path, presented) in [
            ("/targets?limit=5", true),
            ("", true),
            ("/versions", true),
            ("/records?x=1", false),
            ("/nodes", false),
            ("/meters/usage", false),
            ("/regions/aside", false),
        ] {
            assert_eq!(next.for_read(path).is_some(), presented, "{path}");
        }
        for other in [
            ("http://d", WHOSE.1, WHOSE.2),
            (WHOSE.0, "other", WHOSE.2),
            (WHOSE.0, WHOSE.1, "rr_api_another"),
        ] {
            assert_eq!(at(other, 1).for_read("/targets"), None, "{other:?}");
        }
        let other = at((WHOSE.0, "other", WHOSE.2), 0);
        other.told("org_2=9");
        other.forget();
        assert_eq!(other.for_read("/targets"), None);
        assert_eq!(
            at((WHOSE.0, "other", WHOSE.2), 0).for_read("/targets"),
            None
        );
        for s in [KEPT_S + 1, -10] {
            assert_eq!(at(WHOSE, s).for_read("/targets"), None, "{s} s later");
        }
        let file = std::fs::read_to_string(dir.path().join("written.json")).unwrap();
        assert!(!file.contains("canary") && !file.contains("http"), "{file}");
    }

    #[test]
    fn a_file_that_is_full_or_makes_no_sense_or_cannot_be_written_harms_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let folder = || Some(dir.path().to_owned());
        let file = dir.path().join("written.json");
        std::fs::write(&file, "nonsense").unwrap();
        for n in 0..=KEPT_MAX {
            let org = format!("org-{n}");
            let written = Written::within(folder(), ("http://c", &org, "t"), later(0));
            written.told("org_1=1");
        }
        assert_eq!(entries(&file, later(0)).len(), KEPT_MAX);
        for nowhere in [None, Some(file.join("below"))] {
            let written = Written::within(nowhere, WHOSE, later(0));
            written.told("org_1=2");
            assert_eq!(written.for_read("/targets").as_deref(), Some("org_1=2"));
        }
    }
}
