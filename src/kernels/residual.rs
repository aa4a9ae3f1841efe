//! A norm behind a sum, in both directions, some rows at a time: what one step leaves, the next finds in L2.
//!
//! ```text
//! forward:    sum = mask ⊙ x + residual         y = norm(sum)
//! backward:   dresidual = norm′(dy) + dsum      dx = mask ⊙ dresidual
//! ```
//!
//! An array that a call is made without is empty: the mask, and with it dx, or dsum.

use std::ops::Range;

use fearless_simd::Simd;
use fearless_simd_macros::simd;

use crate::kernels::elementwise::{add_residual, add_to, multiply};
use crate::kernels::kept::KeptRows;
use crate::kernels::normalize::{Layer, Place, SavedRows};
use crate::kernels::passes::Columns;
use crate::kernels::short;
use crate::number::Number;
use crate::simd::{Prefetch, is_avx2};

/// Bytes of one array that stay in L2 from step to step, beside those of four others. Fewer, that stay in L1, cost more: each
/// step waits at its end for what the next could do meanwhile.
const NEAR: usize = 128 * 1024;

/// [`NEAR`], where what the next step reads is asked for during this one, as in [`ahead`](super::ahead).
const ASKED_FOR: usize = 32 * 1024;

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
