//! The secrets that this process holds, for every place where text leaves it that is not an answer:
//! log lines, panics, records and the spans made from them, documents of early ends.
//!
//! By construction a secret gets to few of these. This is for the day on which a library puts a
//! header into an error message, and for callers that put one into a path: whatever a text says, no
//! live secret is in it, nor a key that we have issued. A secret is live from its first use in this
//! process on.
//!
//! Every record's texts are searched, on the worker, so a search that finds nothing must cost next
//! to nothing, however many secrets there are. Every form of one is at least twelve bytes long, and
//! a key of ours begins with at least seven that are known: it is enough to look at four bytes at
//! every fourth place, each time at one bit, without a lock.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock, PoisonError, RwLock, Weak};

use super::issued;
use super::scrub::Scrub;

/// So many bytes are looked at together.
const GRAM_BYTES: usize = 4;
/// Bytes from one look to the next: there is one over each form, and over each beginning of a key
/// of ours, whatever stands before it.
const STEP: usize = issued::BEGIN_BYTES_MIN + 1 - GRAM_BYTES;
/// Bits of a hash. A thousand secrets set one bit in twenty.
const HASH_BITS: u32 = 19;

/// Secrets with as many users as have them open; forgotten when the last of them is.
pub struct LiveSecrets {
    by_start: RwLock<ByStart>,
    /// A bit for the hash of four bytes of a form, at each of the places at which one look may meet
    /// it; those of forgotten secrets among them.
    seen: Box<[AtomicU64]>,
}

#[derive(Default)]
struct ByStart {
    secrets: HashMap<[u8; GRAM_BYTES], Vec<Weak<Scrub>>>,
    /// Entries, those of forgotten secrets among them.
    entries: usize,
    /// From so many entries on the forgotten are looked for.
    sweep_at: usize,
}

impl Default for LiveSecrets {
    fn default() -> Self {
        let words = 1_usize << (HASH_BITS - 6);
        let live = Self {
            by_start: RwLock::default(),
            seen: (0..words).map(|_| AtomicU64::new(0)).collect(),
        };
        live.see_anew(&ByStart::default());
        live
    }
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
            self.see_anew(&known);
        } else {
            for (word, bit) in scrub.forms().flat_map(bits) {
                if let Some(word) = self.seen.get(word) {
                    word.fetch_or(bit, Relaxed);
                }
            }
        }
    }

    /// Sets the bits of all that is known and no others. A bit that stays set is so throughout.
    fn see_anew(&self, known: &ByStart) {
        let mut words = vec![0; self.seen.len()];
        let mut see = |text: &[u8]| {
            for (word, bit) in bits(text) {
                if let Some(word) = words.get_mut(word) {
                    *word |= bit;
                }
            }
        };
        issued::beginnings().for_each(|begin| see(&begin));
        let live = known.secrets.values().flatten().filter_map(Weak::upgrade);
        live.for_each(|scrub| scrub.forms().for_each(&mut see));
        for (seen, word) in self.seen.iter().zip(words) {
            seen.store(word, Relaxed);
        }
    }

    /// The text with every secret, and every key of ours, overwritten with as many `*`.
    pub fn overwritten<'t>(&self, text: &'t [u8]) -> Cow<'t, [u8]> {
        let mut out = Cow::Borrowed(text);
        let Some(mut at) = self.next_look(text, 0) else {
            return out;
        };
        let known = self.by_start.read().unwrap_or_else(PoisonError::into_inner);
        let mut from = 0;
        loop {
            // What lies over this look, and over none before it, begins here.
            for begin in from.max(at.saturating_sub(STEP - 1))..=at {
                if let Some(length) = known.begins(text.get(begin..).unwrap_or_default()) {
                    if let Some(secret) = out.to_mut().get_mut(begin..begin + length) {
                        secret.fill(b'*');
                    }
                    from = begin + length;
                    break;
                }
            }
            match self.next_look(text, at + STEP) {
                Some(next) => at = next,
                None => return out,
            }
        }
    }

    /// The first look, at this place or a whole number of steps behind it, that meets what may be a
    /// part of a secret.
    fn next_look(&self, text: &[u8], mut at: usize) -> Option<usize> {
        loop {
            let gram = text.get(at..)?.first_chunk()?;
            let (word, bit) = place(gram);
            if self.seen.get(word)?.load(Relaxed) & bit != 0 {
                return Some(at);
            }
            at += STEP;
        }
    }
}

impl ByStart {
    /// The length of the longest secret, or key of ours, that `text` begins with.
    fn begins(&self, text: &[u8]) -> Option<usize> {
        let start = text.first_chunk::<GRAM_BYTES>()?;
        let found = self.secrets.get(start).map_or(&[][..], Vec::as_slice);
        let secrets = found.iter().filter_map(Weak::upgrade);
        let secret = secrets.filter_map(|secret| secret.begins(text)).max();
        secret.max(issued::length(text))
    }
}

/// The bit of four bytes, and the word that it is in.
fn place(gram: &[u8; GRAM_BYTES]) -> (usize, u64) {
    // Fibonacci hashing: the upper bits depend on all of the gram.
    let hash = u32::from_le_bytes(*gram).wrapping_mul(0x9e37_79b1) >> (32 - HASH_BITS);
    (hash as usize / 64, 1 << (hash % 64))
}

/// The bits at which the first look that lies over a form, or a beginning, meets it.
fn bits(form: &[u8]) -> impl Iterator<Item = (usize, u64)> {
    let windows = form.windows(GRAM_BYTES).take(STEP);
    windows.filter_map(|window| window.first_chunk().map(place))
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

    #[test]
    fn a_secret_is_found_wherever_it_stands_and_however_many_there_are() {
        let live = LiveSecrets::default();
        let scrubs: Vec<_> = (0..2_000)
            .map(|n: u64| {
                let secret = format!("{:012x}", n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 16);
                Arc::new(Scrub::new([secret.as_str()], []))
            })
            .collect();
        scrubs.iter().for_each(|scrub| live.add(scrub));
        let secrets = scrubs.iter().filter_map(|scrub| scrub.forms().last());
        for (n, secret) in secrets.enumerate().step_by(37) {
            let before = "/v1/a-path/of-many-segments".repeat(2);
            let mut text = before.as_bytes()[..n % 40].to_vec();
            let (begin, end) = (text.len(), text.len() + secret.len());
            text.extend_from_slice(secret);
            text.extend_from_slice(secret);
            text.extend_from_slice(&b"?and=more"[..n % 9]);
            let found = live.overwritten(&text);
            assert!(found[begin..end + secret.len()].iter().all(|b| *b == b'*'));
            assert_eq!(&found[..begin], &text[..begin]);
            let after = end + secret.len();
            assert_eq!(&found[after..], &text[after..]);
            // Without its last byte it is none.
            assert_eq!(live.overwritten(&text[..end - 1]), &text[..end - 1]);
        }
    }
}
