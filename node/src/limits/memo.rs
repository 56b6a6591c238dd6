//! Digests of what was counted lately, by thread: requests of one caller come one after the other,
//! and to hash what they are counted by costs more than all else that a token takes.
//!
//! A table with a place for each, in which a later one takes the place of an earlier one: whoever
//! sends what falls on the same places has its digests made anew, and nothing else.
//!
//! What was hashed is not kept, for it may be a caller's key (a meter that counts by
//! `authorization`). It is known again by two SipHashes of it, with secrets that each thread makes
//! of random numbers: 128 bits that nobody outside can compute. That two values have the same is as
//! likely as that a guess of a key of 128 bits is right, and nobody can look for such a pair.

use std::cell::RefCell;
use std::hash::{BuildHasher, Hasher, RandomState};

use super::key::Digest;

/// How many a thread remembers.
const PLACES: usize = 512;

thread_local! {
    /// Made with the first one: most threads count nothing.
    static LATELY: RefCell<Option<Lately>> = const { RefCell::new(None) };
}

struct Lately {
    secrets: [RandomState; 2],
    places: Vec<Option<Remembered>>,
}

#[derive(Clone)]
struct Remembered {
    mark: [u64; 2],
    digest: Digest,
}

impl Lately {
    fn new() -> Self {
        Self {
            secrets: [RandomState::new(), RandomState::new()],
            places: vec![None; PLACES],
        }
    }

    /// What stands for these bytes.
    fn mark(&self, bytes: &[u8]) -> [u64; 2] {
        self.secrets.each_ref().map(|secret| {
            let mut hasher = secret.build_hasher();
            hasher.write(bytes);
            hasher.finish()
        })
    }
}

/// The digest of these bytes, as `make` makes it.
pub(super) fn digest(bytes: &[u8], make: impl FnOnce(&[u8]) -> Digest) -> Digest {
    LATELY.with_borrow_mut(|lately| {
        let lately = lately.get_or_insert_with(Lately::new);
        let mark = lately.mark(bytes);
        let place = mark[0] as usize % PLACES;
        let Some(place) = lately.places.get_mut(place) else {
            return make(bytes);
        };
        if let Some(known) = place.as_ref().filter(|known| known.mark == mark) {
            return known.digest;
        }
        let digest = make(bytes);
        *place = Some(Remembered { mark, digest });
        digest
    })
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
        assert_eq!(made, 3);
        let long = "x".repeat(192);
        check(&long, &mut made);
        check(&long, &mut made);
        check(&long[1..], &mut made);
        assert_eq!(made, 5);
    }

    #[test]
    fn what_stands_for_bytes_is_another_on_each_thread() {
        let there = std::thread::spawn(|| Lately::new().mark(b"a customer"));
        let there = there.join().unwrap();
        let lately = Lately::new();
        let here = lately.mark(b"a customer");
        assert_eq!(here, lately.mark(b"a customer"));
        assert_ne!(here[0], here[1]);
        assert_ne!(here, there);
        assert_ne!(lately.mark(b"\0a"), lately.mark(b"a"));
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
            before - few <= 32 && made - before <= 16,
            "{}",
            made - before
        );
    }
}
