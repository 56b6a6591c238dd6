//! Characters that steer whoever shows a text instead of being seen in it: controls, marks that
//! turn the direction of what follows, other breaks of a line. What a caller, a target or an author
//! wrote must not use them to look like something else in a log, a message or a terminal.

use std::borrow::Cow;

/// Whether a character is a control or an invisible format character. The two joiners (U+200C and
/// U+200D) are none: they turn nothing, and scripts and emoji need them.
pub fn is_unseen(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            // Soft hyphen, Arabic letter mark, Mongolian vowel separator, zero width space.
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'
            // Directional marks; line and paragraph separators, embeddings and overrides.
            | '\u{200e}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            // Invisible operators, isolates; byte order mark; annotations.
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
            // Tags.
            | '\u{e0000}'..='\u{e007f}'
        )
}

/// A text on one line, each character that is not seen written as JSON escapes it: what was a
/// document of JSON is the same document afterwards.
pub fn on_one_line(text: &str) -> Cow<'_, str> {
    escaped(text, &is_unseen)
}

/// The same of a text of several lines, which stay lines.
pub fn in_lines(text: &str) -> Cow<'_, str> {
    escaped(text, &|c| is_unseen(c) && c != '\n')
}

fn escaped<'t>(text: &'t str, escapes: &dyn Fn(char) -> bool) -> Cow<'t, str> {
    let Some(first) = text.find(escapes) else {
        return Cow::Borrowed(text);
    };
    let (before, rest) = text.split_at(first);
    let mut out = String::with_capacity(text.len() + 16);
    out.push_str(before);
    for c in rest.chars() {
        match c {
            c if !escapes(c) => out.push(c),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    out.push_str(&format!("\\u{unit:04x}"));
                }
            }
        }
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_seen_is_escaped_and_nothing_else() {
        for (text, expected) in [
            ("plain \u{fc}\u{4e2d}\u{5d0}\u{627} \u{1f600}", None),
            ("\u{645}\u{6cc}\u{200c}\u{62e}", None),
            ("\u{1f469}\u{200d}\u{1f680}", None),
            ("a\nb\r\tc", Some("a\\nb\\r\\tc")),
            ("\u{1b}[2J\u{7f}\u{9b}x", Some("\\u001b[2J\\u007f\\u009bx")),
            ("\u{202e}gnp.exe\u{202c}", Some("\\u202egnp.exe\\u202c")),
            ("a\u{2066}b\u{2069}", Some("a\\u2066b\\u2069")),
            ("\u{200e}\u{200f}\u{61c}", Some("\\u200e\\u200f\\u061c")),
            ("a\u{2028}b\u{2029}", Some("a\\u2028b\\u2029")),
            ("\u{feff}\u{e0041}", Some("\\ufeff\\udb40\\udc41")),
        ] {
            assert_eq!(on_one_line(text), expected.unwrap_or(text), "{text:?}");
            let borrowed = matches!(on_one_line(text), Cow::Borrowed(_));
            assert_eq!(borrowed, expected.is_none(), "{text:?}");
        }
        assert_eq!(in_lines("a\u{202e}\nb\r\n"), "a\\u202e\nb\\r\n");
    }

    #[test]
    fn a_document_stays_what_it_is() {
        for c in ('\0'..=char::MAX).filter(|c| is_unseen(*c)) {
            let document = serde_json::json!({"a": format!("x{c}y\n")});
            for text in [document.to_string(), format!("{document:#}")] {
                let read = serde_json::from_str::<serde_json::Value>(&in_lines(&text));
                assert_eq!(read.unwrap(), document, "{c:?}");
            }
        }
    }
}
