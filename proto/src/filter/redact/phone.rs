//! Telephone numbers: international (E.164), North American, and national ones that begin with a
//! trunk `0` and are written in groups. Digits in one piece without a `+` are none: they could be
//! anything.

use std::ops::Range;
use std::sync::LazyLock;

use regex::Regex;

use super::surroundings::{Joint, digits, stands_alone};

static FORMS: LazyLock<Regex> = LazyLock::new(|| {
    let form = r"(?x)
        (?<international> (?: \+ | 00 ) [\ ]?
            [1-9] (?: [\ .()/\-\x{a0}\x{202f}\x{2011}\x{2013}]{0,2} [0-9] ){7,14} )
      | (?<american> (?: 1 [\ .\-] )? (?: \( [2-9][0-9]{2} \) [\ ]? | [2-9][0-9]{2} [\ .\-] )
            [2-9][0-9]{2} [\ .\-] [0-9]{4} )
      | (?<pairs> 0[1-9] (?: [\ .\-] [0-9]{2} ){4} )
      | (?<trunk> \(? 0[1-9][0-9]{1,4} \)? (?: [\ ]? / [\ ]? | [\ ] )
            [0-9]{2,8} (?: [\ \-] [0-9]{2,8} ){0,4} )";
    Regex::new(form).expect("a constant pattern")
});

/// Hands every number in `text` to `found`.
pub(super) fn find(text: &str, found: &mut dyn FnMut(Range<usize>)) {
    let mut at = 0;
    while let Some(captures) = FORMS.captures_at(text, at) {
        let Some(all) = captures.get(0) else { break };
        let kept = if captures.name("international").is_some() {
            international(text, all.range())
        } else {
            let range = all.range();
            let count = digits(all.as_str()).len();
            let plausible = match captures.name("trunk") {
                Some(_) => (9..=12).contains(&count),
                None => !is_service_area(all.as_str()),
            };
            (plausible && stands_alone(text, &range, Joint::Any)).then_some(range)
        };
        match kept {
            Some(range) => {
                at = range.end;
                found(range);
            }
            // All forms begin with one byte of ASCII.
            None => at = all.start() + 1,
        }
    }
}

/// `211` to `911` are no area codes.
fn is_service_area(number: &str) -> bool {
    let digits = digits(number);
    let area = match digits.len() {
        11 => digits.get(1..4),
        _ => digits.get(..3),
    };
    matches!(area, Some([2..=9, 1, 1]))
}

/// The number within what looks like one.
fn international(text: &str, range: Range<usize>) -> Option<Range<usize>> {
    let number = &text[range.clone()];
    let is_plus = number.starts_with('+');
    let separated = number.bytes().skip(2).any(|byte| !byte.is_ascii_digit());
    if !is_plus && !separated {
        return None;
    }
    let count = digits(number).len() - if is_plus { 0 } else { 2 };
    let mut end = range.end;
    let country = number.trim_start_matches(['+', '0', ' ']);
    if country.starts_with('1') {
        // Ten digits follow; more that stand apart belong to something else.
        let prefix = number.len() - country.len();
        let last = country
            .bytes()
            .enumerate()
            .filter(|(_, byte)| byte.is_ascii_digit())
            .nth(10);
        end = range.start + prefix + last?.0 + 1;
    } else if !(8..=15).contains(&count) {
        return None;
    }
    let alone = text[end..].strip_prefix('x').is_some()
        || stands_alone(text, &(range.start..end), Joint::Decimal);
    let before = text[..range.start].chars().next_back();
    let joined = before.is_some_and(|char| char.is_alphanumeric() || "+_.".contains(char));
    (alone && !joined).then_some(range.start..end)
}
