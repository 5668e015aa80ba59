//! Reproducible random numbers: the same on every machine and in every version of the program.

/// SplitMix64 (Steele, Lea and Flood 2014).
pub(super) struct Rng(u64);

impl Rng {
    /// A stream that depends on all of `parts`.
    pub(super) fn new(parts: &[u64]) -> Self {
        let mut rng = Self(0);
        for part in parts {
            rng.0 = rng.next() ^ part;
        }
        rng
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`, which is not 0. The bias is below `n / 2^64`.
    pub(super) fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.next()) * n as u128) >> 64) as usize
    }

    /// Puts `items` into random order (Fisher and Yates).
    pub(super) fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stream_is_splitmix64() {
        // First outputs of the reference implementation with state 1234567.
        let mut rng = Rng(1_234_567);
        assert_eq!(rng.next(), 6_457_827_717_110_365_317);
        assert_eq!(rng.next(), 3_203_168_211_198_807_973);
        assert_ne!(Rng::new(&[1, 2]).next(), Rng::new(&[2, 1]).next());
    }

    #[test]
    fn orders_and_numbers_are_even() {
        let mut rng = Rng::new(&[5]);
        let mut counts = [[0u32; 4]; 4];
        for _ in 0..4000 {
            let mut items = [0, 1, 2, 3];
            rng.shuffle(&mut items);
            for (place, item) in items.iter().enumerate() {
                counts[place][*item] += 1;
            }
        }
        // 1000 expected, standard deviation 27.
        assert!(
            counts
                .as_flattened()
                .iter()
                .all(|c| (860..1140).contains(c)),
            "{counts:?}"
        );
    }
}
