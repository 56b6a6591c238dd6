//! Numbers of answers in whole millionths: a budget is not kept in floating point.
//!
//! A number is read digit by digit from its text, so that `0.1`, `1e400` and twenty digits mean
//! what they say. What is less than a millionth counts as one: never too little.

/// Millionths in one.
pub const MILLIONTHS: u128 = 1_000_000;
/// The largest value of one answer; a larger one counts as this.
pub const VALUE_MAX: u64 = 1 << 53;

/// Digits that are kept of a number; of those behind them only the place counts.
const DIGITS_MAX: u32 = 30;
/// Exponents beyond this make no difference to a clamped number.
const EXPONENT_MAX: i64 = 1_000;

/// The number that a text is (RFC 8259 §6), in millionths, rounded up: a negative one is 0, one
/// above [`VALUE_MAX`] is that. `None` for anything else, `NaN` and `Infinity` among it.
pub fn millionths(text: &str) -> Option<u128> {
    let (negative, rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (mantissa, exponent) = match rest.find(['e', 'E']) {
        Some(at) => (rest.get(..at)?, exponent(rest.get(at + 1..)?)?),
        None => (rest, 0),
    };
    let (whole, fraction) = match mantissa.split_once('.') {
        Some((_, "")) => return None,
        Some(both) => both,
        None => (mantissa, ""),
    };
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(fraction) {
        return None;
    }
    let shift = exponent.saturating_sub(i64::try_from(fraction.len()).ok()?);
    let number = scaled(whole.bytes().chain(fraction.bytes()), shift);
    Some(if negative { 0 } else { number })
}

fn exponent(text: &str) -> Option<i64> {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let size = digits.parse::<i64>().unwrap_or(EXPONENT_MAX);
    let size = size.min(EXPONENT_MAX);
    Some(if text.starts_with('-') { -size } else { size })
}

/// digits · 10^shift, in millionths.
fn scaled(digits: impl Iterator<Item = u8>, mut shift: i64) -> u128 {
    let (mut number, mut kept) = (0_u128, 0);
    for digit in digits {
        if kept < DIGITS_MAX {
            number = number * 10 + u128::from(digit - b'0');
            kept += u32::from(number > 0);
        } else {
            shift = shift.saturating_add(1);
        }
    }
    let most = u128::from(VALUE_MAX) * MILLIONTHS;
    let shift = shift.saturating_add(6);
    let ten = u32::try_from(shift.unsigned_abs()).ok();
    let power = ten.and_then(|power| 10_u128.checked_pow(power));
    let scaled = match (number, power) {
        (0, _) => 0,
        (_, Some(power)) if shift >= 0 => number.saturating_mul(power),
        (_, Some(power)) => number.div_ceil(power),
        (_, None) if shift >= 0 => most,
        (_, None) => 1,
    };
    scaled.min(most)
}

/// Whole units of a sum of (number in millionths, weight in millionths), rounded up, at most
/// [`VALUE_MAX`].
pub fn weighed(parts: impl Iterator<Item = (u128, u64)>) -> u64 {
    let sum = parts.fold(0_u128, |sum, (number, weight)| {
        sum.saturating_add(number.saturating_mul(u128::from(weight)))
    });
    let units = sum.div_ceil(MILLIONTHS * MILLIONTHS);
    u64::try_from(units).unwrap_or(VALUE_MAX).min(VALUE_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_to_the_last_digit_that_counts() {
        let most = u128::from(VALUE_MAX) * MILLIONTHS;
        for (text, expected) in [
            ("0", Some(0)),
            ("-0", Some(0)),
            ("17", Some(17_000_000)),
            ("0.1", Some(100_000)),
            ("0.30000000000000004", Some(300_001)),
            ("0.0000001", Some(1)),
            ("1e-400", Some(1)),
            ("0e-400", Some(0)),
            ("1.5e3", Some(1_500_000_000)),
            ("12E+2", Some(1_200_000_000)),
            ("9007199254740992", Some(most)),
            ("9007199254740993", Some(most)),
            ("1e308", Some(most)),
            ("1e99999999999999999999", Some(most)),
            (
                "123456789012345678901234567890123456789012345678901234567890",
                Some(most),
            ),
            (
                "0.00000000000000000000000000000000000000000000000000001",
                Some(1),
            ),
            ("-3", Some(0)),
            ("-1e308", Some(0)),
            ("NaN", None),
            ("Infinity", None),
            ("-", None),
            ("", None),
            ("1.", None),
            (".5", None),
            ("1e", None),
            ("1e+", None),
            ("+1", None),
            ("1 ", None),
            ("0x10", None),
            ("1,5", None),
        ] {
            assert_eq!(millionths(text), expected, "{text:?}");
        }
    }

    #[test]
    fn sums_are_weighed_and_rounded_up_once() {
        let one = MILLIONTHS;
        assert_eq!(weighed([(10 * one, 1_000_000)].into_iter()), 10);
        assert_eq!(weighed([(10 * one, 2_500_000)].into_iter()), 25);
        assert_eq!(weighed([(one, 100_000), (one, 100_000)].into_iter()), 1);
        assert_eq!(weighed([(15 * one, 100_000)].into_iter()), 2);
        assert_eq!(weighed(std::iter::empty()), 0);
        let most = u128::from(VALUE_MAX) * MILLIONTHS;
        assert_eq!(
            weighed([(most, 1_000_000_000_000); 8].into_iter()),
            VALUE_MAX
        );
    }
}
