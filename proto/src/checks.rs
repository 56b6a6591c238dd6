//! Checks that several objects share: names, labels, header names, ranges.
//!
//! Each pushes what it finds onto a list, so that all problems of an object are reported at once.

use std::collections::BTreeMap;

use crate::problem::Problem;
use crate::visible::is_unseen;

/// Longest `name` of an object, in characters.
pub const NAME_CHARS_MAX: usize = 200;
/// Most labels on an object.
pub const LABELS_MAX: usize = 64;
/// Longest label key, in characters.
const LABEL_KEY_CHARS_MAX: usize = 63;
/// Longest label value, in characters.
const LABEL_VALUE_CHARS_MAX: usize = 256;
/// Longest alias and slug, in characters.
const SLUG_CHARS_MAX: usize = 40;

/// A display name: 1 to 200 characters without control characters.
pub fn name(value: &str, pointer: &str, problems: &mut Vec<Problem>) {
    let chars = value.chars().count();
    if chars == 0 || chars > NAME_CHARS_MAX {
        let detail = format!("has {chars} characters; 1 to {NAME_CHARS_MAX} are allowed");
        problems.push(Problem::new(pointer, "length", detail));
    }
    if value.chars().any(char::is_control) {
        problems.push(Problem::new(
            pointer,
            "control-character",
            "holds a control character",
        ));
    }
}

/// A display name that is that of another field where none is given: what is wrong with that is
/// told there, and not once more of the name.
pub fn own_name(value: &str, other: Option<&str>, problems: &mut Vec<Problem>) {
    if other != Some(value) {
        name(value, "/name", problems);
    }
}

/// Whether a display name may be this.
pub fn is_name(value: &str) -> bool {
    let mut problems = Vec::new();
    name(value, "", &mut problems);
    problems.is_empty()
}

/// A display name that is made of something longer: as much of it as fits.
pub fn made_name(text: &str) -> String {
    text.chars().take(NAME_CHARS_MAX).collect()
}

/// A set of labels for finding objects again.
pub fn labels(labels: &BTreeMap<String, String>, problems: &mut Vec<Problem>) {
    if labels.len() > LABELS_MAX {
        let detail = format!("{} labels; at most {LABELS_MAX} are allowed", labels.len());
        problems.push(Problem::new("/labels", "too-many", detail));
    }
    for (key, value) in labels {
        let pointer = format!("/labels/{}", pointer_token(key));
        let key_fits = (1..=LABEL_KEY_CHARS_MAX).contains(&key.chars().count());
        if !key_fits || value.chars().count() > LABEL_VALUE_CHARS_MAX {
            let detail = format!(
                "a label's key has 1 to {LABEL_KEY_CHARS_MAX} characters and its value at most \
                 {LABEL_VALUE_CHARS_MAX}"
            );
            problems.push(Problem::new(&pointer, "length", detail));
        }
        if key.chars().chain(value.chars()).any(char::is_control) {
            problems.push(Problem::new(
                &pointer,
                "control-character",
                "holds a control character",
            ));
        }
    }
}

/// An alias or slug: `[a-z0-9-]{1,40}`, no `--`, not like an id.
///
/// Dots and `--` are separators of the URL forms, so neither may occur.
pub fn slug(value: &str, pointer: &str, problems: &mut Vec<Problem>) {
    let charset = value
        .bytes()
        .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    let length = (1..=SLUG_CHARS_MAX).contains(&value.len());
    if !charset || !length || value.contains("--") || value.starts_with("prx_") {
        let detail = format!(
            "must be 1 to {SLUG_CHARS_MAX} characters of a-z, 0-9 and single `-`; \
             for instance `my-api`"
        );
        problems.push(Problem::new(pointer, "slug", detail));
    }
}

/// A whole number within limits.
pub fn range(
    value: Option<u64>,
    allowed: std::ops::RangeInclusive<u64>,
    pointer: &str,
    problems: &mut Vec<Problem>,
) {
    if let Some(value) = value.filter(|value| !allowed.contains(value)) {
        let detail = format!(
            "{value} is outside {} to {}",
            allowed.start(),
            allowed.end()
        );
        problems.push(Problem::new(pointer, "range", detail));
    }
}

/// Whether a text is a token (RFC 9110 §5.6.2), the form of header names and methods.
pub fn is_token(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}

/// Whether bytes may stand in a header value: HTAB, SP, VCHAR, obs-text (RFC 9110 §5.5).
pub fn is_field_value(bytes: &[u8]) -> bool {
    bytes
        .iter()
        .all(|&b| b == b'\t' || (b >= 0x20 && b != 0x7f))
}

/// Headers that frame a message, route it, or belong to us: nobody may set or inject them.
const FRAMING: &[&str] = &[
    "host",
    "content-length",
    "transfer-encoding",
    "te",
    "trailer",
    "connection",
    "keep-alive",
    "upgrade",
    "expect",
    "http2-settings",
];

/// A header that configuration may set on what leaves, such as an injected credential.
pub fn settable_header(name: &str, pointer: &str, problems: &mut Vec<Problem>) {
    // Many servers read `_` as `-`.
    let lower = name.to_ascii_lowercase().replace('_', "-");
    if !is_token(name) || name.len() > 256 {
        let detail = format!("`{}` is not a header name", printable(name));
        problems.push(Problem::new(pointer, "header-name", detail));
    } else if FRAMING.contains(&lower.as_str())
        || lower.starts_with("proxy-")
        || lower.starts_with("requestrocket-")
    {
        let detail = format!("`{name}` frames the message or is reserved and cannot be set");
        problems.push(Problem::new(pointer, "header-reserved", detail));
    }
}

/// A list of header names.
pub fn header_names(names: &[String], pointer: &str, problems: &mut Vec<Problem>) {
    if names.len() > 64 {
        problems.push(Problem::new(
            pointer,
            "too-many",
            "at most 64 header names are allowed",
        ));
    }
    for (at, name) in names.iter().enumerate() {
        settable_header(name, &format!("{pointer}/{at}"), problems);
    }
}

/// A part of a JSON pointer, escaped as RFC 6901 §3 says.
pub fn pointer_token(text: &str) -> String {
    text.replace('~', "~0").replace('/', "~1")
}

/// A text shortened and without characters that are not seen, for messages.
pub fn printable(text: &str) -> String {
    text.chars()
        .take(100)
        .map(|c| if is_unseen(c) { '\u{fffd}' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_frames_a_message_is_not_set_however_it_is_spelled() {
        for (name, expected) in [
            ("Content_Length", Some("header-reserved")),
            ("transfer_encoding", Some("header-reserved")),
            ("Proxy_Authorization", Some("header-reserved")),
            ("requestrocket_x", Some("header-reserved")),
            ("x_length", None),
            ("x y", Some("header-name")),
        ] {
            let mut problems = Vec::new();
            settable_header(name, "/name", &mut problems);
            let found = problems.first().map(|problem| problem.code);
            assert_eq!(found, expected, "{name}");
        }
    }

    #[test]
    fn a_printable_text_steers_nothing() {
        let text = "a\nb\u{202e}c\u{2066}d\u{200f}e\u{2028}f";
        assert_eq!(
            printable(text),
            "a\u{fffd}b\u{fffd}c\u{fffd}d\u{fffd}e\u{fffd}f"
        );
        assert_eq!(printable("\u{fc}\u{5d0}"), "\u{fc}\u{5d0}");
        assert_eq!(printable(&"x".repeat(200)).len(), 100);
    }
}
