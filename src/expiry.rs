//! When a certificate ends (RFC 5280 §4.1.2.5), read from its DER without a library: of all that a
//! certificate holds this is the one field that metrics need. Pure; odd bytes give `None`.

use jiff::civil::date;
use jiff::tz::TimeZone;

const SEQUENCE: u8 = 0x30;
const VERSION: u8 = 0xa0;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

/// The instant after which a certificate is not valid, in seconds since the Unix epoch.
pub fn not_after(certificate: &[u8]) -> Option<i64> {
    let mut rest = certificate;
    let mut certificate = value(&mut rest, SEQUENCE)?;
    let mut body = value(&mut certificate, SEQUENCE)?;
    if body.first() == Some(&VERSION) {
        element(&mut body)?;
    }
    // Serial number, signature algorithm, issuer.
    for _ in 0..3 {
        element(&mut body)?;
    }
    let mut validity = value(&mut body, SEQUENCE)?;
    element(&mut validity)?;
    let (tag, time) = element(&mut validity)?;
    instant(tag, std::str::from_utf8(time).ok()?)
}

/// The next element: its tag and its value.
fn element<'a>(rest: &mut &'a [u8]) -> Option<(u8, &'a [u8])> {
    let (&tag, after) = rest.split_first()?;
    let (&first, mut after) = after.split_first()?;
    let length = match first {
        0..=0x7f => usize::from(first),
        // No certificate has more than 2^24 bytes.
        0x81..=0x83 => {
            let (digits, behind) = after.split_at_checked(usize::from(first - 0x80))?;
            after = behind;
            digits
                .iter()
                .fold(0, |length, digit| length << 8 | usize::from(*digit))
        }
        _ => return None,
    };
    let (value, behind) = after.split_at_checked(length)?;
    *rest = behind;
    Some((tag, value))
}

fn value<'a>(rest: &mut &'a [u8], wanted: u8) -> Option<&'a [u8]> {
    element(rest).and_then(|(tag, value)| (tag == wanted).then_some(value))
}

/// `YYMMDDHHMMSSZ` or `YYYYMMDDHHMMSSZ`.
fn instant(tag: u8, text: &str) -> Option<i64> {
    let digits = text
        .strip_suffix('Z')
        .filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()))?;
    let (year, rest) = match tag {
        UTC_TIME if digits.len() == 12 => {
            let year: i16 = digits[..2].parse().ok()?;
            // Two digits stand for 1950 to 2049.
            (
                if year < 50 {
                    2_000 + year
                } else {
                    1_900 + year
                },
                &digits[2..],
            )
        }
        GENERALIZED_TIME if digits.len() == 14 => (digits[..4].parse().ok()?, &digits[4..]),
        _ => return None,
    };
    let part = |at: usize| rest[2 * at..2 * at + 2].parse::<i8>().ok();
    let valid = (1..=12).contains(&part(0)?) && (1..=31).contains(&part(1)?);
    let time = part(2)? < 24 && part(3)? < 60 && part(4)? < 60;
    if !valid || !time {
        return None;
    }
    let first = date(year, part(0)?, 1);
    if part(1)? > first.days_in_month() {
        return None;
    }
    let civil = date(year, part(0)?, part(1)?).at(part(2)?, part(3)?, part(4)?, 0);
    Some(TimeZone::UTC.to_timestamp(civil).ok()?.as_second())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_real_certificate() {
        let key = rcgen::KeyPair::generate().unwrap();
        for (year, expected) in [(2030, 1_893_456_000), (2060, 2_840_140_800)] {
            let mut params = rcgen::CertificateParams::new(["x".into()]).unwrap();
            params.not_after = rcgen::date_time_ymd(year, 1, 1);
            let certificate = params.self_signed(&key).unwrap();
            assert_eq!(not_after(certificate.der()), Some(expected), "{year}");
            for at in 0..certificate.der().len().min(80) {
                assert_eq!(not_after(&certificate.der()[..at]), None);
            }
        }
    }

    #[test]
    fn odd_times_are_none() {
        for (tag, text) in [
            (UTC_TIME, "991332000000Z"),
            (UTC_TIME, "990230000000Z"),
            (UTC_TIME, "9912310000Z"),
            (UTC_TIME, "99123100000é"),
            (GENERALIZED_TIME, "991231000000Z"),
            (0, "20300101000000Z"),
        ] {
            assert_eq!(instant(tag, text), None, "{text}");
        }
        assert_eq!(instant(UTC_TIME, "700101000001Z"), Some(1));
    }
}
