//! The text fields of `multipart/form-data` (RFC 7578), read strictly.
//!
//! Parsers differ on preambles, line ends, padding, folded headers, doubled parameters and
//! transfer encodings. A body that uses any of these is unreadable; browsers and SDKs use none.
//! A part with a file name is a file and not part of the view.

use super::form::Fields;
use super::media_type::Parameterised;
use super::{BodyLimits, Document, Unreadable};

/// Header lines of one part, at most.
const PART_HEADERS_MAX: usize = 16;

/// Reads the text fields as one flat object; repeated names become arrays.
pub(super) fn read(
    plain: &[u8],
    boundary: &str,
    limits: &BodyLimits,
) -> Result<Document, Unreadable> {
    let broken = Unreadable::BrokenMultipart;
    let delimiter = format!("\r\n--{boundary}");
    let first = delimiter.as_bytes().get(2..).unwrap_or_default();
    let mut rest = plain.strip_prefix(first).ok_or(broken)?;
    let mut fields = Fields::new(limits);
    let mut parts_left = limits.nodes_max;
    loop {
        if let Some(end) = rest.strip_prefix(b"--") {
            let nothing_follows = end.is_empty() || end == b"\r\n";
            return if nothing_follows {
                Ok(fields.into_document())
            } else {
                Err(broken)
            };
        }
        parts_left = parts_left.checked_sub(1).ok_or(Unreadable::TooManyNodes)?;
        let part = rest.strip_prefix(b"\r\n").ok_or(broken)?;
        let (part, after) = split_once(part, delimiter.as_bytes()).ok_or(broken)?;
        if let Some((name, value)) = text_field(part)? {
            fields.add(name.as_bytes(), value)?;
        }
        rest = after;
    }
}

/// The name and bytes of a text field; `None` for a file.
fn text_field(part: &[u8]) -> Result<Option<(String, &[u8])>, Unreadable> {
    let broken = Unreadable::BrokenMultipart;
    let (head, value) = split_once(part, b"\r\n\r\n").ok_or(broken)?;
    let mut disposition = None;
    let mut content_type = None;
    for (count, line) in split_lines(head).enumerate() {
        if count == PART_HEADERS_MAX {
            return Err(broken);
        }
        let (name, content) = split_once(line, b":").ok_or(broken)?;
        let plain = !line.iter().any(|byte| matches!(byte, b'\r' | b'\n'));
        if name.is_empty() || !name.iter().all(u8::is_ascii_graphic) || !plain {
            return Err(broken);
        }
        match name.to_ascii_lowercase().as_slice() {
            b"content-disposition" if disposition.is_some() => return Err(broken),
            b"content-disposition" => {
                disposition = Some(Parameterised::parse(content.trim_ascii()).ok_or(broken)?);
            }
            b"content-transfer-encoding" => refuse_transfer_encoding(content)?,
            b"content-type" => content_type = Some(content),
            _ => {}
        }
    }
    let disposition = disposition
        .filter(|header| header.value == "form-data")
        .ok_or(broken)?;
    let name = disposition.parameter("name").ok_or(broken)?;
    let has = |name| disposition.parameter(name).is_some();
    // Browsers write a quote as %22; others read that as it stands.
    if name.contains('%') || has("name*") {
        return Err(broken);
    }
    if has("filename") || has("filename*") {
        return Ok(None);
    }
    content_type.map_or(Ok(()), refuse_charset)?;
    Ok(Some((name.to_owned(), value)))
}

fn refuse_transfer_encoding(content: &[u8]) -> Result<(), Unreadable> {
    match content.trim_ascii().to_ascii_lowercase().as_slice() {
        b"7bit" | b"8bit" | b"binary" => Ok(()),
        _ => Err(Unreadable::BrokenMultipart),
    }
}

fn refuse_charset(content: &[u8]) -> Result<(), Unreadable> {
    let header = Parameterised::parse(content.trim_ascii()).ok_or(Unreadable::BrokenMultipart)?;
    match header.parameter("charset") {
        Some(charset) if !charset.eq_ignore_ascii_case("utf-8") => Err(Unreadable::UnknownCharset),
        _ => Ok(()),
    }
}

fn split_once<'b>(bytes: &'b [u8], separator: &[u8]) -> Option<(&'b [u8], &'b [u8])> {
    let at = bytes
        .windows(separator.len())
        .position(|window| window == separator)?;
    Some((bytes.get(..at)?, bytes.get(at + separator.len()..)?))
}

fn split_lines(head: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(head);
    std::iter::from_fn(move || {
        let bytes = rest?;
        match split_once(bytes, b"\r\n") {
            Some((line, after)) => {
                rest = Some(after);
                Some(line)
            }
            None => rest.take(),
        }
    })
}
