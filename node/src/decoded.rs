//! An answer's body without its content coding, decoded while it streams. Pure.
//!
//! Memory is bounded by the coding's window (gzip and deflate 32 KiB, zstd 8 MiB, as RFC 9659 sets
//! it, brotli 16 MiB) and a piece, however much a few coded bytes stand for; so is the time that a
//! piece takes.

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
/// Most gzip members or zstd frames without content, one behind the other: they cost time and give
/// nothing.
const EMPTY_MAX: u32 = 64;
/// How a brotli stream begins whose window is none of RFC 7932, of up to 1 GiB ("large window").
const LARGE_WINDOW: u8 = 0x11;

/// The coding of a body with these fields; `None` where it is none of those that can be read, or
/// there are several.
pub fn coding_of(headers: &HeaderMap) -> Option<Coding> {
    let mut values = headers.get_all(CONTENT_ENCODING).iter();
    let value = values.next().filter(|_| values.next().is_none())?;
    match *codings(value.as_bytes(), 1).ok()? {
        [coding] => Some(coding),
        _ => None,
    }
}

/// A body in the making.
pub struct Decoder {
    coding: Coding,
    decoder: Box<dyn DecodeV2>,
    /// Room for a piece; made with the first.
    room: Vec<u8>,
    /// Coded bytes that are still to be decoded.
    left: Bytes,
    /// Coded bytes so far.
    taken: u64,
    /// Whether the last piece was full, so that more may come without further bytes.
    is_full: bool,
    /// Whether the coded stream is at its end, or has not begun.
    is_whole: bool,
    /// Whether zeros have followed it, which some programs write behind gzip.
    is_padded: bool,
    /// How many have ended since the last byte of content.
    empty: u32,
}

impl Decoder {
    /// For a body in this coding.
    pub fn new(coding: Coding) -> Self {
        let decoder: Box<dyn DecodeV2> = match coding {
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
            decoder,
            room: Vec::new(),
            left: Bytes::new(),
            taken: 0,
            is_full: false,
            is_whole: true,
            is_padded: false,
            empty: 0,
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
    /// The bytes are not of this coding, or too many of them stand for nothing.
    pub fn piece(&mut self) -> io::Result<Option<Bytes>> {
        while self.is_full || !self.left.is_empty() {
            if self.is_whole && !self.begins()? {
                continue;
            }
            self.room.resize(PIECE_BYTES_MAX, 0);
            let mut coded = PartialBuffer::new(&self.left[..]);
            let mut plain = WriteBuffer::new_initialized(&mut self.room);
            let decoded = self.decoder.decode(&mut coded, &mut plain);
            let (read, made) = (coded.written_len(), plain.written_len());
            self.is_whole = match decoded {
                // zlib has nothing more to tell, which was to be found out.
                Err(_) if self.left.is_empty() => false,
                decoded => decoded?,
            };
            self.left.advance(read);
            self.is_full = made == PIECE_BYTES_MAX && !self.is_whole;
            if made > 0 {
                self.empty = 0;
                return Ok(Some(Bytes::copy_from_slice(&self.room[..made])));
            }
            if self.is_whole {
                self.empty += 1;
            } else if read == 0 && !self.left.is_empty() {
                return Err(invalid("the coded bytes lead nowhere"));
            }
        }
        Ok(None)
    }

    /// Whether what is left begins a stream; what only follows one is taken out.
    fn begins(&mut self) -> io::Result<bool> {
        let is_first = self.taken == self.left.len() as u64;
        let next = self.left.first().copied().unwrap_or_default();
        match self.coding {
            Coding::Brotli if is_first && next & 0x7f == LARGE_WINDOW => {
                return Err(invalid("its window is larger than RFC 7932 allows"));
            }
            _ if is_first => return Ok(true),
            Coding::Gzip if self.is_padded || next == 0 => {
                self.is_padded = true;
                let zeros = self.left.iter().take_while(|byte| **byte == 0).count();
                self.left.advance(zeros);
                return match self.left.is_empty() {
                    true => Ok(false),
                    false => Err(invalid("something follows the zeros behind its end")),
                };
            }
            // A body may be several of them, one behind the other.
            Coding::Gzip | Coding::Zstd if self.empty < EMPTY_MAX => {}
            Coding::Gzip | Coding::Zstd => return Err(invalid("it stands for nothing")),
            Coding::Brotli | Coding::Deflate => return Err(invalid("bytes follow its end")),
        }
        self.decoder.reinit()?;
        Ok(true)
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

fn invalid(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use http::HeaderValue;

    use super::*;

    fn of(coding: &'static str) -> Option<Decoder> {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static(coding));
        coding_of(&headers).map(Decoder::new)
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
    fn zeros_may_follow_gzip_and_nothing_else() {
        let gzip = coded("gzip", b"all");
        for step in [1, 3, 1_000] {
            let padded = [&gzip[..], &[0; 600]].concat();
            assert_eq!(decoded("gzip", &padded, step).unwrap(), b"all");
            let more = [&padded[..], &gzip].concat();
            assert!(decoded("gzip", &more, step).is_err(), "{step}");
            for coding in ["br", "deflate", "zstd"] {
                let padded = [&coded(coding, b"all")[..], &[0; 9]].concat();
                assert!(decoded(coding, &padded, step).is_err(), "{coding} {step}");
            }
        }
    }

    /// Twice the content in brotli and deflate is no body, and a body without content ends.
    #[test]
    fn what_stands_for_nothing_is_refused_soon() {
        for coding in CODINGS {
            let endless = coded(coding, b"").repeat(10_000);
            let error = decoded(coding, &endless, 400_000).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{coding}");
            // A zstd frame that is to be skipped.
            let skipped = [0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0].repeat(10_000);
            assert!(decoded(coding, &skipped, 400_000).is_err(), "{coding}");
        }
        let few = [&coded("gzip", b"").repeat(9)[..], &coded("gzip", b"x")].concat();
        assert_eq!(decoded("gzip", &few, 7).unwrap(), b"x");
    }

    #[test]
    fn a_large_window_is_refused_before_it_takes_memory() {
        for byte in [0x11, 0x91] {
            let error = decoded("br", &[byte, 30, 0, 0, 0, 0, 0], 7).unwrap_err();
            assert!(error.to_string().contains("window"), "{error}");
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
        assert!(coding_of(&HeaderMap::new()).is_none());
        let mut twice = HeaderMap::new();
        twice.append(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        twice.append(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        assert!(coding_of(&twice).is_none());
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
