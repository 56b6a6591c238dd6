//! Classes of bytes, looked up in one table, so that a head is read in one pass.

/// A byte of a token (RFC 9110 5.6.2): methods, field names.
pub const TOKEN: u8 = 1;
/// A byte of a field value (RFC 9110 5.5): HTAB, SP, visible ASCII, 0x80 to 0xff.
pub const VALUE: u8 = 2;
/// A byte that actix-web's URI parser takes in a path.
pub const PATH: u8 = 4;
/// A byte that actix-web's URI parser takes in a query.
pub const QUERY: u8 = 8;

static CLASSES: [u8; 256] = classes();

/// Whether `byte` is of one of the classes.
#[inline]
pub fn is(byte: u8, class: u8) -> bool {
    CLASSES[usize::from(byte)] & class != 0
}

/// How many bytes at the front of `bytes` are of the class.
#[inline]
pub fn span(bytes: &[u8], class: u8) -> usize {
    bytes
        .iter()
        .position(|byte| !is(*byte, class))
        .unwrap_or(bytes.len())
}

const LOW_BITS: u64 = u64::from_ne_bytes([0x01; 8]);
const HIGH_BITS: u64 = u64::from_ne_bytes([0x80; 8]);

/// A word with a high bit set if, and only if, `word` has a zero byte.
const fn zero_bytes(word: u64) -> u64 {
    word.wrapping_sub(LOW_BITS) & !word & HIGH_BITS
}

/// How many bytes at the front of `bytes` are of [`VALUE`]; most bytes of a head are in values, so
/// these are looked at eight at a time.
#[inline]
pub fn span_value(bytes: &[u8]) -> usize {
    const SPACES: u64 = LOW_BITS * b' ' as u64;
    const DELETES: u64 = LOW_BITS * 0x7f;
    let (words, _) = bytes.as_chunks::<8>();
    let plain = words.iter().take_while(|word| {
        let word = u64::from_ne_bytes(**word);
        // A byte below the space, or DEL. A tab stops this too; the loop below goes on then.
        (word.wrapping_sub(SPACES) & !word & HIGH_BITS) | zero_bytes(word ^ DELETES) == 0
    });
    let skipped = plain.count() * 8;
    skipped + span(&bytes[skipped..], VALUE)
}

/// Where the first LF is.
#[inline]
pub fn find_lf(bytes: &[u8]) -> Option<usize> {
    const LFS: u64 = LOW_BITS * b'\n' as u64;
    let (words, _) = bytes.as_chunks::<8>();
    let others = words
        .iter()
        .take_while(|word| zero_bytes(u64::from_ne_bytes(**word) ^ LFS) == 0);
    let skipped = others.count() * 8;
    let found = bytes[skipped..].iter().position(|byte| *byte == b'\n')?;
    Some(skipped + found)
}

const fn classes() -> [u8; 256] {
    let mut table = [0; 256];
    let mut at = 0;
    while at < 256 {
        // `at` is below 256, so nothing is cut off.
        let byte = at as u8;
        let mut class = 0;
        if byte.is_ascii_alphanumeric() || is_token_mark(byte) {
            class |= TOKEN;
        }
        if matches!(byte, b'\t' | b' '..=0x7e | 0x80..=0xff) {
            class |= VALUE;
        }
        if matches!(byte, 0x21..=0x7e) && !matches!(byte, b'#' | b'<' | b'>' | b'`' | b'?') {
            class |= PATH;
        }
        if matches!(byte, 0x21..=0x7e) && !matches!(byte, b'#' | b'<' | b'>' | b'"') {
            class |= QUERY;
        }
        table[at] = class;
        at += 1;
    }
    table
}

const fn is_token_mark(byte: u8) -> bool {
    matches!(
        byte,
        b'!' | b'#'
            | b'$'
            | b'%'
            | b'&'
            | b'\''
            | b'*'
            | b'+'
            | b'-'
            | b'.'
            | b'^'
            | b'_'
            | b'`'
            | b'|'
            | b'~'
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_of_these_classes_is_a_uri_to_actix() {
        // What passes here must never be refused behind us, or the answer would not be ours.
        for byte in 0..=255_u8 {
            for (prefix, class) in [(&b"/a"[..], PATH), (&b"/a?b"[..], QUERY)] {
                let target = [prefix, &[byte]].concat();
                let taken = actix_web::http::Uri::try_from(&target[..])
                    .is_ok_and(|uri| uri.to_string().as_bytes() == &target[..]);
                let separator = class == PATH && byte == b'?';
                assert_eq!(taken && !separator, is(byte, class), "{byte:#04x}");
            }
        }
    }

    #[test]
    fn words_are_searched_like_bytes() {
        for length in 0..40 {
            for at in 0..length {
                for byte in 0..=255_u8 {
                    for filler in [b' ', b'\t', b'a', 0xff, 0x7e, 0x8a] {
                        let mut bytes = vec![filler; length];
                        bytes[at] = byte;
                        assert_eq!(span_value(&bytes), span(&bytes, VALUE), "{bytes:x?}");
                        let lf = bytes.iter().position(|byte| *byte == b'\n');
                        assert_eq!(find_lf(&bytes), lf, "{bytes:x?}");
                    }
                }
            }
        }
    }

    #[test]
    fn spans() {
        assert_eq!(span(b"content-type: x", TOKEN), 12);
        assert_eq!(span(b"", TOKEN), 0);
        assert_eq!(span(b"a b\tc\r\n", VALUE), 5);
        assert_eq!(span(b"\xff\x7f", VALUE), 1);
    }
}
