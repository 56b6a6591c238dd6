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
    bytes.iter().position(|byte| !is(*byte, class)).unwrap_or(bytes.len())
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
    fn spans() {
        assert_eq!(span(b"content-type: x", TOKEN), 12);
        assert_eq!(span(b"", TOKEN), 0);
        assert_eq!(span(b"a b\tc\r\n", VALUE), 5);
        assert_eq!(span(b"\xff\x7f", VALUE), 1);
    }
}
