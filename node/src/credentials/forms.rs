//! The forms in which a server that quotes a request may write a secret of it. Pure.

use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use zeroize::Zeroizing;

/// Shortest secret that is searched, in bytes: a shorter one may be part of innocent text. The
/// API says so when one is saved (`proto::credential`).
pub use proto::credential::SEARCHED_SECRET_BYTES_MIN as SECRET_BYTES_MIN;

/// One form of a secret.
pub type Form = Zeroizing<Vec<u8>>;

/// What stays unescaped everywhere (RFC 3986 §2.3).
pub const UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');
/// What JavaScript's `encodeURIComponent` escapes.
const COMPONENT: &AsciiSet = &UNRESERVED
    .remove(b'!')
    .remove(b'\'')
    .remove(b'(')
    .remove(b')')
    .remove(b'*');
/// What `encodeURI` escapes: not what has a meaning in a URL.
const URI: &AsciiSet = &COMPONENT
    .remove(b';')
    .remove(b',')
    .remove(b'/')
    .remove(b'?')
    .remove(b':')
    .remove(b'@')
    .remove(b'&')
    .remove(b'=')
    .remove(b'+')
    .remove(b'$')
    .remove(b'#');
/// What we escape ourselves in a path: a part of one may hold `:` and `@` as they are (RFC 3986
/// §3.3), and Telegram's tokens have a colon.
pub const PATH: &AsciiSet = &UNRESERVED.remove(b':').remove(b'@');
/// What a form escapes but the space, which becomes `+` (WHATWG URL, urlencoded serialising).
const FORM: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'*');

/// Adds every form of a secret; none of one that is too short to be told from innocent text.
pub fn add(secret: &str, forms: &mut Vec<Form>) {
    if secret.len() < SECRET_BYTES_MIN {
        return;
    }
    let mut push = |form: String| forms.push(Zeroizing::new(form.into_bytes()));
    push(secret.to_owned());
    for escaping in JSON_ESCAPINGS {
        push(json_escaped(secret, &escaping));
    }
    for set in [UNRESERVED, COMPONENT, URI, FORM, PATH] {
        let escaped = utf8_percent_encode(secret, set).to_string();
        push(escaped.replace("%20", "+"));
        push(lower_escapes(&escaped));
        push(escaped);
    }
    for before in 0..3 {
        push(base64_inner(secret, before, STANDARD_NO_PAD));
        push(base64_inner(secret, before, URL_SAFE_NO_PAD));
    }
}

/// What a JSON serialiser escapes beyond what it must (RFC 8259 §7).
struct JsonEscaping {
    /// As `\/`.
    slash: bool,
    /// Characters written as `\u` and four digits.
    further: &'static str,
    /// Whether all beyond ASCII are written so.
    ascii: bool,
}

/// As serde and Python without `ensure_ascii`, Go, Python, PHP, and .NET escape.
const JSON_ESCAPINGS: [JsonEscaping; 5] = [
    json_escaping(false, "", false),
    json_escaping(false, "<>&", false),
    json_escaping(false, "", true),
    json_escaping(true, "", true),
    json_escaping(false, "\"&'<>+`", true),
];

const fn json_escaping(slash: bool, further: &'static str, ascii: bool) -> JsonEscaping {
    JsonEscaping {
        slash,
        further,
        ascii,
    }
}

fn json_escaped(secret: &str, escaping: &JsonEscaping) -> String {
    let mut out = String::with_capacity(secret.len());
    // .NET writes the digits in upper case, the others in lower case.
    let upper = escaping.further.contains('+');
    for c in secret.chars() {
        match c {
            c if escaping.further.contains(c) || (escaping.ascii && !c.is_ascii()) => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    out += &match upper {
                        true => format!("\\u{unit:04X}"),
                        false => format!("\\u{unit:04x}"),
                    };
                }
            }
            '"' => out += "\\\"",
            '\\' => out += "\\\\",
            '\t' => out += "\\t",
            '/' if escaping.slash => out += "\\/",
            c => out.push(c),
        }
    }
    out
}

/// `%2F` as `%2f`: both are written.
fn lower_escapes(escaped: &str) -> String {
    let mut digits = 0_u8;
    let lower = |c: char| match (c, digits) {
        ('%', _) => {
            digits = 2;
            c
        }
        (c, 0) => c,
        (c, _) => {
            digits -= 1;
            c.to_ascii_lowercase()
        }
    };
    escaped.chars().map(lower).collect()
}

/// The characters that the secret alone decides where so many bytes (modulo three) stand before it
/// in what is encoded.
fn base64_inner(secret: &str, before: usize, engine: impl base64::Engine) -> String {
    let padded = Zeroizing::new([&[0; 2][..before.min(2)], secret.as_bytes()].concat());
    let encoded = Zeroizing::new(engine.encode(&*padded));
    // Six bits a character: those that begin behind the bytes before, and end within the secret.
    let first = (before * 8).div_ceil(6);
    let end = padded.len() * 8 / 6;
    encoded.get(first..end).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::Engine as _;
    use base64::engine::general_purpose::{STANDARD, URL_SAFE};

    #[test]
    fn base64_has_what_the_secret_alone_decides() {
        let secret = "s3cr3t-of-16-bytes?>";
        for before in 0..3 {
            for after in ["", "x", "xx", "xxx"] {
                let text = format!("{}{secret}{after}", &"yyy"[..before]);
                let check = |whole: String, inner: String| {
                    assert!(whole.contains(&inner), "{text}: {inner} in {whole}");
                    assert!(inner.len() * 6 + 10 >= secret.len() * 8, "{inner}");
                };
                let inner = |engine| base64_inner(secret, before, engine);
                check(STANDARD.encode(&text), inner(STANDARD_NO_PAD));
                let inner = base64_inner(secret, before, URL_SAFE_NO_PAD);
                check(URL_SAFE.encode(&text), inner);
            }
        }
    }

    #[test]
    fn what_we_send_in_a_path_is_a_form() {
        let secret = "123456:AAH/foo+bar@x";
        let mut forms = Vec::new();
        add(secret, &mut forms);
        let sent = utf8_percent_encode(secret, PATH).to_string();
        assert_eq!(sent, "123456:AAH%2Ffoo%2Bbar@x");
        assert!(forms.iter().any(|form| form.as_slice() == sent.as_bytes()));
    }

    #[test]
    fn a_plain_secret_has_few_forms_and_a_short_one_none() {
        let mut forms = Vec::new();
        add("short-of-it", &mut forms);
        assert!(forms.is_empty());
        add("plain-secret", &mut forms);
        forms.sort_unstable_by(|one, other| one.as_slice().cmp(other.as_slice()));
        forms.dedup_by(|one, other| one.as_slice() == other.as_slice());
        assert_eq!(forms.len(), 4, "itself and three alignments");
        assert!(forms.iter().all(|form| form.len() >= SECRET_BYTES_MIN));
    }
}
