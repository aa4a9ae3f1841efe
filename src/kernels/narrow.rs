//! Rows of a few vectors, as many at once as a vector has lanes, and their vectors by name.
//!
//! [`normalize`](super::normalize) and [`backward`](super::backward) would do: the equations, the order of additions and
//! the bits are the same. But for so short a row their loops and branches cost more than the work, as do sums that are
//! found by the number of a row and so live in memory. Where the number of vectors is a constant there are none, and
//! backward keeps the columns in registers: 16 to 64 features take 0.5 to 0.9 of the time.
//!
//! A last vector that is not full is loaded and stored with elements of the one before. Memory likes one line after the
//! other: of rows that come from there, fewer are taken together, four as a rule; backward on AVX-512 takes them one by one.

pub(crate) mod backward;
pub(crate) mod forward;

use std::ops::Range;

use fearless_simd::{Simd, SimdBase};

use crate::number::{Number, Wide};
use crate::simd::{Tail, Vector, fold, splat, tree_of_folded};

/// Two sums of each of `R` rows on their way through the [`tree`](crate::simd::tree). Neighbours are folded at once, so that
/// half as many vectors wait in memory: of both sums, as many as there are rows. Not `CENTRED`, the first is 0.
pub(crate) struct Folded<V, const R: usize, const CENTRED: bool>([V; R]);

impl<V: Copy, const R: usize, const CENTRED: bool> Folded<V, R, CENTRED> {
    #[inline(always)]
    pub(crate) fn new<S: Simd, T: Number<Vector<S> = V>>(simd: S) -> Self {
        Self([splat(simd, T::zero()); R])
    }

    /// The partial sums of rows 2·`pair` and 2·`pair` + 1.
    #[inline(always)]
    pub(crate) fn set<S: Simd>(&mut self, pair: usize, even: [V; 2], odd: [V; 2])
    where
        V: SimdBase<S>,
    {
        if CENTRED {
            self.0[pair] = fold(even[0], odd[0]);
        }
        self.0[R / 2 + pair] = fold(even[1], odd[1]);
    }

    /// Both sums, one row in each lane.
    #[inline(always)]
    pub(crate) fn trees<S: Simd>(&mut self) -> [V; 2]
    where
        V: SimdBase<S>,
    {
        let (first, second) = self.0.split_at_mut(R / 2);
        [if CENTRED { tree_of_folded(first) } else { first[0] }, tree_of_folded(second)]
    }
}

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

/// Adds a chain to its block, and starts the next one.
#[inline(always)]
pub(crate) fn end_chain<S: Simd, T: Number, const N: usize>(
    simd: S,
    tail: &Tail<S, T>,
    chain: &mut [Vector<S, T>; N],
    block: &mut [T::Wide],
) {
    let zero = splat(simd, T::zero());
    // Elements that the last vector has in common with the one before are in that one's sums.
    chain[N - 1] = tail.keep(chain[N - 1], zero);
    for v in 0..N {
        for (sum, &term) in block[at::<T, N>(tail.len(), 0, v)].iter_mut().zip(chain[v].as_slice()) {
            *sum = sum.add(term.into());
        }
        chain[v] = zero;
    }
}

/// Puts column sums back.
#[inline(always)]
pub(crate) fn store<S: Simd, T: Number, const N: usize>(features: usize, sums: &[Vector<S, T>; N], to: &mut [T]) {
    // The last first: of the elements that it has in common with the one before, it has no sum.
    for v in (0..N).rev() {
        sums[v].store_slice(&mut to[at::<T, N>(features, 0, v)]);
    }
}
