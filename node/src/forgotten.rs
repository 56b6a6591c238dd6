//! A key that a user gave a credential is known to a node by its digest alone, but for the request
//! that presents it: should it stand elsewhere in that request as well, the record does not repeat
//! it. Those that we issued are told by their look ([`crate::credentials::shown`]). Pure.

use std::borrow::Cow;

use bytes::Bytes;
use http::HeaderValue;
use memchr::memmem;
use proto::credential::SEARCHED_SECRET_BYTES_MIN;
use proto::query::form_decode;

use crate::flow::Notes;
use crate::presented::ISSUED;

/// Overwrites a presented key, or the password of a presented pair, in what is noted for the
/// record.
pub fn forget(notes: &mut Notes, presented: &[u8]) {
    let colon = presented.iter().position(|byte| *byte == b':');
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
    if let Some(query) = query.and_then(|query| forgotten(query, key)) {
        notes.query = Some(query.into());
    }
    let agent = notes.agent.as_ref().map(HeaderValue::as_bytes);
    if let Some(agent) = agent.and_then(|agent| forgotten(agent, key)) {
        notes.agent = HeaderValue::from_maybe_shared(Bytes::from(agent)).ok();
    }
}

/// The text with a key overwritten, where it holds it; decoded, where escapes hide it.
fn forgotten(text: &[u8], key: &[u8]) -> Option<Vec<u8>> {
    let out = overwritten(text, key);
    let left = out.as_deref().unwrap_or(text);
    if left.contains(&b'%')
        && let Cow::Owned(decoded) = form_decode(left)
        && let Some(decoded) = overwritten(&decoded, key)
    {
        return Some(decoded);
    }
    out
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
        check("KEY", "/%61-key-that-a-user-gave/KEY/%20", "/STARS/STARS/ ");
        check("user:KEY", "/KEY", "/STARS");
        check("short", "/short", "/short");
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
