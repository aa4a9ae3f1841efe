//! Weight normalization, some rows of weights at a time.
//!
//! ```text
//! v̂ = v/‖v‖ = x̂/√n      x̂ and r = rstd as those of root mean square normalization with ε = 0
//! forward:           w = x̂·c                          c = gain/√n
//! backward, each row:
//!     first pass:    ρ = r·Σ dw·v / n                 mean(dw ⊙ x̂)
//!                    dgain += √n·ρ                    Σ dw·v̂
//!     second pass:   dv = dw·(c·r) − v·(c·r²·ρ)
//! ```
//!
//! The last line is (gain/‖v‖)·(dw − v̂·Σ dw·v̂). A row that had to be rescaled by 2^-e has v and r in units of the rescaled
//! row, and dv is multiplied by 2^-e.

use std::ops::Range;

use fearless_simd::{Simd, SimdBase};
use fearless_simd_macros::simd;

use crate::kernels::blocks::{blocks, joined, map, map_ahead, sums};
use crate::kernels::elementwise::scale_rows;
use crate::kernels::group::Group;
use crate::kernels::kept::{KeptRows, Row, Scale};
use crate::kernels::normalize::{Layer, Place, SavedRows};
use crate::number::{Number, Wide};
use crate::prefetch::Prefetch;
use crate::simd::{Tail, Vector, is_avx2, splat};

/// w of rows side by side in `v` and `w`; `factors` has c for each row, `layer` has neither gain nor bias.
///
/// `place`: that of the arrays of the whole call.
#[simd]
pub(crate) fn forward<S: Simd, T: Number>(
    simd: S,
    layer: &Layer<'_, T>,
    place: Place,
    factors: &[T],
    v: &[T],
    w: &mut [T],
    mut saved: Option<SavedRows<'_, T>>,
) {
    // As in `ahead`: AVX-512 does not gain by it.
    let asks = const { is_avx2::<S>() } && place == Place::Memory;
    let mut done = 0;
    // Four rows share the latencies of their reductions; narrow registers do not hold as many.
    if const { S::f32s::LEN >= 8 } {
        done = factors.len() / 4 * 4;
        groups::<S, T, 4>(simd, layer, asks, factors, v, w, &mut saved, 0..done);
    }
    groups::<S, T, 1>(simd, layer, asks, factors, v, w, &mut saved, done..factors.len());
}

/// `R` rows at a time; `R` divides their number. The rows that follow are asked for meanwhile, if this `asks`.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "a kernel's arrays")]
fn groups<S: Simd, T: Number, const R: usize>(
    simd: S,
    layer: &Layer<'_, T>,
    asks: bool,
    factors: &[T],
    v: &[T],
    w: &mut [T],
    saved: &mut Option<SavedRows<'_, T>>,
    rows: Range<usize>,
) {
    let &Layer { features, spread, .. } = layer;
    let tail = &Tail::new(simd, features.min(T::BLOCK));
    for first in rows.step_by(R) {
        let at = first * features..(first + R) * features;
        let next = if asks { Prefetch::these(&v[at.end..]) } else { Prefetch::NONE };
        let (v, w, factors) = (&v[at.clone()], &mut w[at], &factors[first..first + R]);
        let group = if features <= T::BLOCK {
            Group::<T, R>::of_blocks::<S, false>(simd, tail, v, splat(simd, T::zero()), spread)
        } else {
            Group::of_long_rows(simd, features, v, spread)
        };
        for (i, (v, w)) in v.chunks_exact(features).zip(w.chunks_exact_mut(features)).enumerate() {
            let (rstd, factor, zero) = (splat(simd, group.rstd[i]), splat(simd, factors[i]), splat(simd, T::zero()));
            map_ahead(
                simd,
                [v],
                [w],
                [next.skip(i * features)],
                // As a bias of 0 is added where rows are taken again: x̂ is never −0.
                #[inline(always)]
                |[v]| (v * rstd + zero) * factor,
            );
        }
        group.end(simd, layer, R, v, w, saved, first);
        if !group.safe {
            // They were taken again, without their factors.
            scale_rows(simd, factors, w);
        }
    }
}

/// dv of rows side by side in `v`, `dw` and `dv`; adds to `dgain`. `gain` and `dgain` have a number for each row, `layer` has
/// neither gain nor bias.
#[simd]
#[expect(clippy::too_many_arguments, reason = "a kernel's arrays")]
pub(crate) fn backward<S: Simd, T: Number>(
    simd: S,
    layer: &Layer<'_, T>,
    kept: KeptRows<'_, T>,
    gain: &[T],
    v: &[T],
    dw: &[T],
    dv: &mut [T],
    dgain: &mut [T],
) {
    let features = layer.features;
    let n = features as f64;
    let rows = v.chunks_exact(features).zip(dw.chunks_exact(features)).zip(dv.chunks_exact_mut(features));
    for (i, ((v, dw), dv)) in rows.enumerate() {
        let row = Row::rescaled(simd, layer, &kept, i, v);
        let mut sum = [T::Wide::default()];
        for at in blocks::<T>(features) {
            sum = joined(sum, dot(simd, &row, &v[at.clone()], &dw[at]));
        }
        let rstd: f64 = row.rstd.into();
        let mean = rstd * (sum[0].value() / n);
        dgain[i] += T::nearest(n.sqrt() * mean);
        let by_rstd = gain[i].into() / n.sqrt() * rstd;
        let factors = [T::nearest(by_rstd), T::nearest(by_rstd * rstd * mean)];
        for at in blocks::<T>(features) {
            write(simd, &row, row.scale(simd), factors, &v[at.clone()], &dw[at.clone()], &mut dv[at]);
        }
    }
}

/// Σ dw·v of a block.
#[simd]
fn dot<S: Simd, T: Number>(simd: S, row: &Row<T>, v: &[T], dw: &[T]) -> [T::Wide; 1] {
    if row.exponent != 0 {
        return row.with_rescaled(v, |row, v| dot(simd, row, v, dw));
    }
    sums::<S, T, 2, 1>(
        simd,
        [v, dw],
        [splat(simd, T::zero()); 2],
        #[inline(always)]
        |[v, dw]| [dw * v],
    )
}

/// dv of a block; `scale` is 2^-e.
#[simd]
fn write<S: Simd, T: Number>(
    simd: S,
    row: &Row<T>,
    scale: Scale<Vector<S, T>>,
    factors: [T; 2],
    v: &[T],
    dw: &[T],
    dv: &mut [T],
) {
    if row.exponent != 0 {
        return row.with_rescaled(v, |row, v| write(simd, row, scale, factors, v, dw, dv));
    }
    let (of_dw, of_v) = (splat(simd, factors[0]), splat(simd, factors[1]));
    map(
        simd,
        [v, dw],
        dv,
        #[inline(always)]
        |[v, dw]| scale.times(dw * of_dw - v * of_v),
    );
}
