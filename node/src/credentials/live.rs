//! The secrets that this process holds, for every place where text leaves it that is not an answer:
//! log lines, panics, records and the spans made from them, documents of early ends.
//!
//! By construction a secret gets to few of these. This is for the day on which a library puts a
//! header into an error message, and for callers that put one into a path: whatever a text says, no
//! live secret is in it, nor a key that we have issued. A secret is live from its first use in this
//! process on.
//!
//! A text that members of an organisation read is searched for the secrets of that organisation
//! alone ([`Whose`]): stars would tell whoever puts guesses into a path what others have, and
//! others' `custom` values would be cut out of it.
//!
//! Every record's texts are searched, on the worker, so a search that finds nothing must cost next
//! to nothing, however many secrets there are. Every form of one is at least twelve bytes long, and
//! a key of ours begins with at least seven that are known: it is enough to look at four bytes at
//! every fourth place, each time at one bit, without a lock.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock, PoisonError, RwLock, Weak};

use proto::id::OrgId;

use super::forms::SECRET_BYTES_MIN;
use super::issued;
use super::scrub::Scrub;
use super::words;

/// So many bytes are looked at together.
const GRAM_BYTES: usize = 4;
/// Bytes from one look to the next: there is one over each form, and over each beginning of a key
/// of ours, whatever stands before it.
const STEP: usize = issued::BEGIN_BYTES_MIN + 1 - GRAM_BYTES;
/// Bytes by which secrets are told apart before they are compared: the shortest form has as many.
/// Four are the same in all of a vendor's (`sk-p`, `eyJh`).
const START_BYTES: usize = SECRET_BYTES_MIN;
/// So many secrets may be compared with a text in vain, and further ones for each of its bytes.
/// Only a text made to begin like many of them, again and again, needs more; the rest of it is
/// then overwritten.
const VAIN: usize = 16_384;
const VAIN_PER_BYTE: usize = 2;
/// A comparison of no more bytes is a cheap one.
const CHEAP_BYTES: usize = 64;
/// Bits of a hash. A thousand secrets set one bit in twenty.
const HASH_BITS: u32 = 19;

/// Whose secrets a text is searched for. Keys that we issue are told by their look in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Whose {
    /// Nobody's.
    Nobodys,
    /// An organisation's, in what its members or its callers are told.
    Orgs(OrgId),
    /// Those of all organisations and of the operator, in what the operator alone is told.
    Everybodys,
}

impl Whose {
    /// Those of the organisation that a text is about, where it is known.
    pub fn of(org: Option<OrgId>) -> Self {
        org.map_or(Self::Nobodys, Self::Orgs)
    }
}

/// Secrets with as many users as have them open; forgotten when the last of them is.
pub struct LiveSecrets {
    by_start: RwLock<ByStart>,
    hasher: RandomState,
    /// A bit for the hash of four bytes of a form, at each of the places at which one look may meet
    /// it; those of forgotten secrets among them.
    seen: Box<[AtomicU64]>,
}

#[derive(Default)]
struct ByStart {
    /// By the hash of the first bytes of a form, and of whose it is: of a forgotten one no more is
    /// left than that.
    secrets: HashMap<u64, Vec<Weak<Scrub>>>,
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
            hasher: RandomState::new(),
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

    /// Adds the secrets of a search, for as long as it lives: an organisation's, or the operator's.
    pub fn add(&self, owner: Option<OrgId>, scrub: &Arc<Scrub>) {
        // What takes long is done before others wait for it.
        let starts = self.starts(owner, scrub);
        {
            let mut known = self
                .by_start
                .write()
                .unwrap_or_else(PoisonError::into_inner);
            let known = &mut *known;
            known.insert(&starts, scrub);
            if known.entries > known.sweep_at {
                known.sweep();
                self.see_anew(known);
            }
        }
        // Whoever sees anew from here on knows of it.
        for (word, bit) in scrub.forms().flat_map(bits) {
            if let Some(word) = self.seen.get(word) {
                word.fetch_or(bit, Relaxed);
            }
        }
    }

    /// The hashes by which the forms of a search are found, each once.
    fn starts(&self, owner: Option<OrgId>, scrub: &Scrub) -> Vec<u64> {
        let of_form = |form| {
            let lines = owner.is_none() || !words::are_ours(form);
            let whose = [owner.map(Whose::Orgs), lines.then_some(Whose::Everybodys)];
            whose.map(|whose| self.hash(whose?, form))
        };
        // Its forms may begin alike.
        let starts: BTreeSet<u64> = scrub.forms().flat_map(of_form).flatten().collect();
        starts.into_iter().collect()
    }

    /// The hash by which what a text begins with is found.
    fn hash(&self, whose: Whose, text: &[u8]) -> Option<u64> {
        let start = text.first_chunk::<START_BYTES>()?;
        Some(self.hasher.hash_one((whose, start)))
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
        for scrub in known.live().values() {
            scrub.forms().for_each(&mut see);
        }
        for (seen, word) in self.seen.iter().zip(words) {
            seen.store(word, Relaxed);
        }
    }

    /// The text with every secret, and every key of ours, overwritten with as many `*`.
    pub fn overwritten<'t>(&self, whose: Whose, text: &'t [u8]) -> Cow<'t, [u8]> {
        let mut out = Cow::Borrowed(text);
        let Some(mut at) = self.next_look(text, 0) else {
            return out;
        };
        let known = self.by_start.read().unwrap_or_else(PoisonError::into_inner);
        let mut vain = VAIN + text.len().saturating_mul(VAIN_PER_BYTE);
        let mut from = 0;
        loop {
            // What lies over this look, and over none before it, begins here.
            for begin in from.max(at.saturating_sub(STEP - 1))..=at {
                let rest = text.get(begin..).unwrap_or_default();
                let found = match self.may_begin(rest) {
                    true => known.begins(self.hash(whose, rest), rest, &mut vain),
                    false => None,
                };
                let found = if vain == 0 { Some(rest.len()) } else { found };
                if let Some(length) = found {
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
            if self.saw(text.get(at..)?.first_chunk()?) {
                return Some(at);
            }
            at += STEP;
        }
    }

    /// Whether a text may begin with a secret.
    fn may_begin(&self, text: &[u8]) -> bool {
        text.first_chunk().is_some_and(|gram| self.saw(gram))
    }

    /// Whether four bytes may be a part of a secret.
    fn saw(&self, gram: &[u8; GRAM_BYTES]) -> bool {
        let (word, bit) = place(gram);
        let word = self.seen.get(word);
        word.is_some_and(|word| word.load(Relaxed) & bit != 0)
    }
}

impl ByStart {
    /// Adds a search under the hashes of its forms.
    fn insert(&mut self, starts: &[u64], scrub: &Arc<Scrub>) {
        for start in starts {
            let found = self.secrets.entry(*start).or_default();
            let is_other = |last: &Weak<Scrub>| last.as_ptr() != Arc::as_ptr(scrub);
            if found.last().is_none_or(is_other) {
                found.push(Arc::downgrade(scrub));
                self.entries += 1;
            }
        }
    }

    /// Drops what is left of the forgotten.
    fn sweep(&mut self) {
        self.secrets.retain(|_, found| {
            found.retain(|scrub| scrub.strong_count() > 0);
            !found.is_empty()
        });
        self.entries = self.secrets.values().map(Vec::len).sum();
        self.sweep_at = self.entries * 2 + 64;
    }

    /// What is not forgotten, each search once: it has as many entries as forms.
    fn live(&self) -> HashMap<*const Scrub, Arc<Scrub>> {
        let live = self.secrets.values().flatten().filter_map(Weak::upgrade);
        live.map(|scrub| (Arc::as_ptr(&scrub), scrub)).collect()
    }

    /// The length of the longest secret, or key of ours, that `text` begins with; `start` is the
    /// hash of its beginning. What was compared in vain is taken off `vain`.
    fn begins(&self, start: Option<u64>, text: &[u8], vain: &mut usize) -> Option<usize> {
        let alike = start.and_then(|start| self.secrets.get(&start));
        let mut longest = issued::length(text);
        for secret in alike.into_iter().flatten() {
            let Some(secret) = secret.upgrade() else {
                *vain = vain.saturating_sub(1);
                continue;
            };
            match secret.begins(text) {
                Some(length) => longest = longest.max(Some(length)),
                None => *vain = vain.saturating_sub(1 + long_comparisons(&secret, text)),
            }
            if *vain == 0 {
                break;
            }
        }
        longest
    }
}

/// What a comparison with the forms that differ from a text late or never has cost, in cheap ones.
fn long_comparisons(secret: &Scrub, text: &[u8]) -> usize {
    let Some(start) = text.first_chunk::<CHEAP_BYTES>() else {
        return 0;
    };
    let alike = secret.forms().filter(|form| form.starts_with(start));
    alike.map(|form| form.len() / CHEAP_BYTES).sum()
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
            String::from_utf8(
                live.overwritten(Whose::Everybodys, text.as_bytes())
                    .into_owned(),
            )
            .unwrap()
        };
        assert_eq!(text(&live, "first-secret-1"), "first-secret-1");
        let first = Arc::new(Scrub::new(["first-secret-1"], []));
        let second = Arc::new(Scrub::new(["first-secret-1-and-more"], []));
        live.add(None, &first);
        live.add(None, &second);
        live.add(None, &first);
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
    fn nobody_is_told_what_others_have() {
        let live = LiveSecrets::default();
        let orgs = [1, 2].map(OrgId::from_bits);
        let [one, operators] =
            ["first-secret-1", "operators-secret"].map(|secret| Arc::new(Scrub::new([secret], [])));
        live.add(Some(orgs[0]), &one);
        live.add(None, &operators);
        let text = b"first-secret-1 operators-secret rr_live_aaaaaaaa";
        for (whose, expected) in [
            (Whose::Orgs(orgs[0]), "************** operators-secret"),
            (Whose::Orgs(orgs[1]), "first-secret-1 operators-secret"),
            (Whose::Nobodys, "first-secret-1 operators-secret"),
            (Whose::Everybodys, "************** ****************"),
        ] {
            let found = live.overwritten(whose, text).into_owned();
            assert_eq!(found, format!("{expected} {}", "*".repeat(16)).as_bytes());
        }
    }

    #[test]
    fn a_lines_own_words_stay() {
        let live = LiveSecrets::default();
        let org = OrgId::from_bits(1);
        let id = proto::id::ProxyId::from_bits(7).to_string();
        let words = ["upstream-unreachable", "secret-reflected", id.as_str()];
        let scrubs = words.map(|word| Arc::new(Scrub::new([word], [])));
        scrubs.iter().for_each(|scrub| live.add(Some(org), scrub));
        for word in words {
            let found = live.overwritten(Whose::Everybodys, word.as_bytes());
            assert_eq!(found, word.as_bytes());
            let found = live.overwritten(Whose::Orgs(org), word.as_bytes());
            assert!(found.iter().all(|byte| *byte == b'*'), "{word}");
        }
    }

    #[test]
    fn forgotten_secrets_do_not_pile_up() {
        let live = LiveSecrets::default();
        for n in 0..2_000 {
            live.add(
                None,
                &Arc::new(Scrub::new([format!("{n:05}-secret-secret").as_str()], [])),
            );
        }
        let known = live.by_start.read().unwrap();
        assert!(known.entries < 200, "{}", known.entries);
    }

    /// Where each form of a secret is looked at for each of them, this does not end in minutes.
    #[test]
    fn a_secret_of_many_forms_is_looked_through_once() {
        let live = LiveSecrets::default();
        let values: Vec<String> = (0..60_000).map(|n| format!("{n:08}-secret")).collect();
        let scrub = Arc::new(Scrub::new(values.iter().map(String::as_str), []));
        live.add(None, &scrub);
        let found = live.overwritten(Whose::Everybodys, b"a 00059999-secret of many");
        assert_eq!(&*found, b"a *************** of many");
        drop(scrub);
        let found = live.overwritten(Whose::Everybodys, b"a 00059999-secret of many");
        assert_eq!(&*found, b"a 00059999-secret of many");
    }

    /// As many secrets that begin alike, known for as long as they are kept.
    fn alike(live: &LiveSecrets, count: usize, begin: &str) -> Vec<Arc<Scrub>> {
        let secret = |n| Arc::new(Scrub::new([format!("{begin}{n:08}").as_str()], []));
        let scrubs: Vec<_> = (0..count).map(secret).collect();
        scrubs.iter().for_each(|scrub| live.add(None, scrub));
        scrubs
    }

    #[test]
    fn a_vendors_secrets_are_not_compared_for_their_common_beginning() {
        let live = LiveSecrets::default();
        let _scrubs = alike(&live, 100, "sk-p");
        let known = live.by_start.read().unwrap();
        let mut vain = 1;
        let mut begins = |text: &[u8]| {
            let start = live.hash(Whose::Everybodys, text);
            known.begins(start, text, &mut vain)
        };
        assert_eq!(begins(b"sk-psk-psk-psk-p"), None);
        assert_eq!(begins(b"sk-p00000099x"), Some(12));
        assert_eq!(vain, 1);
    }

    #[test]
    fn what_begins_like_many_secrets_again_and_again_is_overwritten_unsearched() {
        let live = LiveSecrets::default();
        let begin = "eyJhbGciOiJIUzI1NiJ9.";
        let _scrubs = alike(&live, 1_000, begin);
        let text = begin.repeat(3_000);
        let found = live.overwritten(Whose::Everybodys, text.as_bytes());
        let kept = found.iter().take_while(|byte| **byte != b'*').count();
        assert!(kept > 10 * begin.len(), "{kept}");
        assert!(kept < 1_000 * begin.len(), "{kept}");
        assert_eq!(&found[..kept], &text.as_bytes()[..kept]);
        assert!(found[kept..].iter().all(|byte| *byte == b'*'));
        // A few are searched to their ends.
        let text = format!("{begin}x {begin}00000999 {begin}y");
        let stars = "*".repeat(begin.len() + 8);
        let found = live
            .overwritten(Whose::Everybodys, text.as_bytes())
            .into_owned();
        assert_eq!(found, format!("{begin}x {stars} {begin}y").as_bytes());
    }

    #[test]
    fn a_long_secret_that_repeats_itself_counts_as_many() {
        let live = LiveSecrets::default();
        let scrub = Arc::new(Scrub::new([("a".repeat(16_000) + "b").as_str()], []));
        live.add(None, &scrub);
        let found = live
            .overwritten(Whose::Everybodys, &[b'a'; 60_000])
            .into_owned();
        assert!(found.starts_with(b"aaaa") && found.ends_with(b"****"));
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
        scrubs.iter().for_each(|scrub| live.add(None, scrub));
        let secrets = scrubs.iter().filter_map(|scrub| scrub.forms().last());
        for (n, secret) in secrets.enumerate().step_by(37) {
            let before = "/v1/a-path/of-many-segments".repeat(2);
            let mut text = before.as_bytes()[..n % 40].to_vec();
            let (begin, end) = (text.len(), text.len() + secret.len());
            text.extend_from_slice(secret);
            text.extend_from_slice(secret);
            text.extend_from_slice(&b"?and=more"[..n % 9]);
            let found = live.overwritten(Whose::Everybodys, &text);
            assert!(found[begin..end + secret.len()].iter().all(|b| *b == b'*'));
            assert_eq!(&found[..begin], &text[..begin]);
            let after = end + secret.len();
            assert_eq!(&found[after..], &text[after..]);
            // Without its last byte it is none.
            assert_eq!(
                live.overwritten(Whose::Everybodys, &text[..end - 1]),
                &text[..end - 1]
            );
        }
    }
}
