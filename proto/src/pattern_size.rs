//! How much memory a compiled pattern takes, and how much of it this thread has made so far.
//!
//! Compiling is what costs when a configuration is judged: tens of milliseconds for a pattern of a
//! few bytes. What one change may compile is bounded by what was made since it began, patterns that
//! turned out to be faulty included: their sizes are in no sum of what is kept.

use std::cell::Cell;

use regex::{Regex, RegexBuilder};

/// Where the search for a pattern's size class begins; most patterns fit.
const SIZE_CLASS_MIN: usize = 4 * 1024;

thread_local! {
    static MADE_BYTES: Cell<usize> = const { Cell::new(0) };
}

/// Bytes of patterns that this thread has compiled since it began. Only differences mean anything.
pub fn made_bytes() -> usize {
    MADE_BYTES.get()
}

/// Compiles within the smallest size class that suffices, for the crate does not tell the size:
/// the pattern, and an upper bound of what it takes.
///
/// # Errors
/// It is no pattern, or a larger one than `bytes_max`.
pub fn compile(
    builder: &mut RegexBuilder,
    bytes_max: usize,
) -> Result<(Regex, usize), regex::Error> {
    let mut class = SIZE_CLASS_MIN.min(bytes_max);
    loop {
        let built = builder.size_limit(class).build();
        match built {
            Err(regex::Error::CompiledTooBig(_)) if class < bytes_max => {
                class = class.saturating_mul(2).min(bytes_max);
            }
            Err(error @ regex::Error::Syntax(_)) => return Err(error),
            built => {
                MADE_BYTES.set(MADE_BYTES.get().wrapping_add(class));
                return built.map(|regex| (regex, class));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_compiled_counts_whether_it_can_be_kept_or_not() {
        let made = |pattern: &str, bytes_max| {
            let before = made_bytes();
            let size = compile(&mut RegexBuilder::new(pattern), bytes_max).map(|(_, size)| size);
            (size.ok(), made_bytes() - before)
        };
        assert_eq!(made("a", 1 << 20), (Some(4096), 4096));
        assert_eq!(made(r"\w{100}", 64 * 1024), (None, 64 * 1024));
        assert_eq!(made("(", 1 << 20), (None, 0));
        let (size, counted) = made(r"\w{5}", 1 << 20);
        assert!(size.is_some_and(|size| size > 4096 && size == counted));
    }
}
