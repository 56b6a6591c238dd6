//! Finds an injected secret in what a target answers, in the forms in which servers echo it, and
//! overwrites it with as many `*`.
//!
//! A net, not the boundary: that is the credential's `hosts`. Pure.
//!
//! Not one automaton over all forms: it would hold the secret in memory that nobody zeroises. The
//! automaton knows only how each form begins, runs over a text at the speed of memory (SIMD), and
//! what begins so is compared with the forms themselves.

use aho_corasick::{AhoCorasick, Input, MatchKind};
use bytes::Bytes;
use zeroize::Zeroizing;

use super::forms::{self, Form};

/// So many bytes of a form are what it is found by.
const START_BYTES: usize = 4;
/// A form that is alike for so many bytes and differs later has cost something.
const CHEAP_BYTES: usize = 16;
/// So many bytes may be compared in vain for each byte of a text. Only a secret that repeats
/// itself, in a text made to meet it, needs more; the rest of that text then passes.
const VAIN_PER_BYTE: usize = 64;

/// The forms of a credential's secrets.
#[derive(Default)]
pub struct Scrub {
    /// Longest first, so that of two that begin alike the whole one is overwritten.
    forms: Vec<Form>,
    /// Finds how they begin; none where there is nothing to find.
    starts: Option<AhoCorasick>,
    /// Length of the shortest form.
    shortest: usize,
}

/// A text in which secrets were overwritten.
#[derive(Debug, PartialEq, Eq)]
pub struct Overwritten<T> {
    /// The text, as long as before.
    pub text: T,
    /// How many there were.
    pub times: u32,
}

/// What the search came upon.
enum Spot {
    /// A form.
    Whole { at: usize, length: usize },
    /// The text ends within what may become a form.
    Cut { at: usize },
    /// Nothing more.
    End,
}

impl Scrub {
    /// A search for these secrets, and for the whole values that hold one too short to be searched
    /// by itself.
    pub fn new<'s>(
        secrets: impl IntoIterator<Item = &'s str>,
        values: impl IntoIterator<Item = &'s str>,
    ) -> Self {
        let mut forms = Vec::new();
        for secret in secrets {
            forms::add(secret, &mut forms);
        }
        for value in values {
            let holds = |form: &Form| value.as_bytes().windows(form.len()).any(|w| w == &***form);
            if !forms.iter().any(holds) {
                forms::add(value, &mut forms);
            }
        }
        forms.sort_unstable_by(|one, other| {
            let longest = other.len().cmp(&one.len());
            longest.then_with(|| one.as_slice().cmp(other.as_slice()))
        });
        forms.dedup_by(|one, other| one.as_slice() == other.as_slice());
        let mut starts: Vec<&[u8]> = forms.iter().filter_map(|form| start(form)).collect();
        starts.sort_unstable();
        starts.dedup();
        // Leftmost: the kind that may search with SIMD.
        let starts = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostFirst)
            .build(&starts)
            .ok()
            .filter(|_| !starts.is_empty());
        let shortest = forms.last().map_or(0, |form| form.len());
        Self {
            forms,
            starts,
            shortest,
        }
    }

    /// Whether there is nothing to search.
    pub fn is_empty(&self) -> bool {
        self.starts.is_none()
    }

    /// The beginnings by which its forms are found, one for each form.
    pub fn starts(&self) -> impl Iterator<Item = [u8; START_BYTES]> {
        let starts = self.forms.iter().filter_map(|form| start(form));
        starts.filter_map(|start| start.try_into().ok())
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

    /// Where forms are, and from where on the text must wait for what follows it.
    fn hits(&self, text: &[u8], more: bool) -> (Vec<(usize, usize)>, usize) {
        let mut hits = Vec::new();
        if text.len() < self.shortest && !more {
            return (hits, text.len());
        }
        let (mut from, mut vain) = (0, text.len().saturating_mul(VAIN_PER_BYTE));
        loop {
            match self.next(text, from, more, &mut vain) {
                Spot::Whole { at, length } => {
                    hits.push((at, length));
                    from = at + length;
                }
                Spot::Cut { at } => return (hits, at),
                Spot::End => return (hits, text.len()),
            }
        }
    }

    fn next(&self, text: &[u8], mut from: usize, more: bool, vain: &mut usize) -> Spot {
        let Some(starts) = &self.starts else {
            return Spot::End;
        };
        while let Some(found) = starts.find(Input::new(text).range(from..)) {
            let at = found.start();
            let rest = text.get(at..).unwrap_or_default();
            for form in &self.forms {
                if rest.starts_with(form) {
                    let length = form.len();
                    return Spot::Whole { at, length };
                }
                if more && rest.len() < form.len() && form.starts_with(rest) {
                    return Spot::Cut { at };
                }
                if rest.get(..CHEAP_BYTES) == form.get(..CHEAP_BYTES) {
                    *vain = vain.saturating_sub(form.len());
                }
            }
            if *vain == 0 {
                return Spot::End;
            }
            from = at + 1;
        }
        // Too short to be found by its beginning.
        let tails = (from.max(text.len().saturating_sub(START_BYTES - 1))..text.len())
            .filter(|at| more && self.forms.iter().any(|form| form.starts_with(&text[*at..])));
        tails.min().map_or(Spot::End, |at| Spot::Cut { at })
    }
}

fn start(form: &Form) -> Option<&[u8]> {
    form.get(..START_BYTES)
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
