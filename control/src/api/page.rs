//! Paging: `limit` and `cursor` in, `items` and `next_cursor` out.
//!
//! A cursor is opaque and holds the key of the last item shown, so that a page continues rightly
//! while objects come and go.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use super::error::Refusal;

/// Items on a page when `limit` is not given.
pub const LIMIT_DEFAULT: usize = 100;
/// Most items on a page.
pub const LIMIT_MAX: usize = 500;
/// Longest cursor that is looked at, in bytes.
const CURSOR_BYTES_MAX: usize = 256;

/// Which part of a list is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageRequest {
    /// At most so many items.
    pub limit: usize,
    /// Only items behind this key.
    pub after: Option<String>,
}

impl PageRequest {
    /// Reads the two parameters.
    ///
    /// # Errors
    /// `limit` is no number from 1 to [`LIMIT_MAX`], or `cursor` is none of ours.
    pub fn parse(limit: Option<&str>, cursor: Option<&str>) -> Result<Self, Refusal> {
        let limit = match limit {
            None => LIMIT_DEFAULT,
            Some(text) => text
                .parse()
                .ok()
                .filter(|limit| (1..=LIMIT_MAX).contains(limit))
                .ok_or_else(|| {
                    Refusal::parameter("limit", format!("must be a number from 1 to {LIMIT_MAX}"))
                })?,
        };
        let after = cursor.map(decode).transpose()?;
        Ok(Self { limit, after })
    }
}

fn decode(cursor: &str) -> Result<String, Refusal> {
    decode_within(cursor, CURSOR_BYTES_MAX)
}

/// The key in a cursor that is at most so long, in bytes.
///
/// # Errors
/// It is none of ours.
pub fn decode_within(cursor: &str, bytes_max: usize) -> Result<String, Refusal> {
    Some(cursor)
        .filter(|cursor| cursor.len() <= bytes_max)
        .and_then(|cursor| URL_SAFE_NO_PAD.decode(cursor).ok())
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .ok_or_else(|| {
            Refusal::parameter(
                "cursor",
                "is not a `next_cursor` of this list; start without it",
            )
        })
}

/// The text of a cursor, as [`PageRequest::parse`] reads it.
pub fn cursor(key: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(key)
}

/// The answer of a list: the items, and where the next page begins.
pub fn page(items: Vec<Value>, last_key: Option<String>) -> Value {
    let next_cursor = last_key.map(cursor);
    json!({ "items": items, "next_cursor": next_cursor })
}

/// The answer of a list of which all items are at hand, each with a key of its own: the page that
/// is asked for, in the order of the keys.
pub fn cut(mut items: Vec<(String, Value)>, request: &PageRequest) -> Value {
    items.sort_by(|(one, _), (other, _)| one.cmp(other));
    let is_behind = |key: &String| request.after.as_ref().is_none_or(|after| key > after);
    let mut behind = items.into_iter().filter(|(key, _)| is_behind(key));
    let (mut shown, mut last) = (Vec::new(), None);
    for (key, item) in behind.by_ref().take(request.limit) {
        shown.push(item);
        last = Some(key);
    }
    let more = behind.next().is_some();
    page(shown, last.filter(|_| more))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_checked() {
        for (limit, cursor, good) in [
            (None, None, true),
            (Some("1"), None, true),
            (Some("500"), None, true),
            (Some("0"), None, false),
            (Some("501"), None, false),
            (Some("-1"), None, false),
            (Some("ten"), None, false),
            (Some(""), None, false),
            (None, Some("Yg"), true),
            (None, Some("!"), false),
            (None, Some("_w"), false),
        ] {
            let parsed = PageRequest::parse(limit, cursor);
            assert_eq!(parsed.is_ok(), good, "{limit:?} {cursor:?}");
        }
        assert!(PageRequest::parse(None, Some(&"A".repeat(1000))).is_err());
    }

    #[test]
    fn a_cursor_is_the_last_key() {
        let next = page(Vec::new(), Some("tgt_1".into()))["next_cursor"].clone();
        let request = PageRequest::parse(Some("5"), next.as_str()).unwrap();
        assert_eq!(request.after.as_deref(), Some("tgt_1"));
        assert_eq!(page(Vec::new(), None)["next_cursor"], Value::Null);
    }

    #[test]
    fn pages_of_a_list_hold_each_item_once_while_others_come_and_go() {
        let items = |keys: &[&str]| {
            let items = keys.iter().map(|key| ((*key).to_owned(), json!(key)));
            items.collect::<Vec<_>>()
        };
        let ask = |keys: &[&str], limit: &str, cursor: Option<&str>| {
            let page = cut(
                items(keys),
                &PageRequest::parse(Some(limit), cursor).unwrap(),
            );
            let next = page["next_cursor"].as_str().map(str::to_owned);
            (page["items"].clone(), next)
        };
        let (first, next) = ask(&["c", "a", "b", "e"], "2", None);
        assert_eq!(first, json!(["a", "b"]));
        // The last one shown is gone, one came before it and one behind.
        let (second, end) = ask(&["a", "aa", "c", "d", "e"], "3", next.as_deref());
        assert_eq!((second, end), (json!(["c", "d", "e"]), None));
        assert_eq!(ask(&[], "1", None), (json!([]), None));
        assert_eq!(ask(&["a"], "1", None), (json!(["a"]), None));
    }
}
