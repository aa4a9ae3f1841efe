//! What is done to elements one by one, by way of a cache: before or behind a kernel that takes rows.
//!
//! Plain loops: no sum, so nothing has an order, and the compiler makes vectors of them.

use fearless_simd::Simd;
use fearless_simd_macros::simd;

use crate::kernels::normalize::Layer;
use crate::number::Number;

/// sum = mask ⊙ x + residual; without a mask where that is empty.
#[simd]
pub(crate) fn add_residual<S: Simd, T: Number>(simd: S, x: &[T], mask: &[T], residual: &[T], sum: &mut [T]) {
    let terms = sum.iter_mut().zip(x).zip(residual);
    if mask.is_empty() {
        for ((sum, &x), &residual) in terms {
            *sum = x + residual;
        }
    } else {
        for (((sum, &x), &residual), &mask) in terms.zip(mask) {
            *sum = mask * x + residual;
        }
    }
}

/// to += terms
#[simd]
pub(crate) fn add_to<S: Simd, T: Number>(simd: S, to: &mut [T], terms: &[T]) {
    for (to, &term) in to.iter_mut().zip(terms) {
        *to += term;
    }
}

/// product = a ⊙ b
#[simd]
pub(crate) fn multiply<S: Simd, T: Number>(simd: S, a: &[T], b: &[T], product: &mut [T]) {
    for ((product, &a), &b) in product.iter_mut().zip(a).zip(b) {
        *product = a * b;
    }
}

/// x̂ = (y − bias)/gain
#[simd]
pub(crate) fn normalized<S: Simd, T: Number>(simd: S, layer: Layer<'_, T>, y: &[T], normalized: &mut [T]) {
    let rows = y.chunks_exact(layer.features).zip(normalized.chunks_exact_mut(layer.features));
    for (y, normalized) in rows {
        for (block, (y, normalized)) in y.chunks(T::BLOCK).zip(normalized.chunks_mut(T::BLOCK)).enumerate() {
            let (start, len) = (block * T::BLOCK, y.len());
            let affine = layer.gain(start, len).iter().zip(layer.bias(start, len));
            for ((normalized, &y), (&gain, &bias)) in normalized.iter_mut().zip(y).zip(affine) {
                *normalized = (y - bias) / gain;
            }
        }
    }
}

/// Each row times its factor.
#[simd]
pub(crate) fn scale_rows<S: Simd, T: Number>(simd: S, factors: &[T], rows: &mut [T]) {
    let features = rows.len() / factors.len();
    for (row, &factor) in rows.chunks_exact_mut(features).zip(factors) {
        for x in row {
            *x *= factor;
        }
    }
}
