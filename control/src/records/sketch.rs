//! Durations as a sketch: counts in buckets that grow with the duration, so that quantiles of any
//! sum of sketches come out within 2 % of the true ones. Pure, and integers only: two controls
//! that saw the same records have the same sketch.

use std::collections::BTreeMap;

/// Binary digits behind the leading one that tell buckets apart: 32 buckets for each doubling, so
/// that a bucket's middle is at most a 64th off.
const DIGITS: u32 = 5;
const BUCKETS_PER_DOUBLING: u64 = 1 << DIGITS;

/// Counts of durations in microseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sketch {
    counts: BTreeMap<u16, u64>,
}

impl Sketch {
    /// Counts one duration.
    pub fn add(&mut self, us: u64) {
        *self.counts.entry(bucket(us)).or_default() += 1;
    }

    /// From counts by the number of a bucket.
    pub(super) fn of_counts(counts: impl IntoIterator<Item = (u16, u64)>) -> Self {
        Self {
            counts: counts.into_iter().collect(),
        }
    }

    /// Counts all that another has counted.
    pub fn merge(&mut self, other: &Self) {
        for (bucket, count) in &other.counts {
            let mine = self.counts.entry(*bucket).or_default();
            *mine = mine.saturating_add(*count);
        }
    }

    /// The duration below which this share of all lies, in microseconds; `None` of nothing.
    pub fn quantile(&self, share: f64) -> Option<u64> {
        let count = self.counts.values().copied().fold(0, u64::saturating_add);
        let rank = ((count as f64 * share).ceil() as u64).max(1);
        let mut seen = 0u64;
        self.counts.iter().find_map(|(bucket, count)| {
            seen = seen.saturating_add(*count);
            (seen >= rank).then(|| middle(*bucket))
        })
    }

    /// Appends it to `out`.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        put(out, self.counts.len() as u64);
        let mut before = 0;
        for (bucket, count) in &self.counts {
            put(out, u64::from(bucket - before));
            put(out, *count);
            before = *bucket;
        }
    }

    /// Takes it from the beginning of `rest`; `None` where it is damaged.
    pub(super) fn decode(rest: &mut &[u8]) -> Option<Self> {
        let (mut counts, mut bucket) = (BTreeMap::new(), 0u16);
        for _ in 0..take(rest)? {
            bucket = bucket.checked_add(u16::try_from(take(rest)?).ok()?)?;
            let count: &mut u64 = counts.entry(bucket).or_default();
            *count = count.saturating_add(take(rest)?);
        }
        Some(Self { counts })
    }
}

/// The number of the bucket in which a duration lies: a larger one for a longer duration.
pub(super) fn bucket(us: u64) -> u16 {
    if us < BUCKETS_PER_DOUBLING {
        return us as u16;
    }
    let shift = us.ilog2() - DIGITS;
    // At most 59 doublings of 32.
    (u64::from(shift) * BUCKETS_PER_DOUBLING + (us >> shift)) as u16
}

fn middle(bucket: u16) -> u64 {
    let bucket = u64::from(bucket);
    if bucket < BUCKETS_PER_DOUBLING {
        return bucket;
    }
    let shift = bucket / BUCKETS_PER_DOUBLING - 1;
    let first = bucket % BUCKETS_PER_DOUBLING + BUCKETS_PER_DOUBLING;
    // A damaged bucket is past all that fits.
    let scaled = |n: u64| n.checked_shl(shift as u32).unwrap_or(u64::MAX);
    scaled(first).saturating_add(scaled(1) / 2)
}

/// Appends a number, 7 bits to a byte, the lowest first.
pub(super) fn put(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// Takes a number from the beginning of `rest`.
pub(super) fn take(rest: &mut &[u8]) -> Option<u64> {
    let mut number = 0u64;
    for shift in (0..64).step_by(7) {
        let (byte, after) = rest.split_first()?;
        *rest = after;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_holds_what_its_middle_stands_for() {
        for us in (0..100_000).chain([1 << 40, u64::MAX / 2, u64::MAX]) {
            let found = middle(bucket(us));
            assert!(found.abs_diff(us) <= us / 50, "{us}: {found}");
        }
    }

    #[test]
    fn quantiles_of_merged_sketches_are_those_of_the_whole() {
        let (mut odd, mut even, mut whole) = <(Sketch, Sketch, Sketch)>::default();
        for us in 1..=10_000u64 {
            whole.add(us);
            if us % 2 == 0 {
                even.add(us)
            } else {
                odd.add(us)
            }
        }
        odd.merge(&even);
        assert_eq!(odd, whole);
        for (share, true_us) in [(0.5, 5_000), (0.9, 9_000), (0.99, 9_900)] {
            let found = whole.quantile(share).unwrap();
            assert!(found.abs_diff(true_us) <= true_us / 50, "{share}: {found}");
        }
        assert_eq!(Sketch::default().quantile(0.5), None);
    }

    proptest::proptest! {
        #[test]
        fn it_comes_back_from_its_bytes(durations: Vec<u64>, cut in 1usize..4) {
            let mut sketch = Sketch::default();
            durations.iter().for_each(|us| sketch.add(*us));
            let mut bytes = Vec::new();
            sketch.encode(&mut bytes);
            let mut rest = &bytes[..];
            proptest::prop_assert_eq!(Sketch::decode(&mut rest).unwrap(), sketch);
            proptest::prop_assert!(rest.is_empty());
            let mut short = &bytes[..bytes.len().saturating_sub(cut)];
            proptest::prop_assert_eq!(Sketch::decode(&mut short), None);
        }

        #[test]
        fn any_bytes_are_a_sketch_or_none(bytes: Vec<u8>) {
            if let Some(sketch) = Sketch::decode(&mut &bytes[..]) {
                let _ = sketch.quantile(0.5);
            }
        }
    }
}
