//! Rows whose squares overflow or underflow: their moments are those of the row times a power of two.
//!
//! ```text
//! e    = ⌊log₂ max|x|⌋, or half of ⌊log₂ ε⌋ (towards 0) if that is larger      x′ = x · 2^-e
//! μ′, r′ from x′ with ε′ = ε · 2^-2e     x̂ = (x − μ)·r = (x′ − μ′)·r′
//! dx   = dx′ · 2^-e                      because r = r′ · 2^-e
//! ```
//!
//! Multiplying by a power of two rounds nothing, so a row that needs this gives the same bits as the same row at
//! a scale that does not. Rows like that are rare: they are found after their sums, and pay for it themselves.

use fearless_simd::Simd;
use fearless_simd_macros::simd;
use num_traits::Float;

use crate::kernels::moments::{Moments, Spread, Statistics, block_moments};
use crate::number::{LARGEST_BLOCK, Number, times_power_of_two};

/// A row times 2^-exponent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rescaled<T> {
    pub(crate) exponent: i32,
    /// In units of the rescaled row.
    pub(crate) statistics: Statistics<T>,
}

impl<T: Number> Rescaled<T> {
    /// Mean and rstd in the row's own units, as far as they are numbers there.
    pub(crate) fn in_units_of_row(&self) -> Statistics<T> {
        let Statistics { mean, low, rstd, safe } = self.statistics;
        Statistics {
            mean: times_power_of_two(mean, self.exponent),
            low: times_power_of_two(low, self.exponent),
            rstd: times_power_of_two(rstd, -self.exponent),
            safe,
        }
    }
}

/// The largest |x|, or nothing if an element is infinite or NaN.
pub(crate) fn largest<T: Number>(row: impl Iterator<Item = T>) -> Option<T> {
    let mut largest = T::zero();
    for x in row {
        if !x.is_finite() {
            return None;
        }
        largest = if x.abs() > largest { x.abs() } else { largest };
    }
    Some(largest)
}

/// ⌊log₂ x⌋ of a positive number.
fn floor_log2(x: impl Float) -> i32 {
    let (mantissa, exponent, _) = x.integer_decode();
    i32::from(exponent) + mantissa.ilog2() as i32
}

/// e of what has this largest |x|, which is not 0.
pub(crate) fn exponent_of<T: Number>(largest: T, spread: Spread) -> i32 {
    let exponent = floor_log2(largest);
    if spread.eps == 0.0 { exponent } else { exponent.max(floor_log2(spread.eps) / 2) }
}

/// Fills `out` with `x` · 2^-`exponent`.
pub(crate) fn rescale<T: Number>(x: &[T], exponent: i32, out: &mut [T]) {
    for (out, &x) in out.iter_mut().zip(x) {
        *out = times_power_of_two(x, -exponent);
    }
}

/// The statistics of a row of any length and scale: NaN if one of its elements is not finite.
#[simd]
#[cold]
pub(crate) fn rescued<S: Simd, T: Number>(simd: S, row: &[T], spread: Spread) -> Rescaled<T> {
    let Some(largest) = largest(row.iter().copied()) else {
        let nan = T::nan();
        return Rescaled { exponent: 0, statistics: Statistics { mean: nan, low: nan, rstd: nan, safe: true } };
    };
    if largest == T::zero() || spread.centred && row.iter().all(|&x| x == row[0]) {
        // In its own units: in others ε would leave the range of numbers. About 0, the mean is 0, not −0: kernels leave it out.
        let mean = if spread.centred { row[0] } else { T::zero() };
        return Rescaled { exponent: 0, statistics: Statistics::constant(mean, spread) };
    }
    rescued_at(simd, row, spread, exponent_of(largest, spread))
}

/// The statistics of a row whose exponent is known.
#[simd]
#[cold]
pub(crate) fn rescued_at<S: Simd, T: Number>(simd: S, row: &[T], spread: Spread, exponent: i32) -> Rescaled<T> {
    let mut scaled = [T::zero(); LARGEST_BLOCK];
    let mut moments = Moments::none();
    for block in row.chunks(T::BLOCK) {
        let scaled = &mut scaled[..block.len()];
        rescale(block, exponent, scaled);
        moments = moments.join(block_moments(simd, spread, scaled));
    }
    Rescaled { exponent, statistics: moments.finish(spread.rescaled(exponent)) }
}
