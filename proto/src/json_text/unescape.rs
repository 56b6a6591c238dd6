//! The escapes of JSON strings (RFC 8259 §7), resolved.

use std::borrow::Cow;

/// A string's text, and whether all of it could be said in Unicode.
pub(super) struct Unescaped<'a> {
    pub(super) text: Cow<'a, str>,
    /// A `\ud800`…`\udfff` without its partner. Parsers disagree on what it means; in `text` it
    /// is U+FFFD.
    pub(super) lone_surrogate: bool,
}

/// Resolves the escapes of a string's inner text. An escape that the grammar does not know (the
/// scanner lets none through) is taken literally.
pub(super) fn unescape(inner: &str) -> Unescaped<'_> {
    let Some((mut before, mut after)) = inner.split_once('\\') else {
        return Unescaped {
            text: Cow::Borrowed(inner),
            lone_surrogate: false,
        };
    };
    let mut text = String::with_capacity(inner.len());
    let mut lone_surrogate = false;
    loop {
        text.push_str(before);
        let mut chars = after.chars();
        let escaped = chars.next();
        after = chars.as_str();
        match escaped {
            Some('b') => text.push('\u{8}'),
            Some('f') => text.push('\u{c}'),
            Some('n') => text.push('\n'),
            Some('r') => text.push('\r'),
            Some('t') => text.push('\t'),
            Some('u') => {
                let (character, rest) = unicode_escape(after).unwrap_or((None, after));
                lone_surrogate |= character.is_none();
                text.push(character.unwrap_or(char::REPLACEMENT_CHARACTER));
                after = rest;
            }
            Some(other) => text.push(other),
            None => {}
        }
        match after.split_once('\\') {
            Some(next) => (before, after) = next,
            None => break,
        }
    }
    text.push_str(after);
    Unescaped {
        text: Cow::Owned(text),
        lone_surrogate,
    }
}

/// What follows `\u`: four hex digits, and for a high surrogate its `\uXXXX` partner too.
///
/// Gives the character (none for a surrogate without a partner) and the rest of the text; nothing
/// when there are no four hex digits.
pub(crate) fn unicode_escape(text: &str) -> Option<(Option<char>, &str)> {
    let (unit, rest) = hex4(text)?;
    if !(0xd800..0xdc00).contains(&unit) {
        return Some((char::from_u32(unit), rest));
    }
    let pair = rest
        .strip_prefix("\\u")
        .and_then(hex4)
        .filter(|(low, _)| (0xdc00..0xe000).contains(low))
        .map(|(low, rest)| (0x10000 + ((unit - 0xd800) << 10) + (low - 0xdc00), rest));
    match pair {
        Some((scalar, rest)) => Some((char::from_u32(scalar), rest)),
        None => Some((None, rest)),
    }
}

fn hex4(text: &str) -> Option<(u32, &str)> {
    let (digits, rest) = text.split_at_checked(4)?;
    // `from_str_radix` alone would take a sign.
    if !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    Some((u32::from_str_radix(digits, 16).ok()?, rest))
}
