//! SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, OOPSLA 2014).
//! Not for secrets.

/// What its state grows by from number to number.
pub const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

/// Its finisher: spreads a number over 64 bits, another one for each.
#[inline]
pub const fn finish(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The number that comes after a state.
#[inline]
pub const fn after(state: u64) -> u64 {
    finish(state.wrapping_add(GAMMA))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_the_reference() {
        // The first of the reference implementation for the seed 0.
        assert_eq!(after(0), 0xe220_a839_7b1d_cdaf);
        assert_eq!(after(GAMMA), 0x6e78_9e6a_a1b9_65f4);
    }
}
