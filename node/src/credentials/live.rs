//! The secrets that this process holds, for every place where text leaves it that is not an answer:
//! log lines, panics, texts of records.
//!
//! By construction none of them gets there. This is for the day on which a library puts a header
//! into an error message: whatever a line says, no live secret is in it.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Arc, OnceLock, PoisonError, RwLock, Weak};

use super::scrub::Scrub;

/// Secrets with as many users as have them open; forgotten when the last of them is.
#[derive(Default)]
pub struct LiveSecrets {
    by_start: RwLock<ByStart>,
}

#[derive(Default)]
struct ByStart {
    secrets: HashMap<[u8; 4], Vec<Weak<Scrub>>>,
    /// Entries, those of forgotten secrets among them.
    entries: usize,
    /// From so many entries on the forgotten are looked for.
    sweep_at: usize,
}

impl LiveSecrets {
    /// Those of this process: its log has one writer, its panics one hook.
    pub fn of_process() -> &'static Self {
        static PROCESS: OnceLock<LiveSecrets> = OnceLock::new();
        PROCESS.get_or_init(Self::default)
    }

    /// Adds the secrets of a search, for as long as it lives.
    pub fn add(&self, scrub: &Arc<Scrub>) {
        let mut known = self
            .by_start
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        for start in scrub.starts() {
            known
                .secrets
                .entry(start)
                .or_default()
                .push(Arc::downgrade(scrub));
            known.entries += 1;
        }
        if known.entries > known.sweep_at {
            known.secrets.retain(|_, found| {
                found.retain(|scrub| scrub.strong_count() > 0);
                !found.is_empty()
            });
            known.entries = known.secrets.values().map(Vec::len).sum();
            known.sweep_at = known.entries * 2 + 64;
        }
    }

    /// The text with every secret overwritten.
    pub fn overwritten<'t>(&self, text: &'t [u8]) -> Cow<'t, [u8]> {
        let known = self.by_start.read().unwrap_or_else(PoisonError::into_inner);
        let mut out = Cow::Borrowed(text);
        if known.secrets.is_empty() {
            return out;
        }
        let mut at = 0;
        while let Some(rest) = text.get(at..)
            && let Some(start) = rest.first_chunk::<4>()
        {
            let found = known.secrets.get(start).map_or(&[][..], Vec::as_slice);
            let secrets = found.iter().filter_map(Weak::upgrade);
            match secrets.filter_map(|secret| secret.begins(rest)).max() {
                Some(length) => {
                    if let Some(secret) = out.to_mut().get_mut(at..at + length) {
                        secret.fill(b'*');
                    }
                    at += length;
                }
                None => at += 1,
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_overwritten_as_long_as_they_live() {
        let live = LiveSecrets::default();
        let text = |live: &LiveSecrets, text: &str| {
            String::from_utf8(live.overwritten(text.as_bytes()).into_owned()).unwrap()
        };
        assert_eq!(text(&live, "first-secret-1"), "first-secret-1");
        let first = Arc::new(Scrub::new(["first-secret-1"], []));
        let second = Arc::new(Scrub::new(["first-secret-1-and-more"], []));
        live.add(&first);
        live.add(&second);
        live.add(&first);
        let line = "a first-secret-1, first-secret-1-and-more, Zmlyc3Qtc2VjcmV0LTE=";
        let stars = |count: usize| "*".repeat(count);
        assert_eq!(
            text(&live, line),
            format!("a {}, {}, {}E=", stars(14), stars(23), stars(18))
        );
        drop(second);
        assert!(text(&live, line).ends_with("-and-more, ******************E="));
        drop(first);
        assert_eq!(text(&live, line), line);
    }

    #[test]
    fn forgotten_secrets_do_not_pile_up() {
        let live = LiveSecrets::default();
        for n in 0..2_000 {
            live.add(&Arc::new(Scrub::new(
                [format!("{n:05}-secret-secret").as_str()],
                [],
            )));
        }
        let known = live.by_start.read().unwrap();
        assert!(known.entries < 200, "{}", known.entries);
    }
}
