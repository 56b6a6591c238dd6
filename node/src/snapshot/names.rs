//! What proxies are called, in a map of which copies share the parts that neither changes: a
//! change of one proxy among many thousands costs the parts that its names are in.

use std::collections::HashMap;
use std::sync::Arc;

/// Parts of the map; a power of two.
const PARTS: usize = 256;

type Part<T> = HashMap<Box<str>, T>;

/// Names, each with what it stands for. A copy is cheap, and apart from what it is a copy of.
#[derive(Clone, Debug)]
pub struct Names<T> {
    parts: Box<[Arc<Part<T>>]>,
}

impl<T> Default for Names<T> {
    fn default() -> Self {
        let none = Arc::new(Part::new());
        Self {
            parts: vec![none; PARTS].into(),
        }
    }
}

impl<T> Names<T> {
    /// What a name stands for.
    pub fn get(&self, name: &str) -> Option<&T> {
        self.parts.get(part_of(name))?.get(name)
    }

    /// How many names there are.
    pub fn len(&self) -> usize {
        self.parts.iter().map(|part| part.len()).sum()
    }

    /// Whether there is no name.
    pub fn is_empty(&self) -> bool {
        self.parts.iter().all(|part| part.is_empty())
    }
}

impl<T: Clone> Names<T> {
    /// Lets a name stand for something, whatever it stood for before.
    pub fn insert(&mut self, name: Box<str>, what: T) {
        if let Some(part) = self.parts.get_mut(part_of(&name)) {
            Arc::make_mut(part).insert(name, what);
        }
    }

    /// Forgets a name if it stands for something that `is` the right one.
    pub fn remove_if(&mut self, name: &str, is: impl FnOnce(&T) -> bool) {
        let Some(part) = self.parts.get_mut(part_of(name)) else {
            return;
        };
        if part.get(name).is_some_and(is) {
            Arc::make_mut(part).remove(name);
        }
    }
}

/// The part that a name is in. Names begin alike, so that their last bytes tell them apart; who can
/// choose them can make parts uneven, which costs changes a little more and look-ups nothing.
fn part_of(name: &str) -> usize {
    let last = name.as_bytes().iter().rev().take(8);
    let hash = last.fold(0u32, |hash, byte| {
        (hash.rotate_left(5) ^ u32::from(*byte)).wrapping_mul(0x9E37_79B9)
    });
    (hash >> (u32::BITS - PARTS.ilog2())) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_are_apart_and_share_what_neither_changed() {
        let mut names = Names::default();
        for n in 0..10_000 {
            names.insert(format!("acme.proxy-{n}").into(), n);
        }
        assert_eq!((names.len(), names.is_empty()), (10_000, false));
        let largest = names.parts.iter().map(|part| part.len()).max();
        assert!(largest.unwrap() < 4 * 10_000 / PARTS, "{largest:?}");

        let mut copy = names.clone();
        copy.insert("acme.proxy-7".into(), 77);
        copy.remove_if("acme.proxy-8", |n| *n == 8);
        copy.remove_if("acme.proxy-9", |n| *n == 8);
        copy.remove_if("nobody", |_| true);
        let of =
            |names: &Names<i32>| [7, 8, 9].map(|n| names.get(&format!("acme.proxy-{n}")).copied());
        assert_eq!(of(&names), [Some(7), Some(8), Some(9)]);
        assert_eq!(of(&copy), [Some(77), None, Some(9)]);
        let parts = names.parts.iter().zip(&copy.parts);
        let changed = parts
            .filter(|(one, other)| !Arc::ptr_eq(one, other))
            .count();
        assert!((1..=2).contains(&changed), "{changed}");
    }
}
