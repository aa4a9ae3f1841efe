//! What is done to elements one by one, before or behind a kernel that takes rows.

use fearless_simd::Simd;
use fearless_simd_macros::simd;

use crate::kernels::blocks::{blocks, map, map_ahead, update};
use crate::kernels::normalize::Layer;
use crate::number::Number;
use crate::prefetch::Prefetch;
use crate::simd::splat;

/// Each of `sums` = mask ⊙ x + residual; without a mask where that is empty. What follows in these is asked for meanwhile.
#[simd]
pub(crate) fn add_residual<S: Simd, T: Number, const B: usize>(
    simd: S,
    x: &[T],
    mask: &[T],
    residual: &[T],
    sums: [&mut [T]; B],
    [of_x, of_mask, of_residual]: [Prefetch<'_, T>; 3],
) {
    if mask.is_empty() {
        map_ahead(
            simd,
            [x, residual],
            sums,
            [of_x, of_residual],
            #[inline(always)]
            |[x, residual]| x + residual,
        );
    } else {
        map_ahead(
            simd,
            [x, mask, residual],
            sums,
            [of_x, of_mask, of_residual],
            #[inline(always)]
            |[x, mask, residual]| mask * x + residual,
        );
    }
}

/// to += terms; nothing where these are empty.
#[simd]
pub(crate) fn add_to<S: Simd, T: Number>(simd: S, to: &mut [T], terms: &[T]) {
    if !terms.is_empty() {
        update(
            simd,
            to,
            [terms],
            #[inline(always)]
            |to, [term]| to + term,
        );
    }
}

/// to += 0: what is −0 becomes 0.
#[simd]
pub(crate) fn add_zero<S: Simd, T: Number>(simd: S, to: &mut [T]) {
    update(
        simd,
        to,
        [],
        #[inline(always)]
        |to, []| to + splat(simd, T::zero()),
    );
}

/// product = a ⊙ b
#[simd]
pub(crate) fn multiply<S: Simd, T: Number>(simd: S, a: &[T], b: &[T], product: &mut [T]) {
    map(
        simd,
        [a, b],
        product,
        #[inline(always)]
        |[a, b]| a * b,
    );
}

/// x̂ = (y − bias)/gain
#[simd]
pub(crate) fn normalized<S: Simd, T: Number>(simd: S, layer: &Layer<'_, T>, y: &[T], normalized: &mut [T]) {
    let features = layer.features;
    for (y, normalized) in y.chunks_exact(features).zip(normalized.chunks_exact_mut(features)) {
        for at in blocks::<T>(features) {
            let (gain, bias) = (layer.gain(at.start, at.len()), layer.bias(at.start, at.len()));
            map(
                simd,
                [&y[at.clone()], gain, bias],
                &mut normalized[at],
                #[inline(always)]
                |[y, gain, bias]| (y - bias) / gain,
            );
        }
    }
}

/// Each row times its factor.
#[simd]
pub(crate) fn scale_rows<S: Simd, T: Number>(simd: S, factors: &[T], rows: &mut [T]) {
    let features = rows.len() / factors.len();
    for (row, &factor) in rows.chunks_exact_mut(features).zip(factors) {
        let factor = splat(simd, factor);
        update(
            simd,
            row,
            [],
            #[inline(always)]
            |x, []| x * factor,
        );
    }
}
