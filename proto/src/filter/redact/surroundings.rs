//! What stands around a find: a number within a longer one, a word or an identifier is none.

use std::ops::Range;

/// What may not join a find to more letters or digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Joint {
    /// Only a decimal point.
    Decimal,
    /// Any of `-`, `.`, `/`, `:` and `+`.
    Any,
}

/// A space or a hyphen, as numbers are grouped by.
pub(super) fn separator(char: char) -> bool {
    matches!(
        char,
        ' ' | '-' | '\u{a0}' | '\u{202f}' | '\u{2011}' | '\u{2013}'
    )
}

/// Whether what stands at `range` is no part of a longer word or number.
pub(super) fn stands_alone(text: &str, range: &Range<usize>, joint: Joint) -> bool {
    let before = text.get(..range.start).unwrap_or_default().chars().rev();
    let after = text.get(range.end..).unwrap_or_default().chars();
    !joins(before, joint) && !joins(after, joint)
}

fn joins(mut outward: impl Iterator<Item = char>, joint: Joint) -> bool {
    let Some(next) = outward.next() else {
        return false;
    };
    let continues = |char: Option<char>| char.is_some_and(char::is_alphanumeric);
    match next {
        '_' => true,
        '.' if joint == Joint::Decimal => outward.next().is_some_and(|char| char.is_ascii_digit()),
        '.' | '-' | '/' | ':' | '+' if joint == Joint::Any => continues(outward.next()),
        other => other.is_alphanumeric(),
    }
}

/// The digits of a text as values 0 to 9, without what stands between them.
pub(super) fn digits(text: &str) -> Vec<u8> {
    let digits = text.bytes().filter(u8::is_ascii_digit);
    digits.map(|byte| byte - b'0').collect()
}
