//! The chunked transfer coding (RFC 9112 7.1) as a state machine that finds where a body ends.
//!
//! It stores no byte: it only says how many bytes of the input belong to the body. actix-web's
//! own decoder takes extensions and trailers without end and swallows trailers that are none;
//! what it would read in another way than the grammar says is refused here before it gets it.
//! Chunk data is skipped, not looked at.

use super::class::{TOKEN, VALUE, is};
use super::refusal::Refusal;

/// How many bytes all chunk extensions of one body may have together. Per body, not per chunk:
/// one byte of data with an extension each would otherwise cost us without end.
const EXTENSION_BYTES_MAX: usize = 16 * 1024;
/// How many bytes all trailers may have together.
const TRAILER_BYTES_MAX: usize = 16 * 1024;
/// How many trailer fields there may be.
const TRAILERS_MAX: usize = 96;
/// Digits of a chunk size: as many as fit in 64 bits, so that no leading zeros go on for ever.
const SIZE_DIGITS_MAX: u8 = 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    SizeFirst,
    Size,
    SpaceAfterSize,
    Extension,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    TrailerFirst,
    TrailerName,
    TrailerValue,
    TrailerLf,
    EndLf,
    Done,
}

/// Where in a chunked body the last byte was.
#[derive(Clone, Debug)]
pub struct Chunked {
    state: State,
    /// Of the current chunk: its size while it is read, then what is left of it.
    size: u64,
    digits: u8,
    extension_bytes: usize,
    trailer_bytes: usize,
    trailers: usize,
}

/// What one call of [`Chunked::advance`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Advance {
    /// How many bytes of the input belong to the body and are as they should be.
    pub used: usize,
    /// Whether the body goes on, has ended behind them, or is refused there.
    pub end: Option<Result<(), Refusal>>,
}

impl Chunked {
    /// At the first byte of a body.
    pub const fn new() -> Self {
        Self {
            state: State::SizeFirst,
            size: 0,
            digits: 0,
            extension_bytes: 0,
            trailer_bytes: 0,
            trailers: 0,
        }
    }

    /// Reads on through `input`, up to the end of the body.
    pub fn advance(&mut self, input: &[u8]) -> Advance {
        let mut used = 0;
        while let Some(byte) = input.get(used) {
            if self.state == State::Data {
                let left = input.len() - used;
                let skipped = usize::try_from(self.size).map_or(left, |size| size.min(left));
                used += skipped;
                self.size -= skipped as u64;
                if self.size == 0 {
                    self.state = State::DataCr;
                }
                continue;
            }
            match self.step(*byte) {
                Ok(next) => self.state = next,
                Err(refusal) => {
                    return Advance {
                        used,
                        end: Some(Err(refusal)),
                    };
                }
            }
            used += 1;
            if self.state == State::Done {
                return Advance {
                    used,
                    end: Some(Ok(())),
                };
            }
        }
        Advance { used, end: None }
    }

    fn step(&mut self, byte: u8) -> Result<State, Refusal> {
        match self.state {
            State::SizeFirst | State::Size => self.size_byte(byte),
            State::SpaceAfterSize => {
                self.count_extension()?;
                match byte {
                    b' ' | b'\t' => Ok(State::SpaceAfterSize),
                    b';' => Ok(State::Extension),
                    _ => Err(Refusal::ChunkSize),
                }
            }
            State::Extension => match byte {
                b'\r' => Ok(State::SizeLf),
                byte if is(byte, VALUE) => self.count_extension().map(|()| State::Extension),
                _ => Err(Refusal::ChunkExtension),
            },
            State::SizeLf => match byte {
                b'\n' if self.size == 0 => Ok(State::TrailerFirst),
                b'\n' => Ok(State::Data),
                _ => Err(Refusal::ChunkSize),
            },
            State::DataCr if byte == b'\r' => Ok(State::DataLf),
            State::DataLf if byte == b'\n' => Ok(State::SizeFirst),
            State::Data | State::DataCr | State::DataLf => Err(Refusal::ChunkEnd),
            _ => self.trailer_byte(byte),
        }
    }

    fn size_byte(&mut self, byte: u8) -> Result<State, Refusal> {
        if self.state == State::SizeFirst {
            self.size = 0;
            self.digits = 0;
        }
        if let Some(digit) = char::from(byte).to_digit(16) {
            if self.digits == SIZE_DIGITS_MAX {
                return Err(Refusal::ChunkSize);
            }
            self.digits += 1;
            self.size = self.size << 4 | u64::from(digit);
            return Ok(State::Size);
        }
        match byte {
            _ if self.state == State::SizeFirst => Err(Refusal::ChunkSize),
            b'\r' => Ok(State::SizeLf),
            b';' => self.count_extension().map(|()| State::Extension),
            b' ' | b'\t' => self.count_extension().map(|()| State::SpaceAfterSize),
            _ => Err(Refusal::ChunkSize),
        }
    }

    fn trailer_byte(&mut self, byte: u8) -> Result<State, Refusal> {
        self.trailer_bytes += 1;
        if self.trailer_bytes > TRAILER_BYTES_MAX {
            return Err(Refusal::TrailersTooLarge);
        }
        match (self.state, byte) {
            (State::TrailerFirst, b'\r') => Ok(State::EndLf),
            (State::TrailerFirst, byte) if is(byte, TOKEN) => {
                self.trailers += 1;
                if self.trailers > TRAILERS_MAX {
                    return Err(Refusal::TrailersTooLarge);
                }
                Ok(State::TrailerName)
            }
            (State::TrailerName, b':') => Ok(State::TrailerValue),
            (State::TrailerName, byte) if is(byte, TOKEN) => Ok(State::TrailerName),
            (State::TrailerValue, b'\r') => Ok(State::TrailerLf),
            (State::TrailerValue, byte) if is(byte, VALUE) => Ok(State::TrailerValue),
            (State::TrailerLf, b'\n') => Ok(State::TrailerFirst),
            (State::EndLf, b'\n') => Ok(State::Done),
            _ => Err(Refusal::Trailer),
        }
    }

    fn count_extension(&mut self) -> Result<(), Refusal> {
        self.extension_bytes += 1;
        if self.extension_bytes > EXTENSION_BYTES_MAX {
            return Err(Refusal::ChunkExtensionsTooLarge);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How much of `input` is body, and how it ends, however it is cut in two.
    fn check(input: &[u8], used: usize, end: Option<Result<(), Refusal>>) {
        let text = String::from_utf8_lossy(input);
        let whole = Chunked::new().advance(input);
        assert_eq!(whole, Advance { used, end }, "{text:?}");
        for cut in 0..input.len().min(200) {
            let mut machine = Chunked::new();
            let first = machine.advance(&input[..cut]);
            let both = match first.end {
                Some(_) => first,
                None => {
                    assert_eq!(first.used, cut, "{text:?} cut at {cut}");
                    let second = machine.advance(&input[cut..]);
                    Advance {
                        used: cut + second.used,
                        end: second.end,
                    }
                }
            };
            assert_eq!(both, whole, "{text:?} cut at {cut}");
        }
    }

    #[test]
    fn bodies_that_end() {
        for body in [
            "0\r\n\r\n",
            "3\r\nabc\r\n0\r\n\r\n",
            "A\r\n0123456789\r\n0\r\n\r\n",
            "a\r\n\r\n\r\n\r\n\r\n\r\n\r\n0\r\n\r\n",
            "0000000000000003\r\nabc\r\n000\r\n\r\n",
            "3;name=value;flag\r\nabc\r\n0;last\r\n\r\n",
            "3 ;x=\"a b\"\r\nabc\r\n0\r\n\r\n",
            "0\r\nx-sum: 1\r\nempty:\r\n\r\n",
        ] {
            check(body.as_bytes(), body.len(), Some(Ok(())));
            let next = format!("{body}GET / HTTP/1.1\r\n");
            check(next.as_bytes(), body.len(), Some(Ok(())));
        }
    }

    #[test]
    fn bodies_that_go_on() {
        for body in [
            "",
            "3",
            "3\r\nab",
            "3\r\nabc\r\n",
            "3\r\nabc\r\n0\r\n",
            "0\r\na: b\r\n",
        ] {
            check(body.as_bytes(), body.len(), None);
        }
    }

    #[test]
    fn bodies_that_are_refused() {
        for (body, used, refusal) in [
            ("\r\n", 0, Refusal::ChunkSize),
            ("0x2\r\nab", 1, Refusal::ChunkSize),
            ("+2\r\nab", 0, Refusal::ChunkSize),
            ("-2\r\nab", 0, Refusal::ChunkSize),
            ("zz\r\n", 0, Refusal::ChunkSize),
            ("2 \r\nab", 2, Refusal::ChunkSize),
            ("2 3\r\nab", 2, Refusal::ChunkSize),
            (";x\r\n", 0, Refusal::ChunkSize),
            ("2\nab", 1, Refusal::ChunkSize),
            ("2\rab", 2, Refusal::ChunkSize),
            ("00000000000000003\r\nabc", 16, Refusal::ChunkSize),
            ("10000000000000000\r\n", 16, Refusal::ChunkSize),
            ("2;a\nab", 3, Refusal::ChunkExtension),
            ("2;a\0\r\nab", 3, Refusal::ChunkExtension),
            ("2;a\r\r\nab", 4, Refusal::ChunkSize),
            ("2\r\nab\n0\r\n", 5, Refusal::ChunkEnd),
            ("2\r\nabc", 5, Refusal::ChunkEnd),
            ("2\r\nab\rx", 6, Refusal::ChunkEnd),
            ("0\r\n\n", 3, Refusal::Trailer),
            ("0\r\n fold: x\r\n\r\n", 3, Refusal::Trailer),
            ("0\r\n: x\r\n\r\n", 3, Refusal::Trailer),
            ("0\r\nname : x\r\n\r\n", 7, Refusal::Trailer),
            ("0\r\nno colon\r\n\r\n", 5, Refusal::Trailer),
            ("0\r\na: b\n\r\n", 7, Refusal::Trailer),
            ("0\r\na: \0\r\n\r\n", 6, Refusal::Trailer),
            ("0\r\na: b\rc\r\n", 8, Refusal::Trailer),
            ("0\r\n\rx", 4, Refusal::Trailer),
        ] {
            check(body.as_bytes(), used, Some(Err(refusal)));
        }
    }

    #[test]
    fn what_has_no_end_is_refused() {
        let extension = format!("1;{}", "x".repeat(20_000));
        check(
            extension.as_bytes(),
            1 + EXTENSION_BYTES_MAX,
            Some(Err(Refusal::ChunkExtensionsTooLarge)),
        );
        let spaces = format!("1{}", " ".repeat(20_000));
        check(
            spaces.as_bytes(),
            1 + EXTENSION_BYTES_MAX,
            Some(Err(Refusal::ChunkExtensionsTooLarge)),
        );
        let many = "1;x=0123456789\r\na\r\n".repeat(2_000);
        let end = Chunked::new().advance(many.as_bytes()).end;
        assert_eq!(end, Some(Err(Refusal::ChunkExtensionsTooLarge)));
        let trailer = format!("0\r\nx: {}", "y".repeat(20_000));
        check(
            trailer.as_bytes(),
            3 + TRAILER_BYTES_MAX,
            Some(Err(Refusal::TrailersTooLarge)),
        );
        let trailers = format!("0\r\n{}\r\n", "x:\r\n".repeat(97));
        check(
            trailers.as_bytes(),
            3 + 4 * 96,
            Some(Err(Refusal::TrailersTooLarge)),
        );
    }

    #[test]
    fn the_largest_size_is_skipped_without_overflow() {
        let mut machine = Chunked::new();
        let head = b"ffffffffffffffff\r\n";
        assert_eq!(
            machine.advance(head),
            Advance {
                used: head.len(),
                end: None
            }
        );
        assert_eq!(
            machine.advance(&[0; 100]),
            Advance {
                used: 100,
                end: None
            }
        );
        assert_eq!(machine.size, u64::MAX - 100);
    }
}
