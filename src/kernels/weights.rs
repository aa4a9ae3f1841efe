//! Backward of weight normalization, a row of weights at a time.
//!
//! ```text
//! v̂ = v/‖v‖ = x̂/√n      x̂ and r = rstd as those of root mean square normalization with ε = 0
//! each row:
//!     first pass:    ρ = r·Σ dw·v / n                 mean(dw ⊙ x̂)
//!                    dgain += √n·ρ                    Σ dw·v̂
//!     second pass:   dv = dw·(c·r) − v·(c·r²·ρ)       c = gain/√n
//! ```
//!
//! The last line is (gain/‖v‖)·(dw − v̂·Σ dw·v̂). A row that had to be rescaled by 2^-e has v and r in units of the rescaled
//! row, and dv is multiplied by 2^-e.

use fearless_simd::Simd;
use fearless_simd_macros::simd;

use crate::kernels::blocks::{blocks, joined, map, sums};
use crate::kernels::kept::{KeptRows, Row, Scale};
use crate::kernels::normalize::Layer;
use crate::number::{Number, Wide};
use crate::simd::{Vector, splat};

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
        dgain[i] += T::from_f64(n.sqrt() * mean);
        let by_rstd = gain[i].into() / n.sqrt() * rstd;
        let factors = [T::from_f64(by_rstd), T::from_f64(by_rstd * rstd * mean)];
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
