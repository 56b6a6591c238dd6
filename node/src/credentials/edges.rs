//! The edges of a part of a body (206): a caller that asks for parts could put a secret together of
//! which no part holds the whole. Pure.

use bytes::{Bytes, BytesMut};
use http::header::CONTENT_RANGE;
use http::{HeaderMap, StatusCode};
use memchr::memmem;

use super::scrub::{Overwritten, Scrub};

/// Shortest piece of a form that is overwritten at an edge. One of fewer bytes is in much that is
/// innocent.
const PIECE_BYTES_MIN: usize = 4;
/// So much may be compared in vain for each byte of a form. Only a secret that repeats itself needs
/// more; the edge then passes.
const VAIN_PER_BYTE: usize = 64;

/// At which ends an answer's body is cut out of another one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cut {
    /// Something stands before it.
    pub begin: bool,
    /// Something may stand behind it.
    pub end: bool,
}

impl Cut {
    /// As a part says which one it is (RFC 9110 §14.4); at both ends where it does not.
    pub fn of(status: StatusCode, headers: &HeaderMap) -> Self {
        if status != StatusCode::PARTIAL_CONTENT {
            return Self::default();
        }
        let both = Self {
            begin: true,
            end: true,
        };
        let mut said = headers.get_all(CONTENT_RANGE).iter();
        match (said.next(), said.next()) {
            (Some(said), None) => Self::said(said.as_bytes()).unwrap_or(both),
            _ => both,
        }
    }

    /// Of `bytes 0-25/26`, or with `*` for a length that is not known.
    fn said(range: &[u8]) -> Option<Self> {
        let (unit, range) = std::str::from_utf8(range).ok()?.trim().split_once(' ')?;
        let (first, rest) = range.split_once('-')?;
        let (last, length) = rest.split_once('/')?;
        let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
        // A length that is none is not known either.
        let whole = length.parse::<u64>().ok();
        let is_range = unit.eq_ignore_ascii_case("bytes") && first <= last;
        is_range.then(|| Self {
            begin: first > 0,
            end: whole.is_none_or(|whole| last.checked_add(1) != Some(whole)),
        })
    }
}

/// The begin of a body that comes in pieces. That of a part is looked at once, when there is as
/// much of it as a form can be long, however small the pieces are.
pub struct Begin {
    /// Whether it is still to be looked at.
    is_cut: bool,
    held: BytesMut,
}

impl Begin {
    /// Of a body that is cut out of another one there.
    pub fn of(cut: Cut) -> Self {
        Self {
            is_cut: cut.begin,
            held: BytesMut::new(),
        }
    }

    /// Bytes that wait for what follows them.
    pub fn waiting(&self) -> usize {
        self.held.len()
    }

    /// Takes the next piece, or the last one, and gives what may go on.
    pub fn push(&mut self, scrub: &Scrub, piece: Bytes, last: bool) -> Overwritten<Bytes> {
        let unchanged = |text| Overwritten { text, times: 0 };
        if !self.is_cut {
            return unchanged(piece);
        }
        self.held.extend_from_slice(&piece);
        if !last && self.held.len() < scrub.longest() {
            return unchanged(Bytes::new());
        }
        self.is_cut = false;
        without_begin(scrub, std::mem::take(&mut self.held).freeze())
    }
}

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
    fn a_begin_is_found_however_small_its_pieces_are() {
        let scrub = Scrub::new([SECRET], []);
        let text = b"party-tok-0001 and so on, for longer than a form";
        for length in 1..=text.len() {
            let mut begin = Begin::of(Cut {
                begin: true,
                end: false,
            });
            let (mut read, mut times) = (Vec::new(), 0);
            let mut left = text.chunks(length).peekable();
            while let Some(piece) = left.next() {
                let piece = Bytes::copy_from_slice(piece);
                let found = begin.push(&scrub, piece, left.peek().is_none());
                read.extend_from_slice(&found.text);
                times += found.times;
            }
            let expected = b"************** and so on, for longer than a form";
            assert_eq!((&*read, times, begin.waiting()), (&expected[..], 1, 0));
        }
        // All of a part that is shorter than a form.
        let mut begin = Begin::of(Cut {
            begin: true,
            end: true,
        });
        let mut push = |piece, last| begin.push(&scrub, Bytes::from_static(piece), last).text;
        assert!(push(b"par".as_slice(), false).is_empty());
        assert_eq!(push(b"ty".as_slice(), true), "*****");
        let mut begin = Begin::of(Cut::default());
        let passed = begin.push(&scrub, Bytes::from_static(b"par"), false);
        assert_eq!(passed.text, "par");
    }

    #[test]
    fn a_part_is_cut_where_something_stands_beyond_it() {
        let cut = |status: u16, ranges: &[&str]| {
            let mut headers = HeaderMap::new();
            for range in ranges {
                headers.append(CONTENT_RANGE, range.parse().unwrap());
            }
            let cut = Cut::of(StatusCode::from_u16(status).unwrap(), &headers);
            (cut.begin, cut.end)
        };
        for (range, expected) in [
            ("bytes 0-25/26", (false, false)),
            ("bytes 0-24/26", (false, true)),
            ("bytes 1-25/26", (true, false)),
            ("Bytes 1-2/26", (true, true)),
            ("bytes 0-25/*", (false, true)),
            ("bytes 5-2/26", (true, true)),
            ("bytes 0-25", (true, true)),
            ("bytes */26", (true, true)),
            ("lines 0-25/26", (true, true)),
            ("", (true, true)),
        ] {
            assert_eq!(cut(206, &[range]), expected, "{range}");
        }
        assert_eq!(cut(206, &[]), (true, true));
        assert_eq!(cut(206, &["bytes 0-1/2", "bytes 0-1/2"]), (true, true));
        assert_eq!(cut(200, &["bytes 1-2/26"]), (false, false));
    }

    #[test]
    fn a_secret_that_repeats_itself_ends_the_search_and_not_the_worker() {
        let scrub = Scrub::new([("a".repeat(16_000) + "b").as_str()], []);
        let text = Bytes::from("a".repeat(15_000) + "c");
        assert_eq!(without_begin(&scrub, text.clone()).text, text);
    }
}
