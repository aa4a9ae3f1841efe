//! y of rows of one block where memory sets the pace: each is written before the next is read.
//!
//! Memory likes its lines in order, and only so many rows can be taken together before their y, waiting for its lines, fills
//! what the processor has for stores. So statistics are waited for row by row, or pair by pair where rows are short, and there
//! is little beside the passes: the processor looks only so many instructions ahead for the next row's loads. The kernel of
//! [`normalize`](super::normalize), which takes any number of rows together, has a tenth more instructions a row of 256
//! numbers, and took 1.1 to 1.2 times as long. The equations and the order of additions are the same.

use fearless_simd::{Simd, SimdBase};
use fearless_simd_macros::simd;

use crate::kernels::group::near_means_of;
use crate::kernels::moments::{Moments, Statistics, partial_sums};
use crate::kernels::normalize::{Lanes, Layer, SavedRows, end_row, write};
use crate::number::Number;
use crate::prefetch::{PAGE, ask_for_page};
use crate::simd::{Tail, splat, tree};

/// Vectors of the longest rows that are taken in pairs.
const PAIRED: usize = 18;

/// Normalizes rows of one block, side by side in `x` and `y`.
#[simd]
pub(crate) fn forward<S: Simd, T: Number>(
    simd: S,
    layer: &Layer<'_, T>,
    x: &[T],
    y: &mut [T],
    saved: &mut Option<SavedRows<'_, T>>,
) {
    if layer.spread.centred {
        all_rows::<S, T, true>(simd, layer, x, y, saved);
    } else {
        all_rows::<S, T, false>(simd, layer, x, y, saved);
    }
}

/// [`forward`]. `CENTRED`: as the spread of the layer.
#[inline(always)]
fn all_rows<S: Simd, T: Number, const CENTRED: bool>(
    simd: S,
    layer: &Layer<'_, T>,
    x: &[T],
    y: &mut [T],
    saved: &mut Option<SavedRows<'_, T>>,
) {
    let paired = layer.features <= PAIRED * T::LANES;
    let done = if paired { rows::<S, T, 2, CENTRED>(simd, layer, x, y, saved, 0) } else { 0 };
    rows::<S, T, 1, CENTRED>(simd, layer, x, y, saved, done);
}

/// The rows from `first` on, `R` at a time as long as there are as many. Returns the row after the last.
#[simd]
#[inline(never)]
fn rows<S: Simd, T: Number, const R: usize, const CENTRED: bool>(
    simd: S,
    layer: &Layer<'_, T>,
    x: &[T],
    y: &mut [T],
    saved: &mut Option<SavedRows<'_, T>>,
    mut first: usize,
) -> usize {
    let &Layer { features, spread, .. } = layer;
    let tail = &Tail::new(simd, features);
    let affine = (layer.gain(0, features), layer.bias(0, features));
    let (len, page) = (R * features, PAGE / size_of::<T>());
    let (mut inputs, mut outputs) = (&x[first * features..], &mut y[first * features..]);
    while let (Some(x), Some(y)) = (inputs.split_off(..len), outputs.split_off_mut(..len)) {
        let at = |r: usize| r * features..(r + 1) * features;
        let near = near_means_of::<S, T, R>(simd, tail, x, spread);
        let mut sums = [[splat(simd, T::zero()); R]; 2];
        for r in 0..R {
            [sums[0][r], sums[1][r]] = partial_sums::<S, T, CENTRED, 0>(simd, tail, &x[at(r)], near.as_slice()[r], []);
        }
        // In this order, and without a loop for the short rows, most of which need no second page.
        ask_for_page(outputs, 0..len.min(page));
        ask_for_page(inputs, 0..len.min(page));
        if len > page {
            ask_for_page(outputs, page..len);
            ask_for_page(inputs, page..len);
        }
        // One tree for all.
        let trees = tree(simd, sums.as_flattened_mut());
        let (sums, squares) = trees.as_slice().split_at(R);
        let mut statistics = [Statistics::none(); R];
        for r in 0..R {
            let moments = if CENTRED {
                let moments = Moments::of_block(features as f64, near.as_slice()[r], sums[r], squares[r]);
                moments.or_once_more(simd, tail, &x[at(r)])
            } else {
                Moments::of_block(features as f64, T::zero(), T::zero(), squares[r])
            };
            statistics[r] = moments.finish(spread);
        }
        for r in 0..R {
            let lanes = Lanes::new(simd, statistics[r].mean, statistics[r].low, statistics[r].rstd);
            write::<S, T, 1, CENTRED, 0>(simd, tail, affine, &[lanes], [&x[at(r)]], [&mut y[at(r)]], []);
        }
        for r in 0..R {
            end_row(simd, layer, &statistics[r], &x[at(r)], &mut y[at(r)], saved, first + r);
        }
        first += R;
    }
    first
}

#[cfg(test)]
mod tests {
    use fearless_simd::dispatch;

    use super::*;
    use crate::kernels::check::check_bits;
    use crate::simd::{available, is_avx512};

    #[simd]
    fn run<S: Simd, T: Number>(
        simd: S,
        layer: &Layer<'_, T>,
        x: &[T],
        y: &mut [T],
        saved: &mut Option<SavedRows<'_, T>>,
    ) -> bool {
        // Nowhere else does it run.
        let runs = const { is_avx512::<S>() } && layer.features <= T::BLOCK;
        if runs {
            forward(simd, layer, x, y, saved);
        }
        runs
    }

    #[test]
    fn bits_are_those_of_rows_taken_together() {
        for level in available() {
            check_bits::<f32>(level, |layer, x, y, saved| dispatch!(level, simd => run(simd, layer, x, y, saved)));
            check_bits::<f64>(level, |layer, x, y, saved| dispatch!(level, simd => run(simd, layer, x, y, saved)));
        }
    }
}
