//! A key that a user gave a credential is known to a node by its digest alone, but for the request
//! that presents it: should it stand elsewhere in that request as well, the record does not repeat
//! it. Those that we issued are told by their look ([`crate::credentials::shown`]). Pure.

use bytes::Bytes;
use http::HeaderValue;
use memchr::memmem;
use proto::credential::SEARCHED_SECRET_BYTES_MIN;

use crate::flow::Notes;
use crate::presented::ISSUED;

/// Overwrites a presented key, or the password of a presented pair, in what is noted for the
/// record.
pub fn forget(notes: &mut Notes, presented: &[u8]) {
    let colon = memchr::memchr(b':', presented);
    let password = colon.and_then(|at| presented.get(at + 1..));
    for key in [Some(presented), password].into_iter().flatten() {
        if key.len() >= SEARCHED_SECRET_BYTES_MIN && !key.starts_with(ISSUED) {
            forget_key(notes, key);
        }
    }
}

fn forget_key(notes: &mut Notes, key: &[u8]) {
    if let Some(path) = forgotten(&notes.path, key) {
        notes.path = path.into();
    }
    let query = notes.query.as_deref();
    if let Some(query) = query.and_then(|query| forgotten_in_query(query, key)) {
        notes.query = Some(query.into());
    }
    let agent = notes.agent.as_ref().map(HeaderValue::as_bytes);
    if let Some(agent) = agent.and_then(|agent| forgotten(agent, key)) {
        notes.agent = HeaderValue::from_maybe_shared(Bytes::from(agent)).ok();
    }
}

/// The text with a key overwritten, where it holds it as it is or under escapes.
fn forgotten(text: &[u8], key: &[u8]) -> Option<Vec<u8>> {
    if text.len() < key.len() {
        return None;
    }
    let out = overwritten(text, key);
    let left = out.as_deref().unwrap_or(text);
    under_escapes(left, b'+', |decoded| overwritten(decoded, key)).or(out)
}

/// The same of a query, in which a `+` may be a space as well.
fn forgotten_in_query(query: &[u8], key: &[u8]) -> Option<Vec<u8>> {
    let out = forgotten(query, key);
    if !key.contains(&b' ') {
        return out;
    }
    let left = out.as_deref().unwrap_or(query);
    under_escapes(left, b' ', |decoded| overwritten(decoded, key)).or(out)
}

/// A text with that overwritten, escapes and all, which a search overwrites in what it decodes to;
/// all other bytes stay as they are, and so no `&` or `/` appears where there was none. Nothing
/// where the search finds nothing, or nothing is to be decoded.
///
/// `plus` is what a `+` stands for: itself, or a space as in a form. The search keeps the length.
pub fn under_escapes(
    text: &[u8],
    plus: u8,
    search: impl FnOnce(&[u8]) -> Option<Vec<u8>>,
) -> Option<Vec<u8>> {
    if !text.contains(&b'%') && (plus == b'+' || !text.contains(&b'+')) {
        return None;
    }
    let clean = search(&plain(text, plus))?;
    let mut out = text.to_vec();
    let mut at = 0;
    for ((byte, width), clean) in decoded(text, plus).zip(clean) {
        if byte != clean
            && let Some(written) = out.get_mut(at..at + width)
        {
            written.fill(b'*');
        }
        at += width;
    }
    Some(out)
}

/// What a text decodes to; `plus` is what a `+` stands for.
pub fn plain(text: &[u8], plus: u8) -> Vec<u8> {
    decoded(text, plus).map(|(byte, _)| byte).collect()
}

/// The bytes that a text decodes to, each with how many it is written with. What is no valid escape
/// stands for itself.
pub fn decoded(text: &[u8], plus: u8) -> impl Iterator<Item = (u8, usize)> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let mut rest = text;
    std::iter::from_fn(move || {
        let escaped = match rest {
            [b'%', high, low, ..] => digit(*high).zip(digit(*low)),
            _ => None,
        };
        let escaped = escaped.and_then(|(high, low)| u8::try_from(high << 4 | low).ok());
        let (byte, width) = match (escaped, *rest.first()?) {
            (Some(byte), _) => (byte, "%XX".len()),
            (None, b'+') => (plus, 1),
            (None, byte) => (byte, 1),
        };
        rest = rest.get(width..)?;
        Some((byte, width))
    })
}

/// The text with a key overwritten, where it stands there as it is. Linear, whatever both repeat:
/// nobody has been identified yet.
fn overwritten(text: &[u8], key: &[u8]) -> Option<Vec<u8>> {
    let mut out = None;
    for at in memmem::find_iter(text, key) {
        let out = out.get_or_insert_with(|| text.to_vec());
        if let Some(found) = out.get_mut(at..at + key.len()) {
            found.fill(b'*');
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "a-key-that-a-user-gave";

    fn text(text: &str) -> String {
        text.replace("KEY", KEY)
            .replace("STARS", &"*".repeat(KEY.len()))
    }

    fn check(presented: &str, path: &str, expected: &str) {
        let mut notes = Notes {
            path: text(path).into(),
            query: Some(text(path).into()),
            agent: HeaderValue::from_str(&text(path)).ok(),
            ..Notes::default()
        };
        forget(&mut notes, text(presented).as_bytes());
        assert_eq!(notes.path, text(expected), "{path}");
        assert_eq!(notes.query.unwrap(), text(expected), "{path}");
        assert_eq!(notes.agent.unwrap(), text(expected), "{path}");
    }

    #[test]
    fn a_presented_key_is_forgotten_where_a_record_would_repeat_it() {
        check("KEY", "/a/KEY/aKEYKEY", "/a/STARS/aSTARSSTARS");
        check("KEY", "/a/a-key-that%20", "/a/a-key-that%20");
        check("KEY", "/%20/KEY", "/%20/STARS");
        check(
            "KEY",
            "/%61-key-that-a-user-gave/KEY/%20+%",
            "/**STARS/STARS/%20+%",
        );
        check("user:KEY", "/KEY", "/STARS");
        check("short", "/short", "/short");
    }

    #[test]
    fn other_parameters_stay_as_they_came() {
        for (key, query, expected) in [
            (
                "abc+def/ghi=jkl==",
                "key=abc%2Bdef%2Fghi%3Djkl%3D%3D&q=Tom%26Jerry&next=%2Fx%26page%3Dsecret",
                "key=***************************&q=Tom%26Jerry&next=%2Fx%26page%3Dsecret",
            ),
            (
                "abc+def/ghi=jkl",
                "a+b=%26&abc+def%2Fghi=jkl&c",
                "a+b=%26&*****************&c",
            ),
            (
                "a key of words",
                "a+b=%26&k=a+key%20of+words&c+d",
                "a+b=%26&k=****************&c+d",
            ),
            ("a-key&another", "q=a-key%26another", "q=***************"),
        ] {
            let mut notes = Notes {
                query: Some(query.to_owned().into()),
                ..Notes::default()
            };
            forget(&mut notes, key.as_bytes());
            assert_eq!(notes.query.unwrap(), expected, "{key}");
        }
    }

    #[test]
    fn a_plus_is_a_plus_but_in_a_query() {
        let mut notes = Notes {
            path: "/x/abc+def%2Fghi=jkl/%20".to_owned().into(),
            agent: HeaderValue::from_bytes(b"x abc+def%2Fghi=jkl").ok(),
            ..Notes::default()
        };
        forget(&mut notes, b"abc+def/ghi=jkl");
        assert_eq!(notes.path, "/x/*****************/%20");
        assert_eq!(notes.agent.unwrap(), "x *****************");
    }

    #[test]
    fn a_key_that_repeats_itself_costs_no_more_than_another() {
        // Where each place is compared with all of the key, this does not end in minutes.
        let key = "a".repeat(1 << 20) + "b";
        let path = "a".repeat(2 << 20);
        for more in ["", "%20"] {
            let mut notes = Notes {
                path: format!("{path}{more}").into(),
                ..Notes::default()
            };
            forget(&mut notes, key.as_bytes());
            assert_eq!(notes.path.len(), path.len() + more.len());
            assert!(notes.path.starts_with(b"aaa"));
        }
    }
}
