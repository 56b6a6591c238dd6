//! The canonical reading of a path: what a lenient upstream makes of the bytes before it routes.

use super::{PathOptions, PathRefusal, PathRefused};
use crate::query::hex_value;
use crate::target::{DoubleEncoding, EncodedSlash};

/// One byte of a decoded path.
#[derive(Clone, Copy)]
pub(super) struct Unit {
    pub byte: u8,
    /// It was written as an escape.
    pub escaped: bool,
    /// Where it begins in the raw path.
    pub offset: usize,
}

/// The canonical reading of a path that has something to canonicalise.
pub(super) fn canonicalise(raw: &[u8], options: PathOptions) -> Result<Canonical, PathRefused> {
    let units = decode(raw)?;
    refuse_overlong_utf8(&units)?;
    refuse_dot_segments(units.iter().copied())?;
    if units
        .iter()
        .enumerate()
        .any(|(at, _)| escape_at(&units, at).is_some())
    {
        match options.double_encoding {
            DoubleEncoding::Refuse => return Err(first_double_escape(&units)),
            // Passing is for data that happens to hold escapes, not for a second way to climb.
            DoubleEncoding::Pass => refuse_dot_segments(decode_again(&units)?.into_iter())?,
        }
    }
    let has_parameters = units.iter().any(|unit| unit.byte == b';');
    let with_parameters = has_parameters.then(|| joined(&units, options, true));
    let path = joined(&units, options, false)?;
    Ok(Canonical {
        path,
        with_parameters: with_parameters.transpose()?,
    })
}

/// The canonical reading of a path.
pub(super) struct Canonical {
    pub path: String,
    /// The same with what follows `;`, where there is one.
    pub with_parameters: Option<String>,
}

/// The text of decoded bytes, with the parameters of its segments or without.
fn joined(
    units: &[Unit],
    options: PathOptions,
    keeps_parameters: bool,
) -> Result<String, PathRefused> {
    let mut canonical = Vec::with_capacity(units.len());
    let (mut in_parameters, mut cut_raw) = (false, false);
    for unit in units {
        let slash = matches!(unit.byte, b'/' | b'\\');
        let opaque = slash && unit.escaped && options.encoded_slash == EncodedSlash::Opaque;
        if slash && !opaque {
            // A server that removes what follows `;` before it decodes sees a raw one alone.
            if cut_raw && (unit.escaped || unit.byte == b'\\') {
                return Err(PathRefused {
                    reason: PathRefusal::SlashInParameters,
                    offset: unit.offset,
                });
            }
            (in_parameters, cut_raw) = (false, false);
            if canonical.last() != Some(&b'/') {
                canonical.push(b'/');
            }
            continue;
        }
        in_parameters |= unit.byte == b';';
        cut_raw |= unit.byte == b';' && !unit.escaped;
        if in_parameters && !keeps_parameters {
            continue;
        }
        if opaque {
            canonical.extend_from_slice(if unit.byte == b'/' { b"%2F" } else { b"%5C" });
        } else {
            canonical.push(unit.byte);
        }
    }
    Ok(String::from_utf8_lossy(&canonical).into_owned())
}

/// Percent-decodes once; refuses invalid escapes and escapes of control characters.
fn decode(raw: &[u8]) -> Result<Vec<Unit>, PathRefused> {
    let mut units = Vec::with_capacity(raw.len());
    let mut offset = 0;
    while let Some(&byte) = raw.get(offset) {
        if byte != b'%' {
            units.push(Unit {
                byte,
                escaped: false,
                offset,
            });
            offset += 1;
            continue;
        }
        let digits = (raw.get(offset + 1), raw.get(offset + 2));
        let (Some(high), Some(low)) = (hex_value(digits.0), hex_value(digits.1)) else {
            return Err(PathRefused {
                reason: PathRefusal::InvalidEscape,
                offset,
            });
        };
        let byte = high << 4 | low;
        refuse_control(byte, offset)?;
        units.push(Unit {
            byte,
            escaped: true,
            offset,
        });
        offset += 3;
    }
    Ok(units)
}

/// Decodes the escapes that a first decoding left behind.
fn decode_again(units: &[Unit]) -> Result<Vec<Unit>, PathRefused> {
    let mut decoded = Vec::with_capacity(units.len());
    let mut at = 0;
    while let Some(unit) = units.get(at) {
        if let Some(byte) = escape_at(units, at) {
            refuse_control(byte, unit.offset)?;
            decoded.push(Unit { byte, ..*unit });
            at += 3;
        } else {
            decoded.push(*unit);
            at += 1;
        }
    }
    Ok(decoded)
}

/// The byte that three decoded bytes spell as an escape, if they do.
fn escape_at(units: &[Unit], at: usize) -> Option<u8> {
    let digit = |ahead: usize| hex_value(units.get(at + ahead).map(|unit| &unit.byte));
    if units.get(at)?.byte != b'%' {
        return None;
    }
    Some(digit(1)? << 4 | digit(2)?)
}

fn first_double_escape(units: &[Unit]) -> PathRefused {
    let at = (0..units.len()).find(|at| escape_at(units, *at).is_some());
    let offset = at
        .and_then(|at| units.get(at))
        .map_or(0, |unit| unit.offset);
    PathRefused {
        reason: PathRefusal::DoubleEncoding,
        offset,
    }
}

fn refuse_control(byte: u8, offset: usize) -> Result<(), PathRefused> {
    if byte.is_ascii_control() {
        return Err(PathRefused {
            reason: PathRefusal::ControlByte,
            offset,
        });
    }
    Ok(())
}

/// Refuses the long spellings of characters that have a shorter one (RFC 3629, section 3).
///
/// A strict decoder rejects `%C0%AF`; a lenient one reads it as `/`.
fn refuse_overlong_utf8(units: &[Unit]) -> Result<(), PathRefused> {
    for pair in units.windows(2) {
        let [lead, next] = pair else { continue };
        let overlong = match lead.byte {
            0xc0 | 0xc1 => matches!(next.byte, 0x80..=0xbf),
            0xe0 => matches!(next.byte, 0x80..=0x9f),
            0xf0 => matches!(next.byte, 0x80..=0x8f),
            _ => false,
        };
        if overlong {
            return Err(PathRefused {
                reason: PathRefusal::OverlongUtf8,
                offset: lead.offset,
            });
        }
    }
    Ok(())
}

/// Refuses `.` and `..` between any two separators, with or without parameters (`..;a`).
pub(super) fn refuse_dot_segments(units: impl Iterator<Item = Unit>) -> Result<(), PathRefused> {
    /// What the current segment has been so far.
    #[derive(Clone, Copy, PartialEq, Eq)]
    enum Segment {
        /// This many dots and nothing else.
        Dots(u8),
        /// One or two dots, then parameters.
        DotsWithParameters,
        /// Something that is not a dot segment.
        Ordinary,
    }
    let is_dots = |segment| matches!(segment, Segment::Dots(1..) | Segment::DotsWithParameters);
    let mut segment = Segment::Dots(0);
    let mut offset = 0;
    for unit in units {
        match (unit.byte, segment) {
            (b'/' | b'\\', _) => {
                if is_dots(segment) {
                    return Err(PathRefused {
                        reason: PathRefusal::DotSegment,
                        offset,
                    });
                }
                segment = Segment::Dots(0);
                continue;
            }
            (b'.', Segment::Dots(0)) => {
                offset = unit.offset;
                segment = Segment::Dots(1);
            }
            (b'.', Segment::Dots(1)) => segment = Segment::Dots(2),
            (b';', Segment::Dots(1..)) => segment = Segment::DotsWithParameters,
            (_, Segment::DotsWithParameters) => {}
            _ => segment = Segment::Ordinary,
        }
    }
    if is_dots(segment) {
        return Err(PathRefused {
            reason: PathRefusal::DotSegment,
            offset,
        });
    }
    Ok(())
}
