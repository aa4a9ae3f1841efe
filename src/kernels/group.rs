//! The statistics of rows that are taken together.
//!
//! Their sums are reduced by the same shuffles and end as one vector with a row in each lane, so that one square root and
//! one division do for all.

use fearless_simd::{Simd, SimdBase};
use fearless_simd_macros::simd;

use crate::kernels::moments::{Moments, Spread, Statistics, near_means, partial_sums, row_moments, sample};
use crate::number::Number;
use crate::simd::{Tail, Vector, splat, tree};

/// The statistics of `R` rows. Arrays, not an array of rows: they are computed as vectors then.
pub(crate) struct Group<T, const R: usize> {
    pub(crate) mean: [T; R],
    pub(crate) low: [T; R],
    pub(crate) rstd: [T; R],
    /// All of them are.
    pub(crate) safe: bool,
}

impl<T: Number, const R: usize> Group<T, R> {
    /// Of rows of one block. `CENTRED`: as the spread.
    #[inline(always)]
    pub(crate) fn of_blocks<S: Simd, const CENTRED: bool>(
        simd: S,
        tail: &Tail<S, T>,
        rows: &[T],
        near: Vector<S, T>,
        spread: Spread,
    ) -> Self {
        let features = tail.len();
        let zeros = [splat(simd, T::zero()); R];
        let (mut sums, mut squares) = (zeros, zeros);
        for (i, row) in rows.chunks_exact(features).enumerate() {
            [sums[i], squares[i]] = partial_sums::<S, T, CENTRED, 0>(simd, tail, row, near.as_slice()[i], []);
        }
        let sums = if spread.centred { tree(simd, &mut sums) } else { splat(simd, T::zero()) };
        Self::of_trees(simd, tail, rows, near, [sums, tree(simd, &mut squares)], spread)
    }

    /// Of rows of one block, from s and q of each, one in each lane.
    #[inline(always)]
    pub(crate) fn of_trees<S: Simd>(
        simd: S,
        tail: &Tail<S, T>,
        rows: &[T],
        near: Vector<S, T>,
        [sums, squares]: [Vector<S, T>; 2],
        spread: Spread,
    ) -> Self {
        let sums_of = [near.as_slice(), sums.as_slice(), squares.as_slice()];
        let group = Self::of_sums(tail.len(), R, sums_of, spread);
        if group.safe || !spread.centred {
            group
        } else {
            sum_far_rows_again(simd, tail, rows, [near, sums, squares], spread)
        }
    }

    /// From h, s and q of each row; the first `count` of them must be safe.
    #[inline(always)]
    pub(crate) fn of_sums(features: usize, count: usize, [near, sums, squares]: [&[T]; 3], spread: Spread) -> Self {
        let (mut mean, mut low, mut rstd, mut all_safe) = ([T::zero(); R], [T::zero(); R], [T::zero(); R], true);
        for i in 0..R {
            let moments = Moments::of_block(features as f64, near[i], sums[i], squares[i]);
            let safe;
            Statistics { mean: mean[i], low: low[i], rstd: rstd[i], safe } = moments.finish(spread);
            all_safe &= safe | (i >= count);
        }
        Self { mean, low, rstd, safe: all_safe }
    }

    /// Of rows of several blocks.
    #[inline(always)]
    pub(crate) fn of_long_rows<S: Simd>(simd: S, features: usize, rows: &[T], spread: Spread) -> Self {
        let mut group = Self::none();
        for (i, row) in rows.chunks_exact(features).enumerate() {
            group.set(i, &row_moments(simd, spread, row).finish(spread));
        }
        group
    }

    /// Those of rows that are not there yet.
    #[inline(always)]
    fn none() -> Self {
        let zeros = [T::zero(); R];
        Self { mean: zeros, low: zeros, rstd: zeros, safe: true }
    }

    #[inline(always)]
    fn set(&mut self, row: usize, statistics: &Statistics<T>) {
        (self.mean[row], self.low[row], self.rstd[row]) = (statistics.mean, statistics.low, statistics.rstd);
        self.safe &= statistics.safe;
    }
}

/// h of each of `R` rows of one block.
#[inline(always)]
pub(crate) fn near_means_of<S: Simd, T: Number, const R: usize>(
    simd: S,
    tail: &Tail<S, T>,
    rows: &[T],
    spread: Spread,
) -> Vector<S, T> {
    let mut samples = [splat(simd, T::zero()); R];
    if !spread.centred {
        return samples[0];
    }
    for (sum, row) in samples.iter_mut().zip(rows.chunks_exact(tail.len())) {
        *sum = sample(simd, tail, row);
    }
    near_means::<S, T>(simd, tail.len(), &mut samples)
}

/// The statistics of `R` rows of which one is not safe; those whose sample told nothing of them are added once more.
#[simd]
#[cold]
#[inline(never)]
fn sum_far_rows_again<S: Simd, T: Number, const R: usize>(
    simd: S,
    tail: &Tail<S, T>,
    rows: &[T],
    sums: [Vector<S, T>; 3],
    spread: Spread,
) -> Group<T, R> {
    let [near, sums, squares] = sums.each_ref().map(
        #[inline(always)]
        |sums| sums.as_slice(),
    );
    let mut group = Group::none();
    for (i, row) in rows.chunks_exact(tail.len()).enumerate() {
        let moments = Moments::of_block(tail.len() as f64, near[i], sums[i], squares[i]);
        group.set(i, &moments.or_once_more(simd, tail, row).finish(spread));
    }
    group
}
