//! The span of bytes `[start, end)` in which all keys with a prefix lie, as both stores ask for it.

/// A half-open span of keys in byte order. Empty when `start >= end`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Span {
    /// The first key that may belong to it.
    pub(super) start: Vec<u8>,
    /// The first key beyond it.
    pub(super) end: Vec<u8>,
}

impl Span {
    /// Every key that begins with `base` followed by `prefix`, and sorts after `base` + `after`.
    pub(super) fn new(base: &str, prefix: &str, after: Option<&str>) -> Self {
        let first = [base.as_bytes(), prefix.as_bytes()].concat();
        let end = end_of_prefix(&first);
        let start = match after {
            // The zero byte makes the least key that is greater than `after`.
            Some(after) => first.max([base.as_bytes(), after.as_bytes(), &[0]].concat()),
            None => first,
        };
        Self { start, end }
    }
}

/// The least bytes that are greater than every UTF-8 text with this prefix.
fn end_of_prefix(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    match end.last_mut() {
        // UTF-8 has no byte 0xff, so neither addition overflows.
        Some(last) => *last = last.saturating_add(1),
        None => end.push(0xff),
    }
    end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_holds_the_keys_of_its_prefix_and_no_others() {
        let check = |prefix: &str, after: Option<&str>, key: &str, inside: bool| {
            let span = Span::new("/base/", prefix, after);
            let key = [b"/base/", key.as_bytes()].concat();
            assert_eq!(
                span.start <= key && key < span.end,
                inside,
                "{prefix} {after:?} {key:?}"
            );
        };
        check("a/", None, "a/", true);
        check("a/", None, "a/b", true);
        check("a/", None, "a/\u{10ffff}", true);
        check("a/", None, "a", false);
        check("a/", None, "a0", false);
        check("a/", None, "b", false);
        check("", None, "anything", true);
        check("\u{10ffff}", None, "\u{10ffff}\u{10ffff}", true);
        check("a/", Some("a/b"), "a/b", false);
        check("a/", Some("a/b"), "a/b\0", true);
        check("a/", Some("a/b"), "a/ba", true);
        check("a/", Some("A"), "a/b", true);
        check("a/", Some("z"), "a/b", false);
    }

    #[test]
    fn a_span_without_base_and_prefix_holds_every_text() {
        let span = Span::new("", "", None);
        for key in ["\0", "a", "\u{10ffff}"] {
            assert!(span.start.as_slice() <= key.as_bytes() && key.as_bytes() < &span.end[..]);
        }
    }
}
