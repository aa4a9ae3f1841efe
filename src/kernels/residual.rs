//! A norm behind a sum, in both directions, some rows at a time: what one step leaves, the next finds in L2.
//!
//! ```text
//! forward:    sum = mask ⊙ x + residual         y = norm(sum)
//! backward:   dresidual = norm′(dy) + dsum      dx = mask ⊙ dresidual
//! ```
//!
//! An array that a call is made without is empty: the mask, and with it dx, or dsum.
//!
//! From memory, on AVX2, it is one row at a time, which stays in L1 from step to step, and each step asks for lines of what
//! another reads or writes, so that memory always has something to do:
//!
//! ```text
//! forward:    the sum            asks for y
//!             its moments                     x, mask and residual of the next row
//!             y                               the next sum
//! backward:   row sums           asks for dresidual and dsum
//!             dresidual                       sum and dy of the next row
//!             dx
//! ```
//!
//! On a Zen 3, rows of 512 and more features took 0.78 to 0.98 of the time so, shorter ones 0.8 to 1.05, and backward 0.88 to
//! 1.02 of that again since dsum is added in the pass that makes dresidual.
//!
//! Forward of longer rows takes a block at a time, as [`ahead`](super::ahead) does, which took 0.93 to 1 of the time:
//!
//! ```text
//! each block:     the sum of this block of the next row      asks for y
//!                 y, and the next row's moments                       the next block of x, mask and residual, and of its sum
//! ```

use std::ops::{Range, RangeInclusive};

use fearless_simd::Simd;
use fearless_simd_macros::simd;

use crate::kernels::ahead::write_and_sum;
use crate::kernels::backward::Group;
use crate::kernels::blocks::{blocks, map_ahead};
use crate::kernels::elementwise::{add_residual, add_to, multiply};
use crate::kernels::kept::KeptRows;
use crate::kernels::moments::{Moments, moments_of, near_of, partial_sums, row_moments};
use crate::kernels::normalize::{self, Lanes, Layer, Place, SavedRows, end_row};
use crate::kernels::passes::Columns;
use crate::kernels::short;
use crate::number::Number;
use crate::prefetch::{Prefetch, row_ahead};
use crate::simd::{Tail, is_avx2};

/// Bytes of one array that stay in L2 from step to step, beside those of four others. Fewer, that stay in L1, cost more: each
/// step waits at its end for what the next could do meanwhile.
const NEAR: usize = 128 * 1024;

/// [`NEAR`], where what the next step reads is asked for during this one, as in [`ahead`](super::ahead).
const ASKED_FOR: usize = 32 * 1024;

/// Vectors of rows from memory that AVX2 takes one by one: of shorter ones the reductions are a large part of the work, of longer
/// ones L1 does not hold what is asked for.
const FORWARD_ALONE: RangeInclusive<usize> = 5..=104;

/// The same for backward; the longest are those of one block.
const BACKWARD_ALONE: RangeInclusive<usize> = 4..=128;

/// Ranges of rows to take at once, whole groups of those that kernels like: not many more than `near` bytes.
fn some_rows<T: Number>(near: usize, rows: usize, features: usize) -> impl Iterator<Item = Range<usize>> {
    let near = near / size_of::<T>() / features;
    let step = if near >= 8 {
        near / 8 * 8
    } else if near >= 4 {
        4
    } else {
        near.max(1)
    };
    (0..rows).step_by(step).map(move |start| start..(start + step).min(rows))
}

/// The part of an array that may be absent.
fn part<T>(array: &[T], at: Range<usize>) -> &[T] {
    if array.is_empty() { array } else { &array[at] }
}

/// sum and y of rows side by side; `R` is the number of lanes.
#[simd]
pub(crate) fn forward<S: Simd, T: Number, const R: usize>(
    simd: S,
    layer: &Layer<'_, T>,
    place: Place,
    [x, mask, residual]: [&[T]; 3],
    [y, sum]: [&mut [T]; 2],
    mut saved: Option<SavedRows<'_, T>>,
) {
    let features = layer.features;
    let is_long = features > T::BLOCK;
    let alone = is_long || FORWARD_ALONE.contains(&features.div_ceil(T::LANES));
    if const { is_avx2::<S>() } && place == Place::Memory && alone {
        let rows = match (is_long, layer.spread.centred) {
            (false, true) => forward_rows::<S, T, true>,
            (false, false) => forward_rows::<S, T, false>,
            (true, true) => forward_long_rows::<S, T, true>,
            (true, false) => forward_long_rows::<S, T, false>,
        };
        return rows(simd, layer, ([x, mask, residual], [y, sum]), saved);
    }
    let asks = const { is_avx2::<S>() } && place != Place::Core;
    let near = if asks { ASKED_FOR } else { NEAR };
    let all = [x, mask, residual];
    for rows in some_rows::<T>(near, x.len() / features, features) {
        let prefetch = Prefetch::of_all(asks, all, rows.start * features);
        let at = rows.start * features..rows.end * features;
        let (sum, y) = (&mut sum[at.clone()], &mut y[at.clone()]);
        let (x, mask, residual) = (&x[at.clone()], part(mask, at.clone()), &residual[at]);
        if place == Place::Memory {
            // All lines are fetched at once: those of y would be waited for later, when nothing else is.
            add_residual(simd, x, mask, residual, [&mut *sum, &mut *y], prefetch);
        } else {
            add_residual(simd, x, mask, residual, [&mut *sum], prefetch);
        }
        let saved = saved.as_mut().map(
            #[inline(always)]
            |saved| saved.take_first(rows.len()),
        );
        // By now, wherever those of the call are.
        short::forward::<S, T, R>(simd, layer, Place::Core, sum, y, saved);
    }
}

/// [`forward`] of rows of one block from memory. `CENTRED`: as the spread of the layer.
#[simd]
#[inline(never)]
fn forward_rows<S: Simd, T: Number, const CENTRED: bool>(
    simd: S,
    layer: &Layer<'_, T>,
    ([x, mask, residual], [y, sum]): ([&[T]; 3], [&mut [T]; 2]),
    mut saved: Option<SavedRows<'_, T>>,
) {
    let &Layer { features, spread, .. } = layer;
    let tail = &Tail::new(simd, features);
    let affine = (layer.gain(0, features), layer.bias(0, features));
    let ahead = row_ahead::<T>(features);
    for row in 0..x.len() / features {
        let at = row * features..(row + 1) * features;
        let y = &mut y[at.clone()];
        let (sum, sum_behind) = sum[at.start..].split_at_mut(features);
        let places = [Prefetch::these(&*y), Prefetch::NONE, Prefetch::NONE];
        add_residual(simd, &x[at.clone()], part(mask, at.clone()), &residual[at.clone()], [&mut *sum], places);
        let sum = &*sum;
        let near = near_of(simd, tail, sum, spread);
        let following = Prefetch::all_from([x, mask, residual], at.start + ahead);
        let sums = partial_sums::<S, T, CENTRED, 3>(simd, tail, sum, near, following);
        let statistics = moments_of(simd, tail, sum, near, sums, spread).finish(spread);
        let lanes = [Lanes::new(simd, statistics.mean, statistics.low, statistics.rstd)];
        let places = [Prefetch::these(&*sum_behind).skip(ahead - features)];
        normalize::write::<S, T, 1, CENTRED, 1>(simd, tail, affine, &lanes, [sum], [&mut *y], places);
        end_row(simd, layer, &statistics, sum, y, &mut saved, row);
    }
}

/// [`forward`] of rows of several blocks from memory. `CENTRED`: as the spread of the layer.
#[simd]
#[inline(never)]
fn forward_long_rows<S: Simd, T: Number, const CENTRED: bool>(
    simd: S,
    layer: &Layer<'_, T>,
    ([x, mask, residual], [y, sum]): ([&[T]; 3], [&mut [T]; 2]),
    mut saved: Option<SavedRows<'_, T>>,
) {
    let &Layer { features, spread, .. } = layer;
    let all = [x, mask, residual];
    let (first, asked_for) = (0..features, Prefetch::of_all(true, all, 0));
    add_residual(
        simd,
        &x[first.clone()],
        part(mask, first.clone()),
        &residual[first.clone()],
        [&mut sum[first.clone()]],
        asked_for,
    );
    let mut statistics = row_moments(simd, spread, &sum[first]).finish(spread);
    for (row, y) in y.chunks_exact_mut(features).enumerate() {
        let (sum, next_sum) = sum[row * features..].split_at_mut(features);
        let lanes = Lanes::new(simd, statistics.mean, statistics.low, statistics.rstd);
        let mut moments = Moments::none();
        for at in blocks::<T>(features) {
            let tail = &Tail::new(simd, at.len());
            let affine = (layer.gain(at.start, at.len()), layer.bias(at.start, at.len()));
            let (sum, y) = (&sum[at.clone()], &mut y[at.clone()]);
            if next_sum.is_empty() {
                normalize::write::<S, T, 1, CENTRED, 0>(simd, tail, affine, &[lanes], [sum], [y], []);
                continue;
            }
            let (next, behind) = next_sum[at.start..].split_at_mut(at.len());
            let below = (row + 1) * features + at.start..(row + 1) * features + at.end;
            let [of_x, of_mask, of_residual] = Prefetch::all_from(all, below.end);
            let places = [Prefetch::these(&*y), Prefetch::NONE, Prefetch::NONE];
            let (x, mask, residual) = (&x[below.clone()], part(mask, below.clone()), &residual[below]);
            add_residual(simd, x, mask, residual, [&mut *next], places);
            let asked_for = [of_x, of_mask, of_residual, Prefetch::these(&*behind)];
            moments = moments
                .join(write_and_sum::<S, T, CENTRED, 4>(simd, tail, affine, &lanes, sum, y, next, spread, asked_for));
        }
        end_row(simd, layer, &statistics, sum, y, &mut saved, row);
        statistics = moments.finish(spread);
    }
}

/// dresidual and dx of rows side by side; adds their columns to `columns`. `R` is the number of lanes.
#[simd]
#[expect(clippy::too_many_arguments, reason = "a kernel's arrays")]
pub(crate) fn backward<S: Simd, T: Number, const R: usize>(
    simd: S,
    layer: &Layer<'_, T>,
    place: Place,
    kept: KeptRows<'_, T>,
    [sum, dy, dsum, mask]: [&[T]; 4],
    dresidual: &mut [T],
    dx: &mut [T],
    columns: &mut Columns<'_, T>,
) {
    let features = layer.features;
    let alone = place == Place::Memory && kept.are_plain() && BACKWARD_ALONE.contains(&features.div_ceil(T::LANES));
    if const { is_avx2::<S>() } && alone {
        let arrays = ([sum, dy, dsum, mask], [dresidual, dx]);
        if layer.spread.centred {
            backward_rows::<S, T, true>(simd, layer, &kept, arrays, columns);
        } else {
            backward_rows::<S, T, false>(simd, layer, &kept, arrays, columns);
        }
        return;
    }
    for rows in some_rows::<T>(NEAR, kept.mean.len(), features) {
        let at = rows.start * features..rows.end * features;
        let dresidual = &mut dresidual[at.clone()];
        let (sum, dy) = (&sum[at.clone()], &dy[at.clone()]);
        short::backward::<S, T, R>(simd, layer, place, kept.rows(rows), sum, dy, dresidual, columns, None);
        add_to(simd, dresidual, part(dsum, at.clone()));
        if !mask.is_empty() {
            multiply(simd, &mask[at.clone()], dresidual, &mut dx[at]);
        }
    }
}

/// [`backward`] of rows of one block from memory that need not be rescaled. `CENTRED`: as the spread of the layer.
#[simd]
#[inline(never)]
fn backward_rows<S: Simd, T: Number, const CENTRED: bool>(
    simd: S,
    layer: &Layer<'_, T>,
    kept: &KeptRows<'_, T>,
    ([sum, dy, dsum, mask], [dresidual, dx]): ([&[T]; 4], [&mut [T]; 2]),
    columns: &mut Columns<'_, T>,
) {
    let features = layer.features;
    let tail = &Tail::new(simd, features);
    let gain = layer.gain(0, features);
    let ahead = row_ahead::<T>(features);
    for row in 0..kept.mean.len() {
        let at = row * features..(row + 1) * features;
        let dresidual = &mut dresidual[at.clone()];
        let (sum_row, dy_row, dsum_row) = (&sum[at.clone()], &dy[at.clone()], part(dsum, at.clone()));
        let mut group = Group::<T, 1>::new(kept, row);
        let asked_for = [Prefetch::these(&*dresidual), Prefetch::these(dsum_row)];
        group.sum_blocks::<S, 1, CENTRED, 2>(simd, tail, layer, sum_row, dy_row, columns, asked_for);
        let [of_sum, of_dy] = Prefetch::all_from([sum, dy], at.start + ahead);
        if dsum.is_empty() {
            group.write::<S, CENTRED, 2>(simd, tail, gain, features, 0, sum_row, dy_row, dresidual, [of_sum, of_dy]);
        } else {
            let second = group.second(simd, 0);
            map_ahead(
                simd,
                [gain, sum_row, dy_row, dsum_row],
                [&mut *dresidual],
                [Prefetch::NONE, of_sum, of_dy, Prefetch::NONE],
                #[inline(always)]
                |[gain, sum, dy, dsum]| second.dx::<S, CENTRED>(gain, sum, dy) + dsum,
            );
        }
        if !mask.is_empty() {
            multiply(simd, &mask[at.clone()], dresidual, &mut dx[at]);
        }
    }
}
