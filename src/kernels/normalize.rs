//! y from x, its moments, gain and bias.
//!
//! ```text
//! x̂ = ((x − mean) − low) · rstd
//! y = x̂ · gain + bias
//!
//! R rows at a time:
//!     sums of the first R rows
//!     while there are rows:
//!         statistics of these R rows from their sums
//!         block by block: write their y, and add the x of the next R rows to their sums
//! ```
//!
//! Never `x·rstd + (−mean·rstd)`: at a large mean that is the difference of two large numbers. Reading the next rows
//! while these are written keeps memory busy both ways; `R` rows at once share the loads of gain and bias, and let
//! their reductions, divisions and square roots overlap. Neither changes the order of additions within a row, so
//! neither changes a bit.

use std::ops::Range;

use fearless_simd::{Simd, SimdBase};
use fearless_simd_macros::simd;

use crate::kernels::moments::{
    self, CARRY, Epsilon, Moments, Partial, Statistics, near_means, partial_sums, row_moments, sample,
};
use crate::kernels::rescale::{Rescaled, rescale, rescued};
use crate::number::{LARGEST_BLOCK, Number};
use crate::simd::{TURNS, Tail, Vector, load, splat, tree, vectors, vectors_mut};

/// Gain and bias of a block of features: ones and zeros where the layer has none.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layer<'a, T> {
    pub(crate) features: usize,
    pub(crate) gain: Option<&'a [T]>,
    pub(crate) bias: Option<&'a [T]>,
    pub(crate) epsilon: Epsilon,
}

impl<'a, T: Number> Layer<'a, T> {
    /// The gain of `len` features from `start` on, at most a block of them.
    #[inline(always)]
    pub(crate) fn gain(&self, start: usize, len: usize) -> &'a [T] {
        self.gain.map_or(&T::ONES[..len], |gain| &gain[start..start + len])
    }

    /// The bias of `len` features from `start` on, at most a block of them.
    #[inline(always)]
    fn bias(&self, start: usize, len: usize) -> &'a [T] {
        self.bias.map_or(&T::ZEROS[..len], |bias| &bias[start..start + len])
    }
}

/// What forward keeps of some rows, one number a row in each slice.
#[derive(Debug)]
pub(crate) struct SavedRows<'a, T> {
    pub(crate) mean: &'a mut [T],
    pub(crate) low: &'a mut [T],
    pub(crate) rstd: &'a mut [T],
    /// Not 0 where a row had to be rescaled: backward then takes its moments again, in units of the rescaled row.
    pub(crate) exponent: &'a mut [i16],
}

impl<'a, T: Number> SavedRows<'a, T> {
    /// The first `rows` rows, and the others.
    pub(crate) fn split(self, rows: usize) -> (Self, Self) {
        let (mean, mean_rest) = self.mean.split_at_mut(rows);
        let (low, low_rest) = self.low.split_at_mut(rows);
        let (rstd, rstd_rest) = self.rstd.split_at_mut(rows);
        let (exponent, exponent_rest) = self.exponent.split_at_mut(rows);
        (
            Self { mean, low, rstd, exponent },
            Self { mean: mean_rest, low: low_rest, rstd: rstd_rest, exponent: exponent_rest },
        )
    }

    /// Takes the first `rows` rows off.
    pub(crate) fn take_first(&mut self, rows: usize) -> Self {
        let all = Self {
            mean: std::mem::take(&mut self.mean),
            low: std::mem::take(&mut self.low),
            rstd: std::mem::take(&mut self.rstd),
            exponent: std::mem::take(&mut self.exponent),
        };
        let (first, rest) = all.split(rows);
        *self = rest;
        first
    }

    #[inline(always)]
    pub(crate) fn set(&mut self, row: usize, statistics: &Statistics<T>, exponent: i32) {
        self.mean[row] = statistics.mean;
        self.low[row] = statistics.low;
        self.rstd[row] = statistics.rstd;
        self.exponent[row] = exponent as i16;
    }
}

/// Features up to which rows are taken eight at a time: their reductions are a large part of the work.
const SHORT: usize = 128;

/// Normalizes rows of any number of features, side by side in `x` and `y`.
#[simd]
pub(crate) fn forward<S: Simd, T: Number>(
    simd: S,
    layer: Layer<'_, T>,
    x: &[T],
    y: &mut [T],
    mut saved: Option<SavedRows<'_, T>>,
) {
    let features = layer.features;
    let rows = x.len() / features;
    let by_eight = if features <= SHORT { rows / 8 * 8 } else { 0 };
    let by_two = rows / 2 * 2;
    if features > T::BLOCK {
        return long_rows(simd, layer, x, y, &mut saved);
    }
    // Narrow registers do not hold two rows, and the scalar fallback takes minutes to compile them.
    if const { S::f32s::LEN < 8 } {
        return groups::<S, T, 1>(simd, layer, x, y, &mut saved, 0..rows);
    }
    groups::<S, T, 8>(simd, layer, x, y, &mut saved, 0..by_eight);
    groups::<S, T, 2>(simd, layer, x, y, &mut saved, by_eight..by_two);
    groups::<S, T, 1>(simd, layer, x, y, &mut saved, by_two..rows);
}

/// Rows of one block, `R` at a time; `R` divides their number.
#[simd]
#[inline(never)]
fn groups<S: Simd, T: Number, const R: usize>(
    simd: S,
    layer: Layer<'_, T>,
    x: &[T],
    y: &mut [T],
    saved: &mut Option<SavedRows<'_, T>>,
    rows: Range<usize>,
) {
    if rows.is_empty() {
        return;
    }
    let features = layer.features;
    let tail = Tail::new(simd, features);
    let mut group = Group::<S, T, R>::new(simd);
    let first = &x[rows.start * features..];
    let near = group.near(simd, &tail, first);
    for (i, row) in first.chunks_exact(features).take(R).enumerate() {
        (group.sums[i], group.squares[i]) = partial_sums(simd, &tail, row, near[i]);
    }
    group.finish(features, near, layer.epsilon);
    for row in rows.clone().step_by(R) {
        let (x, ahead) = x[row * features..].split_at(R * features);
        let y = &mut y[row * features..][..R * features];
        let more = row + R < rows.end;
        let near = if more { group.near(simd, &tail, ahead) } else { splat(simd, T::zero()) };
        for (i, y) in y.chunks_exact_mut(features).enumerate() {
            let at = i * features..(i + 1) * features;
            let (x, statistics) = (&x[at.clone()], group.statistics(i));
            if more {
                (group.sums[i], group.squares[i]) =
                    write_and_sum(simd, &tail, layer, &statistics, 0, x, y, &ahead[at], near[i]);
            } else {
                write(simd, &tail, layer, &statistics, 0, x, y);
            }
            save(saved, row + i, &statistics, 0);
        }
        if !group.all_safe {
            for (i, y) in y.chunks_exact_mut(features).enumerate() {
                if !group.statistics(i).safe {
                    careful_row(simd, layer, &x[i * features..][..features], y, saved, row + i);
                }
            }
        }
        if more {
            group.finish(features, near, layer.epsilon);
        }
    }
}

/// `R` rows of one block: their partial sums while they are read, then their statistics.
///
/// Arrays, not an array of rows: their statistics are computed as vectors then.
struct Group<S: Simd, T: Number, const R: usize> {
    sums: [Vector<S, T>; R],
    squares: [Vector<S, T>; R],
    mean: [T; R],
    low: [T; R],
    rstd: [T; R],
    safe: [bool; R],
    all_safe: bool,
}

impl<S: Simd, T: Number, const R: usize> Group<S, T, R> {
    #[inline(always)]
    fn new(simd: S) -> Self {
        let (zero, zeros) = ([T::zero(); R], [splat(simd, T::zero()); R]);
        Self { sums: zeros, squares: zeros, mean: zero, low: zero, rstd: zero, safe: [true; R], all_safe: true }
    }

    /// h of the first `R` of some rows.
    #[inline(always)]
    fn near(&mut self, simd: S, tail: &Tail<S, T>, rows: &[T]) -> Vector<S, T> {
        let features = tail.len();
        let mut samples = [splat(simd, T::zero()); R];
        for (sample, row) in samples.iter_mut().zip(rows.chunks_exact(features)) {
            *sample = moments::sample(simd, tail, row);
        }
        moments::near_means::<S, T, R>(simd, features, &mut samples)
    }

    /// The statistics from the partial sums.
    #[inline(always)]
    fn finish(&mut self, features: usize, near: Vector<S, T>, epsilon: Epsilon) {
        let (sums, squares) = (tree(&mut self.sums), tree(&mut self.squares));
        let (near, sums, squares) = (near.as_slice(), sums.as_slice(), squares.as_slice());
        let mut all_safe = true;
        for i in 0..R {
            let moments = Moments::of_block(features as f64, near[i], sums[i], squares[i]);
            let Statistics { mean, low, rstd, safe } = moments.finish(epsilon);
            self.mean[i] = mean;
            self.low[i] = low;
            self.rstd[i] = rstd;
            self.safe[i] = safe;
            all_safe &= safe;
        }
        self.all_safe = all_safe;
    }

    #[inline(always)]
    fn statistics(&self, i: usize) -> Statistics<T> {
        Statistics { mean: self.mean[i], low: self.low[i], rstd: self.rstd[i], safe: self.safe[i] }
    }
}

/// Rows of several blocks, one at a time.
#[simd]
#[inline(never)]
fn long_rows<S: Simd, T: Number>(
    simd: S,
    layer: Layer<'_, T>,
    x: &[T],
    y: &mut [T],
    saved: &mut Option<SavedRows<'_, T>>,
) {
    let features = layer.features;
    let mut next = row_moments(simd, &x[..features]);
    for (row, y) in y.chunks_exact_mut(features).enumerate() {
        let statistics = next.finish(layer.epsilon);
        let (x, ahead) = x[row * features..].split_at(features);
        if ahead.is_empty() {
            normalize(simd, layer, &statistics, 0, x, y);
        } else {
            next = Moments::none();
            for start in (0..features).step_by(T::BLOCK) {
                let block = start..(start + T::BLOCK).min(features);
                let (x, y, ahead) = (&x[block.clone()], &mut y[block.clone()], &ahead[block]);
                let tail = Tail::new(simd, x.len());
                let near = near_means::<S, T, 1>(simd, x.len(), &mut [sample(simd, &tail, ahead)])[0];
                let (sum, squares) = write_and_sum(simd, &tail, layer, &statistics, start, x, y, ahead, near);
                next = next.join(Moments::of_partial(x.len(), near, sum, squares));
            }
        }
        if statistics.safe {
            save(saved, row, &statistics, 0);
        } else {
            careful_row(simd, layer, x, y, saved, row);
        }
    }
}

#[inline(always)]
fn save<T: Number>(saved: &mut Option<SavedRows<'_, T>>, row: usize, statistics: &Statistics<T>, exponent: i32) {
    if let Some(saved) = saved {
        saved.set(row, statistics, exponent);
    }
}

/// y of the features from `start` on of a row of any length.
#[simd]
pub(crate) fn normalize<S: Simd, T: Number>(
    simd: S,
    layer: Layer<'_, T>,
    statistics: &Statistics<T>,
    start: usize,
    x: &[T],
    y: &mut [T],
) {
    for (block, (x, y)) in x.chunks(T::BLOCK).zip(y.chunks_mut(T::BLOCK)).enumerate() {
        let tail = Tail::new(simd, x.len());
        write(simd, &tail, layer, statistics, start + block * T::BLOCK, x, y);
    }
}

/// y of a whole row whose statistics were not [`Statistics::safe`].
#[simd]
#[cold]
#[inline(never)]
fn careful_row<S: Simd, T: Number>(
    simd: S,
    layer: Layer<'_, T>,
    x: &[T],
    y: &mut [T],
    saved: &mut Option<SavedRows<'_, T>>,
    row: usize,
) {
    let statistics = row_moments(simd, x).finish(layer.epsilon);
    if statistics.safe {
        normalize(simd, layer, &statistics, 0, x, y);
        save(saved, row, &statistics, 0);
    } else {
        let rescued = rescued(simd, x, layer.epsilon);
        normalize_rescaled(simd, layer, &rescued, 0, x, y);
        save(saved, row, &rescued.in_units_of_row(), rescued.exponent);
    }
}

/// y of the features from `start` on of a rescaled row.
#[simd]
#[cold]
#[inline(never)]
pub(crate) fn normalize_rescaled<S: Simd, T: Number>(
    simd: S,
    layer: Layer<'_, T>,
    rescued: &Rescaled<T>,
    start: usize,
    x: &[T],
    y: &mut [T],
) {
    let mut scaled = [T::zero(); LARGEST_BLOCK];
    for (block, (x, y)) in x.chunks(T::BLOCK).zip(y.chunks_mut(T::BLOCK)).enumerate() {
        let scaled = &mut scaled[..x.len()];
        rescale(x, rescued.exponent, scaled);
        normalize(simd, layer, &rescued.statistics, start + block * T::BLOCK, scaled, y);
    }
}

/// The statistics of a row in every lane.
#[derive(Clone, Copy)]
struct Splat<V> {
    mean: V,
    low: V,
    rstd: V,
}

impl<V> Splat<V> {
    #[inline(always)]
    fn new<S: Simd, T: Number<Vector<S> = V>>(simd: S, statistics: &Statistics<T>) -> Self {
        Self {
            mean: splat(simd, statistics.mean),
            low: splat(simd, statistics.low),
            rstd: splat(simd, statistics.rstd),
        }
    }

    /// x̂·gain + bias
    #[inline(always)]
    fn affine<S: Simd>(&self, x: V, gain: V, bias: V) -> V
    where
        V: SimdBase<S>,
    {
        ((x - self.mean) - self.low) * self.rstd * gain + bias
    }

    /// Fills `y`.
    #[inline(always)]
    fn write<S: Simd>(&self, simd: S, x: &V::Array, gain: &V::Array, bias: &V::Array, y: &mut V::Array)
    where
        V: SimdBase<S>,
    {
        let load = V::load_array_ref;
        self.affine(load(simd, x), load(simd, gain), load(simd, bias)).store_array(y);
    }
}

/// y of a block that starts at feature `start`.
#[inline(always)]
fn write<S: Simd, T: Number>(
    simd: S,
    tail: &Tail<S, T>,
    layer: Layer<'_, T>,
    statistics: &Statistics<T>,
    start: usize,
    x: &[T],
    y: &mut [T],
) {
    let (gain, bias) = (layer.gain(start, x.len()), layer.bias(start, x.len()));
    let row = Splat::new(simd, statistics);
    let arrays = T::chunks(x).0.iter().zip(T::chunks_mut(y).0);
    for ((x, y), (gain, bias)) in arrays.zip(T::chunks(gain).0.iter().zip(T::chunks(bias).0)) {
        row.write(simd, x, gain, bias, y);
    }
    write_tail(tail, &row, gain, bias, x, y);
}

/// y of a block of a row, and the partial sums of the block `ahead`.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "a kernel's arrays")]
fn write_and_sum<S: Simd, T: Number>(
    simd: S,
    tail: &Tail<S, T>,
    layer: Layer<'_, T>,
    statistics: &Statistics<T>,
    start: usize,
    x: &[T],
    y: &mut [T],
    ahead: &[T],
    near: T,
) -> (Vector<S, T>, Vector<S, T>) {
    let (gain, bias) = (layer.gain(start, x.len()), layer.bias(start, x.len()));
    let row = Splat::new(simd, statistics);
    let mut partial = Partial::new(simd, near);
    let (x_, ahead_, gain_, bias_, y_) = (vectors(x), vectors(ahead), vectors(gain), vectors(bias), vectors_mut(y));
    let chains = x_.pairs.chunks(CARRY).zip(y_.pairs.chunks_mut(CARRY)).zip(ahead_.pairs.chunks(CARRY));
    let affine = gain_.pairs.chunks(CARRY).zip(bias_.pairs.chunks(CARRY));
    for (((x, y), ahead), (gain, bias)) in chains.zip(affine) {
        for (((x, y), ahead), (gain, bias)) in x.iter().zip(y).zip(ahead).zip(gain.iter().zip(bias)) {
            for turn in 0..TURNS {
                partial.add(turn, load::<S, T>(simd, &ahead[turn]));
                row.write(simd, &x[turn], &gain[turn], &bias[turn], &mut y[turn]);
            }
        }
        partial.carry(simd);
    }
    if let (Some(x), Some(y), Some(ahead), Some(gain), Some(bias)) = (x_.odd, y_.odd, ahead_.odd, gain_.odd, bias_.odd)
    {
        partial.add(0, load::<S, T>(simd, ahead));
        row.write(simd, x, gain, bias, y);
    }
    write_tail(tail, &row, gain, bias, x, y);
    partial.end(tail, ahead)
}

/// y of the tail of a block.
#[inline(always)]
fn write_tail<S: Simd, T: Number>(
    tail: &Tail<S, T>,
    row: &Splat<Vector<S, T>>,
    gain: &[T],
    bias: &[T],
    x: &[T],
    y: &mut [T],
) {
    if !tail.is_empty() {
        tail.store_all(row.affine(tail.load_all(x), tail.load_all(gain), tail.load_all(bias)), y);
    }
}
