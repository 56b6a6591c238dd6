//! Reading a query as a form-decoding upstream does, and removing a parameter without touching
//! any other byte.
//!
//! `k%65y`, `key` and `ke+y`-like spellings are one name to whoever decodes forms, so names are
//! compared after decoding (WHATWG URL, `application/x-www-form-urlencoded` parsing). An escape
//! that is not valid stays as it is written, as that parser does. What is sent keeps its bytes:
//! signatures cover them.

use std::borrow::Cow;

#[cfg(test)]
mod tests;

/// The form-decoded names and values of a query (without its `?`), in order, repetitions included.
///
/// A piece without `=` has an empty value; empty pieces (`a&&b`) are skipped. Nothing is allocated
/// for a name or value that holds no escape.
pub fn pairs(query: &[u8]) -> impl Iterator<Item = (Cow<'_, [u8]>, Cow<'_, [u8]>)> {
    pieces(query)
        .filter(|piece| !piece.is_empty())
        .map(|piece| {
            let (name, value) = split_piece(piece);
            (form_decode(name), form_decode(value))
        })
}

/// Whether a parameter has the form-decoded name.
pub fn contains(query: &[u8], name: &[u8]) -> bool {
    pieces(query).any(|piece| is_named(piece, name))
}

/// The query without any parameter of the form-decoded name; `None` if it holds none.
///
/// All other parameters, empty pieces included, keep their bytes and their order.
pub fn remove<'q>(query: &'q [u8], name: &[u8]) -> Option<Cow<'q, [u8]>> {
    remove_where(query, |piece| is_named(piece, name))
}

/// The same without every parameter that a server may take for that name, which reads `_` as `-`,
/// does not tell capital letters from small ones, or ends a parameter at `;` too. Of what is one
/// parameter elsewhere only that part goes.
pub fn remove_equivalent<'q>(query: &'q [u8], name: &[u8]) -> Option<Cow<'q, [u8]>> {
    let whole = remove_where(query, |piece| is_equivalent(piece, name));
    let left = whole.as_deref().unwrap_or(query);
    let hides = |piece: &[u8]| parts(piece).any(|part| is_equivalent(part, name));
    if !pieces(left).any(hides) {
        return whole;
    }
    let mut rest = Vec::with_capacity(left.len());
    for (at, piece) in pieces(left).enumerate() {
        if at > 0 {
            rest.push(b'&');
        }
        let kept: Vec<&[u8]> = parts(piece)
            .filter(|part| !is_equivalent(part, name))
            .collect();
        rest.extend(kept.join(&b';'));
    }
    Some(Cow::Owned(rest))
}

/// The query without any parameter of which `goes` says so, who sees it as it is written, name and
/// value; `None` if it holds none.
pub fn remove_where(query: &[u8], goes: impl Fn(&[u8]) -> bool) -> Option<Cow<'_, [u8]>> {
    if !pieces(query).any(&goes) {
        return None;
    }
    let mut kept = pieces(query).filter(|piece| !goes(piece));
    let Some(first) = kept.next() else {
        return Some(Cow::Borrowed(&[]));
    };
    let mut rest = Vec::with_capacity(query.len());
    rest.extend_from_slice(first);
    for piece in kept {
        rest.push(b'&');
        rest.extend_from_slice(piece);
    }
    Some(Cow::Owned(rest))
}

/// Decodes `+` and `%xx` as a form does; an invalid escape stays as it is written.
pub fn form_decode(encoded: &[u8]) -> Cow<'_, [u8]> {
    if !encoded.iter().any(|byte| matches!(byte, b'+' | b'%')) {
        return Cow::Borrowed(encoded);
    }
    let mut decoded = Vec::with_capacity(encoded.len());
    let mut at = 0;
    while let Some(&byte) = encoded.get(at) {
        let escape = (
            hex_value(encoded.get(at + 1)),
            hex_value(encoded.get(at + 2)),
        );
        match (byte, escape) {
            (b'%', (Some(high), Some(low))) => {
                decoded.push(high << 4 | low);
                at += 3;
                continue;
            }
            (b'+', _) => decoded.push(b' '),
            _ => decoded.push(byte),
        }
        at += 1;
    }
    Cow::Owned(decoded)
}

/// The value of a hexadecimal digit.
pub(crate) fn hex_value(digit: Option<&u8>) -> Option<u8> {
    let digit = *digit?;
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

fn pieces(query: &[u8]) -> impl Iterator<Item = &[u8]> {
    query.split(|byte| *byte == b'&')
}

/// What is a parameter each for a server that ends them at `;` too.
fn parts(piece: &[u8]) -> impl Iterator<Item = &[u8]> {
    piece.split(|byte| *byte == b';')
}

/// Whether a server may take a parameter for one of that name.
fn is_equivalent(piece: &[u8], name: &[u8]) -> bool {
    let fold = |byte: &u8| match byte {
        b'_' => b'-',
        byte => byte.to_ascii_lowercase(),
    };
    let found = form_decode(split_piece(piece).0);
    !piece.is_empty()
        && found.len() == name.len()
        && found.iter().map(fold).eq(name.iter().map(fold))
}

fn split_piece(piece: &[u8]) -> (&[u8], &[u8]) {
    match piece.iter().position(|byte| *byte == b'=') {
        Some(at) => (
            piece.get(..at).unwrap_or_default(),
            piece.get(at + 1..).unwrap_or_default(),
        ),
        None => (piece, &[]),
    }
}

/// An empty piece is no parameter, not even one with an empty name.
fn is_named(piece: &[u8], name: &[u8]) -> bool {
    !piece.is_empty() && *form_decode(split_piece(piece).0) == *name
}
