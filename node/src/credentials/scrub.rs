//! Finds an injected secret in what a target answers, in the forms in which servers echo it, and
//! overwrites it with as many `*`.
//!
//! A net, not the boundary: that is the credential's `hosts`. Pure.
//!
//! A text is not read byte by byte. Every form is at least twelve bytes long, so that it suffices
//! to look at four bytes here and there: where no form has them, none lies over that place. The
//! longer the secret the larger the steps. Against an automaton that looks at every byte with SIMD
//! (aho-corasick) a secret of 56 bytes takes a third of the instructions and one of 18 bytes as
//! many or a few more; and all that is known of the secret lies in memory that is zeroised.

use std::collections::BTreeSet;

use bytes::Bytes;
use zeroize::Zeroizing;

use super::forms::{self, Form};

/// So many bytes are looked at together.
const GRAM_BYTES: usize = 4;
/// Largest step between two looks. Beyond it the tables would grow and little be gained.
const STEP_MAX: usize = 64;
/// A form that is alike for so many bytes and differs later has cost something.
const CHEAP_BYTES: usize = 16;
/// So much may be compared in vain for each byte of a text, in bytes or in whole forms that differ
/// soon. Only a secret that repeats itself, in a text made to meet it, needs more; the rest of that
/// text then passes.
const VAIN_PER_BYTE: usize = 64;

/// The forms of a credential's secrets.
#[derive(Default)]
pub struct Scrub {
    /// Longest first, so that of two that begin alike the whole one is overwritten.
    forms: Vec<Form>,
    /// Four bytes of a form, its place in `forms`, and where in it they stand; sorted.
    grams: Zeroizing<Vec<[u32; 3]>>,
    /// A bit for the hash of each gram.
    filter: Zeroizing<Vec<u64>>,
    /// Bits of a hash.
    hash_bits: u32,
    /// Bytes from one look to the next.
    step: usize,
    /// Whether a form begins with the byte.
    begins: Zeroizing<Vec<bool>>,
}

/// A text in which secrets were overwritten.
#[derive(Debug, PartialEq, Eq)]
pub struct Overwritten<T> {
    /// The text, as long as before.
    pub text: T,
    /// How many there were.
    pub times: u32,
}

impl Scrub {
    /// A search for these secrets, and for the whole values that hold one too short to be searched
    /// by itself.
    pub fn new<'s>(
        secrets: impl IntoIterator<Item = &'s str>,
        values: impl IntoIterator<Item = &'s str>,
    ) -> Self {
        let mut secrets: BTreeSet<&str> = secrets.into_iter().collect();
        let values: BTreeSet<&str> = values.into_iter().collect();
        let search = Self::of_texts(&secrets);
        let whole = values.difference(&secrets).copied();
        let whole = whole.filter(|value| !search.holds_one(value.as_bytes()));
        let whole: Vec<&str> = whole.collect();
        if whole.is_empty() {
            return search;
        }
        secrets.extend(whole);
        Self::of_texts(&secrets)
    }

    fn of_texts(texts: &BTreeSet<&str>) -> Self {
        let mut forms = Vec::new();
        for text in texts {
            forms::add(text, &mut forms);
        }
        forms.sort_unstable_by(|one, other| {
            let longest = other.len().cmp(&one.len());
            longest.then_with(|| one.as_slice().cmp(other.as_slice()))
        });
        forms.dedup_by(|one, other| one.as_slice() == other.as_slice());
        Self::of(forms)
    }

    /// The tables of these forms, the longest first.
    fn of(forms: Vec<Form>) -> Self {
        let Some(shortest) = forms.last().map(|form| form.len()) else {
            return Self::default();
        };
        // Of so many places one after another, one is looked at.
        let step = (shortest + 1).saturating_sub(GRAM_BYTES).clamp(1, STEP_MAX);
        let mut grams = Zeroizing::new(Vec::with_capacity(forms.len() * step));
        let mut begins = Zeroizing::new(vec![false; 256]);
        for (place, form) in (0..).zip(&forms) {
            let windows = form.windows(GRAM_BYTES).take(step);
            for (offset, window) in (0..).zip(windows) {
                grams.extend(gram(window, 0).map(|gram| [gram, place, offset]));
            }
            if let Some(first) = form.first() {
                begins[usize::from(*first)] = true;
            }
        }
        grams.sort_unstable();
        // One bit in 64: few looks go on in vain.
        let hash_bits = (grams.len() * 64).next_power_of_two().ilog2().clamp(10, 16);
        let mut scrub = Self {
            filter: Zeroizing::new(vec![0; 1 << (hash_bits - 6)]),
            forms,
            hash_bits,
            step,
            begins,
            grams: Zeroizing::default(),
        };
        for [gram, ..] in grams.iter() {
            let hash = scrub.hash(*gram);
            scrub.filter[hash / 64] |= 1 << (hash % 64);
        }
        scrub.grams = grams;
        scrub
    }

    fn hash(&self, gram: u32) -> usize {
        // Fibonacci hashing: the upper bits depend on all of the gram.
        (gram.wrapping_mul(0x9e37_79b1) >> (32 - self.hash_bits)) as usize
    }

    /// Whether there is nothing to search.
    pub fn is_empty(&self) -> bool {
        self.forms.is_empty()
    }

    /// Bytes of its longest form.
    pub fn longest(&self) -> usize {
        self.forms.first().map_or(0, |form| form.len())
    }

    /// Its forms, the longest first.
    pub fn forms(&self) -> impl Iterator<Item = &[u8]> {
        self.forms.iter().map(|form| form.as_slice())
    }

    /// The length of the longest form that `text` begins with.
    pub fn begins(&self, text: &[u8]) -> Option<usize> {
        let form = self.forms.iter().find(|form| text.starts_with(form))?;
        Some(form.len())
    }

    /// A whole text with every secret overwritten; nothing where none is.
    pub fn overwrite(&self, text: &[u8]) -> Option<Overwritten<Vec<u8>>> {
        let (hits, _) = self.hits(text, false);
        masked(text, &hits)
    }

    /// Whether a text holds one of its forms.
    fn holds_one(&self, text: &[u8]) -> bool {
        let mut vain = text.len().saturating_mul(VAIN_PER_BYTE);
        self.find(text, 0, &mut vain).is_some()
    }

    /// Where forms are, the leftmost first and of those that begin there the longest, and from
    /// where on the text must wait for what follows it.
    fn hits(&self, text: &[u8], more: bool) -> (Vec<(usize, usize)>, usize) {
        let (mut hits, mut from) = (Vec::new(), 0);
        let mut vain = text.len().saturating_mul(VAIN_PER_BYTE);
        let mut end = match more {
            true => self.cut_from(text, 0, &mut vain),
            false => text.len(),
        };
        while let Some((at, length)) = self.find(text, from, &mut vain) {
            if at >= end {
                break;
            }
            hits.push((at, length));
            from = at + length;
            if from > end {
                end = self.cut_from(text, from, &mut vain);
            }
        }
        (hits, end)
    }

    /// The first form at or after `from`.
    fn find(&self, text: &[u8], from: usize, vain: &mut usize) -> Option<(usize, usize)> {
        if self.forms.is_empty() {
            return None;
        }
        let mut at = from;
        while let Some(gram) = gram(text, at) {
            let hash = self.hash(gram);
            let bits = self.filter.get(hash / 64).copied().unwrap_or_default();
            if bits & (1 << (hash % 64)) != 0 {
                let found = self.around(text, at, gram, from, vain);
                if found.is_some() || *vain == 0 {
                    return found;
                }
            }
            at += self.step;
        }
        None
    }

    /// The first form from `from` on that lies over these four bytes.
    fn around(
        &self,
        text: &[u8],
        at: usize,
        gram: u32,
        from: usize,
        vain: &mut usize,
    ) -> Option<(usize, usize)> {
        let first = self.grams.partition_point(|[known, ..]| *known < gram);
        let alike = self.grams.get(first..).unwrap_or_default().iter();
        let mut found: Option<(usize, usize)> = None;
        for [_, place, offset] in alike.take_while(|[known, ..]| *known == gram) {
            let form = self.forms.get(*place as usize)?;
            let begin = at.checked_sub(*offset as usize).filter(|at| *at >= from);
            let Some(rest) = begin.and_then(|begin| text.get(begin..)) else {
                continue;
            };
            if rest.starts_with(form) {
                let begin = text.len() - rest.len();
                let better = |(known, length)| (known, usize::MAX - length);
                let this = (begin, form.len());
                if found.is_none_or(|known| better(this) < better(known)) {
                    found = Some(this);
                }
            } else {
                let is_alike = rest.get(..CHEAP_BYTES) == form.get(..CHEAP_BYTES);
                *vain = vain.saturating_sub(if is_alike { form.len() } else { 1 });
            }
            if *vain == 0 {
                break;
            }
        }
        found
    }

    /// The first place at which the text ends within what may become a form; its end where there is
    /// none.
    pub fn cut(&self, text: &[u8]) -> usize {
        let mut vain = text.len().saturating_mul(VAIN_PER_BYTE);
        self.cut_from(text, 0, &mut vain)
    }

    /// The same from `from` on.
    fn cut_from(&self, text: &[u8], from: usize, vain: &mut usize) -> usize {
        let longest = self.forms.first().map_or(0, |form| form.len());
        let first = from.max((text.len() + 1).saturating_sub(longest));
        for at in first..text.len() {
            let rest = text.get(at..).unwrap_or_default();
            let begins = rest
                .first()
                .and_then(|byte| self.begins.get(usize::from(*byte)));
            if begins != Some(&true) {
                continue;
            }
            for form in self.forms.iter().filter(|form| form.len() > rest.len()) {
                if form.starts_with(rest) {
                    return at;
                }
                if rest.get(..CHEAP_BYTES) == form.get(..CHEAP_BYTES) {
                    *vain = vain.saturating_sub(rest.len());
                }
            }
            if *vain == 0 {
                break;
            }
        }
        text.len()
    }
}

/// The four bytes at a place.
fn gram(text: &[u8], at: usize) -> Option<u32> {
    let bytes = text.get(at..)?.first_chunk::<GRAM_BYTES>()?;
    Some(u32::from_le_bytes(*bytes))
}

fn masked(text: &[u8], hits: &[(usize, usize)]) -> Option<Overwritten<Vec<u8>>> {
    if hits.is_empty() {
        return None;
    }
    let mut text = text.to_vec();
    for (at, length) in hits {
        if let Some(secret) = text.get_mut(*at..at + length) {
            secret.fill(b'*');
        }
    }
    let times = u32::try_from(hits.len()).unwrap_or(u32::MAX);
    Some(Overwritten { text, times })
}

/// The end of what came so far of a stream, while it may be the beginning of a secret.
#[derive(Default)]
pub struct Tail(Zeroizing<Vec<u8>>);

impl Tail {
    /// Bytes that wait for what follows them.
    pub fn waiting(&self) -> usize {
        self.0.len()
    }

    /// Takes the next piece and gives what may go on, which is empty where all of it waits.
    pub fn push(&mut self, scrub: &Scrub, piece: Bytes) -> Overwritten<Bytes> {
        self.take(scrub, piece, true)
    }

    /// Gives what waited, with the last piece: nothing follows.
    pub fn finish(&mut self, scrub: &Scrub, piece: Bytes) -> Overwritten<Bytes> {
        self.take(scrub, piece, false)
    }

    fn take(&mut self, scrub: &Scrub, piece: Bytes, more: bool) -> Overwritten<Bytes> {
        let text = match self.0.is_empty() {
            true => piece,
            false => {
                let mut waited = std::mem::take(&mut *self.0);
                waited.extend_from_slice(&piece);
                Bytes::from(waited)
            }
        };
        let (hits, end) = scrub.hits(&text, more);
        self.0
            .extend_from_slice(text.get(end..).unwrap_or_default());
        match masked(text.get(..end).unwrap_or_default(), &hits) {
            Some(Overwritten { text, times }) => Overwritten {
                text: text.into(),
                times,
            },
            None => Overwritten {
                text: text.slice(..end.min(text.len())),
                times: 0,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::Engine as _;
    use base64::engine::general_purpose::{STANDARD, URL_SAFE};
    use percent_encoding::utf8_percent_encode;
    use proptest::prelude::*;

    const SECRET: &str = "s3cr/et+\"quoted\"=ÿ-9";

    fn scrub() -> Scrub {
        Scrub::new([SECRET], [])
    }

    fn scrubbed(text: &str) -> String {
        match scrub().overwrite(text.as_bytes()) {
            Some(Overwritten { text: bytes, .. }) => {
                assert_eq!(bytes.len(), text.len(), "the length stays");
                String::from_utf8_lossy(&bytes).into_owned()
            }
            None => text.to_owned(),
        }
    }

    #[test]
    fn every_form_of_an_echo_is_overwritten() {
        let json = serde_json::json!({ "echo": SECRET }).to_string();
        let percent = utf8_percent_encode(SECRET, forms::UNRESERVED).to_string();
        for text in [
            format!("Bearer {SECRET}!"),
            json.clone(),
            json.replace('/', "\\/").replace('ÿ', "\\u00ff"),
            json.replace("\\\"", "\\u0022")
                .replace('+', "\\u002B")
                .replace('ÿ', "\\u00FF"),
            percent.clone(),
            percent.to_lowercase(),
        ] {
            let found = scrubbed(&text);
            let hidden = found.contains("****") && !found.contains("quoted");
            assert!(hidden, "{text}: {found}");
        }
        // In a pair of Basic, wherever it begins: nothing of it can be decoded any more.
        for user in ["", "u", "us", "use", "user"] {
            let pair = format!("{user}:{SECRET}");
            for text in [STANDARD.encode(&pair), URL_SAFE.encode(&pair)] {
                let found = scrubbed(&format!("Basic {text}"));
                let stars = found.chars().filter(|c| *c == '*').count();
                assert!(stars * 6 + 10 >= SECRET.len() * 8, "{text}: {found}");
            }
        }
    }

    #[test]
    fn other_text_stays_as_it_is() {
        for text in ["", "s3cr/et", "s3cr/et+\"quoted", "*", "an innocent error"] {
            assert_eq!(scrubbed(text), text);
        }
        assert!(Scrub::new(["short", ""], ["Bearer x"]).is_empty());
        assert_eq!(Scrub::default().overwrite(b"x"), None);
    }

    #[test]
    fn a_short_secret_is_found_in_its_whole_value() {
        let scrub = Scrub::new(["short"], ["Token short"]);
        assert!(scrub.is_empty(), "eleven bytes");
        let scrub = Scrub::new(["short1"], ["Token short1"]);
        let found = scrub.overwrite(b"got Token short1, short1").unwrap();
        assert_eq!(found.text, b"got ************, short1");
        let scrub = Scrub::new([SECRET], ["a value of another"]);
        assert!(scrub.overwrite(b"a value of another").is_some());
    }

    /// Where each place of each value is compared with all of each form, this does not end in
    /// minutes.
    #[test]
    fn long_values_that_are_alike_are_looked_through_once() {
        let long = |length: usize, end: char| "a".repeat(length - 1) + &end.to_string();
        let ends = || "bcdefghi".chars();
        let short: Vec<String> = ends().map(|end| long(8_192, end)).collect();
        let whole: Vec<String> = ends().map(|end| long(16_384, end)).collect();
        let scrub = Scrub::new(
            short.iter().chain(&short).map(String::as_str),
            whole.iter().chain(&short).map(String::as_str),
        );
        // The whole ones, as base64 writes them.
        assert_eq!(scrub.longest(), 21_845);
    }

    #[test]
    fn a_secret_that_repeats_itself_ends_the_search_and_not_the_worker() {
        let secret = "a".repeat(16_383) + "b";
        let scrub = Scrub::new([secret.as_str()], []);
        let text = vec![b'a'; 4 << 20];
        assert!(scrub.overwrite(&text).is_none());
        let mut tail = Tail::default();
        let out = tail.push(&scrub, text.clone().into());
        assert_eq!(out.text.len() + tail.waiting(), text.len());
    }

    proptest! {
        #[test]
        fn pieces_say_what_the_whole_says(
            parts in proptest::collection::vec(0usize..8, 0..12),
            cuts in proptest::collection::vec(any::<proptest::sample::Index>(), 0..12),
        ) {
            let percent = utf8_percent_encode(SECRET, forms::UNRESERVED).to_string();
            let words = [
                SECRET, "s3cr", "s3cr/et+\"quo", "x", " ", percent.as_str(), "s3", "****",
            ];
            let text: String = parts.iter().map(|part| words[*part]).collect();
            let whole = scrub().overwrite(text.as_bytes());
            let expected = whole.map_or((text.clone().into_bytes(), 0), |w| (w.text, w.times));
            let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(text.len() + 1)).collect();
            at.sort_unstable();
            at.push(text.len());
            let (mut tail, mut out, mut times, mut from) = (Tail::default(), Vec::new(), 0, 0);
            for (index, end) in at.iter().enumerate() {
                let piece = Bytes::copy_from_slice(&text.as_bytes()[from..*end]);
                let passed = match index + 1 == at.len() {
                    true => tail.finish(&scrub(), piece),
                    false => tail.push(&scrub(), piece),
                };
                prop_assert!(tail.waiting() < percent.len());
                out.extend_from_slice(&passed.text);
                times += passed.times;
                from = *end;
            }
            prop_assert_eq!((out, times), expected);
        }
    }
}
