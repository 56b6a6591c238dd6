//! Numbers of payment cards (ISO/IEC 7812): in one piece or in groups, told from other digits by
//! the issuer's range, the length and the check digit.

use std::ops::Range;

use super::checksum::luhn;
use super::surroundings::{Joint, separator, stands_alone};

/// Fewest and most digits of a number that is looked for.
const DIGITS: Range<usize> = 14..20;
/// Most groups that one number is written in.
const GROUPS_MAX: usize = 6;

/// A run of digits.
#[derive(Clone, Copy)]
struct Group {
    start: usize,
    end: usize,
    /// The separator between it and the next run; none where something else follows.
    next: Option<char>,
}

/// Hands every card number in `text` to `found`.
pub(super) fn find(text: &str, found: &mut dyn FnMut(Range<usize>)) {
    let groups = groups(text);
    let mut at = 0;
    while at < groups.len() {
        match card_at(text, &groups[at..]) {
            Some((range, count)) => {
                found(range);
                at += count;
            }
            None => at += 1,
        }
    }
}

fn groups(text: &str) -> Vec<Group> {
    let bytes = text.as_bytes();
    let mut groups = Vec::new();
    let mut at = 0;
    while let Some(start) = bytes
        .get(at..)
        .and_then(|rest| rest.iter().position(u8::is_ascii_digit))
    {
        let start = at + start;
        let rest = bytes.get(start..).unwrap_or_default();
        let length = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let end = start + length;
        let mut after = text[end..].chars();
        let next = after.next().filter(|char| separator(*char));
        let next = next.filter(|_| after.next().is_some_and(|char| char.is_ascii_digit()));
        groups.push(Group { start, end, next });
        at = end;
    }
    groups
}

/// The longest number that begins with the first of `groups`, and of how many it is made.
fn card_at(text: &str, groups: &[Group]) -> Option<(Range<usize>, usize)> {
    let first = groups.first()?;
    let mut digits: Vec<u8> = Vec::with_capacity(DIGITS.end);
    let mut sizes: Vec<usize> = Vec::with_capacity(GROUPS_MAX);
    let mut best = None;
    for (index, group) in groups.iter().take(GROUPS_MAX).enumerate() {
        let size = group.end - group.start;
        if digits.len() + size >= DIGITS.end {
            break;
        }
        digits.extend(text[group.start..group.end].bytes().map(|byte| byte - b'0'));
        sizes.push(size);
        let range = first.start..group.end;
        let joint = match first.next {
            // A card is the whole of what hyphens join, else it is a part of some other number.
            Some(hyphen) if index > 0 && hyphen != ' ' => Joint::Any,
            _ => Joint::Decimal,
        };
        if is_card(&digits, &sizes) && stands_alone(text, &range, joint) {
            best = Some((range, index + 1));
        }
        if group.next.is_none() || group.next != first.next {
            break;
        }
    }
    best
}

fn is_card(digits: &[u8], sizes: &[usize]) -> bool {
    let grouped = match sizes {
        [_] => true,
        [4, 6, 5] | [4, 6, 4] | [8, 8] | [6, 13] => true,
        [rest @ .., last] => rest.iter().all(|size| *size == 4) && *last <= 7,
        [] => false,
    };
    grouped && DIGITS.contains(&digits.len()) && is_issued(digits) && luhn(digits)
}

/// Whether an issuer has numbers of this length that begin so.
fn is_issued(digits: &[u8]) -> bool {
    let Some(begin) = digits.get(..4) else {
        return false;
    };
    let begin = begin
        .iter()
        .fold(0_u32, |sum, digit| sum * 10 + u32::from(*digit));
    match (begin, digits.len()) {
        // Visa; Mastercard; Mir.
        (4000..=4999 | 5100..=5599 | 2221..=2720 | 2200..=2204, 16) => true,
        // American Express; Diners Club.
        (3400..=3499 | 3700..=3799, 15) => true,
        (3000..=3059 | 3095 | 3600..=3699 | 3800..=3999, 14) => true,
        // Discover; JCB; RuPay.
        (6011 | 6440..=6599, 16 | 19) => true,
        (3528..=3589 | 6000..=6099 | 5085..=5089, 16) => true,
        // UnionPay; Maestro.
        (6200..=6299, 16..=19) => true,
        (5018 | 5020 | 5038 | 5893 | 6304 | 6759 | 6761..=6763, 16 | 18 | 19) => true,
        _ => false,
    }
}
