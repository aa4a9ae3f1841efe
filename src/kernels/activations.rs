//! exp, sigmoid and tanh on vectors.

use fearless_simd::Simd;

use crate::number::Number;
use crate::simd::Vector;

#[inline(always)]
fn each<S: Simd, T: Number>(_simd: S, mut x: Vector<S, T>, f: impl Fn(f64) -> f64) -> Vector<S, T> {
    use fearless_simd::SimdBase;
    for lane in x.as_mut_slice() {
        *lane = T::from_f64(f((*lane).into()));
    }
    x
}

/// 1/(1 + e^-x)
#[inline(always)]
pub(crate) fn sigmoid<S: Simd, T: Number>(simd: S, x: Vector<S, T>) -> Vector<S, T> {
    each::<S, T>(simd, x, |x| 1.0 / (1.0 + (-x).exp()))
}

/// tanh x
#[inline(always)]
pub(crate) fn tanh<S: Simd, T: Number>(simd: S, x: Vector<S, T>) -> Vector<S, T> {
    each::<S, T>(simd, x, f64::tanh)
}
