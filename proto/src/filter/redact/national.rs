//! Numbers that states give to people. Only those that can be told from other digits: by check
//! digits, a date of birth in them, letters, or the way they are grouped.

use std::ops::Range;
use std::sync::LazyLock;

use regex::{Regex, RegexSet};

use super::checksum::{is_day, luhn, verhoeff, weighted};
use super::surroundings::{Joint, digits, stands_alone};

/// One kind of number: how it is written, and what must hold besides.
type Scheme = (&'static str, fn(&str) -> bool);

const SCHEMES: &[Scheme] = &[
    // United States: social security and taxpayer numbers.
    (r"[0-9]{3}[- ][0-9]{2}[- ][0-9]{4}", united_states),
    // United Kingdom: national insurance.
    (
        r"(?i)[A-Z]{2} ?[0-9]{2} ?[0-9]{2} ?[0-9]{2} ?[A-D]",
        united_kingdom,
    ),
    // Spain: DNI and NIE.
    (r"(?i)(?:[0-9]{8}|[XYZ]-?[0-9]{7})-?[A-Z]", spain),
    // Italy: codice fiscale.
    (
        r"(?i)[A-Z]{6}[0-9]{2}[A-EHLMPRST][0-9]{2}[A-Z][0-9]{3}[A-Z]",
        italy,
    ),
    // France: NIR.
    (
        r"[12] ?[0-9]{2} ?[0-9]{2} ?[0-9][0-9AB] ?[0-9]{3} ?[0-9]{3} ?[0-9]{2}",
        france,
    ),
    // Germany: tax id, grouped.
    (r"[1-9][0-9] [0-9]{3} [0-9]{3} [0-9]{3}", germany),
    // Switzerland: AHV.
    (r"756\.?[0-9]{4}\.?[0-9]{4}\.?[0-9]{2}", switzerland),
    // Belgium: national register, grouped.
    (r"[0-9]{2}\.[0-9]{2}\.[0-9]{2}-[0-9]{3}\.[0-9]{2}", belgium),
    // Sweden: personnummer; Finland: henkilötunnus; Norway: fødselsnummer.
    (r"(?:[0-9]{2})?[0-9]{6}[-+][0-9]{4}", sweden),
    (r"[0-9]{6}[-+A-FU-Y][0-9]{3}[0-9A-FHJ-NPR-Y]", finland),
    (r"[0-9]{6} ?[0-9]{5}", norway),
    // Brazil: CPF, grouped.
    (r"[0-9]{3}\.[0-9]{3}\.[0-9]{3}-[0-9]{2}", brazil),
    // Canada: social insurance, with hyphens.
    (r"[1-79][0-9]{2}-[0-9]{3}-[0-9]{3}", |text| {
        luhn(&digits(text))
    }),
    // India: Aadhaar, grouped.
    (r"[2-9][0-9]{3} [0-9]{4} [0-9]{4}", |text| {
        verhoeff(&digits(text))
    }),
    // China: resident identity card.
    (
        r"[1-9][0-9]{5}(?:19|20)[0-9]{2}[01][0-9][0-3][0-9]{4}[0-9Xx]",
        china,
    ),
];

static PATTERNS: LazyLock<Vec<Regex>> = LazyLock::new(|| {
    let patterns = SCHEMES.iter().map(|(form, _)| Regex::new(form));
    patterns
        .map(|pattern| pattern.expect("a constant pattern"))
        .collect()
});

static ALL: LazyLock<RegexSet> = LazyLock::new(|| {
    RegexSet::new(SCHEMES.iter().map(|(form, _)| form)).expect("constant patterns")
});

/// Hands every number in `text` to `found`.
pub(super) fn find(text: &str, found: &mut dyn FnMut(Range<usize>)) {
    for scheme in &ALL.matches(text) {
        let (Some(pattern), Some((_, holds))) = (PATTERNS.get(scheme), SCHEMES.get(scheme)) else {
            continue;
        };
        let mut at = 0;
        while let Some(begin) = pattern.find_at(text, at) {
            if stands_alone(text, &begin.range(), Joint::Any) && holds(begin.as_str()) {
                at = begin.end();
                found(begin.range());
            } else {
                // All forms begin with one byte of ASCII.
                at = begin.start() + 1;
            }
        }
    }
}

fn number(digits: &[u8]) -> u64 {
    digits
        .iter()
        .fold(0, |sum, digit| sum * 10 + u64::from(*digit))
}

/// Two digits of `digits` as a number.
fn pair(digits: &[u8], at: usize) -> u32 {
    digits.get(at..at + 2).map_or(0, |pair| number(pair) as u32)
}

fn letters(text: &str) -> Vec<u8> {
    let kept = text.bytes().filter(u8::is_ascii_alphanumeric);
    kept.map(|byte| byte.to_ascii_uppercase()).collect()
}

/// Areas and groups that were given out (SSA, IRS).
fn united_states(text: &str) -> bool {
    let digits = digits(text);
    let (area, group) = (digits.get(..3).map_or(0, number), pair(&digits, 3));
    let serial = digits.get(5..).map_or(0, number);
    let social = area != 0 && area != 666 && area < 900 && group != 0;
    let taxpayer = area >= 900 && matches!(group, 50..=65 | 70..=88 | 90..=92 | 94..=99);
    let same = text.get(3..4) == text.get(6..7);
    same && serial != 0 && (social || taxpayer)
}

/// Prefixes that are never given out (HMRC NIM39110).
fn united_kingdom(text: &str) -> bool {
    let letters = letters(text);
    let [first, second, ..] = letters[..] else {
        return false;
    };
    let prefix = [first, second];
    !b"DFIQUV".contains(&first)
        && !b"DFIQUVO".contains(&second)
        && ![b"BG", b"GB", b"KN", b"NK", b"NT", b"TN", b"ZZ"].contains(&&prefix)
}

fn spain(text: &str) -> bool {
    let mut letters = letters(text);
    let check = letters.pop();
    if let Some(first @ b'X'..=b'Z') = letters.first_mut() {
        *first = *first - b'X' + b'0';
    }
    let digits: Vec<u8> = letters.iter().map(|byte| byte.wrapping_sub(b'0')).collect();
    check.is_some()
        && b"TRWAGMYFPDXBNJZSQVHLCKE".get((number(&digits) % 23) as usize) == check.as_ref()
}

/// Decreto ministeriale 23/12/1976.
fn italy(text: &str) -> bool {
    const ODD: [u32; 26] = [
        1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24,
        23,
    ];
    let letters = letters(text);
    let Some((check, rest)) = letters.split_last() else {
        return false;
    };
    let value = |byte: u8| match byte {
        b'0'..=b'9' => u32::from(byte - b'0'),
        letter => u32::from(letter.wrapping_sub(b'A')),
    };
    let sum: u32 = rest
        .iter()
        .enumerate()
        .map(|(at, byte)| match at % 2 {
            0 => ODD.get(value(*byte) as usize).copied().unwrap_or(0),
            _ => value(*byte),
        })
        .sum();
    value(*check) == sum % 26 && check.is_ascii_alphabetic()
}

/// Month of birth, and the key: 97 less the rest of the number. Corsica counts as 19 and 18.
fn france(text: &str) -> bool {
    let text: String = text.chars().filter(|char| *char != ' ').collect();
    let plain = text.replace("2A", "19").replace("2B", "18");
    let digits = digits(&plain);
    let (Some(body), true) = (digits.get(..13), digits.len() == 15) else {
        return false;
    };
    let month = pair(&digits, 3);
    let born = matches!(month, 1..=12 | 20..=42 | 50..=99);
    born && 97 - number(body) % 97 == u64::from(pair(&digits, 13))
}

/// ISO 7064 mod 11,10; of the first ten digits one occurs twice or three times.
fn germany(text: &str) -> bool {
    let digits = digits(text);
    let Some((check, body)) = digits.split_last() else {
        return false;
    };
    let most = (0..10).map(|digit| body.iter().filter(|other| **other == digit).count());
    let product = body.iter().fold(10, |product, digit| {
        let sum = (u32::from(*digit) + product) % 10;
        (if sum == 0 { 10 } else { sum }) * 2 % 11
    });
    matches!(most.max(), Some(2 | 3)) && (11 - product) % 10 == u32::from(*check)
}

/// EAN-13.
fn switzerland(text: &str) -> bool {
    let digits = digits(text);
    weighted(&digits, &[1, 3, 1, 3, 1, 3, 1, 3, 1, 3, 1, 3, 1]).is_multiple_of(10)
}

fn belgium(text: &str) -> bool {
    let digits = digits(text);
    let body = digits.get(..9).map_or(0, number);
    let check = u64::from(pair(&digits, 9));
    let holds = |number: u64| 97 - number % 97 == check;
    // Born from 2000 on, a 2 stands before.
    is_day(pair(&digits, 2), pair(&digits, 4)) && (holds(body) || holds(2_000_000_000 + body))
}

fn sweden(text: &str) -> bool {
    let digits = digits(text);
    let last = &digits[digits.len().saturating_sub(10)..];
    // 60 is added to the day of who has no number yet.
    let day = pair(last, 4);
    is_day(pair(last, 2), if day > 60 { day - 60 } else { day }) && luhn(last)
}

fn finland(text: &str) -> bool {
    let born = digits(text.get(..6).unwrap_or_default());
    let all = digits(text);
    let (body, check) = (all.get(..9).map_or(0, number), text.bytes().last());
    let known = b"0123456789ABCDEFHJKLMNPRSTUVWXY".get((body % 31) as usize);
    is_day(pair(&born, 2), pair(&born, 0)) && known == check.as_ref()
}

fn norway(text: &str) -> bool {
    let digits = digits(text);
    // 40 is added to the day of who has no number yet.
    let day = pair(&digits, 0);
    is_day(pair(&digits, 2), if day > 40 { day - 40 } else { day })
        && weighted(&digits, &[3, 7, 6, 1, 8, 9, 4, 5, 2, 1]).is_multiple_of(11)
        && weighted(&digits, &[5, 4, 3, 2, 7, 6, 5, 4, 3, 2, 1]).is_multiple_of(11)
}

fn brazil(text: &str) -> bool {
    let digits = digits(text);
    let check = |count: usize| {
        let weights: Vec<u32> = (2..=count as u32 + 1).rev().collect();
        let rest = weighted(&digits[..count.min(digits.len())], &weights) * 10 % 11;
        digits.get(count).map(|digit| u32::from(*digit)) == Some(rest % 10)
    };
    let same = digits.iter().all(|digit| Some(digit) == digits.first());
    !same && check(9) && check(10)
}

/// GB 11643-1999, which takes ISO 7064 mod 11-2.
fn china(text: &str) -> bool {
    let digits = digits(text.get(..17).unwrap_or_default());
    let weights = [7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2];
    let known = b"10X98765432".get(weighted(&digits, &weights) as usize % 11);
    let check = text.bytes().last().map(|byte| byte.to_ascii_uppercase());
    is_day(pair(&digits, 10), pair(&digits, 12)) && known == check.as_ref()
}
