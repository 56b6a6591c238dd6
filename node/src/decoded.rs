//! An answer's body without its content coding, decoded while it streams. Pure.
//!
//! Memory is bounded by the coding's window (zstd: RFC 9659; brotli and gzip have theirs by format)
//! and a piece, however much a few coded bytes stand for.

use std::io;

use bytes::{Buf, Bytes};
use compression_codecs::core::util::{PartialBuffer, WriteBuffer};
use compression_codecs::zstd::params::DParameter;
use compression_codecs::{BrotliDecoder, DecodeV2, GzipDecoder, ZlibDecoder, ZstdDecoder};
use http::HeaderMap;
use http::header::CONTENT_ENCODING;
use proto::body_view::{Coding, ZSTD_WINDOW_LOG_MAX, codings};

/// Most decoded bytes in a piece.
const PIECE_BYTES_MAX: usize = 16 * 1024;

/// A body in the making.
pub struct Decoder {
    coding: Box<dyn DecodeV2>,
    /// Coded bytes that are still to be decoded.
    left: Bytes,
    /// Coded bytes so far.
    taken: u64,
    /// Whether the last piece was full, so that more may come without further bytes.
    is_full: bool,
    /// Whether the coded stream is at its end, or has not begun.
    is_whole: bool,
}

impl Decoder {
    /// For a body with these fields; `None` where it has another coding than one of those that can
    /// be read, or several.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let mut values = headers.get_all(CONTENT_ENCODING).iter();
        let value = values.next().filter(|_| values.next().is_none())?;
        match *codings(value.as_bytes(), 1).ok()? {
            [coding] => Some(Self::new(coding)),
            _ => None,
        }
    }

    fn new(coding: Coding) -> Self {
        let coding: Box<dyn DecodeV2> = match coding {
            Coding::Gzip => Box::new(GzipDecoder::new()),
            Coding::Deflate => Box::new(ZlibDecoder::new()),
            Coding::Brotli => Box::new(BrotliDecoder::new()),
            Coding::Zstd => {
                let window = DParameter::window_log_max(ZSTD_WINDOW_LOG_MAX);
                Box::new(ZstdDecoder::new_with_params(&[window]))
            }
        };
        Self {
            coding,
            left: Bytes::new(),
            taken: 0,
            is_full: false,
            is_whole: true,
        }
    }

    /// Coded bytes that it was given so far.
    pub fn taken(&self) -> u64 {
        self.taken
    }

    /// Takes the next coded bytes; [`Decoder::piece`] has given all of those before.
    pub fn push(&mut self, coded: Bytes) {
        self.taken += coded.len() as u64;
        self.left = coded;
    }

    /// The next decoded bytes; `None` where further coded ones are needed.
    ///
    /// # Errors
    /// The bytes are not of this coding.
    pub fn piece(&mut self) -> io::Result<Option<Bytes>> {
        while self.is_full || !self.left.is_empty() {
            // A body may be several gzip members or zstd frames, one behind the other.
            if self.is_whole && self.taken > self.left.len() as u64 {
                self.coding.reinit()?;
            }
            let mut room = vec![0; PIECE_BYTES_MAX];
            let mut coded = PartialBuffer::new(&self.left[..]);
            let mut plain = WriteBuffer::new_initialized(&mut room);
            let decoded = self.coding.decode(&mut coded, &mut plain);
            let (read, made) = (coded.written_len(), plain.written_len());
            self.is_whole = match decoded {
                // zlib has nothing more to tell, which was to be found out.
                Err(_) if self.left.is_empty() => false,
                decoded => decoded?,
            };
            self.left.advance(read);
            self.is_full = made == PIECE_BYTES_MAX && !self.is_whole;
            if made > 0 {
                room.truncate(made);
                return Ok(Some(room.into()));
            }
            if read == 0 && !self.left.is_empty() && !self.is_whole {
                let why = "the coded bytes lead nowhere";
                return Err(io::Error::new(io::ErrorKind::InvalidData, why));
            }
        }
        Ok(None)
    }

    /// What it means that no coded bytes follow.
    ///
    /// # Errors
    /// The coded stream was cut.
    pub fn ended(&self) -> io::Result<()> {
        match self.is_whole {
            true => Ok(()),
            false => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use http::HeaderValue;

    use super::*;

    fn of(coding: &'static str) -> Option<Decoder> {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static(coding));
        Decoder::of(&headers)
    }

    fn coded(coding: &str, plain: &[u8]) -> Vec<u8> {
        let level = flate2::Compression::default();
        match coding {
            "gzip" => {
                let mut coder = flate2::write::GzEncoder::new(Vec::new(), level);
                coder.write_all(plain).unwrap();
                coder.finish().unwrap()
            }
            "deflate" => {
                let mut coder = flate2::write::ZlibEncoder::new(Vec::new(), level);
                coder.write_all(plain).unwrap();
                coder.finish().unwrap()
            }
            "br" => {
                let mut out = Vec::new();
                let mut coder = brotli::CompressorWriter::new(&mut out, 4096, 5, 22);
                coder.write_all(plain).unwrap();
                drop(coder);
                out
            }
            _ => zstd::stream::encode_all(plain, 3).unwrap(),
        }
    }

    /// What comes of coded bytes in pieces of `step`.
    fn decoded(coding: &'static str, bytes: &[u8], step: usize) -> io::Result<Vec<u8>> {
        let mut decoder = of(coding).unwrap();
        let mut plain = Vec::new();
        for piece in bytes.chunks(step) {
            decoder.push(Bytes::copy_from_slice(piece));
            while let Some(piece) = decoder.piece()? {
                assert!(piece.len() <= PIECE_BYTES_MAX);
                plain.extend_from_slice(&piece);
            }
        }
        assert_eq!(decoder.taken(), bytes.len() as u64);
        decoder.ended()?;
        Ok(plain)
    }

    const CODINGS: [&str; 4] = ["gzip", "deflate", "br", "zstd"];

    #[test]
    fn whatever_the_pieces_the_body_is_the_same() {
        let noise: Vec<u8> = (0..50_000u32).map(|n| ((n * n) >> 7) as u8).collect();
        let zeros = vec![0; 4 * PIECE_BYTES_MAX];
        for coding in CODINGS {
            for plain in [&b""[..], b"x", &noise, &zeros, &zeros[..PIECE_BYTES_MAX]] {
                let bytes = coded(coding, plain);
                for step in [1, 7, 1_000, usize::MAX] {
                    let found = decoded(coding, &bytes, step.min(bytes.len())).unwrap();
                    assert!(found == plain, "{coding} {} in {step}", plain.len());
                }
            }
        }
    }

    #[test]
    fn what_is_there_is_told_at_once() {
        let mut coder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        coder.write_all(b"data: 1\n\n").unwrap();
        coder.flush().unwrap();
        let mut decoder = of("gzip").unwrap();
        decoder.push(Bytes::copy_from_slice(coder.get_ref()));
        assert_eq!(decoder.piece().unwrap().unwrap(), "data: 1\n\n");
        assert_eq!(decoder.piece().unwrap(), None);
        assert!(decoder.ended().is_err(), "and it is not whole");
    }

    #[test]
    fn several_members_are_one_body() {
        for coding in ["gzip", "zstd"] {
            let bytes = [coded(coding, b"one "), coded(coding, b"two")].concat();
            for step in [1, bytes.len()] {
                assert_eq!(decoded(coding, &bytes, step).unwrap(), b"one two");
            }
        }
    }

    #[test]
    fn what_is_cut_or_broken_is_an_error() {
        let plain: Vec<u8> = (0..50_000u32).map(|n| ((n * n) >> 7) as u8).collect();
        for coding in CODINGS {
            let bytes = coded(coding, &plain);
            for cut in [1, bytes.len() / 2, bytes.len() - 1] {
                assert!(
                    decoded(coding, &bytes[..cut], 1_000).is_err(),
                    "{coding} {cut}"
                );
            }
            assert!(
                decoded(coding, b"no coding at all, but text", 5).is_err(),
                "{coding}"
            );
        }
        assert_eq!(decoded("gzip", b"", 1).unwrap(), b"", "a body may be empty");
    }

    #[test]
    fn other_codings_are_not_read() {
        for coding in ["", "identity", "compress", "gzip, br", "gzip, x", "dcb"] {
            assert!(of(coding).is_none(), "{coding}");
        }
        assert!(of("X-GZIP").is_some());
        assert!(Decoder::of(&HeaderMap::new()).is_none());
        let mut twice = HeaderMap::new();
        twice.append(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        twice.append(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        assert!(Decoder::of(&twice).is_none());
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_end(bytes: Vec<u8>, step in 1usize..9, at in 0..CODINGS.len(), seed: u8) {
            let _ = decoded(CODINGS[at], &bytes, step);
            let mut changed = coded(CODINGS[at], &[seed; 300]);
            let place = usize::from(seed) % changed.len();
            changed[place] ^= 0x55;
            let _ = decoded(CODINGS[at], &changed, step);
        }
    }
}
