//! Check digits by which numbers are told from other digits.

/// ISO/IEC 7812-1 annex B (Luhn): cards, and some national ids. Digits as values 0 to 9.
pub(super) fn luhn(digits: &[u8]) -> bool {
    let sum: u32 = digits
        .iter()
        .rev()
        .enumerate()
        .map(|(at, digit)| match (at % 2, u32::from(*digit)) {
            (0, digit) => digit,
            (_, digit) if digit > 4 => digit * 2 - 9,
            (_, digit) => digit * 2,
        })
        .sum();
    sum.is_multiple_of(10)
}

/// The remainder of a decimal number by 97; letters count as 10 to 35 (ISO/IEC 7064, ISO 13616).
pub(super) fn mod_97(text: impl Iterator<Item = u8>) -> u32 {
    text.fold(0, |rest, byte| match byte {
        b'0'..=b'9' => (rest * 10 + u32::from(byte - b'0')) % 97,
        letter => {
            (rest * 100 + u32::from(letter.to_ascii_uppercase().wrapping_sub(b'A')) + 10) % 97
        }
    })
}

/// The sum of digits, each times its weight.
pub(super) fn weighted(digits: &[u8], weights: &[u32]) -> u32 {
    let pairs = digits.iter().zip(weights);
    pairs
        .map(|(digit, weight)| u32::from(*digit) * weight)
        .sum()
}

/// The Verhoeff check digit, last of `digits` (Aadhaar).
pub(super) fn verhoeff(digits: &[u8]) -> bool {
    // Multiplication in the dihedral group of order ten.
    let product = |one: u8, other: u8| match (one < 5, other < 5) {
        (true, true) => (one + other) % 5,
        (true, false) => (one + other - 5) % 5 + 5,
        (false, true) => (5 + one - 5 - other) % 5 + 5,
        (false, false) => (5 + one - other) % 5,
    };
    const TURN: [u8; 10] = [1, 5, 7, 6, 2, 8, 3, 0, 9, 4];
    let mut check = 0;
    for (at, digit) in digits.iter().rev().enumerate() {
        let turned = (0..at % 8).fold(*digit, |digit, _| TURN[usize::from(digit % 10)]);
        check = product(check, turned);
    }
    check == 0
}

/// Whether a day exists in a month, in a leap year.
pub(super) fn is_day(month: u32, day: u32) -> bool {
    let days = match month {
        2 => 29,
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => 0,
    };
    (1..=days).contains(&day)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digits(text: &str) -> Vec<u8> {
        text.bytes().map(|byte| byte - b'0').collect()
    }

    #[test]
    fn check_digits_of_the_standards_examples() {
        assert!(luhn(&digits("4111111111111111")));
        assert!(luhn(&digits("79927398713")));
        assert!(!luhn(&digits("79927398710")));
        assert_eq!(mod_97(b"3214282912345698765432161182".iter().copied()), 1);
        assert!(verhoeff(&digits("2363")));
        assert!(!verhoeff(&digits("2364")));
        assert!(
            !verhoeff(&digits("2633")),
            "finds two digits that changed places"
        );
        assert!(is_day(2, 29) && !is_day(2, 30) && !is_day(13, 1) && !is_day(4, 31));
    }
}
