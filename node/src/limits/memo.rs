//! Digests of what was counted lately, by thread: requests of one caller come one after the other,
//! and to hash what they are counted by costs more than all else that a token takes.
//!
//! A table with a place for each, in which a later one takes the place of an earlier one: whoever
//! sends what falls on the same places has its digests made anew, and nothing else.

use std::cell::RefCell;

use super::key::Digest;

/// How many a thread remembers.
const PLACES: usize = 512;
/// What is longer is not remembered.
const BYTES_MAX: usize = 96;

thread_local! {
    /// Made with the first one: most threads count nothing.
    static LATELY: RefCell<Vec<Remembered>> = const { RefCell::new(Vec::new()) };
}

#[derive(Clone)]
struct Remembered {
    bytes: [u8; BYTES_MAX],
    used: usize,
    digest: Digest,
}

impl Remembered {
    const NOTHING: Self = Self {
        bytes: [0; BYTES_MAX],
        used: 0,
        digest: [0; 16],
    };

    fn is_of(&self, bytes: &[u8]) -> bool {
        self.used == bytes.len() && self.bytes.get(..self.used) == Some(bytes)
    }
}

/// The digest of these bytes, as `make` makes it.
pub(super) fn digest(bytes: &[u8], make: impl FnOnce(&[u8]) -> Digest) -> Digest {
    if bytes.is_empty() || bytes.len() > BYTES_MAX {
        return make(bytes);
    }
    LATELY.with_borrow_mut(|lately| {
        if lately.is_empty() {
            lately.resize(PLACES, Remembered::NOTHING);
        }
        let Some(place) = lately.get_mut(place(bytes)) else {
            return make(bytes);
        };
        if !place.is_of(bytes) {
            place.digest = make(bytes);
            place.used = bytes.len();
            if let Some(room) = place.bytes.get_mut(..bytes.len()) {
                room.copy_from_slice(bytes);
            }
        }
        place.digest
    })
}

fn place(bytes: &[u8]) -> usize {
    // Odd, and as irregular as the golden ratio.
    const MIX: u64 = 0x9e37_79b9_7f4a_7c15;
    let (words, rest) = bytes.as_chunks::<8>();
    let mix = |hash: u64, word: u64| {
        let mixed = (hash ^ word).wrapping_mul(MIX);
        mixed ^ (mixed >> 32)
    };
    let words = words.iter().map(|word| u64::from_le_bytes(*word));
    let hash = words.fold(bytes.len() as u64, mix);
    let rest = rest
        .iter()
        .fold(0, |word, byte| word << 8 | u64::from(*byte));
    mix(hash, rest) as usize % PLACES
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Not the digest of anything else, and counted.
    fn check(text: &str, made: &mut usize) {
        let make = |bytes: &[u8]| {
            *made += 1;
            let mut digest = [0; 16];
            let hash = blake3::hash(bytes);
            digest.copy_from_slice(&hash.as_bytes()[..16]);
            digest
        };
        let told = digest(text.as_bytes(), make);
        assert_eq!(told[..], blake3::hash(text.as_bytes()).as_bytes()[..16]);
    }

    #[test]
    fn what_is_remembered_is_the_digest_of_these_bytes() {
        let mut made = 0;
        check("a customer", &mut made);
        check("a customer", &mut made);
        assert_eq!(made, 1);
        check("a customer ", &mut made);
        check("", &mut made);
        check("", &mut made);
        assert_eq!(made, 4, "nothing is not remembered");
        let long = "x".repeat(BYTES_MAX + 1);
        check(&long, &mut made);
        check(&long, &mut made);
        check(&long[1..], &mut made);
        check(&long[1..], &mut made);
        assert_eq!(made, 7);
    }

    #[test]
    fn of_more_than_there_are_places_each_has_its_own() {
        let mut made = 0;
        let of = |n: usize| format!("mtr_01m8dkpjg4eksbvcjtwq1z7tb1\u{1}{n}");
        for _ in 0..2 {
            (0..4 * PLACES).for_each(|n| check(&of(n), &mut made));
        }
        assert!(made > 4 * PLACES);
        let few = made;
        (0..32).for_each(|n| check(&of(n), &mut made));
        let before = made;
        (0..32).for_each(|n| check(&of(n), &mut made));
        assert!(
            before - few <= 32 && made - before <= 8,
            "{}",
            made - before
        );
    }
}
