//! Inputs for tests: the same numbers on every machine, and no dependency.

/// `len` numbers, roughly N(0, 1) and within ±6, that follow from `seed` alone.
///
/// Each is the sum of twelve uniform numbers minus 6 (mean 0, variance 1): only additions, so the bits do not depend on
/// a machine's `ln` or `cos`, and no short mantissas that would hide rounding.
pub fn pattern(len: usize, seed: u64) -> Vec<f64> {
    // The seed is mixed first: streams of neighbouring seeds would otherwise be shifted copies of each other.
    let mut state = mix(seed);
    (0..len).map(|_| (0..12).map(|_| uniform(&mut state)).sum::<f64>() - 6.0).collect()
}

/// ((31 i² + 17 i) mod 251 − 125) / 64 for i = 0 … len−1.
///
/// The period 251 is prime: no block of 2ᵏ elements looks like another, so swapped blocks show. Values lie within ±2 and
/// are multiples of 1/64, which `f32` holds exactly.
pub fn prime_pattern(len: usize) -> Vec<f64> {
    let value = |i: usize| {
        let i = i % 251;
        ((31 * i * i + 17 * i) % 251) as f64
    };
    (0..len).map(|i| (value(i) - 125.0) / 64.0).collect()
}

/// The next number of [0, 1), with 53 random bits.
fn uniform(state: &mut u64) -> f64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    (mix(*state) >> 11) as f64 / (1u64 << 53) as f64
}

/// The output function of SplitMix64 (Steele, Lea, Flood 2014).
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pattern_has_mean_zero_and_variance_one() {
        let n = 100_000;
        let v = pattern(n, 1);
        let mean = v.iter().sum::<f64>() / n as f64;
        let variance = v.iter().map(|a| a * a).sum::<f64>() / n as f64;
        // Five standard errors: 1/√n of the mean, √(2/n) of the variance.
        assert!(mean.abs() < 5.0 / (n as f64).sqrt(), "mean {mean}");
        assert!((variance - 1.0).abs() < 5.0 * (2.0 / n as f64).sqrt(), "variance {variance}");
    }

    #[test]
    fn pattern_follows_from_the_seed() {
        let v = pattern(100, 7);
        assert_eq!(v, pattern(100, 7));
        assert_eq!(v[..50], pattern(50, 7), "a prefix");
        let w = pattern(100, 8);
        assert!(v.iter().all(|a| !w.contains(a)), "seeds 7 and 8 share a number");
    }

    #[test]
    fn prime_pattern_has_its_period_and_fits_f32() {
        let v = prime_pattern(1000);
        assert_eq!(v[..749], v[251..]);
        assert_eq!(v[..3], [-125.0 / 64.0, (48.0 - 125.0) / 64.0, (158.0 - 125.0) / 64.0]);
        assert!(v.iter().all(|&a| f64::from(a as f32) == a && a.abs() <= 2.0));
        for block in (1..=7).map(|k| 1 << k) {
            assert_ne!(v[..block], v[block..2 * block], "neighbouring blocks of {block}");
        }
    }
}
