//! The edges of a part of a body (206): a caller that asks for parts could put a secret together of
//! which no part holds the whole. Pure.

use bytes::{Bytes, BytesMut};
use memchr::memmem;

use super::scrub::{Overwritten, Scrub};

/// Shortest piece of a form that is overwritten at an edge. One of fewer bytes is in much that is
/// innocent.
const PIECE_BYTES_MIN: usize = 4;
/// So much may be compared in vain for each byte of a form. Only a secret that repeats itself needs
/// more; the edge then passes.
const VAIN_PER_BYTE: usize = 64;

/// A part without what its first bytes may be of a form that began before it. It is all of the part
/// where that lies within a form.
pub fn without_begin(scrub: &Scrub, part: Bytes) -> Overwritten<Bytes> {
    let forms = scrub.forms().map(|form| piece_behind(form, &part));
    let length = forms.max().unwrap_or_default();
    masked(part, 0, length)
}

/// A part without what its last bytes may be of a form that goes on behind it.
pub fn without_end(scrub: &Scrub, part: Bytes) -> Overwritten<Bytes> {
    let from = scrub.cut(&part);
    let length = part.len() - from;
    match length >= PIECE_BYTES_MIN {
        true => masked(part, from, length),
        false => masked(part, from, 0),
    }
}

fn masked(part: Bytes, from: usize, length: usize) -> Overwritten<Bytes> {
    let found = part.get(from..from + length);
    // What was overwritten already is no other find.
    if found.is_none_or(|found| found.iter().all(|byte| *byte == b'*')) {
        return Overwritten {
            text: part,
            times: 0,
        };
    }
    let mut text = BytesMut::from(part);
    if let Some(found) = text.get_mut(from..from + length) {
        found.fill(b'*');
    }
    Overwritten {
        text: text.freeze(),
        times: 1,
    }
}

/// How many bytes at the begin of a part stand in a form, up to the end of one of both.
fn piece_behind(form: &[u8], part: &[u8]) -> usize {
    let Some(begin) = part.get(..PIECE_BYTES_MIN) else {
        return 0;
    };
    let mut vain = form.len().saturating_mul(VAIN_PER_BYTE);
    for at in memmem::find_iter(form, begin) {
        let rest = form.get(at..).unwrap_or_default();
        let length = rest.len().min(part.len());
        if rest.get(..length) == part.get(..length) {
            return length;
        }
        vain = vain.saturating_sub(length);
        if vain == 0 {
            break;
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "third-party-tok-0001";

    fn part(text: &str) -> (String, u32) {
        let scrub = Scrub::new([SECRET], []);
        let whole = scrub.overwrite(text.as_bytes());
        let whole = whole.map_or_else(|| text.to_owned().into(), |found| found.text.into());
        let begin = without_begin(&scrub, whole);
        let end = without_end(&scrub, begin.text);
        let text = String::from_utf8(end.text.to_vec()).unwrap();
        (text, begin.times + end.times)
    }

    #[test]
    fn what_is_cut_at_an_edge_is_overwritten() {
        for (text, expected, times) in [
            ("party-tok-0001 and more", "************** and more", 1),
            ("you sent third-par", "you sent *********", 1),
            ("ty-tok", "******", 1),
            ("0001 third", "**** *****", 2),
            ("001 thi", "001 thi", 0),
            ("an innocent part", "an innocent part", 0),
            ("**** and thi", "**** and thi", 0),
            ("", "", 0),
        ] {
            assert_eq!(part(text), (expected.to_owned(), times), "{text}");
        }
    }

    #[test]
    fn no_more_than_the_ends_is_read_in_parts() {
        let body = format!("you sent Bearer {SECRET}!");
        for length in 4..body.len() {
            let parts = body.as_bytes().chunks(length);
            let read = parts.map(|part_of| part(std::str::from_utf8(part_of).unwrap()).0);
            let read: String = read.collect();
            assert!(!read.contains("party-t"), "{length}: {read}");
        }
    }

    #[test]
    fn a_secret_that_repeats_itself_ends_the_search_and_not_the_worker() {
        let scrub = Scrub::new([("a".repeat(16_000) + "b").as_str()], []);
        let text = Bytes::from("a".repeat(15_000) + "c");
        assert_eq!(without_begin(&scrub, text.clone()).text, text);
    }
}
