//! E-mail addresses, also with the `@` of a URL (`%40`).
//!
//! Narrower than RFC 5321 where its forms are never seen (quoted local parts, address literals) or
//! look like something else (`a=b@…` in a query), wider where mail is: letters of every script.

use std::ops::Range;

/// RFC 5321 §4.5.3.1.1.
const LOCAL_BYTES_MAX: usize = 64;
/// RFC 5321 §4.5.3.1.2.
const DOMAIN_BYTES_MAX: usize = 255;

/// Hands every address in `text` to `found`.
pub(super) fn find(text: &str, found: &mut dyn FnMut(Range<usize>)) {
    let mut done = 0;
    for (at, sign) in signs(text) {
        let Some(start) = local_start(&text[done..at]).map(|start| done + start) else {
            continue;
        };
        let after = at + sign.len();
        if let Some(length) = domain_length(&text[after..]) {
            done = after + length;
            found(start..done);
        }
    }
}

fn signs(text: &str) -> impl Iterator<Item = (usize, &'static str)> {
    text.bytes()
        .enumerate()
        .filter_map(|(at, byte)| match byte {
            b'@' => Some((at, "@")),
            b'%' if text.get(at..at + 3) == Some("%40") => Some((at, "%40")),
            _ => None,
        })
}

/// Where the local part begins that ends with `before`.
fn local_start(before: &str) -> Option<usize> {
    let mut start = before.len();
    for (at, char) in before.char_indices().rev() {
        if !(char.is_alphanumeric() || "._%+-'~".contains(char)) {
            break;
        }
        if before.len() - at > LOCAL_BYTES_MAX {
            return None;
        }
        start = at;
    }
    let local = &before[start..];
    let trimmed = local.trim_start_matches(['.', '\'', '-', '~', '%', '+']);
    (!trimmed.is_empty()).then_some(before.len() - trimmed.len())
}

/// How long the domain is that `after` begins with.
fn domain_length(after: &str) -> Option<usize> {
    let in_domain = |char: char| char.is_alphanumeric() || char == '-' || char == '.';
    let end = after.find(|char| !in_domain(char)).unwrap_or(after.len());
    let domain = after
        .get(..end)
        .filter(|domain| domain.len() <= DOMAIN_BYTES_MAX)?;
    let mut length = None;
    let mut at = 0;
    for (index, label) in domain.split('.').enumerate() {
        at += label.len() + usize::from(index > 0);
        if label.is_empty() || label.starts_with('-') || label.ends_with('-') {
            break;
        }
        if index > 0 && is_top_level(label) {
            length = Some(at);
        }
    }
    length.filter(|length| !is_image(&domain[..*length]))
}

fn is_top_level(label: &str) -> bool {
    let letters = label.chars().filter(|char| char.is_alphabetic()).count();
    let count = label.chars().count();
    count >= 2 && (letters == count || label.starts_with("xn--"))
}

/// `icon@2x.png`: a picture for screens of twice the density.
fn is_image(domain: &str) -> bool {
    let Some((density, _)) = domain.split_once("x.") else {
        return false;
    };
    let pictures = [".png", ".jpg", ".jpeg", ".gif", ".webp", ".svg", ".avif"];
    density.bytes().all(|byte| byte.is_ascii_digit())
        && pictures.iter().any(|kind| domain.ends_with(kind))
}
