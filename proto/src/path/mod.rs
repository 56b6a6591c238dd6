//! The two readings of a request path, and the paths that are refused.
//!
//! The bytes that are sent upstream stay as the caller wrote them: decoding `%2F` breaks APIs whose
//! ids hold a slash, and signatures cover the spelling. A rule on those bytes alone is void,
//! though, since `/%61dmin`, `//admin` and `/admin;a=1` reach the same handler. So policy judges
//! two readings: *raw*, as sent, and *canonical*, as a lenient upstream would route it. What has
//! more than these two readings (dot segments in any spelling, escapes of escapes, control bytes)
//! is refused and never rewritten.
//!
//! Canonical means: percent-decoded once, `\` read as `/`, the `;…` of a segment removed, `//`
//! merged. Bytes that are not UTF-8 once decoded become U+FFFD, so that a pattern's `.` sees them.
//! To servers for which `;` is a letter like any other, a path with one has a third reading, the
//! same with its `;…`.

use std::borrow::Cow;

use self::canonical::{Canonical, Unit, canonicalise, refuse_dot_segments};
use crate::target::{DoubleEncoding, EncodedSlash};

mod canonical;
#[cfg(test)]
mod tests;

/// How a target wants doubtful escapes to be judged; the default is the safe side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PathOptions {
    /// What an escape that decodes to another escape (`%2561`) means: nobody knows how often the
    /// upstream decodes. Passed, it is decoded once for the canonical reading, like any other.
    pub double_encoding: DoubleEncoding,
    /// What `%2F` and `%5C` are in the canonical reading: separators, as for an upstream that
    /// decodes before it routes, or part of a segment, for one that routes first.
    pub encoded_slash: EncodedSlash,
}

/// Why a path is answered with 400 `malformed-request`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathRefusal {
    /// Neither empty nor beginning with `/`.
    #[error("the path does not begin with a slash")]
    NotAbsolute,
    /// A byte that no request target may hold as it is.
    #[error("the path holds a byte that must be percent-encoded")]
    InvalidByte,
    /// `%` without two hexadecimal digits.
    #[error("the path holds a percent sign that is not followed by two hexadecimal digits")]
    InvalidEscape,
    /// An escape of a control character, NUL included.
    #[error("the path holds an encoded control character")]
    ControlByte,
    /// An escape whose decoding is another escape.
    #[error("the path is percent-encoded twice")]
    DoubleEncoding,
    /// An over-long UTF-8 form, which lenient decoders turn into `/` or `.`.
    #[error("the path holds an over-long UTF-8 sequence")]
    OverlongUtf8,
    /// `%2F` or `%5C` behind a `;`, itself not encoded, in one segment: some servers remove what
    /// follows the `;` before they decode, some after, and so end the segment elsewhere.
    #[error("the path holds an encoded slash behind a semicolon")]
    SlashInParameters,
    /// `.` or `..` as a segment, in plain or any encoded form.
    #[error("the path holds a dot segment")]
    DotSegment,
}

/// A path that is refused: why, and at which byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason} (at byte {offset})")]
pub struct PathRefused {
    /// The rule that the path breaks.
    pub reason: PathRefusal,
    /// Offset in the raw path of the byte, or of the segment's first byte, that broke it.
    pub offset: usize,
}

/// A path that may be sent, in its two readings.
///
/// Holding one proves that the path has no dot segment in any spelling, so it can be joined to a
/// base path and never leave it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathReading<'a> {
    raw: &'a str,
    canonical: Cow<'a, str>,
    /// The canonical reading with what follows `;`, where there is one.
    with_parameters: Option<String>,
}

impl<'a> PathReading<'a> {
    /// Reads the part of the request target after the proxy's name, without the query.
    ///
    /// A path without `%`, `\`, `;` and `//` is its own canonical reading and costs no allocation.
    ///
    /// # Errors
    /// [`PathRefused`] for what has no two readings; see [`PathRefusal`].
    pub fn parse(raw: &'a [u8], options: PathOptions) -> Result<Self, PathRefused> {
        if raw.first().is_some_and(|first| *first != b'/') {
            return Err(PathRefused {
                reason: PathRefusal::NotAbsolute,
                offset: 0,
            });
        }
        if let Some(offset) = raw.iter().position(|byte| !may_be_sent(*byte)) {
            return Err(PathRefused {
                reason: PathRefusal::InvalidByte,
                offset,
            });
        }
        let Ok(text) = std::str::from_utf8(raw) else {
            // Not reached: every byte that may be sent is ASCII.
            return Err(PathRefused {
                reason: PathRefusal::InvalidByte,
                offset: 0,
            });
        };
        let (canonical, with_parameters) = if is_canonical(raw) {
            let plain = raw.iter().enumerate();
            refuse_dot_segments(plain.map(|(offset, byte)| Unit {
                byte: *byte,
                escaped: false,
                offset,
            }))?;
            (Cow::Borrowed(text), None)
        } else {
            let Canonical {
                path,
                with_parameters,
            } = canonicalise(raw, options)?;
            (Cow::Owned(path), with_parameters)
        };
        Ok(Self {
            raw: text,
            canonical,
            with_parameters,
        })
    }

    /// The path as the caller sent it; empty when nothing followed the proxy's name.
    pub fn raw(&self) -> &'a str {
        self.raw
    }

    /// The path as a lenient upstream would route it; `/` for an empty one.
    pub fn canonical(&self) -> &str {
        if self.canonical.is_empty() {
            "/"
        } else {
            &self.canonical
        }
    }

    /// Every reading that rules judge: as of [`PathReading::judged`], and the canonical one with
    /// the parameters of its segments where there are any.
    pub fn readings(&self) -> impl Iterator<Item = &str> {
        let (raw, canonical) = self.judged();
        let with_parameters = self.with_parameters.as_deref();
        let more = canonical.into_iter().chain(with_parameters);
        std::iter::once(raw).chain(more.filter(move |reading| *reading != raw))
    }

    /// The one of [`PathReading::readings`] where there is no other, as of nearly every path.
    pub fn only(&self) -> Option<&str> {
        match (self.judged(), &self.with_parameters) {
            ((raw, None), None) => Some(raw),
            _ => None,
        }
    }

    /// The raw reading, and the canonical one where it differs.
    ///
    /// An empty path is judged as `/`, which is what the upstream receives.
    pub fn judged(&self) -> (&str, Option<&str>) {
        let raw = if self.raw.is_empty() { "/" } else { self.raw };
        match &self.canonical {
            Cow::Borrowed(_) => (raw, None),
            Cow::Owned(canonical) if canonical == raw => (raw, None),
            Cow::Owned(canonical) => (raw, Some(canonical)),
        }
    }

    /// The path to send below a target's base path: the caller's bytes, with one slash at the seam.
    ///
    /// `/v1` and `/v1/` are the same base; an empty caller path leaves the base as it is written.
    pub fn join(&self, base_path: &str) -> Vec<u8> {
        let mut joined = Vec::with_capacity(base_path.len() + self.raw.len() + 1);
        if self.raw.is_empty() {
            joined.extend_from_slice(base_path.as_bytes());
        } else {
            let base = base_path.strip_suffix('/').unwrap_or(base_path);
            joined.extend_from_slice(base.as_bytes());
            joined.extend_from_slice(self.raw.as_bytes());
        }
        if joined.first() != Some(&b'/') {
            joined.insert(0, b'/');
        }
        joined
    }
}

/// Whether a request target may hold the byte: what RFC 9112 allows and the `http` crate can carry.
///
/// `?` and `#` would end the path for the upstream, so they are not part of one.
fn may_be_sent(byte: u8) -> bool {
    matches!(byte, 0x21..=0x7e) && !matches!(byte, b'#' | b'?' | b'<' | b'>' | b'`')
}

/// Whether the canonical reading of these bytes is the bytes themselves (dot segments aside).
fn is_canonical(raw: &[u8]) -> bool {
    let mut before = 0;
    for &byte in raw {
        if matches!(byte, b'%' | b'\\' | b';') || (byte == b'/' && before == b'/') {
            return false;
        }
        before = byte;
    }
    true
}
