//! Keys and tokens: JSON Web Tokens by their shape, keys by the prefixes that their issuers give
//! them so that they can be found, private keys in PEM, passwords in URLs, bearer tokens.

use std::ops::Range;
use std::sync::LazyLock;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use regex::Regex;

/// What follows a prefix.
#[derive(Clone, Copy)]
enum Form {
    /// At least so many letters, digits, `_` and `-`.
    Word(usize),
    /// The same, with `.` as well.
    Dotted(usize),
    /// So many capitals and digits, no more and no fewer.
    Capitals(usize),
    /// So many hexadecimal digits, no more and no fewer.
    Hex(usize),
}

/// Prefixes of issuers; where one is the beginning of another the longer stands first.
const PREFIXES: &[(&str, Form)] = &[
    ("sk-ant-", Form::Word(24)),
    ("sk-proj-", Form::Word(24)),
    ("sk-", Form::Word(32)),
    ("sk_live_", Form::Word(16)),
    ("sk_test_", Form::Word(16)),
    ("rk_live_", Form::Word(16)),
    ("rk_test_", Form::Word(16)),
    ("whsec_", Form::Word(24)),
    ("rr_live_", Form::Word(32)),
    ("rr_api_", Form::Word(32)),
    ("github_pat_", Form::Word(40)),
    ("ghp_", Form::Word(36)),
    ("gho_", Form::Word(36)),
    ("ghu_", Form::Word(36)),
    ("ghs_", Form::Word(36)),
    ("ghr_", Form::Word(36)),
    ("glpat-", Form::Word(20)),
    ("gldt-", Form::Word(20)),
    ("glrt-", Form::Word(20)),
    ("xoxb-", Form::Word(20)),
    ("xoxp-", Form::Word(20)),
    ("xoxa-", Form::Word(20)),
    ("xoxe-", Form::Word(20)),
    ("xoxe.", Form::Dotted(20)),
    ("xoxr-", Form::Word(20)),
    ("xoxs-", Form::Word(20)),
    ("xapp-", Form::Word(20)),
    ("AKIA", Form::Capitals(16)),
    ("ASIA", Form::Capitals(16)),
    ("AIza", Form::Word(35)),
    ("ya29.", Form::Word(20)),
    ("GOCSPX-", Form::Word(24)),
    ("SG.", Form::Dotted(40)),
    ("npm_", Form::Word(36)),
    ("pypi-AgE", Form::Word(50)),
    ("hf_", Form::Word(34)),
    ("gsk_", Form::Word(40)),
    ("xai-", Form::Word(40)),
    ("pplx-", Form::Word(40)),
    ("r8_", Form::Word(36)),
    ("shpat_", Form::Hex(32)),
    ("shpss_", Form::Hex(32)),
    ("shpca_", Form::Hex(32)),
    ("shppa_", Form::Hex(32)),
    ("dop_v1_", Form::Hex(64)),
    ("dapi", Form::Hex(32)),
    ("sq0atp-", Form::Word(22)),
    ("sq0csp-", Form::Word(40)),
    ("EAACEdEose0cBA", Form::Word(20)),
    ("lin_api_", Form::Word(32)),
    ("ntn_", Form::Word(40)),
    ("hvs.", Form::Word(24)),
    ("glsa_", Form::Word(32)),
    ("NRAK-", Form::Capitals(27)),
    ("sbp_", Form::Hex(40)),
    ("phx_", Form::Word(40)),
    ("dckr_pat_", Form::Word(20)),
    ("ATATT3x", Form::Word(40)),
    ("AGE-SECRET-KEY-1", Form::Capitals(58)),
];

/// Shortest bearer token that is taken for one.
const BEARER_BYTES_MIN: usize = 16;
/// Longest name and password in a URL.
const USERINFO_BYTES_MAX: usize = 512;
const PEM_BEGIN: &str = "-----BEGIN ";
const PEM_KEY: &str = "PRIVATE KEY";

/// The beginnings of everything that is looked for, as a pattern.
pub(super) fn beginnings() -> String {
    let prefixes = PREFIXES.iter().map(|(prefix, _)| regex::escape(prefix));
    let others = ["eyJ", "://", PEM_BEGIN, "[Bb]earer "].map(str::to_owned);
    prefixes.chain(others).collect::<Vec<_>>().join("|")
}

static BEGINNINGS: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(&beginnings()).expect("a constant pattern"));

/// Hands every key and token in `text` to `found`.
pub(super) fn find(text: &str, found: &mut dyn FnMut(Range<usize>)) {
    let mut at = 0;
    while let Some(begin) = BEGINNINGS.find_at(text, at) {
        let rest = &text[begin.end()..];
        let range = match begin.as_str() {
            "://" => userinfo(rest).map(|length| begin.end()..begin.end() + length),
            PEM_BEGIN => private_key(rest).map(|length| begin.start()..begin.end() + length),
            // Behind a hyphen as well there is none, so that no part of a text is read twice.
            "eyJ" => match is_free(text, begin.start()) && !text[..begin.start()].ends_with('-') {
                true => web_token(&text[begin.start()..])
                    .map(|length| begin.start()..begin.start() + length),
                false => None,
            },
            prefix => match PREFIXES.iter().find(|(known, _)| *known == prefix) {
                Some((_, form)) if is_free(text, begin.start()) => {
                    length(rest, *form).map(|length| begin.start()..begin.end() + length)
                }
                Some(_) => None,
                None => bearer(rest).map(|length| begin.end()..begin.end() + length),
            },
        };
        at = range.as_ref().map_or(begin.start() + 1, |range| range.end);
        if let Some(range) = range {
            found(range);
        }
    }
}

/// Whether no word goes on to `start`.
fn is_free(text: &str, start: usize) -> bool {
    let before = text[..start].bytes().next_back();
    !before.is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

fn run(text: &str, of: impl Fn(u8) -> bool) -> usize {
    text.bytes().take_while(|byte| of(*byte)).count()
}

fn in_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-')
}

/// How long a key goes on behind its prefix.
fn length(rest: &str, form: Form) -> Option<usize> {
    match form {
        Form::Word(least) => Some(run(rest, in_word)).filter(|length| *length >= least),
        Form::Dotted(least) => {
            Some(run(rest, |byte| in_word(byte) || byte == b'.')).filter(|length| *length >= least)
        }
        Form::Capitals(exactly) => {
            let capital = |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit();
            let length = run(rest, capital);
            (length == exactly && run(rest, in_word) == exactly).then_some(exactly)
        }
        Form::Hex(exactly) => (run(rest, in_word) == exactly
            && run(rest, |byte| byte.is_ascii_hexdigit()) == exactly)
            .then_some(exactly),
    }
}

/// RFC 7515 and 7516, compact: two to four dots, the first part an object that names `alg`.
fn web_token(text: &str) -> Option<usize> {
    let header = run(text, in_word);
    let decoded = URL_SAFE_NO_PAD.decode(&text[..header]).ok()?;
    let is_header = decoded.windows(5).any(|five| five == b"\"alg\"");
    let mut length = header;
    let mut parts = 1;
    while parts < 5 && text[length..].starts_with('.') {
        length += 1 + run(&text[length + 1..], in_word);
        parts += 1;
    }
    (is_header && parts >= 3).then_some(length)
}

/// `user:password` before an `@`: a connection string.
fn userinfo(rest: &str) -> Option<usize> {
    let ends = |byte: &u8| {
        matches!(
            byte,
            b'@' | b'/' | b'?' | b'#' | b'"' | b'\'' | b' ' | b'\n'
        )
    };
    let bytes = rest.as_bytes();
    let at = bytes.iter().take(USERINFO_BYTES_MAX).position(ends)?;
    let (_, password) = rest.get(..at)?.split_once(':')?;
    (bytes.get(at) == Some(&b'@') && !password.is_empty()).then_some(at)
}

/// To the end of the key, or of the text where it is cut off.
fn private_key(rest: &str) -> Option<usize> {
    let (kind, _) = rest.split_once("-----")?;
    if kind.len() > 64 || !kind.contains(PEM_KEY) {
        return None;
    }
    let end = "-----END ";
    let length = rest.find(end).and_then(|at| {
        let tail = &rest[at + end.len()..];
        Some(at + end.len() + tail.find("-----")? + "-----".len())
    });
    Some(length.unwrap_or(rest.len()))
}

/// RFC 6750 §2.1.
fn bearer(rest: &str) -> Option<usize> {
    let in_token = |byte: u8| in_word(byte) || matches!(byte, b'.' | b'~' | b'+' | b'/' | b'=');
    let length = run(rest, in_token);
    let mixed = rest[..length].bytes().any(|byte| byte.is_ascii_digit());
    (length >= BEARER_BYTES_MIN && mixed).then_some(length)
}
