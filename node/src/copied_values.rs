//! Field values on their way between the two versions of the `http` crate, ours and actix-web's.
//!
//! Neither gives its bytes away, so they are copied: all of one head into one buffer, of which each
//! value is a part. One allocation instead of one for each field, and copies of the head later on
//! (such as the one that a replay needs) only count references.

use bytes::{Bytes, BytesMut};

/// The values of one head, in their order.
pub struct CopiedValues(Bytes);

impl CopiedValues {
    /// Copies them; `values` is asked for them twice, first for their lengths.
    pub fn of<'v, I: Iterator<Item = &'v [u8]>>(values: impl Fn() -> I) -> Self {
        let mut buffer = BytesMut::with_capacity(values().map(<[u8]>::len).sum());
        values().for_each(|value| buffer.extend_from_slice(value));
        Self(buffer.freeze())
    }

    /// The next value, which has this length in bytes.
    pub fn next(&mut self, length: usize) -> Bytes {
        self.0.split_to(length.min(self.0.len()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_value_is_what_was_copied() {
        let values: [&[u8]; 4] = [b"one", b"", b"\xff two", b"3"];
        let mut copied = CopiedValues::of(|| values.into_iter());
        for value in values {
            assert_eq!(copied.next(value.len()), value);
        }
        assert_eq!(copied.next(1), "", "nothing is made up");
    }
}
