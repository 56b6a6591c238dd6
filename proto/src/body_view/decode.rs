//! Content codings of a request body (RFC 9110, section 8.4), decoded under limits.
//!
//! One member, one frame, nothing after it: readers differ on whether they go on to a second gzip
//! member, so a body with one is not readable exactly one way. `deflate` is the zlib format, as the
//! RFC says; the raw format that some clients send is refused here.

use std::borrow::Cow;
use std::io::Read;

use super::{BodyLimits, Unreadable};

/// Largest zstd window, as RFC 9659 sets it for HTTP: 8 MiB.
pub const ZSTD_WINDOW_LOG_MAX: u32 = 23;
const BROTLI_BUFFER_BYTES: usize = 4096;

/// A content coding that can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coding {
    /// RFC 1952.
    Gzip,
    /// The zlib format, RFC 1950.
    Deflate,
    /// RFC 7932.
    Brotli,
    /// RFC 8878.
    Zstd,
}

/// A body without its content codings, under the limits that hold for bodies of either direction.
///
/// `content_encoding` is the header's value, several lines joined by commas.
///
/// # Errors
/// [`Unreadable`] if a coding is unknown or not what it says, there are more than two, or the
/// result is larger than `bytes_max` or a hundred times the coded bytes.
pub fn decode<'b>(
    coded: &'b [u8],
    content_encoding: &str,
    bytes_max: usize,
) -> Result<Cow<'b, [u8]>, Unreadable> {
    decode_within(
        coded,
        content_encoding.as_bytes(),
        &BodyLimits::new(bytes_max),
    )
}

/// The body without its codings.
pub(super) fn decode_within<'b>(
    bytes: &'b [u8],
    content_encoding: &[u8],
    limits: &BodyLimits,
) -> Result<Cow<'b, [u8]>, Unreadable> {
    let codings = codings(content_encoding, limits.codings_max)?;
    // Against what was sent, not against the layer before: two layers must not multiply.
    let by_ratio = bytes.len().saturating_mul(limits.ratio_max);
    let mut plain = Cow::Borrowed(bytes);
    for coding in codings.into_iter().rev() {
        let decoded = decode_layer(coding, &plain, by_ratio.min(limits.bytes_max))?;
        if decoded.len() > limits.bytes_max {
            return Err(Unreadable::TooLarge);
        }
        if decoded.len() > by_ratio {
            return Err(Unreadable::RatioExceeded);
        }
        plain = Cow::Owned(decoded);
    }
    Ok(plain)
}

/// The codings that `Content-Encoding` names, in the order in which they were applied.
///
/// # Errors
/// One is not known, or there are more than `codings_max`.
pub fn codings(content_encoding: &[u8], codings_max: usize) -> Result<Vec<Coding>, Unreadable> {
    let mut found = Vec::new();
    for name in content_encoding.split(|byte| *byte == b',') {
        let coding = match name.trim_ascii().to_ascii_lowercase().as_slice() {
            b"" | b"identity" => continue,
            b"gzip" | b"x-gzip" => Coding::Gzip,
            b"deflate" => Coding::Deflate,
            b"br" => Coding::Brotli,
            b"zstd" => Coding::Zstd,
            _ => return Err(Unreadable::UnknownCoding),
        };
        if found.len() == codings_max {
            return Err(Unreadable::TooManyCodings);
        }
        found.push(coding);
    }
    Ok(found)
}

/// Decodes one layer; one byte more than `bytes_max` means that there was more.
fn decode_layer(coding: Coding, coded: &[u8], bytes_max: usize) -> Result<Vec<u8>, Unreadable> {
    let mut plain = Vec::new();
    let nothing_follows = match coding {
        Coding::Gzip => {
            let mut reader = flate2::bufread::GzDecoder::new(coded);
            fill(&mut plain, &mut reader, bytes_max)?;
            reader.into_inner().is_empty()
        }
        Coding::Deflate => {
            let mut reader = flate2::bufread::ZlibDecoder::new(coded);
            fill(&mut plain, &mut reader, bytes_max)?;
            reader.into_inner().is_empty()
        }
        Coding::Brotli => {
            let mut reader = brotli::Decompressor::new(coded, BROTLI_BUFFER_BYTES);
            fill(&mut plain, &mut reader, bytes_max)?;
            // After its end the reader answers one more read with an error if bytes are left over.
            reader.read(&mut [0]).is_ok() && reader.into_inner().is_empty()
        }
        Coding::Zstd => {
            let reader = zstd::stream::read::Decoder::with_buffer(coded);
            let mut reader = reader.map_err(|_| Unreadable::BrokenCoding)?.single_frame();
            let bounded = reader.window_log_max(ZSTD_WINDOW_LOG_MAX);
            bounded.map_err(|_| Unreadable::BrokenCoding)?;
            fill(&mut plain, &mut reader, bytes_max)?;
            reader.finish().is_empty()
        }
    };
    if nothing_follows || plain.len() > bytes_max {
        return Ok(plain);
    }
    Err(Unreadable::BrokenCoding)
}

/// Reads to the end of the coded stream, or one byte past the bound.
fn fill(plain: &mut Vec<u8>, reader: &mut impl Read, bytes_max: usize) -> Result<(), Unreadable> {
    let bytes_max = u64::try_from(bytes_max).unwrap_or(u64::MAX);
    let mut bounded = reader.take(bytes_max.saturating_add(1));
    bounded
        .read_to_end(plain)
        .map_err(|_| Unreadable::BrokenCoding)?;
    Ok(())
}
