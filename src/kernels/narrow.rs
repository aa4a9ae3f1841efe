//! Rows of a few vectors, as many at once as a vector has lanes, and their vectors by name.
//!
//! [`normalize`](super::normalize) and [`backward`](super::backward) would do: the equations, the order of additions and
//! the bits are the same. But for so short a row their loops and branches cost more than the work, as do sums that are
//! found by the number of a row and so live in memory. Where the number of vectors is a constant there are none, and
//! backward keeps the columns in registers: 16 to 64 features take 0.5 to 0.9 of the time.
//!
//! A last vector that is not full is loaded and stored with elements of the one before. Memory likes one line after the
//! other: of rows that come from there, fewer are taken together.

pub(crate) mod backward;
pub(crate) mod forward;

use std::ops::Range;

use fearless_simd::{Simd, SimdBase};

use crate::number::Number;
use crate::simd::{Vector, splat};

/// The elements of vector `v` of row `r`.
#[inline(always)]
pub(crate) fn at<T: Number, const N: usize>(features: usize, r: usize, v: usize) -> Range<usize> {
    let start = if v == N - 1 { (r + 1) * features - T::LANES } else { r * features + v * T::LANES };
    start..start + T::LANES
}

/// The vectors of row `r`.
#[inline(always)]
pub(crate) fn vectors<S: Simd, T: Number, const N: usize>(
    simd: S,
    features: usize,
    rows: &[T],
    r: usize,
) -> [Vector<S, T>; N] {
    let mut vectors = [splat(simd, T::zero()); N];
    for v in 0..N {
        vectors[v] = Vector::<S, T>::from_slice(simd, &rows[at::<T, N>(features, r, v)]);
    }
    vectors
}
